"""The steps of `gpu.py`: each runs on any device, in a process of its own, and ends with a JSON line.

python -m benchmarks._gpu_steps equal --device cuda
python -m benchmarks._gpu_steps training --device cpu --tiny
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks._common import ROOT, ratio, report, seconds, told, turns
from benchmarks._gpu_models import (
    OPTIONS,
    Place,
    adapter_for,
    chats,
    cut_to,
    exact_pair,
    made,
    question,
    tiny_pair,
)
from benchmarks._peer import PerDocument
from benchmarks._sides import TOLERANCE, Difference, batched, difference
from lcfbench.adapters.base import adapter_class
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.latency.clock import EventClock, clock_for
from lcfbench.latency.documents import unstopped
from lcfbench.methods.base import Batch, Method
from lcfbench.methods.create import method_class
from lcfbench.methods.load_pair import Pair
from lcfbench.models.beside import Beside, stream_of
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.memory import peak_memory_bytes, reset_peak_memory
from lcfbench.models.timing import PHASES, Clock
from lcfbench.progress import Silent, quiet_libraries
from lcfbench.registry import method_names
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Outcome

Found = list[dict[str, Any]]
ADAPTERS = {"lcf": ("lcf", {"width": 128}), "c2c": ("c2c", {})}  # as published; C2C's are 1024 wide
SLACK = 2.0  # how far a GPU's bfloat16 may be from float32, in units of how far the CPU's is


class WrongError(Exception):
    """A step found something that must not be."""


# -- answers --------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, str, str | None, bool]]:
    """Yields label, method, kind of adapter, and whether contexts are shared, for every method there is."""
    for mode in method_names():
        for kind in method_class(mode).adapter_kinds or (None,):
            contexts = adapter_class(kind).contexts if kind else ("shared", "different")
            for context in contexts:
                yield " ".join(filter(None, (mode, kind, context))), mode, kind, context == "shared"


def documents_of(shared: bool) -> list[Document]:
    scorings: tuple[Any, ...] = ("letters", "cloze", "generate")
    return [question(3 * k + i, 12 + 5 * i, s, shared) for i in range(3) for k, s in enumerate(scorings)]


def answers(
    mode: str, kind: str | None, shared: bool, pair: tuple[CausalLM, CausalLM]
) -> dict[str, Outcome] | None:
    """What a method answers; None where it serves no such documents."""
    own = {
        "t2t": {"budget": "6"},
        "sde": {"budget": "6"},
        "excerpt": {"bytes": "20"},
        "latentmas": {"steps": "2"},
    }
    try:
        method = made(mode, pair, kind, OPTIONS.get(kind or "", {}), own.get(mode), noise=0.3)
    except UserError:
        return None
    documents = [d for d in documents_of(shared) if serves(method, d)]
    if not documents:
        return None
    if method.calibration:
        with torch.inference_mode():
            method.calibrate(documents[: method.calibration])
    out: dict[str, Outcome] = {}
    for scoring in dict.fromkeys(d.scoring for d in documents):
        out |= batched(method, [d for d in documents if d.scoring == scoring], 3)
    return out


def serves(method: Method, document: Document) -> bool:
    """Says whether a method can serve a document."""
    try:
        method.check(document)
    except UserError:
        return False
    return True


def equal(place: Place) -> Found:
    """Every method in float32 answers on the device as on the CPU.

    Sums in another order round differently: some 1e-7 of numbers of 10 to 100, a few hundred times one
    after another, which is 1e-4 to 1e-3 nats; a wrong position or mask moves them by whole nats. Where
    answers differ nothing else of this machine can be believed, so the step fails.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    here, there, out = tiny_pair("cpu"), tiny_pair(place.device), Found()
    left = {mode for _, mode, _, _ in cases()}
    for label, mode, kind, shared in cases():
        if (want := answers(mode, kind, shared, here)) is None:
            continue
        left.discard(mode)
        got = answers(mode, kind, shared, there)
        assert got is not None
        found = difference(got, want)
        line = {"case": label, "claim": f"{label}: nats between {place.device} and cpu, float32"}
        line |= {"ratio": found.nats, "unit": "nats", "target": TOLERANCE, "better": "lower"}
        out.append(line | {"differing": found.picks})
    if left:
        raise WrongError(f"no documents for {', '.join(sorted(left))}: not every method was compared")
    wrong = [r for r in out if r["differing"] or not r["ratio"] <= TOLERANCE]
    if wrong:
        named = ", ".join(f"{r['case']} ({r['differing']} differ, {r['ratio']:.2g} nats)" for r in wrong)
        raise WrongError(f"answers on {place.device} are not the CPU's: {named}; {len(out)} were compared")
    return out


def bfloat16(place: Place) -> Found:
    """Scores in bfloat16 are as near to float32 on the device as on the CPU, for every method."""
    exact, here, there = (
        tiny_pair("cpu"),
        tiny_pair("cpu", torch.bfloat16),
        tiny_pair(place.device, torch.bfloat16),
    )
    out = Found()
    for label, mode, kind, shared in cases():
        if (want := answers(mode, kind, shared, exact)) is None:
            continue
        both = [answers(mode, kind, shared, pair) for pair in (here, there)]
        cpu, gpu = (gap(found or {}, want) for found in both)
        line = {"case": label, "claim": f"{label}: distance of bfloat16 from float32, {place.device} ÷ cpu"}
        line |= {"ratio": gpu / max(cpu, 1e-3), "target": SLACK, "better": "lower"}
        out.append(line | {"nats": gpu, "differing": difference(both[1] or {}, want).picks})
    return out


def gap(found: Mapping[str, Outcome], want: Mapping[str, Outcome]) -> float:
    """The mean distance of first-step log-likelihoods, in nats."""
    gaps = [
        abs(a - b)
        for key in want
        for mine, other in zip(found[key].loglikelihoods[:1], want[key].loglikelihoods[:1], strict=True)
        for (a, _), (b, _) in zip(mine, other, strict=True)
    ]
    return statistics.mean(gaps)


# -- times ----------------------------------------------------------------------------------------


@torch.inference_mode()
def timed(method: Method, document: Document, clock: Clock) -> Clock:
    """Answers a document on a clock; its total is put beside its phases."""
    with unstopped(method):
        batch = Batch([document], [document], clock)
        answer(method.respond(batch), batch)
    vars(clock)["total"] = clock.total_ms()
    return clock


def paper_methods(pair: tuple[CausalLM, CausalLM], place: Place) -> dict[str, Method]:
    """The receiver alone, LCF-128 and C2C, of the exact shapes."""
    out = {"receiver": made("receiver", pair)}
    for mode, (kind, options) in ADAPTERS.items():
        out[mode] = made(mode, pair, kind, OPTIONS[kind] if place.tiny else options)
    return out


def phases(place: Place) -> Found:
    """Device events beside the clock that waits at both ends of a phase.

    Events never wait inside an answer, so that phases are as long as a user has them; they add up to
    the whole.
    """
    pair, out = exact_pair(place), Found()
    device = pair[0].device
    document = question(1, place.size(300, 12), "generate", written=place.size(16, 3))
    for mode, method in paper_methods(pair, place).items():
        clocks: dict[str, list[Any]] = {"events": [], "waiting": []}
        for _ in range(place.size(7, 2)):
            clocks["events"].append(timed(method, document, clock_for(device)))
            clocks["waiting"].append(timed(method, document, Clock(device)))
        totals = {name: [c.total for c in some[1:]] for name, some in clocks.items()}
        sums = [sum(c.ms.values()) for c in clocks["events"][1:]]
        ms = {p: statistics.median(c.ms[p] for c in clocks["events"][1:]) for p in PHASES}
        about = {"ms": ms, "clock": type(clocks["events"][0]).__name__}
        what = f"{mode}: phases by device events, their sum ÷ the whole"
        out.append(
            {
                "case": f"{mode}, sum",
                "claim": what,
                "ratio": ratio({"a": sums, "b": totals["events"]}, "a", "b"),
            }
            | {"target": 0.9}
            | about
        )
        what = f"{mode}: time by device events ÷ by a clock that waits"
        out.append({"case": f"{mode}, clocks", "claim": what, "ratio": ratio(totals, "events", "waiting")})
    if place.cuda:
        assert isinstance(clock_for(device), EventClock)
    return out


def bench(place: Place) -> Found:
    """The recipe `bench-lcf-paper` by geometry: first tokens and whole answers of T2T, LCF and C2C."""
    # the matmul beside which repeats count takes a GPU less than a millisecond: its own time varies
    sizes = ("64,512,2048", "3", "1.5", "20") if not place.tiny else ("64", "1", "0.2", "0")
    asked = ["bench", "--recipe", "bench-lcf-paper", "--device", place.device, "--warm-up", "1"]
    for flag, value in zip(("--prompt-tokens", "--repeats", "--minutes", "--drift"), sizes, strict=True):
        asked += [flag, value]
    asked += ["--pair", "smollm2-135m:smollm2-135m", "--budget", "2", "--answer-tokens", "2"] * place.tiny
    ended = subprocess.run(
        [sys.executable, "-m", "lcfbench", *asked], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if ended.returncode:
        raise WrongError(f"lcfbench {' '.join(asked)} ended with exit code {ended.returncode}")
    line, out = json.loads(ended.stdout.strip().splitlines()[-1]), Found()
    for each in line["rows"]:
        note = f", {each['budget']} tokens of note" if each["budget"] else ""
        label = f"{each['label']}{note}, {each['prompt_tokens']} tokens"
        ttft = each["ms"]["ttft"]
        spread = {"median": ttft["median"], "low": ttft["min"], "high": ttft["max"]}
        what = {"case": label, "claim": f"{label}: first token", "unit": "ms", "better": "lower"}
        out.append(what | {"ratio": spread, "ms": each["ms"], "tokens": each["tokens"]})
    if not out:
        raise WrongError(f"lcfbench {' '.join(asked)} timed nothing: {line['left_out']}")
    return out


def per_document(place: Place) -> Found:
    """Documents a second of C2C and LCF in batches beside one document after another, exact shapes."""
    pair, out = exact_pair(place), Found()
    others = [copied(lm) for lm in pair]
    count, size = place.size(32, 4), place.size(32, 3)
    for mode in ADAPTERS:
        method = paper_methods(pair, place)[mode]
        for scoring in ("letters", "cloze"):
            documents = [question(k, place.size(80, 8) + k, scoring) for k in range(count)]  # type: ignore[arg-type]
            peer = PerDocument(method, *others)
            sides: dict[str, Callable[[], dict[str, Outcome]]] = {
                "ours": lambda m=method, d=documents: batched(m, d, size),  # type: ignore[misc]
                "peer": lambda p=peer, d=documents: {x.hash: p.answer(x) for x in d},  # type: ignore[misc]
            }
            found: list[Difference] = []
            batched(method, documents[:2], size)
            peer.answer(documents[0])
            times = turns(
                sides,
                place.size(2, 1) if scoring == "letters" else 1,
                warm_up=0,
                check=lambda got, f=found: f.append(difference(got["ours"], got["peer"])),  # type: ignore[misc]
            )
            speed = {side: count / taken for side, taken in seconds(times).items()}
            out.append(
                {
                    "case": f"{mode}-{scoring}",
                    "claim": f"{mode} {scoring}, exact shapes: documents/s, batches ÷ one after another",
                    "ratio": ratio(times, "peer", "ours"),
                    "target": 10.0,
                    "documents_per_s": speed,
                    "differing": found[-1].picks,
                    "largest_gap_nats": found[-1].nats,
                }
            )
    return out


def copied(lm: CausalLM) -> Any:
    """A second copy of a model, of the peer's own."""
    return copy.deepcopy(lm.model)


def streams(place: Place) -> Found:
    """The first token where both models read side by side, beside the longer of their two prefills.

    The prefills alone are there too, queued by one thread (as the package does) and by two: where a
    GPU waits for the next kernel, it matters how fast they are queued.
    """
    pair, out = exact_pair(place), Found()
    receiver, sharer = pair
    method = paper_methods(pair, place)["lcf"]
    for tokens in (256, 2048, 8192) if not place.tiny else (16,):
        work = Readings(method, document_of(receiver, tokens))
        sides: dict[str, Callable[[], Any]] = {
            "receiver": lambda w=work: receiver.prefill(w.mine) and None,  # type: ignore[misc]
            "sharer": lambda w=work: sharer.prefill(w.theirs) and None,  # type: ignore[misc]
            "prefills": work.prefills,
            "two threads": work.by_threads,
            "first token": work.first_token,
            "in turn": work.in_turn,
        }
        with torch.inference_mode():
            times = turns(sides, place.size(9, 2), warm_up=2, check=same_logits)
        times["longer"] = [max(pair) for pair in zip(times["receiver"], times["sharer"], strict=True)]
        for side, what in (
            ("first token", "first token, prefills side by side"),
            ("in turn", "first token, prefills in turn"),
            ("prefills", "both prefills, queued by one thread"),
            ("two threads", "both prefills, queued by two threads"),
        ):
            line = {"case": f"{tokens} tokens, {side}", "better": "lower", "seconds": seconds(times)}
            line["claim"] = f"LCF-128, {tokens} tokens a side: {what} ÷ the longer prefill"
            goal = {"target": 1.15} if side == "first token" and place.cuda else {}
            out.append(line | {"ratio": ratio(times, side, "longer")} | goal)
    return out


class Readings:
    """What both models read of a document, in several orders."""

    def __init__(self, method: Any, document: Document) -> None:
        self.method, self.document = method, document
        shown = method.prompt(method.receiver, document.receiver, document)
        self.mine = [list(shown.ids[:-1])]
        self.theirs = [list(p.ids) for p in method.sharer_prompts(self.batch(), [shown])]
        self.pool = ThreadPoolExecutor(1)

    def batch(self) -> Batch:
        return Batch([self.document], [self.document], clock_for(self.method.receiver.device))

    def first_token(self) -> Any:
        return self.method.receiver.open(self.method.respond(self.batch())).logits

    def in_turn(self) -> Any:
        with mock.patch.object(Beside, "of", return_value=None):
            return self.first_token()

    def prefills(self) -> None:
        receiver, sharer = self.method.receiver, self.method.sharer
        beside = Beside.of(sharer, receiver, self.batch().clock)
        with nullcontext() if beside is None else beside.first("sharer"):
            sharer.prefill(self.theirs)
        with nullcontext() if beside is None else beside.second("prefill"):
            receiver.prefill(self.mine)

    def by_threads(self) -> None:
        receiver, sharer = self.method.receiver, self.method.sharer
        stream = stream_of(sharer.device) if sharer.device.type == "cuda" else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(sharer.device))

        def read() -> None:
            with torch.inference_mode(), torch.cuda.stream(stream) if stream else nullcontext():
                sharer.prefill(self.theirs)

        other = self.pool.submit(read)
        receiver.prefill(self.mine)
        other.result()
        if stream is not None:
            torch.cuda.current_stream(sharer.device).wait_stream(stream)


def same_logits(found: Mapping[str, Any]) -> None:
    """Raises WrongError unless both ways give the same logits bit for bit."""
    if not torch.equal(found["first token"], found["in turn"]):
        raise WrongError("prefills side by side give other logits than one after the other")


def document_of(lm: CausalLM, tokens: int) -> Document:
    """A document of about so many tokens."""
    few = question(1, 200, "letters")
    each = len(lm.tokenizer(few.receiver.user).input_ids) / 200
    return question(1, max(int(tokens / each), 1), "letters")


# -- graphs ---------------------------------------------------------------------------------------


def recorded(work: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a function that replays the device's part of `work` from a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()

    def replay() -> Any:
        graph.replay()
        return made

    return replay


def graph_case(name: str, what: str, work: Callable[[], Any], place: Place) -> Found:
    """Times work launched kernel by kernel beside its graph; on a CPU the first alone."""
    sides: dict[str, Callable[[], Any]] = {"launched": work}
    gaps: list[float] = []
    if place.cuda:
        sides["graph"] = recorded(work)

    def check(found: Mapping[str, Any]) -> None:
        a, b = found["launched"], found.get("graph", found["launched"])
        gaps.append(float((a - b).abs().max()))

    times = turns(sides, place.size(15, 2), warm_up=2, check=check)
    line: dict[str, Any] = {
        "case": name,
        "claim": f"{what}: launched ÷ a CUDA graph",
        "seconds": seconds(times),
    }
    if place.cuda:
        line |= {"ratio": ratio(times, "launched", "graph"), "largest_gap": max(gaps)}
    return Found([line])


@torch.inference_mode()
def decode_graph(place: Place) -> Found:
    """One token of the receiver: launched kernel by kernel beside a CUDA graph, one row and 32."""
    receiver, out = exact_pair(place)[0], Found()
    for rows in (1, 32):
        kv = receiver.prefill(cut_to(receiver, place.size(512, 12), rows))
        cache, device = receiver.decoding(kv), receiver.device
        ids = torch.full((rows,), 11, device=device)
        positions = torch.full((rows,), kv.length, device=device)
        mask = torch.ones(rows, kv.length + 1, dtype=torch.long, device=device)

        def step(
            cache: Any = cache, ids: Any = ids, mask: Any = mask, at: Any = positions, n: int = kv.length
        ) -> Any:
            for layer in cache.layers:  # the same token again
                layer.keys, layer.values = layer.keys[:, :, :n], layer.values[:, :, :n]
            return receiver.step(cache, ids, mask, at, None)

        out += graph_case(f"decode, {rows} rows", f"a token of {rows} rows of the receiver", step, place)
    return out


@torch.inference_mode()
def fuse_graph(place: Place) -> Found:
    """Fusing 256 tokens with LCF-128 and C2C: launched kernel by kernel beside a CUDA graph."""
    pair, out = exact_pair(place), Found()
    g, s, device, dtype = pair[0].geometry, pair[1].geometry, pair[0].device, pair[0].dtype
    n = place.size(256, 8)
    for mode, (kind, options) in ADAPTERS.items():
        adapter: Any = adapter_for(kind, pair, OPTIONS[kind] if place.tiny else options, mode, 0.0)
        sent = torch.randn(g.layers, n, 2 * s.kv_width, device=device, dtype=dtype)
        keys, values = torch.randn(2, g.layers, 1, g.kv_heads, n, g.head_dim, device=device, dtype=dtype)

        def fuse(adapter: Any = adapter, sent: Any = sent, keys: Any = keys, values: Any = values) -> Any:
            return torch.stack(adapter(adapter.message(sent)[:, None], keys, values))

        out += graph_case(f"fuse, {mode}", f"fusing {n} tokens with {mode}", fuse, place)
    return out


@torch.inference_mode()
def prefill_graph(place: Place) -> Found:
    """Both prefills as CUDA graphs: each beside its launches, and both side by side on two streams."""
    pair, out = exact_pair(place), Found()
    replays = []
    for lm, role in zip(pair, ("receiver", "sharer"), strict=True):
        ids = torch.tensor(cut_to(lm, place.size(512, 12)), device=lm.device)
        mask = torch.ones_like(ids)

        def read(lm: CausalLM = lm, ids: Any = ids, mask: Any = mask) -> Any:
            return lm.run_padded(ids, mask, None, 0).keys

        out += graph_case(f"prefill, {role}", f"reading {ids.shape[1]} tokens with the {role}", read, place)
        if place.cuda:
            replays.append(recorded(read))
    if place.cuda:
        mine, theirs = replays
        aside = torch.cuda.Stream()

        def beside() -> None:
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                theirs()
            mine()
            torch.cuda.current_stream().wait_stream(aside)

        times = turns({"receiver": mine, "sharer": theirs, "beside": beside}, 15, warm_up=2)
        times["longer"] = [max(p) for p in zip(times["receiver"], times["sharer"], strict=True)]
        what = "both prefills as graphs on two streams ÷ the longer of them"
        line = {"case": "prefills beside, graphs", "claim": what, "better": "lower"}
        out.append(line | {"ratio": ratio(times, "beside", "longer"), "seconds": seconds(times)})
    return out


# -- memory and training --------------------------------------------------------------------------


def memory(place: Place) -> Found:
    """The most memory of an answer beside weights, as a multiple of both models' caches."""
    pair, out = exact_pair(place), Found()
    device, rows = pair[0].device, place.size(32, 2)
    documents = [question(k, place.size(400, 12), "letters") for k in range(rows)]
    for mode, method in paper_methods(pair, place).items():
        batched(method, documents[:2], rows)
        held = torch.cuda.memory_allocated(device) if place.cuda else 0
        reset_peak_memory(device)
        batched(method, documents, rows)
        peak = peak_memory_bytes(device)
        tokens = sum(len(pair[0].tokenizer(d.receiver.user).input_ids) for d in documents)
        caches = [tokens * lm.geometry.layers * 2 * lm.geometry.kv_width * lm.dtype.itemsize for lm in pair]
        needed = caches[0] if mode == "receiver" else sum(caches)
        out.append(
            {
                "case": f"{mode}, {rows} rows",
                "claim": f"{mode}, {rows} rows at once: peak memory beside weights ÷ bytes of the caches",
                "ratio": (peak - held) / needed,
                "better": "lower",
                "peak_bytes": peak,
                "held_bytes": held,
                "cache_bytes": needed,
            }
        )
    return out


def training(place: Place) -> Found:
    """Examples a second of the recipe `lcf-paper-shared` at its real shapes, on made-up chats."""
    from lcfbench.training.recipe import TrainRecipe
    from lcfbench.training.setup import accelerator_of, trainings_of
    from lcfbench.training.trainer import Trainer, batch_order

    size, accumulate, steps = (256, 32, 2) if not place.tiny else (4, 2, 1)
    pair = exact_pair(place)
    with tempfile.TemporaryDirectory() as folder:
        given = {"out": Path(folder), "device": place.device, "steps": steps + 1, "warmup": 1}
        given |= {"batch_size": size, "accumulate": accumulate, "train_documents": 8 * size}
        recipe = TrainRecipe.merge("lcf-paper-shared", given, "train")
        examples = chats(8 * size, place.size(900, 20))
        whole = Pair(*pair, ("qwen3-0.6b", "qwen2.5-0.5b"))
        trainings = trainings_of(recipe, whole, examples)
        trainer = Trainer(recipe, trainings, {}, Silent(), accelerator_of(recipe))
        trainer.prepare(examples)
        for one in trainings:
            one.adapter.train()
        order = batch_order(examples, recipe, steps + 1)
        trainer.once(order[0][:4])  # warm
        reset_peak_memory(pair[0].device)
        numbers = iter(order[1:])
        times = turns({"step": lambda: trainer.once(next(numbers))}, steps, warm_up=0)
        peak = peak_memory_bytes(pair[0].device)
    bad = [one.failed for one in trainings if one.failed]
    if bad:
        raise WrongError(f"a training step's {bad[0]} is not finite")
    tokens = [sum(len(pair[0].tokenizer(d.receiver.user + d.gold).input_ids) for d in g) for g in order[1:]]
    rate = size / statistics.median(times["step"])
    what = f"lcf-paper-shared, {len(trainings)} adapters side by side: examples/s"
    line: dict[str, Any] = {"case": "examples", "claim": what, "ratio": rate, "unit": "examples/s"}
    line |= {"seconds": seconds(times), "peak_bytes": peak, "batch_size": size, "accumulate": accumulate}
    return Found([line | {"tokens_a_step": tokens, "adapters": recipe.adapters}])


STEPS: dict[str, Callable[[Place], Found]] = {
    step.__name__.replace("_", "-"): step
    for step in (
        equal,
        bfloat16,
        phases,
        streams,
        per_document,
        bench,
        decode_graph,
        fuse_graph,
        prefill_graph,
        memory,
        training,
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one step and prints its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and lengths")
    given = parser.parse_args(argv)
    quiet_libraries()
    place, name = Place(given.device, given.tiny), f"gpu-{given.step}"
    with told(name):
        found = STEPS[given.step](place)
    report(name, found, device=given.device, tiny=given.tiny, cuda=torch.version.cuda)


if __name__ == "__main__":
    main()

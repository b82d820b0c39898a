"""Fusing beside what surrounds it.

All layers in batched matmuls against a loop over layers, and its share of the two prefills and of
the first token.

For each adapter (random weights: time does not depend on them) and batch size, on prompts of the
same length for both models:
- `loop`: `Fusion.fuse` against a Python loop over one `nn.Module` a layer with the same weights
  (`_peer_layers.py`), which reads each layer's entries at the aligned positions and writes them
  back. Before a time counts both caches must lead to the same next token, and be close.
- `share`: `Fusion.fuse` ÷ (sharer prefill + receiver prefill), at most 0.10.
- `ttft`: `Method.respond` and the first token's logits, tokenising and all, ÷ (sharer prefill +
  receiver prefill), at most 1.15.
- `limit`: the least time that this machine needs for the fusion's bytes or operations, whichever is
  longer (`roofline.py`), ÷ the time of `Fusion.fuse`: at least 0.60 for C2C, 0.50 for LCF.
- `decode` (`--decode`): a token on the cache of a method ÷ a token on the receiver's own cache of
  the same length, at most 1.05. kvcomm and prefix, which hide or add entries, beside LCF, C2C, dense.

python benchmarks/fusion.py                                   # LCF-128, LCF-256, C2C-512
python benchmarks/fusion.py --random-weights --pair qwen3-0.6b:qwen2.5-0.5b --tokens 64   # by shape alone
python benchmarks/fusion.py --decode lcf,c2c,dense,prefix,kvcomm --adapters ""
python benchmarks/fusion.py --adapters c2c:hidden=1024 --batches 1
python benchmarks/fusion.py --device cuda --compile reduce-overhead    # `loop` also compiled
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import CLOCKS, parser, ratio, report, seconds, shown, turns
from benchmarks._peer_layers import layers_of
from benchmarks.roofline import fusion as work_of
from benchmarks.roofline import measure
from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import pair_config
from lcfbench.methods._fusion import Exchange, Fusion, Segment
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.loading import How
from lcfbench.models.protocol import Opened
from lcfbench.models.random_weights import random_lm
from lcfbench.models.timing import Clock
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Document, Step, View
from lcfbench.tasks.prompts import Prompt

WORDS = [
    "the",
    "box",
    "of",
    "colour",
    "is",
    "in",
    "a",
    "city",
    "where",
    "my",
    "old",
    "friend",
    "works",
    "on",
    "green",
    "bikes",
    "near",
    "lakes",
]
LEAST_SHARE = {"lcf": 0.5, "c2c": 0.6}  # of the machine's limit
DECODED = 24  # tokens
CLOSE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.05,
    torch.float16: 0.01,
}  # how far apart edits may be, as a share of their size


def documents(tokens: int, count: int, lm: CausalLM) -> list[Document]:
    """Different texts of so many of the receiver's tokens, near enough."""
    made = []
    for i in range(count):
        words = random.Random(i).choices(WORDS, k=tokens)
        while len(lm.tokenizer(" ".join(words)).input_ids) > tokens - 2:
            words.pop()
        view = View(" ".join(words), "Answer:")
        made.append(
            Document(
                "fusion",
                str(i),
                view,
                view,
                view,
                view,
                view,
                "cloze",
                "a",
                (Step((" a", " b"), (0,)),),
                chat=False,
            )
        )
    return made


def adapter_of(text: str, receiver: CausalLM, sharer: CausalLM) -> Adapter:
    """A random adapter of `KIND:key=number,…` with open soft gates."""
    kind, _, rest = text.partition(":")
    options = {key: int(value) for key, _, value in (part.partition("=") for part in rest.split(",") if part)}
    if kind == "c2c" and "hidden" in options:
        options.setdefault("intermediate", options["hidden"])
    torch.manual_seed(0)
    ends = (receiver.name, receiver.geometry), (sharer.name, sharer.geometry)
    made = build(
        pair_config(
            kind,
            *ends,
            layer_map="proportional",
            options=options | ({"gate": "soft", "gate_init": 1.0} if kind in LEAST_SHARE else {}),
        )
    )
    made.eval().requires_grad_(False).to(receiver.device)
    for name, parameter in made.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name == "gate_logit" else receiver.dtype)
    return made


class Case:
    """Documents read by both models, ready to be fused by either side."""

    def __init__(self, method: Fusion, batch: Batch) -> None:
        assert method.adapter is not None
        self.method, self.batch, self.adapter = method, batch, method.adapter
        self.prompts = [prompt(method.receiver, d.receiver, d) for d in batch.documents]
        self.shared = method.sharer_prompts(batch, self.prompts)
        self.theirs = method.sharer_cache(self.shared)
        self.state = method.receiver.read(self.prompts)
        self.part = Segment.whole(self.prompts)
        self.exchange = Exchange(batch, self.prompts, self.shared, self.theirs)
        self.layers = layers_of(self.adapter, method.receiver.dtype).to(method.receiver.device)

    def ours(self, adapter: Adapter | None = None) -> KV:
        method = self.method
        if adapter is not None:
            method = copy.copy(method)
            method.adapter = adapter
        return method.fuse(self.exchange, self.state.kv, self.part)[0]

    def loop(self) -> KV:
        """One layer after another, through its own module."""
        kv, theirs = self.state.kv, self.theirs
        index = self.method.positions(self.exchange, self.part).to(kv.keys.device)  # (B, N)
        real, at = (index >= 0)[:, None, :, None], index.clamp(min=0)[:, None, :, None]
        keys, values = list(kv.keys), list(kv.values)
        for module, t, s in zip(
            self.layers, self.adapter.config.layers, self.adapter.config.layer_map, strict=True
        ):
            sent = [
                x[s].gather(2, at.expand(-1, x.shape[2], -1, x.shape[4]))
                for x in (theirs.keys, theirs.values)
            ]
            new_k, new_v = module(*sent, keys[t], values[t])
            keys[t], values[t] = torch.where(real, new_k, keys[t]), torch.where(real, new_v, values[t])
        return replace(kv, keys=torch.stack(keys), values=torch.stack(values))

    def next_tokens(self, kv: KV) -> Tensor:
        return self.method.receiver.open(replace(self.state, kv=kv)).logits.argmax(-1)

    def check(self, made: dict[str, KV]) -> None:
        """Raises where the sides' caches are not the same up to rounding, or where nothing was edited."""
        first, *others = made.values()
        kv, limit = self.state.kv, CLOSE[self.method.receiver.dtype]
        real = kv.mask.bool()[None, :, None, :, None]
        assert not torch.equal(first.keys, kv.keys), "nothing was fused"
        for other in others:
            for a, b, own in ((first.keys, other.keys, kv.keys), (first.values, other.values, kv.values)):
                apart = ((a - b).float() * real).norm() / ((a - own).float() * real).norm()
                assert apart < limit, f"the sides' edits differ by {apart:.3g} of their size"

    def prefills(self) -> None:
        """Both models read their whole prompts, from ids."""
        for lm, prompts in ((self.method.sharer, self.shared), (self.method.receiver, self.prompts)):
            whole(lm, prompts)

    def first_token(self) -> Tensor:
        batch = Batch(self.batch.documents, self.batch.message_from, Clock(self.method.receiver.device))
        return self.method.receiver.open(self.method.respond(batch)).logits.argmax(-1)


def whole(lm: CausalLM, prompts: list[Prompt]) -> KV:
    return lm.prefill([p.ids for p in prompts])


def limited(name: str, case: Case, repeats: int, clock: Callable[[], float]) -> dict[str, object]:
    """How near to the limits of this machine one adapter fuses."""
    adapter, kv, size = case.adapter, case.state.kv, case.method.receiver.dtype.itemsize
    edited = sum(case.part.lengths)
    entries = 2 * len(adapter.config.layers) * 2 * adapter.config.receiver_geometry.kv_width * edited * size
    work = work_of(adapter, adapter.cache_bytes(edited, size), entries, adapter.flops(edited))
    shapes = [
        (edited, weight.shape[-2], weight.shape[-1]) for weight in adapter.parameters() if weight.dim() > 2
    ]
    shapes = [shape for shape in dict.fromkeys(shapes) if min(shape) > 1][:6]
    place = kv.keys.device, kv.keys.dtype
    limits = measure(*place, shapes)
    times = turns({"ours": case.ours}, repeats, clock=clock)["ours"]
    limits = limits.best(measure(*place, shapes))
    least = work.floor_ms(limits) / 1e3
    memory = work.bytes / limits.bytes_per_s > work.flops / limits.flops_per_s
    shares = sorted(least / taken for taken in times)
    return {
        "case": f"limit: {name}, batch {len(case.prompts)}, {kv.length + 1} tokens",
        "claim": "fusing: the least time that this machine needs as a share of the time taken",
        "ratio": {"median": shares[len(shares) // 2], "low": shares[0], "high": shares[-1]},
        "target": LEAST_SHARE[name.partition(":")[0]],
        "bound": "memory" if memory else "compute",
        "seconds": {"ours": sorted(times)[len(times) // 2], "least": least},
        "bytes_per_s": limits.bytes_per_s,
        "flops_per_s": limits.flops_per_s,
    }


def tokens_on(opened: Opened) -> None:
    """Writes `DECODED` tokens greedily, whatever they are."""
    lm, kv, position = opened.lm, opened.kv, opened.next_position
    cache, mask, ids = lm.decoding(kv), kv.present, opened.logits.argmax(-1)
    for _ in range(DECODED):
        mask = F.pad(mask, (0, 1), value=1)
        ids = lm.step(cache, ids, mask, position, kv.hidden).argmax(-1)
        position = position + 1


def decoded(
    name: str, method: Method, docs: list[Document], repeats: int, clock: Callable[[], float]
) -> dict[str, object]:
    """Decoding on a method's cache beside decoding on the receiver's own of the same length."""
    lm = method.receiver
    state = method.respond(Batch(docs, docs, Clock(lm.device)))
    reached = lm.open(state)
    rows = [replace(p, ids=(p.ids * (1 + reached.kv.length))[: reached.kv.length]) for p in state.prompts]
    alone = lm.open(lm.read(rows))
    assert alone.kv.length == reached.kv.length, "the caches are not of one length"
    times = turns(
        {"reached": lambda: tokens_on(reached), "alone": lambda: tokens_on(alone)}, repeats, clock=clock
    )
    return {
        "case": f"decode: {name}, batch {len(docs)}, {reached.kv.length} entries",
        "claim": "a token on the cache of a method against one on the receiver's own of that length",
        "ratio": ratio(times, of="reached", to="alone"),
        "better": "lower",
        "target": 1.05,
        "seconds": {side: each / DECODED for side, each in seconds(times).items()},
    }


def decoding_method(kind: str, receiver: CausalLM, sharer: CausalLM) -> Method:
    """A method with random weights; kvcomm has the receiver on both sides, and hides half of the layers."""
    if kind == "kvcomm":
        half = ",".join(map(str, range(0, receiver.geometry.layers, 2)))
        return create(kind, receiver, receiver, options={"layers": half})
    name = {"lcf": "lcf:width=128", "c2c": "c2c:hidden=512"}.get(kind, kind)
    return create(kind, receiver, sharer, adapter_of(name, receiver, sharer))


def measured(
    name: str, case: Case, repeats: int, clock: Callable[[], float], compile_mode: str | None
) -> list[dict[str, object]]:
    """The results of one adapter and batch size."""
    about = {"batch": len(case.prompts), "tokens": case.state.kv.length + 1, "params": case.adapter.params}
    label = f"{name}, batch {about['batch']}"
    sides: dict[str, Callable[[], KV]] = {"ours": case.ours, "loop": case.loop}
    if compile_mode:
        compiled = torch.compile(case.adapter, mode=compile_mode)
        sides["compiled"] = lambda: case.ours(compiled)  # type: ignore[arg-type]
    times = turns(sides, repeats, clock=clock, check=case.check)
    tokens = [case.next_tokens(side()) for side in sides.values()]
    differing = sum(int((tokens[0] != other).sum()) for other in tokens[1:])
    results: list[dict[str, object]] = [
        {
            "case": f"loop: {label}",
            "claim": "fusing in batched matmuls against one layer at a time",
            "ratio": ratio(times, of="loop", to="ours"),
            "seconds": seconds(times),
            "differing": differing,
            **about,
        }
    ]
    if compile_mode:
        results[0]["compiled"] = ratio(times, of="compiled", to="ours")
    phases: dict[str, Callable[[], object]] = {
        "fuse": case.ours,
        "prefills": case.prefills,
        "ttft": case.first_token,
    }
    parts = turns(phases, repeats, clock=clock)
    target = name.startswith("lcf") and about["batch"] == 1
    for kind, part, claim, limit in (
        ("share", "fuse", "fusing as a share of the two prefills", 0.10),
        ("ttft", "ttft", "first token against the two prefills alone", 1.15),
    ):
        found = {
            "case": f"{kind}: {label}",
            "claim": claim,
            "ratio": ratio(parts, of=part, to="prefills"),
            "better": "lower",
        }
        results.append(
            found
            | {"seconds": seconds(parts), **about}
            | ({"target": limit} if target and not name.endswith("256") else {})
        )
    results.append(limited(name, case, repeats, clock))
    return results


def say(results: list[dict[str, object]]) -> None:
    for result in results:
        print(f"{result['case']}: {shown(result['ratio'])}  {result['seconds']}", flush=True)  # type: ignore[arg-type]


def main() -> None:
    """Prints a line a case, then JSON."""
    made = parser(
        __doc__,
        pair="smollm2-135m:gemma3-270m",
        adapters="lcf:width=128 lcf:width=256 c2c:hidden=512",
        batches="1,8",
        tokens=256,
    )
    made.add_argument("--repeats", type=int, default=7)
    made.add_argument("--dtype", default="auto")
    made.add_argument("--device", default="auto")
    made.add_argument("--compile", help="a mode of torch.compile to measure beside")
    made.add_argument("--decode", default="", help="methods whose caches are decoded on, by comma")
    made.add_argument("--random-weights", action="store_true", help="models of these shapes alone")
    made.add_argument("--only-limit", action="store_true", help="nothing but the share of the limit")
    given = made.parse_args()
    quiet_libraries()
    names, how = split_pair(given.pair), How(given.dtype, given.device)
    if given.random_weights:
        receiver, sharer = (random_lm(name, how) for name in names)
    else:
        receiver, sharer = (
            CausalLM.load(find_model(name), dtype=given.dtype, device=given.device) for name in names
        )
    results: list[dict[str, object]] = []
    with torch.inference_mode():
        for size in map(int, given.batches.split(",")):
            docs = documents(given.tokens, size, receiver)
            for kind in filter(None, given.decode.split(",")):
                method = decoding_method(kind, receiver, sharer)
                results.append(decoded(kind, method, docs, given.repeats, CLOCKS[given.clock]))
                say(results[-1:])
            for name in given.adapters.split():
                method = create(
                    "c2c" if name.startswith("c2c") else "lcf",
                    receiver,
                    sharer,
                    adapter_of(name, receiver, sharer),
                )
                assert isinstance(method, Fusion)
                case = Case(method, Batch(docs, docs, Clock(receiver.device)))
                if given.only_limit:
                    results.append(limited(name, case, given.repeats, CLOCKS[given.clock]))
                    say(results[-1:])
                    continue
                found = measured(name, case, given.repeats, CLOCKS[given.clock], given.compile)
                results += found
                say(found)
    dtype = str(receiver.dtype).removeprefix("torch.")
    report(
        "fusion",
        results,
        given.out,
        pair=given.pair,
        random_weights=given.random_weights,
        dtype=dtype,
        device=str(receiver.device),
    )


if __name__ == "__main__":
    main()

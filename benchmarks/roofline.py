"""How near one method comes to the limits of this machine, phase by phase, for one document at a time.

    python -m benchmarks.roofline --mode lcf --prompt-tokens 256

A phase's floor is the least time this machine needs for the bytes it must move and the operations
it must do, at the rates measured in the same process. What is left out makes the floor lower, never
higher: activations, softmax, norms, tokenizing, Python. Weights count once a forward, as if no
cache of the processor held them: a model smaller than those caches may beat its floor. Forwards and
the adapter's work are counted by hooks in one answer, so that a method is counted by what it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._common import parser, report
from lcfbench.adapters.base import Adapter
from lcfbench.evaluation.answer import answer
from lcfbench.latency.documents import models_of, unstopped
from lcfbench.latency.grid import figures, once
from lcfbench.latency.plan import Cell, plan
from lcfbench.latency.recipe import BenchRecipe
from lcfbench.methods.base import Batch, Method
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import PHASES, Clock
from lcfbench.tasks.document import Document

BUFFER = {"cpu": 256 << 20, "cuda": 2 << 30}  # bytes: far more than any cache holds
SQUARES = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}
EACH_S = 0.12  # a way is tried for so long, or FEWEST times
FEWEST = 3
SLOW_S = 0.1  # a square that takes longer is the last one

# -- the machine ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """The rates of this machine.

    bytes_per_s: read from memory. flops_per_s: of matmuls. ways: the rate of each way that was
    tried, in bytes or operations a second.
    """

    bytes_per_s: float
    flops_per_s: float
    ways: dict[str, float]

    def best(self, other: Limits) -> Limits:
        """The higher of two measurements: other processes may have slowed down one of them."""
        ways = {k: max(self.ways.get(k, 0.0), other.ways.get(k, 0.0)) for k in self.ways | other.ways}
        reads, flops = max(self.bytes_per_s, other.bytes_per_s), max(self.flops_per_s, other.flops_per_s)
        return Limits(reads, flops, ways)


def measure(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, int, int]] = (),
    buffer: int | None = None,
) -> Limits:
    """Measures the machine.

    The best of several ways to read memory and of several matmuls in `dtype`.

    shapes: (tokens, in, out) of linear layers to try beside squares. buffer: bytes to read.
    """
    kind = device.type if device.type in BUFFER else "cpu"
    reads = bandwidth(device, dtype, buffer or BUFFER[kind])
    rates: dict[str, float] = {}
    for n in SQUARES[kind]:
        rates[f"matmul {n}×{n}×{n}"] = rate(device, dtype, n, n, n)
        if 2.0 * n**3 / rates[f"matmul {n}×{n}×{n}"] > SLOW_S:
            break
    for tokens, size_in, size_out in dict.fromkeys(shapes):
        rates[f"linear {tokens}×{size_in}×{size_out}"] = rate(device, dtype, tokens, size_in, size_out)
    return Limits(max(reads.values()), max(rates.values()), reads | rates)


def bandwidth(device: torch.device, dtype: torch.dtype, size: int) -> dict[str, float]:
    """Bytes a second of several ways to read a buffer of `size` bytes once."""
    x = torch.ones(size // 4, device=device)
    rows, one = x.view(-1, 4096), torch.ones(4096, device=device)
    narrow = x.view(dtype).view(-1, 4096)  # the bits of other numbers: their values do not matter
    ways: dict[str, Callable[[], Any]] = {
        "read: sum": lambda: x.sum(),
        "read: norm": lambda: torch.linalg.vector_norm(x),
        "read: max of int64": lambda: x.view(torch.int64).amax(),
        "read: matrix × vector": lambda: torch.mv(rows, one),
        f"read: linear, {str(dtype).removeprefix('torch.')}": lambda: F.linear(narrow[:1], narrow),
    }
    return {name: size / quickest(way, device) for name, way in ways.items()}


def rate(device: torch.device, dtype: torch.dtype, m: int, k: int, n: int) -> float:
    """Operations a second of an (m, k) by (k, n) matmul, as a linear layer does it."""
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    return 2.0 * m * k * n / quickest(lambda: F.linear(a, b), device)


def quickest(way: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the quickest of several calls, the first one not counted."""
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, spent, calls = float("inf"), 0.0, 0
    way()
    while calls < FEWEST or (spent < EACH_S and calls < 1000):
        sync()
        began = time.perf_counter()
        way()
        sync()
        took = time.perf_counter() - began
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


# -- the work -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One piece of work that cannot overlap the next. by_first: the first answer token needs it."""

    phase: str
    bytes: float
    flops: float
    by_first: bool = True

    def floor_ms(self, limits: Limits) -> float:
        """max(bytes / bandwidth, operations / rate).

        At best memory and arithmetic overlap entirely.
        """
        return 1e3 * max(self.bytes / limits.bytes_per_s, self.flops / limits.flops_per_s)


def head_params(lm: CausalLM) -> int:
    """Parameters of the output head, vocabulary × hidden, tied to the embedding table or not."""
    return lm.vocabulary_size * lm.hidden_size


def pairs(new: int, past: int, window: int | None = None) -> int:
    """Query–key pairs of causal attention of `new` tokens on `past` entries, at most `window` a token.

    Without a window: new·past + new·(new + 1)/2.
    """
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(min(window - past, new), 0)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def forward(lm: CausalLM, phase: str, new: int, past: int, logits: int, by_first: bool = True) -> Work:
    """The work of one forward of `new` tokens on `past` cache entries, with `logits` rows of logits.

    flops = 2·body·new + 2·head·logits + 4·heads·head_dim·Σ_layers pairs, where head = vocabulary ×
    hidden and body = all other parameters that tokens are multiplied with. bytes = itemsize · (body
    + [logits > 0]·head + new·hidden + 2·kv_width·(Σ_layers entries read + layers·new) +
    logits·vocabulary): weights once, rows of the embedding table, the cache read and written (K and
    V), logits written. A layer with a window reads no more of the cache than that. Without logits the
    last layer makes its keys and values alone.
    """
    g, head = lm.geometry, head_params(lm)
    body, spans = lm.matmul_params - head, lm.windows
    seen = sum(pairs(new, past, w) for w in spans) / len(spans)  # a layer, on average
    if not logits and lm.last_block is not None:
        last = sum(p.numel() for p in lm.last_block.parameters())
        body -= last - 2 * lm.hidden_size * g.kv_width
        seen = sum(pairs(new, past, w) for w in spans[:-1]) / len(spans)
    read = sum(past if w is None else min(past, max(w - 1, 0)) for w in spans)
    cache = 2 * g.kv_width * (read + g.layers * new)
    numbers = body + (head if logits else 0) + new * lm.hidden_size + cache + logits * lm.vocabulary_size
    flops = 2.0 * body * new + 2.0 * head * logits + lm.attention_flops(1, past=seen)
    return Work(phase, float(numbers * lm.dtype.itemsize), flops, by_first)


def fusion(adapter: Adapter, sharer_bytes: int, edited_bytes: int, flops: float) -> Work:
    """The work of an adapter on one document.

    flops: as the adapter itself counts. bytes = its weights and buffers once + the sharer's entries
    read + the receiver's entries handed to it and those handed back.
    """
    weights = sum(t.nbytes for t in adapter.state_dict().values())
    return Work("fuse", float(weights + sharer_bytes + edited_bytes), flops)


def floors(work: Sequence[Work], limits: Limits) -> dict[str, dict[str, float | str]]:
    """Bytes, flops, floor in ms and its bound, for each phase with work and for `ttft` and `ttea`."""
    parts = {phase: [w for w in work if w.phase == phase] for phase in dict.fromkeys(w.phase for w in work)}
    parts |= {"ttft": [w for w in work if w.by_first], "ttea": list(work)}
    out: dict[str, dict[str, float | str]] = {}
    for name, pieces in parts.items():
        moved, done = sum(w.bytes for w in pieces), sum(w.flops for w in pieces)
        bound = "memory" if moved / limits.bytes_per_s > done / limits.flops_per_s else "compute"
        least = figures(sum(w.floor_ms(limits) for w in pieces))
        out[name] = {"bytes": moved, "flops": done, "ms": least, "bound": bound}
    return out


# -- counting -------------------------------------------------------------------------------------


@dataclass
class Forward:
    """One call of a model's decoder, and how many of its tokens got logits."""

    lm: CausalLM
    phase: str
    new: int
    past: int
    by_first: bool
    logits: int = 0

    @property
    def work(self) -> Work:
        return forward(self.lm, self.phase, self.new, self.past, self.logits, self.by_first)


@dataclass
class Watched:
    """forwards: in the order they ran. work: theirs and the fusion's. tokens: read and written."""

    forwards: list[Forward]
    work: list[Work]
    tokens: dict[str, int]


class PhaseClock(Clock):
    """A clock that knows its phase, and whether the first answer token is still to come."""

    phase = ""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        with super().__call__(phase):
            yield
        self.phase = before


@dataclass
class Ledger:
    """The notes of the hooks."""

    clock: PhaseClock
    forwards: list[Forward] = field(default_factory=list)
    adapter_flops: float = 0.0
    edited_bytes: int = 0

    def follow(self, lm: CausalLM, stack: ExitStack) -> None:
        """Notes every forward of a model: decoder calls, and the tokens its output head sees."""

        def decoder(module: Any, args: Any, given: dict[str, Any]) -> None:
            new, by_first = given["input_ids"].shape[1], self.clock.ttft_ms is None
            self.forwards.append(Forward(lm, self.clock.phase, new, read_before(given, new), by_first))

        def head(module: Any, args: Any, logits: Tensor) -> None:
            self.forwards[-1].logits += logits.shape[-2]

        stack.enter_context(lm.observed(decoder, head))

    def follow_adapter(self, adapter: Any, stack: ExitStack) -> None:
        """Notes the work an adapter accounts for, and the receiver's entries that go in and come out."""
        plain = adapter.flops

        def flops(positions: int) -> float:
            self.adapter_flops += plain(positions)
            return float(plain(positions))

        def edited(module: Any, args: tuple[Any, ...], made: tuple[Tensor, ...]) -> None:
            # a message has fewer dimensions than a cache: only entries count
            entries = [x for x in (*args, *made) if isinstance(x, Tensor) and x.dim() == 5]
            self.edited_bytes += sum(x.nbytes for x in entries)

        vars(adapter)["flops"] = flops
        stack.callback(vars(adapter).pop, "flops", None)
        stack.callback(adapter.register_forward_hook(edited).remove)


def read_before(given: dict[str, Any], new: int) -> int:
    """Cache entries before the `new` tokens of a decoder call, by its 2-D mask where it has one."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return int(mask.sum(1).max()) - new
    cache = given.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None else 0


def watch(method: Method, document: Document) -> Watched:
    """Answers one document and counts its work. Raises UserError where the method cannot serve it."""
    clock = PhaseClock(method.receiver.device)
    ledger, batch = Ledger(clock), Batch([document], [document], clock)
    with ExitStack() as stack:
        for lm in models_of(method):
            ledger.follow(lm, stack)
        if method.adapter is not None:
            ledger.follow_adapter(method.adapter, stack)
        stack.enter_context(unstopped(method))
        state = method.respond(batch)
        written = answer(state, batch)[1][0]
    work, message = [f.work for f in ledger.forwards], state.message
    if method.adapter is not None and (ledger.adapter_flops or ledger.edited_bytes):
        work.append(fusion(method.adapter, message.cache_bytes[0], ledger.edited_bytes, ledger.adapter_flops))
    tokens = {
        "answering": len(state.prompts[0].ids),
        "sharer": message.sharer_tokens[0],
        "note": sum(f.new for f in ledger.forwards if f.phase == "message"),
        "answer": written,
    }
    return Watched(ledger.forwards, work, tokens)


# -- the benchmark --------------------------------------------------------------------------------


@torch.inference_mode()
def percent_of_limit(cell: Cell, limits: Limits, repeats: int) -> dict[str, dict[str, float | str]]:
    """`floors` of a cell, with the median time of `repeats` passes and the share of it the floor is."""
    found = floors(watch(cell.method, cell.document).work, limits)
    times = [once(cell).ms for _ in range(repeats)]
    for name, entry in found.items():
        took = median(t[name] for t in times)
        entry |= {"took_ms": figures(took), "percent": figures(100 * float(entry["ms"]) / took)}
    return found


def main() -> None:
    """Measures the machine before and after the method, prints a line a phase, and the JSON line."""
    given = parser(
        __doc__, mode="lcf", task="splitfacts", prompt_tokens=256, answer_tokens=32, repeats=7
    ).parse_args()
    lengths = {"prompt_tokens": [given.prompt_tokens], "answer_tokens": [given.answer_tokens]}
    bench = plan(BenchRecipe(mode=[given.mode], task=[given.task], **lengths))
    models = {id(lm): lm for lm in (bench.pair.receiver, bench.pair.sharer)}.values()
    tokens = given.prompt_tokens
    shapes = [(tokens, lm.hidden_size, lm.intermediate_size) for lm in models if lm.intermediate_size]
    before = measure(bench.device, bench.dtype, shapes)
    cell = bench.blocks[0].cells[0]
    found = percent_of_limit(cell, before, given.repeats)
    limits = before.best(measure(bench.device, bench.dtype, shapes))
    if limits != before:
        found = percent_of_limit(cell, limits, given.repeats)
    print(f"{limits.bytes_per_s / 1e9:.1f} GB/s, {limits.flops_per_s / 1e9:,.0f} GFLOP/s")
    results = []
    for phase in (p for p in (*PHASES, "ttft", "ttea") if p in found):
        entry = found[phase]
        print(
            f"{phase:8} {entry['took_ms']:8.1f} ms, floor {entry['ms']:8.1f} ms ({entry['bound']}): "
            f"{entry['percent']:.0f} % of the limit"
        )
        results.append({"case": f"{given.mode}, {phase}", **entry})
    report("roofline", results, given.out, dtype=str(bench.dtype))


if __name__ == "__main__":
    main()

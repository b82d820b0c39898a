"""Times the cells of a plan in turn, so that a machine that changes its speed does so for all of them.

The cells of a block are timed in random order, each once a round, with a fixed matmul between them.
Repeats beside which the matmul took another time than usual, or in which something else had the
processor, are thrown away and made again. Cells whose times vary get more repeats than the others, until
their medians are known as well as asked.

>>> for done, total in measure(bench): ...   # after Ctrl-C the times so far stay in bench.blocks
>>> result(bench)["rows"][0]["ms"]["ttft"]["median"]
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import torch

from lcfbench.adapters.select import told
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.latency.clock import EventClock, clock_for
from lcfbench.latency.documents import methods_of, models_of, unstopped
from lcfbench.latency.plan import Bench, Block, Cell, Took
from lcfbench.latency.probe import Probe
from lcfbench.latency.recipe import is_spec
from lcfbench.methods.base import Batch
from lcfbench.methods.load_pair import ROLES
from lcfbench.models.random_weights import RANDOM
from lcfbench.models.timing import PHASES, now
from lcfbench.provenance import environment

NAMES = (*PHASES, "ttft", "tpot", "itl", "ttea")
SETTINGS = {  # in a result
    *("pair", "random_weights", "attention", "repeats", "warm_up", "drift", "precision", "wire")
}
DECIDING = ("ttft", "ttea")  # times that are to be known within `precision`
LEAST, MOST = 5, 5  # repeats whose quartiles say how well a median is known; times --repeats at most
TAILS = {"p95": 20, "p99": 100}  # percentile → repeats from which it is given


def measure(bench: Bench) -> Iterator[tuple[int, int]]:
    """Times every cell of `bench`; yields (passes done, passes in all) after each pass.

    A cell that its method refuses is left out. Of a block with repeats that are thrown away those cells
    are timed again, up to as many times as there are repeats; those whose medians are not known within
    `precision`, up to `MOST` times as many. Where the recipe has a limit of minutes each block has its
    share of what is left.
    """
    recipe, order = bench.recipe, random.Random(0)
    probe = Probe(bench.device, bench.dtype) if recipe.drift else None
    passes = recipe.warm_up + recipe.repeats
    done, total = 0, sum(len(block.cells) for block in bench.blocks) * passes
    end = time.monotonic() + 60 * (recipe.minutes or math.inf)
    for index, block in enumerate(bench.blocks):
        began = time.monotonic()
        share = began + (end - began) / (len(bench.blocks) - index)
        begun: set[bool] = set()
        for timed, due in _rounds(bench, block):
            limit = share if timed in begun else end  # the first round of each kind may outlast the share
            begun.add(timed)
            if time.monotonic() > limit:
                continue
            order.shuffle(due)
            before = _probed(bench, probe) if timed else None
            for cell in due:
                if time.monotonic() > limit:
                    break
                try:
                    took = once(cell)
                except UserError as error:  # a prompt that outgrows a model, say
                    block.cells.remove(cell)
                    bench.leave_out(cell.variant.label, block.task.name, error)
                    total -= passes
                    continue
                if timed:
                    after = _probed(bench, probe)
                    took.beside = [ms for ms in (before, after) if ms is not None]
                    cell.times.append(took)
                    before = after
                done += 1
                total = max(total, done)
                yield done, total


def _rounds(bench: Bench, block: Block) -> Iterator[tuple[bool, list[Cell]]]:
    """Yields the cells of each round and whether it is timed: warm-up, repeats, those to be made again."""
    recipe = bench.recipe
    for _ in range(recipe.warm_up):
        yield False, list(block.cells)
    for number in range(MOST * recipe.repeats):
        due = [
            c
            for c in block.cells
            if number < recipe.repeats
            or (number < 2 * recipe.repeats and _lacks(bench, c))
            or unsure(kept(bench, c), recipe.precision)
        ]
        if due:
            yield True, due


def _probed(bench: Bench, probe: Callable[[], float] | None) -> float | None:
    """The time of the matmul now, which the bench keeps; None without one."""
    if probe is None:
        return None
    bench.probes.append(probe())
    return bench.probes[-1]


def _lacks(bench: Bench, cell: Cell) -> bool:
    return len(kept(bench, cell)) < bench.recipe.repeats


def unsure(times: Sequence[Took], precision: float) -> bool:
    """Says whether a median may be off by more than `precision` percent, as far as the quartiles tell.

    The 95 % interval of a median is about ±1.57 IQR/√n (McGill, Tukey and Larsen 1978, Variations of box
    plots). Fewer than `LEAST` repeats say nothing.
    """
    if not precision or len(times) < LEAST:
        return False
    for values in ([took.ms[name] for took in times] for name in DECIDING):
        low, middle, high = quantiles(values, n=4, method="inclusive")
        if 1.57 * (high - low) / math.sqrt(len(values)) > precision / 100 * middle:
            return True
    return False


def kept(bench: Bench, cell: Cell) -> list[Took]:
    """The repeats of a cell that count: within the drift allowed the machine was as fast as it mostly is.

    The matmul before and after took its usual time, and on a CPU the repeat got as much of the processor
    as the cell's best one: nothing else had it in between.
    """
    if not bench.probes or not cell.times:
        return cell.times
    usual, most = median(bench.probes), bench.recipe.drift / 100
    least = (1 - most) * max(took.busy for took in cell.times)
    steady = [took for took in cell.times if all(abs(ms / usual - 1) <= most for ms in took.beside)]
    return [took for took in steady if took.busy >= least or bench.device.type != "cpu"]


@torch.inference_mode()
def once(cell: Cell) -> Took:
    """Answers a document: milliseconds of each phase, `ttft`, `tpot` and `ttea`, and between tokens.

    Counts the cell's tokens. Raises UserError where the method cannot serve the document.
    """
    method = cell.method
    method.check_length(cell.document, cell.document)
    spent = time.process_time()
    with unstopped(method), stepped(method.receiver) as steps:
        clock = clock_for(method.receiver.device, *(d for lm in models_of(method) for d in lm.devices))
        batch = Batch([cell.document], [cell.document], clock, cell.variant.wire)
        state = method.respond(batch)
        written = answer(state, batch)[1][0]
        total = clock.total_ms()
        steps.append(now(method.receiver.device))
    busy = 1e3 * (time.process_time() - spent) / total
    message, first = state.message, clock.ttft_ms or 0.0
    cell.tokens = {
        "answering": len(state.prompts[0].ids),
        "sharer": message.sharer_tokens[0],
        "note": sum(
            part.sharer_tokens[0] - len(part.read[0].ids)
            for part in message.parts or [message]
            if part.texts and part.read
        ),
        "answer": written,
    }
    ms = {**clock.ms, "ttft": first, "ttea": total}
    if written < 2:
        return Took(ms, busy=busy)
    ms["tpot"] = (total - first) / (written - 1)
    return Took(ms, [1e3 * (b - a) for a, b in pairwise(steps[-written:])], busy=busy)


@contextmanager
def stepped(model: Any) -> Iterator[list[float]]:
    """Notes when a model begins to compute each further token, in seconds."""
    steps: list[float] = []
    step = model.step

    def noted(*args: Any, **more: Any) -> Any:
        steps.append(time.perf_counter())
        return step(*args, **more)

    vars(model)["step"] = noted
    try:
        yield steps
    finally:
        vars(model).pop("step", None)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles (as NumPy interpolates them by default), minimum, maximum; tails where n allows."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    out = {"median": median(values), "q1": low, "q3": high, "min": min(values), "max": max(values)}
    for name, least in TAILS.items():
        if len(values) >= least:
            out[name] = quantiles(values, n=100, method="inclusive")[int(name[1:]) - 1]
    return {name: figures(x) for name, x in out.items()}


def figures(x: float) -> float:
    """Rounds to five figures, more than a time is known to."""
    return float(f"{x:.5g}")


def row(block: Block, cell: Cell, times: Sequence[Took]) -> dict[str, Any]:
    """The facts of one cell: method, lengths, tokens read and written, and the times that count."""
    adapters = {id(m.adapter): m.adapter for m in methods_of(cell.method) if m.adapter is not None}
    by_name = {name: [t.ms[name] for t in times if name in t.ms] for name in NAMES}
    by_name["itl"] = [gap for t in times for gap in t.gaps]
    by_name = {name: values for name, values in by_name.items() if any(ms > 0 for ms in values)}
    gaps = [abs(sum(t.ms[p] for p in PHASES) - t.ms["ttea"]) / t.ms["ttea"] for t in times]
    return {
        "mode": cell.variant.mode,
        "label": cell.variant.label,
        "task": block.task.name,
        "context": "shared" if block.task.shared else "different",
        "prompt_tokens": block.prompt_tokens,
        "answer_tokens": block.answer_tokens,
        "budget": cell.budget,
        "sharers": cell.sharers,
        "join": cell.variant.join,
        "adapter": told(cell.variant.adapters) or None,
        "options": {k: str(v) for k, v in cell.method.options().items()},
        "random_weights": cell.method.receiver.source == RANDOM,
        "untrained": bool(cell.variant.adapter and is_spec(cell.variant.adapter)),
        "adapter_bytes": sum(p.nbytes for adapter in adapters.values() for p in adapter.parameters()),
        "tokens": cell.tokens,
        "n": len(times),
        "thrown_away": len(cell.times) - len(times),
        "ms": {name: spread(values) for name, values in by_name.items()},
        "times": {name: [figures(ms) for ms in values] for name, values in by_name.items() if name != "itl"},
        "phases_gap_percent": figures(100 * median(gaps)),
    }


def result(bench: Bench, interrupted: bool = False) -> dict[str, Any]:
    """The JSON line: machine, settings, a row for each cell that was timed, methods left out."""
    recipe, device = bench.recipe, bench.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    places = [*bench.pair.receiver.devices, *(d for lm in bench.pair.sharers for d in lm.devices)]
    roles = [*ROLES, *(f"sharer {k}" for k in range(2, len(bench.pair.sharers) + 1))]
    cells = [(block, cell, kept(bench, cell)) for block in bench.blocks for cell in block.cells]
    for block, cell, times in cells:
        if not times and not interrupted:
            bench.leave_out(cell.variant.label, block.task.name, _why_not(bench, block, cell))
    return {
        "benchmark": "lcfbench bench",
        "unit": "milliseconds, one document at a time, warm",
        "clock": "device events" if isinstance(clock_for(device, *places), EventClock) else "host",
        "interrupted": interrupted,
        "partial": interrupted or any(len(times) < recipe.repeats for *_, times in cells),
        "machine": environment(str(device), torch.get_num_threads(), gpu),
        "dtype": str(bench.dtype).removeprefix("torch."),
        **recipe.model_dump(include=SETTINGS),
        "models": {
            role: {"name": lm.name, "revision": lm.revision, **lm.facts}
            for role, lm in zip(roles, (bench.pair.receiver, *bench.pair.sharers), strict=True)
        },
        "matmul_ms": spread(bench.probes) if bench.probes else None,
        "thrown_away": sum(len(cell.times) - len(times) for _, cell, times in cells),
        "left_out": bench.left_out,
        "rows": [row(block, cell, times) for block, cell, times in cells if times],
    }


def _why_not(bench: Bench, block: Block, cell: Cell) -> UserError:
    """Says why a cell has no time at all."""
    where = f"{block.prompt_tokens} prompt and {block.answer_tokens} answer tokens"
    if cell.times:
        what = f"{where}: the machine drifted in all {len(cell.times)} repeats"
        return UserError(f"{what}.", "Measure on an idle machine, or with a larger --drift.")
    return UserError(f"{where}: the {bench.recipe.minutes} minutes were over.", "Give more --minutes.")

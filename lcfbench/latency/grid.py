"""The measuring itself: cells of a block in turn, so that a machine that speeds up or slows down does so for all of them.

>>> for done, of in measure(bench): ...   # bench.blocks fill up; what is there stays when this is interrupted
>>> result(bench)["rows"][0]["ms"]["ttft"]["median"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median, quantiles
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.latency.clock import clock_for
from lcfbench.latency.counting import watch
from lcfbench.latency.documents import unstopped
from lcfbench.latency.floors import figures, floors
from lcfbench.latency.machine import measure as measure_machine
from lcfbench.latency.plan import Bench, Block, Cell, shapes_of
from lcfbench.methods.base import Batch
from lcfbench.models.timing import PHASES
from lcfbench.provenance import environment


def measure(bench: Bench) -> Iterator[tuple[int, int]]:
    """Times every cell, filling `bench`; yields (passes done, passes in all) after each. What a method refuses is left out and said.

    The machine is measured first and once more at the end, and the better of the two counts: the floor is what could be had.
    """
    recipe, shapes = bench.recipe, shapes_of(bench)
    bench.limits = measure_machine(bench.device, bench.dtype, shapes)
    of = sum(len(block.cells) for block in bench.blocks) * (recipe.warm_up + recipe.repeats)
    done = 0
    for block in bench.blocks:
        for number in range(recipe.warm_up + recipe.repeats):
            for cell in list(block.cells):
                with torch.inference_mode():
                    if number:
                        took = once(cell)
                        if number >= recipe.warm_up:
                            cell.times.append(took)
                    else:
                        try:
                            cell.watched = watch(cell.method, cell.document)
                        except UserError as error:  # a prompt that outgrows a model, say
                            block.cells.remove(cell)
                            bench.leave_out(cell.mode, block.task.name, error)
                            of -= recipe.warm_up + recipe.repeats
                            continue
                done += 1
                yield done, of
    bench.limits = bench.limits.best(measure_machine(bench.device, bench.dtype, shapes))


def once(cell: Cell) -> dict[str, float]:
    """Milliseconds of one answer: each phase, `ttft` and `ttea`."""
    method = cell.method
    with unstopped(method):
        clock = clock_for(method.receiver.device)
        batch = Batch([cell.document], [cell.document], clock)
        answer(method.respond(batch), batch)
        total = clock.total_ms()
    return {**clock.ms, "ttft": clock.ttft_ms or 0.0, "ttea": total}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles (as NumPy's default interpolates them), minimum and maximum."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    out = {"median": median(values), "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: figures(x) for name, x in out.items()}


def row(bench: Bench, block: Block, cell: Cell) -> dict[str, Any]:
    """One cell for machines: what was run, what was read and written, times, floors, and how near to them it came."""
    assert cell.watched is not None and bench.limits is not None
    names = [name for name in (*PHASES, "ttft", "ttea") if any(t[name] > 0 for t in cell.times)]
    ms = {name: spread([t[name] for t in cell.times]) for name in names}
    floor = floors(cell.watched.work, bench.limits)
    for name, entry in floor.items():
        if name in ms:
            entry["percent"] = figures(100 * float(entry["ms"]) / ms[name]["median"])
    return {
        "mode": cell.mode,
        "task": block.task.name,
        "context": "shared" if block.task.shared else "different",
        "prompt_tokens": block.prompt_tokens,
        "answer_tokens": block.answer_tokens,
        "budget": cell.budget,
        "adapter": cell.adapter.name if cell.adapter else None,
        "options": {k: str(v) for k, v in cell.method.options().items()},
        "tokens": cell.watched.tokens,
        "n": len(cell.times),
        "ms": ms,
        "floor": floor,
        "phases_gap_percent": figures(
            100 * median(abs(sum(t[p] for p in PHASES) - t["ttea"]) / t["ttea"] for t in cell.times)
        ),
    }


def result(bench: Bench, interrupted: bool = False) -> dict[str, Any]:
    """Everything for the JSON line: machine, settings, one row a cell that was timed at least once, and what was left out."""
    recipe, device = bench.recipe, bench.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "benchmark": "lcfbench bench",
        "unit": "milliseconds, one document at a time, warm",
        "clock": "device events" if device.type == "cuda" else "host",
        "interrupted": interrupted,
        "machine": environment(str(device), torch.get_num_threads(), gpu),
        "limits": bench.limits.facts() if bench.limits else None,
        "pair": recipe.pair,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "attention": recipe.attention,
        "repeats": recipe.repeats,
        "warm_up": recipe.warm_up,
        "left_out": bench.left_out,
        "rows": [row(bench, block, cell) for block in bench.blocks for cell in block.cells if cell.times],
    }

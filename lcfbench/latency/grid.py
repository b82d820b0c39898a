"""Times the cells of a plan in turn, so that a machine that changes its speed does so for all of them.

>>> for done, total in measure(bench): ...   # after Ctrl-C the times so far stay in bench.blocks
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
from lcfbench.latency.documents import unstopped
from lcfbench.latency.plan import Bench, Block, Cell
from lcfbench.methods.base import Batch
from lcfbench.models.timing import PHASES
from lcfbench.provenance import environment


def measure(bench: Bench) -> Iterator[tuple[int, int]]:
    """Times every cell of `bench`; yields (passes done, passes in all) after each pass.

    A cell that its method refuses in the first pass is left out.
    """
    recipe = bench.recipe
    passes = recipe.warm_up + recipe.repeats
    done, total = 0, sum(len(block.cells) for block in bench.blocks) * passes
    for block in bench.blocks:
        for number in range(passes):
            for cell in list(block.cells):
                try:
                    took = once(cell)
                except UserError as error:  # a prompt that outgrows a model, say
                    block.cells.remove(cell)
                    bench.leave_out(cell.variant.label, block.task.name, error)
                    total -= passes
                    continue
                if number >= recipe.warm_up:
                    cell.times.append(took)
                done += 1
                yield done, total


@torch.inference_mode()
def once(cell: Cell) -> dict[str, float]:
    """Answers a document; returns milliseconds of each phase, `ttft` and `ttea`, and counts its tokens.

    Raises UserError where the method cannot serve the document.
    """
    method = cell.method
    method.check_length(cell.document, cell.document)
    with unstopped(method):
        clock = clock_for(method.receiver.device)
        batch = Batch([cell.document], [cell.document], clock)
        state = method.respond(batch)
        written = answer(state, batch)[1][0]
        total = clock.total_ms()
    message = state.message
    cell.tokens = {
        "answering": len(state.prompts[0].ids),
        "sharer": message.sharer_tokens[0],
        "note": message.sharer_tokens[0] - len(message.read[0].ids) if message.texts and message.read else 0,
        "answer": written,
    }
    return {**clock.ms, "ttft": clock.ttft_ms or 0.0, "ttea": total}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles (as NumPy interpolates them by default), minimum and maximum."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    out = {"median": median(values), "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: figures(x) for name, x in out.items()}


def figures(x: float) -> float:
    """Rounds to five figures, more than a time is known to."""
    return float(f"{x:.5g}")


def row(block: Block, cell: Cell) -> dict[str, Any]:
    """The facts of one cell: method, lengths, tokens read and written, times."""
    names = [name for name in (*PHASES, "ttft", "ttea") if any(t[name] > 0 for t in cell.times)]
    gaps = [abs(sum(t[p] for p in PHASES) - t["ttea"]) / t["ttea"] for t in cell.times]
    return {
        "mode": cell.variant.mode,
        "label": cell.variant.label,
        "task": block.task.name,
        "context": "shared" if block.task.shared else "different",
        "prompt_tokens": block.prompt_tokens,
        "answer_tokens": block.answer_tokens,
        "budget": cell.budget,
        "adapter": cell.variant.adapter.name if cell.variant.adapter else None,
        "options": {k: str(v) for k, v in cell.method.options().items()},
        "tokens": cell.tokens,
        "n": len(cell.times),
        "ms": {name: spread([t[name] for t in cell.times]) for name in names},
        "phases_gap_percent": figures(100 * median(gaps)),
    }


def result(bench: Bench, interrupted: bool = False) -> dict[str, Any]:
    """The JSON line: machine, settings, a row for each cell that was timed, methods left out."""
    recipe, device = bench.recipe, bench.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "benchmark": "lcfbench bench",
        "unit": "milliseconds, one document at a time, warm",
        "clock": "device events" if device.type == "cuda" else "host",
        "interrupted": interrupted,
        "machine": environment(str(device), torch.get_num_threads(), gpu),
        "dtype": str(bench.dtype).removeprefix("torch."),
        **recipe.model_dump(include={"pair", "attention", "repeats", "warm_up"}),
        "left_out": bench.left_out,
        "rows": [row(block, cell) for block in bench.blocks for cell in block.cells if cell.times],
    }

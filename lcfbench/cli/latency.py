"""`lcfbench bench`: the latency of every method, phase by phase, one document at a time."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli.console import echo, note, warn
from lcfbench.cli.options import flags, merged
from lcfbench.cli.signals import interrupted
from lcfbench.errors import UserError
from lcfbench.files import check_output, locked, standard_stream, write_output
from lcfbench.progress import quiet_libraries
from lcfbench.tables import Column, Table

GAP = 0.05  # phases add up to the whole within this share of it
LEGEND = (
    "ms: medians of the repeats. IQR: distance of the quartiles. ttft: to the first answer token, "
    "everything in between; ttea: to the end of the answer."
)


@flags("lcfbench.latency.recipe:BenchRecipe")
def bench(
    out: Annotated[Path | None, typer.Option(help="Also write the JSON line to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON line, no table.")] = False,
    **given: Any,
) -> None:
    """Time every method for one document at a time, warm: each phase and its spread, and one JSON line.

    Ctrl-C prints what was timed until then.
    """
    from lcfbench.latency.recipe import BenchRecipe

    recipe: BenchRecipe = merged(BenchRecipe, given, None, "bench")
    if out is not None and not (folder := out.absolute().parent).is_dir():
        raise UserError(f"--out {out}: there is no folder {folder}.", "Make it, or name another file.")
    if out is not None:
        check_output(out)
    recipe.check_names()
    quiet_libraries()
    from lcfbench.cli.terminal import StatusLine
    from lcfbench.latency.grid import measure, result
    from lcfbench.latency.plan import plan

    stopped = False
    held = locked(out) if out is not None and not check_output(out) else nullcontext()
    with held, StatusLine("loading models") as line:
        planned = plan(recipe)
        try:
            for done, total in measure(planned):
                line.update(f"pass {done} of {total}")
        except KeyboardInterrupt:
            stopped = True
    for each in planned.left_out:
        note(f"left out: {each['mode']} on {each['task']}: {each['why']}")
    found = result(planned, stopped)
    if not found["rows"] and not stopped:
        raise UserError("nothing could be timed: see above.", "Change the options that it names.")
    if not as_json:
        show(found["rows"])
    line_of_json = json.dumps(found, allow_nan=False)
    if out is not None:
        write_output(out, line_of_json.encode() + b"\n")
    if out is None or not standard_stream(out):
        echo(line_of_json)
    if stopped:
        interrupted("what was timed until then is above" if found["rows"] else "nothing was timed")


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table for each task, prompt and answer length, and warns of phases that do not add up."""
    from lcfbench.cli import tables

    blocks = groupby(rows, lambda r: (r["task"], r["prompt_tokens"], r["answer_tokens"]))
    tables.show(*(table(list(some), *key) for key, some in blocks))
    for row in rows:
        if row["phases_gap_percent"] > 100 * GAP:
            gap = f"its phases differ from the whole by {row['phases_gap_percent']} %"
            warn(f"{label(row)} on {row['task']}: {gap}.")


def label(row: dict[str, Any]) -> str:
    """A method, with its budget where it has one."""
    label, budget = row["label"], row["budget"]
    return label if budget is None or f"budget={budget}" in label.split() else f"{label} {budget}"


def table(rows: list[dict[str, Any]], task: str, prompt: int, answer: int) -> Table:
    """Two lines a method: medians and quartile distances."""
    from lcfbench.models.timing import PHASES

    names = (*PHASES, "ttft", "ttea")
    cells: list[list[str]] = []
    for row in rows:
        ms = row["ms"]
        cells.append([label(row), *(number(ms[c]["median"]) if c in ms else "–" for c in names)])
        spread = (number(ms[c]["q3"] - ms[c]["q1"]) if c in ms else "" for c in names)
        cells.append([f"  IQR, n={row['n']}", *spread])
    title = f"{task}: {prompt} prompt tokens, {answer} answer token{'s'[: answer > 1]}"
    columns = [Column("ms"), *(Column(c, right=True) for c in names)]
    return Table(title, columns, cells, ["", "dim"] * len(rows), legend=LEGEND)


def number(ms: float) -> str:
    """Three figures are enough: 0.42, 4.2, 42.1, 421, 4,210."""
    return f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"

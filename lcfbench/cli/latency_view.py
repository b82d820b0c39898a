"""What `lcfbench bench` prints: a table a block in 80 columns, what stands out, and at the end one line of JSON."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from lcfbench.cli.console import err, note, out, quiet_libraries, warn
from lcfbench.errors import Exit, UserError

if TYPE_CHECKING:
    from lcfbench.latency.recipe import BenchRecipe

GAP = 0.05  # phases add up to the whole within this share of it


def bench_and_show(recipe: BenchRecipe, file: Path | None, as_json: bool) -> None:
    """Measures a grid and prints it. Ctrl-C prints what there is and exits 130."""
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(
            f"--out {file}: there is no folder {file.absolute().parent}.", "Make it, or name another file."
        )
    recipe.check_names()
    quiet_libraries()
    from lcfbench.latency.grid import measure, result
    from lcfbench.latency.plan import plan

    interrupted = False
    with err.status("loading models") as status:
        bench = plan(recipe)
        for each in bench.left_out:
            note(f"left out: {each['mode']} on {each['task']}: {each['why']}")
        said = len(bench.left_out)
        status.update("measuring this machine")
        try:
            for done, of in measure(bench):
                status.update(f"pass {done} of {of}")
        except KeyboardInterrupt:
            interrupted = True
    for each in bench.left_out[said:]:
        note(f"left out: {each['mode']} on {each['task']}: {each['why']}")
    found = result(bench, interrupted)
    if not as_json:
        show(found)
    line = json.dumps(found, ensure_ascii=False, allow_nan=False)
    if file is not None:
        file.write_text(line + "\n", encoding="utf-8")
    typer.echo(line)
    if interrupted:
        note(
            "interrupted: what was timed until then is above."
            if found["rows"]
            else "interrupted before anything was timed."
        )
        raise typer.Exit(Exit.INTERRUPTED)


def show(found: dict[str, Any]) -> None:
    """The tables and the lines round them."""
    limits, machine = found["limits"], found["machine"]
    if limits:
        where = (
            machine.get("gpu")
            or f"{machine['cpu']}, {machine['threads']} thread{'s'[: machine['threads'] > 1]}"
        )
        out.print(f"{where}, {found['dtype']}")
        out.print(
            f"this machine's limits, measured now: {limits['gb_per_s']:.1f} GB/s, {limits['gflop_per_s']:,.0f} GFLOP/s (matmul)"
        )
    for key, rows in groupby(found["rows"], lambda r: (r["task"], r["prompt_tokens"], r["answer_tokens"])):
        out.print()
        out.print(table(list(rows), *key))
    if found["rows"]:
        out.print()
        out.print(
            "ms: medians of the repeats. IQR: distance of the quartiles. % of limit: the least this machine needs for the phase's bytes and "
            "operations, over the time it took. ttft: to the first answer token, everything in between; ttea: to the end of the answer."
        )
    for row in found["rows"]:
        if row["phases_gap_percent"] > 100 * GAP:
            warn(
                f"{label(row)} on {row['task']}: its phases differ from the whole by {row['phases_gap_percent']} %."
            )


def label(row: dict[str, Any]) -> str:
    return row["mode"] if row["budget"] is None else f"{row['mode']} {row['budget']}"


def table(rows: list[dict[str, Any]], task: str, prompt: int, answer: int) -> Table:
    """Three lines a method: medians, quartile distances, percent of the limit."""
    from lcfbench.models.timing import PHASES

    columns = (*PHASES, "ttft", "ttea")
    title = f"{task}: {prompt} prompt tokens, {answer} answer token{'s'[: answer > 1]}"
    grid = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
        title=Text(title, "bold"),
        title_justify="left",
        title_style="",
    )
    grid.add_column("ms", no_wrap=True)
    for name in columns:
        grid.add_column(name, justify="right", no_wrap=True, min_width=7)
    for row in rows:
        ms, floor = row["ms"], row["floor"]
        grid.add_row(label(row), *(number(ms[c]["median"]) if c in ms else "–" for c in columns))
        grid.add_row(
            f"  IQR, n={row['n']}",
            *(number(ms[c]["q3"] - ms[c]["q1"]) if c in ms else "" for c in columns),
            style="dim",
        )
        grid.add_row(
            "  % of limit",
            *(f"{floor[c]['percent']:.0f} %" if "percent" in floor.get(c, {}) else "" for c in columns),
            style="cyan",
        )
    return grid


def number(ms: float) -> str:
    """Three figures are enough: 0.42, 4.2, 42.1, 421, 4,210."""
    return f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"

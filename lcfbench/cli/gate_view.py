"""What `check` does: reads both sides, judges, prints a line an aspect and writes what CI reads.

>>> check(Path("results/baseline"), Path("results"), 0.01, None, False, [], Path("junit.xml"), False)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lcfbench.cli.console import out, warn
from lcfbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Group

    from lcfbench.analysis.gate import Checked

STYLES = {"ok": "green", "surely worse": "bold red", "inconclusive": "yellow", "incomplete": "bold yellow"}


def check(
    baseline: Path,
    new: Path,
    max_drop: float,
    max_slowdown: float | None,
    strict: bool,
    allow: Sequence[str],
    junit: Path | None,
    github: bool,
) -> Exit:
    """Judges `new` by `baseline` and says how the process should end. max_drop, max_slowdown: fractions.

    Raises UserError where the two are not comparable or cannot be read; JUnit file, annotation and summary page say so too.
    """
    from lcfbench.analysis.gate import outputs

    github = github or os.environ.get("GITHUB_ACTIONS") == "true"
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        checked = _checked(baseline, new, max_drop, max_slowdown, allow)
    except UserError as error:
        reason = f"{error.what} {error.next_step}"
        if github:
            typer.echo(outputs.annotation("error", "lcfbench check", reason))
        if junit:
            _write(junit, outputs.refused_junit(reason))
        if page:
            _write(Path(page), outputs.refused_markdown(reason), more=True)
        raise
    out.print(table(checked))
    style = {Exit.OK: "green", Exit.FAILED: "bold red"}.get(checked.exit(strict), "yellow")
    out.print(checked.summary(strict), style=style, soft_wrap=True)
    if github:
        for line in outputs.github_lines(checked, strict):
            typer.echo(line)
    if junit:
        _write(junit, outputs.to_junit(checked, strict))
    if page:
        _write(Path(page), outputs.to_markdown(checked, strict), more=True)
    return checked.exit(strict)


def _checked(
    baseline: Path, new: Path, max_drop: float, max_slowdown: float | None, allow: Sequence[str]
) -> Checked:
    from lcfbench.analysis.gate.check import check_run_groups
    from lcfbench.analysis.run_groups import read_run_groups

    before, now = read_run_groups([baseline]), read_run_groups([new])
    for warning in before.warnings + now.warnings:
        warn(warning)
    return check_run_groups(before, now, max_drop, max_slowdown, allow)


def table(checked: Checked) -> Group:
    """A line an aspect, then what needs words; readable from 80 columns up."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from lcfbench.analysis.gate.outputs import figures

    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for index, name in enumerate(("", "what", "baseline", "new", "change", "90 %", "n")):
        grid.add_column(
            name,
            justify="left" if index < 2 else "right",
            no_wrap=index != 1,
            overflow="fold",
            vertical="top",
        )
    words = Table.grid(padding=(0, 1, 0, 0))
    before = ""
    for item in checked.items:
        what = (
            f"  {item.aspect}"
            if item.cell == before
            else item.cell
            if item.aspect == "score"
            else f"{item.cell}: {item.aspect}"
        )
        before = item.cell
        grid.add_row(Text(str(item.outcome), style=STYLES[item.outcome]), what, *figures(item))
        if item.text:
            words.add_row(
                Text("•", style=STYLES[item.outcome]),
                f"{item.cell}{'' if item.aspect == 'score' else f', {item.aspect}'}: {item.text}",
            )
    for text in checked.notes:
        words.add_row(Text("·", style="dim"), Text(text, style="dim"))
    return Group(grid, words)


def _write(path: Path, text: str, more: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if more else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}.", "Name another file, or free its disk."
        ) from error

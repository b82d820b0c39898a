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
from lcfbench.cli.tables import show
from lcfbench.errors import Exit, UserError

if TYPE_CHECKING:
    from lcfbench.analysis.gate import Checked


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
    from lcfbench.analysis.tables import check_table

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
    show(check_table(checked))
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

    before, now = (read_run_groups([side], prompts=True) for side in (baseline, new))
    for warning in before.warnings + now.warnings:
        warn(warning)
    return check_run_groups(before, now, max_drop, max_slowdown, allow)


def _write(path: Path, text: str, more: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if more else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}.", "Name another file, or free its disk."
        ) from error

"""`lcfbench probe`."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import typer

from lcfbench.cli.console import echo, note
from lcfbench.cli.options import JsonOption, flags, merged
from lcfbench.cli.progress import RunProgress, TrainLine
from lcfbench.errors import Exit

if TYPE_CHECKING:
    from lcfbench.probing.page import Page


class ProbeLines(RunProgress):
    """The lines of runs, and those of the training between them."""

    style = "dim"
    step = TrainLine.step


@flags("lcfbench.probing.recipe:ProbeRecipe")
def probe(as_json: JsonOption = False, **given: Any) -> None:
    """Say on one page whether a cache channel is worth it for a pair and a task, within some minutes.

    Models, prompts, each model alone, what could be gained, a short training, controls, verdict.
    The same command goes on where it was; Ctrl-C keeps what there is.
    """
    from lcfbench.probing.recipe import ProbeRecipe

    chosen: ProbeRecipe = merged(ProbeRecipe, given, None, "probe")
    chosen.check()
    chosen = chosen.holding_out()
    from lcfbench import api

    try:
        found = api.probe(chosen, progress=ProbeLines())
    except KeyboardInterrupt:
        note(f"interrupted: what is recorded stays in {chosen.folder}; the same command goes on from there.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        whole = {"folder": str(found.folder), "answer": found.page.sentence, "next": found.page.command}
        echo(json.dumps(whole | {"parts": found.parts}, ensure_ascii=False, allow_nan=False))
    else:
        show(found.page)
    if found.broken:
        raise typer.Exit(Exit.FAILED)


def show(page: Page) -> None:
    """Prints the page as wide as the terminal is, at most 80 columns."""
    from lcfbench.cli import tables
    from lcfbench.cli.terminal import out

    width = min(out.width, 80)
    echo(textwrap.fill(page.title, width))
    for part in page.parts:
        echo(f"\n{part.title}")
        for line in part.lines:
            echo(textwrap.fill(line, width, initial_indent="  ", subsequent_indent="    "))
        if part.table is not None:
            tables.show(part.table)
    echo("\n" + textwrap.fill(page.sentence, width))
    echo(f"\nnext: {page.command}")

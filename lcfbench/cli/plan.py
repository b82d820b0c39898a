"""`lcfbench plan`: what a recipe would run, before it does."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcfbench.cli.console import echo, warn
from lcfbench.cli.options import OutOption, flags, merged
from lcfbench.cli.progress import RunProgress
from lcfbench.cli.run import VARIABLES, RecipeOption
from lcfbench.config import check_trained
from lcfbench.errors import Exit, UserError
from lcfbench.progress import duration, quiet_libraries
from lcfbench.tables import Column, Table

if TYPE_CHECKING:
    from lcfbench.evaluation.planning import Plan, Planned

NOTHING = "–"  # is known
COLUMNS = [
    Column("#", right=True),
    Column("run"),
    Column("state"),
    Column("docs", right=True),
    Column("min", right=True),
    Column("GB", right=True),
    Column("key", optional=True),
    Column("method", optional=True),
    Column("seed", right=True, optional=True),
]


@flags("lcfbench.evaluation.recipe:Recipe", VARIABLES)
def plan(
    named: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="As --recipe: a YAML file, or a packaged recipe.")
    ] = None,
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    **given: Any,
) -> None:
    """List what `run` would do with these settings: a line a run, how far it is, what it may take.

    No weights are loaded, except where only they tell a run's id: of quantised models, with --device-map,
    and where code of a model's folder runs.
    """
    from lcfbench.evaluation.recipe import Recipe

    if named is not None and recipe == os.environ.get("LCFBENCH_RECIPE"):
        recipe = None
    if named is not None and recipe not in (None, named):
        raise UserError(f"two recipes: {named} and {recipe}.", "Leave one of them out.")
    chosen = merged(Recipe, given, named or recipe, "run")
    chosen.check_names()
    check_trained(named or recipe, chosen.adapter)
    quiet_libraries()
    from lcfbench.api import planned

    found = planned(chosen, RunProgress())
    if as_json:
        whole = {"runs": [asdict(each) for each in found.runs], "out": str(found.out)}
        echo(json.dumps({**whole, "minutes": found.minutes, "unknown": found.unknown}, indent=1))
    else:
        from lcfbench.cli.tables import show

        show(table_of(found))


def gather(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Folders of results, of a run or of a shard.")
    ],
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """Put the parts of runs that were made apart together, and seal the runs that are complete.

    The folders stay as they are. Ends with 4 where documents of a run are missing; what is there is kept,
    and `run` goes on from it.
    """
    from lcfbench.evaluation.gathering import gather as gather_parts

    quiet_libraries()
    target = out or Path("results")
    found = gather_parts(folders, target)
    for text in (text for each in found for text in each.warnings):
        warn(text)
    if as_json:
        names = ("run_id", "state", "rows", "documents")
        echo(json.dumps([{name: getattr(each, name) for name in names} for each in found], indent=1))
    else:
        from lcfbench.cli.tables import show

        columns = [Column("run"), Column("state"), Column("docs", right=True)]
        rows = [[each.run_id, each.state, f"{each.rows:,}/{each.documents:,}"] for each in found]
        left = sum(each.documents - each.rows for each in found)
        gap = f"{left:,} documents have no row yet: gather the folders that have them, or run them."
        show(Table("", columns, rows, remarks=[("", gap)] if left else []))
    if any(each.state != "complete" for each in found):
        raise typer.Exit(Exit.INCOMPLETE)


def table_of(found: Plan) -> Table:
    """The table of a plan, with its sums below."""
    remarks = [("", text) for text in (summed(found), *found.remarks)]
    return Table("", COLUMNS, [cells(each) for each in found.runs], remarks=remarks)


def cells(run: Planned) -> list[str]:
    """The facts of a run that a terminal shows."""
    memory = NOTHING if run.memory_bytes is None else f"{run.memory_bytes / 1e9:.1f}"
    documents = f"{run.done:,}/{run.documents:,}"
    minutes = NOTHING if run.minutes is None else f"{run.minutes:.1f}"
    return [
        str(run.number), run.id, run.state, documents, minutes, memory, run.key, run.label, str(run.seed)
    ]  # fmt: skip


def summed(found: Plan) -> str:
    """How many runs there are in each state, and what is left to do."""
    counts = Counter(each.state for each in found.runs)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    left = sum(each.documents - each.done for each in found.runs)
    known = [f"about {duration(60 * found.minutes)}"] if found.minutes else []
    unknown = [f"{found.unknown} without an estimate"] if found.unknown else []
    runs = f"{len(found.runs)} run{'s' if len(found.runs) > 1 else ''}"
    return f"{runs}: {states}; " + ", ".join([f"{left:,} documents are left", *known, *unknown]) + "."

"""`lcfbench ls` and `lcfbench doctor`."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lcfbench.cli.console import echo
from lcfbench.cli.options import OfflineOption, OutOption
from lcfbench.errors import Exit, UserError, unknown
from lcfbench.progress import quiet_libraries
from lcfbench.tables import Cell, Column, Table
from lcfbench.tasks import stock_index
from lcfbench.tasks.stock_index import LISTING, is_stock

LISTS = ("models", "tasks", "groups", "methods", "adapters", "recipes", "runs", "controls")
BELOW = {"tasks": ("groups",)}  # lists that a terminal shows below another
COLUMNS = {
    "models": [
        Column("model"),
        Column("hub id"),
        Column("layers ×\nheads × dim"),
        Column("here", optional=True),
    ],
    "tasks": [
        Column("task"),
        Column("context"),
        Column("scoring\n(* default)"),
        Column("examples\n(--shots)", wrap=True, optional=True),
        Column("description", wrap=True),
    ],
    "groups": [
        Column("group"),
        Column("weighted by"),
        Column("tasks", wrap=True),
        Column("title", wrap=True),
    ],
    "adapters": [
        Column("adapter"),
        Column("kind"),
        Column("pair", wrap=True, optional=True),
        Column("trained on", wrap=True),
        Column("MB", right=True),
    ],
    "runs": [
        Column("run"),
        Column("state"),
        Column("docs", right=True),
        Column("errors", right=True, optional=True),
        Column("begun (UTC)", optional=True),
    ],
}


def ls(
    what: Annotated[str, typer.Argument(metavar="|".join(LISTS), help="The things to list.")],
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]", help="Names to list, as 'mmlu*'; tasks also as 'lm-eval/*': lm-eval's own."
        ),
    ] = None,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, with more facts.")] = False,
) -> None:
    """List models, tasks, groups of tasks, methods, adapters, recipes, recorded runs or controls."""
    if what not in LISTS:
        raise unknown("list", what, LISTS, "lcfbench ls --help")
    results = out or Path("results")
    rows = entries(what, results) if pattern is None else matching(what, pattern, results)
    if as_json:
        echo(json.dumps(rows, indent=1, default=str))
    elif not rows:
        from lcfbench.results.finding import nearest

        if pattern is not None:
            raise UserError(
                f"no {what.removesuffix('s')} is called like {pattern!r}.", f"See `lcfbench ls {what}`."
            )
        echo(f"no runs in {results}; {nearest(results)}" if what == "runs" else f"no {what} yet")
    else:
        from lcfbench.cli import tables

        if pattern is not None:
            if what == "tasks" and is_stock(pattern):
                echo("\n".join(stock_lines(rows)))
            else:
                tables.show(_table(what, rows))
            return
        tables.show(*(_table(each, entries(each, results)) for each in (what, *BELOW.get(what, ()))))
        if what == "tasks":
            echo(f"and lm-eval's own tasks: {LISTING}")


def _table(what: str, rows: list[dict[str, Any]]) -> Table:
    named = COLUMNS.get(what, [Column(what.removesuffix("s")), Column("description", wrap=True)])
    return Table("", named, [cells(what, row) for row in rows])


def cells(what: str, row: dict[str, Any]) -> list[Cell]:
    """The facts of an entry that a terminal shows; `--json` has the rest."""
    if what == "models":
        shape = f"{row['layers']} × {row['kv_heads']} × {row['head_dim']}" if row["layers"] else ""
        return [row["model"], row["hub_id"], shape, row["here"] or "no"]
    if what == "tasks":
        ways = [name + (" *" if name == row["default_scoring"] else "") for name in row["scorings"]]
        return [row["name"], row["context"], tuple(ways), row["examples"], row["description"]]
    if what == "groups":
        return [row["name"], row["weighting"], ", ".join(row["members"]), row["description"]]
    if what == "adapters":
        size = "" if row["mb"] is None else f"{row['mb']:.1f}"
        pair, tasks = row["pair"], row["tasks"].replace(",", ", ")
        return [row["name"], row["kind"], pair, tasks, size]
    if what == "runs":
        when = str(row["started_at"])[:16].replace("T", " ")
        place = row["run_id"] if row["below"] == "." else row["below"]
        state = f"{row['state']} on {row['host']}" if row["host"] else row["state"]
        return [place, state, str(row["documents"]), str(row["errors"]), when]
    return [str(value) for value in row.values()]


def matching(what: str, pattern: str, results: Path) -> list[dict[str, Any]]:
    """The entries of a list whose name fits a pattern; of tasks, lm-eval's own where it begins so."""
    if what == "tasks" and is_stock(pattern):
        return stock_index.matching(pattern)
    rows = entries(what, results)
    pattern = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [row for row in rows if fnmatch.fnmatch(str(next(iter(row.values()))), pattern)]


def stock_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each of lm-eval's tasks and groups: its name, how it is asked, its data."""
    width = min(max(len(row["name"]) for row in rows), 40)
    lines = []
    for row in rows:
        about = (
            f"{row['kind']} of {len(row['members'])}" if "members" in row else row["output"].replace("_", " ")
        )
        shots = f", {row['shots']} shots" if row.get("shots") else ""
        data = f"  {row['dataset']}" if row.get("dataset") else ""
        lines.append(f"{row['name']:{width}}  {about}{shots}{data}")
    return lines


def entries(what: str, results: Path) -> list[dict[str, Any]]:
    """The entries of a list, with all their facts."""
    if what == "models":
        from lcfbench.cli.doctor import models_table

        return models_table()
    if what == "tasks":
        from lcfbench.tasks.yaml_files import task_table

        return task_table()
    if what == "groups":
        from lcfbench.tasks.groups import group_table

        return group_table()
    if what == "adapters":
        from lcfbench.adapters.select import adapters_table, cached

        return adapters_table([Path("adapters"), cached()])
    if what == "recipes":
        from lcfbench.config import packaged_recipes, read_recipe

        return [
            {"recipe": name, "description": str(read_recipe(path, None).get("description", ""))}
            for name, path in packaged_recipes().items()
        ]
    if what == "runs":
        from lcfbench.results.reader import list_runs

        names = ("run_id", "state", "documents", "errors", "started_at", "folder", "host")
        runs = [{name: run.get(name, "") for name in names} for run in list_runs(results)]
        return [run | {"below": os.path.relpath(run["folder"], results)} for run in runs]
    from lcfbench.registry import summaries

    return [{what.removesuffix("s"): name, "description": text} for name, text in summaries(what).items()]


def doctor(
    offline: OfflineOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array; with --model one object.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="Check one model: an alias, a Hub id or a folder.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="With --model: number format."),
    ] = "auto",
    device: Annotated[
        str, typer.Option("--device", help="With --model: auto, cpu, cuda[:n] or mps.")
    ] = "auto",
    attention: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2"],
        typer.Option("--attention", help="With --model: attention implementation."),
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="With --model: run Python code of its folder.")
    ] = False,
) -> None:
    """Check versions, devices, where models and data come from, and the task files; or one model.

    Ends with 1 where something that is needed is missing, or where the model cannot be used; with 2
    where the model is not there or cannot be loaded.
    """
    quiet_libraries()
    conditions = {"dtype": dtype, "device": device, "attention": attention}
    if model is None:
        if given := [name for name, value in conditions.items() if value != "auto"]:
            raise UserError(f"--{given[0]} is for one model.", "Name it with --model.")
        if trust_remote_code:
            raise UserError("--trust-remote-code is for one model.", "Name it with --model.")
    else:
        from lcfbench.cli.model_doctor import examine, tables
        from lcfbench.cli.tables import show

        page = examine(model, bool(offline), trust_remote_code=trust_remote_code, **conditions)
        if as_json:
            echo(json.dumps(page, indent=1, ensure_ascii=False))
        else:
            show(*tables(page))
        if page["capabilities"]["text"] is not True:
            raise typer.Exit(Exit.FAILED)
        return
    from lcfbench.cli.doctor import checks

    found = checks(bool(offline))
    if as_json:
        echo(json.dumps([vars(check) for check in found], indent=1, default=str))
    for check in [] if as_json else found:
        next_step = f"\n    → {check.next_step}" if not check.ok and check.next_step else ""
        echo(f"{'ok ' if check.ok else 'NO '} {check.name}: {check.detail}{next_step}")
    if not all(check.ok for check in found):
        raise typer.Exit(Exit.FAILED)

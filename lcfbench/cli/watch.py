"""`lcfbench watch`: runs while they go on, in the terminal or on a local page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcfbench.cli.console import echo, note
from lcfbench.errors import UserError
from lcfbench.files import now

if TYPE_CHECKING:
    from lcfbench.tables import Table
    from lcfbench.watching.follow import RunView
    from lcfbench.watching.results import Watched

NEWEST, ROOM = 20, 6  # runs that are shown, and lines of a terminal that are left free for the rest
PORT = 8111


def watch(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Results folders or run folders. [default: results]")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs, not only the newest.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and end.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="A line for each change instead of a table, as for a log.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a refresh, on a line of its own.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
    serve: Annotated[
        bool, typer.Option("--serve", help="A page on http://127.0.0.1:PORT that refreshes itself.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --serve: the port; 0: any that is free.")
    ] = PORT,
) -> None:
    """Follow runs while they go on, also those of other processes: score, speed, what is left.

    Only reads. In a terminal the table stays up to date until Ctrl-C; elsewhere it is printed once.
    """
    from lcfbench.watching.results import Watched

    paths = runs or [Path("results")]
    for path in paths:
        if serve and path.name.isdigit() and not path.exists():
            raise UserError(f"{path} is no folder.", f"A port is given as --port {path}.")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is no folder.", "Name a results folder or a run folder.")
        if once and not path.exists():
            raise UserError(f"{path}: no such folder.", "`lcfbench run` makes results; name its --out.")
    if sum((serve, follow, as_json)) > 1:
        raise UserError("--serve, --follow and --json exclude each other.", "Give one of them.")
    from lcfbench.cli.terminal import out

    newest = None if every else NEWEST
    if serve:
        serve_page(Watched(paths, newest), port, interval)
    elif as_json:
        watched = Watched(paths, newest)
        print_json(watched, once)
        while not once:
            time.sleep(interval)
            print_json(watched, once)
    elif follow:
        follow_lines(Watched(paths, newest), interval, once)
    elif once or not out.is_terminal:
        from lcfbench.cli.tables import show

        watched = Watched(paths, newest)
        show(_table(watched, watched.refresh(wait=True)))
    else:
        live_table(paths, every, interval)


def _table(watched: Watched, views: list[RunView]) -> Table:
    from lcfbench.watching.table import table_of

    return table_of(views, watched.hidden, ", ".join(map(str, watched.paths)))


def print_json(watched: Watched, whole: bool) -> None:
    """Prints the runs as they stand on one line."""
    views = watched.refresh(wait=whole)
    facts = {"at": now(), "not_shown": watched.hidden, "runs": [view.record() for view in views]}
    echo(json.dumps(facts, ensure_ascii=False))


def follow_lines(watched: Watched, interval: float, once: bool) -> None:
    """Prints a line for each run whose numbers changed since the last look."""
    from lcfbench.watching.table import COLUMNS, cells

    said: dict[str, list[str]] = {}
    while True:
        views = watched.refresh(wait=once)
        for view in views:
            name, state, *rest = cells(view, view.run_id)
            if said.get(view.folder) != [state, *rest]:
                numbers = zip(COLUMNS[2:], rest, strict=True)
                told = "  ".join(f"{column.name} {text}" for column, text in numbers if text != "–")
                echo(f"{now()}  {name}  {state}  {told}" + (f"  ({view.note})" if view.note else ""))
            said[view.folder] = [state, *rest]
        if once:
            return
        time.sleep(interval)


def live_table(paths: list[Path], every: bool, interval: float) -> None:
    """Keeps one table up to date until Ctrl-C."""
    from rich.live import Live

    from lcfbench.cli.tables import rendered
    from lcfbench.cli.terminal import out
    from lcfbench.watching.results import Watched

    watched = Watched(paths, None if every else NEWEST)
    with Live(console=out, auto_refresh=False, vertical_overflow="visible" if every else "ellipsis") as live:
        while True:
            if not every:
                watched.newest = min(NEWEST, max(out.height - ROOM, 1))
            live.update(rendered(_table(watched, watched.refresh()), out.width), refresh=True)
            time.sleep(interval)


def serve_page(watched: Watched, port: int, interval: float) -> None:
    """Serves the page until Ctrl-C."""
    from lcfbench.watching.page import Server

    with Server(watched, port, interval) as server:
        echo(server.url)
        note("Ctrl-C ends it; only this machine can open it.", "dim")
        server.serve_forever()

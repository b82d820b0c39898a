"""What `adapter prune`, `push` and `pull` print."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from lcfbench.cli.console import note, out, quiet_libraries, warn
from lcfbench.cli.progress import QUIET_SECONDS, duration
from lcfbench.errors import Exit

FATES = {"kept": "kept", "outranked": "-", "hurts": "hurts", "shut": "gates shut"}


class PruneLine:
    """Now and then a line on how far the ablations are."""

    def __init__(self) -> None:
        self.began = self.spoke = time.monotonic()

    def say(self, text: str) -> None:
        note(text, "dim")

    def warn(self, text: str) -> None:
        warn(text)

    def update(self, done: int, total: int) -> None:
        if done == 1:
            self.began = time.monotonic()
        elif time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            left = (self.spoke - self.began) / (done - 1) * (total - done)
            note(f"{done}/{total} batches  {duration(left)} left")


def prune_and_show(settings: dict[str, Any], as_json: bool) -> None:
    """Prunes and prints the report. Ctrl-C leaves nothing behind and exits 130."""
    quiet_libraries()
    try:
        from lcfbench.training.prune import prune
        from lcfbench.training.recipe import PruneRecipe

        found = {"adapter": by_name(settings["adapter"])}
        report = prune(PruneRecipe.merge(None, settings | found, "adapter prune"), PruneLine())
    except KeyboardInterrupt:
        note("interrupted: nothing was written.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(report))
        return
    out.print(layers_table(report))
    out.print()
    out.print(before_after(report))
    for text in remarks(report):
        out.print(text, soft_wrap=True)
    mode, task, folder = report["method"], report["task"], report["folder"]
    out.print(
        f"saved {folder}; judge it on the test split: lcfbench run --mode {mode} --task {task} --adapter {folder}",
        soft_wrap=True,
    )


def layers_table(report: dict[str, Any]) -> Table:
    """One line a layer: gates, what leaving it out costs, its rank and fate."""
    soft = report["gate"] == "soft"
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    gate = "gate" if soft else "logit"
    for head in (
        "layer",
        "reads",
        f"{gate} K",
        f"{gate} V",
        f"{report['metric']} lost",
        "logl. lost",
        "rank",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in report["layers"]:
        k, v = ("gate_key", "gate_value") if soft else ("logit_key", "logit_value")
        lost = (
            ["", ""]
            if row["importance"] is None
            else [f"{100 * row['importance']:+.1f}", f"{row['loglik_importance']:+.4f}"]
        )
        table.add_row(
            str(row["layer"]), str(row["reads"]), f"{row[k]:.2f}", f"{row[v]:.2f}", *lost, str(row["rank"] or ""), FATES[row["fate"]],
            style="" if row["fate"] == "kept" else "dim",
        )  # fmt: skip
    return table


def before_after(report: dict[str, Any]) -> Table:
    """The whole adapter and the pruned one side by side."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("", "layers", "MB", "matched", "deranged", "log-likelihood"):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for name in ("whole", "pruned"):
        one = report[name]
        deranged = f"{100 * one['deranged']['score']:.1f}" if one["deranged"] else "sends nothing"
        matched, loglik = f"{100 * one['matched']['score']:.1f}", f"{one['matched']['loglik']:.3f}"
        table.add_row(name, str(one["layers"]), f"{one['bytes'] / 1e6:.2f}", matched, deranged, loglik)
    return table


def remarks(report: dict[str, Any]) -> list[str]:
    """What a reader of the tables must not miss."""
    n, kept, asked = report["documents"], len(report["kept"]), report["asked"]
    told = [
        f"{report['task']}, {n} dev documents; the layers were chosen on them, so the pruned line flatters. {duration(report['seconds'])}."
    ]
    if asked is not None and kept < asked:
        told.append(f"Only {kept} layers help, so {kept} stay, not {asked}.")
    return told


def push_and_show(
    folder: Path, repo_id: str, private: bool, revision: str | None, message: str | None, offline: bool
) -> None:
    """`lcfbench adapter push`."""
    from lcfbench.adapters.hub import push

    quiet_libraries()
    address = push(
        by_name(folder), repo_id, private=private, revision=revision, message=message, offline=offline
    )
    out.print(f"pushed {folder}: {address}", soft_wrap=True)


def by_name(folder: Path) -> Path:
    """An adapter folder, or the shipped one of that name."""
    from lcfbench.adapters.select import FOLDER

    return (
        FOLDER / folder
        if not folder.exists() and len(folder.parts) == 1 and (FOLDER / folder).is_dir()
        else folder
    )


def pull_and_show(name: str, place: Path | None, subfolder: str, force: bool, offline: bool) -> None:
    """`lcfbench adapter pull`; `name` may end in `@revision`."""
    from lcfbench.adapters.base import method_of
    from lcfbench.adapters.config import read_config
    from lcfbench.adapters.hub import pull

    quiet_libraries()
    repo_id, _, revision = name.partition("@")
    folder = pull(
        repo_id, place, revision=revision or None, subfolder=subfolder, force=force, offline=offline
    )
    c = read_config(folder)
    task = next(iter(c.tasks), "TASK")
    use = (
        f"lcfbench run --mode {method_of(c)} --pair {c.receiver}:{c.sharer} --task {task} --adapter {folder}"
    )
    out.print(f"saved {folder}: {c.kind} for {c.receiver}:{c.sharer}; use it with: {use}", soft_wrap=True)

"""How far a run is, read from its folder.

>>> states_of({folder: hashes})[folder].name                                       # doctest: +SKIP
'partial'
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcfbench.errors import UserError
from lcfbench.files import LOCK
from lcfbench.ownership import holders
from lcfbench.results.finding import is_run
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.results.reader import read_place
from lcfbench.results.shards import Shard, shards_of

StateName = Literal["new", "running", "partial", "complete", "failed", "damaged"]


@dataclass(frozen=True)
class RunState:
    """done: documents that have an answer. why: what is wrong with what is recorded."""

    name: StateName
    done: int = 0
    why: str = ""


def states_of(asked: Mapping[Path, Set[str]], shard: Shard | None = None) -> dict[Path, RunState]:
    """Returns how far the runs in some folders are. asked: hashes of the documents of each.

    shard: the part of the runs that is asked.
    """
    found = {}
    places = {folder: [folder, *([shard.folder(folder)] if shard else shards_of(folder))] for folder in asked}
    owners = holders(place / LOCK for some in places.values() for place in some)
    for folder, hashes in asked.items():
        running = any(owners[place / LOCK] is not None for place in places[folder])
        whole = _state(folder, hashes, running)
        if whole.name in ("complete", "failed", "damaged") or not (parts := shards_of(folder)):
            found[folder] = whole
            continue
        if shard and (part := _state(shard.folder(folder), hashes, running)).name == "damaged":
            found[folder] = part
            continue
        answered = set[str]()
        for place in (folder, *parts):
            answered |= _answered(place) & hashes
        name: StateName = "running" if running else "partial" if answered else "new"
        if shard and not running and answered == hashes:
            name = "complete"
        found[folder] = RunState(name, len(answered))
    return found


def _answered(folder: Path) -> set[str]:
    """The documents that have an answer in a folder; none of one that cannot be read."""
    try:
        table, *_ = read_place(folder, ("doc_hash", "error"))
    except UserError:
        return set()
    rows = zip(table["doc_hash"].to_pylist(), table["error"].to_pylist(), strict=True)
    return {name for name, error in rows if error is None}


def _state(folder: Path, asked: Set[str], running: bool) -> RunState:
    """Returns how far a run is, its shards left out. running: whether a process writes it.

    A run without a folder, or with one that holds no row, is new; one that is damaged is not gone on with.
    """
    if not is_run(folder):
        return RunState("running" if running else "new")
    try:
        manifest, _ = Manifest.lenient(read_manifest(folder), folder)
        table, manifest, _ = read_place(folder, ("doc_hash", "error"))
    except UserError as error:
        if "no rows are recorded" in error.what:
            return RunState("running" if running else "new")
        return RunState("running" if running else "damaged", why=error.what)
    rows = zip(table["doc_hash"].to_pylist(), table["error"].to_pylist(), strict=True)
    done = sum(name in asked and error is None for name, error in rows)
    if running:
        return RunState("running", done)
    if manifest.state == "complete" and len(table) >= len(asked):
        failed = manifest.too_many(len(table) - done, len(table))
        return RunState("failed" if failed else "complete", done)
    return RunState("partial" if len(table) else "new", done)

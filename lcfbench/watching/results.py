"""Follows all runs below some folders: those that appear and vanish, the newest first.

>>> watched = Watched([Path("results")], newest=20)                              # doctest: +SKIP
>>> for view in watched.refresh(): print(view.run_id, view.state, view.score)    # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from lcfbench.results.finding import is_run, listed
from lcfbench.results.schema import JOURNAL
from lcfbench.watching.follow import FollowedRun, RunView, is_there, stamp

READ_SECONDS = 0.5  # of a refresh, for rows that are new
SEARCH_SHARE = 0.1  # of the time, for looking for new folders


class Watched:
    """The runs below `paths`. newest: how many are followed; None: all. hidden: those that are not."""

    def __init__(self, paths: Sequence[Path], newest: int | None = None) -> None:
        self.paths, self.newest, self.hidden = list(paths), newest, 0
        self._runs: dict[Path, FollowedRun] = {}
        self._found: list[Path] = []
        self._again = 0.0  # when folders are looked for again

    def refresh(self, wait: bool = False) -> list[RunView]:
        """Reads what is new; returns the runs, the newest first. wait: until all rows are read."""
        chosen = self._chosen()
        self._runs = {folder: self._runs.get(folder) or FollowedRun(folder) for folder in chosen}
        until = math.inf if wait else time.monotonic() + READ_SECONDS
        for followed in sorted(self._runs.values(), key=lambda followed: not followed.polled):
            if followed.polled or time.monotonic() < until:
                followed.poll(until)
        views = [followed.view() for followed in self._runs.values() if is_there(followed.folder)]
        return sorted(views, key=lambda view: (view.started_at or "", view.run_id), reverse=True)

    def _chosen(self) -> list[Path]:
        """The folders of the runs that changed last, as they were when they were last looked for."""
        began = time.monotonic()
        if began >= self._again:
            every = (folder for path in self.paths for folder in _below(path))
            found = {folder.resolve(): folder for folder in every}.values()
            self._found = [f for when, f in sorted(((_changed(f), f) for f in found), reverse=True) if when]
            self._again = time.monotonic() + (time.monotonic() - began) / SEARCH_SHARE
        kept = self._found[: self.newest]
        self.hidden = len(self._found) - len(kept)
        return kept


def _below(path: Path) -> list[Path]:
    """The run folders that a path stands for; none where it is not there (yet)."""
    return [path] if is_run(path) else listed(path)


def _changed(folder: Path) -> int:
    """When a run last changed, ns; 0 where it is gone. A journal that is there makes it newer."""
    from lcfbench.results.manifest import MANIFEST
    from lcfbench.results.schema import SAMPLES

    journal = stamp(folder / JOURNAL)
    if journal is not None:
        return journal[2] + 1
    return max((found[2] for name in (MANIFEST, SAMPLES) if (found := stamp(folder / name))), default=0)

"""Passes the progress of runs on to a tracker, as it is read back from their folders.

>>> run(recipe, Tracked(progress, "tensorboard", recipe.out))                    # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lcfbench.progress import Crew, Follower, Progress
from lcfbench.tracking import Tracker, TrackerName, begin
from lcfbench.watching.follow import FollowedRun, RunView

LOG_SECONDS = 1.0  # at least, between two entries of a run


class Tracked:
    """A Progress that passes everything on to another one, and numbers to a tracker.

    A run is a run of the tracker by its run id. Its settings are those of its manifest.
    """

    def __init__(self, progress: Progress, kind: TrackerName, out: Path) -> None:
        self.progress, self.kind, self.out = progress, kind, out
        self.runs: dict[str, tuple[FollowedRun, Tracker]] = {}
        self.logged: dict[str, float] = {}
        self.warned = False

    def say(self, text: str) -> None:
        self.progress.say(text)

    def warn(self, text: str) -> None:
        self.progress.warn(text)

    def warn_once(self, text: str) -> None:
        """Says once for all runs that the tracker fails."""
        if not self.warned:
            self.progress.warn(text)
        self.warned = True

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        self.progress.begin(title, total, done, right)

    def follow(self, title: str, folder: Path) -> None:
        """Begins the tracker's run."""
        if isinstance(self.progress, Follower):
            self.progress.follow(title, folder)
        if self.warned:
            return
        followed = FollowedRun(folder)
        followed.poll()
        manifest = followed.manifest
        config = {
            **manifest.identity,
            "recipe": manifest.recipe,
            "environment": manifest.model_dump(mode="json")["environment"],
            "folder": str(folder),
        }
        self.runs[title] = followed, begin(self.kind, folder.name, config, self.out, self.warn_once)

    def workers(self, doing: Sequence[str]) -> None:
        if isinstance(self.progress, Crew):
            self.progress.workers(doing)

    def update(self, title: str, right: float, done: int) -> None:
        self.progress.update(title, right, done)
        if title in self.runs and time.monotonic() - self.logged.get(title, 0.0) >= LOG_SECONDS:
            self.log(title)

    def log(self, title: str) -> RunView:
        """Passes the numbers of a run on as they stand. Returns all that is known."""
        followed, tracker = self.runs[title]
        followed.poll()
        view = followed.view()
        tracker.log(numbers(view), view.done)
        self.logged[title] = time.monotonic()
        return view

    def end(self, title: str) -> None:
        self.progress.end(title)
        if title not in self.runs:
            return
        view, (_, tracker) = self.log(title), self.runs.pop(title)
        tracker.finish({"state": view.state, **numbers(view)}, good=view.state == "complete")


def numbers(view: RunView) -> dict[str, float]:
    """What a tracker gets of a run: scores 0 to 1, documents, times."""
    known = {
        "score": view.score,
        "score_low": view.low,
        "score_high": view.high,
        "documents": view.done,
        "documents_left": view.left,
        "failures": view.errors,
        "unparsed": view.unparsed,
        "ms_per_document": view.ms_per_document,
        "documents_per_s": view.documents_per_s,
    }
    return {name: value for name, value in known.items() if value is not None}

"""The progress of a probe, and the clock that stops what runs when the minutes are over."""

from __future__ import annotations

import time
from typing import Any, Protocol

from lcfbench.probing.record import TimeUp
from lcfbench.progress import Progress, TrainProgress


class ProbeProgress(Progress, TrainProgress, Protocol):
    """Hears how the parts of a probe, its runs and its training go."""


class Deadline:
    """Passes everything on to `progress`; raises TimeUp at the first sign of progress after `end`.

    end: seconds of `time.monotonic`. steps: training steps that were reported.
    """

    def __init__(self, progress: ProbeProgress, end: float) -> None:
        self.progress, self.end_at, self.steps = progress, end, 0

    def say(self, text: str) -> None:
        self.progress.say(text)

    def warn(self, text: str) -> None:
        self.progress.warn(text)

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        self.progress.begin(title, total, done, right)

    def update(self, title: str, right: float, done: int) -> None:
        self.progress.update(title, right, done)
        self.look()

    def end(self, title: str) -> None:
        self.progress.end(title)

    def step(self, step: int, *rest: Any) -> None:
        self.steps = step
        self.progress.step(step, *rest)
        self.look()

    def look(self) -> None:
        """Raises TimeUp where the time is over."""
        if time.monotonic() > self.end_at:
            raise TimeUp

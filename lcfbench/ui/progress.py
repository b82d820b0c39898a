"""Live lines of a run and of a training run: in a terminal they change in place, in a log one line is written now and then.

>>> line = RunProgress(); line.begin("splitfacts · lcf", 100, 0, 0.0); line.update(12.0, 16); line.end()       # doctest: +SKIP
"""

from __future__ import annotations

import time

from rich.status import Status

from lcfbench.ui import err, note, warn

QUIET_SECONDS = 10.0  # without a terminal, one progress line this often


class RunProgress:
    """One live line a run: documents, score ± half its 95 % interval, milliseconds a document, time left."""

    def __init__(self) -> None:
        self.title, self.last = "", ""
        self.total = self.before = self.done = 0
        self.began = self.spoke = 0.0
        self.status: Status | None = None

    def say(self, text: str) -> None:
        note(text, "dim")

    def warn(self, text: str) -> None:
        warn(text)

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        self.title, self.total, self.before, self.done = title, total, done, done
        self.began = self.spoke = time.monotonic()
        self.last = f"{title}  {done}/{total}" + (" recorded before" if done else "")
        self.status = err.status(f"{self.last}  timing a few documents one at a time") if err.is_terminal else None
        if self.status is not None:
            self.status.start()

    def rolling(self) -> None:
        """The timed documents are through; from here on the pace is that of the batches."""
        self.began = time.monotonic()
        if self.status is not None:
            self.status.update(self.last)

    def update(self, right: float, done: int) -> None:
        from lcfbench.analysis.stats import wilson

        self.done = done
        low, high = wilson(round(right), done)
        per_document = (time.monotonic() - self.began) / max(done - self.before, 1)
        self.last = f"{self.title}  {done}/{self.total}  score {100 * right / done:.1f} ± {50 * (high - low):.1f} %  {1e3 * per_document:.0f} ms/doc"
        left = f"  {duration((self.total - done) * per_document)} left" if done < self.total else ""
        if self.status is not None:
            self.status.update(self.last + left)
        elif time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            note(self.last + left)

    def end(self) -> None:
        if self.status is not None:
            self.status.stop()
        note(f"{self.last}  {duration(time.monotonic() - self.began)}")


class TrainLine:
    """Loss, share of supervised tokens right, gates open, examples a second."""

    def __init__(self) -> None:
        self.spoke = 0.0

    def say(self, text: str) -> None:
        note(text)

    def step(self, step: int, steps: int, loss: float, right: float, gates_open: int, gates: int, examples_per_s: float) -> None:
        if step in (1, steps) or time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            note(
                f"step {step}/{steps}  loss {loss:.3f}  tokens right {100 * right:.0f} %  gates open {gates_open}/{gates}  "
                f"{examples_per_s:.1f} examples/s"
            )


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"

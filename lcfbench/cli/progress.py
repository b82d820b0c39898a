"""Live lines of a run and of a training run: in a terminal they change in place, in a log one line is written now and then.

>>> line = RunProgress(); line.begin("lcf", 100, 0, 0.0); line.update("lcf", 12.0, 16); line.end("lcf")       # doctest: +SKIP
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.status import Status

from lcfbench.cli.console import err, note, warn

QUIET_SECONDS = 10.0  # without a terminal, one progress line this often


@dataclass
class Line:
    """One run: documents in all, recorded before this sitting, and now; the sum of their scores."""

    total: int
    before: int
    done: int
    right: float

    @property
    def score(self) -> str:
        """Score ± half its 95 % interval."""
        from lcfbench.analysis.stats.proportions import wilson

        low, high = wilson(round(self.right), self.done)
        return f"{100 * self.right / self.done:.1f} ± {50 * (high - low):.1f} %"


class RunProgress:
    """One live line for the runs that are answered together: documents, scores, milliseconds a document and run, time left; one line each at the end."""

    def __init__(self) -> None:
        self.lines: dict[str, Line] = {}
        self.began = self.spoke = 0.0
        self.status: Status | None = None

    def say(self, text: str) -> None:
        note(text, "dim")

    def warn(self, text: str) -> None:
        warn(text)

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        self.lines[title] = Line(total, done, done, right)
        self.began = self.spoke = time.monotonic()
        if err.is_terminal:
            text = f"{title}  {done}/{total}{' recorded before' if done else ''}"
            if self.status is None:
                self.status = err.status(text)
                self.status.start()
            self.status.update(text)

    def update(self, title: str, right: float, done: int) -> None:
        line = self.lines[title]
        line.right, line.done = right, done
        if self.status is not None:
            self.status.update(self.text(title))
        elif time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            note(self.text(title))

    def text(self, title: str) -> str:
        """The run that was worked on last, and how far all of them are."""
        lines, line = self.lines.values(), self.lines[title]
        total, done, before = (
            sum(getattr(each, name) for each in lines) for name in ("total", "done", "before")
        )
        each = (time.monotonic() - self.began) / max(done - before, 1)
        runs = f"{len(lines)} runs {done}/{total}  " if len(lines) > 1 else ""
        left = f"  {duration((total - done) * each)} left" if done < total else ""
        return f"{runs}{title}  {line.done}/{line.total}  score {line.score}  {1e3 * each:.0f} ms/doc{left}"

    def end(self, title: str) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None
        line = self.lines.pop(title)
        seconds = duration(time.monotonic() - self.began)
        note(f"{title}  {line.done}/{line.total}  {f'score {line.score}  ' if line.done else ''}{seconds}")


class TrainLine:
    """Loss, share of supervised tokens right, gates open, examples a second."""

    def __init__(self) -> None:
        self.spoke = 0.0

    def say(self, text: str) -> None:
        note(text)

    def step(
        self,
        step: int,
        steps: int,
        loss: float,
        right: float,
        gates_open: int,
        gates: int,
        examples_per_s: float,
    ) -> None:
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

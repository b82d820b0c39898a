"""Progress of a run, a training and a pruning.

In a terminal one line changes in place; in a log a line is written every QUIET_SECONDS.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcfbench.cli.console import note, warn
from lcfbench.progress import duration

if TYPE_CHECKING:
    from lcfbench.cli.terminal import StatusLine

QUIET_SECONDS = 10.0  # without a terminal, one progress line this often


@dataclass
class Line:
    """One run. total: its documents. before: recorded earlier. right: the sum of scores of `done`."""

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


class Notes:
    """Passes messages on to stderr, and tells when the next progress line of a log is due."""

    style = "dim"

    def __init__(self) -> None:
        self.began = self.spoke = time.monotonic()

    def say(self, text: str) -> None:
        note(text, self.style)

    def warn(self, text: str) -> None:
        warn(text)

    def due(self) -> bool:
        """Whether QUIET_SECONDS have passed since it last was; if so, they begin again."""
        now = time.monotonic()
        if now - self.spoke <= QUIET_SECONDS:
            return False
        self.spoke = now
        return True


class RunProgress(Notes):
    """One live line for the runs that are answered together, and one line for each at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, Line] = {}
        self.status: StatusLine | None = None
        self.crew = ""  # what every worker does

    def workers(self, doing: Sequence[str]) -> None:
        self.crew = f"workers: {'; '.join(doing)}"
        if not self.lines and self.due():
            note(self.crew)

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        self.lines[title] = Line(total, done, done, right)
        self.began = self.spoke = time.monotonic()
        from lcfbench.cli.terminal import StatusLine, err

        if err.is_terminal:
            if self.status is None:
                self.status = StatusLine().__enter__()
            self.status.update(f"{title}  {done}/{total}{' recorded before' if done else ''}")

    def update(self, title: str, right: float, done: int) -> None:
        line = self.lines[title]
        line.right, line.done = right, done
        if self.status is not None:
            self.status.update("\n  ".join(filter(None, (self.text(title), self.crew))))
        elif self.due():
            note(self.text(title))
            if self.crew:
                note(f"  {self.crew}")

    def text(self, title: str) -> str:
        """The run that was worked on last, and the progress of all of them."""
        lines, line = self.lines.values(), self.lines[title]
        total, done = sum(each.total for each in lines), sum(each.done for each in lines)
        each = (time.monotonic() - self.began) / max(done - sum(each.before for each in lines), 1)
        runs = f"{len(lines)} runs {done}/{total}  " if len(lines) > 1 else ""
        left = f"  {duration((total - done) * each)} left" if done < total else ""
        return f"{runs}{title}  {line.done}/{line.total}  score {line.score}  {1e3 * each:.0f} ms/doc{left}"

    def end(self, title: str) -> None:
        line = self.lines.pop(title)
        if self.status is not None and not self.lines:
            self.status.__exit__()
            self.status = None
        seconds = duration(time.monotonic() - self.began)
        note(f"{title}  {line.done}/{line.total}  {f'score {line.score}  ' if line.done else ''}{seconds}")


class TrainLine(Notes):
    """Loss, share of supervised tokens right, open gates, examples a second."""

    style = ""

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
        if self.due() or step in (1, steps):
            gate = f"gates open {gates_open}/{gates}"
            tokens = f"tokens right {100 * right:.0f} %"
            note(f"step {step}/{steps}  loss {loss:.3f}  {tokens}  {gate}  {examples_per_s:.1f} examples/s")


class TeachLine(Notes):
    """Loss, texts a second."""

    style = ""

    def lesson(self, step: int, steps: int, loss: float, texts_per_s: float) -> None:
        if self.due() or step in (1, steps):
            note(f"step {step}/{steps}  loss {loss:.3f}  {texts_per_s:.1f} texts/s")


class PruneLine(Notes):
    """Batches done, and the time left."""

    def update(self, done: int, total: int) -> None:
        if done == 1:
            self.began = time.monotonic()
        elif self.due():
            left = (self.spoke - self.began) / (done - 1) * (total - done)
            note(f"{done}/{total} batches  {duration(left)} left")

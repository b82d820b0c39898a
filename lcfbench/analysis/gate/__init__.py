"""The gate: did the new run lose more than is allowed? It fails only when that is sure, and passes only when the contrary is.

    from lcfbench.analysis.gate import decide, score_shift
    decide([score_shift(new=[1, 0] * 500, baseline=[1, 0] * 500, max_drop=0.01)])   # [Outcome.OK]

Here are the decisions, from vectors of scores; check.py brings the cells. Two tests a cell, on the same documents. *Surely worse*: "lost no
more than allowed" is rejected at 5 %, Holm-corrected over all that is checked, so that a check of any size fails for nothing at most once
in twenty; where few answers changed, the test is exact. *Surely not worse*: the one-sided 95 % bound lies on the good side of the limit;
no correction, since all must pass. Else the documents are too few to say.

An interval over documents does not cover what a machine does between two runs: for speed, record the baseline in the same job.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.analysis.stats import Paired, Scores, holm, needed, paired
from lcfbench.analysis.stats.exact_drop import ENOUGH, exact_drop_p
from lcfbench.errors import Exit

if TYPE_CHECKING:
    import numpy as np

ALPHA = 0.05
CONFIDENCE = 1 - 2 * ALPHA  # a two-sided interval whose ends are the one-sided bounds
MOST = 1_000_000  # who would need more documents than this sits on the limit
Z = 1.6448536269514722  # of the one-sided 95 % bound


class Outcome(StrEnum):
    """What is known of one aspect of one cell."""

    OK = "ok"
    WORSE = "surely worse"
    UNSURE = "inconclusive"
    INCOMPLETE = "incomplete"


class Shift(NamedTuple):
    """How far something moved for the worse (below 0) or better, with its 90 % interval over `n` documents, and what follows.

    value, low, high: score: new − baseline; time: log(baseline / new). p: of "it moved by no more than the limit". sure: the bound lies
    beyond it. documents: how many would decide, about; None where no number would. same: every document scored the same.
    """

    value: float
    low: float
    high: float
    n: int
    p: float
    sure: bool
    documents: int | None
    same: bool = False


def score_shift(new: Scores, baseline: Scores, max_drop: float, family: int = 1) -> Shift:
    """Of two score vectors of the same documents. max_drop: what may be lost, a fraction. family: number of tests, for `documents`."""
    got: Paired = paired(new, baseline)
    low, high = got.interval(CONFIDENCE)
    same = got.spread == 0 and got.value == 0
    if same:  # the interval's half-width is z²/(n + z²)
        documents = math.ceil(Z * Z * (1 - max_drop) / max_drop) if max_drop > 0 else None
    else:
        documents = _documents(got.spread, got.value + max_drop, got.n, family)
    p = got.p(margin=-max_drop, side="less")
    if p < ALPHA and got.binary and max_drop > 0 and got.gained + got.lost <= ENOUGH:  # where the promise would not hold, and it matters
        p = max(p, exact_drop_p(got.gained, got.lost, got.n, max_drop))
    return Shift(got.value, low, high, got.n, p, low > -max_drop, documents, same)


def time_shift(new_ms: np.ndarray, baseline_ms: np.ndarray, max_slowdown: float, family: int = 1) -> Shift:
    """Of two vectors of times of the same documents: t interval of the mean log ratio. With one document there is no interval."""
    import numpy as np
    from scipy.stats import t

    moved = np.log(np.asarray(baseline_ms, dtype=float) / np.asarray(new_ms, dtype=float))
    n, limit = len(moved), -math.log1p(max_slowdown)
    if n < 2:
        return Shift(float(moved.mean()) if n else math.nan, -math.inf, math.inf, n, math.nan, False, None)
    value, error = float(moved.mean()), float(moved.std(ddof=1)) / math.sqrt(n)
    half = float(t.ppf(1 - ALPHA, n - 1)) * error
    # clocks that repeat to the last digit leave no error: then the mean itself is the bound
    p = float(t.cdf((value - limit) / error, n - 1)) if error > 0 else float(value >= limit)
    documents = _documents(float(moved.std()), value - limit, n, family)
    return Shift(value, value - half, value + half, n, p, value - half > limit, documents, same=bool((moved == 0).all()))


def decide(shifts: Sequence[Shift]) -> list[Outcome]:
    """What the whole family of tests says of each of its members."""
    adjusted = holm([shift.p for shift in shifts])
    return [Outcome.WORSE if p < ALPHA else Outcome.OK if shift.sure else Outcome.UNSURE for p, shift in zip(adjusted, shifts, strict=True)]


def _documents(spread: float, distance: float, n: int, family: int) -> int | None:
    """So many would decide if the truth is what was seen; None where what was seen is the limit itself."""
    if abs(distance) < 1e-9:
        return None
    sure = needed(spread, abs(distance), alpha=ALPHA if distance > 0 else ALPHA / family, power=0.8, sides=1)
    return max(sure, n + 1) if sure <= MOST else None


@dataclass(frozen=True)
class Item:
    """One aspect of one cell: what `check` prints a line for.

    baseline, new: the mean score, or the geometric mean of milliseconds. low, high: of the change in points, or in per cent.
    """

    cell: str
    task: str
    mode: str
    aspect: str  # "score", "first token", "documents"
    outcome: Outcome
    n: int = 0
    baseline: float = math.nan
    new: float = math.nan
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan
    text: str = ""


@dataclass
class Checked:
    """All that was checked, what only a reader can judge (`notes`), and the limits."""

    items: list[Item]
    max_drop: float
    max_slowdown: float | None = None
    notes: list[str] = field(default_factory=list)

    def exit(self, strict: bool) -> Exit:
        """The worst that is sure, then what is missing, then what is not known."""
        seen = {item.outcome for item in self.items}
        if Outcome.WORSE in seen:
            return Exit.FAILED
        if Outcome.INCOMPLETE in seen:
            return Exit.INCOMPLETE
        if Outcome.UNSURE in seen:
            return Exit.FAILED if strict else Exit.INCONCLUSIVE
        return Exit.OK

    def summary(self, strict: bool) -> str:
        """One line: how many of what, under which limits, and how the process ends."""
        counts = {outcome: sum(item.outcome == outcome for item in self.items) for outcome in Outcome}
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        limits = f"at most {100 * self.max_drop:g} pt lost"
        limits += f", {100 * self.max_slowdown:g} % slower" if self.max_slowdown is not None else ""
        ended = {Exit.OK: "passed", Exit.FAILED: "failed", Exit.INCOMPLETE: "incomplete", Exit.INCONCLUSIVE: "inconclusive"}
        cells = len({item.cell for item in self.items})
        return f"{ended[self.exit(strict)]}: {told} ({cells} cell{'s' if cells != 1 else ''}; {limits}; exit {int(self.exit(strict))})"


def score_item(about: dict[str, Any], shift: Shift, outcome: Outcome, means: tuple[float, float], max_drop: float) -> Item:
    """The line of a score, in points."""
    text = ""
    if outcome is Outcome.WORSE:
        text = f"lost {-100 * shift.value:.1f} points, surely more than {100 * max_drop:g}"
    elif outcome is Outcome.UNSURE and shift.same:
        decides = (
            f"{shift.documents:,} documents would decide" if shift.documents else "equal answers never show a loss of 0; give --max-drop"
        )
        text = f"all {shift.n:,} answers score the same; {decides}"
    elif outcome is Outcome.UNSURE:
        text = _undecided(shift, f"−{100 * max_drop:g} points")
    figures = (100 * mean for mean in means)
    return Item(**about, aspect="score", outcome=outcome, n=shift.n, **_numbers(figures, [100 * x for x in shift[:3]]), text=text)


def time_item(about: dict[str, Any], shift: Shift, outcome: Outcome, means: tuple[float, float], max_slowdown: float) -> Item:
    """The line of the time to the first token, in ms and per cent; slower is above 0."""
    slower = [100 * math.expm1(-x) if math.isfinite(x) else math.nan for x in (shift.value, shift.high, shift.low)]
    text = ""
    if outcome is Outcome.WORSE:
        text = f"{slower[0]:.1f} % slower, surely more than {100 * max_slowdown:g} %"
    elif outcome is Outcome.UNSURE and shift.n < 2:
        text = f"n={shift.n}: at least two documents timed alone in both runs are needed (run --latency-documents)"
    elif outcome is Outcome.UNSURE:
        text = _undecided(shift, f"+{100 * max_slowdown:g} %", "documents timed alone")
    return Item(**about, aspect="first token", outcome=outcome, n=shift.n, **_numbers(means, slower), text=text)


def _numbers(means: Iterable[float], change: Iterable[float]) -> dict[str, Any]:
    numbers = dict(zip(("baseline", "new", "change", "low", "high"), (*means, *change), strict=True))
    return {name: x if math.isfinite(x) else math.nan for name, x in numbers.items()}


def _undecided(shift: Shift, limit: str, what: str = "documents") -> str:
    if shift.documents is None:
        return f"n={shift.n:,}; what was seen sits on the limit of {limit} itself: more {what} would not decide, another limit would"
    return f"n={shift.n:,}; about {shift.documents:,} {what} would decide"

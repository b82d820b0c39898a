"""Decides whether a new run lost more than is allowed; fails or passes only when that is sure.

    from lcfbench.analysis.gate import decide, score_shift
    decide([score_shift(new=[1, 0] * 500, baseline=[1, 0] * 500, max_drop=0.01)])   # [Outcome.OK]

Here are the decisions on scores, and what all decisions become; times.py has those on speed,
check.py brings the groups. Two tests a group, on the same documents. *Surely worse*: "lost no more
than allowed" is rejected at 5 %, Holm-corrected over all that is checked, so that a check of any
size fails for nothing at most once in twenty. *Surely not worse*: "lost at least what is allowed"
is rejected at 5 %; no correction, since all must pass. Else the documents are too few to say. Both
are `Paired.p`, exact where few answers changed; the interval that is printed is Tango's, which is
only nearly so, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, partial
from statistics import NormalDist
from typing import Any, NamedTuple

from lcfbench.analysis.stats import Counts, Paired, Scores, holm, paired
from lcfbench.analysis.stats.exact import count_p
from lcfbench.analysis.stats.power import needed
from lcfbench.errors import Exit

ALPHA = 0.05
CONFIDENCE = 1 - 2 * ALPHA  # a two-sided interval whose ends are the one-sided bounds
MOST = 1_000_000  # who would need more documents than this sits on the limit
POWER = 0.8
FEW = 100  # changed answers
RUNS = 3  # a side, below which a machine's whims cannot be told from the code


class Outcome(StrEnum):
    """What is known of one aspect of one group."""

    OK = "ok"
    WORSE = "surely worse"
    UNSURE = "inconclusive"
    INCOMPLETE = "incomplete"


class Shift(NamedTuple):
    """A move for the worse (below 0) or better, with its 90 % interval, and what follows.

    value, low, high: score: new − baseline, over `n` documents; time: log(baseline / new), over `n`
    runs. p: of "no more than the limit was lost", NaN where that is not tested. sure: "the limit or
    more was lost" is rejected. enough: says how many documents or runs would decide, about, 4 times
    in 5; None where no number would. same: every document scored the same.
    """

    value: float
    low: float
    high: float
    n: int
    p: float
    sure: bool
    enough: Callable[[], int | None]
    same: bool = False


def score_shift(new: Scores, baseline: Scores, max_drop: float, family: int = 1) -> Shift:
    """Of two score vectors of the same documents.

    max_drop: what may be lost, a fraction. family: number of tests, for `enough`.
    """
    got: Paired = paired(new, baseline)
    same = got.spread == 0 and got.value == 0
    sure = got.p(margin=-max_drop, side="greater") < ALPHA
    enough = (
        partial(equal_answers, max_drop, got.binary)
        if same
        else partial(_documents, got.counts, max_drop, family)
    )
    return Shift(
        got.value, *got.interval(CONFIDENCE), got.n, got.p(margin=-max_drop, side="less"), sure, enough, same
    )


@cache
def equal_answers(max_drop: float, binary: bool = True) -> int | None:
    """How many documents that all score the same show that no more than `max_drop` was lost."""
    import numpy as np

    if max_drop <= 0:
        return None
    n = max(
        1, math.ceil(math.log(ALPHA) / math.log1p(-max_drop))
    )  # all of n keep their answer with probability (1 − max_drop)ⁿ
    while n <= MOST:
        equal = np.full(n, 1.0 if binary else 0.5)
        if paired(equal, equal).p(margin=-max_drop, side="greater") < ALPHA:
            return n
        n += 1 + n // 1000
    return None


def decide(shifts: Sequence[Shift]) -> list[Outcome]:
    """What the whole family of tests says of each of its members."""
    adjusted = holm([shift.p for shift in shifts])
    return [
        Outcome.WORSE if p < ALPHA else Outcome.OK if shift.sure else Outcome.UNSURE
        for p, shift in zip(adjusted, shifts, strict=True)
    ]


def _documents(got: Counts, max_drop: float, family: int) -> int | None:
    """Returns the documents that would decide if the truth is as seen; None at the limit itself."""
    distance = got.value + max_drop
    alpha = ALPHA if distance > 0 else ALPHA / family
    enough = needed(got.spread, distance, alpha=alpha, power=POWER, sides=1)
    if distance > 0:  # changed answers never need fewer than equal ones
        enough = max(enough, equal_answers(max_drop, got.binary) or 0)
    if (
        got.binary and got.gained + got.lost <= FEW and abs(distance) > 1e-9
    ):  # where the normal approximation asks for too few
        while enough <= MOST and _counted_p(got, enough, max_drop, distance > 0) >= alpha:
            enough += 1 + enough // 20
    return max(enough, got.n + 1) if enough <= MOST else None


def _counted_p(got: Counts, n: int, max_drop: float, passes: bool) -> float:
    """Returns the p-value that 4 in 5 samples of `n` documents stay below, with changes as seen."""
    gained, lost = got.gained * n / got.n, got.lost * n / got.n
    out = NormalDist().inv_cdf(POWER) * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / (gained + lost)
    out = out if passes else -out  # a gain fewer for every gain expected, a loss more for every loss
    counts = min(n, max(0, round(gained * (1 - out)))), min(n, max(0, round(lost * (1 + out))))
    return count_p(*counts, n, -max_drop, "greater" if passes else "less")


@dataclass(frozen=True)
class Item:
    """One aspect of one group: what `check` prints a line for.

    n: documents; of "first token" runs a side. baseline, new: the mean score, or the geometric mean
    of milliseconds. low, high: of the change in points, or in per cent.
    """

    name: str
    task: str
    mode: str
    aspect: str  # "score", "first token", "documents", "fields"
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
        ended = {Exit.OK: "passed", Exit.FAILED: "failed"}
        ended |= {Exit.INCOMPLETE: "incomplete", Exit.INCONCLUSIVE: "inconclusive"}
        groups, code = len({item.name for item in self.items}), self.exit(strict)
        size = f"{groups} group{'s' if groups != 1 else ''}"
        return f"{ended[code]}: {told} ({size}; {limits}; exit {int(code)})"


def score_item(
    about: dict[str, Any], shift: Shift, outcome: Outcome, means: tuple[float, float], max_drop: float
) -> Item:
    """The line of a score, in points."""
    text = ""
    if outcome is Outcome.WORSE:
        text = f"lost {-100 * shift.value:.1f} points, surely more than {100 * max_drop:g}"
    elif outcome is Outcome.UNSURE and shift.same:
        enough = shift.enough()
        never = "equal answers never show a loss of 0; give --max-drop"
        decides = f"{enough:,} documents would decide" if enough else never
        text = f"all {shift.n:,} answers score the same; {decides}"
    elif outcome is Outcome.UNSURE:
        text = _undecided(shift, f"−{100 * max_drop:g} points")
    numbers = _numbers((100 * mean for mean in means), [100 * x for x in shift[:3]])
    return Item(**about, aspect="score", outcome=outcome, n=shift.n, **numbers, text=text)


def time_item(
    about: dict[str, Any], shift: Shift, outcome: Outcome, means: tuple[float, float], max_slowdown: float
) -> Item:
    """The line of the time to the first token, in ms and per cent; slower is above 0."""
    slower = [
        100 * math.expm1(-x) if math.isfinite(x) else math.nan for x in (shift.value, shift.high, shift.low)
    ]
    text = ""
    if outcome is Outcome.WORSE:
        text = f"{slower[0]:.1f} % slower, surely more than {100 * max_slowdown:g} %"
    elif not shift.n:
        text = "no document was timed alone in both runs (run --latency-documents)"
    elif shift.n < RUNS:
        how = "slower" if slower[0] > 0 else "faster"
        seen = f"{how} by {abs(slower[0]):.0f} %" if abs(slower[0]) >= 0.5 else "as fast"
        text = f"{seen} here, but {_runs(shift.n)} a side cannot tell the machine from the code"
        text += "; time three, with --seeds 0,1,2"
    elif outcome is Outcome.UNSURE:
        text = _undecided(shift, f"+{100 * max_slowdown:g} %", "runs")
    numbers = _numbers(means, slower)
    return Item(**about, aspect="first token", outcome=outcome, n=shift.n, **numbers, text=text)


def _runs(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"


def _numbers(means: Iterable[float], change: Iterable[float]) -> dict[str, Any]:
    numbers = dict(zip(("baseline", "new", "change", "low", "high"), (*means, *change), strict=True))
    return {name: x if math.isfinite(x) else math.nan for name, x in numbers.items()}


def _undecided(shift: Shift, limit: str, what: str = "documents") -> str:
    enough = shift.enough()
    if enough is None:
        return (
            f"n={shift.n:,}; what was seen sits on the limit of {limit} itself: "
            f"more {what} would not decide, another limit would"
        )
    return f"n={shift.n:,}; about {enough:,} {what} would decide"

"""Verdicts: gain and content of each run as a label and a sentence, corrected over all runs.

    from lcfbench.analysis.verdict import verdict
    verdict([1, 1, 0, 1] * 50, [1, 0, 0, 0] * 50).text

content P: matched − deranged (the same documents with another document's message). gain G: matched
− the receiver alone. A gain without content is adaptation of the receiver, not communication.
Content below 0 is a message that misleads: the answers do depend on it. That nothing is
communicated is said only where content is shown to be equivalent to none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from lcfbench.analysis.stats import DELTA, Difference, Paired, Scores, difference, equivalence_p, holm, paired
from lcfbench.analysis.stats.power import smallest_visible

if TYPE_CHECKING:
    import numpy as np

Label: TypeAlias = Literal[
    "communicates", "adapts only", "undecided", "does not communicate", "misleads", "untested", "not judged"
]
LABELS: tuple[Label, ...] = get_args(Label)  # best first


class Evidence(NamedTuple):
    """The data of a verdict: scores of the same documents, and the pair matched − receiver alone.

    deranged: None where no run with another document's message exists. gain: None where the
    receiver was not run alone. left_out: how many documents failed in either run and are therefore in
    neither vector. failed: why nothing is judged. ambiguous: why there is no deranged run.
    gain_bounds: the gain with the documents that failed counted all for and all against it.
    """

    matched: np.ndarray
    deranged: np.ndarray | None
    gain: Paired | None = None
    left_out: int = 0
    failed: str = ""
    ambiguous: str = ""
    gain_bounds: Sequence[Paired] = ()


class Verdict(NamedTuple):
    """One run's verdict.

    text: a sentence for people. content, gain: the two differences. p: two-sided, of no content;
    p_equivalence: of a content of delta or more, either way; gain.p: of no gain; each `…_holm`:
    adjusted over all tests of its kind. matched, deranged: mean scores. detectable: the smallest
    content that is shown with power 0.8 at the strictest step of the correction; NaN where none is.
    family: how many runs were tested together.
    """

    label: Label
    text: str
    content: Difference
    gain: Difference | None
    p: float
    p_holm: float
    p_equivalence: float
    p_equivalence_holm: float
    p_gain_holm: float
    matched: float
    deranged: float
    detectable: float
    family: int


class _Chances(NamedTuple):
    """The p-values that a label rests on: of no content, of content, of no gain."""

    content: float
    equivalence: float
    gain: float


def verdict(matched: Scores, deranged: Scores, delta: float = DELTA) -> Verdict:
    """The verdict on one run alone, without a gain."""
    import numpy as np

    return judge([Evidence(np.asarray(matched, dtype=float), np.asarray(deranged, dtype=float))], delta)[0]


def judge(family: Sequence[Evidence], delta: float = DELTA, alpha: float = 0.05) -> list[Verdict]:
    """A verdict for each run, in order.

    Three families of tests, each Holm-corrected by itself: content, equivalence and gain.

    "communicates": content is shown (adjusted p below alpha) and its interval lies above 0;
    "misleads": below 0. "adapts only": content is shown to be equivalent to none within `delta`
    (two one-sided tests), and a gain is shown. "does not communicate": the same without gain. Else
    "undecided"; without a deranged run "untested"; where too many documents failed "not judged". The few
    that failed are left out, and every p-value is the largest of leaving them out and of counting them
    all for or all against: failures cannot make a claim.
    """
    contents = [
        paired(e.matched, e.deranged) if e.deranged is not None and len(e.deranged) and not e.failed else None
        for e in family
    ]
    gains = [e.gain if e.gain is not None and e.gain.n and not e.failed else None for e in family]
    alone = [
        _Chances(*_bounded(e, pair, delta), largest_p([gain, *e.gain_bounds]) if gain else math.nan)
        for e, pair, gain in zip(family, contents, gains, strict=True)
    ]
    together = map(_Chances, *(holm(ps) for ps in zip(*alone, strict=True))) if alone else ()
    sizes = sum(pair is not None for pair in contents), sum(gain is not None for gain in gains)
    whole = zip(family, contents, gains, alone, together, strict=True)
    return [
        _judge(e, pair, gain, (single, adjusted), sizes, delta, alpha)
        for e, pair, gain, single, adjusted in whole
    ]


def _bounded(evidence: Evidence, pair: Paired | None, delta: float) -> tuple[float, float]:
    """p of no content and of content, at their largest for any outcome of the documents that failed."""
    if pair is None or evidence.deranged is None:
        return math.nan, math.nan
    cases = [pair, *bounds(evidence.matched, evidence.deranged, evidence.left_out)]
    return largest_p(cases), max(equivalence_p(case, delta) for case in cases)


def bounds(a: np.ndarray, b: np.ndarray, left_out: int) -> list[Paired]:
    """Returns both ends of a difference for documents that failed: all for b, then all for a."""
    import numpy as np

    if not left_out:
        return []
    ends = np.zeros(left_out), np.ones(left_out)
    return [paired(np.append(a, mine), np.append(b, theirs)) for mine, theirs in (ends, ends[::-1])]


def largest_p(cases: Sequence[Paired]) -> float:
    """Returns the largest p of no difference; 1 where the cases point both ways."""
    agree = len({case.value > 0 for case in cases}) == 1
    return max(case.p() for case in cases) if agree else 1.0


def _judge(
    evidence: Evidence,
    pair: Paired | None,
    gained: Paired | None,
    chances: tuple[_Chances, _Chances],
    sizes: tuple[int, int],
    delta: float,
    alpha: float,
) -> Verdict:
    single, adjusted = chances
    tests, gain_tests = sizes
    content = difference(pair, 1 - alpha) if pair else Difference(math.nan, math.nan, math.nan, 0, math.nan)
    gain = difference(gained, 1 - alpha) if gained else None
    visible = smallest_visible(pair, alpha / tests) if pair else math.nan
    own, other = (
        float(x.mean()) if x is not None and len(x) else math.nan
        for x in (evidence.matched, evidence.deranged)
    )
    label: Label = _label(content, gain, adjusted, alpha) if pair else "untested"
    if evidence.failed:
        label = "not judged"
    if pair:
        said = _said(label, pair.n, delta, adjusted.equivalence < alpha)
        facts = _facts(label, content, single, adjusted, tests, alpha)
        text = f"{said}: matched {100 * own:.1f}, deranged {100 * other:.1f} ({facts})"
    elif evidence.failed:
        text = f"not judged: {evidence.failed}"
    elif evidence.ambiguous:
        text = f"untested: {evidence.ambiguous}"
    else:
        text = "untested: no document was run with another document's message; add --control deranged"
    if evidence.left_out and not evidence.failed:
        text += f" ({_left_out(evidence.left_out)})"
    if label == "undecided":
        shown = f"smallest visible effect {_points(visible)}"
        text += f"; {shown if visible == visible else f'no effect would be visible at n={content.n:,}'}"
    if pair:
        text += _without_holm(label, _label(content, gain, single, alpha), single, adjusted, sizes, alpha)
    if gain:
        text += f"; {_gain_text(gain, adjusted.gain < alpha)}"
    tested = (single.content, adjusted.content, single.equivalence, adjusted.equivalence, adjusted.gain)
    return Verdict(label, text, content, gain, *tested, own, other, visible, tests)


def _label(content: Difference, gain: Difference | None, p: _Chances, alpha: float) -> Label:
    if p.content < alpha and content.low > 0:
        return "communicates"
    if p.content < alpha and content.high < 0:
        return "misleads"
    if p.equivalence < alpha:
        return (
            "adapts only" if gain is not None and gain.low > 0 and p.gain < alpha else "does not communicate"
        )
    return "undecided"


def _said(label: Label, n: int, delta: float, small: bool) -> str:
    within = f"within {_points(delta)}"
    return {
        "communicates": "communicates" + (f", though less than {_points(delta)}" if small else ""),
        "misleads": "misleads, another document's message serves better"
        + (f", though by less than {_points(delta)}" if small else ""),
        "adapts only": f"adapts only, another document's message helps as much ({within})",
        "does not communicate": f"nothing is communicated ({within})",
        "undecided": f"no communication shown, undecided at n={n:,}",
    }[label]


def _facts(
    label: Label, content: Difference, single: _Chances, adjusted: _Chances, tests: int, alpha: float
) -> str:
    """The number, its interval, and the p-value that the label rests on."""
    if label in ("adapts only", "does not communicate"):
        chance = "equivalence " + _chance(single.equivalence, adjusted.equivalence, tests)
    else:
        chance = _chance(single.content, adjusted.content, tests)
    interval = f"{100 * (1 - alpha):g} % {_range(content)}"
    return f"content {100 * content.value:+.1f}, {interval}, n={content.n:,}, {chance}"


def _without_holm(
    label: Label, alone: Label, single: _Chances, adjusted: _Chances, sizes: tuple[int, int], alpha: float
) -> str:
    """What the label would be without the correction, where it would be another."""
    if alone == label:
        return ""
    tests, gain_tests = sizes
    if adjusted.equivalence < alpha and alone == "adapts only":
        p, tests = single.gain, gain_tests
    else:
        p = single.content if alone in ("communicates", "misleads") else single.equivalence
    return f'; alone it would pass as "{alone}" ({_chance(p, p, 1)}), among {tests} tests it does not'


def _gain_text(gain: Difference, shown: bool) -> str:
    if shown and gain.high < 0:
        ends = f"{-100 * gain.high:.1f} to {-100 * gain.low:.1f}"
        return f"worse than the receiver alone by {-100 * gain.value:.1f}, {ends}"
    return f"gain over the receiver alone {100 * gain.value:+.1f}, {_range(gain)}"


def _left_out(count: int) -> str:
    what, verb = ("documents", "are") if count > 1 else ("document", "is")
    return f"{count:,} {what} failed in one of the runs and {verb} left out"


def _points(share: float) -> str:
    number = f"{100 * share:.1f}".removesuffix(".0")
    return f"{number} point" if number == "1" else f"{number} points"


def _range(found: Difference) -> str:
    return f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def _chance(p: float, p_holm: float, tests: int) -> str:
    told = _short(p if tests == 1 else p_holm)
    return f"p{told if told.startswith('<') else '=' + told}" + (
        f" corrected for {tests} tests" if tests > 1 else ""
    )


def _short(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"

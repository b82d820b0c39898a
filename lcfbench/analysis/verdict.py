"""Verdicts: gain and content of each run as a label and a sentence, corrected over all runs.

    from lcfbench.analysis.verdict import verdict
    verdict([1, 1, 0, 1] * 50, [1, 0, 0, 0] * 50).text

content P: matched − the worst control: deranged (the same documents with another document's message), or
zero, noise or silent where that was run too and scores better. gain G: matched
− the receiver alone. A gain without content is adaptation of the receiver, not communication.
Content below 0 is a message that misleads: the answers do depend on it. That nothing is
communicated is said only where content is shown to be equivalent to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from lcfbench.analysis.stats import (
    DELTA,
    Counts,
    Difference,
    Paired,
    Scores,
    difference,
    equivalence_p,
    holm,
    paired,
)
from lcfbench.analysis.stats.power import smallest_visible

if TYPE_CHECKING:
    import numpy as np

Label: TypeAlias = Literal[
    "communicates", "adapts only", "undecided", "does not communicate", "misleads", "untested", "not judged"
]
LABELS: tuple[Label, ...] = get_args(Label)  # best first

SENT = {  # by the control: what stands in the place of the own message
    "deranged": "another document's message",
    "zero": "a message of zeros",
    "noise": "a message of noise",
    "silent": "no message",
}


class Evidence(NamedTuple):
    """The data of a verdict: scores of the same documents, and the pair matched − receiver alone.

    deranged: None where no run with another document's message exists. gain: None where the
    receiver was not run alone. left_out: how many documents failed in either run and are therefore in
    neither vector. failed: why nothing is judged. ambiguous: why there is no deranged run.
    gain_bounds: the gain with the documents that failed counted all for and all against it. control: the
    one whose scores `deranged` holds; others: the same of further controls without content, if any.
    """

    matched: np.ndarray
    deranged: np.ndarray | None
    gain: Paired | None = None
    left_out: int = 0
    failed: str = ""
    ambiguous: str = ""
    gain_bounds: Sequence[Paired] = ()
    control: str = "deranged"
    others: Sequence[Evidence] = ()


class Verdict(NamedTuple):
    """One run's verdict.

    text: a sentence for people. content, gain: the two differences. p: two-sided, of no content;
    p_equivalence: of a content of delta or more, either way; gain.p: of no gain; each `…_holm`:
    adjusted over all tests of its kind. matched, deranged: mean scores. detectable: the smallest
    content that is shown with power 0.8 at the strictest step of the correction; NaN where none is.
    family: how many runs were tested together. control: the one that content is held against, the worst
    of `compared`; control_score: its mean.
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
    control: str = "deranged"
    control_score: float = math.nan
    compared: int = 1


class _Chances(NamedTuple):
    """The p-values that a label rests on: of no content, of content, of no gain."""

    content: float
    equivalence: float
    gain: float


class Weighed(NamedTuple):
    """One run's evidence without its scores: of thousands of runs these are in memory together.

    counts: of matched − the worst control; None where none was compared. alone: p-values before correction.
    """

    counts: Counts | None
    content: Difference
    gain: Difference | None
    alone: _Chances
    matched: float
    deranged: float
    left_out: int
    failed: str
    ambiguous: str
    control: str
    control_score: float
    compared: int


def verdict(matched: Scores, deranged: Scores, delta: float = DELTA) -> Verdict:
    """The verdict on one run alone, without a gain."""
    import numpy as np

    return judge([Evidence(np.asarray(matched, dtype=float), np.asarray(deranged, dtype=float))], delta)[0]


def judge(family: Iterable[Evidence], delta: float = DELTA, alpha: float = 0.05) -> list[Verdict]:
    """A verdict for each run, in order. One run's scores are looked at at a time.

    Three families of tests, each Holm-corrected by itself: content, equivalence and gain.

    "communicates": content is shown (adjusted p below alpha) and its interval lies above 0;
    "misleads": below 0. "adapts only": content is shown to be equivalent to none within `delta`
    (two one-sided tests), and a gain is shown. "does not communicate": the same without gain. Else
    "undecided"; without a deranged run "untested"; where too many documents failed "not judged". The few
    that failed are left out, and every p-value is the largest of leaving them out and of counting them
    all for or all against: failures cannot make a claim.
    """
    weighed = [_weigh(evidence, delta, alpha) for evidence in family]
    corrected = [holm(ps) for ps in zip(*(one.alone for one in weighed), strict=True)]
    sizes = sum(one.counts is not None for one in weighed), sum(one.gain is not None for one in weighed)
    return [
        _judge(one, _Chances(*adjusted), sizes, delta, alpha)
        for one, adjusted in zip(weighed, zip(*corrected, strict=True), strict=True)
    ]


def _weigh(evidence: Evidence, delta: float, alpha: float) -> Weighed:
    pair, worst, chances, compared = _against_the_worst(evidence, delta)
    gain = evidence.gain if evidence.gain is not None and evidence.gain.n and not evidence.failed else None
    p_gain = largest_p([gain, *evidence.gain_bounds]) if gain else math.nan
    own, deranged, other = (
        float(x.mean()) if x is not None and len(x) else math.nan
        for x in (worst.matched, evidence.deranged, worst.deranged)
    )
    return Weighed(
        pair.counts if pair else None,
        difference(pair, 1 - alpha) if pair else Difference(math.nan, math.nan, math.nan, 0, math.nan),
        difference(gain, 1 - alpha) if gain else None,
        _Chances(*chances, p_gain),
        own,
        deranged,
        worst.left_out,
        evidence.failed,
        evidence.ambiguous,
        worst.control,
        other,
        compared,
    )


def _against_the_worst(
    evidence: Evidence, delta: float
) -> tuple[Paired | None, Evidence, tuple[float, float], int]:
    """Returns content against the control that scores best, the p-values, and how many controls there are.

    That content is above 0 is claimed against every control, so its p is the largest (an
    intersection-union test needs no correction). That it is below 0, or none, is claimed against the one
    that was picked among k, so p is k times its own.
    """
    if evidence.deranged is None or not len(evidence.deranged) or evidence.failed:
        return None, evidence, (math.nan, math.nan), 0
    every = [evidence, *(o for o in evidence.others if o.deranged is not None and len(o.deranged))]
    found = []
    for each in every:
        assert each.deranged is not None
        pair = paired(each.matched, each.deranged)
        found.append((pair, each, _bounded(each, pair, delta)))
    pair, worst, (content, equivalence) = min(found, key=lambda one: one[0].value)
    each_p = [chances[0] for _, _, chances in found]
    content = max(each_p) if pair.value > 0 else min(1.0, len(found) * content)
    return pair, worst, (content, min(1.0, len(found) * equivalence)), len(found)


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


def _judge(found: Weighed, adjusted: _Chances, sizes: tuple[int, int], delta: float, alpha: float) -> Verdict:
    tests, gain_tests = sizes
    pair, content, gain, single = found.counts, found.content, found.gain, found.alone
    visible = smallest_visible(pair, alpha / tests) if pair else math.nan
    own, other = found.matched, found.control_score
    label: Label = _label(content, gain, adjusted, alpha) if pair else "untested"
    if found.failed:
        label = "not judged"
    if pair:
        said = _said(label, pair.n, delta, adjusted.equivalence < alpha, found.control)
        facts = _facts(label, content, single, adjusted, tests, alpha)
        text = f"{said}: matched {100 * own:.1f}, {found.control} {100 * other:.1f} ({facts})"
        if found.compared > 1:
            text += f"; {found.control} is the worst of {found.compared} controls"
    elif found.failed:
        text = f"not judged: {found.failed}"
    elif found.ambiguous:
        text = f"untested: {found.ambiguous}"
    else:
        text = "untested: no document was run with another document's message; add --control deranged"
    if found.left_out and not found.failed:
        text += f" ({_left_out(found.left_out)})"
    if label == "undecided":
        shown = f"smallest visible effect {_points(visible)}"
        text += f"; {shown if visible == visible else f'no effect would be visible at n={content.n:,}'}"
    if pair:
        text += _without_holm(label, _label(content, gain, single, alpha), single, adjusted, sizes, alpha)
    if gain:
        text += f"; {_gain_text(gain, adjusted.gain < alpha)}"
    tested = (single.content, adjusted.content, single.equivalence, adjusted.equivalence, adjusted.gain)
    return Verdict(label, text, content, gain, *tested, own, found.deranged, visible, tests, *_held(found))


def _held(found: Weighed) -> tuple[str, float, int]:
    """The control that content is held against, its score, and how many were compared."""
    return found.control, found.control_score, found.compared


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


def _said(label: Label, n: int, delta: float, small: bool, control: str) -> str:
    other = SENT[control]
    within = f"within {_points(delta)}"
    return {
        "communicates": "communicates" + (f", though less than {_points(delta)}" if small else ""),
        "misleads": f"misleads, {other} serves better"
        + (f", though by less than {_points(delta)}" if small else ""),
        "adapts only": f"adapts only, {other} helps as much ({within})",
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

"""Does anything cross? Gain and content of each run put into one of five words and a sentence, corrected over all that is shown.

    from lcfbench.analysis.verdict import verdict
    verdict([1, 1, 0, 1] * 50, [1, 0, 0, 0] * 50).text

content P: matched − deranged (the same documents with another document's message). gain G: matched − the receiver alone. A gain without
content is adaptation of the receiver, not communication.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from lcfbench.analysis.stats import DELTA, Difference, Paired, Scores, detectable, difference, equivalence_p, holm, paired

if TYPE_CHECKING:
    import numpy as np

Label: TypeAlias = Literal["communicates", "adapts only", "does not communicate", "undecided", "untested"]


class Evidence(NamedTuple):
    """What a verdict rests on: scores of the same documents, in the same order, and the pair matched − receiver alone.

    deranged: None where no run with another document's message exists. gain: None where the receiver was not run alone.
    """

    matched: np.ndarray
    deranged: np.ndarray | None
    gain: Paired | None = None


class Verdict(NamedTuple):
    """One run's verdict.

    text: a sentence for people. content, gain: the two differences. p: two-sided, of no content; p_holm: adjusted over the `family`
    (the number of runs tested together); p_equivalence: of a content of delta or more. matched, deranged: mean scores.
    detectable: the smallest content this n shows with power 0.8 at the strictest step of the correction.
    """

    label: Label
    text: str
    content: Difference
    gain: Difference | None
    p: float
    p_holm: float
    p_equivalence: float
    matched: float
    deranged: float
    detectable: float
    family: int


def verdict(matched: Scores, deranged: Scores, delta: float = DELTA) -> Verdict:
    """The verdict on one run alone, without a gain."""
    import numpy as np

    return verdicts([Evidence(np.asarray(matched, dtype=float), np.asarray(deranged, dtype=float))], delta)[0]


def verdicts(family: Sequence[Evidence], delta: float = DELTA, alpha: float = 0.05) -> list[Verdict]:
    """A verdict for each run, in order, Holm-corrected over those that were tested.

    "communicates": adjusted p below alpha and content's interval above 0. "adapts only": content is equivalent to none within `delta`
    (two one-sided tests at alpha) or below 0, while the gain's interval lies above 0. "does not communicate": the same without gain.
    Else "undecided"; without a deranged run "untested".
    """
    contents = [paired(e.matched, e.deranged) if e.deranged is not None and len(e.deranged) else None for e in family]
    ps = [pair.p() if pair else math.nan for pair in contents]
    tests = sum(pair is not None for pair in contents)
    told = zip(family, contents, ps, holm(ps), strict=True)
    return [_judge(e, pair, p, p_holm, tests, delta, alpha) if pair else _untested(e, tests) for e, pair, p, p_holm in told]


def smallest_visible(pair: Paired, alpha: float = 0.05) -> float:
    """The smallest difference that as many documents of this spread show with power 0.8; NaN without documents."""
    if not pair.n:
        return math.nan
    spread = max(pair.spread, math.sqrt(1 / pair.n))  # documents that all agree are no proof of none
    return detectable(spread, pair.n, alpha) + (1 / pair.n if pair.binary else 0)  # an exact test asks for one document more


def _untested(evidence: Evidence, tests: int) -> Verdict:
    none = Difference(math.nan, math.nan, math.nan, 0, math.nan)
    mean = float(evidence.matched.mean()) if len(evidence.matched) else math.nan
    gain = difference(evidence.gain) if evidence.gain else None
    text = "untested: no document was run with another document's message; add --control deranged"
    return Verdict("untested", text, none, gain, math.nan, math.nan, math.nan, mean, math.nan, math.nan, tests)


def _judge(evidence: Evidence, pair: Paired, p: float, p_holm: float, tests: int, delta: float, alpha: float) -> Verdict:
    assert evidence.deranged is not None
    content = difference(pair, 1 - alpha)
    gain = difference(evidence.gain, 1 - alpha) if evidence.gain else None
    p_equivalence = equivalence_p(pair, delta)
    visible = smallest_visible(pair, alpha / tests)
    own, other = float(evidence.matched.mean()), float(evidence.deranged.mean())
    alone = content.low > 0 and p < alpha
    gains = gain is not None and gain.low > 0
    label: Label
    if alone and p_holm < alpha:
        label = "communicates"
    elif content.high < 0 or p_equivalence < alpha:
        label = "adapts only" if gains else "does not communicate"
    else:
        label = "undecided"
    within = f"within {_points(delta)}"
    said = {
        "communicates": "communicates" + (f", though less than {_points(delta)}" if p_equivalence < alpha else ""),
        "adapts only": "adapts only, another document's message helps as much",
        "does not communicate": f"nothing is communicated ({within})",
        "undecided": f"no communication shown, undecided at n={pair.n:,}",
    }[label]
    if content.high < 0:
        said = "adapts only, its own message does harm" if gains else "nothing is communicated, its own message does harm"
    facts = [
        f"content {100 * content.value:+.1f}",
        f"{100 * (1 - alpha):g} % {_range(content)}",
        f"n={pair.n:,}",
        _chance(p, p_holm, tests),
    ]
    text = f"{said}: matched {100 * own:.1f}, deranged {100 * other:.1f} ({', '.join(facts)})"
    if label == "adapts only" and gain:
        text += f"; gain over the receiver alone {100 * gain.value:+.1f}, {_range(gain)}"
    if label == "undecided":
        text += f"; smallest visible effect {_points(visible)}"
    if alone and label != "communicates":
        text += f"; alone it would pass (p={_short(p)}), among {tests} tests it does not"
    return Verdict(label, text, content, gain, p, p_holm, p_equivalence, own, other, visible, tests)


def _points(share: float) -> str:
    number = f"{100 * share:.1f}".removesuffix(".0")
    return f"{number} point" if number == "1" else f"{number} points"


def _range(found: Difference) -> str:
    return f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def _chance(p: float, p_holm: float, tests: int) -> str:
    told = _short(p if tests == 1 else p_holm)
    return f"p{told if told.startswith('<') else '=' + told}" + (f" after Holm over {tests}" if tests > 1 else "")


def _short(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"

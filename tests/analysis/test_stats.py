"""Statistics against the literature, scipy, and the arithmetic that ties p to intervals."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest, bootstrap, norm, skew

from lcfbench.analysis.stats import Paired, equivalence_p, holm, mean_interval, paired, paired_difference
from lcfbench.analysis.stats.bootstrap import FLOOR, RESAMPLED, RESAMPLES, TIE, bca
from lcfbench.analysis.stats.power import NEVER, mcnemar_power, needed, smallest_visible
from lcfbench.analysis.stats.proportions import mcnemar, sign_test, tango, tango_z, wilson
from lcfbench.analysis.verdict import LABELS, Evidence, Label, Verdict, judge, verdict


def answers(gained: int, lost: int, right: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 vectors: `right` are right in both."""
    a, b = np.zeros(n), np.zeros(n)
    a[: gained + right] = 1
    b[gained : gained + right + lost] = 1
    return a, b


def scores(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Like token F1: not only 0 and 1, half of the documents alike."""
    rng = np.random.default_rng(seed)
    a = rng.beta(0.5, 0.5, n)
    return a, np.where(rng.random(n) < 0.5, a, np.clip(rng.beta(0.5, 0.5, n) - 0.05, 0, 1))


# -- counts


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (29, 263), (176, 500)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    assert wilson(k, n) == pytest.approx(tuple(binomtest(k, n).proportion_ci(method="wilson")), abs=1e-12)


def test_tango_and_mcnemar_on_published_data() -> None:
    # Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2014, table V: 1 and 7 discordant of 21 pairs.
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango(7, 1, 21) == pytest.approx((0.026, 0.517), abs=5e-4)
    z2 = 1.959963984540054**2
    assert tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9)
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5) and mcnemar(0, 0) == 1.0
    # Cavo et al. 2012, as in Fagerland, Lydersen and Laake 2013 (BMC Med Res Methodol 13:91)
    assert mcnemar(6, 16) == pytest.approx(0.0525, abs=5e-5)


@pytest.mark.parametrize(("b", "c"), [(3, 3), (7, 1), (0, 9), (40, 61), (2, 40), (499_000, 501_000)])
def test_the_sign_test_is_scipys_binomial(b: int, c: int) -> None:
    for side in ("two-sided", "greater", "less"):
        assert sign_test(b, c, side) == pytest.approx(binomtest(b, b + c, alternative=side).pvalue, rel=1e-8)


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"),
    [(7, 1, 21, 0.1), (7, 1, 21, -0.2), (0, 3, 44, -0.1), (12, 9, 200, 0.02), (5, 0, 30, 0.4)],
)
def test_tangos_statistic_is_the_score_at_the_restricted_maximum(
    b: int, c: int, n: int, margin: float
) -> None:
    """Maximises the multinomial likelihood under p(gained) − p(lost) = margin numerically."""

    def loss(q: float) -> float:  # q = p(lost)
        told = ((b, q + margin), (c, q), (n - b - c, 1 - 2 * q - margin))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in told if k)

    best = minimize_scalar(
        loss, bounds=(max(0.0, -margin), (1 - margin) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    expected = (b - c - n * margin) / math.sqrt(n * (2 * best + margin * (1 - margin)))
    assert tango_z(b, c, n, margin) == pytest.approx(expected, abs=1e-5)
    low = brentq(lambda m: tango_z(b, c, n, m) - norm.isf(0.05), -0.999, 0.999)
    assert tango(b, c, n, 0.90)[0] == pytest.approx(low, abs=1e-9)


# -- scores that are not only 0 and 1


def test_intervals_of_scores_that_are_not_binary() -> None:
    values = np.random.default_rng(3).beta(0.4, 0.6, 300)
    got = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(300)
    assert got == mean_interval(values)  # seeded
    assert got.low == pytest.approx(values.mean() - half, abs=0.005) and got.high == pytest.approx(
        values.mean() + half, abs=0.005
    )
    same = paired_difference(values, values)
    assert (
        same.value == 0 and same.low < 0 < same.high
    )  # equal scores on 300 documents are no proof of equality
    assert math.isnan(mean_interval([]).value) and math.isnan(paired_difference([], []).p)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
@pytest.mark.parametrize(("n", "power"), [(40, 1), (300, 1), (300, 9)])  # to the ninth power: skewed
def test_bca_is_scipys(n: int, power: int, confidence: float) -> None:
    x = np.random.default_rng(n).beta(0.4, 0.6, n) ** power
    options = {
        "n_resamples": RESAMPLES,
        "confidence_level": confidence,
        "method": "BCa",
        "rng": np.random.default_rng(0),
    }
    assert bca(x).interval(confidence) == pytest.approx(
        tuple(bootstrap((x,), np.mean, **options).confidence_interval), abs=1e-9
    )
    a, b = x, np.zeros(n)
    assert paired(a, b).interval(confidence) == bca(x).interval(confidence)


def means_at(x: np.ndarray, resamples: int) -> np.ndarray:
    """Bootstrap means of a vector with few distinct values, drawn as counts."""
    values, counts = np.unique(x, return_counts=True)
    return np.sort(
        np.random.default_rng(1).multinomial(len(x), counts / len(x), size=resamples) @ values / len(x)
    )


@pytest.mark.parametrize(
    ("n", "off"), [(301, 0.06), (1000, 0.025), (5000, 0.02)]
)  # 10,000 resamples scatter by 0.02 to 0.05 themselves
@pytest.mark.parametrize("kind", ["even", "skewed", "seldom"])
def test_the_closed_form_agrees_with_resampling(kind: str, n: int, off: float) -> None:
    rng = np.random.default_rng(5)
    x = {
        "even": np.round(rng.beta(0.4, 0.6, n) * 20) / 20,
        "skewed": np.round(rng.beta(0.2, 3, n) ** (4 if n > 1000 else 2) * 20) / 20,
        "seldom": np.r_[np.zeros(n - n // 10), np.full(n // 10 - n // 30, 0.6), np.full(n // 30, -0.3)],
    }[kind]
    assert n > RESAMPLED
    closed = bca(x)
    means = means_at(x, 300_000)
    z0 = norm.ppf(((means < x.mean() - TIE).mean() + (means < x.mean() + TIE).mean()) / 2)
    z, acceleration = z0 + norm.ppf([0.025, 0.975]), skew(x) / (6 * math.sqrt(n))
    drawn = np.quantile(means, norm.cdf(z0 + z / (1 - acceleration * z)))
    assert closed.interval() == pytest.approx(tuple(drawn), abs=off * (drawn[1] - drawn[0]) / 2)
    assert closed.p(drawn[0]) == pytest.approx(0.05, abs=0.15 * off + 0.002) and closed.p(
        drawn[1], "less"
    ) == pytest.approx(0.025, abs=0.1 * off + 0.001)


def test_few_documents_that_differ_are_counted() -> None:
    """Three scores that differ, all for the better, of 300: chance does that one time in four."""
    a = np.full(300, 0.5)
    b = a.copy()
    b[:3] -= [0.5, 0.4, 0.3]
    got = paired(a, b)
    assert got.p() == mcnemar(3, 0) == 0.25 and got.p(side="greater") == 0.125
    assert bca(a - b).p() < 0.05 and got.interval()[0] < 0 < got.interval()[1]
    assert got.interval()[0] == pytest.approx(0.5 * tango(3, 0, 300)[0])


# -- p-values and intervals say the same


PAIRS = {
    "counts": answers(40, 25, 100, 300),
    "few counts": answers(2, 0, 10, 30),
    "resampled": scores(1),
    "skewed": (np.random.default_rng(2).beta(0.2, 3, 80), np.zeros(80)),
    "closed": scores(3, 6000),
    "few differ": (
        np.r_[np.random.default_rng(4).random(12), np.full(188, 0.4)],
        np.r_[np.random.default_rng(5).random(12), np.full(188, 0.4)],
    ),
    "all alike": (np.full(50, 0.7), np.full(50, 0.6)),
    "equal": (np.full(50, 0.7), np.full(50, 0.7)),
}


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("name", PAIRS)
def test_at_the_interval_ends_p_is_alpha(name: str, confidence: float) -> None:
    got, alpha = paired(*PAIRS[name]), 1 - confidence
    low, high = got.interval(confidence)
    assert low < got.value < high
    counted = got.binary or got.few or got.spread < TIE  # then exact, which may only ask for more
    for margin, side in ((low, "greater"), (high, "less")):
        assert got.p(margin, side) >= alpha / 2 - 1e-6
        assert got.p(margin, side) < alpha / 2 + 1e-6 or (
            counted and got.p(margin, side) < (0.75 * alpha if got.binary else 0.2)
        )
        assert got.p(margin) == pytest.approx(2 * got.p(margin, side), rel=1e-4)
    for step in (1e-3, 0.01):  # a margin further away is rejected more surely
        assert got.p(low - step, "greater") <= got.p(low, "greater") <= got.p(low + step, "greater")
        assert got.p(high + step, "less") <= got.p(high, "less") <= got.p(high - step, "less")
    turned = paired(PAIRS[name][1], PAIRS[name][0])
    assert turned.value == -got.value and turned.p() == pytest.approx(got.p(), abs=0.02)


def test_p_at_margin_zero_is_exact_for_counts() -> None:
    got = paired(*answers(7, 1, 8, 21))
    assert (got.gained, got.lost, got.n, got.binary) == (7, 1, 21, True)
    assert got.p() == mcnemar(7, 1) and got.p(side="greater") == pytest.approx(
        binomtest(7, 8, alternative="greater").pvalue
    )
    assert (
        got.p(1e-9) >= 2 * norm.sf((7 - 1) / math.sqrt(8)) - 1e-6
    )  # any other margin: Tango's, here McNemar's score, or the exact one
    assert paired_difference(*answers(7, 1, 8, 21)).p == got.p() and got.spread == pytest.approx(
        np.std(np.r_[np.ones(7), -1, [0] * 13], ddof=1)
    )


def test_p_has_a_floor_where_it_comes_from_resampling_and_limits_everywhere() -> None:
    assert paired(np.linspace(0.5, 1, 100), np.zeros(100)).p(side="greater") == FLOOR
    for pair in map(lambda names: paired(*names), PAIRS.values()):
        for margin in (-1.0, 1.0, -2.0, 2.0):
            assert {pair.p(margin, "greater") < 0.01, pair.p(margin, "less") < 0.01} == {True, False}
        assert 0 <= pair.p() <= 1
    assert math.isnan(paired([], []).p()) and paired([1], [1]).p() == 1 and paired([0.5], [0.4]).p() == 1
    with pytest.raises(AssertionError, match="equal lengths"):
        paired([1, 0], [1])


# -- families, equivalence, sample sizes


def test_holm_on_a_textbook_vector() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = holm([0.01, math.nan, 0.04, 0.03, 0.005])
    assert math.isnan(with_gap[1]) and [p for p in with_gap if p == p] == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_equivalence_is_the_ninety_per_cent_interval_within_the_limits() -> None:
    for pair in (paired(*answers(300, 290, 300, 9000)), paired(*scores(4, 2000)), paired(*scores(5, 6000))):
        low, high = pair.interval(0.90)
        for delta in (0.01, 0.02, 0.03, 0.05):
            assert (equivalence_p(pair, delta) < 0.05) == (-delta < low and high < delta)
    few = paired(*answers(6, 6, 300, 800))  # where few answers changed, never sooner than the interval says
    delta = few.interval(0.90)[1]
    assert 0.05 <= equivalence_p(few, delta) < 0.06 and equivalence_p(few, delta + 0.001) < 0.05


def test_sample_sizes() -> None:
    n = ((1.959964 + 0.841621) * 0.5 / 0.05) ** 2
    assert needed(0.5, 0.05) == needed(0.5, -0.05) == math.ceil(n) and needed(0.5, 0.05, power=0.9) > n
    assert needed(0.5, 0.05, sides=1) < needed(0.5, 0.05) and needed(0.5, 0.0) == needed(0.5, 1e-30) == NEVER
    assert needed(0.0, 0.1) == 2


@pytest.mark.parametrize(
    ("gained", "lost", "n"),
    [(3, 1, 40), (5, 2, 64), (0, 0, 100), (30, 12, 100), (15, 9, 200), (40, 60, 1000)],
)
def test_the_smallest_visible_effect_has_the_power_it_promises(gained: int, lost: int, n: int) -> None:
    """Summed over all outcomes, besides the noise that was seen: half of what changed is lost."""
    effect, noise = smallest_visible(paired(*answers(gained, lost, 0, n))), (gained + lost) / n
    share, seen = noise + effect, 0.0
    for changed in range(n + 1):
        better = np.arange(changed // 2 + 1, changed + 1)
        better = better[2 * binom.sf(better - 1, changed, 0.5) < 0.05]
        seen += binom.pmf(changed, n, share) * binom.pmf(better, changed, (noise / 2 + effect) / share).sum()
    assert seen == pytest.approx(0.8, abs=1e-3) and mcnemar_power(effect, noise, n) == pytest.approx(
        0.8, abs=1e-3
    )


def test_where_no_effect_would_be_visible() -> None:
    assert math.isnan(smallest_visible(paired([], []))) and math.isnan(
        smallest_visible(paired(*answers(0, 0, 2, 4)))
    )
    assert (
        math.isnan(smallest_visible(paired(*answers(2, 1, 0, 5))))
        and smallest_visible(paired(*answers(0, 0, 2, 6))) < 1
    )
    assert math.isnan(
        smallest_visible(paired([0.5] * 4, [0.4] * 4))
    )  # scores ask for no less than counting does
    assert (
        smallest_visible(paired(*answers(20, 20, 0, 40))) < 0.5
    )  # all changed: what is gained was lost before
    exact, normal = (smallest_visible(paired(*answers(k, k, 0, 20_000))) for k in (1000, 1001))
    assert normal == pytest.approx(exact, rel=0.01)
    a, b = scores(6)
    pair = paired(a, b)
    effect = smallest_visible(pair)
    assert effect == pytest.approx(
        (1.959964 + 0.841621) * math.sqrt((pair.spread**2 + effect * (1 - effect)) / 300), rel=1e-5
    )
    assert smallest_visible(pair, 0.05 / 20) > effect


# -- verdicts


def of(gained: int, lost: int, n: int, gain: Paired | None = None) -> Evidence:
    return Evidence(*answers(gained, lost, n // 3, n), gain)


def test_verdicts() -> None:
    assert verdict([1] * 60 + [0] * 40, [1] * 30 + [0] * 70).label == "communicates"
    equal = [1, 0] * 250
    assert (
        verdict(equal, equal).label == "does not communicate"
        and "nothing is communicated" in verdict(equal, equal).text
    )
    few = verdict(equal[:20], equal[:20])
    assert few.label == "undecided" and "n=20" in few.text and few.detectable > 0.05
    assert verdict([1] * 30 + [0] * 70, [1] * 60 + [0] * 40).label == "misleads"
    assert verdict([], []).label == "untested" and judge([]) == []
    assert LABELS == (
        "communicates",
        "adapts only",
        "undecided",
        "does not communicate",
        "misleads",
        "untested",
        "not judged",
    )
    assert set(LABELS) == set(get_args(Label))


def test_what_a_verdict_says() -> None:
    got = judge([of(38, 3, 64), of(1, 1, 64), Evidence(np.ones(4), None), of(2, 0, 64)])
    assert [v.label for v in got] == ["communicates", "undecided", "untested", "undecided"]
    low, high = tango(38, 3, 64)
    assert got[0].text == (
        "communicates: matched 92.2, deranged 37.5 "
        f"(content +54.7, 95 % {100 * low:+.1f} to {100 * high:+.1f}, n=64, p<0.001 corrected for 3 tests)"
    )
    assert got[1].text.startswith(
        "no communication shown, undecided at n=64: matched 34.4, deranged 34.4 (content +0.0, 95 % "
    )
    assert (
        f"smallest visible effect {100 * got[1].detectable:.1f} points" in got[1].text
        and got[1].detectable > 0.06
    )
    assert (
        "--control deranged" in got[2].text
        and math.isnan(got[2].p_holm)
        and got[2].matched == 1
        and math.isnan(got[2].deranged)
    )
    assert [v.family for v in got] == [3] * 4 and got[3].p_holm == holm([v.p for v in got])[3]
    assert "Holm" not in verdict(np.ones(64), np.zeros(64)).text
    assert verdict([1, 0, 0, 0], [0, 0, 0, 0]).text.endswith("; no effect would be visible at n=4")


def test_documents_left_out_are_told() -> None:
    a, b = answers(38, 3, 10, 64)
    one, three, none = judge(
        [Evidence(a, b, None, 1), Evidence(a, b, paired(a, b), 3), Evidence(a[:0], b[:0], None, 64)]
    )
    assert one.text.endswith(" (1 document failed in one of the runs and is left out)")
    assert (
        " (3 documents failed in one of the runs and are left out); gain over the receiver alone +54.7"
        in three.text
    )
    assert none.label == "untested" and "(64 documents failed" in none.text


def test_the_gain_is_told_at_the_end_whatever_the_label() -> None:
    below, level, empty = (
        paired(*answers(2, 300, 200, 1000)),
        paired(*answers(50, 45, 200, 1000)),
        paired([], []),
    )
    contents = ((200, 50), (50, 50), (10, 10), (50, 200))
    got = judge([*(of(*pair, 1000, below) for pair in contents), Evidence(np.ones(4), None, below)])
    assert [v.label for v in got] == [
        "communicates",
        "undecided",
        "does not communicate",
        "misleads",
        "untested",
    ]
    low, high = (f"{-100 * end:.1f}" for end in reversed(tango(2, 300, 1000)))
    assert all(v.text.endswith(f"; worse than the receiver alone by 29.8, {low} to {high}") for v in got)
    assert "; gain over the receiver alone +0.5, -" in judge([of(200, 50, 1000, level)])[0].text
    assert "receiver alone" not in judge([of(200, 50, 1000, empty)])[0].text
    barely = paired(*answers(30, 50, 200, 1000))  # below 0 alone, not among twenty
    assert "worse than" in judge([of(10, 10, 1000, barely)])[0].text
    among = judge([of(10, 10, 1000, barely), *(of(10, 10, 1000, level) for _ in range(19))])[0]
    assert "worse than" not in among.text and among.text.endswith(f"{100 * barely.interval()[1]:+.1f}")


def test_gain_tells_adaptation_from_nothing() -> None:
    gain, none = paired(*answers(120, 10, 200, 1000)), paired(*answers(50, 45, 200, 1000))
    adapts, nothing, unknown = judge([of(10, 10, 1000, gain), of(10, 10, 1000, none), of(10, 10, 1000)])
    assert adapts.label == "adapts only" and "gain over the receiver alone +11.0" in adapts.text
    assert adapts.gain and adapts.gain.value == pytest.approx(0.11) and adapts.gain.low > 0
    assert (
        nothing.label == unknown.label == "does not communicate"
        and "within 2 points" in nothing.text
        and unknown.gain is None
    )
    misled = judge([of(10, 90, 1000, gain), of(10, 90, 1000), of(100, 200, 30_000)])
    assert {v.label for v in misled} == {"misleads"} and not any("nothing" in v.text for v in misled)
    assert "though by less than 2 points" in misled[2].text and "though" not in misled[1].text
    assert judge([of(10, 10, 100, gain)])[0].label == "undecided"  # a gain is no proof either way
    small = judge([of(40, 12, 10_000)])[0]
    assert small.label == "communicates" and "less than 2 points" in small.text


def test_holm_changes_labels_and_says_so() -> None:
    lucky = of(16, 5, 200)
    alone = judge([lucky])[0]
    assert alone.label == "communicates" and 0.01 < alone.p == alone.p_holm < 0.05
    many: list[Verdict] = judge([lucky, *(of(20, 20, 200) for _ in range(5))])
    assert (
        many[0].label == "undecided" and many[0].p == alone.p and many[0].p_holm == pytest.approx(6 * alone.p)
    )
    assert (
        'alone it would pass as "communicates" (p=0.027), among 6 tests it does not' in many[0].text
        and "among" not in many[1].text
    )
    assert many[0].detectable > alone.detectable  # the family asks for more
    strong = judge([of(60, 10, 200), *(of(20, 20, 200) for _ in range(5))])[0]
    assert strong.label == "communicates" and "corrected for 6 tests" in strong.text


def test_one_message_that_did_worse_by_chance_does_not_mislead_among_twenty() -> None:
    unlucky = of(1, 8, 100)
    assert judge([unlucky])[0].label == "misleads"
    got = judge([unlucky, *(of(5, 5, 100) for _ in range(19))])[0]
    assert got.label == "undecided" and got.p_holm == pytest.approx(20 * got.p)
    assert 'alone it would pass as "misleads" (p=0.039), among 20 tests it does not' in got.text


def test_equivalence_and_gain_are_corrected_as_families_of_their_own() -> None:
    barely, others = of(45, 45, 1000), [of(60, 60, 1000) for _ in range(19)]
    alone = judge([barely])[0]
    assert (
        alone.label == "does not communicate"
        and 0.001 < alone.p_equivalence == alone.p_equivalence_holm < 0.05
    )
    assert f"equivalence p={alone.p_equivalence:.3f})" in alone.text
    among = judge([barely, *others])[0]
    assert (
        among.label == "undecided"
        and among.p_equivalence_holm == pytest.approx(20 * among.p_equivalence)
        and among.p_holm == 1
    )
    assert (
        f'pass as "does not communicate" (p={alone.p_equivalence:.3f}), among 20 tests it does not'
        in among.text
    )
    gain, level = paired(*answers(20, 6, 200, 1000)), paired(*answers(50, 45, 200, 1000))
    assert gain.p() < 0.05 < 10 * gain.p()
    nothing = of(5, 5, 2000)
    assert judge([nothing._replace(gain=gain)])[0].label == "adapts only"
    weak = judge([nothing._replace(gain=gain), *(of(5, 5, 2000, level) for _ in range(9)), of(5, 5, 2000)])[0]
    assert (
        weak.label == "does not communicate"
        and weak.p_gain_holm == pytest.approx(10 * gain.p())
        and weak.family == 11
    )
    assert (
        f'alone it would pass as "adapts only" (p={gain.p():.3f}), among 10 tests it does not; gain over'
        in weak.text
    )


# -- cost


def test_a_million_documents_cost_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1_000_000))
    began = time.perf_counter()
    got = verdict(a, b)
    mean_interval(a)
    verdict(a.round(), b.round())
    assert time.perf_counter() - began < 1.5 and got.label == "does not communicate"


def test_numpy_and_scipy_stay_out_until_needed() -> None:
    code = "import sys, lcfbench.analysis.verdict; "
    code += "print([m for m in sys.modules if m in ('numpy', 'scipy', 'torch', 'pandas')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr

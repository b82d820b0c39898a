"""Statistics against fixed vectors: the literature's, scipy's, and the arithmetic that ties p-values to intervals."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, bootstrap, norm, skew

from lcfbench.analysis.stats import (
    NEVER,
    Paired,
    detectable,
    equivalence_p,
    holm,
    mcnemar,
    mean_interval,
    needed,
    paired,
    paired_difference,
    tango,
    wilson,
)
from lcfbench.analysis.stats.bootstrap import FLOOR, RESAMPLED, RESAMPLES, TIE, bca
from lcfbench.analysis.stats.proportions import sign_test, tango_z
from lcfbench.analysis.verdict import Evidence, Verdict, verdict, verdicts


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


# -- counts ----------------------------------------------------------------------------------------------------------------------------


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
    # Cavo et al. 2012, as in Fagerland, Lydersen and Laake 2013 (BMC Med Res Methodol 13:91): 6 and 16 discordant
    assert mcnemar(6, 16) == pytest.approx(0.0525, abs=5e-5)


@pytest.mark.parametrize(("b", "c"), [(3, 3), (7, 1), (0, 9), (40, 61), (2, 40), (499_000, 501_000)])
def test_the_sign_test_is_scipys_binomial(b: int, c: int) -> None:
    for side in ("two-sided", "greater", "less"):
        assert sign_test(b, c, side) == pytest.approx(binomtest(b, b + c, alternative=side).pvalue, rel=1e-8)


@pytest.mark.parametrize(
    ("b", "c", "n", "margin"), [(7, 1, 21, 0.1), (7, 1, 21, -0.2), (0, 3, 44, -0.1), (12, 9, 200, 0.02), (5, 0, 30, 0.4)]
)
def test_tangos_statistic_is_the_score_at_the_restricted_maximum(b: int, c: int, n: int, margin: float) -> None:
    """Maximise the multinomial likelihood under p(gained) − p(lost) = margin numerically, and take the score's variance there."""

    def loss(q: float) -> float:  # q = p(lost)
        told = ((b, q + margin), (c, q), (n - b - c, 1 - 2 * q - margin))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in told if k)

    best = minimize_scalar(loss, bounds=(max(0.0, -margin), (1 - margin) / 2), method="bounded", options={"xatol": 1e-12}).x
    expected = (b - c - n * margin) / math.sqrt(n * (2 * best + margin * (1 - margin)))
    assert tango_z(b, c, n, margin) == pytest.approx(expected, abs=1e-5)
    low = brentq(lambda m: tango_z(b, c, n, m) - norm.isf(0.05), -0.999, 0.999)
    assert tango(b, c, n, 0.90)[0] == pytest.approx(low, abs=1e-9)


# -- scores that are not only 0 and 1 --------------------------------------------------------------------------------------------------


def test_intervals_of_scores_that_are_not_binary() -> None:
    values = np.random.default_rng(3).beta(0.4, 0.6, 300)
    got = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(300)
    assert got == mean_interval(values)  # seeded
    assert got.low == pytest.approx(values.mean() - half, abs=0.005) and got.high == pytest.approx(values.mean() + half, abs=0.005)
    same = paired_difference(values, values)
    assert same.value == 0 and same.low < 0 < same.high  # equal scores on 300 documents are no proof of equality
    assert math.isnan(mean_interval([]).value) and math.isnan(paired_difference([], []).p)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
@pytest.mark.parametrize(("n", "power"), [(40, 1), (300, 1), (300, 9)])  # to the ninth power: skewed
def test_bca_is_scipys(n: int, power: int, confidence: float) -> None:
    x = np.random.default_rng(n).beta(0.4, 0.6, n) ** power
    options = {"n_resamples": RESAMPLES, "confidence_level": confidence, "method": "BCa", "rng": np.random.default_rng(0)}
    assert bca(x).interval(confidence) == pytest.approx(tuple(bootstrap((x,), np.mean, **options).confidence_interval), abs=1e-9)
    a, b = x, np.zeros(n)
    assert paired(a, b).interval(confidence) == bca(x).interval(confidence)


def means_at(x: np.ndarray, resamples: int) -> np.ndarray:
    """Bootstrap means of a vector with few distinct values, drawn as counts: many resamples in little time."""
    values, counts = np.unique(x, return_counts=True)
    return np.sort(np.random.default_rng(1).multinomial(len(x), counts / len(x), size=resamples) @ values / len(x))


@pytest.mark.parametrize(("n", "off"), [(301, 0.06), (1000, 0.025), (5000, 0.02)])  # 10,000 resamples scatter by 0.02 to 0.05 themselves
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
    assert closed.p(drawn[0]) == pytest.approx(0.05, abs=0.15 * off + 0.002) and closed.p(drawn[1], "less") == pytest.approx(
        0.025, abs=0.1 * off + 0.001
    )


def test_few_documents_that_differ_are_counted() -> None:
    """Three scores that differ, all for the better, of 300: chance does that one time in four."""
    a = np.full(300, 0.5)
    b = a.copy()
    b[:3] -= [0.5, 0.4, 0.3]
    got = paired(a, b)
    assert got.p() == mcnemar(3, 0) == 0.25 and got.p(side="greater") == 0.125
    assert bca(a - b).p() < 0.05 and got.interval()[0] < 0 < got.interval()[1]
    assert got.interval()[0] == pytest.approx(0.5 * tango(3, 0, 300)[0])


# -- p-values and intervals say the same -----------------------------------------------------------------------------------------------


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
    for margin, side in ((low, "greater"), (high, "less")):
        assert got.p(margin, side) == pytest.approx(alpha / 2, abs=1e-6)
        assert got.p(margin) == pytest.approx(alpha, abs=1e-6)
    for step in (1e-3, 0.01):  # a margin further away is rejected more surely
        assert got.p(low - step, "greater") < alpha / 2 < got.p(low + step, "greater")
        assert got.p(high + step, "less") < alpha / 2 < got.p(high - step, "less")
    turned = paired(PAIRS[name][1], PAIRS[name][0])
    assert turned.value == -got.value and turned.p() == pytest.approx(got.p(), abs=0.02)


def test_p_at_margin_zero_is_exact_for_counts() -> None:
    got = paired(*answers(7, 1, 8, 21))
    assert (got.gained, got.lost, got.n, got.binary) == (7, 1, 21, True)
    assert got.p() == mcnemar(7, 1) and got.p(side="greater") == pytest.approx(binomtest(7, 8, alternative="greater").pvalue)
    assert got.p(1e-9) == pytest.approx(2 * norm.sf((7 - 1) / math.sqrt(8)), abs=1e-6)  # any other margin: Tango's, here McNemar's score
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


# -- families, equivalence, sample sizes -----------------------------------------------------------------------------------------------


def test_holm_on_a_textbook_vector() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = holm([0.01, math.nan, 0.04, 0.03, 0.005])
    assert math.isnan(with_gap[1]) and [p for p in with_gap if p == p] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_equivalence_is_the_ninety_per_cent_interval_within_the_limits() -> None:
    # documents that all agree: z²/(n + z²) < 0.02 for z = 1.645 from n = 133 on
    assert equivalence_p(paired(np.ones(132), np.ones(132))) > 0.05 > equivalence_p(paired(np.ones(133), np.ones(133)))
    for pair in (paired(*answers(20, 22, 300, 800)), paired(*answers(12, 9, 300, 800)), paired(*scores(4, 2000)), paired(*scores(5, 6000))):
        low, high = pair.interval(0.90)
        for delta in (0.01, 0.02, 0.03, 0.05):
            assert (equivalence_p(pair, delta) < 0.05) == (-delta < low and high < delta)


def test_sample_sizes() -> None:
    assert detectable(0.5, 400) == pytest.approx((1.959964 + 0.841621) * 0.025, abs=1e-6)
    assert needed(0.5, detectable(0.5, 400)) == 400 and needed(0.5, -detectable(0.5, 400, power=0.9), power=0.9) == 400
    assert needed(0.5, 0.05, sides=1) < needed(0.5, 0.05) and needed(0.5, 0.0) == needed(0.5, 1e-30) == NEVER
    assert math.isnan(detectable(0.5, 0)) and needed(0.0, 0.1) == 2


# -- verdicts --------------------------------------------------------------------------------------------------------------------------


def of(gained: int, lost: int, n: int, gain: Paired | None = None) -> Evidence:
    return Evidence(*answers(gained, lost, n // 3, n), gain)


def test_verdicts() -> None:
    assert verdict([1] * 60 + [0] * 40, [1] * 30 + [0] * 70).label == "communicates"
    equal = [1, 0] * 250
    assert verdict(equal, equal).label == "does not communicate" and "nothing is communicated" in verdict(equal, equal).text
    few = verdict(equal[:20], equal[:20])
    assert few.label == "undecided" and "n=20" in few.text and few.detectable > 0.05
    assert verdict([1] * 30 + [0] * 70, [1] * 60 + [0] * 40).label == "does not communicate"
    assert verdict([], []).label == "untested"


def test_what_a_verdict_says() -> None:
    got = verdicts([of(38, 3, 64), of(1, 1, 64), Evidence(np.ones(4), None), of(2, 0, 64)])
    assert [v.label for v in got] == ["communicates", "undecided", "untested", "undecided"]
    low, high = tango(38, 3, 64)
    assert got[0].text == (
        f"communicates: matched 92.2, deranged 37.5 (content +54.7, 95 % {100 * low:+.1f} to {100 * high:+.1f}, n=64, "
        "p<0.001 after Holm over 3)"
    )
    assert got[1].text.startswith("no communication shown, undecided at n=64: matched 34.4, deranged 34.4 (content +0.0, 95 % ")
    assert f"smallest visible effect {100 * got[1].detectable:.1f} points" in got[1].text and got[1].detectable > 0.06
    assert "--control deranged" in got[2].text and math.isnan(got[2].p_holm) and got[2].matched == 1 and math.isnan(got[2].deranged)
    assert [v.family for v in got] == [3] * 4 and got[3].p_holm == holm([v.p for v in got])[3]
    assert "Holm" not in verdict(np.ones(64), np.zeros(64)).text


def test_gain_tells_adaptation_from_nothing() -> None:
    gain, none = paired(*answers(120, 10, 200, 1000)), paired(*answers(50, 45, 200, 1000))
    adapts, nothing, unknown = verdicts([of(10, 10, 1000, gain), of(10, 10, 1000, none), of(10, 10, 1000)])
    assert adapts.label == "adapts only" and "gain over the receiver alone +11.0" in adapts.text
    assert adapts.gain and adapts.gain.value == pytest.approx(0.11) and adapts.gain.low > 0
    assert nothing.label == unknown.label == "does not communicate" and "within 2 points" in nothing.text and unknown.gain is None
    harm = verdicts([of(10, 90, 1000, gain), of(10, 90, 1000)])
    assert [v.label for v in harm] == ["adapts only", "does not communicate"] and all("harm" in v.text for v in harm)
    assert verdicts([of(10, 10, 100, gain)])[0].label == "undecided"  # a gain is no proof either way
    small = verdicts([of(40, 12, 10_000)])[0]
    assert small.label == "communicates" and "less than 2 points" in small.text


def test_holm_changes_labels_and_says_so() -> None:
    lucky = of(16, 5, 200)
    alone = verdicts([lucky])[0]
    assert alone.label == "communicates" and 0.01 < alone.p == alone.p_holm < 0.05
    many: list[Verdict] = verdicts([lucky, *(of(20, 20, 200) for _ in range(5))])
    assert many[0].label == "undecided" and many[0].p == alone.p and many[0].p_holm == pytest.approx(6 * alone.p)
    assert "alone it would pass (p=0.027), among 6 tests it does not" in many[0].text and "among" not in many[1].text
    assert many[0].detectable > alone.detectable  # the family asks for more
    strong = verdicts([of(60, 10, 200), *(of(20, 20, 200) for _ in range(5))])[0]
    assert strong.label == "communicates" and "after Holm over 6" in strong.text


# -- cost ------------------------------------------------------------------------------------------------------------------------------


def test_a_million_documents_cost_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1_000_000))
    began = time.perf_counter()
    got = verdict(a, b)
    mean_interval(a)
    verdict(a.round(), b.round())
    assert time.perf_counter() - began < 1.5 and got.label == "does not communicate"


def test_numpy_and_scipy_stay_out_until_needed() -> None:
    code = "import sys, lcfbench.analysis.verdict; print([m for m in sys.modules if m in ('numpy', 'scipy', 'torch', 'pandas')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stderr

"""Content is held against the worst control that was run, honestly corrected."""

from __future__ import annotations

import numpy as np
import pytest

from lcfbench.analysis.verdict import Evidence, judge


def scores(right: int, n: int = 200) -> np.ndarray:
    return (np.arange(n) < right).astype(float)


def evidence(own: int, deranged: int, **others: int) -> Evidence:
    matched = scores(own)
    more = [Evidence(matched, scores(k), control=name) for name, k in others.items()]
    return Evidence(matched, scores(deranged), others=more)


def test_a_flattering_control_changes_nothing_but_names_the_worst():
    [alone], [both] = judge([evidence(150, 100)]), judge([evidence(150, 100, zero=10)])
    assert both.label == alone.label == "communicates" and both.content == alone.content
    assert both.control == alone.control == "deranged" and both.p == pytest.approx(alone.p)
    assert both.text == alone.text + "; deranged is the worst of 2 controls"


def test_a_method_that_passes_by_harm_of_the_wrong_message_fails_against_silence():
    [alone], [both] = judge([evidence(100, 60)]), judge([evidence(100, 60, silent=100)])
    assert alone.label == "communicates" and both.label != "communicates"
    assert both.control == "silent" and both.content.value == 0 and both.control_score == 0.5
    assert both.deranged == pytest.approx(0.3) and "silent 50.0" in both.text


def test_above_all_takes_the_largest_p_below_one_of_k_takes_k_times_its_own():
    [above] = judge([evidence(110, 100, silent=102)])
    assert above.control == "silent" and above.p == pytest.approx(judge([evidence(110, 102)])[0].p)
    [below], [single] = judge([evidence(100, 100, silent=106)]), judge([evidence(100, 106)])
    assert below.p == pytest.approx(min(1.0, 2 * single.p)) and single.label == "misleads"
    [three] = judge([evidence(100, 90, silent=130, noise=95)])
    assert three.label == "misleads" and "no message serves better" in three.text


def test_without_a_deranged_run_nothing_is_said():
    matched = scores(100)
    [found] = judge([Evidence(matched, None, others=[Evidence(matched, scores(10), control="zero")])])
    assert found.label == "untested"

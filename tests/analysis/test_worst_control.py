"""Content is held against the worst control that was run, honestly corrected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import summarise
from lcfbench.analysis.verdict import Evidence, judge
from tests.analysis.gate_runs import answers, record
from tests.helpers import invoke


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


def told(out: Path) -> tuple[str, str]:
    """The verdict and the note of the method's own run."""
    lines = summarise(read_run_groups([out]).groups).set_index(["mode", "control"])
    line = lines.loc["lcf", "matched"]
    return line["verdict_text"], line["note"]


HIGH, LOW, LOWER = (answers(200, share, seed=i) for i, share in enumerate((0.9, 0.4, 0.2)))


def recorded(out: Path, *controls: str, **more) -> None:
    record(out, HIGH, **more)
    for control in controls:
        record(out, LOW if control == "deranged" else LOWER, control=control)


def test_a_control_that_fits_is_counted_and_nothing_is_noted(tmp_path: Path) -> None:
    recorded(tmp_path, "deranged", "zero")
    assert told(tmp_path)[0].endswith("deranged is the worst of 2 controls") and told(tmp_path)[1] == ""


def test_a_control_in_which_too_many_failed_is_named(tmp_path: Path) -> None:
    recorded(tmp_path, "deranged")
    record(tmp_path, LOW, control="zero", errors=range(100))
    text, note = told(tmp_path)
    assert "worst of" not in text
    assert note.startswith("zero is not compared: 100 of 200 documents failed in lcf") and "(zero)" in note


def test_a_control_that_is_ambiguous_is_named(tmp_path: Path) -> None:
    recorded(tmp_path, "deranged", seed=7)
    for seed in (1, 2):
        record(tmp_path, answers(200, 0.5, seed=seed), control="noise", seed=seed, limit=seed)
    text, note = told(tmp_path)
    assert "worst of" not in text
    assert note.startswith("noise is not compared: 2 runs fit equally well") and "name one of them" in note


def test_a_control_of_other_settings_or_other_documents_is_named(tmp_path: Path) -> None:
    recorded(tmp_path, "deranged")
    record(tmp_path, LOW, control="silent", dtype="bfloat16")
    record(tmp_path, LOW, control="zero", prefix="else")
    assert told(tmp_path)[1] == (
        "zero is not compared: its zero run has none of these documents; "
        "silent is not compared: its silent run differs in dtype"
    )


def test_a_control_of_another_variant_that_has_its_own_run_is_not(tmp_path: Path) -> None:
    recorded(tmp_path, "deranged")
    record(tmp_path, HIGH, options={"layers": 3})
    for control in ("deranged", "zero"):
        record(tmp_path, LOW, control=control, options={"layers": 3})
    lines = summarise(read_run_groups([tmp_path]).groups)
    assert set(lines["note"]) == {""}


def test_without_a_fitting_deranged_run_the_verdict_says_what_differs(tmp_path: Path) -> None:
    recorded(tmp_path)
    record(tmp_path, LOW, control="deranged", dtype="bfloat16")
    assert told(tmp_path)[0] == "untested: its deranged run differs in dtype"


def test_controls_that_do_not_apply_are_named_where_the_verdict_is_printed(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    why = {"zero": "t2t sends no cache", "noise": "t2t sends no cache", "self": "both models are a"}
    recorded(tmp_path, "deranged", facts={"controls_left_out": why})
    note = "zero, noise do not apply: t2t sends no cache; self does not apply: both models are a"
    assert told(tmp_path)[1] == note
    code, out, _ = invoke(capsys, monkeypatch, "verdict", tmp_path, "--markdown")
    assert code == 0 and f"note: lcf (matched): {note}" in out

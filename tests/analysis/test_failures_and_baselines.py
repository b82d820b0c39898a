"""Failures make no claim, and a method is measured against the run of equal circumstances."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import summarise
from tests.analysis.gate_runs import answers, record

N = 400
LOW, HIGH = answers(N, 0.4, seed=1), answers(N, 0.9, seed=2)
CONTENT = {"communicates", "misleads", "adapts only", "does not communicate"}


def lines(out: Path) -> Any:
    return summarise(read_run_groups([out]).groups).set_index(["mode", "control"])


@pytest.mark.parametrize("failed", [range(350), range(40), range(0, N, 4), range(N)])
@pytest.mark.parametrize("where", [("matched",), ("deranged",), ("matched", "deranged")])
def test_many_failures_are_no_content(tmp_path: Path, where: tuple[str, ...], failed: Iterable[int]) -> None:
    for control in ("matched", "deranged"):
        shift = N // 2 if len(where) == 2 and control == "deranged" else 0  # other documents
        errors = [(i + shift) % N for i in failed] if control in where else []
        record(tmp_path, HIGH, control=control, errors=errors)
    line = lines(tmp_path).loc["lcf", "matched"]
    assert line["verdict"] == "not judged" and np.isnan(line["content"])
    assert "documents failed" in line["verdict_text"]


@pytest.mark.parametrize("side", ["matched", "deranged"])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_few_failures_cannot_make_a_claim(tmp_path: Path, side: str, count: int) -> None:
    right = np.flatnonzero(HIGH == 1)[:count]
    for control in ("matched", "deranged"):
        record(tmp_path, HIGH, control=control, errors=right if control == side else [])
    line = lines(tmp_path).loc["lcf", "matched"]
    assert line["content"] == 0 and line["content_n"] == N - count
    assert line["verdict"] not in ("communicates", "misleads")
    assert f"{count} document" in line["verdict_text"] and "left out" in line["verdict_text"]


def test_a_claim_stands_where_no_outcome_of_the_failures_would_undo_it(tmp_path: Path) -> None:
    record(tmp_path, HIGH, errors=[3])
    record(tmp_path, LOW, control="deranged")
    assert lines(tmp_path).loc["lcf", "matched"]["verdict"] == "communicates"


def test_a_receiver_that_failed_gives_no_gain(tmp_path: Path) -> None:
    record(tmp_path, HIGH)
    record(tmp_path, HIGH, mode="receiver", errors=range(350))
    line = lines(tmp_path).loc["lcf", "matched"]
    assert np.isnan(line["gain"]) and "350 of 400 documents failed in receiver" in line["note"]


OTHER: list[dict[str, Any]] = [
    {"batch_size": 1},
    {"batch_size": 64},
    {"version": "0.0.9"},
    {"versions": {"torch": "1.0"}},
    {"behaviour": 7},
]


@pytest.mark.parametrize("other", OTHER)
def test_gain_is_over_the_receiver_of_equal_circumstances(tmp_path: Path, other: dict[str, Any]) -> None:
    record(tmp_path, HIGH)
    record(tmp_path, HIGH, mode="receiver")
    record(tmp_path, LOW, mode="receiver", **other)
    line = lines(tmp_path).loc["lcf", "matched"]
    assert line["gain"] == 0 and line["note"] == ""


@pytest.mark.parametrize("control", ["matched", "deranged"])
def test_runs_that_fit_equally_well_are_not_chosen_from(tmp_path: Path, control: str) -> None:
    mode = "receiver" if control == "matched" else "lcf"
    record(tmp_path, HIGH)
    for size, scores in ((1, LOW), (64, HIGH)):
        record(tmp_path, scores, mode=mode, control=control, batch_size=size)
    line = lines(tmp_path).loc[("lcf", "matched")]
    text = line["note"] if control == "matched" else line["verdict_text"]
    assert "2 runs fit equally well" in text and "differ in batch_size" in text
    assert np.isnan(line["gain"]) and line["verdict"] == "untested"


def test_equal_answers_need_no_choice_and_the_one_other_run_is_named(tmp_path: Path) -> None:
    record(tmp_path, HIGH)
    record(tmp_path, LOW, mode="receiver", batch_size=1)
    line = lines(tmp_path).loc["lcf", "matched"]
    assert line["gain"] == HIGH.mean() - LOW.mean() and "batch_size 1, here 16" in line["note"]
    record(tmp_path, LOW, mode="receiver", batch_size=64)
    assert lines(tmp_path).loc["lcf", "matched"]["gain"] == HIGH.mean() - LOW.mean()


def test_a_deranged_run_of_another_adapter_is_no_twin(tmp_path: Path) -> None:
    record(tmp_path, HIGH)
    record(tmp_path, HIGH, adapter_sha256="e" * 64)
    record(tmp_path, LOW, adapter_sha256="e" * 64, control="deranged")
    found = read_run_groups([tmp_path]).groups
    told = dict(zip(summarise(found)["run_id"], summarise(found)["verdict"], strict=True))
    by_adapter = {(g.identity["adapter_sha256"][0], g.control): told[g.run_ids[0]] for g in found}
    assert by_adapter["c", "matched"] == "untested" and by_adapter["e", "matched"] == "communicates"

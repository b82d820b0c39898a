"""Failures make no claim, and a method is measured against the run of equal circumstances."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcfbench.analysis.plots.frontier import SENTENCES, draw
from lcfbench.analysis.report.sections import LEADS
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import _gain, summarise
from lcfbench.analysis.tables import STYLES, summary_tables
from lcfbench.analysis.verdict import LABELS, Evidence, judge
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


@pytest.mark.parametrize("side", ["receiver", "lcf"])
@pytest.mark.parametrize("count", [4, 12, 20])
def test_few_failures_cannot_make_a_gain(tmp_path: Path, side: str, count: int) -> None:
    """Ten documents gained of 400; the failures may have been as many losses."""
    alone = HIGH.copy()
    alone[np.flatnonzero(HIGH == 1)[:10]] = 0
    errors = np.flatnonzero(HIGH == 0)[:count]
    record(tmp_path, HIGH, errors=errors if side == "lcf" else [])
    record(tmp_path, HIGH, control="deranged")
    record(tmp_path, alone, mode="receiver", errors=errors if side == "receiver" else [])
    groups = read_run_groups([tmp_path]).groups
    group, *_ = (g for g in groups if (g.mode, g.control) == ("lcf", "matched"))
    gain = _gain(group, [g for g in groups if g.mode == "receiver"])
    assert gain.pair is not None and gain.pair.p() < 0.05 < max(pair.p() for pair in gain.ends)
    equal = Evidence(HIGH, HIGH, gain.pair, gain_bounds=gain.ends)
    assert judge([equal])[0].label == "does not communicate"
    assert judge([equal._replace(gain_bounds=())])[0].label == "adapts only"


def test_scores_of_failures_are_marked(tmp_path: Path) -> None:
    for mode, control, count in (
        ("receiver", "matched", 300),
        ("sharer", "matched", 0),
        ("lcf", "matched", 350),
        ("lcf", "deranged", 0),
        ("t2t", "matched", 20),
        ("t2t", "deranged", 21),
    ):
        record(tmp_path, HIGH, mode=mode, control=control, errors=range(count))
    summary = summarise(read_run_groups([tmp_path]).groups)
    found = summary.set_index(["mode", "control"])
    unsure = {("receiver", "matched"), ("lcf", "matched"), ("t2t", "deranged"), ("orf", "derived")}
    assert set(found.index[~found["reliable"].astype(bool)]) == unsure
    orf = found.loc["orf", "derived"]
    assert np.isnan(orf["score"]) and "300 of 400 documents failed in receiver" in orf["verdict_text"]
    (table,) = summary_tables(summary)
    starred = {(row[0], row[1]) for row in table.rows if str(row[3]).endswith("*")}
    assert starred == {("receiver", "matched"), ("lcf", "matched"), ("t2t", "deranged")}
    assert "*: over 5 %" in table.legend
    drawn = {text.get_text() for axes in draw(summary).axes for text in axes.texts}
    assert {"receiver: failed", "lcf: failed", "t2t (deranged): failed"} <= drawn
    words = " ".join(text.get_text() for text in draw(summary).texts)
    assert "lcf is not judged: 350 of 400 documents failed" in words
    assert "t2t (deranged): 21 of 400 documents failed" in words


@pytest.mark.parametrize("label", LABELS)
def test_every_label_has_a_colour_and_a_sentence(label: str) -> None:
    assert label in STYLES and label in SENTENCES
    assert label in LEADS or label == "misleads"


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


@pytest.mark.parametrize("mode", ["receiver", "sharer"])
def test_either_alone_is_of_runs_of_equal_circumstances(tmp_path: Path, mode: str) -> None:
    record(tmp_path, LOW, mode="receiver")
    record(tmp_path, HIGH, mode="sharer")
    record(tmp_path, np.ones(N), mode=mode, batch_size=64)
    assert lines(tmp_path).loc["orf", "derived"]["score"] == np.maximum(LOW, HIGH).mean()


def test_either_alone_of_several_that_fit_is_not_computed(tmp_path: Path) -> None:
    record(tmp_path, LOW, mode="receiver")
    for size, scores in ((1, HIGH), (64, np.ones(N))):
        record(tmp_path, scores, mode="sharer", batch_size=size)
    line = lines(tmp_path).loc["orf", "derived"]
    assert np.isnan(line["score"]) and "2 runs fit equally well" in line["verdict_text"]


LIMITS: list[list[int | None]] = [[32, 100], [100, 32], [None, 32], [400, 100]]


@pytest.mark.parametrize("limits", LIMITS)
def test_of_several_limits_the_one_with_the_documents_is_taken(tmp_path: Path, limits: list) -> None:
    """The receiver of the same limit, though a shorter one says otherwise of its few documents."""
    record(tmp_path, HIGH[: limits[0]], limit=limits[0])
    record(tmp_path, HIGH[: limits[0]], limit=limits[0], mode="receiver")
    record(tmp_path, LOW[: limits[1]], limit=limits[1], mode="receiver")
    line = lines(tmp_path).loc["lcf", "matched"]
    both = min(limits[0] or N, limits[1] or N)
    assert line["gain_n"] == (limits[0] or N) and (line["gain"] == 0 or both == limits[0])
    assert line["gain"] == 0, "equal limit is nearer than a longer run of as many shared documents"


SEEDS = [(0,), (0, 1), (0, 1, 2)]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("mode", ["lcf", "full_context", "oracle"])
def test_several_seeds_are_measured_against_the_same_seeds(
    tmp_path: Path, mode: str, seeds: tuple[int, ...]
) -> None:
    """A receiver of another batch size and seed beside changes nothing."""
    for seed in seeds:
        record(tmp_path, HIGH, mode=mode, seed=seed)
        record(tmp_path, HIGH, mode="receiver", seed=seed)
    record(tmp_path, LOW, mode="receiver", seed=9, batch_size=64)
    line = lines(tmp_path).loc[mode, "matched"]
    assert line["gain"] == 0 and line["seeds"] == len(seeds)


PLACES: list[dict[str, Any]] = [
    {"device": "cuda"},
    {"dtype": "bfloat16"},
    {"device": "cuda", "dtype": "float16"},
    {"attention": "eager"},
]


@pytest.mark.parametrize("other", PLACES)
@pytest.mark.parametrize("mode", ["receiver", "lcf"])
def test_a_run_of_another_machine_is_no_baseline(tmp_path: Path, mode: str, other: dict[str, Any]) -> None:
    """Only one was computed elsewhere: neither gain nor content is told from it."""
    control = "deranged" if mode == "lcf" else "matched"
    record(tmp_path, HIGH)
    record(tmp_path, LOW, mode=mode, control=control, **other)
    found = summarise(read_run_groups([tmp_path]).groups)
    line = found[(found["mode"] == "lcf") & (found["control"] == "matched")].iloc[0]
    assert np.isnan(line["gain"]) and line["verdict"] == "untested"
    record(tmp_path, HIGH, mode=mode, control=control)
    found = summarise(read_run_groups([tmp_path]).groups)
    line = found[(found["mode"] == "lcf") & (found["control"] == "matched")].iloc[0]
    assert (line["gain"] if mode == "receiver" else line["content"]) == 0


def test_two_adapters_of_which_one_is_deranged_are_told_apart(tmp_path: Path) -> None:
    """Each adapter is measured against the receiver, and only its own deranged run is its twin."""
    for digest, scores in (("c", HIGH), ("e", LOW)):
        record(tmp_path, scores, adapter_sha256=digest * 64)
    record(tmp_path, LOW, adapter_sha256="e" * 64, control="deranged")
    record(tmp_path, LOW, mode="receiver")
    found = read_run_groups([tmp_path]).groups
    told = summarise(found).set_index("run_id")
    by = {
        (g.identity["adapter_sha256"][0], g.control): told.loc[g.run_ids[0]] for g in found if g.mode == "lcf"
    }
    assert by["c", "matched"]["verdict"] == "untested" and by["c", "matched"]["gain"] > 0.3
    assert by["e", "matched"]["content"] == 0 and by["e", "matched"]["gain"] == 0


def test_a_deranged_run_of_another_adapter_is_no_twin(tmp_path: Path) -> None:
    record(tmp_path, HIGH)
    record(tmp_path, HIGH, adapter_sha256="e" * 64)
    record(tmp_path, LOW, adapter_sha256="e" * 64, control="deranged")
    found = read_run_groups([tmp_path]).groups
    told = dict(zip(summarise(found)["run_id"], summarise(found)["verdict"], strict=True))
    by_adapter = {(g.identity["adapter_sha256"][0], g.control): told[g.run_ids[0]] for g in found}
    assert by_adapter["c", "matched"] == "untested" and by_adapter["e", "matched"] == "communicates"

"""Averages of groups: the weights, the interval, what is missing, and what was published beside them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from lcfbench.analysis.groups import averages, joined, tables
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats import mean_interval
from lcfbench.analysis.summary import summarise
from lcfbench.api import Results
from lcfbench.tasks.groups import Group, find_group
from tests.analysis.frontier_runs import adapter, answers, record
from tests.helpers import invoke

PAIR = "qwen3-0.6b:qwen2.5-0.5b"
RIGHT = {"openbookqa": 40.0, "arc_challenge": 50.0, "mmlu_redux": 30.0, "mmlu_pro": 10.0, "ceval": 60.0}
LCF = ("mmlu_redux", "arc_challenge", "openbookqa", "mmlu_pro")


def asked(out: Path, task: str, n: int = 50, better: float = 0.0, **more: object) -> str:
    more = {"pair": PAIR, "scoring": "letters", **more}
    return record(out, answers(n, RIGHT[task] + better, task), task=task, **more)


def found(out: Path, *groups: Group):
    read = read_run_groups([out]).groups
    return averages(read, summarise(read), groups or None)


def only(out: Path, name: str, mode: str = "receiver", control: str = "matched"):
    group = find_group(name)
    assert group is not None
    [one] = [a for a in found(out, group) if a.weights and a.label.startswith(mode) and a.control == control]
    return one


def test_the_average_has_the_published_weights_whatever_was_run(tmp_path):
    for task, n in zip(LCF, (50, 100, 20, 30), strict=True):
        asked(tmp_path, task, n, limit=n)
    one = only(tmp_path, "lcf-shared")
    whole = 5700 + 1172 + 500 + 12032
    assert one.score == pytest.approx((5700 * 0.3 + 1172 * 0.5 + 500 * 0.4 + 12032 * 0.1) / whole)
    assert one.n == 200 and sum(one.weights.values()) == pytest.approx(1)
    assert any("mmlu_pro 30 of 12,032" in note for note in one.notes)
    equal = Group("equal", "", dict.fromkeys(LCF, 1.0), "equal")
    [plain] = found(tmp_path, equal)
    assert plain.score == pytest.approx((0.3 + 0.5 + 0.4 + 0.1) / 4)
    sized = Group("sized", "", dict.fromkeys(LCF), "documents")
    [by_n] = found(tmp_path, sized)
    assert by_n.score == pytest.approx((50 * 0.3 + 100 * 0.5 + 20 * 0.4 + 30 * 0.1) / 200)
    assert "weighted by the documents of these runs" in by_n.notes


def test_one_task_has_its_own_interval_and_the_interval_covers():
    own = mean_interval([1.0] * 7 + [0.0] * 13)
    assert joined([(own.value, own.low, own.high)], [1.0]) == pytest.approx((own.value, own.low, own.high))
    rng, rates, weights, sizes = np.random.default_rng(0), (0.3, 0.05, 0.9), (0.62, 0.3, 0.08), (60, 40, 30)
    truth, inside = sum(w * p for w, p in zip(weights, rates, strict=True)), 0
    for _ in range(400):
        parts = [mean_interval(rng.random(n) < p) for p, n in zip(rates, sizes, strict=True)]
        got = joined([(part.value, part.low, part.high) for part in parts], weights)
        inside += got.low <= truth <= got.high
    assert 0.92 <= inside / 400 <= 0.985


def test_gain_and_content_are_weighted_too(tmp_path):
    for task in LCF:
        asked(tmp_path, task)
        own = adapter("lcf-64")
        asked(tmp_path, task, better=20, **own)
        asked(tmp_path, task, better=4, control="deranged", **own)
    one = only(tmp_path, "lcf-shared", "lcf")
    assert one.gain == pytest.approx(0.2) and one.content == pytest.approx(0.16)
    assert one.gain_low < 0.2 < one.gain_high and one.content_low < 0.16 < one.content_high
    assert math.isnan(only(tmp_path, "lcf-shared").gain)


def test_a_group_that_lacks_a_task_has_no_average_and_says_so(tmp_path):
    for task in LCF[:3]:
        asked(tmp_path, task)
        asked(tmp_path, task, mode="t2t", options={"budget": 16})
    group = find_group("lcf-shared")
    [one] = found(tmp_path, group)
    assert math.isnan(one.score) and one.missing == ("mmlu_pro",) and not one.weights
    assert "receiver" in one.label and "t2t" in one.label
    asked(tmp_path, "mmlu_pro")
    whole, lacking = found(tmp_path, group)
    assert whole.label == "receiver" and not whole.missing
    assert lacking.missing == ("mmlu_pro",) and lacking.label == "t2t (matched)"
    [table] = tables([whole, lacking])
    assert len(table.rows) == 1 and any("no average: mmlu_pro not run" in text for _, text in table.remarks)


def test_groups_are_shown_unasked_from_two_tasks_on(tmp_path):
    asked(tmp_path, "openbookqa")
    assert found(tmp_path) == []
    asked(tmp_path, "ceval")
    assert {a.group for a in found(tmp_path)} == {"c2c"}
    asked(tmp_path, "arc_challenge")
    assert {a.group for a in found(tmp_path)} == {"c2c", "lcf-shared"}


def test_methods_are_joined_by_what_they_are_not_by_how_they_ran(tmp_path):
    for i, task in enumerate(LCF):
        asked(tmp_path, task, batch_size=8 + i)
        asked(tmp_path, task, mode="t2t", options={"budget": 16})
        asked(tmp_path, task, mode="t2t", options={"budget": 32}, better=10)
        asked(tmp_path, task, dtype="float32" if i else "bfloat16", mode="sharer")
    whole = [a for a in found(tmp_path, find_group("lcf-shared")) if a.weights]
    assert [a.label for a in whole] == ["receiver", "t2t budget=16", "t2t budget=32"]
    assert any("differ in batch_size" in note for note in whole[0].notes)
    assert not any("differ" in note for note in whole[1].notes)
    lacking = [a for a in found(tmp_path, find_group("lcf-shared")) if a.missing]
    assert sum(len(a.missing) for a in lacking) == 4 and all("sharer" in a.label for a in lacking)


def test_the_largest_run_counts_and_equal_ones_are_named(tmp_path):
    for task in LCF:
        asked(tmp_path, task, 40, limit=40)
    asked(tmp_path, "openbookqa", 80, limit=80)
    assert only(tmp_path, "lcf-shared").documents["openbookqa"] == 80
    asked(tmp_path, "openbookqa", 80, better=10, limit=81)
    [one] = found(tmp_path, find_group("lcf-shared"))
    assert not one.weights and "2 runs of openbookqa fit equally well" in one.notes[0]


def test_scorings_are_not_mixed_where_one_has_all_tasks(tmp_path):
    for task in LCF:
        asked(tmp_path, task, scoring="cloze")
    asked(tmp_path, "openbookqa")
    [one] = found(tmp_path, find_group("lcf-shared"))
    assert one.scoring == "cloze" and one.weights
    math_and_letters = Group("two", "", {"openbookqa": 1.0, "ceval": 1.0}, "equal")
    asked(tmp_path / "b", "openbookqa")
    asked(tmp_path / "b", "ceval", scoring="generate")
    [mixed] = found(tmp_path / "b", math_and_letters)
    assert mixed.scoring == "generate, letters" and mixed.score == pytest.approx(0.5)


def test_failed_and_unfinished_runs_are_said(tmp_path):
    for task in LCF:
        asked(tmp_path, task, errors=range(20) if task == "mmlu_pro" else ())
    one = only(tmp_path, "lcf-shared")
    assert not one.reliable and "20 documents failed and count as wrong" in one.notes


def test_published_numbers_stand_beside_the_same_pair_and_method(tmp_path):
    for task in LCF:
        asked(tmp_path, task)
        asked(tmp_path, task, **adapter("c2c-64"))
        for name in ("lcf-128", "lcf-64"):
            asked(tmp_path, task, **adapter(name))
    by_label = {a.label: a for a in found(tmp_path, find_group("lcf-shared"))}
    told = {label: [row.label for row in a.published] for label, a in by_label.items()}
    assert told.pop("receiver") == []
    assert told.pop(next(label for label in told if label.startswith("c2c"))) == ["C2C"]
    assert told.pop("lcf width=128") == ["LCF-128"]
    assert told.pop("lcf width=64") == ["LCF-128 6L", "LCF-128 9L", "LCF-128", "LCF-256"] and not told
    for task in LCF:
        asked(tmp_path / "other", task, pair="a:b", **adapter("c2c-64"))
    assert all(not a.published for a in found(tmp_path / "other"))


def test_show_prints_the_groups_row(tmp_path, capsys, monkeypatch):
    for task in ("openbookqa", "arc_challenge", "mmlu_redux", "ceval"):
        asked(tmp_path, task)
    code, out, _ = invoke(capsys, monkeypatch, "show", tmp_path)
    said = " ".join(out.split())
    assert code == 0 and "group c2c (letters)" in said and "45.0" in said and "36.95" in said
    assert "published: arXiv 2510.03215v2" in said and "mmlu_pro not run" in said
    code, out, _ = invoke(capsys, monkeypatch, "show", tmp_path, "--json")
    lines = [line for line in json.loads(out) if line.get("is_group")]
    [c2c] = [line for line in lines if line["task"] == "c2c"]
    assert c2c["score"] == pytest.approx(0.45) and c2c["published"][0]["score"] == pytest.approx(0.3695)
    [lacking] = [line for line in lines if line["task"] == "lcf-shared"]
    assert lacking["score"] is None and lacking["missing"] == ["mmlu_pro"]
    code, out, _ = invoke(capsys, monkeypatch, "show", tmp_path, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [r["published"] for r in rows if r["task"] == "c2c"] == ["36.95"]
    code, out, _ = invoke(capsys, monkeypatch, "show", tmp_path, "--by-subject")
    assert code == 0 and "group c2c" not in out


def test_show_takes_a_group_of_ones_own(tmp_path, capsys, monkeypatch):
    asked(tmp_path / "runs", "openbookqa")
    asked(tmp_path / "runs", "ceval")
    path = tmp_path / "mine.yaml"
    path.write_text("group: mine\nmembers: {openbookqa: 3, ceval: 1}\n")
    code, out, _ = invoke(capsys, monkeypatch, "show", tmp_path / "runs", "--group", path, "--json")
    [one] = [line for line in json.loads(out) if line.get("is_group")]
    assert code == 0 and one["task"] == "mine" and one["score"] == pytest.approx(0.45)
    for flags, words in (
        (("--group", "nosuch"), "unknown group"),
        (("--group", "dense"), "no task of dense was run here"),
        (("--group", "c2c", "--by-subject"), "are both given"),
    ):
        code, out, err = invoke(capsys, monkeypatch, "show", tmp_path / "runs", *flags)
        assert code == 2 and not out and words in err


@pytest.mark.parametrize("flag", ["--markdown", None])
def test_a_report_has_the_groups_row(tmp_path, capsys, monkeypatch, flag):
    for task in ("openbookqa", "arc_challenge", "mmlu_redux", "ceval"):
        asked(tmp_path, task)
    out = tmp_path / "page"
    code, _, err = invoke(capsys, monkeypatch, "report", tmp_path, "-o", out, *([flag] if flag else []))
    page = out.read_text()
    assert code == 0, err
    assert "group c2c (letters)" in page and "36.95" in page
    assert "no average: mmlu_pro not run" in page


def test_a_notebook_gets_the_same(tmp_path):
    for task in LCF:
        asked(tmp_path, task)
    results = Results([tmp_path])
    table = results.averages()
    assert list(table["task"]) == ["c2c", "lcf-shared"] and table["score"].isna().tolist() == [True, False]
    assert results.averages("lcf-shared")["n"].tolist() == [200]

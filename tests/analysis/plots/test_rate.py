"""Which points of the rate figure a line joins."""

from __future__ import annotations

import pytest

from lcfbench.analysis.plots.rate import DASHES, _joined, points_of
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from tests.analysis.frontier_runs import answers, record


def lines(*labels: str) -> list[dict]:
    return [{"mode": label.split()[0], "label": label} for label in labels]


def told(*labels: str) -> list[tuple[str, str, list[str]]]:
    return [(form, dash, [x["label"] for x in own]) for _, form, dash, own in _joined(lines(*labels))]


def test_wire_forms_alone_are_the_points_of_one_line() -> None:
    labels = ["lcf wire=int4", "lcf wire=int8", "lcf wire=native"]
    assert told(*labels) == [("lcf", "-", labels)]


def test_other_sizes_beside_them_give_each_form_a_line() -> None:
    found = told(
        "cacheback budget=2 wire=int4",
        "cacheback budget=2 wire=native",
        "cacheback budget=8 wire=int4",
        "t2t bytes=4",
        "t2t bytes=8",
        "cacheback budget=8 wire=native",
    )
    assert found == [
        ("cacheback int4", DASHES[0], ["cacheback budget=2 wire=int4", "cacheback budget=8 wire=int4"]),
        ("cacheback native", DASHES[1], ["cacheback budget=2 wire=native", "cacheback budget=8 wire=native"]),
        ("t2t", "-", ["t2t bytes=4", "t2t bytes=8"]),
    ]


def test_settings_that_are_words_tell_lines_apart() -> None:
    found = told(
        "t2t budget=8",
        "t2t budget=32",
        "t2t budget=32 request=question",
        "cacheback selector=snapkv budget=8",
        "cacheback selector=h2o budget=8",
        "cacheback selector=h2o budget=16",
    )
    assert found == [
        ("t2t", DASHES[0], ["t2t budget=8", "t2t budget=32"]),
        ("t2t question", DASHES[1], ["t2t budget=32 request=question"]),
        ("cacheback snapkv", DASHES[0], ["cacheback selector=snapkv budget=8"]),
        ("cacheback h2o", DASHES[1], ["cacheback selector=h2o budget=8", "cacheback selector=h2o budget=16"]),
    ]


SIZE = {"row": {"message_bytes": 40}}
LACKING = {
    "a matched run alone": ([("matched", SIZE)], "a deranged run to compare it with.*--control"),
    "messages of no bytes": (
        [("matched", {"row": {"message_bytes": 0}}), ("deranged", {})],
        "no message of t2t has a size: message_bytes is 0",
    ),
    "sizes that are not recorded": ([("matched", {}), ("deranged", {})], "no message of t2t has a size"),
    "other documents": (
        [("matched", SIZE), ("deranged", {**SIZE, "named": "z"})],
        "t2t: the deranged run has",
    ),
    "all failed": ([("matched", {**SIZE, "errors": range(40)}), ("deranged", SIZE)], "or failed.*verdict"),
    "other settings": ([("matched", SIZE), ("deranged", {**SIZE, "task_sha256": "b"})], "other settings"),
}


@pytest.mark.parametrize(("runs", "said"), LACKING.values(), ids=LACKING)
def test_what_is_missing_is_said(tmp_path, runs, said) -> None:
    for control, more in runs:
        scores = answers(40, 70, control)
        record(tmp_path, scores, mode="t2t", control=control, task="splitfacts", **more)
    with pytest.raises(UserError, match=said):
        points_of(summarise(read_run_groups([tmp_path]).groups))

"""MMLU-Pro, C-Eval and MedQA: rows become documents, what cannot be asked is counted, splits are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from lcfbench.errors import UserError
from lcfbench.tasks.inspection import inspect
from lcfbench.tasks.task import Outcome, load_task
from tests.paper_rows import ceval, medqa, tables

ROWS = tables()


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A mirror of invented rows."""
    for (repo, config, split), rows in ROWS.items():
        path = tmp_path / "datasets" / repo / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(path)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def asked(name, **kwargs):
    task = load_task(name, offline=True)
    return task, {d.doc_id: d for d in task.documents(**kwargs)}


def test_mmlu_pro_asks_three_to_ten_options_by_the_letter_of_the_key(made):
    task, documents = asked("mmlu_pro")
    assert {k: len(d.steps[0].choices) for k, d in documents.items() if k in ("0", "7", "3983")} == {
        "0": 10,
        "7": 3,
        "3983": 7,
    }
    assert documents["3983"].gold == "C" and documents["0"].gold == "B"
    assert documents["0"].receiver.user.endswith("\nJ. option 0 9\n")
    assert {d.subject for d in documents.values()} == {"law", "physics"}
    assert task.dropped == {"11 options": 1, "the key names no option": 1}
    assert task.splits == ["validation", "test"] and len(task.documents(split="validation")) == 4


def test_medqa_drops_a_row_whose_key_is_not_its_answer(made):
    task, documents = asked("medqa")
    assert len(documents) == 6 and task.dropped == {"the key is not the answer": 2}
    assert [documents[f"step1-{i}"].gold for i in (0, 2, 4)] == ["A", "C", "A"]
    assert {d.subject for d in documents.values()} == {"step1", "step2&3"}
    assert len(task.documents(split="train")) == 4


def test_a_task_whose_train_split_is_not_here_is_checked(made):
    shutil.rmtree(made / "datasets" / "GBaker" / "MedQA-USMLE-4-options" / "default")
    path = made / "datasets" / "GBaker" / "MedQA-USMLE-4-options" / "default"
    path.mkdir()
    Dataset.from_list([medqa(i) for i in range(3)]).to_parquet(path / "test-00000-of-00001.parquet")
    assert inspect("medqa", {}, offline=True)["also_in_train"] is None


def test_ceval_is_all_subjects_in_chinese(made):
    task, documents = asked("ceval")
    assert len(documents) == 2 * 52 and len({d.subject for d in documents.values()}) == 52
    d = documents["law-1"]
    assert d.receiver.user.startswith(
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n第1题____。\nA. "
    )
    assert d.receiver.prefix == "答案：" and d.gold == "B" and d.subject == "law"
    assert "法学" in d.request.user and "选项" not in d.request.user
    _, hidden = asked("ceval", scoring="cloze")
    assert "选项" not in hidden["law-1"].receiver.user and hidden["law-1"].gold == "选项B1"
    assert len(task.documents(split="train")) == 5 * 52


def test_a_data_set_that_lacks_one_subject_is_refused(made):
    shutil.rmtree(made / "datasets" / "ceval" / "ceval-exam" / "logic")
    with pytest.raises(UserError, match="config 'logic' of 'ceval/ceval-exam'"):
        asked("ceval")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": ""}, "the key names no option"),
        ({"answer": "AB"}, "the key names no option"),
        ({"C": " "}, "an option is empty"),
    ],
)
def test_ceval_rows_that_cannot_be_asked_are_counted(made, change, reason):
    path = made / "datasets" / "ceval" / "ceval-exam" / "law" / "val-00000-of-00001.parquet"
    Dataset.from_list([ceval(0), ceval(1) | change]).to_parquet(path)
    task, documents = asked("ceval")
    assert task.dropped == {reason: 1} and len(documents) == 2 * 52 - 1


def test_a_written_letter_of_ten_is_scored(made):
    task, documents = asked("mmlu_pro", scoring="generate")
    right, wrong = (task.score(documents["0"], Outcome(text=text)) for text in ("The answer is B.", "J"))
    assert (right["exact_match"], wrong["exact_match"], wrong["parsed"]) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "count", "subjects"), [("mmlu_pro", 12032, 14), ("ceval", 1346, 52), ("medqa", 1273, 2)]
)
def test_the_real_rows_are_all_asked(mirror, name, count, subjects):
    task = load_task(name, offline=True)
    rows = task._natural("test")
    assert len(rows) == count == len({row["id"] for row in rows}) and not task.dropped
    assert len({row["subject"] for row in rows}) == subjects
    if name == "mmlu_pro":
        raw = {r["question_id"]: r for r in task._table("test")}
        letters = "ABCDEFGHIJ"
        other = [i for i, r in raw.items() if letters.index(r["answer"]) != r["answer_index"]]
        assert other == [3983]
        assert next(row for row in rows if row["id"] == "3983")["options"][2] == "N—H"

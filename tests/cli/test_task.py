"""`lcfbench task new` and `task check`."""

from __future__ import annotations

import json

import pytest

from lcfbench import registry
from lcfbench.errors import UserError
from lcfbench.tasks.inspection import inspect, warnings
from lcfbench.tasks.new import write_task
from lcfbench.tasks.task import load_task
from tests import helpers

EXAMPLE = helpers.ROOT / "examples" / "task" / "capitals.csv"


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    monkeypatch.setattr(registry, "_given", {})


@pytest.mark.parametrize("context", [None, "shared", "different"])
def test_a_written_task_can_be_asked(tmp_path, context):
    path = write_task("mine", None, tmp_path, context, False)[-1]
    task = load_task(str(path))
    assert len(task.documents()) == 2 and task.shared == (context != "different")
    assert warnings(inspect(str(path), {})) == []
    assert {d.gold for d in task.documents(scoring="letters")} <= {"A", "B"}
    with pytest.raises(UserError, match="is there already"):
        write_task("mine", None, tmp_path, context, False)
    write_task("mine", None, tmp_path, context, True)


def test_a_task_from_a_table_elsewhere(tmp_path):
    path = write_task("capitals_too", EXAMPLE, tmp_path / "new folder", None, False)[0]
    task = load_task(str(path))
    assert len(task.documents()) == 6
    (tmp_path / "odd name, ü.csv").write_text(EXAMPLE.read_text())
    path = write_task("odd", tmp_path / "odd name, ü.csv", tmp_path, None, False)[0]
    assert len(load_task(str(path)).documents()) == 6


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "-x", "ü", "x" * 41])
def test_a_name_that_makes_no_file(tmp_path, name):
    with pytest.raises(UserError, match="makes no task's name"):
        write_task(name, None, tmp_path, None, False)
    assert not list(tmp_path.iterdir())


BAD = {
    "gone": (lambda p: p / "gone.csv", None, "no data file"),
    "no table": (lambda p: p / "x.txt", None, "is no table"),
    "no answer": (lambda p: p / "q.csv", None, "no column is called answer"),
    "no sharer": (lambda p: EXAMPLE, "different", "only the sharer reads"),
    "context": (lambda p: EXAMPLE, "both", "Say shared or different"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_written_is_one_line(tmp_path, kind):
    (tmp_path / "q.csv").write_text("question,a,b\nx,y,z\n")
    table, context, says = BAD[kind]
    with pytest.raises(UserError, match=says):
        write_task("mine", table(tmp_path), tmp_path, context, False)
    assert not (tmp_path / "mine.yaml").exists()


def test_the_page_names_what_should_be_mended(tmp_path):
    rows = [
        {"question": f"{i}?", "choices": ["yes it is", "not so"], "answer": "yes it is"} for i in range(30)
    ]
    rows += [rows[0], {"question": "x", "choices": ["a"], "answer": "a"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = inspect(str(tmp_path / "rows.jsonl"), {})
    said = " ".join(warnings(facts))
    assert facts["documents"] == 31 and facts["problems"][0]["row"] == 32 and facts["doubles"] == 1
    assert (
        "1 rows are left out" in said and "Always answering 'yes it is'" in said and "read the same" in said
    )
    assert "The answer is choice 1 in 100%" in said
    json.dumps(facts)


def test_train_rows_that_are_asked_too_and_a_receiver_that_knows(tmp_path):
    row = {
        "question": "Where?",
        "answer": "Paris",
        "receiver_context": "Paris it is.",
        "sharer_context": "Hm.",
    }
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "both.yaml").write_text("dataset_path: .\n")
    said = " ".join(warnings(inspect(str(tmp_path / "both.yaml"), {})))
    assert "stand in the train split too" in said and "gives the answer away in 100%" in said


def test_exit_codes_and_the_next_command(tmp_path):
    helpers.save_pair(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"question": "x"}\n')
    (tmp_path / "some.jsonl").write_text(
        '{"question": "x?", "answer": "yes", "context": "a"}\n{"question": "y?", "answer": null}\n'
    )
    pair = ["--pair", "./receiver:./sharer"]
    for name, code in ((str(EXAMPLE), 0), ("some.jsonl", 1), ("bad.jsonl", 2), ("splitfacts", 0)):
        ran = helpers.forked(
            "task", "check", name, *pair, "--limit", "20", cwd=tmp_path, LCFBENCH_OFFLINE="1"
        )
        assert ran[0] == code and "Traceback" not in ran[2], (name, ran)
        assert code == 2 or ("next: lcfbench probe" in ran[2] and "tokens" in ran[1])

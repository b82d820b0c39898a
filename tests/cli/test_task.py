"""`lcfbench task new` and `task check`."""

from __future__ import annotations

import json
import os

import pytest

from lcfbench import registry
from lcfbench.errors import UserError
from lcfbench.files import locked
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
    "not shared": (lambda p: p / "two.csv", "shared", "Give --different"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_written_is_one_line(tmp_path, kind):
    (tmp_path / "q.csv").write_text("question,a,b\nx,y,z\n")
    (tmp_path / "two.csv").write_text("question,sharer_context,answer\nx,y,z\n")
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


def test_three_documents_are_shown_whole_with_what_every_model_reads(tmp_path, capsys, monkeypatch) -> None:
    save = helpers.save_pair(tmp_path / "models")
    rows = [
        {
            "question": f"Who is {i}? {'very ' * 600 if i == 1 else ''}",
            "answer": f"n{i}",
            "sharer_context": f"It is n{i}.",
        }
        for i in range(5)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["task", "check", tmp_path / "mine.jsonl", "--pair", save]
    code, out, _ = helpers.invoke(capsys, monkeypatch, *args)
    assert code == 0 and "document 3 of 5" in out and "document 4 of 5" not in out
    assert out.count("the receiver reads, ") == 3 and out.count("the sharer reads, ") == 3
    assert out.count("In one sentence, state what this text says") == 3
    assert out.count("right: 'n") == 3 and "tokens at most" in out
    code, text, _ = helpers.invoke(capsys, monkeypatch, *args, "--json")
    shown = json.loads(text)["shown"]
    assert len(shown) == 3 and all(d["receiver"]["tokens"] > 0 and d["request"]["prompt"] for d in shown)
    for d in shown:
        assert ("characters …" in out) == any(len(e["receiver"]["prompt"]) > 1600 for e in shown)
        assert d["gold"].startswith("n")


def test_a_chat_template_is_shown_with_the_prompt(tmp_path) -> None:
    path = write_task("mine", None, tmp_path, "shared", False)[-1]
    chat = helpers.tokenizer(chat=True)
    (first, *_) = inspect(str(path), {"receiver": chat, "sharer": chat})["shown"]
    assert first["receiver"]["prompt"].startswith("<|im_start|>user\nQuestion: ")
    assert first["receiver"]["prompt"].rstrip().endswith("<|im_start|>assistant\nAnswer:")


@pytest.mark.parametrize("flag", ["--shared", "--different"])
def test_what_new_writes_runs_at_once(tmp_path, capsys, monkeypatch, flag) -> None:
    pair = ["--pair", helpers.save_pair(tmp_path / "models")]
    monkeypatch.chdir(tmp_path)
    code, out, _ = helpers.invoke(capsys, monkeypatch, "task", "new", "mine", flag)
    assert code == 0 and "mine.csv" in out and "mine.yaml" in out
    assert helpers.invoke(capsys, monkeypatch, "task", "check", "mine.yaml", *pair)[0] == 0
    args = ["run", *pair, "--task", "mine.yaml", "--mode", "receiver,t2t", "--out", "r"]
    assert helpers.invoke(capsys, monkeypatch, *args)[0] == 0


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nx,y\n")
    (tmp_path / "mine.yaml").write_text(
        "dataset_path: rows.csv\ntest_split: dev\nrepeats: 3\n"
        "generation_kwargs: {until: 3, do_sample: true}\n"
        "dataset_kwargs: {delimiter: x}\nmetadata: {veiws: {}, chat: maybe, options: [a]}\n"
    )
    code, _, err = helpers.invoke(capsys, monkeypatch, "task", "check", tmp_path / "mine.yaml")
    assert code == 2 and len(err.splitlines()) == 1 and "8 mistakes" in err
    for part in ("views", "chat", "options", "repeats", "until", "do_sample", "delimiter", "dev"):
        assert part in err


def test_one_of_lm_evals_own_tasks_is_shown_too(capsys, monkeypatch, tmp_path) -> None:
    if not os.environ.get("LCFBENCH_MIRROR"):
        pytest.skip("LCFBENCH_MIRROR names no mirror of the Hub's data sets")
    args = ["task", "check", "lm-eval/openbookqa", "--pair", helpers.save_pair(tmp_path), "--limit", 4]
    code, out, _ = helpers.invoke(capsys, monkeypatch, *args, "--offline")
    assert code == 0 and "500 documents" in out and "document 3 of 4" in out


def test_two_at_once_lose_no_file(tmp_path):
    with locked(tmp_path / "mine.yaml"), pytest.raises(UserError, match="another process"):
        write_task("mine", None, tmp_path, None)
    assert write_task("mine", None, tmp_path, None)[-1] == tmp_path / "mine.yaml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "mine.yaml"]

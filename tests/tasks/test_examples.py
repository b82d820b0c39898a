"""Worked examples that are picked by a field of the question, and what a task file may say of them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from lcfbench.cli.lists import cells, entries
from lcfbench.cli.task import page_of
from lcfbench.controls.assignment import deranged
from lcfbench.errors import UserError
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.parts import batch_of
from lcfbench.methods.create import create
from lcfbench.models.timing import Clock
from lcfbench.tasks.inspection import inspect
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import describe
from tests import helpers
from tests.helpers import keep_table

pytest.importorskip("lm_eval")
REDUX, MMLU = "edinburgh-dawg/mmlu-redux-2.0", "cais/mmlu"
SUBJECTS = {"anatomy": 9, "law": 3, "virology": 1}  # how many questions of each are asked
OPTIONS = {"choices": ["one", "two", "three", "four"], "answer": 1}
MINE = """
dataset_path: rows.jsonl
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {examples: EXAMPLES}
"""


def asked(subject: str, i: int, **more) -> dict:
    return {"question": f"What of {subject}, case {i}?", "subject": subject, **OPTIONS, **more}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A mirror of three subjects; the development questions stand there in another order of subjects."""
    facts = {"error_type": "ok", "correct_answer": None}
    test = [asked(subject, i, **facts) for subject, n in SUBJECTS.items() for i in range(n)]
    keep_table(tmp_path, REDUX, "all", "test", test)
    dev = [asked(subject, 100 + i, answer=i % 4) for subject in reversed(SUBJECTS) for i in range(5)]
    keep_table(tmp_path, MMLU, "all", "dev", dev)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    return dev


def redux(shots: int, **more) -> Task:
    return load_task("mmlu_redux", offline=True, shots=shots, **more)


@pytest.mark.parametrize("scoring", ["letters", "cloze", "generate"])
def test_a_question_gets_the_first_examples_of_its_subject(made, scoring):
    for document in redux(3).documents(scoring=scoring):
        questions = [part.partition("\n")[0] for part in document.receiver.user.split("Question: ")[1:]]
        own = [row["question"] for row in made if row["subject"] == document.subject]
        assert questions[:-1] == own[:3] and questions[-1] not in own
        answer = "Answer: two" if scoring == "cloze" else "Answer: B"
        assert document.receiver.user.count(answer) == 1, "of three examples the second has this answer"
        assert document.sharer == document.receiver and document.examples == document.subject


def test_without_examples_nothing_is_said_of_them(made):
    task = redux(0)
    assert task.examples_sha256 is None and {d.examples for d in task.documents()} == {""}


def test_more_examples_than_there_are_is_one_line(made):
    with pytest.raises(UserError, match=r"cais/mmlu: dev gives 5 examples of subject \w+, not 6") as found:
        redux(6).documents(limit=1)
    assert "--shots" in found.value.next_step


def test_an_example_that_is_asked_is_not_shown(made, tmp_path):
    row = next(row for row in made if row["subject"] == "law")
    facts = {"error_type": "ok", "correct_answer": None}
    keep_table(tmp_path, REDUX, "all", "test", [row | facts, asked("law", 1, **facts)])
    for document in redux(4).documents():
        assert document.receiver.user.count(row["question"]) == (document.doc_id == "law-0")
    with pytest.raises(UserError, match="4 examples of subject law, not 5"):
        redux(5).documents()


def test_other_examples_are_another_digest(made, tmp_path):
    before, seed = redux(2), redux(2, seed=7)
    assert before.examples_sha256 == seed.examples_sha256 == before.reseeded(3).examples_sha256
    assert redux(3).examples_sha256 != before.examples_sha256
    keep_table(tmp_path, MMLU, "all", "dev", [{**row, "answer": 3} for row in made])
    assert redux(2).examples_sha256 != before.examples_sha256
    assert redux(2).data_sha256 == before.data_sha256 and redux(2).yaml_sha256 == before.yaml_sha256


def test_without_the_examples_data_a_run_without_them_goes_on(made, tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "datasets" / MMLU / "all" / "dev-00000-of-00001.parquet").unlink()
    assert len(redux(0).documents()) == sum(SUBJECTS.values())
    with pytest.raises(UserError, match=r"mmlu_redux, worked examples: .*cais/mmlu") as found:
        redux(2).documents()
    assert "\n" not in str(found.value)


def test_batches_and_other_messages_stay_within_a_subject(made):
    documents = redux(2).documents()
    cut = batches(documents, 4)
    assert sorted(d.hash for batch in cut for d in batch) == sorted(d.hash for d in documents)
    whose = [{d.examples for d in batch} for batch in cut]
    assert all(len(some) == 1 for some in whose) and [len(batch) for batch in cut].count(4) == 2
    order = [next(iter(some)) for some in whose]
    assert len([a for a, b in pairwise(order) if a != b]) == 2, "one after another"
    senders, of = deranged(documents, 0), {d.hash: d for d in documents}
    assert all(sender.hash != to for to, sender in senders.items())
    assert sorted(sender.hash for sender in senders.values()) == sorted(of)
    crossing = [to for to, sender in senders.items() if sender.examples != of[to].examples]
    assert len(crossing) == 2, "the one question of its subject gets a message, and another one gets its"
    both = [d for d in documents if d.subject != "virology"]
    assert all(sender.examples == of[to].examples for to, sender in deranged(both, 1).items())


def test_questions_that_are_alone_in_their_subject_are_batched_together(made):
    alone = list({d.subject: d for d in redux(1).documents()}.values())
    assert [len(batch) for batch in batches(alone, 8)] == [3]


def test_the_examples_of_a_subject_are_read_once(made):
    documents = [d for d in redux(3).documents() if d.subject == "anatomy"]
    lm, ran = helpers.causal_lm(chat=True, positions=4096), []
    lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: ran.append(given.get("input_ids")), with_kwargs=True
    )
    cut = batches(documents, 4)
    with torch.inference_mode():
        for batch in cut[:2]:
            create("receiver", lm, lm).respond(batch_of(batch, batch, Clock()))
    assert [len(batch) for batch in cut] == [4, 4, 1]
    read = "".join(lm.tokenizer.decode(row) for ids in ran if ids is not None for row in ids)
    assert read.count("What of anatomy, case 102?") == 1, "neither by each document nor by each batch"


# -- a file of a user's own ---------------------------------------------------------------------------


def own(folder, examples: str, more: list[dict] = ()) -> Task:
    rows = [asked("law", 1), asked("law", 2), asked("art", 1)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [asked(subject, 50 + i) for i in range(2) for subject in ("law", "art")]
    (folder / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*shown, *more]))
    (folder / "there.py").write_text(
        "def turned(table):\n    return table.map(lambda row: {'question': row['question'][::-1]})\n"
    )
    (folder / "mine.yaml").write_text(MINE.replace("EXAMPLES", examples))
    return load_task(str(folder / "mine.yaml"), offline=True, shots=2)


def questions(task: Task) -> dict[str, list[str]]:
    return {
        d.subject: [part.partition("\n")[0] for part in d.receiver.user.split("Q: ")[1:-1]]
        for d in task.documents()
    }


def test_a_file_of_ones_own_names_its_examples(tmp_path):
    task = own(tmp_path, "{dataset_path: shown.jsonl, split: train, by: subject}")
    expected = {s: [f"What of {s}, case {i}?" for i in (50, 51)] for s in ("law", "art")}
    assert questions(task) == expected
    turned = "{dataset_path: shown.jsonl, split: train, by: subject, process_docs: !function there.turned}"
    assert questions(own(tmp_path, turned)) == {s: [q[::-1] for q in qs] for s, qs in expected.items()}
    found = questions(own(tmp_path, "{dataset_path: shown.jsonl, split: train}"))
    assert found["law"] == found["art"] and set(found["law"]) < {q for qs in expected.values() for q in qs}


def test_a_split_of_the_own_data_is_picked_from(tmp_path):
    rows = {"test": [asked("law", 1), asked("art", 1)], "train": [asked("art", 7), asked("law", 8)]}
    rows["train"] += [asked("law", 9)]
    for split, some in rows.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    yaml = MINE.replace("rows.jsonl", ".").replace("EXAMPLES", "{by: subject}")
    (tmp_path / "mine.yaml").write_text(yaml)
    task = load_task(str(tmp_path / "mine.yaml"), offline=True, shots=1)
    assert questions(task) == {"law": ["What of law, case 8?"], "art": ["What of art, case 7?"]}
    assert [d.receiver.user.count("Q: ") for d in task.documents(split="train")] == [2], "of case 9 alone"
    (tmp_path / "mine.yaml").write_text(yaml.replace("{by", "{split: train, by"))
    assert questions(load_task(str(tmp_path / "mine.yaml"), offline=True, shots=1)) == questions(task)


BAD = {
    "text": ("dev", "metadata.examples is no mapping"),
    "key": ("{splt: dev}", "Did you mean split?"),
    "number": ("{split: 3}", "metadata.examples.split: 3 is no text"),
    "no split": ("{dataset_path: shown.jsonl, by: subject}", "names a data set and no split"),
    "no data set": ("{by: subject, dataset_name: all}", "has dataset_name and no dataset_path"),
    "gone": ("{dataset_path: gone.jsonl, split: train}", "there is no data file"),
    "other split": ("{dataset_path: shown.jsonl, split: dev, by: subject}", "no split 'dev'"),
    "own split": ("{split: dev, by: subject}", "no split 'dev'"),
    "field": ("{dataset_path: shown.jsonl, split: train, by: topic}", "has no field 'topic'"),
    "function": (
        "{dataset_path: shown.jsonl, split: train, process_docs: 3}",
        "process_docs: 3 is no function",
    ),
    "hub": ("{dataset_path: no one/there, split: train}", "no one/there"),
}


@pytest.mark.parametrize("kind", BAD)
def test_examples_that_cannot_be_had_are_one_line(tmp_path, kind):
    examples, says = BAD[kind]
    with pytest.raises(UserError) as found:
        own(tmp_path, examples).documents()
    assert says in str(found.value) and "\n" not in str(found.value)


def test_a_generated_task_has_no_data_set_of_examples(tmp_path):
    (tmp_path / "there.py").write_text("def make(split, n, seed):\n    return []\n")
    yaml = MINE.replace("EXAMPLES}", "{by: subject}, generator: !function there.make}")
    (tmp_path / "mine.yaml").write_text(yaml)
    with pytest.raises(UserError, match="a generated task has no data set"):
        load_task(str(tmp_path / "mine.yaml"), offline=True, shots=2)


def test_lists_and_pages_say_where_examples_come_from(made, tmp_path, monkeypatch):
    told = {row["name"]: row["examples"] for row in entries("tasks", tmp_path)}
    assert told["mmlu_redux"] == "cais/mmlu dev, by subject"
    assert told["mmlu_pro"] == "validation, by subject" and told["openbookqa"] == "train"
    assert told["splitfacts"] == ""
    row = next(row for row in entries("tasks", tmp_path) if row["name"] == "mmlu_redux")
    assert "cais/mmlu dev, by subject" in cells("tasks", row)
    facts = inspect("mmlu_redux", {}, offline=True)
    assert facts["examples"] == told["mmlu_redux"]
    assert "  worked examples (--shots): cais/mmlu dev, by subject" in page_of(facts, [])
    assert "  worked examples (--shots): none" in page_of(inspect("splitfacts", {}, limit=2), [])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q", "choices": ["a", "b"], "answer": 1}))
    (tmp_path / "mine.yaml").write_text(MINE.replace("EXAMPLES", "{split: train, by: question}"))
    monkeypatch.setenv("LCFBENCH_TASKS", str(tmp_path))
    assert describe("mine")["examples"] == "train, by question"

"""Tasks of a user's own: tables as they are, lm-eval's YAML as it is, and each thing that can be wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from lcfbench import python_files, registry
from lcfbench.errors import UserError
from lcfbench.sources.local_data import columns_of
from lcfbench.tasks.columns import infer
from lcfbench.tasks.lm_eval import RefusedError, seconds, task_class
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import describe, options_for, task_table

QUESTION = {"question": "Which is red?", "choices": ["blood", "sky", "grass"], "answer": "A"}
LM_EVAL = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
task: mine
dataset_path: rows.jsonl
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROWS = [
    {"question": f"Which is {colour}?", "choices": ["blood", "sky", "grass"], "gold": i, "answer": thing}
    for i, (colour, thing) in enumerate([("red", "blood"), ("blue", "sky"), ("green", "grass")])
]


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    monkeypatch.setattr(registry, "_given", {})
    for name in ("LCFBENCH_PLUGINS", "LCFBENCH_TASKS"):
        monkeypatch.delenv(name, raising=False)


def jsonl(folder: Path, rows: list, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own(folder: Path, yaml: str, rows: list | None = None, name: str = "mine.yaml") -> Task:
    jsonl(folder, ROWS if rows is None else rows)
    (folder / name).write_text(yaml)
    return load_task(str(folder / name))


def test_a_table_that_changes_has_its_new_columns_at_once(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("question,answer\nWhat?,That\n")
    assert columns_of({"train": [table]}, "train") == ["question", "answer"]
    table.write_text("question,target\nWhat?,That\n")
    os.utime(table, ns=(1, 1))  # the same size, another time
    assert columns_of({"train": [table]}, "train") == ["question", "target"]


def one_line(work) -> str:
    with pytest.raises(UserError) as found:
        work()
    text = str(found.value)
    assert "\n" not in text and found.value.next_step, text
    return text


# -- tables ------------------------------------------------------------------------------------------

TABLES = {
    "plain.csv": "question,a,b,c,answer\nRed?,blood,sky,grass,A\nBlue?,blood,sky,grass,B\n",
    "bom.csv": "\ufeffquestion,a,b,c,answer\nRed?,blood,sky,grass,A\nBlue?,blood,sky,grass,B\n",
    "semicolon.csv": "question;a;b;c;answer\nRed?;blood;sky;grass;A\nBlue?;blood;sky;grass;B\n",
    "tab.tsv": "question\ta\tb\tc\tanswer\nRed?\tblood\tsky\tgrass\tA\nBlue?\tblood\tsky\tgrass\tB\n",
    "numbered.csv": "Question,Choice1,Choice2,Choice3,Label\nRed?,blood,sky,grass,1\n"
    "Blue?,blood,sky,grass,2\nGreen?,blood,sky,grass,3\n",
    "zero.csv": "question,choice0,choice1,choice2,gold\nRed?,blood,sky,grass,0\nBlue?,blood,sky,grass,1\n",
    "upper.csv": "Question,A,B,C,Answer\nRed?,blood,sky,grass,a\nBlue?,blood,sky,grass,(b)\n",
    "option.csv": "query,option_a,option_b,option_c,target\n"
    "Red?,blood,sky,grass,blood\nBlue?,blood,sky,grass,sky\n",
    "bars.csv": "question,choices,answer\nRed?,blood|sky|grass,blood\nBlue?,blood|sky|grass,sky\n",
    "lists.csv": 'question,choices,answer\nRed?,"[""blood"",""sky"",""grass""]",A\n'
    'Blue?,"[""blood"",""sky"",""grass""]",B\n',
    "quoted.csv": 'question,a,b,c,answer\n"Red?",blood,sky,grass,A\n\n"Blue?",blood,sky,grass,B\n\n',
    "crlf.csv": "question,a,b,c,answer\r\nRed?,blood,sky,grass,A\r\nBlue?,blood,sky,grass,B\r\n",
    "rows.json": json.dumps(
        [
            {"question": "Red?", "choices": {"text": ["blood", "sky", "grass"]}, "answerKey": "A"},
            {"question": "Blue?", "choices": {"text": ["blood", "sky", "grass"]}, "answerKey": "B"},
        ]
    ),
    "data.json": json.dumps(
        {
            "data": [
                {"question": "Red?", "options": ["blood", "sky", "grass"], "answer": "blood"},
                {"question": "Blue?", "options": ["blood", "sky", "grass"], "answer": "sky"},
            ]
        }
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_task_as_it_stands(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8", newline="")
    task = load_task(str(tmp_path / name))
    by_question = {d.native["question"]: d for d in task.documents(scoring="cloze")}
    red, blue = by_question["Red?"], by_question["Blue?"]
    assert red.steps[0].choices == (" blood", " sky", " grass") and (red.gold, blue.gold) == ("blood", "sky")
    assert task.scorings == ["letters", "cloze", "generate"] and task.shared and not task.dropped
    letters = {d.native["question"]: d for d in task.documents(scoring="letters")}["Blue?"]
    assert letters.gold == "B" and "A. blood\nB. sky\n" in letters.receiver.user


def test_parquet_and_a_folder_saved_by_datasets(tmp_path):
    table = Dataset.from_list([{"question": "Red?", "choices": ["blood", "sky"], "answer": "A"}] * 2)
    table.to_parquet(tmp_path / "p.parquet")
    assert len(load_task(str(tmp_path / "p.parquet")).documents()) == 2
    DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    (tmp_path / "s.yaml").write_text("dataset_path: ./saved\n")
    task = load_task(str(tmp_path / "s.yaml"))
    assert len(task.documents()) == 2 and len(task.documents(split="train")) == 2
    table.save_to_disk(tmp_path / "one")
    (tmp_path / "o.yaml").write_text("dataset_path: ./one\n")
    assert len(load_task(str(tmp_path / "o.yaml")).documents()) == 2


def test_written_answers_and_contexts(tmp_path):
    path = jsonl(
        tmp_path,
        [
            {
                "question": "Where is it?",
                "answer": "Paris",
                "receiver_context": "It is far.",
                "sharer_context": "Paris.",
            },
            {
                "question": "Who is it?",
                "answer": ["Ann", "Anne"],
                "receiver_context": "",
                "sharer_context": "Ann!",
            },
        ],
    )
    task = load_task(str(path))
    first, second = sorted(task.documents(), key=lambda d: d.doc_id)
    assert not task.shared and task.scorings == ["generate"]
    assert first.receiver.user == "It is far.\n\nQuestion: Where is it?\n"
    assert first.sharer.user == "Paris.\n\nQuestion: Where is it?\n"
    assert first.full.user == "Paris.\n\nIt is far.\n\nQuestion: Where is it?\n"
    assert second.receiver.user == "Question: Who is it?\n" and "<<note>>" in second.noted.user
    from lcfbench.tasks.task import Outcome

    assert task.score(second, Outcome(text=" Anne."))["score"] == 1.0


def test_a_context_that_only_the_sharer_reads(tmp_path):
    jsonl(tmp_path, [{**QUESTION, "context": "Blood is red."}])
    (tmp_path / "c.yaml").write_text("dataset_path: rows.jsonl\nmetadata: {context: different}\n")
    document = load_task(str(tmp_path / "c.yaml")).documents()[0]
    assert "Blood is red" in document.sharer.user and "Blood is red" not in document.receiver.user
    (tmp_path / "d.yaml").write_text("dataset_path: rows.jsonl\n")
    shared = load_task(str(tmp_path / "d.yaml")).documents()[0]
    assert (
        shared.shared
        and shared.receiver.user.startswith("Blood is red.")
        and shared.sharer == shared.receiver
    )


def test_rows_kept_for_training(tmp_path):
    path = jsonl(tmp_path, [{**QUESTION, "question": f"Which is {i}?"} for i in range(60)])
    assert len(load_task(str(path)).documents()) == 60
    assert "train_share" in one_line(lambda: load_task(str(path)).documents(split="train"))
    task = load_task(str(path), options={"train_share": "50"})
    parts = [{d.native["question"] for d in task.documents(split=s)} for s in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 60 and len(set.union(*parts)) == 60 and all(parts)


AMBIGUOUS = {
    "numbers": ([1, 1], ["x", "y", "z"], "number from 0 or a number from 1"),
    "letters": (["A", "B"], ["B", "A"], "letter or a text"),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_an_answer_that_can_be_read_twice_is_asked_about(tmp_path, kind):
    answers, choices, says = AMBIGUOUS[kind]
    path = jsonl(
        tmp_path, [{"question": f"{i}?", "choices": choices, "answer": a} for i, a in enumerate(answers)]
    )
    assert says in one_line(lambda: load_task(str(path)).documents())
    form = says.partition(" or ")[0]
    (tmp_path / "said.yaml").write_text(
        f"dataset_path: rows.jsonl\nmetadata: {{columns: {{answer_as: {form}}}}}\n"
    )
    assert len(load_task(str(tmp_path / "said.yaml")).documents()) == 2


BAD_ROWS = {
    "out of range": {"answer": "D"},
    "null answer": {"answer": None},
    "empty answer": {"answer": " "},
    "unknown answer": {"answer": "soup"},
    "a list as answer": {"answer": ["A"]},
    "negative": {"answer": -1},
    "true": {"answer": True},
    "no choices": {"choices": []},
    "null choices": {"choices": None},
    "one choice": {"choices": ["blood"]},
    "equal choices": {"choices": ["blood", "sky", "blood"]},
    "an empty choice": {"choices": ["blood", "", "sky"]},
    "a null choice": {"choices": ["blood", None]},
    "a nested choice": {"choices": ["blood", ["sky"]]},
    "27 choices": {"choices": [str(i) for i in range(27)]},
    "choices that are a number": {"choices": 3},
    "null question": {"question": None},
    "empty question": {"question": ""},
    "NaN question": {"question": math.nan},
    "NaN answer": {"answer": math.nan},
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_of_a_table_is_dropped_counted_and_named(tmp_path, kind):
    good = [{**QUESTION, "question": f"{i}?"} for i in range(3)]
    task = load_task(str(jsonl(tmp_path, [*good, QUESTION | BAD_ROWS[kind]])))
    assert len(task.documents()) == 3 and sum(task.dropped.values()) == 1
    (number, field, what) = task.problems["test"][0]
    assert number == 4 and field in (*QUESTION, "doc_to_text") and what
    (tmp_path / "only.jsonl").write_text(json.dumps(QUESTION | BAD_ROWS[kind]) + "\n")
    text = one_line(lambda: load_task(str(tmp_path / "only.jsonl")).documents())
    assert "only" in text and ("row 1" in text or "can be told" in text or "no column" in text)


BAD_FILES = {
    "empty.csv": ("", "no rows"),
    "heads.csv": ("question,a,b,answer\n", "no rows"),
    "broken.csv": ('question,a,b,answer\n"Red?,x,y,A\n', "line"),
    "cells.csv": ("question,a,b,answer\nRed, or not?,x,y,A\n", "line 2: 5 cells under 4 columns"),
    "short.csv": ("question,a,b,answer\nRed?,x,y\n", "line 2: 3 cells"),
    "twice.csv": ("question,a,a,answer\nRed?,x,y,A\n", "two columns 'a'"),
    "names.csv": ("q,x,y,z\nRed?,x,y,A\n", "no column is called question"),
    "noanswer.csv": ("question,a,b\nRed?,x,y\n", "no column is called answer"),
    "zero.csv": ("question,a,b,answer\n\0,x,y,A\n", "zero byte"),
    "bad.jsonl": ('{"question": "x"}\n{"question": \n', "line 2 does not parse"),
    "list.jsonl": ("[1, 2]\n", "line 1 is no object"),
    "bad.json": ("{", "does not parse"),
    "text.json": ('"hello"', "no list of rows"),
    "numbers.json": ("[1, 2]", "row 1 is no object"),
    "deep.json": ("[" * 100_000, "does not parse"),
    "bad.parquet": ("PAR1 no parquet", "cannot be read as parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_table_is_one_line(tmp_path, name):
    text, says = BAD_FILES[name]
    (tmp_path / name).write_text(text)
    found = one_line(lambda: load_task(str(tmp_path / name)).documents())
    assert says in found and name in found
    assert any(name.partition(".")[0] == row["name"] for row in task_table())  # and the list stands


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "latin.csv").write_bytes("question,a,b,answer\nÜber?,x,y,A\n".encode("latin-1"))
    assert "line 2: not UTF-8" in one_line(lambda: load_task(str(tmp_path / "latin.csv")))
    (tmp_path / "wide.csv").write_bytes(TABLES["plain.csv"].encode("utf-16"))
    assert len(load_task(str(tmp_path / "wide.csv")).documents()) == 2


# -- lm-eval's files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "gold"),
    [
        ("doc_to_target: gold", "sky"),
        ("doc_to_target: answer", "sky"),
        ('doc_to_target: "{{gold}}"', "sky"),
        ('doc_to_target: "{{choices.index(answer)}}"', "sky"),
        ("doc_to_target: !function mine_more.gold", "sky"),
    ],
)
def test_lm_evals_own_file_as_it_is(tmp_path, form, gold):
    (tmp_path / "mine_more.py").write_text("def gold(doc):\n    return doc['gold']\n")
    task = own(tmp_path, LM_EVAL.replace("doc_to_target: gold", form))
    documents = {d.doc_id: d for d in task.documents(receiver_chat=False)}
    assert documents["1"].gold == gold and documents["1"].receiver.user == "Q: Which is blue?\nA:"
    assert documents["1"].steps[0].choices == (" blood", " sky", " grass")
    assert task.scorings == ["cloze"] and task.metric() == "acc" and task.shared


def test_lm_evals_written_form_letters_and_process_docs(tmp_path):
    written = own(tmp_path, WRITTEN).documents()
    assert {d.gold for d in written} == {"blood", "sky", "grass"} and written[0].until == ("\n",)
    letters = LM_EVAL.replace("doc_to_choice: choices", 'doc_to_choice: ["A", "B", "C"]')
    assert own(tmp_path, letters, name="l.yaml").scorings == ["letters"]
    (tmp_path / "mine.py").write_text(
        "def process_docs(dataset):\n"
        "    kept = dataset.filter(lambda d: d['gold'] < 2)\n"
        "    return kept.map(lambda d: {'question': d['question'].upper()})\n"
    )
    task = own(tmp_path, LM_EVAL + "process_docs: !function mine.process_docs\n", name="p.yaml")
    assert {d.native["question"] for d in task.documents()} == {"WHICH IS RED?", "WHICH IS BLUE?"}
    assert task.dropped == {"process_docs left it out": 1}


def test_a_description_stands_before_the_question(tmp_path):
    task = own(tmp_path, LM_EVAL + "description: Answer well.\n")
    theirs = task.lm_eval_task()
    assert task.documents(limit=1)[0].receiver.user == theirs.fewshot_context(
        task.documents(limit=1)[0].native, 0
    )


@pytest.mark.parametrize("name", ["dataset_name: null\n", ""])
def test_a_hub_set_without_a_config_is_looked_up(tmp_path, monkeypatch, name):
    folder = tmp_path / "mirror" / "datasets" / "me" / "set" / "default"
    folder.mkdir(parents=True)
    Dataset.from_list(ROWS).to_parquet(folder / "test-00000-of-00001.parquet")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    hub = LM_EVAL.replace("dataset_path: json", "dataset_path: me/set\n" + name)
    hub = hub.replace("dataset_kwargs: {data_files: {test: rows.jsonl}}\n", "")
    assert len(own(tmp_path, hub).documents()) == 3


BAD_YAML = {
    "group": ("task: [a, b]\n", "group of tasks"),
    "no data": ("task: mine\n", "names no data"),
    "missing file": ("dataset_path: gone.csv\n", "there is no data file"),
    "missing data_files": ("dataset_path: csv\n", "names a form and no file"),
    "null data_files": ("dataset_path: csv\ndataset_kwargs: {data_files: 3}\n", "names no files"),
    "kwargs": ("dataset_path: csv\ndataset_kwargs: [a]\n", "no mapping"),
    "missing split": (LM_EVAL.replace("test_split: test", "test_split: dev"), "no such split"),
    "name": (LM_EVAL + "dataset_name: 3\n", "dataset_name: 3 is no text"),
    "shots": (LM_EVAL + "num_fewshot: 5\n", "num_fewshot: 5"),
    "repeats": (LM_EVAL + "repeats: 3\n", "repeats: 3"),
    "rolling": (LM_EVAL.replace("multiple_choice", "loglikelihood_rolling"), "output_type"),
    "images": (LM_EVAL + "doc_to_image: image\n", "images"),
    "mutual": (LM_EVAL.replace("metric: acc", "metric: acc_mutual_info"), "acc_mutual_info"),
    "key": (LM_EVAL + "doc_to_txt: x\n", "doc_to_txt"),
    "metadata": (LM_EVAL + "metadata: 3\n", "metadata is no mapping"),
    "metadata key": (LM_EVAL + "metadata: {veiws: {}}\n", "Did you mean views"),
    "scorings": (LM_EVAL + "metadata: {scorings: [cloze]}\n", "scorings is not a mapping"),
    "a scoring": (LM_EVAL + "metadata: {scorings: {cloze: 3}}\n", "names no primary metric"),
    "default": (LM_EVAL + "metadata: {default_scoring: letters}\n", "letters"),
    "context": (LM_EVAL + "metadata: {context: both}\n", "Say shared or different"),
    "sharer": (LM_EVAL + "metadata: {context: different}\n", "what the sharer reads"),
    "options": (LM_EVAL + "metadata: {options: {x: 3}}\n", "has no default"),
    "columns": ("dataset_path: rows.jsonl\nmetadata: {columns: {question: q}}\n", "there is no column 'q'"),
    "columns part": (
        "dataset_path: rows.jsonl\nmetadata: {columns: {quesion: q}}\n",
        "Did you mean question",
    ),
    "undefined": (LM_EVAL.replace("{{question}}", "{{qestion}}"), "'qestion' is undefined"),
    "syntax": (LM_EVAL.replace("{{question}}", "{{question"), "TemplateSyntaxError"),
    "endless": (
        LM_EVAL.replace(
            "{{question}}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        ),
        "takes more than",
    ),
    "huge": (LM_EVAL.replace("{{question}}", "{{'x' * 10**9}}"), "more than 1,000,000 characters"),
    "power": (LM_EVAL.replace("{{question}}", "{{9**9**9}}"), "more than"),
    "range": (LM_EVAL.replace("{{question}}", "{{range(10**9)|list}}"), "Range too big"),
    "code": (LM_EVAL.replace("{{question}}", "{{question.__class__.__mro__}}"), "SecurityError"),
    "division": (LM_EVAL.replace("{{question}}", "{{1/0}}"), "ZeroDivisionError"),
    "null": (LM_EVAL.replace("{{question}}", "{{none}}"), "null or NaN"),
    "choice template": (
        LM_EVAL.replace("doc_to_choice: choices", 'doc_to_choice: "{{question}}"'),
        "SyntaxError",
    ),
    "target": (LM_EVAL.replace("doc_to_target: gold", "doc_to_target: golden"), "names no choice"),
    "module": (LM_EVAL + "process_docs: !function nowhere.f\n", "nowhere.f, which is not there"),
    "attribute": (LM_EVAL + "process_docs: !function there.g\n", "there.g, which is not there"),
    "itself": ("include: mine.yaml\n", "includes itself"),
    "include": ("include: gone.yaml\n", "which is not there"),
    "include number": ("include: 3\n", "mine.yaml"),
    "raises": (LM_EVAL + "process_docs: !function there.raises\n", "KeyError"),
    "none": (LM_EVAL + "process_docs: !function there.none\n", "process_docs"),
    "numbers": (LM_EVAL + "process_docs: !function there.numbers\n", "row 1 is int"),
    "nothing": (LM_EVAL + "process_docs: !function there.nothing\n", "gives no rows"),
    "no function": (LM_EVAL + "process_docs: !function there.value\n", "process_docs"),
    "a text": (LM_EVAL + "process_docs: nothing\n", "process_docs"),
    "broken": (LM_EVAL + "process_docs: !function broken.f\n", "cannot be imported"),
    "exits": (LM_EVAL + "process_docs: !function exits.f\n", "cannot be imported"),
}
THERE = """
def raises(dataset):
    return dataset[0]["no such"]
def none(dataset):
    return None
def numbers(dataset):
    return [1, 2]
def nothing(dataset):
    return []
value = 3
"""


@pytest.mark.parametrize("kind", BAD_YAML)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, kind, monkeypatch):
    if kind == "endless":
        monkeypatch.setattr("lcfbench.tasks.task.PATIENCE", 0.3)
    yaml, says = BAD_YAML[kind]
    (tmp_path / "there.py").write_text(THERE)
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    text = one_line(lambda: own(tmp_path, yaml).documents())
    assert says in text and ("mine" in text or f"{kind}.py" in text), text


BAD_GOLD = [3, -1, 99, None, [], [5], "soup", "", 1.5, math.nan, {"a": 1}]


@pytest.mark.parametrize("gold", BAD_GOLD, ids=map(repr, BAD_GOLD))
def test_a_gold_that_names_no_choice_is_dropped_and_named(tmp_path, gold):
    rows = [{**row, "gold": row["gold"]} for row in ROWS] + [{**ROWS[0], "gold": gold}]
    task = own(tmp_path, LM_EVAL, rows)
    assert len(task.documents()) == 3 and sum(task.dropped.values()) == 1
    assert task.problems["test"][0][:2] == (4, "doc_to_target")
    first = own(tmp_path, LM_EVAL, [rows[-1], *ROWS], name="first.yaml")  # also where it comes first
    assert len(first.documents()) == 3 and first.problems["test"][0][0] == 1


BAD_CHOICES = [[], ["x"], ["x", "x"], ["x", ""], ["x", None], ["x", 3], None, "xy", 7]


@pytest.mark.parametrize("choices", BAD_CHOICES, ids=map(repr, BAD_CHOICES))
def test_choices_that_cannot_be_ranked_are_dropped_and_named(tmp_path, choices):
    rows = [*ROWS, {**ROWS[0], "choices": choices}]
    for place, turned in ((4, rows), (1, rows[::-1])):
        task = own(tmp_path, LM_EVAL, turned, name=f"c{place}.yaml")
        assert len(task.documents()) == 3 and task.problems["test"][0][0] == place


def test_mixed_numbers_of_choices_and_missing_keys(tmp_path):
    rows = [*ROWS, {**ROWS[0], "choices": ["blood", "sky"]}, {"question": "Only this?"}]
    task = own(tmp_path, LM_EVAL, rows)
    assert sorted(len(d.steps[0].choices) for d in task.documents()) == [2, 3, 3, 3]
    assert [p[0] for p in task.problems["test"]] == [5]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a", "b", "c"], {"a", "b", "c"}),
        ([1, "b", None], {"1", "b", "2"}),
        (["a", "a", "a"], {"a", "a#2", "a#3"}),
        ([1.5, {"x": 1}, ["y"]], {"1.5", '{"x": 1}', '["y"]'}),
        ([math.nan, "", "é"], {"0", "1", "é"}),
    ],
)
def test_ids_of_every_kind(tmp_path, ids, expected):
    rows = [{**row, "id": i} for row, i in zip(ROWS, ids, strict=True)]
    documents = own(tmp_path, LM_EVAL, rows).documents()
    assert {d.doc_id for d in documents} == expected and len({d.hash for d in documents}) == 3


def test_the_same_row_twice_is_asked_once(tmp_path):
    rows = [{**row, "id": "x"} for row in (ROWS[0], ROWS[0], ROWS[1])]
    task = own(tmp_path, LM_EVAL, rows)
    assert len(task.documents()) == 2 and task.dropped == {"the same row stands there twice": 1}


# -- names, places, identity ---------------------------------------------------------------------------

ODD = [
    "my task",
    "übung",
    "日本語",
    "a" * 200,
    "semi;colon",
    "per%cent",
    "-dash",
    "dot.ted",
    "x$y",
    "(paren)",
]


@pytest.mark.parametrize("stem", ODD)
def test_names_are_short_and_safe(tmp_path, stem):
    (tmp_path / f"{stem}.csv").write_text(TABLES["plain.csv"])
    name = load_task(str(tmp_path / f"{stem}.csv")).name
    assert (
        len(name) <= 40
        and name.isascii()
        and not set(name) - set(registry_letters())
        and name[0] not in "-_."
    )


def registry_letters() -> str:
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"


def test_different_odd_names_stay_different(tmp_path):
    names = set()
    for stem in ("日本語", "日本人", "b" * 100 + "x", "b" * 100 + "y"):
        (tmp_path / f"{stem}.csv").write_text(TABLES["plain.csv"])
        names.add(load_task(str(tmp_path / f"{stem}.csv")).name)
    assert len(names) == 4


def test_a_folder_home_and_another_working_folder(tmp_path, monkeypatch):
    place = tmp_path / "with a space"
    place.mkdir()
    jsonl(place, ROWS)
    (place / "one.yaml").write_text(LM_EVAL)
    (place / "two.yaml").write_text(WRITTEN)
    (place / "_base.yaml").write_text("x: 1\n")
    assert registry.add_paths("tasks", str(place)) == ["one", "two"]
    assert "holds 2 tasks" in one_line(lambda: registry.add_path("tasks", str(place)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert len(load_task("~/with a space/one.yaml").documents()) == 3
    (tmp_path / "empty").mkdir()
    assert "holds no task file" in one_line(lambda: registry.add_path("tasks", str(tmp_path / "empty")))


def test_names_that_are_taken(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.csv").write_text(TABLES["plain.csv"])
    (tmp_path / "splitfacts.csv").write_text(TABLES["plain.csv"])
    assert "offered by lcfbench and by" in one_line(lambda: load_task(str(tmp_path / "splitfacts.csv")))
    load_task(str(tmp_path / "a" / "same.csv"))
    assert "task 'same' is offered by" in one_line(lambda: load_task(str(tmp_path / "b" / "same.csv")))


def test_identity_follows_every_file(tmp_path):
    (tmp_path / "base.yaml").write_text(LM_EVAL)
    (tmp_path / "mine_docs.py").write_text("import mine_words\n\ndef docs(rows):\n    return rows\n")
    (tmp_path / "mine_words.py").write_text("x = 1\n")
    yaml = "include: base.yaml\nprocess_docs: !function mine_docs.docs\n"
    task = own(tmp_path, yaml)
    seen = {(task.yaml_sha256, task.data_sha256)}
    for name in ("base.yaml", "mine.yaml", "mine_docs.py", "mine_words.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        task = load_task(str(tmp_path / "mine.yaml"))
        seen.add((task.yaml_sha256, task.data_sha256))
    jsonl(tmp_path, ROWS[:2])
    task = load_task(str(tmp_path / "mine.yaml"))
    seen.add((task.yaml_sha256, task.data_sha256))
    assert len(seen) == 6


def test_two_helpers_of_one_name_that_swap_their_contents(tmp_path):
    for folder, text in (("a", "x = 1\n"), ("b", "x = 2\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.py").write_text(text)
    files = [tmp_path / "main.py", tmp_path / "a" / "words.py", tmp_path / "b" / "words.py"]
    files[0].write_text("")
    before = python_files.files_digest(files)
    files[1].write_text("x = 2\n")
    files[2].write_text("x = 1\n")
    assert python_files.files_digest(files) != before


def test_plugins_share_a_helper_and_keep_another_folders_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shared_words.py").write_text(f"class Word: folder = {folder!r}\n")
        for name in ("one", "two"):
            (tmp_path / folder / f"{name}.py").write_text("from shared_words import Word\n")
    one, two = (python_files.import_file(tmp_path / "a" / f"{n}.py") for n in ("one", "two"))
    assert one.Word is two.Word and one.Word.folder == "a"
    assert python_files.import_file(tmp_path / "b" / "one.py").Word.folder == "b"
    (tmp_path / "a" / "shared_words.py").write_text("class Word: folder = 'changed'\n")
    assert python_files.import_file(tmp_path / "a" / "two.py").Word.folder == "changed"


UNFINISHED = [
    "task: x\nmetadata: [",
    "",
    "- a\n",
    "3\n",
    "\0",
    "a: &a [*a]\n",
    "metadata:\n",
    "\t- x",
    "task: {a: 1}\n",
]


@pytest.mark.parametrize("text", UNFINISHED, ids=map(repr, UNFINISHED))
def test_one_unfinished_file_does_not_hide_the_others(tmp_path, monkeypatch, text):
    (tmp_path / "draft.yaml").write_text(text)
    jsonl(tmp_path, ROWS)
    (tmp_path / "good.yaml").write_text(LM_EVAL)
    monkeypatch.setenv("LCFBENCH_TASKS", str(tmp_path))
    rows = {row["name"]: row["description"] for row in task_table()}
    assert (
        rows["draft"].startswith("cannot be used: ")
        and "\n" not in rows["draft"]
        and "draft" in rows["draft"]
    )
    assert describe("good")["scorings"] == ["cloze"] and "openbookqa" in rows
    assert options_for(["good"], {})


def test_a_folder_of_tasks_that_is_not_there(monkeypatch):
    monkeypatch.setenv("LCFBENCH_TASKS", "/no/such folder")
    rows = {row["name"]: row["description"] for row in task_table()}
    assert any("which is not there" in text for text in rows.values()) and "openbookqa" in rows


def test_columns_by_their_usual_names():
    found = infer(["ID", "Question Stem", "Option A", "Option B", "Answer Key", "Topic"], {})
    assert (found.question, found.answer, found.choices, found.id, found.subject) == (
        "Question Stem",
        "Answer Key",
        ("Option A", "Option B"),
        "ID",
        "Topic",
    )
    said = infer(["q", "x", "y", "key"], {"question": "q", "choices": ["x", "y"], "answer": "key"})
    assert said.choices == ("x", "y")


def test_a_task_from_a_variable_with_spaces(tmp_path):
    place = tmp_path / "two words"
    place.mkdir()
    (place / "my rows.csv").write_text(TABLES["plain.csv"])
    line = [sys.executable, "-m", "lcfbench", "run", "--mode", "nosuch"]
    for name, says in (("my rows.csv", "unknown method 'nosuch'"), ("gone.csv", "two words/gone.csv")):
        environment = os.environ | {"LCFBENCH_TASK": f"{place / name}, splitfacts"}
        ran = subprocess.run(line, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert ran.returncode == 2 and says in ran.stderr, ran.stderr


def test_a_busy_machine_refuses_no_template():
    """The time that a template may take is the processor's, not the clock's."""
    with seconds(0.1):
        time.sleep(0.2)
    with pytest.raises(RefusedError, match="takes more than"), seconds(0.1):
        while True:
            pass


def test_importing_lm_eval_takes_nothing_of_a_templates_time(tmp_path, monkeypatch):
    def slow(shared):
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        return task_class(shared)

    monkeypatch.setattr("lcfbench.tasks.task.PATIENCE", 0.2)
    monkeypatch.setattr("lcfbench.tasks.task.task_class", slow)
    assert own(tmp_path, LM_EVAL).documents()


def test_choices_that_are_numbers_are_named(tmp_path):
    rows = [{**row, "choices": [1, 2, 3]} for row in ROWS]
    text = one_line(lambda: own(tmp_path, LM_EVAL, rows).documents())
    assert "doc_to_choice: the choices are no list of texts" in text

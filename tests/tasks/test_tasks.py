"""Tasks: the rows become the documents the protocol names, and lm-eval agrees with every prompt and score."""

import gzip
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from lcfbench import python_files, registry
from lcfbench.errors import UserError
from lcfbench.tasks import split_evidence
from lcfbench.tasks import yaml_files as task_files
from lcfbench.tasks.preview import preview
from lcfbench.tasks.prompts import render
from lcfbench.tasks.splitfacts import vocabulary
from lcfbench.tasks.task import Outcome, load_task
from lcfbench.tasks.yaml_files import describe, task_names
from tests import split_rows
from tests.helpers import hotpot_row as hotpot
from tests.helpers import own_tokenizer as own
from tests.paper_rows import tables

ROOT = Path(__file__).parents[2]
HUB = ROOT.parent / "shared" / "hub"
MC = ("openbookqa", "arc_challenge", "mmlu_redux")
COUNTS = {
    "openbookqa": 500,
    "arc_challenge": 1172,
    "mmlu_redux": 5700,
    "splitfacts": 500,
    "splitfacts_heldout": 500,
    "splitfacts_several": 500,
}


OWN_TASK = """
task: rhyme
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}\\n"
doc_to_choice: answers
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata:
  description: Which word rhymes?
  licence: none
  context: different
  default_scoring: cloze
  scorings: {cloze: {primary: acc}}
  generator: !function rhyme.rows
  splits: [test]
"""


def options(n):
    return {"text": [f"option {i}" for i in range(n)], "label": list("ABCDE"[:n])}


def split_story(i):
    return f"Pet {i} is a cat. It has a ball. It sleeps in barn {i}. It is fed at noon."


SMALL = (
    {
        ("rajpurkar/squad", "plain_text", "validation"): [
            {
                "id": f"s{i}",
                "title": "Pets",
                "context": split_story(i),
                "question": "Where?",
                "answers": {"text": [f"barn {i}"], "answer_start": [split_story(i).index("barn")]},
            }
            for i in range(8)
        ],
        ("stanfordnlp/coqa", "turns", "validation"): [
            {
                "id": f"c{i}_turn0",
                "source": "made",
                "story": split_story(i),
                "question": "Where?",
                "answers": [f"in barn {i}"],
                "previous_qa": [{"question": "Where?", "answer": f"in barn {i}"}],
            }
            for i in range(40)
        ],
        ("allenai/openbookqa", "main", "test"): [
            {
                "id": f"o{i}",
                "question_stem": f"Which is {i}?",
                "choices": options(4),
                "answerKey": "ABCD"[i % 4],
            }
            for i in range(12)
        ],
        ("allenai/openbookqa", "main", "train"): [
            {"id": "t0", "question_stem": "Tr?", "choices": options(4), "answerKey": "B"}
        ],
        ("tau/commonsense_qa", "default", "validation"): [
            {"id": f"q{i}", "question": f"Where is {i}?", "choices": options(5), "answerKey": "ABCDE"[i % 5]}
            for i in range(6)
        ],
        ("allenai/ai2_arc", "ARC-Challenge", "test"): [
            {"id": "a3", "question": "Three?", "choices": options(3), "answerKey": "C"},
            {"id": "a5", "question": "Five?", "choices": options(5), "answerKey": "E"},
            {
                "id": "n1",
                "question": "Numbers?",
                "choices": options(4) | {"label": ["1", "2", "3", "4"]},
                "answerKey": "3",
            },
            {
                "id": "l1",
                "question": "Letter key?",
                "choices": options(4) | {"label": ["1", "2", "3", "4"]},
                "answerKey": "B",
            },
            {"id": "x1", "question": "No such key?", "choices": options(4), "answerKey": "F"},
        ],
        ("edinburgh-dawg/mmlu-redux-2.0", "all", "test"): [
            {
                "subject": s,
                "question": q,
                "choices": ["w", "x", "y", "z"],
                "answer": 0,
                "error_type": e,
                "correct_answer": c,
            }
            for s, q, e, c in [
                ("law", "fine", "ok", "3"),
                ("law", "index", "wrong_groundtruth", "2"),
                ("law", "letter", "wrong_groundtruth", "D"),
                ("law", "text", "wrong_groundtruth", "y"),
                ("art", "empty", "wrong_groundtruth", ""),
                ("art", "none", "wrong_groundtruth", None),
                ("art", "no", "no_correct_answer", "3"),
                ("art", "hard", "expert", ""),
                ("art", "two", "multiple_correct_answers", "0 and 1"),
                ("art", "unclear", "bad_question_clarity", "2"),
                ("art", "range", "wrong_groundtruth", "7"),
            ]
        ],
        ("hotpotqa/hotpot_qa", "distractor", "validation"): [
            *(hotpot(i) for i in range(8)),
            hotpot(8, n=4, gold=(0, 1)),
            hotpot(9, kind="comparison"),
            hotpot(10, gold=(2,)),
        ],
        ("hotpotqa/hotpot_qa", "distractor", "train"): [hotpot(i) for i in range(20, 24)],
    }
    | tables()
    | split_rows.tables()
)


@pytest.fixture(autouse=True)
def small(tmp_path_factory, monkeypatch):
    """A mirror of a few invented rows, so that every test runs anywhere."""
    root = tmp_path_factory.getbasetemp() / "mirror"
    if not root.is_dir():
        for (repo, config, split), table in SMALL.items():
            path = root / "datasets" / repo / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(table).to_parquet(path)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(root))


@pytest.fixture
def real(monkeypatch):
    if not HUB.is_dir():
        pytest.skip("../shared/hub is not here")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(HUB))


# -- files -----------------------------------------------------------------------------------------


def test_listing_imports_neither_lm_eval_nor_torch():
    code = (
        "import sys, json; from lcfbench.tasks.yaml_files import *;"
        "print(json.dumps([describe(n) for n in task_names()]));"
        "assert not {'torch', 'lm_eval', 'datasets', 'transformers'} & set(sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    listed = json.loads(
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout
    )
    assert [row["name"] for row in listed] == task_names() and set(task_names()) >= {
        *COUNTS,
        "hotpotqa_split",
    }
    assert all(
        row["description"] and row["licence"] and row["default_scoring"] in row["scorings"] for row in listed
    )
    assert describe("hotpotqa_split")["context"] == "different" and describe("openbookqa")["scorings"] == [
        "letters",
        "cloze",
        "generate",
    ]


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match="Did you mean openbookqa"):
        load_task("openbokqa")
    with pytest.raises(UserError, match="Did you mean words"):
        load_task("splitfacts", options={"word": "held-out"})
    with pytest.raises(UserError, match="not one of yes, no"):
        load_task("hotpotqa_split", options={"sharer_question": "maybe"})
    with pytest.raises(UserError, match="whole number"):
        load_task("splitfacts", options={"boxes": "many"})
    with pytest.raises(UserError, match="scoring"):
        load_task("hotpotqa_split").documents(scoring="letters")
    with pytest.raises(UserError, match="no train split"):
        load_task("mmlu_redux").documents(split="train")
    with pytest.raises(UserError, match="limit=0"):
        load_task("openbookqa").documents(limit=0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task: broken\n  x: [", "broken.yaml, line 2: mapping values"),
        ("- a list", "not a mapping"),
        ("task: broken\n", "lacks metadata"),
        ("include: openbookqa.yaml\ntask: other\n", "says task: other"),
        ("task: !function nowhere.f\n", "nowhere.f"),
        ("include: openbookqa.yaml\ntask: broken\ndoc_to_txt: x\n", "doc_to_txt"),
    ],
)
def test_a_broken_file_fails_loudly(tmp_path, monkeypatch, text, says):
    for path in (ROOT / "tasks").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.yaml").write_text(text)
    monkeypatch.setattr(registry, "TASKS", tmp_path)
    with pytest.raises(UserError, match=says):
        load_task("broken").documents()


def test_the_file_digest_covers_what_the_yaml_names(tmp_path, monkeypatch):
    for path in (ROOT / "tasks").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    before = task_files.file_digest("openbookqa")
    monkeypatch.setattr(registry, "TASKS", tmp_path)
    assert task_files.file_digest("openbookqa") == before
    for name in ("choice.py", "_choice.yaml", "openbookqa.yaml"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# changed\n")
        assert task_files.file_digest("openbookqa") != before
        before = task_files.file_digest("openbookqa")


def test_the_file_digest_covers_the_modules_that_score(tmp_path, monkeypatch):
    package = tmp_path / "lcfbench"
    shutil.copytree(ROOT / "lcfbench" / "tasks", package / "tasks")
    monkeypatch.setattr(python_files, "PACKAGE", package)
    before = {name: task_files.file_digest(name) for name in task_names()}
    scores = package / "tasks" / "qa_metrics.py"
    scores.write_text(scores.read_text() + "\n# changed\n")
    changed = {name for name in task_names() if task_files.file_digest(name) != before[name]}
    split = {f"{name}_split" for name in "coqa fanoutqa hotpotqa musique squad twowiki".split()}
    assert changed == {"longbench", "hotpotqa_long", "hotpotqa_several", *split}


def test_a_module_that_a_task_file_imports_from_beside_it_is_in_its_digest(tmp_path, monkeypatch):
    (tmp_path / "rhyme.yaml").write_text(OWN_TASK)
    (tmp_path / "rhyme.py").write_text(
        "import rhyme_words\n\ndef rows(split, n, /, *, seed=0):\n    return rhyme_words.ROWS\n"
    )
    words = tmp_path / "rhyme_words.py"
    words.write_text("ROWS = [{'id': 'a', 'text': 'hat', 'answers': ['cat', 'dog'], 'gold': 0}]\n")
    monkeypatch.setenv("LCFBENCH_TASKS", str(tmp_path))
    task = load_task("rhyme")
    assert task.documents()[0].receiver.user == "hat\n" and not task.shared
    words.write_text("ROWS = [{'id': 'a', 'text': 'bat', 'answers': ['cat', 'dog'], 'gold': 0}]\n")
    changed = load_task("rhyme")
    assert changed.yaml_sha256 != task.yaml_sha256 and changed.documents()[0].receiver.user == "bat\n"


def test_one_unfinished_file_is_named_and_the_rest_is_listed(tmp_path, monkeypatch):
    (tmp_path / "draft.yaml").write_text("task: draft\nmetadata: [")
    monkeypatch.setenv("LCFBENCH_TASKS", str(tmp_path))
    rows = {row["name"]: row["description"] for row in task_files.task_table()}
    assert rows["draft"].startswith("cannot be used: task file") and set(COUNTS) <= set(rows)
    assert "\n" not in rows["draft"] and rows["openbookqa"] == describe("openbookqa")["description"]


# -- multiple choice -------------------------------------------------------------------------------


def test_letters_by_position():
    task = load_task("arc_challenge")
    documents = {d.doc_id: d for d in task.documents()}
    assert {k: (d.gold, len(d.steps[0].choices)) for k, d in documents.items()} == {
        "a3": ("C", 3),
        "a5": ("E", 5),
        "n1": ("C", 4),
        "l1": ("B", 4),
    }
    assert task.dropped == {"the key names no option": 1}
    d = documents["n1"]
    assert (
        d.receiver.user == "Question: Numbers?\nA. option 0\nB. option 1\nC. option 2\nD. option 3\n"
        and d.receiver.prefix == "Answer:"
    )
    assert d.receiver == d.sharer == d.full and d.shared and d.steps[0].choices == (" A", " B", " C", " D")
    assert "option" not in d.request.user and "Numbers?" in d.request.user and "<<note>>" in d.noted.user
    cloze = {d.doc_id: d for d in task.documents(scoring="cloze")}["n1"]
    assert (
        cloze.receiver.user == "Question: Numbers?\n"
        and cloze.steps[0].choices[2] == " option 2"
        and cloze.gold == "option 2"
    )
    written = {d.doc_id: d for d in task.documents(scoring="generate")}["n1"]
    assert (
        written.receiver == d.receiver
        and not written.steps
        and written.gold == "C"
        and written.max_new_tokens == 64
    )


@pytest.mark.parametrize(
    ("labels", "key", "index"),
    [("ABCD", "4", 3), ("1234", "4", 3), ("1234", "B", 1), ("ABC", " C", 2), ("ABC", "?", None)],
)
def test_keys_are_positions(labels, key, index):
    load_task("openbookqa")
    assert importlib.import_module("lcfbench._tasks.choice").position(list(labels), key) == index


def test_mmlu_redux_keys():
    task = load_task("mmlu_redux")
    found = {d.native["question"]: (d.gold, d.subject) for d in task.documents()}
    assert found == {
        "fine": ("A", "law"),
        "index": ("C", "law"),
        "letter": ("D", "law"),
        "text": ("C", "law"),
        "two": ("A", "art"),
        "unclear": ("A", "art"),
    }
    assert task.dropped == {
        "no_correct_answer": 1,
        "expert": 1,
        "wrong_groundtruth without a corrected key": 3,
    }


@pytest.mark.parametrize("name", COUNTS)
def test_counts_on_the_real_data(real, name):
    task = load_task(name)
    documents = (
        task.documents() if name != "mmlu_redux" else task._rows_of("test", None)
    )  # its 5,600 prompts take seconds
    assert len(documents) + sum(task.dropped.values()) == COUNTS[name]
    assert len({d["id"] if name == "mmlu_redux" else d.doc_id for d in documents}) == len(documents)
    assert len(task.data_sha256) == len(task.yaml_sha256) == 64
    if name == "mmlu_redux":
        assert task.dropped == {
            "expert": 32,
            "no_correct_answer": 35,
            "wrong_groundtruth without a corrected key": 5,
        }
        assert len({d["subject"] for d in documents}) == 57
    if name == "arc_challenge":
        assert sorted({len(d.steps[0].choices) for d in documents}) == [3, 4, 5] and not task.dropped


# -- lm-eval agrees --------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["letters", "cloze", "generate"])
@pytest.mark.parametrize("chat", [False, True])
def test_documents_are_lm_evals_requests(scoring, chat):
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(ROOT / "tasks" / "openbookqa.yaml")  # lm-eval's own reading of the file
    over = task_files.read_task("openbookqa", functions=True)["metadata"]["scorings"][scoring]
    config |= {k: v for k, v in over.items() if k != "primary"} | {
        "training_split": None,
        "validation_split": None,
    }
    rows = Dataset.from_list(SMALL["allenai/openbookqa", "main", "test"])
    theirs = ConfigurableTask(config=config | {"metadata": {}, "custom_dataset": lambda **_: {"test": rows}})
    tokenizer = own("keeps")

    def template(turns, add_generation_prompt):
        begun = not add_generation_prompt
        return tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=begun,
            enable_thinking=False,
        )

    theirs.build_all_requests(apply_chat_template=chat, chat_template=template if chat else None)
    expected: dict[str, list] = {}
    for request in theirs.instances:
        expected.setdefault(request.doc["id"], []).append(request.args)
    documents = load_task("openbookqa").documents(scoring=scoring, receiver_chat=chat)
    assert {d.doc_id for d in documents} == set(expected)
    for d in documents:
        prompt = render(d.receiver, tokenizer, chat=chat, choices=scoring != "generate")
        if scoring == "generate":
            assert [
                (prompt.text, {"until": list(d.until), "max_gen_toks": 64, "do_sample": False})
            ] == expected[d.doc_id]
        else:
            assert [(prompt.text + prompt.tail, c) for c in d.steps[0].choices] == expected[d.doc_id]


@pytest.mark.parametrize(
    ("name", "scoring"),
    [
        ("openbookqa", "letters"),
        ("openbookqa", "cloze"),
        ("openbookqa", "generate"),
        ("hotpotqa_split", "generate"),
    ],
)
def test_scores_are_simple_evaluates(name, scoring):
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    def number(text):
        return -int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 1e5

    def writes(text):
        return (
            " " + "ABCD"[int(-number(text) * 1e5) % 4]
            if "option" in text
            else f" the person {len(text) % 8}."
        )

    class Fake(LM):
        def loglikelihood(self, requests):
            return [(number(r.args[0] + r.args[1]), False) for r in requests]

        def generate_until(self, requests):
            return [writes(r.args[0]) for r in requests]

        loglikelihood_rolling = None

    task = load_task(name)
    manager = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False)
    ran = simple_evaluate(
        model=Fake(), tasks=[task.lm_eval_task(scoring)], bootstrap_iters=0, task_manager=manager
    )
    found = ran["results"][name]
    scores = []
    for d in task.documents(scoring=scoring):
        text = (
            d.receiver.user + d.receiver.prefix
        )  # every user turn of ours ends with a newline: no delimiter
        lls = tuple(tuple((number(text + c), False) for c in step.choices) for step in d.steps)
        scores.append(task.score(d, Outcome(lls, None if d.steps else writes(text))))
    metric = task.metric(scoring)
    assert 0 < sum(s[metric] for s in scores) < len(scores)
    for key in set(scores[0]) - {"score", "parsed_by"}:
        assert sum(s[key] for s in scores) / len(scores) == pytest.approx(found[f"{key},none"])
    assert all(s["score"] == s[metric] for s in scores)


def test_pair_requests_carry_the_sharers_view():
    task = load_task("hotpotqa_split")
    theirs = task.lm_eval_task()
    theirs.build_all_requests()
    by_id = {d.doc_id: d for d in task.documents()}
    for request in theirs.instances:
        assert request.args[2] == {"sharer": by_id[request.doc["id"]].sharer.user, "sharer_prefix": "Answer:"}


def test_lm_eval_indexes_every_file():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False)
    assert manager.all_subtasks == task_names()


# -- hotpotqa_split --------------------------------------------------------------------------------


def halves(document):
    return tuple(set(document.native[side].split("\n\n")) - {""} for side in ("receiver", "sharer"))


def assert_disjoint(documents, raw):
    for d in documents:
        source = raw[d.doc_id]
        passages = {
            f"{t}: {''.join(s).strip()}"
            for t, s in zip(source["context"]["title"], source["context"]["sentences"], strict=True)
        }
        mine, theirs = (half & passages for half in halves(d))
        assert len(mine) == len(theirs) == 5 and not mine & theirs and mine | theirs == passages
        gold = set(source["supporting_facts"]["title"])
        assert all(
            sum(p.partition(": ")[0] in gold or any(p.startswith(f"{g}: ") for g in gold) for p in half) >= 1
            for half in (mine, theirs)
        )
        assert all(p in d.full.user for p in passages) and source["question"].strip() in d.sharer.user


def test_two_disjoint_halves_with_one_supporting_paragraph_each():
    task = load_task("hotpotqa_split")
    documents = task.documents()
    raw = {r["id"]: r for r in SMALL["hotpotqa/hotpot_qa", "distractor", "validation"]}
    assert_disjoint(documents, raw)
    assert {d.native["sides"].count("R") for d in documents} == {5}
    assert task.dropped == {
        "comparison question": 1,
        "not ten paragraphs": 1,
        "not two supporting paragraphs": 1,
    }
    parts = [
        {d.doc_id for d in load_task("hotpotqa_split").documents(split=s)} for s in ("train", "validation")
    ]
    assert sum(map(len, parts)) == 4 and not parts[0] & parts[1]  # both are parts of the Hub's train split
    assert (
        not any(d.shared for d in documents)
        and documents[0].until == ("\n",)
        and documents[0].max_new_tokens == 32
    )


def test_split_options_and_their_digests():
    base = load_task("hotpotqa_split")
    d = base.documents()[0]
    same = load_task("hotpotqa_split", seed=5)
    assert {x.hash for x in same.documents()} == {
        x.hash for x in base.documents()
    }  # the run's seed orders, it does not split
    assert same.split_manifest_sha256 == base.split_manifest_sha256
    other = load_task("hotpotqa_split", options={"split_seed": "1"})
    assert other.split_manifest_sha256 != base.split_manifest_sha256
    blind = load_task("hotpotqa_split", options={"sharer_question": "no"}).documents()[0]
    assert d.native["question"] in d.sharer.user and d.native["question"] in d.request.user
    assert (
        d.native["question"] not in blind.sharer.user + blind.request.user
        and blind.sharer.prefix == ""
        and blind.receiver == d.receiver
    )
    none = load_task("hotpotqa_split", options={"receiver_context": "none"}).documents()[0]
    full = load_task("hotpotqa_split", options={"receiver_context": "full"}).documents()[0]
    assert (
        none.receiver.user == f"Question: {d.native['question']}\n" and full.receiver == full.full == d.full
    )
    assert none.sharer == full.sharer == d.sharer


def test_the_manifest_is_the_rule_and_real_rows_are_disjoint(real):
    task = load_task("hotpotqa_split")
    documents = task.documents()
    assert len(documents) == 1116 and task.dropped == {"comparison question": 305, "not ten paragraphs": 1}
    module = sys.modules["lcfbench._tasks.hotpotqa_split"]
    frozen = json.loads(gzip.decompress(module.FROZEN.path.read_bytes()))["rows"]
    raw = {r["id"]: r for r in task._table("test")}
    assert_disjoint(documents, raw)
    for d in documents:
        source = raw[d.doc_id]
        titles = source["context"]["title"]
        needed = [i for i, title in enumerate(titles) if title in source["supporting_facts"]["title"]]
        order, sides = split_evidence.rule(d.doc_id, titles, needed, 0)
        assert frozen[d.doc_id] == ["".join(map(str, order)), sides] == [d.native["order"], d.native["sides"]]
    first = [
        d.native["sides"][
            [int(c) for c in d.native["order"]].index(
                min(
                    i
                    for i, t in enumerate(raw[d.doc_id]["context"]["title"])
                    if t in raw[d.doc_id]["supporting_facts"]["title"]
                )
            )
        ]
        for d in documents
    ]
    assert abs(first.count("R") / len(first) - 0.5) < 0.06
    assert all(d.native["answer"] for d in documents)


@pytest.mark.parametrize(
    ("text", "gold", "f1", "em"),
    [
        (" The Eiffel Tower.", "Eiffel Tower", 1, 1),
        ("a tower in Paris", "Eiffel Tower", 0.4, 0),
        ("yes", "yes", 1, 1),
        ("yes it is", "yes", 0, 0),
        ("no", "yes", 0, 0),
        ("yes", "yes sir", 0, 0),
        ("", "x", 0, 0),
        ("U.S.", "us", 1, 1),
        ("red red", "red", 2 / 3, 0),
    ],
)
def test_official_f1_and_exact_match(text, gold, f1, em):
    load_task("hotpotqa_split")
    score = sys.modules["lcfbench._tasks.hotpotqa_split"].score({"answer": gold}, [text])
    assert score == {"f1": pytest.approx(f1), "exact_match": em}


# -- splitfacts ------------------------------------------------------------------------------------


def test_splitfacts_documents_and_scores():
    task = load_task("splitfacts")
    d = task.documents(limit=1)[0]
    assert (
        not d.chat
        and not d.shared
        and d.until == ("\n",)
        and d.request == d.sharer
        and "<<note>>" in d.noted.user
    )
    assert d.steps[1].choices[d.steps[1].gold[0]].strip() == d.gold
    right = tuple(tuple((0.0 if i in s.gold else -5.0, True) for i in range(len(s.choices))) for s in d.steps)
    assert task.score(d, Outcome(right)) == {"score": 1.0, "acc": 1.0, "step1_acc": 1.0}
    wrong = (right[0][1:] + right[0][:1], right[1])
    assert task.score(d, Outcome(wrong)) == {"score": 1.0, "acc": 1.0, "step1_acc": 0.0}
    word = d.steps[0].choices[d.steps[0].gold[0]]
    written = task.documents(scoring="generate", limit=1)[0]
    for text, em in (
        (f"{word} box. The{word} box is in {d.gold}.", 1),
        (f"{word} box.", 0),
        (f"{word} box. The{word} box is in Nowhere.", 0),
    ):
        assert task.score(written, Outcome(text=text))["score"] == em
    assert len(task.documents(split="train", limit=700)) == 700 and len(task.documents(limit=700)) == 500
    assert len(load_task("splitfacts", options={"n": "20"}).documents()) == 20


def test_the_held_out_task_cannot_be_trained_on():
    task = load_task("splitfacts_heldout")
    assert {c.strip() for d in task.documents() for c in d.steps[0].choices} <= set(vocabulary("held-out"))
    with pytest.raises(UserError, match="no train split"):
        task.documents(split="train", limit=5)
    assert task.data_sha256 != load_task("splitfacts").data_sha256


# -- all tasks -------------------------------------------------------------------------------------


def test_documents_are_the_same_in_every_process_and_a_limit_is_a_prefix():
    code = (
        "import json; from lcfbench.tasks.task import load_task;"
        "from lcfbench.tasks.yaml_files import task_names;"
        "print(json.dumps([[d.hash for d in load_task(n, seed=2).documents(limit=4)] for n in task_names()]))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": s, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for s in ("1", "2")
    }
    mine = [[d.hash for d in load_task(n, seed=2).documents()[:4]] for n in task_names()]
    assert len(seen) == 1 and json.loads(seen.pop()) == mine
    assert [d.doc_id for d in load_task("openbookqa", seed=3).documents()] != [
        d.doc_id for d in load_task("openbookqa", seed=2).documents()
    ]


def test_dry_run_shows_prompts_and_counts():
    for name in task_names():
        task = load_task(name)
        receiver, sharer = own("keeps"), own("bos")
        for d, row in zip(
            task.documents(limit=2), preview(task.documents(limit=2), receiver, sharer), strict=True
        ):
            shown = render(d.receiver, receiver, chat=d.chat, choices=bool(d.steps))
            assert (
                row["receiver"] == {"prompt": shown.text, "tokens": len(shown.ids)} and row["hash"] == d.hash
            )
            assert ("<|im_start|>" in row["receiver"]["prompt"]) == d.chat
            assert [[c["text"] for c in s["choices"]] for s in row["steps"]] == [
                list(s.choices) for s in d.steps
            ]
            assert all(c["tokens"] > 0 for s in row["steps"] for c in s["choices"])
            assert not any("{0}" in s["lead"] for s in row["steps"])
            json.dumps(row)


FOUR, FIVE, TEN = (
    ["red", "blue", "a good idea", "Democracy"],
    ["one", "two", "three", "four", "five"],
    list("qrstuvwxyz"),
)
OTHER = ["w w", "x x", "y y", "z z"]


@pytest.mark.parametrize(
    ("text", "given", "letter"),
    [
        (" B", FOUR, "B"),
        ("b", FOUR, "B"),
        (" **B**", FOUR, "B"),
        ("(c)", FOUR, "C"),
        ("[B]", FOUR, "B"),
        ("'B'", FOUR, "B"),
        ("Answer: B.", FOUR, "B"),
        ("Answer:B", FOUR, "B"),
        ("**Answer:** D", FOUR, "D"),
        ("The answer is B", FOUR, "B"),
        ("the answer is d.", FOUR, "D"),
        ("Correct answer: b", FOUR, "B"),
        ("The correct answer is: **C. a good idea**", FOUR, "C"),
        ("The best answer would be option C.", FOUR, "C"),
        ("The correct option is D because", FOUR, "D"),
        ("Option B", FOUR, "B"),
        ("B) foo", FOUR, "B"),
        ("c) foo", FOUR, "C"),
        ("B. blue", FOUR, "B"),
        ("B, blue", FOUR, "B"),
        ("B: blue", FOUR, "B"),
        ("B because", FOUR, "B"),
        ("A is correct", FOUR, "A"),
        ("\n\nB", FOUR, "B"),
        ("D\n\nExplanation: A is wrong", FOUR, "D"),
        ('"blue"', FOUR, "B"),
        ("blue\nThe sky", FOUR, "B"),
        ("a good idea", FOUR, "C"),
        ("Democracy.", FOUR, "D"),
        ("The answer is Democracy", FOUR, "D"),
        ("C. elegans", ["A. x", "b", "mouse", "C. elegans"], "D"),
        ("E", FIVE, "E"),
        ("The answer is (E).", FIVE, "E"),
        ("J", TEN, "J"),
        ("$\\boxed{D}$", FOUR, "D"),
        ("<think>A or B</think>\n\nC", FOUR, "C"),
        ("B\nQuestion: next?\nAnswer: C", FOUR, "B"),
        ("I think it is (B), because", FOUR, "B"),
        ("The answer is not A. The answer is B.", FOUR, "B"),
        ("Democracy", OTHER, None),
        ("a good idea", OTHER, None),
        ("A good idea is to wait", OTHER, None),
        ("Answer: A good idea", OTHER, None),
        ("Bacteria", OTHER, None),
        ("E", FOUR, None),
        ("e.g. this", FIVE, None),
        ("I think so", TEN, None),
        ("Both A and B", FOUR, None),
        ("(A) or (B)", FOUR, None),
        ("It has vitamin C in it", OTHER, None),
        ("The answer is a good one", OTHER, None),
        ("Because A is wrong", FOUR, None),
        ("", FOUR, None),
    ],
)
def test_reading_a_written_letter(text, given, letter):
    load_task("openbookqa")
    assert importlib.import_module("lcfbench._tasks.choice").read_letter(text, given)[0] == letter

"""Natural texts cut in two: the halves, dropped rows, the same documents from every layout and machine."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from datasets import Dataset

from lcfbench.cli import doctor
from lcfbench.errors import UserError
from lcfbench.tasks.document import Document
from lcfbench.tasks.process_docs import Rows, part_of
from lcfbench.tasks.qa_metrics import answer_scores
from lcfbench.tasks.split_text import SHOT, find, halve, sentences
from lcfbench.tasks.task import Outcome, load_task
from tests.helpers import coqa_rows as stories
from tests.helpers import keep_table as keep
from tests.helpers import one_row_a_turn
from tests.helpers import squad_rows as paragraphs

TASKS = ("squad_split", "coqa_split")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A mirror with invented rows: SQuAD's two splits, CoQA one row a turn."""
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    keep(tmp_path, "rajpurkar/squad", "plain_text", "validation", paragraphs(10))
    keep(tmp_path, "rajpurkar/squad", "plain_text", "train", paragraphs())
    keep(tmp_path, "stanfordnlp/coqa", "turns", "validation", one_row_a_turn(stories()))
    return tmp_path


# -- cutting ---------------------------------------------------------------------------------------


def test_sentences_do_not_end_after_mr_or_initials():
    text = 'Dr. Ann B. Lee came. "Who?" she said. In the U.S. Army\n\nno one asked!  3 left. v2.5 came'
    assert [text[a:b] for a, b in sentences(text)] == [
        "Dr. Ann B. Lee came.",
        '"Who?" she said.',
        "In the U.S. Army",
        "no one asked!",
        "3 left. v2.5 came",
    ]
    assert sentences("  ") == [] and sentences(" one ") == [(1, 4)]


def test_an_answer_is_found_as_whole_words():
    text = "The cat, red-haired, sat. A CAT! concatenated"
    assert [text[a:b] for a, b in find(text, "the cat")] == ["cat", "CAT"]
    assert [text[a:b] for a, b in find(text, "red haired")] == ["red-haired"]
    assert find(text, "the") == find(text, "") == find(text, "dog") == []


TEXT = "One two three. Four five six. Seven eight nine ten. Eleven twelve."


@pytest.mark.parametrize(
    ("answer", "words", "sharer", "receiver"),
    [
        ("two", 0, "One two three. Four five six.", "Seven eight nine ten. Eleven twelve."),
        ("twelve", 0, "Seven eight nine ten. Eleven twelve.", "One two three. Four five six."),
        ("five", 3, "Four five six.", None),
        ("five", 4, "Four five six.", "Seven eight nine ten."),
        ("twelve", 5, "Eleven twelve.", "One two three."),
        ("twelve", 6, "Seven eight nine ten. Eleven twelve.", "One two three. Four five six."),
    ],
)
def test_the_half_with_the_answer_is_the_sharers(answer, words, sharer, receiver):
    found = halve(TEXT, find(TEXT, answer), words)
    if receiver is None:
        assert found == f"a sentence of more than {words} words"
        return
    assert (found.sharer, found.receiver) == (sharer, receiver)
    first, second = sorted((sharer, receiver), key=TEXT.index)
    assert found.full == f"{first} {second}"


def test_texts_that_are_no_test_are_dropped():
    assert halve(TEXT, []) == "the answer is not in the text"
    assert halve("One two.", [(0, 3)]) == "one sentence"
    assert halve(TEXT, [*find(TEXT, "two"), *find(TEXT, "twelve")]) == "the answer is in both halves"
    assert halve(TEXT, find(TEXT, "six. Seven")) == "the answer lies across the cut"
    assert halve(TEXT, find(TEXT, "two three. Four"), 3) == "a sentence of more than 3 words"
    assert halve(TEXT, find(TEXT, "two three. Four"), 4) == "an answer that ends beyond 4 words"


def test_scores_take_the_best_gold():
    assert answer_scores(" the Barn.", ["house", "barn"]) == {"f1": 1, "exact_match": 1}
    assert answer_scores("red barn", ["barn", "a big red barn"]) == {
        "f1": pytest.approx(0.8),
        "exact_match": 0,
    }
    assert answer_scores("", ["barn"]) == {"f1": 0, "exact_match": 0}


def test_parts_are_decided_by_the_text_alone():
    parts = [part_of(f"text {i}", {"train": 70, "validation": 10, "test": 20}) for i in range(1000)]
    assert all(
        abs(parts.count(name) / 10 - share) < 4
        for name, share in (("train", 70), ("validation", 10), ("test", 20))
    )
    assert (part_of("Cotton", {"a": 7, "b": 93}), part_of("Cotton", {"a": 8, "b": 92})) == (
        "b",
        "a",
    )  # its place is 7, for ever
    with pytest.raises(AssertionError, match="sum to 100"):
        [part_of(f"{i}", {"a": 10}) for i in range(100)]


# -- the tasks -------------------------------------------------------------------------------------


def assert_split(d: Document) -> None:
    """Two disjoint halves, the answer in the sharer's only, both in `full`; the question for both."""
    mine, theirs = (
        view.user.removeprefix(SHOT).partition("Notes: ")[2].partition("\n")[0]
        for view in (d.receiver, d.sharer)
    )
    assert " ".join(d.gold.split()) in theirs or find(
        theirs, d.gold
    )  # a few of SQuAD's spans begin inside a word
    assert not find(mine, d.gold) and mine not in theirs and theirs not in mine
    whole = d.full.user.removeprefix(SHOT).partition("Notes: ")[2].partition("\n")[0]
    assert whole in (f"{mine} {theirs}", f"{theirs} {mine}")
    asked = f"Question: {d.native['question'].strip()}\n"
    assert d.receiver.user.endswith(asked) and d.sharer.user.endswith(asked) and d.full.user.endswith(asked)
    assert (
        d.receiver.prefix == d.sharer.prefix == d.full.prefix == "Answer:"
        and d.noted.user.count("<<note>>") == 1
    )
    assert not d.shared and not d.chat and d.until == ("\n",) and d.gold == d.native["answers"][0]
    assert (
        d.noted.user.replace("<<note>>\n", "") == d.receiver.user
        and d.request.prefix == "Answer:"
        and d.request_until == ("\n",)
    )


def test_squad_halves(made):
    task = load_task("squad_split")
    documents = task.documents()
    assert len(documents) == 20 and task.dropped == {"the answer is in both halves": 10}
    for d in documents:
        assert_split(d)
    d = next(d for d in documents if d.doc_id == "q3-Where?")
    assert d.receiver.user == f"{SHOT}Notes: Pet 3 is a cat. It has a red ball.\nQuestion: Where?\n"
    assert d.sharer.user == f"{SHOT}Notes: It sleeps in barn 3. Mr. Lee feeds it at noon.\nQuestion: Where?\n"
    assert task.score(d, Outcome(text=" In barn 3.")) == {"score": 1, "f1": 1, "exact_match": 1}
    train, dev = (task.documents(split=split) for split in ("train", "validation"))
    assert len(train) + len(dev) == 120 and 0 < len(dev) < 20
    assert not {d.doc_id.partition("-")[0] for d in train} & {d.doc_id.partition("-")[0] for d in dev}


def test_coqa_halves_turns_and_parts(made):
    task = load_task("coqa_split")
    parts = {split: task.documents(split=split) for split in ("train", "validation", "test")}
    ids = {split: {d.doc_id.partition("-")[0] for d in documents} for split, documents in parts.items()}
    assert (
        sum(map(len, ids.values())) == len(set().union(*ids.values())) == 60
        and len(ids["train"]) > len(ids["test"]) > len(ids["validation"]) > 0
    )
    stories_ = len(ids["test"])
    assert len(parts["test"]) == 3 * stories_ and task.dropped == {
        "the answer is not in the text": stories_,
        "yes or no": stories_,
    }
    for d in parts["test"]:
        assert_split(d)
    last = next(d for d in parts["test"] if d.gold == "Mr. Lee")
    number = last.sharer.user.partition("barn ")[2].partition(".")[0]
    before = f"Question: Where does it sleep?\nAnswer: in barn {number}.\n"
    before += "Question: Is it fed?\nAnswer: Yes\nQuestion: By whom?\n"
    assert last.receiver.user.endswith(f"red ball.\n{before}") and last.sharer.user.endswith(
        f"noon.\n{before}"
    )
    assert last.native["answers"] == ["Mr. Lee", "Mr. Lee indeed"]
    assert task.score(last, Outcome(text="mr lee indeed"))["score"] == 1


def test_both_layouts_of_coqa_give_the_same_documents(made):
    by_turn = {d.hash: d for d in load_task("coqa_split").documents()}
    (made / "datasets" / "stanfordnlp" / "coqa" / "turns" / "validation-00000-of-00001.parquet").unlink()
    keep(made, "stanfordnlp/coqa", "default", "validation", stories())
    by_story = load_task("coqa_split").documents()
    assert {d.hash for d in by_story} == set(by_turn)
    assert all(d.native["answers"] == by_turn[d.hash].native["answers"][:1] for d in by_story)


def test_an_answer_that_was_given_before_is_dropped(made):
    rows = stories()
    for row in rows:
        row["questions"][4], row["answers"]["input_text"][4] = "Who is Lee?", "Mr. Lee"
    keep(made, "stanfordnlp/coqa", "default", "validation", rows)
    task = load_task("coqa_split")
    assert len(task.documents()) and "the answer was given before" in task.dropped


@pytest.mark.parametrize("name", TASKS)
def test_options(made, name):
    base = load_task(name).documents(limit=4)
    assert {d.hash for d in load_task(name, seed=1).documents()} == {
        d.hash for d in load_task(name).documents()
    }
    for d, blind, none, full, short in zip(
        base,
        *(
            load_task(name, options=o).documents(limit=4)
            for o in (
                {"sharer_question": "no"},
                {"receiver_context": "none"},
                {"receiver_context": "full"},
                {"max_words": "6"},
            )
        ),
        strict=True,
    ):
        assert blind.doc_id == none.doc_id == full.doc_id == short.doc_id == d.doc_id
        assert (
            "Question" not in blind.sharer.user + blind.request.user
            and blind.sharer.prefix == ""
            and blind.request.prefix == "In short:"
            and blind.receiver == d.receiver
        )
        assert (
            blind.sharer.user
            == "Notes: " + d.sharer.user.removeprefix(SHOT).partition("Notes: ")[2].partition("\n")[0] + "\n"
        )
        assert (
            none.receiver.user.startswith(f"{SHOT}Question: ")
            and none.sharer == d.sharer
            and none.full == d.full
        )
        assert full.receiver == full.full == d.full
        for view in (short.sharer, short.receiver):
            notes = view.user.removeprefix(SHOT).partition("\n")[0]
            assert 0 < len(notes.split()) - 1 <= 6
        assert find(short.sharer.user.removeprefix(SHOT).partition("\n")[0], d.gold)
    with pytest.raises(UserError, match="not one of none, half, full"):
        load_task(name, options={"receiver_context": "some"})


@pytest.mark.parametrize("name", TASKS)
def test_lm_eval_alone_reads_the_same_rows(made, name):
    from lcfbench.tasks.yaml_files import read_task

    config = read_task(name, functions=True)
    repo, split = config["dataset_path"], config["test_split"]
    file = next((made / "datasets" / repo).glob(f"*/{split}-*.parquet"))
    theirs = config["process_docs"](Dataset.from_parquet(str(file), cache_dir=str(made / "cache")))
    ours = {d.doc_id: dict(d.native) for d in load_task(name).documents()}
    assert {row["id"]: row for row in theirs} == ours


def test_doctor_finds_the_data_in_either_layout(made):
    found = {c.name: c for c in doctor._data("offline", True)}
    assert "stanfordnlp/coqa turns validation: mirror, 300 rows" in found["data coqa_split"].detail
    assert "rajpurkar/squad plain_text validation: mirror, 30 rows" in found["data squad_split"].detail


def test_on_the_real_data(mirror):
    from lcfbench.sources.datasets import look_table

    for name, repo, config, counts in (
        ("squad_split", "rajpurkar/squad", "plain_text", {"test": 864}),
        ("coqa_split", "stanfordnlp/coqa", "turns", {"test": 905, "validation": 423}),
    ):
        if not look_table(repo, config, "validation")[0]:
            pytest.skip(f"no {repo} in the mirror")
        task = load_task(name)
        for split, count in counts.items():
            documents = task.documents(split=split)
            assert len(documents) == len({d.hash for d in documents}) == count
            for d in documents:
                assert_split(d)
    assert json.dumps(task.dropped) == json.dumps(
        {
            "no answer": 12,
            "the answer is in both halves": 151,
            "the answer is not in the text": 214,
            "the answer was given before": 10,
            "yes or no": 285,
        }
    )


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ({}, "squad_split: the test split is empty: 0 rows for it in the data set."),
        ({"too long": 1200, "no answer": 3}, "squad_split: 1,203 rows of the test split, none usable "
         "(too long: 1,200, no answer: 3)."),
    ],
)  # fmt: skip
def test_a_split_without_a_usable_row_says_how_many_were_read_and_why(monkeypatch, dropped, said):
    task = load_task("squad_split", offline=True)
    monkeypatch.setattr(task, "_documented", lambda split: (Rows(), Counter(dropped)))
    with pytest.raises(UserError) as error:
        task.documents(limit=1)
    assert error.value.what == said

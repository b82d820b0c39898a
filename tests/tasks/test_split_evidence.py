"""Paragraphs and notes dealt to several models: every one on one side, the needed ones on both."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.tasks.document import Document
from lcfbench.tasks.split_evidence import MOST, Evidence, places, rule
from lcfbench.tasks.task import Outcome, load_task
from tests.helpers import BESIDE, keep_table
from tests.split_rows import as_hotpot, fanout, leaf, musique, twowiki

HUB = BESIDE / "hub"
TASKS = ("musique_split", "twowiki_split", "fanoutqa_split")
MANIFESTS = {  # of the frozen splits, by the rows of the mirror
    "musique_split": "fba22fb69510e05ae7f860b04f5c8a073e988f4bbf9b8abc3e32a18457f67bb3",
    "twowiki_split": "63399963ff679ce6e107e4b090c290c62254f391a72f04f1f9ff83081d689a7b",
    "fanoutqa_split": "3c2c107796cf463b2b5bda2680f96966fcfaf9f331bcb9e95e22caf66b4e11a1",
    "hotpotqa_split": "719b6db0475f80fb17dac5528016fd1a0199508bfff2e8d93e7283838fccc60b",
}


@pytest.fixture
def real(monkeypatch):
    if not HUB.is_dir():
        pytest.skip("../shared/hub is not here")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(HUB))


MADE = {
    "musique_split": ("dgslibisey/MuSiQue", "validation", lambda: [musique(i, 2 + i % 3) for i in range(12)]),
    "twowiki_split": (
        "xanhho/2WikiMultihopQA",
        "validation",
        lambda: [twowiki(i, needed=2 + 2 * (i % 2)) for i in range(12)],
    ),
    "fanoutqa_split": ("zhudotexe/fanoutqa", "dev", lambda: [fanout(i, 4 + i % 3) for i in range(12)]),
}


def mirror(folder: Path, monkeypatch, name: str, rows: list[dict] | None = None) -> None:
    repo, split, make = MADE[name]
    keep_table(folder, repo, "default", split, make() if rows is None else rows)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(folder))


# -- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "needed"), [(10, (2, 7)), (10, (0, 3, 5, 9)), (20, (1, 2, 3)), (11, (4, 10))])
def test_each_side_gets_half_and_some_of_the_needed(n, needed):
    firsts = Counter()
    for i in range(200):
        order, sides = rule(f"row {i}", [f"t{k}" for k in range(n)], needed, 0)
        assert sorted(order) == list(range(n)) and set(sides) == {"R", "S"}
        assert sides.count("R") == n // 2
        of = {place: side for place, side in zip(order, sides, strict=True)}
        mine = sum(of[place] == "R" for place in needed)
        assert abs(2 * mine - len(needed)) <= 1
        firsts[of[needed[0]]] += 1
    assert abs(firsts["R"] - 100) < 30


def test_a_split_depends_on_row_titles_and_seed_alone():
    titles = [f"t{k}" for k in range(10)]
    one = rule("a", titles, (2, 7), 0)
    assert one == rule("a", list(titles), (7, 2), 0)
    assert one != rule("b", titles, (2, 7), 0) and one != rule("a", titles, (2, 7), 1)
    assert len(places(range(MOST))) == len(set(places(range(MOST)))) == MOST


def test_what_is_no_test_is_told():
    good = Evidence("a", "q", ["t"] * 4, ["x"] * 4, (0, 1))
    assert good.problem(["yes"]) == ""
    assert good.problem([]) == "no answer"
    for field, value, words in (
        ("ident", None, "no id"),
        ("question", " ", "no question"),
        ("titles", ["t", None, "t", "t"], "without title or text"),
        ("texts", ["", "x", "x", "x"], "without title or text"),
        ("supporting", (1,), "fewer than two"),
        ("titles", ["t"] * 3, "3 paragraphs"),
    ):
        assert words in Evidence(**{**vars(good), field: value}).problem(["yes"])


# -- all three -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_options_and_bounds(tmp_path, monkeypatch, name):
    mirror(tmp_path, monkeypatch, name)
    base, again = load_task(name), load_task(name, seed=7)
    documents = base.documents()
    assert len(documents) == 12 and not base.dropped
    assert {d.hash for d in documents} == {d.hash for d in again.documents()}
    assert base.split_manifest_sha256 == again.split_manifest_sha256
    other = load_task(name, options={"split_seed": "1"})
    assert other.split_manifest_sha256 != base.split_manifest_sha256
    d = documents[0]
    asked = f"Question: {d.native['question']}\n"

    def under(**options: str) -> Document:
        found = {x.doc_id: x for x in load_task(name, options=options).documents()}
        return found[d.doc_id]

    blind, none, full = under(sharer_question="no"), *(under(receiver_context=c) for c in ("none", "full"))
    assert d.sharer.user.endswith(asked) and d.request.user.endswith(asked)
    assert asked not in blind.sharer.user + blind.request.user and not blind.sharer.prefix
    assert blind.receiver == d.receiver and not d.shared and d.subject
    assert none.receiver.user == asked and full.receiver == full.full == d.full
    assert none.sharer == full.sharer == d.sharer
    assert d.noted.user.replace("<<note>>\n\n", "") == d.receiver.user


@pytest.mark.parametrize("name", [*TASKS, "hotpotqa_split"])
def test_frozen_manifests_hold(real, name):
    task = load_task(name)
    assert task.split_manifest_sha256 == MANIFESTS[name]
    frozen = sys.modules[f"lcfbench._tasks.{name}"].FROZEN
    before = {d.hash for d in task.documents()}
    assert set(frozen.rows) >= {d.doc_id for d in task.documents()}
    frozen.__dict__["rows"] = {}  # without it the rule gives the same
    try:
        assert {d.hash for d in load_task(name).documents()} == before
    finally:
        del frozen.__dict__["rows"]


def test_hotpotqa_has_the_documents_that_it_always_had(real):
    documents = load_task("hotpotqa_split").documents()
    text = "".join(d.hash + d.request.user + d.noted.user for d in documents)
    digest = "e54b7803f0592ff14b337581ce65b1f45e4769cd8ef86ff979c74e41bac35f99"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


# -- paragraphs ----------------------------------------------------------------------------------


def assert_dealt(d: Document, raw: dict[str, tuple[list[str], set[int]]]) -> None:
    """Both sides disjoint and complete, in the drawn order, with needed paragraphs on both."""
    texts, needed = raw[d.doc_id]
    mine, theirs, whole = (
        view.user.split("\n\n", 1)[1].rsplit("\n\nQuestion: ", 1)[0].split("\n\n")
        for view in (d.receiver, d.sharer, d.full)
    )
    assert Counter(mine) + Counter(theirs) == Counter(whole) == Counter(texts)
    order = ["0123456789abcdefghijklmnopqrstuvwxyz".index(place) for place in d.native["order"]]
    assert whole == [texts[i] for i in order]
    sides = dict(zip(order, d.native["sides"], strict=True))
    assert {sides[i] for i in needed} == {"R", "S"} and len(mine) == len(texts) // 2
    assert mine == [texts[i] for i in order if sides[i] == "R"]


def of_musique(rows) -> dict:
    return {
        row["id"]: (
            [f"{p['title']}: {p['paragraph_text'].strip()}" for p in row["paragraphs"]],
            {i for i, p in enumerate(row["paragraphs"]) if p["is_supporting"]},
        )
        for row in rows
    }


def of_twowiki(rows) -> dict:
    found = {}
    for row in rows:
        context, facts = (json.loads(row[key]) for key in ("context", "supporting_facts"))
        texts = [f"{title}: {' '.join(s.strip() for s in sentences).strip()}" for title, sentences in context]
        needed = {title for title, _ in facts}
        found[row["_id"]] = texts, {i for i, (title, _) in enumerate(context) if title in needed}
    return found


def test_real_musique_rows(real):
    task = load_task("musique_split")
    documents, raw = task.documents(), of_musique(task._table("test"))
    assert len(documents) == 120 and not task.dropped
    assert Counter(d.subject for d in documents) == {"2 hops": 84, "3 hops": 19, "4 hops": 17}
    for d in documents:
        assert_dealt(d, raw)
        assert any(gold.lower() in d.full.user.lower() for gold in d.native["answers"])
    assert sum(len(d.native["answers"]) > 1 for d in documents) >= 30
    parts = [{d.doc_id for d in task.documents(split=s)} for s in ("train", "validation")]
    assert sum(map(len, parts)) == 100 and not parts[0] & parts[1]


def test_real_twowiki_rows(real):
    task = load_task("twowiki_split")
    documents, raw = task.documents(), of_twowiki(task._table("test"))
    assert len(documents) == 98 and not task.dropped
    kinds = {"compositional": 33, "comparison": 33, "bridge comparison": 25, "inference": 7}
    assert Counter(d.subject for d in documents) == kinds
    for d in documents:
        assert_dealt(d, raw)
    extracted = [d for d in documents if d.gold not in ("yes", "no")]
    there = sum(d.gold.lower() in d.full.user.lower() for d in extracted)
    assert there >= 0.9 * len(extracted)
    assert len(task.documents(split="train")) == 483


def test_both_layouts_of_2wiki_are_one(tmp_path, monkeypatch):
    rows = [twowiki(i, needed=2 + 2 * (i % 2)) for i in range(6)]
    mirror(tmp_path / "a", monkeypatch, "twowiki_split", rows)
    strings = {d.hash for d in load_task("twowiki_split").documents()}
    mirror(tmp_path / "b", monkeypatch, "twowiki_split", [as_hotpot(row) for row in rows])
    assert {d.hash for d in load_task("twowiki_split").documents()} == strings


def test_aliases_count(tmp_path, monkeypatch):
    mirror(tmp_path, monkeypatch, "musique_split")
    task = load_task("musique_split")
    d = next(d for d in task.documents() if d.doc_id == "m3")
    assert d.native["answers"] == ["The Person 3", "Person"] and d.gold == "The Person 3"
    for text, f1, em in ((" person 3.", 1, 1), ("Person", 1, 1), ("person 4", 2 / 3, 0), ("", 0, 0)):
        assert task.score(d, Outcome(text=text)) == {
            **{"score": pytest.approx(f1), "f1": pytest.approx(f1), "exact_match": em}
        }


def test_musique_rows_that_are_no_test_are_counted(tmp_path, monkeypatch):
    rows = [musique(i) for i in range(3)]
    rows += [musique(10 + i, answerable=False) for i in range(2)]
    rows += [musique(20, answer=None, answer_aliases=None), musique(21, answer="", answer_aliases=["Ada"])]
    rows += [musique(30, question=None), musique(31, hops=1), musique(32, paragraphs=[])]
    blank = musique(33)
    blank["paragraphs"][4]["paragraph_text"] = None
    mirror(tmp_path, monkeypatch, "musique_split", [*rows, blank])
    task = load_task("musique_split")
    assert {d.doc_id for d in task.documents()} == {"m0", "m1", "m2", "m21"}
    assert task.dropped == {
        "a paragraph without title or text": 1,
        "fewer than two supporting paragraphs": 2,
        "no answer": 1,
        "no id or no question": 1,
        "not answerable from its paragraphs": 2,
    }


def test_twowiki_rows_that_are_no_test_are_counted(tmp_path, monkeypatch):
    twice = json.loads(twowiki(40)["context"])
    twice[0][0] = twice[8][0]
    rows = [
        *(twowiki(i) for i in range(3)),
        twowiki(10, context="[["),
        twowiki(11, supporting_facts="3"),
        twowiki(12, context=None),
        twowiki(13, answer=None),
        twowiki(14, supporting_facts=json.dumps([["Not there", 0], ["Title 14 1", 0]])),
        twowiki(40, context=json.dumps(twice)),
        twowiki(15, needed=1),
    ]
    mirror(tmp_path, monkeypatch, "twowiki_split", rows)
    task = load_task("twowiki_split")
    assert {d.doc_id for d in task.documents()} == {"w0", "w1", "w2"}
    assert task.dropped == {
        "a context or supporting facts that cannot be read": 3,
        "a supporting paragraph that is not there once": 2,
        "fewer than two supporting paragraphs": 1,
        "no answer": 1,
    }


# -- notes of several sharers --------------------------------------------------------------------


def notes_in(text: str) -> list[str]:
    return [line[2:] for line in text.splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("sharers", [1, 2, 3])
def test_notes_are_dealt_to_the_receiver_and_every_sharer(tmp_path, monkeypatch, sharers):
    mirror(tmp_path, monkeypatch, "fanoutqa_split")
    documents = load_task("fanoutqa_split", options={"sharers": str(sharers)}).documents()
    for d in documents:
        parts = d.native["sharer_parts"]
        assert len(parts) == sharers and all(notes_in(part) for part in parts)
        assert "\n\n".join(parts) in d.sharer.user
        mine, whole = notes_in(d.receiver.user), notes_in(d.full.user)
        held = [*mine, *(note for part in parts for note in notes_in(part))]
        assert Counter(held) == Counter(whole) and len(set(held)) == len(held)
        assert any(note.startswith("Towns: Which towns?") for note in mine) and len(mine) >= 2
        sizes = [len(mine) - 1, *(len(notes_in(part)) for part in parts)]
        assert max(sizes) - min(sizes) <= 1


def test_real_fanout_rows(real):
    task = load_task("fanoutqa_split")
    documents = task.documents()
    assert len(documents) == 297
    assert task.dropped == {
        "fewer notes to deal than models": 3,
        "the receiver's notes hold the whole answer": 10,
    }
    score = {d.doc_id: task.score(d, Outcome(text=d.full.user)) for d in documents}
    assert sum(found["strict"] for found in score.values()) >= 0.9 * len(documents)
    assert all(task.score(d, Outcome(text=d.gold))["strict"] == 1 for d in documents)
    listed = [d for d in documents if len(d.native["strings"]) > 1]
    assert all(task.score(d, Outcome(text=d.receiver.user))["strict"] == 0 for d in listed)
    for d in documents:
        held = notes_in(d.receiver.user) + [n for part in d.native["sharer_parts"] for n in notes_in(part)]
        assert Counter(held) == Counter(notes_in(d.full.user))


@pytest.mark.parametrize(
    ("answer", "text", "loose", "strict"),
    [
        ({"Ada": 36, "Bo": 9}, "Ada was 36 and Bo 9.", 1, 1),
        ({"Ada": 36, "Bo": 9}, "Ada: 36; Bo: 90", 0.75, 0),
        ({"Ada": 1234567}, "ada 1,234,567!", 1, 1),
        ({"A": "$1.027 billion"}, "a made $1.027 Billion", 1, 1),
        ({"A": "3:58"}, "A lasts 3:58.", 1, 1),
        ({"A": 61.6}, "A: 61.6", 1, 1),
        ({"A": True, "B": False}, "A: yes, B: no", 1, 1),
        ({"A": ["x", "y"]}, "A x", 2 / 3, 0),
        (["red", "green"], "GREEN reddish", 0.5, 0),
        ("Ada", "Adam", 0, 0),
        (True, "Yes.", 1, 1),
        (12, "in 2012", 0, 0),
        ("C++ (language)", "It is C++ (language).", 1, 1),
        ("ﬁn", "a fin", 1, 1),
        ("Ada", "", 0, 0),
    ],
)
def test_loose_and_strict_accuracy(answer, text, loose, strict):
    load_task("fanoutqa_split")
    module = sys.modules["lcfbench._tasks.fanoutqa_split"]
    assert module.score({"strings": module.strings(answer)}, [text]) == {
        "loose": pytest.approx(loose),
        "strict": strict,
    }


def test_fanout_rows_that_are_no_test_are_counted(tmp_path, monkeypatch):
    inner = leaf("Which?", None)
    inner["decomposition"] = [leaf("First?", "a"), leaf("Second?", "b", after="x")]
    nested = [inner, *(leaf(f"{k}?", f"v{k}", after="x") for k in range(3))]
    rows = [
        fanout(0),
        fanout(1, n=2),
        fanout(2) | {"decomposition": "[["},
        fanout(3) | {"answer": "null"},
        fanout(4) | {"answer": None},
        fanout(5) | {"question": ""},
        fanout(6, decomposition=[leaf(f"{k}?", None) for k in range(4)]),
        fanout(7, decomposition=nested, answer=["v0", "v1", "v2", "b"]),
        fanout(8, answer={"Town8x0": 8}, decomposition=[leaf("All?", {"Town8x0": 8}), *nested[1:]]),
        fanout(9, n=80),
    ]
    mirror(tmp_path, monkeypatch, "fanoutqa_split", rows)
    task = load_task("fanoutqa_split")
    found = {d.doc_id: d for d in task.documents()}
    assert set(found) == {"f0", "f7"} and len(notes_in(found["f7"].full.user)) == 5
    assert task.dropped["the receiver's notes hold the whole answer"] == 1
    assert task.dropped["an answer or a decomposition that cannot be read"] == 3
    assert task.dropped["fewer notes to deal than models"] == 1
    assert task.dropped["no answer"] == task.dropped["no id or no question"] == 1
    assert task.dropped["81 notes"] == 1


@pytest.mark.parametrize("sharers", ["0", "9", "-1"])
def test_a_wrong_number_of_sharers_is_one_line(tmp_path, monkeypatch, sharers):
    mirror(tmp_path, monkeypatch, "fanoutqa_split")
    with pytest.raises(UserError, match="1 to 8"):
        load_task("fanoutqa_split", options={"sharers": sharers}).documents()

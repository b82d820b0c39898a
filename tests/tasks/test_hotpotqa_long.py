"""HotpotQA with further paragraphs beside the sharer's: the same texts without any, and none that tells."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.tasks.document import Document
from lcfbench.tasks.qa_metrics import normalised
from lcfbench.tasks.task import Task, load_task
from tests.helpers import BESIDE, hotpot_row, keep_table

HUB = BESIDE / "hub"
ROWS = 12


def made() -> list[dict]:
    """Twelve questions; a paragraph of each tells the answer of the next one, in other letters."""
    rows = [hotpot_row(i) for i in range(ROWS)]
    for i, row in enumerate(rows):
        row["context"]["sentences"][4] = [f"It was A PERSON, {(i + 1) % ROWS}!"]
    return rows


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    keep_table(tmp_path, "hotpotqa/hotpot_qa", "distractor", "validation", made())
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    return tmp_path


def asked(name: str = "hotpotqa_long", **options: object) -> Task:
    return load_task(name, options={key: str(value) for key, value in options.items()})


def passages(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part.startswith("Title ")]


def seen(document: Document) -> list:
    return [document.receiver, document.sharer, document.full, document.request, document.noted]


def by_id(task: Task) -> dict[str, Document]:
    return {d.doc_id: d for d in task.documents()}


def test_without_further_paragraphs_it_is_hotpotqa_split(table: Path) -> None:
    for options in ({}, {"receiver_context": "full"}, {"sharer_question": "no", "split_seed": 3}):
        long, split = asked(**options), asked("hotpotqa_split", **options)
        assert {i: seen(d) for i, d in by_id(long).items()} == {i: seen(d) for i, d in by_id(split).items()}
        assert long.split_manifest_sha256 == split.split_manifest_sha256


@pytest.mark.parametrize("count", [1, 4, 9, 60])
def test_the_sharer_reads_more_and_the_receiver_the_same(table: Path, count: int) -> None:
    before = by_id(asked())
    for ident, d in by_id(asked(distractors=count)).items():
        mine, theirs, whole = (passages(view.user) for view in (d.receiver, d.sharer, d.full))
        assert (d.receiver, d.noted) == (before[ident].receiver, before[ident].noted)
        assert set(theirs) > set(passages(before[ident].sharer.user)) and len(theirs) == 5 + count
        assert passages(d.request.user) == theirs
        assert len(set(theirs)) == len(theirs) and Counter(whole) == Counter(set(theirs) | set(mine))
        assert whole[: len(theirs)] == theirs  # what the sharer reads comes first
        assert len(d.native["added"]) == count


@pytest.mark.parametrize("count", [4, 60])
def test_no_further_paragraph_tells_the_answer_or_is_needed(table: Path, count: int) -> None:
    rows = {row["id"]: row for row in made()}
    for d in asked(distractors=count).documents():
        number = d.doc_id[1:]
        needed = {f"Title {number} {k}" for k in (2, 7)}
        assert not needed & set(d.native["added"])
        theirs = [p.partition(":")[0] for p in passages(d.sharer.user)]
        assert len(needed & set(theirs)) == 1
        telling = f"Title {(int(number) - 1) % ROWS} 4"
        assert telling not in theirs
        answer = f" {normalised(rows[d.doc_id]['answer'])} "
        assert not any(answer in f" {normalised(p)} " for p in passages(d.sharer.user))


def test_the_receivers_other_paragraphs_come_first(table: Path) -> None:
    for d in asked(distractors=4).documents():
        mine = {p.partition(":")[0] for p in passages(d.receiver.user)}
        assert set(d.native["added"]) < mine and len(passages(d.full.user)) == 10


def test_fewer_are_a_part_of_more_and_another_seed_gives_others(table: Path) -> None:
    few, more, again = (by_id(asked(distractors=n)) for n in (6, 20, 20))
    other = by_id(asked(distractors=20, split_seed=1))
    for ident in few:
        assert more[ident].native["added"][:6] == few[ident].native["added"]
        assert seen(more[ident]) == seen(again[ident])
    assert any(other[ident].native["added"] != more[ident].native["added"] for ident in few)
    digests = {asked(distractors=n).split_manifest_sha256 for n in (0, 6, 20)}
    assert len(digests) == 3


def test_the_order_hides_which_are_further(table: Path) -> None:
    """The paragraph that is needed is not always among the first."""
    found = []
    for d in asked(distractors=20).documents():
        theirs = [p.partition(":")[0] for p in passages(d.sharer.user)]
        found.append(
            next(
                i
                for i, title in enumerate(theirs)
                if title.split()[-1] in "27" and title.split()[1] == d.doc_id[1:]
            )
        )
    assert min(found) < 8 and max(found) > 14


def test_the_other_rows_are_those_of_the_same_table(table: Path, tmp_path: Path) -> None:
    """Two tables in one process do not mix, and what stands beside a question is in the data's digest."""
    first = asked(distractors=9)
    before = by_id(first)
    rows = made()
    rows[5]["context"]["sentences"][3] = ["Changed."]
    keep_table(tmp_path, "hotpotqa/hotpot_qa", "distractor", "validation", rows)
    second = asked(distractors=9)
    assert first.data_sha256 != second.data_sha256
    assert any("Changed." in d.sharer.user for d in second.documents())
    assert {i: d.hash for i, d in by_id(first).items()} == {i: d.hash for i, d in before.items()}


@pytest.mark.parametrize("count", ["-1", "401", "many"])
def test_a_wrong_number_is_one_line(table: Path, count: str) -> None:
    with pytest.raises(UserError, match="distractors"):
        asked(distractors=count).documents()


def test_more_than_there_are_is_said(table: Path) -> None:
    with pytest.raises(UserError, match="fewer than 200 paragraphs without its answer: 12"):
        asked(distractors=200).documents()


def test_real_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HUB.is_dir():
        pytest.skip("../shared/hub is not here")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(HUB))
    task = asked(distractors=8)
    documents = task.documents(limit=40)
    assert sum(task.dropped.values()) == 306
    raw = {row["id"]: row for row in task._table("test")}
    for d in documents:
        row = raw[d.doc_id]
        needed, answer = set(row["supporting_facts"]["title"]), f" {normalised(row['answer'])} "
        texts = {
            title: f"{title}: {''.join(sentences).strip()}"
            for other in raw.values()
            for title, sentences in zip(other["context"]["title"], other["context"]["sentences"], strict=True)
            if title in d.native["added"]
        }
        assert len(set(d.native["added"])) == 8 and not needed & texts.keys()
        assert not any(answer in f" {normalised(text)} " for text in texts.values())

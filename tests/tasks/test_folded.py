"""Documents and rows that lie in a file are as they were, and only some are in memory."""

from __future__ import annotations

import copy
import pickle
import tempfile
from dataclasses import fields, replace

import pytest

from lcfbench.tasks import folded
from lcfbench.tasks.document import Document, Step, View
from lcfbench.tasks.folded import FoldedRows, Picked, Store
from lcfbench.tasks.task import load_task


def made(number: int, **more: object) -> Document:
    view = View(f"question {number}", "Answer:", (("system", "be brief"),))
    facts = {"task": "t", "doc_id": str(number), "scoring": "cloze", "gold": "a", "subject": "s"}
    views = dict.fromkeys(("receiver", "sharer", "full", "request", "noted"), view)
    native = {"id": number, "text": f"row {number}"}
    return Document(**{**facts, **views, "steps": (Step((" a", " b"), (0,)),), "native": native, **more})


@pytest.fixture(autouse=True)
def few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "KEPT", 2)
    monkeypatch.setattr(folded, "RECENT", 3)


def test_a_folded_document_is_the_document_in_every_way() -> None:
    store = Store()
    for number in range(8):
        whole = made(number, until=("\n",), max_new_tokens=number % 2)
        lies = folded.folded(whole, store)
        assert lies is not whole and isinstance(lies, Document)
        for name in (*(f.name for f in fields(Document)), "hash", "content", "dealt"):
            assert getattr(lies, name) == getattr(whole, name), name
        assert lies.native == whole.native and lies.met_by(3) == (lies,) * 3
        assert lies == whole and whole == lies and hash(lies) == hash(whole) and repr(lies) == repr(whole)
        assert lies != made(number + 1)
        other = replace(lies, gold="b")
        assert type(other) is Document and other == replace(whole, gold="b") and other.hash != lies.hash
        assert copy.copy(lies) == copy.deepcopy(lies) == pickle.loads(pickle.dumps(lies)) == whole
    assert len(store._held) == 2 and len(store._recent) <= 3


def test_documents_made_of_others_stay_as_they_are() -> None:
    for more in ({"parts": (made(1),)}, {"rival": made(1)}, {"sharers": (View("x"),)}):
        whole = made(0, **more)
        assert folded.folded(whole, Store()) is whole


def test_rows_lie_on_the_disk_and_come_back() -> None:
    store = Store()
    rows = [{"id": i, "text": "ä" * i, "none": None, "list": [i, 0.1]} for i in range(20)]
    lie = FoldedRows(rows, store)
    assert len(lie) == 20 and list(lie) == rows and lie[7] == rows[7] and lie[-1] == rows[-1]
    assert lie[3:6] == rows[3:6] and list(lie.features) == list(rows[0])
    assert len(store._held) == 2 and len(store._recent) == 3
    with pytest.raises(IndexError):
        lie[20]
    some = Picked(lie, [9, 3, 17, 3])
    assert list(some) == [rows[9], rows[3], rows[17], rows[3]] and len(some) == 4
    assert some[1] == rows[3] and list(some[2:]) == [rows[17], rows[3]]


def test_what_cannot_lie_in_a_file_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    store, odd = Store(), [{"id": i, "call": lambda: None} for i in range(4)]
    assert all(row is kept for row, kept in zip(FoldedRows(odd, store), odd, strict=True))

    def full(**_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    rows = [{"id": i} for i in range(9)]
    assert list(FoldedRows(rows, Store())) == rows


def test_a_task_gives_the_same_documents_and_digests_however_many_are_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = load_task("splitfacts", options={"n": "40"})
    found, digest = few.documents(limit=30), few.data_sha256
    monkeypatch.setattr(folded, "KEPT", 1000)
    many = load_task("splitfacts", options={"n": "40"})
    assert many.data_sha256 == digest and many.documents(limit=30) == found
    assert [d.hash for d in many.documents(limit=30)] == [d.hash for d in found]
    assert [d.native for d in found] == [d.native for d in many.documents(limit=30)]

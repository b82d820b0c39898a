"""Each document gets another one's message, each is used once, near in length, never of the same text."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lcfbench.controls.assignment import NEIGHBOURHOOD
from lcfbench.controls.base import load_control
from lcfbench.controls.names import check_control
from lcfbench.errors import UserError
from lcfbench.tasks.document import Document, View


def document(name: object, text: str) -> Document:
    view = View("Which box?")
    return Document("t", str(name), view, View(text), view, view, view, "generate", "x")


def documents(n: int, seed: int = 0, texts: int | None = None) -> list[Document]:
    """n documents of mixed lengths; `texts` different texts where given, else all different."""
    rng = random.Random(seed)
    pool = [f"{i} " + "word " * rng.randrange(200) for i in range(texts or n)]
    return [document(i, pool[i] if texts is None else rng.choice(pool)) for i in range(n)]


def senders(found: list[Document], seed: int = 0) -> list[Document]:
    by_hash = load_control("deranged").message_from(found, seed)
    assert set(by_hash) == {d.hash for d in found}
    return [by_hash[d.hash] for d in found]


@pytest.mark.parametrize("n", [2, 3, 7, 8, 9, 10, 15, 16, 17, 33, 100, 501])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_permutation_without_fixed_points(n, seed):
    found = documents(n, seed)
    got = senders(found, seed)
    assert sorted(s.hash for s in got) == sorted(d.hash for d in found)
    assert all(s is not d for s, d in zip(got, found, strict=True))


def test_senders_are_near_in_length():
    found = documents(400)
    lengths = sorted(len(d.sharer.user) for d in found)
    rank = {d.hash: i for i, d in enumerate(sorted(found, key=lambda d: (len(d.sharer.user), d.hash)))}
    gaps = [abs(rank[s.hash] - rank[d.hash]) for s, d in zip(senders(found), found, strict=True)]
    assert max(gaps) < NEIGHBOURHOOD
    off = [abs(len(s.sharer.user) - len(d.sharer.user)) for s, d in zip(senders(found), found, strict=True)]
    assert sum(off) / len(off) < 0.1 * (lengths[-1] - lengths[0])


def test_the_seed_decides_and_the_order_of_documents_does_not():
    found = documents(50)
    first = {d.hash: s.hash for d, s in zip(found, senders(found), strict=True)}
    turned = found[::-1]
    assert {d.hash: s.hash for d, s in zip(turned, senders(turned), strict=True)} == first
    assert {d.hash: s.hash for d, s in zip(found, senders(found, seed=1), strict=True)} != first


@pytest.mark.parametrize(("n", "texts"), [(3, 2), (40, 30), (200, 50), (60, 5), (500, 400)])
def test_documents_of_the_same_text_do_not_exchange_messages(n, texts):
    for seed in range(5):
        found = documents(n, seed, texts)
        most = max(Counter(d.sharer for d in found).values())
        got = senders(found, seed)
        assert sorted(s.hash for s in got) == sorted(d.hash for d in found)
        assert all(s is not d for s, d in zip(got, found, strict=True))
        same = sum(s.sharer == d.sharer for s, d in zip(got, found, strict=True))
        assert same <= max(0, 2 * most - n), "no more than there must be"


def test_where_all_say_the_same_it_is_still_another_document():
    found = [document(i, "one text") for i in range(9)]
    assert all(s is not d for s, d in zip(senders(found), found, strict=True))


def test_one_document_cannot_be_deranged():
    with pytest.raises(UserError, match="at least two documents"):
        load_control("deranged").message_from(documents(1), 0)
    found = documents(2)
    assert senders(found) == found[::-1]


def test_matched_is_its_own_and_other_names_are_refused():
    found = documents(3)
    assert load_control("matched").message_from(found, 0) == {d.hash: d for d in found}
    with pytest.raises(UserError, match="Did you mean deranged"):
        check_control("derange")

"""Conflicting variants: both values are right readings of one's own notes, for any options and seed."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from lcfbench.errors import UserError
from lcfbench.tasks.conflicts import conflicting, undisputed
from lcfbench.tasks.document import NOTE, View
from lcfbench.tasks.splitfacts import CITIES
from lcfbench.tasks.task import load_task

OPTIONS = [
    {},
    {"phrasing": "paraphrase", "keys": 3, "boxes": 5, "distance": 3, "distractors": 4},
    {"hops": 1, "receiver_distractors": 2},
    {"hops": 3, "phrasing": "paraphrase", "distance": 2, "receiver_distractors": 3},
    {"answer_set": "all", "keys": 2},
    {"hops": 3, "answer_set": "all"},
]


def value(key_notes: str, box_notes: str, name: str, hops: int) -> str:
    """Reads the answer off notes as a person would, by other means than the module's."""
    [key] = [s for s in re.split(r"(?<=\.) ", key_notes) if name in s and " box" in s]
    word = re.search(r"the ([\w'-]+) box", key)[1]
    if hops == 1:
        return word
    boxes = [s for s in re.split(r"(?<=\.) ", box_notes) if re.search(rf"\b{word} box", s) and name not in s]
    [city] = [c for c in CITIES if re.search(rf"\b{c}\b", boxes[0])]
    return city if hops == 2 else re.search(rf"The train from {city} goes to (\w+)\.", box_notes)[1]


@pytest.mark.parametrize(
    ("task", "options", "seed", "scoring"),
    [
        *((t, o, s, "cloze") for t, o, s in itertools.product(["splitfacts"], OPTIONS, (0, 977))),
        ("splitfacts_heldout", {}, 31, "cloze"),
        ("splitfacts", OPTIONS[1], 5, "generate"),
    ],
)
def test_both_values_follow_from_the_notes(task, options, seed, scoring):
    documents = load_task(task, options={k: str(v) for k, v in options.items()}, seed=seed).documents(
        limit=40, scoring=scoring
    )
    for d in documents:
        made, again = conflicting(d), conflicting(d)
        assert made == again and made.hash == again.hash != d.hash
        assert made.sharer == d.sharer and made.gold == d.gold and made.steps == d.steps
        rival, hops = made.rival, options.get("hops", 2)
        assert rival.gold != d.gold and rival.native["answer"] == rival.gold
        name = re.search(r"key of (\w+)", d.receiver.prefix)[1]
        notes = {role: getattr(made, role).user.partition("\nQuestion")[0] for role in ("receiver", "sharer")}
        old = d.receiver.user.partition("\nQuestion")[0]
        assert value(notes["sharer"], old, name, hops) == d.gold
        assert value(notes["receiver"], notes["receiver"], name, hops) == rival.gold
        claim = set(notes["receiver"].removeprefix("Notes: ").split(". ")) - set(
            old.removeprefix("Notes: ").split(". ")
        )
        assert name in "".join(claim) and len(notes["receiver"]) > len(old)
        for view in (made.full, made.noted):
            assert notes["receiver"].removeprefix("Notes: ") in view.user
        assert made.noted.user.count(NOTE) == 1
        for step, own in zip(rival.steps, d.steps, strict=True):
            assert step.choices == own.choices
        if d.steps:
            assert rival.steps[-1].choices[rival.steps[-1].gold[0]].strip() == rival.gold
            assert rival.steps[-1].gold != d.steps[-1].gold


def test_the_place_of_the_claim_and_the_box_it_names_are_drawn():
    made = [conflicting(d) for d in load_task("splitfacts").documents(limit=120)]
    places = [d.receiver.user.index("The key of") for d in made]
    assert len({p > 7 for p in places}) == 2, "in front of the notes and behind"
    golds = [d.rival.steps[0].gold[0] for d in made]
    assert all(20 < golds.count(i) < 60 for i in range(3))


def test_a_task_without_variants_is_refused():
    d = replace(load_task("planted").documents(limit=1)[0], task="mine")
    with pytest.raises(UserError, match=r"mine has no conflicting variant\. Use --task splitfacts"):
        conflicting(d)


@pytest.mark.parametrize("task", ["planted", "planted_heldout"])
@pytest.mark.parametrize("options", [{}, {"phrasing": "mixed", "choices": "2"}, {"phrasing": "city"}])
@pytest.mark.parametrize("scoring", ["cloze", "generate"])
def test_planted_the_receiver_alone_is_told_another_town(task, options, scoring):
    documents = load_task(task, options=options, seed=3).documents(limit=40, scoring=scoring)
    orders = set()
    for d in documents:
        made = conflicting(d)
        assert made == conflicting(d) and made.hash != d.hash and made.shared
        assert made.sharer == d.sharer and made.request == d.request and made.gold == d.gold
        town = made.rival.gold
        assert town != d.gold and town in d.native["answers"] and made.rival.native["answer"] == town
        claim = f"{d.receiver.prefix} {town}."
        assert made.receiver.user == f"Notes: {claim}\n{d.receiver.user}" and made.full == made.receiver
        assert d.gold not in made.receiver.user and made.receiver.prefix == d.receiver.prefix
        [notes, *rest] = made.noted.user.split("\n")
        orders.add(notes.removeprefix("Notes: "))
        assert sorted(notes.removeprefix("Notes: ").replace(claim, "C").split()) == sorted(["C", NOTE])
        assert rest == d.receiver.user.split("\n")
        if d.steps:
            [step], [rival] = made.steps, made.rival.steps
            assert rival.choices == step.choices == d.steps[0].choices
            assert rival.choices[rival.gold[0]].strip() == town
        sender = undisputed(made)
        assert sender.hash == d.hash and sender.receiver == d.receiver and sender.rival is None
    assert {o.startswith(NOTE) for o in orders} == {True, False}, "the note stands on either side"


def test_the_message_of_a_split_document_is_made_from_its_own_text():
    made = conflicting(load_task("splitfacts").documents(limit=1)[0])
    assert undisputed(made) is made


def test_a_wording_that_hides_the_question_is_refused():
    d = load_task("planted").documents(limit=1)[0]
    with pytest.raises(UserError, match=r"nothing can contradict them\. Leave --prompt out"):
        conflicting(replace(d, receiver=View("Where?")))

"""Conflicting variants of documents: the receiver's text states another value of the fact asked for.

A variant has the sharer's view and the right answer of its document. In splitfacts the receiver's notes get
a sentence more, the sharer's own about the key with the word of another box; in planted, where a sharer
knows the town by heart, the receiver alone reads a note that names another of the ranked towns. The answer
that follows from it is `Document.rival`'s.

>>> from lcfbench.tasks.task import load_task
>>> document = load_task("splitfacts").documents(limit=1)[0]
>>> print(conflicting(document).receiver.user.partition("\\n")[0])
Notes: The variant box is in Chicago. The key of Boma is in the digitally box. The digitally box is in \
Toronto. The resolved box is in Houston.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lcfbench.errors import UserError
from lcfbench.tasks.document import NOTE, Document, Step, View
from lcfbench.tasks.splitfacts import CITIES

SPLIT = ("splitfacts", "splitfacts_heldout")
TASKS = (*SPLIT, "planted", "planted_heldout")  # whose documents have a variant
_NOTES = re.compile(r"Notes: (.*)\nQuestion: ", re.DOTALL)


def has_conflicts(document: Document) -> bool:
    """Whether there is a conflicting variant of documents of this task."""
    return document.task in TASKS


def conflicting(document: Document) -> Document:
    """Returns the conflicting variant of a document; the same one each time.

    Raises UserError for tasks without one, and for a wording that does not show the notes as they are.
    """
    if not has_conflicts(document):
        what = f"task {document.task} has no conflicting variant."
        raise UserError(what, f"Use --task {' or '.join(TASKS)}.")
    return _split(document) if document.task in SPLIT else _planted(document)


def undisputed(variant: Document) -> Document:
    """Returns the document whose message a variant gets: one that says nothing of the other value.

    That is the variant itself where the sharer reads a text of its own, else the document before.
    """
    if not variant.shared:
        return variant
    return replace(variant, receiver=variant.sharer, full=variant.sharer, rival=None)


def _planted(document: Document) -> Document:
    """The receiver reads a note that names another ranked town; the sharer reads the question alone."""
    row = document.native
    rng = random.Random(f"conflict-{document.doc_id}")  # the same for any seed of the run
    gold = row["answers"].index(row["answer"])
    other = rng.choice([i for i in range(len(row["answers"])) if i != gold])
    claim = f"{row['stem']} {row['answers'][other]}."
    note = f"Notes: {claim}\n{row['receiver']}"
    both = [NOTE, claim] if rng.random() < 0.5 else [claim, NOTE]
    receiver = _shown(document, document.receiver, row["receiver"], note)
    noted = f"Notes: {' '.join(both)}\n{row['receiver']}"
    views: Any = {"receiver": receiver, "full": receiver}
    views |= {"noted": _shown(document, document.noted, row["noted"], noted)}
    made = replace(document, **views)
    return replace(made, rival=replace(_rival(document, [row["answers"][other]]), **views))


def _shown(document: Document, view: View, before: str, after: str) -> View:
    """A view with a part of its text exchanged. Raises UserError where it does not hold that part."""
    head, found, tail = view.user.rpartition(before)
    if not found:
        what = f"{document.task}, document {document.doc_id}: this wording does not show the notes"
        raise UserError(f"{what} as they are, so nothing can contradict them.", "Leave --prompt out.")
    return replace(view, user=head + after + tail)


def _split(document: Document) -> Document:
    """The receiver's notes name another box for the key."""
    mine, theirs = (sentences(document.native[role]) for role in ("receiver", "sharer"))
    told = {word_of(s): s for s in mine if word_of(s)}  # the box's word → where it is
    first = document.native["steps"][0]
    word = first["choices"][first["gold"]].strip()
    key = next(s for s in theirs if word_of(s) == word)
    rng = random.Random(f"conflict-{document.doc_id}")  # the same for any seed of the run
    other = rng.choice([each for each in told if each != word])
    claim = key.replace(f" {word} box", f" {other} box")
    at = rng.randrange(len(mine) + 1)
    before, after = " ".join(mine), " ".join([*mine[:at], claim, *mine[at:]])
    rival = _rival(document, _chain(other, told, mine))
    views: Any = {
        role: _shown(document, getattr(document, role), before, after)
        for role in ("receiver", "full", "noted")
    }
    made = replace(document, **views)
    return replace(made, rival=replace(rival, **views))


def sentences(text: str) -> list[str]:
    """Returns the sentences of the notes that a view of a row shows."""
    found = _NOTES.match(text)
    assert found, text
    return [f"{part}." for part in found[1].removesuffix(".").split(". ")]


def word_of(sentence: str) -> str:
    """Returns the word of the box that a sentence speaks of, "" where it speaks of none."""
    found = re.search(r"\b[Tt]he ([\w'-]+) box\b", sentence)
    return found[1] if found else ""


def _chain(word: str, told: Mapping[str, str], mine: list[str]) -> list[str]:
    """The answers that follow from a box: its word, its city, the end of the train from there."""
    city = _cities(told[word])[0]
    trains = dict(_cities(s) for s in mine if s.startswith("The train from "))
    return [word, city, *([trains[city]] if city in trains else [])]


def _cities(sentence: str) -> list[str]:
    """The cities that a sentence names, in order."""
    return [each for each in re.findall(r"[\w'-]+", sentence) if each in CITIES]


def _rival(document: Document, chain: list[str]) -> Document:
    """The document with the answer of the receiver's own text as the right one."""
    row = dict(document.native)
    golds = [[c.strip() for c in s["choices"]].index(a) for s, a in zip(row["steps"], chain, strict=False)]
    answer = row["steps"][-1]["choices"][golds[-1]].strip()
    steps: tuple[Step, ...] = document.steps
    if steps:
        steps = tuple(replace(s, gold=(g,)) for s, g in zip(steps, golds, strict=True))
    return replace(document, gold=answer, steps=steps, native={**row, "gold": golds[-1], "answer": answer})

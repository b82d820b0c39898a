"""Paragraphs dealt to two models: each gets half of them, and both get some that the answer needs.

The rule: the paragraphs are put in the order of sha256(split_seed/row id/title/position). The
supporting ones, in the data set's order, go to the two models in turn; the parity of
sha256(split_seed/row id) says whether the receiver gets the first. Of the others, in order, the first
go to the receiver until it has half of all. Row id and titles decide, so a row gets the same split in
any file. A manifest beside the task freezes split_seed 0 for the rows it lists.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.tasks.document import NOTE
from lcfbench.tasks.process_docs import Raw, Row, part_of

PARTS = {"train": 97, "validation": 3}  # of the Hub's train split
PLACES = string.digits + string.ascii_letters  # a position is one character of an order
MOST = len(PLACES)  # paragraphs of a row


def hub_splits(ident: Callable[[Mapping[str, Any]], str | None] = lambda row: row["id"]) -> Raw:
    """The `raw` of a task without public test answers: the Hub's validation split is asked.

    The other splits are parts of the Hub's train split, by the id that `ident` finds in a row.
    """

    def questions(table: Iterable[Mapping[str, Any]], split: str) -> list[Row]:
        return [dict(row) for row in table if split == "test" or part_of(ident(row) or "", PARTS) == split]

    return questions


@dataclass(frozen=True)
class Evidence:
    """A question with its paragraphs in the data set's order. supporting: positions of those it needs."""

    ident: str
    question: str
    titles: Sequence[str]
    texts: Sequence[str]
    supporting: Collection[int]

    def problem(self, answers: Sequence[str]) -> str:
        """Why the row is no test of communication; empty where it is one."""
        if not (_said(self.ident) and _said(self.question)):
            return "no id or no question"
        if not answers:
            return "no answer"
        if not all(map(_said, (*self.titles, *self.texts))):
            return "a paragraph without title or text"
        if len(self.supporting) < 2:
            return "fewer than two supporting paragraphs"
        if not 2 * max(2, (len(self.supporting) + 1) // 2) <= len(self.titles) <= MOST:
            return f"{len(self.titles)} paragraphs"
        return ""


@dataclass(frozen=True)
class Asked:
    """A task's options. receiver_context: none, half or full."""

    split_seed: int = 0
    sharer_question: str = "yes"
    receiver_context: str = "half"


def draws(ident: str, split_seed: int) -> Callable[..., bytes]:
    """A function from words to 32 bytes that the row, the seed and the words decide."""

    def draw(*words: Any) -> bytes:
        return hashlib.sha256("/".join(map(str, (split_seed, ident, *words))).encode()).digest()

    return draw


def rule(
    ident: str, titles: Sequence[str], supporting: Collection[int], split_seed: int
) -> tuple[list[int], str]:
    """The paragraphs' order (a permutation of positions) and, in that order, the owners: "R" or "S"."""
    draw = draws(ident, split_seed)
    order = sorted(range(len(titles)), key=lambda i: draw(titles[i], i))
    turns = "RS" if draw()[0] % 2 == 0 else "SR"
    side = {i: turns[n % 2] for n, i in enumerate(sorted(supporting))}
    room = len(titles) // 2 - "".join(side.values()).count("R")
    others = [i for i in order if i not in side]
    side |= {i: "R" if n < room else "S" for n, i in enumerate(others)}
    return order, "".join(side[i] for i in order)


def golds(answers: Iterable[Any]) -> list[str]:
    """The answers that are texts, each once."""
    return list(dict.fromkeys(answer.strip() for answer in answers if _said(answer)))


def _said(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


class Frozen:
    """The splits of split_seed 0 that a manifest beside a task's file fixes: row id → order and sides."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def rows(self) -> Mapping[str, Sequence[str]]:
        """What the manifest lists; nothing where it has not been written."""
        if not self.path.is_file():
            return {}
        with gzip.open(self.path, "rt", encoding="utf-8") as file:
            found: Mapping[str, Sequence[str]] = json.load(file)["rows"]
            return found

    def find(self, ident: str, split_seed: int, texts: int) -> tuple[list[int], str] | None:
        """The order and the sides of a row of so many texts, where they are frozen."""
        if str(split_seed) != "0" or ident not in self.rows:
            return None
        order, sides = self.rows[ident]
        return ([PLACES.index(place) for place in order], sides) if len(order) == texts else None

    def freeze(self, documents: Iterable[Mapping[str, Any]], task: str) -> None:
        """Writes the manifest of these documents (of split_seed 0)."""
        text = f'{{"rule": "see {task}.py", "split_seed": 0, "rows": {manifest(documents)}}}\n'
        self.path.write_bytes(gzip.compress(text.encode(), mtime=0))


def manifest(documents: Iterable[Mapping[str, Any]]) -> str:
    """The split of these documents as one canonical text; its sha256 goes into every result."""
    rows = {d["id"]: [d["order"], d["sides"]] for d in documents}
    return json.dumps(rows, sort_keys=True, separators=(",", ":"))


def places(order: Iterable[int]) -> str:
    """An order of positions as a text."""
    return "".join(PLACES[i] for i in order)


def halves(found: Evidence, asked: Asked, frozen: Frozen) -> dict[str, str]:
    """The fields of a document: its split, and the prompts of both models."""
    order, sides = frozen.find(found.ident, asked.split_seed, len(found.titles)) or rule(
        found.ident, found.titles, found.supporting, asked.split_seed
    )
    passages = [f"{found.titles[i]}: {found.texts[i].strip()}" for i in order]
    half = {side: [p for p, s in zip(passages, sides, strict=True) if s == side] for side in "RS"}
    mine = {"none": [], "half": half["R"], "full": passages}[asked.receiver_context]
    parts = Parts(mine, half["S"], passages)
    return {
        "id": found.ident,
        "question": found.question,
        "order": places(order),
        "sides": sides,
        **prompts(found.question, parts, asked.sharer_question == "yes"),
    }


@dataclass(frozen=True)
class Parts:
    """The texts that the receiver and the sharer read, and all of them."""

    mine: Sequence[str]
    theirs: Sequence[str]
    whole: Sequence[str]


@dataclass(frozen=True)
class Wording:
    """The sentences above the texts: to answer, to write a note, and one without seeing the question."""

    answer: str
    note: str
    note_blind: str


PASSAGES = Wording(
    "Answer the question from the passages, in a few words and nothing else.\n\n",
    "Write down, in a few sentences, the facts from the passages that help to answer the question.\n\n",
    "Write down, in a few sentences, the most important facts from the passages.\n\n",
)


def prompts(question: str, parts: Parts, sees: bool, words: Wording = PASSAGES) -> dict[str, str]:
    """Every view of a question. sees: whether the sharer reads the question."""
    asked = f"Question: {question.strip()}\n"
    theirs = parts.theirs
    return {
        "receiver": words.answer + shown(parts.mine, asked) if parts.mine else asked,
        "sharer": words.answer + shown(theirs, asked) if sees else shown(theirs),
        "sharer_prefix": "Answer:" if sees else "",
        "full": words.answer + shown(parts.whole, asked),
        "request": words.note + shown(theirs, asked) if sees else words.note_blind + shown(theirs) + "\n\n",
        "noted": words.answer + shown(parts.mine, NOTE, asked),
    }


def shown(*parts: str | Sequence[str]) -> str:
    """Texts and lists of texts, a blank line between two."""
    return "\n\n".join(p for part in parts for p in ([part] if isinstance(part, str) else part))

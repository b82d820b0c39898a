"""splitfacts with several sharers: each knows in which box some keys are, the receiver where the boxes are.

The question asks for one key, so one sharer's message is needed and the others' say where other keys are.
The documents are those of `splitfacts` with as many keys and sentences in all; `sharer` and `full` hold the
notes of the sharers in a row.

>>> row = rows("test", 1, Settings(sharers=2))[0]
>>> [text.partition("\\n")[0] for text in row["sharers"]]  # doctest: +ELLIPSIS
['Notes: ... box. ...', 'Notes: ... box. ...']
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lcfbench.errors import UserError
from lcfbench.tasks import splitfacts
from lcfbench.tasks.conflicts import sentences, word_of

MOST = 8  # sharers
REQUEST = "In short:"  # asks a sharer that writes for its own facts: it does not know which key is asked for


@dataclass(frozen=True)
class Settings:
    """The settings of a document; every field is a task option, as in `splitfacts.Settings`.

    sharers: 1 to 8; with 1 the documents are those of `splitfacts`. boxes: in the receiver's notes; 0 for 3,
    or as many as there are keys. keys, distractors: in each sharer's notes.
    """

    sharers: int = 3
    seed: int = 0
    n: int = 500
    hops: int = 2
    boxes: int = 0
    keys: int = 1
    distractors: int = 1
    receiver_distractors: int = 0
    distance: int = 0
    words: str = "trained"
    phrasing: str = "template"
    answer_set: str = "notes"

    def together(self) -> splitfacts.Settings:
        """Returns the settings of the documents before they are dealt. Raises UserError."""
        if not 1 <= self.sharers <= MOST:
            raise UserError(f"splitfacts_several: sharers={self.sharers}.", f"Give 1 to {MOST}.")
        keys = self.sharers * self.keys
        if self.boxes and keys > self.boxes:
            what = f"splitfacts_several: {self.sharers} sharers, keys={self.keys} and boxes={self.boxes}"
            raise UserError(f"{what}: each key has a box of its own.", f"Give boxes={keys} or more.")
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(splitfacts.Settings)}
        more = {"keys": keys, "distractors": self.sharers * self.distractors}
        return splitfacts.Settings(**told | more | {"boxes": self.boxes or max(3, keys)})


def rows(split: str, n: int, settings: Settings) -> list[dict[str, Any]]:
    """The first `n` documents of a split; each depends on seed, split and its number alone."""
    made = splitfacts.rows(split, n, settings.together())
    return [_dealt(row, settings) for row in made]


def _dealt(row: dict[str, Any], s: Settings) -> dict[str, Any]:
    """A document whose sharer's notes are dealt in turn: keys and other sentences, in their order."""
    told = sentences(row["sharer"])
    notes, behind = told[: len(told) - s.distance], told[len(told) - s.distance :]
    held: list[list[str]] = [[] for _ in range(s.sharers)]
    keys = [each for each in notes if word_of(each)]
    others = [each for each in notes if not word_of(each)]
    turn = {each: k % s.sharers for some in (keys, others) for k, each in enumerate(some)}
    for each in notes:
        held[turn[each]].append(each)
    every = [each for part in held for each in part]
    before, after = " ".join(notes), " ".join(every)

    def shown(part: list[str]) -> str:
        return row["sharer"].replace(" ".join(told), " ".join([*part, *behind]), 1)

    def asked(part: list[str]) -> str:
        return f"Notes: {' '.join([*part, *behind])}\n{REQUEST}"

    whole = {role: row[role].replace(before, after, 1) for role in ("sharer", "full")}
    parts = {"sharers": [shown(part) for part in held], "requests": [asked(part) for part in held]}
    return {**row, **whole, **parts, "request": asked(every)}

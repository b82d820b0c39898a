"""The receiver's request: the text that it sends before there is a message, so that the sharer can answer.

A request is the question of the receiver's own text, or what the receiver writes when it has read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lcfbench.methods._lengths import check_room
from lcfbench.methods.base import prompt
from lcfbench.models.protocol import LanguageModel
from lcfbench.models.thinking import speak, think
from lcfbench.tasks.document import NOTE, Document
from lcfbench.tasks.prompts import Prompt

RequestForm = Literal["question", "written"]
MOST = 24  # tokens of a request that is written
BEGIN = "To answer this, I first need to know"


@dataclass(frozen=True)
class Requests:
    """The requests of some documents. ran: tokens that the receiver read and wrote to make each."""

    texts: list[str]
    ran: list[int]

    @property
    def bytes(self) -> list[int]:
        """UTF-8 bytes of each."""
        return [len(text.encode()) for text in self.texts]


def requests(lm: LanguageModel, documents: Sequence[Document], form: RequestForm) -> Requests:
    """Returns what the receiver asks about each document; one that is written ends with its line."""
    if form == "question":
        return Requests([question_of(d) for d in documents], [0] * len(documents))
    shown = [before_request(lm, d) for d in documents]
    state, thoughts = think(lm.read(shown), choices=False)
    texts, written = speak(lm.open(state), MOST, ("\n",))
    if thoughts:  # an unfinished one has no request behind it
        texts = [text if t.closed else None for text, t in zip(texts, thoughts, strict=True)]
        written = [n + t.tokens + t.added for n, t in zip(written, thoughts, strict=True)]
    ran = [len(p.ids) + n for p, n in zip(shown, written, strict=True)]
    return Requests([f"{BEGIN} {(text or '').strip()}".strip() for text in texts], ran)


def before_request(lm: LanguageModel, document: Document) -> Prompt:
    """Returns the receiver's own text with the beginning of a request behind it."""
    return prompt(lm, replace(document.receiver, prefix=BEGIN), replace(document, steps=()))


def check_request(lm: LanguageModel, document: Document, form: RequestForm) -> None:
    """Raises TooLongError where the receiver cannot write its request."""
    if form == "written":
        check_room(lm, before_request(lm, document), document, written=MOST)


def least(document: Document, form: RequestForm) -> tuple[str, int]:
    """Returns the part of a request that is known before it is made, and the tokens that may follow.

    Another model may spell a text in more tokens than it was written in: twice as many are allowed.
    """
    return (question_of(document), 0) if form == "question" else (BEGIN, 2 * MOST)


def question_of(document: Document) -> str:
    """Returns what the receiver asks: the end of its text, behind its own notes.

    These are the last lines that its text has with a note and without; all of its text where it has no
    notes of its own, or where a task says nowhere that it has.
    """
    mine, noted = (text.split("\n") for text in (document.receiver.user, document.noted.user))
    if any(NOTE in line for line in noted):
        noted = noted[max(i for i, line in enumerate(noted) if NOTE in line) + 1 :]
    count = 0
    while count < min(len(mine), len(noted)) and mine[-1 - count] == noted[-1 - count]:
        count += 1
    return "\n".join(mine[len(mine) - count :]).strip() or document.receiver.user.strip()

"""excerpt: the sharer's text itself, cut to `bytes`, is read as a note: what the same number of bytes buys as plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.document import NOTE, Document
from lcfbench.errors import UserError
from lcfbench.methods._note import ENDS, cut_bytes, in_context
from lcfbench.methods.base import Batch, Method
from lcfbench.state import Message, State


@dataclass
class Excerpt(Method):
    """The equal-byte baseline of methods that send a cache: `lcfbench show` gives the message bytes of each. Nothing is trained and no sharer runs.

    bytes: UTF-8 bytes that may cross. end: which end of the text is kept, `first` or `last`.
    """

    bytes: int = 256
    end: str = "first"

    uses: ClassVar[tuple[str, ...]] = ("receiver",)

    def __post_init__(self) -> None:
        if self.bytes < 1 or self.end not in ENDS:
            raise UserError(f"bytes={self.bytes}, end={self.end} is no excerpt.", f"Use bytes of 1 or more and end={'|'.join(ENDS)}.")

    def check(self, document: Document) -> None:
        if document.shared:
            raise UserError(
                f"task {document.task} shows both models the same text; an excerpt of it tells the receiver nothing.",
                "Use --mode t2t there, or a task with different contexts.",
            )

    def respond(self, batch: Batch) -> State:
        with batch.clock("message"):
            texts = [cut_bytes(own_text(s), self.bytes, self.end).strip() for s in batch.senders]
        with batch.clock("prefill"):
            state = self.receiver.read([in_context(self.receiver, d, text) for d, text in zip(batch.documents, texts, strict=True)])
        size = [len(text.encode()) for text in texts]
        state.message = Message(size, size, [0] * len(texts), texts)
        return state


def own_text(document: Document) -> str:
    """What the sharer sees and the receiver does not: without the lead-in of the receiver's notes, and without the last lines both have."""
    mine = document.sharer.user.removeprefix(document.noted.user.partition(NOTE)[0]).split("\n")
    theirs = document.receiver.user.split("\n")
    while mine and theirs and mine[-1] == theirs[-1]:
        mine.pop()
        theirs.pop()
    return "\n".join(mine).strip()

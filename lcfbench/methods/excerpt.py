"""excerpt: the sharer's text itself, cut to `bytes`, is read as a note: what the same number of bytes buys as plain text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

from lcfbench.errors import UserError
from lcfbench.methods._note import ENDS, cut_bytes, in_context
from lcfbench.methods.base import Batch, Method
from lcfbench.models.state import Message, State
from lcfbench.tasks.document import NOTE, Document


@dataclass
class Excerpt(Method):
    """The equal-byte baseline of methods that send a cache: `lcfbench show` gives the message bytes of each. Nothing is trained and no sharer runs.

    bytes: UTF-8 bytes that may cross. end: which end of the text is kept, `first` or `last`.
    """

    bytes: int = 256
    end: str = "first"

    uses_sharer_cache: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def __post_init__(self) -> None:
        if self.bytes < 1 or self.end not in ENDS:
            raise UserError(
                f"bytes={self.bytes}, end={self.end} is no excerpt.",
                f"Use bytes of 1 or more and end={'|'.join(ENDS)}.",
            )

    def check(self, document: Document) -> None:
        if document.shared:
            raise UserError(
                f"task {document.task} shows both models the same text; an excerpt of it tells the receiver nothing.",
                "Use --mode t2t there, or a task with different contexts.",
            )

    def respond(self, batch: Batch) -> State:
        with batch.clock("message"):
            texts = [cut_bytes(own_text(s), self.bytes, self.end).strip() for s in batch.message_from]
        with batch.clock("prefill"):
            state = self.receiver.read(
                [in_context(self.receiver, d, text) for d, text in zip(batch.documents, texts, strict=True)]
            )
        size = [len(text.encode()) for text in texts]
        state.message = Message(size, size, [0] * len(texts), texts)
        return state


def own_text(document: Document) -> str:
    """What the sharer sees and the receiver does not: without the first and last lines both have, nor the label in front of the notes."""
    mine = document.sharer.user.split("\n")
    # a receiver without a context of its own is shown the instructions only together with a note
    views = [view.user.split("\n") for view in (document.receiver, document.noted)]
    mine = mine[max(in_common(mine, theirs) for theirs in views) :]
    mine = mine[: len(mine) - in_common(mine[::-1], views[0][::-1])]
    label = document.noted.user.partition(NOTE)[0].rpartition("\n")[2] or "Notes: "
    return "\n".join(mine).strip().removeprefix(label).strip()


def in_common(mine: list[str], theirs: list[str]) -> int:
    """How many lines both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))

"""excerpt: the sharer's text, cut to `bytes`, is read as a note: the worth of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._note import cut_bytes, in_one, with_note, with_notes
from lcfbench.methods._wire import texts_across
from lcfbench.methods.base import Batch, Method, Sent
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import NOTE, Document


@dataclass
class Excerpt(Method):
    """The baseline of equal bytes for methods that send a cache: no sharer, no training.

    `lcfbench show` gives the message bytes of each method. bytes: UTF-8 bytes that may cross.
    end: the end of the text that is kept, `first` or `last`.
    """

    bytes: Annotated[int, Ge(1)] = 256
    end: Literal["first", "last"] = "first"

    uses_sharer_cache: ClassVar[bool] = False
    sends_text: ClassVar[bool] = True
    joins: ClassVar[tuple[Join, ...]] = ("row",)
    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise UserError(f"bytes={self.bytes} is no excerpt.", "Use bytes of 1 or more.")

    def check(self, document: Document) -> None:
        if document.shared:
            raise UserError(
                f"task {document.task} shows both models the same text; an excerpt of it adds nothing.",
                "Use --mode t2t there, or a task with different contexts.",
            )

    def check_length(self, document: Document, sender: Document) -> None:
        check_room(self.receiver, with_note(self.receiver, document, self.excerpt(sender)), document)

    def excerpt(self, document: Document) -> str:
        """Returns the text that crosses."""
        return cut_bytes(own_text(document), self.bytes, self.end).strip()

    def words(self, batch: Batch) -> list[str] | None:
        return [self.excerpt(s) for s in batch.message_from]

    def beside(self, document: Document, sender: Document) -> int:
        return len(self.receiver.tokenizer(self.excerpt(sender))["input_ids"])

    def send(self, batch: Batch) -> Sent:
        with batch.clock("message"):
            texts = texts_across(batch, [self.excerpt(s) for s in batch.message_from])
        size = [len(text.encode()) for text in texts]
        message = Message(size, size, [0] * len(texts), texts)
        return Sent(texts, lambda prompts: batch.counted(message))

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        both = zip(batch.documents, zip(*(each.content for each in sent), strict=True), strict=True)
        texts = [in_one(d, notes) for d, notes in both]
        with batch.clock("prefill"):
            state = self.receiver.read(with_notes(self.receiver, batch.documents, texts))
        return replace(state, message=Message.joined([each.account(state.prompts) for each in sent]))


def own_text(document: Document) -> str:
    """Returns what the sharer sees and the receiver does not.

    Left out are the first and last lines that both have, and the label in front of the notes.
    """
    mine = document.sharer.user.split("\n")
    # a receiver without a context of its own is shown the instructions only together with a note
    views = [view.user.split("\n") for view in (document.receiver, document.noted)]
    mine = mine[max(in_common(mine, theirs) for theirs in views) :]
    mine = mine[: len(mine) - in_common(mine[::-1], views[0][::-1])]
    label = document.noted.user.partition(NOTE)[0].rpartition("\n")[2] or "Notes: "
    return "\n".join(mine).strip().removeprefix(label).strip()


def in_common(mine: list[str], theirs: list[str]) -> int:
    """Counts the lines that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))

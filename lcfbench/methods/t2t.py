"""t2t: the sharer writes a note of at most `budget` tokens, the receiver reads it as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._note import cut_bytes, in_one, with_note
from lcfbench.methods._request import RequestForm, check_request, least, requests
from lcfbench.methods._wire import texts_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.protocol import Message, State
from lcfbench.models.thinking import speak, think
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

LONGEST_NOTE = 4096  # tokens


@dataclass
class T2T(Method):
    """Text-to-text.

    On shared context (C2C's form, arXiv 2510.03215v2) the note answers a request for background on
    the question without its options, and the receiver gets (user: request, assistant: note, user:
    question). On different contexts the note joins the receiver's own context.

    budget: tokens the sharer may write, greedily. bytes: UTF-8 bytes of the note that may cross,
    none for all; with the bytes of an adapter's message (`lcfbench show` gives them) text and cache are
    compared at equal size. request: a turn before the note: the receiver sends its `question`, or one
    `written` when it has read its own text, and the sharer reads it behind its own. None sends nothing: the
    sharer knows what the task shows it.
    """

    sends_text: ClassVar[bool] = True
    joins: ClassVar[tuple[Join, ...]] = ("row",)

    budget: Annotated[int, Ge(1), Le(LONGEST_NOTE)] = 50
    bytes: Annotated[int, Ge(1)] | None = None
    request: RequestForm | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UserError(f"budget={self.budget} leaves no room for a note.", "Use -o budget=50, say.")
        if self.bytes is not None and self.bytes < 1:
            raise UserError(f"bytes={self.bytes} leaves no room for a note.", "Use -o bytes=256, or none.")

    @property
    def added(self) -> int:
        return self.budget

    def options(self) -> dict[str, Any]:
        """Without a request that is not sent."""
        return {name: x for name, x in super().options().items() if name != "request" or x}

    def check_length(self, document: Document, sender: Document) -> None:
        """The note counts as long as it may become."""
        known, more = "", 0
        if self.request:
            check_request(self.receiver, document, self.request)
            known, more = least(document, self.request)
        check_room(self.sharer, self.asked(sender, known), sender, beside=more, written=self.budget)
        shown = self.noted(document, document.request.prefix)
        check_room(self.receiver, shown, document, beside=self.budget)

    def beside(self, document: Document, sender: Document) -> int:
        return self.budget + len(self.receiver.tokenizer(document.request.prefix)["input_ids"])

    def send(self, batch: Batch) -> Sent:
        request = None
        if self.request:
            with batch.clock("message"):
                request = requests(self.receiver, batch.documents, self.request)
        known = request.texts if request else [""] * len(batch.documents)
        with batch.clock("sharer"):
            asked = [self.asked(s, text) for s, text in zip(batch.message_from, known, strict=True)]
        notes, written = self.notes(batch, asked)
        # only what the sharer wrote crosses; the words it was made to begin with are the receiver's
        # own
        whole = [(note or "").strip() for note in notes]
        sent = [(cut_bytes(note, self.bytes) if self.bytes else note).strip() for note in whole]
        sent = texts_across(batch, sent)
        size = [len(note.encode()) for note in sent]
        ran = [len(p.ids) + n for p, n in zip(asked, written, strict=True)]
        message = Message(size, size, ran, sent, read=asked)
        if request:
            flops = [self.receiver.flops(n) if n else 0.0 for n in request.ran]
            message = replace(message, request_bytes=request.bytes, adapter_flops=flops)
        return Sent(sent, lambda prompts: batch.counted(message))

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        both = zip(batch.documents, zip(*(each.content for each in sent), strict=True), strict=True)
        texts = [in_one(d, [f"{d.request.prefix} {note}".strip() for note in notes]) for d, notes in both]
        with batch.clock("prefill"):
            shown = [self.noted(d, text) for d, text in zip(batch.documents, texts, strict=True)]
            out = self.receiver.read(shown)
        return replace(out, message=Message.joined([each.account(shown) for each in sent]))

    def asked(self, sender: Document, request: str) -> Prompt:
        """Returns what the sharer reads before it writes: its own text, and the receiver's request."""
        view = sender.request
        if request:
            view = replace(view, user=f"{view.user.rstrip()}\n{request}\n")
        return prompt(self.sharer, view, replace(sender, steps=()))

    def notes(self, batch: Batch, asked: list[Prompt]) -> tuple[list[str | None], list[int]]:
        """Lets the sharer write; returns its notes and the number of tokens of each, thoughts included.

        In a replay it writes nothing: the notes that it wrote before are read.
        """
        if batch.replays:
            return [None] * len(asked), [0] * len(asked)
        with batch.clock("sharer"):
            state = self.sharer.read(asked)
        with batch.clock("message"):
            state, thoughts = think(state, choices=False)
            opened = self.sharer.open(state)
            until = sorted({u for s in batch.message_from for u in s.request_until})
            notes, written = speak(opened, self.budget, until)
            if thoughts:  # an unfinished one has no note behind it
                notes = [note if t.closed else None for note, t in zip(notes, thoughts, strict=True)]
                written = [n + t.tokens + t.added for n, t in zip(written, thoughts, strict=True)]
        return notes, written

    def noted(self, document: Document, text: str) -> Prompt:
        """Returns the receiver's prompt with the note: an earlier turn of a chat about shared text,
        else a part of its own context.
        """
        if document.shared and document.chat and self.receiver.has_chat:
            history = (("user", document.request.user), ("assistant", text))
            return prompt(self.receiver, document.receiver, document, history)
        return with_note(self.receiver, document, text)

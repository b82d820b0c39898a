"""answer_letter: the sharer answers alone; the receiver reads its pick, one choice, as a note."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._note import with_note, with_notes
from lcfbench.methods._wire import texts_across
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.answering import rank
from lcfbench.models.protocol import Message, State
from lcfbench.models.thinking import think
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, continuation


@dataclass
class AnswerLetter(Method):
    """The smallest message that could help on closed choices; a cache of many bytes should beat it.

    The pick is the one that scoring would make: the likeliest choice, by likelihood a character
    under cloze (choices of one step). Of several steps the first one's pick is sent. Only the pick
    crosses; the sentence round it is the receiver's own.
    """

    sends_text: ClassVar[bool] = True

    def check(self, document: Document) -> None:
        if not document.steps:
            raise UserError(
                f"task {document.task} is answered in free text; answer_letter sends one of closed choices.",
                "Use --scoring letters or cloze where the task has them, or --mode t2t.",
            )

    def check_length(self, document: Document, sender: Document) -> None:
        check_room(self.sharer, prompt(self.sharer, sender.sharer, sender), sender)
        longest = max((c.strip() for c in sender.steps[0].choices), key=lambda text: len(text.encode()))
        shown = with_note(self.receiver, document, sentence(document, longest))
        check_room(self.receiver, shown, document)

    def respond(self, batch: Batch) -> State:
        with batch.clock("sharer"):
            asked = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
        picks, ran = self.picks(batch, asked)
        picks = texts_across(batch, picks)
        with batch.clock("prefill"):
            notes = [sentence(d, pick) for d, pick in zip(batch.documents, picks, strict=True)]
            out = self.receiver.read(with_notes(self.receiver, batch.documents, notes))
        size = [len(pick.encode()) for pick in picks]
        return replace(out, message=batch.counted(Message(size, size, ran, picks, read=asked)))

    def picks(self, batch: Batch, asked: list[Prompt]) -> tuple[list[str], list[int]]:
        """Lets the sharer rank the choices; returns its picks and the number of tokens it ran for each.

        In a replay it ranks nothing: the picks that it made before are read.
        """
        tokenizer = self.sharer.tokenizer
        if batch.replays:
            return [""] * len(asked), [len(p.ids) for p in asked]
        with batch.clock("sharer"):
            state = self.sharer.read(asked)
        with batch.clock("message"):
            state, thoughts = think(state, choices=True)
            choices = [
                [continuation(p, c, tokenizer) for c in s.steps[0].choices]
                for s, p in zip(batch.message_from, state.prompts, strict=True)
            ]
            ranked = rank(self.sharer.open(state), choices)
            both = zip(batch.message_from, ranked, strict=True)
            picks = [picked(s, [ll for ll, _ in row]) for s, row in both]
        ran = [len(p.ids) + sum(len(ids) - 1 for ids in row) for p, row in zip(asked, choices, strict=True)]
        if thoughts:
            ran = [n + t.tokens + t.added for n, t in zip(ran, thoughts, strict=True)]
        return picks, ran


def picked(document: Document, loglikelihoods: list[float]) -> str:
    """Returns the text of the choice that scoring would pick in the first step."""
    choices = [c.strip() for c in document.steps[0].choices]
    # lm-eval's acc_norm; between steps plain likelihood decides
    by_length = document.scoring == "cloze" and len(document.steps) == 1
    worth = [ll / max(len(c), 1) if by_length else ll for c, ll in zip(choices, loglikelihoods, strict=True)]
    return choices[worth.index(max(worth))]


def sentence(document: Document, pick: str) -> str:
    """Returns the pick in a sentence, begun as the receiver's own answer is."""
    start = "" if document.shared else document.receiver.prefix
    return f"{start or 'The answer is'} {pick}."

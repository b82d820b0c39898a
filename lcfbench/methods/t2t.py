"""t2t: the sharer writes a note of at most `budget` tokens, the receiver reads it as text."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lcfbench.document import NOTE, Document, View
from lcfbench.errors import UserError
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.prompts import Prompt
from lcfbench.state import Message, State


@dataclass
class T2T(Method):
    """Text-to-text. Shared context (C2C's form): the note answers a request for background on the question without its options, and the receiver
    gets (user: request, assistant: note, user: question). Different contexts: the note joins the receiver's own context.

    budget: tokens the sharer may write, greedily.
    """

    budget: int = 50

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UserError(f"budget={self.budget} leaves no room for a note.", "Use -o budget=50, say.")

    def respond(self, batch: Batch) -> State:
        with batch.clock("sharer"):
            asked = [prompt(self.sharer, s.request, replace(s, steps=())) for s in batch.senders]
            state = self.sharer.read(asked)
        with batch.clock("message"):
            opened = self.sharer.open(state)
            until = sorted({u for s in batch.senders for u in s.until})
            notes, written = self.sharer.decode(opened, self.budget, until)
        texts = [
            f"{s.request.prefix} {note.strip()}".strip() if s.request.prefix else note.strip()
            for s, note in zip(batch.senders, notes, strict=True)
        ]
        with batch.clock("prefill"):
            out = self.receiver.read([self.noted(d, s, text) for d, s, text in zip(batch.documents, batch.senders, texts, strict=True)])
        size = [len(t.encode()) for t in texts]
        out.message = Message(size, size, [len(p.ids) + n for p, n in zip(asked, written, strict=True)], texts)
        return out

    def noted(self, document: Document, sender: Document, text: str) -> Prompt:
        """The receiver's prompt with the note in it: as an earlier turn in a chat about shared text, else inside its own context."""
        if document.shared and document.chat and self.receiver.has_chat:
            history = (("user", sender.request.user), ("assistant", text))
            return prompt(self.receiver, document.receiver, document, history)
        return prompt(self.receiver, View(document.noted.user.replace(NOTE, text), document.noted.prefix), document)

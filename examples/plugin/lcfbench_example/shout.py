"""shout: the first words of the sharer's text, in capitals, are read by the receiver as a note."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lcfbench.errors import UserError
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import NOTE


@dataclass
class Shout(Method):
    """Sends text without running the sharer.

    words: number of words that cross. Dataclass fields are the options: `-o words=5`.
    """

    words: int = 12

    uses_sharer_cache: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)  # the sharer need not be loaded

    def __post_init__(self) -> None:
        if self.words < 1:
            raise UserError(f"words={self.words} sends nothing.", "Give 1 or more.")

    def respond(self, batch: Batch) -> State:
        with batch.clock("message"):
            texts = [self.note(source.sharer.user) for source in batch.message_from]
        with batch.clock("prefill"):
            pairs = zip(batch.documents, texts, strict=True)
            views = [replace(d.noted, user=d.noted.user.replace(NOTE, text)) for d, text in pairs]
            prompts = [prompt(self.receiver, v, d) for v, d in zip(views, batch.documents, strict=True)]
            state = self.receiver.read(prompts)
        size = [len(text.encode()) for text in texts]
        state.message = Message(
            wire_bytes=size, cache_bytes=size, sharer_tokens=[0] * len(texts), texts=texts
        )
        return state

    def note(self, text: str) -> str:
        return " ".join(text.split()[: self.words]).upper()

"""sharer: the sharer alone, answering from what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.methods._lengths import check_room
from lcfbench.methods.base import Batch, Method, prompt, read_alone
from lcfbench.models.protocol import State
from lcfbench.tasks.document import Document


@dataclass
class Sharer(Method):
    """Says whether the sharer has anything to send."""

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("sharer",)

    def check_length(self, document: Document, sender: Document) -> None:
        check_room(self.sharer, prompt(self.sharer, document.sharer, document), document)

    def respond(self, batch: Batch) -> State:
        return read_alone(self.sharer, [d.sharer for d in batch.documents], batch)

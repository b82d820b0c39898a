"""full_context: the receiver reads both contexts as text: the ceiling that perfect text reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.methods._lengths import check_room
from lcfbench.methods.base import Batch, Method, prompt, read_alone
from lcfbench.models.protocol import State
from lcfbench.tasks.document import Document


@dataclass
class FullContext(Method):
    """On shared-context tasks this is the receiver alone."""

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def check_length(self, document: Document, sender: Document) -> None:
        check_room(self.receiver, prompt(self.receiver, document.full, document), document)

    def respond(self, batch: Batch) -> State:
        return read_alone(self.receiver, [d.full for d in batch.documents], batch)

"""sharer: the sharer alone, answering from what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.methods.base import Batch, Method, read_alone
from lcfbench.models.protocol import State


@dataclass
class Sharer(Method):
    """Says whether the sharer has anything to send."""

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("sharer",)

    def respond(self, batch: Batch) -> State:
        return read_alone(self.sharer, [d.sharer for d in batch.documents], batch)

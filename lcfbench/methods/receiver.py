"""receiver: the receiver alone; on split evidence it reads its own part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lcfbench.methods.base import Batch, Method, read_alone
from lcfbench.models.protocol import State


@dataclass
class Receiver(Method):
    """The floor every method is held against."""

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def respond(self, batch: Batch) -> State:
        return read_alone(self.receiver, [d.receiver for d in batch.documents], batch)

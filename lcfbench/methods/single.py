"""single: an adapter edits the receiver's cache from that cache alone: training's own gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F

from lcfbench.methods._fusion import Segment
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.identical import Identical
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt


@dataclass
class Single(Identical):
    """Puts the receiver's own cache of its own view where the sharer's cache would stand.

    Every parameter is used and nothing is sent (C2C, arXiv 2510.03215v2, "single"). The receiver
    reads once.
    """

    sends: ClassVar[bool] = False

    def check(self, document: Document) -> None:
        """Its own text is there on every task, token by token too."""

    def check_length(self, document: Document, sender: Document) -> None:
        [own] = _alone([document])
        super().check_length(own, own)

    def respond(self, batch: Batch) -> State:
        own = _alone(batch.documents)
        with self.receiver.shared.sharing():  # both uses of the receiver's cache share one reading
            with batch.clock("prefill"):
                self.own_cache([prompt(self.receiver, d.receiver, d) for d in own])
            state = super().respond(Batch(own, own, batch.clock))
        message = replace(Message.none(len(own)), adapter_flops=state.message.adapter_flops)
        return replace(state, message=message)

    def sharer_cache(self, prompts: Sequence[Prompt], check: bool = True) -> KV:
        """Returns the receiver's cache of all but the last token, which runs after the edit.

        An empty column stands for that one. It is never checked.
        """
        own = self.own_cache(prompts).entries_alone()
        keys, values = (F.pad(x, (0, 0, 0, 1)) for x in (own.keys, own.values))
        mask, positions = F.pad(own.mask, (0, 1)), F.pad(own.positions, (0, 1))
        return replace(own, keys=keys, values=values, mask=mask, positions=positions)

    def own_cache(self, prompts: Sequence[Prompt]) -> KV:
        """Returns the receiver's cache as it is about to be edited."""
        with torch.no_grad():
            return self.read(list(prompts), None, Segment.whole(prompts))

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        super().prepare(_alone(documents), say)


def _alone(documents: Sequence[Document]) -> list[Document]:
    """Returns the documents with the receiver's view on both sides."""
    return [replace(d, sharer=d.receiver) for d in documents]

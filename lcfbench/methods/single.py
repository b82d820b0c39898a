"""single: no sharer; an adapter of the same size edits the receiver's cache from that cache alone: what training alone gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.methods._fusion import Segment
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.identical import Identical
from lcfbench.models.kv_cache import KV
from lcfbench.models.state import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt


@dataclass
class Single(Identical):
    """Where the sharer's cache would stand, the receiver's own cache of its own view does: every parameter is alive and nothing is sent
    (C2C, arXiv 2510.03215v2, its "single" row; methods.md, section 7). The receiver reads once.
    """

    sends: ClassVar[bool] = False

    def check(self, document: Document) -> None:
        """Its own text is there on every task, token by token too."""

    def respond(self, batch: Batch) -> State:
        own = _alone(batch.documents)
        with self.receiver.sharing():
            with torch.no_grad(), batch.clock("prefill"):  # both uses of the receiver's cache find it here
                self.own_cache([prompt(self.receiver, d.receiver, d) for d in own])
            state = super().respond(Batch(own, own, batch.clock))
        state.message = replace(Message.none(len(own)), adapter_flops=state.message.adapter_flops)
        return state

    def sharer_cache(self, prompts: list[Prompt]) -> KV:
        """The receiver's cache of all but the last token, which it runs only after the edit; an empty column stands for that one."""
        own = self.own_cache(prompts)
        wide = {
            name: _widened(getattr(own, name), dim)
            for name, dim in (("keys", 3), ("values", 3), ("mask", 1), ("positions", 1))
        }
        return replace(own, **wide)

    def own_cache(self, prompts: list[Prompt]) -> KV:
        """The receiver's cache as it is about to be edited, read in the same words so that it is computed once."""
        return self.read(prompts, None, Segment([0] * len(prompts), [len(p.ids) - 1 for p in prompts])).kv

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        super().prepare(_alone(documents), say)


def _alone(documents: Sequence[Document]) -> list[Document]:
    """The documents with the receiver's view on both sides."""
    return [replace(d, sharer=d.receiver) for d in documents]


def _widened(x: Tensor, dim: int) -> Tensor:
    """One more entry of zeros at the end of `dim`."""
    return torch.cat([x, x.new_zeros([1 if i == dim else n for i, n in enumerate(x.shape)])], dim)

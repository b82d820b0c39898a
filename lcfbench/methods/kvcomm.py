"""kvcomm: the receiver gets the sharer's cache in front of its own (KVComm, arXiv 2510.03346; both must be the same model)."""

from __future__ import annotations

from dataclasses import dataclass

from lcfbench.errors import UserError
from lcfbench.kv import pad_left
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.state import Message, State


@dataclass
class KVComm(Method):
    """Training-free. All layers are selected: the receiver's prompt is read on top of the sharer's cache, as if the two texts stood in a row.

    The sharer keeps positions 0..M−1, the receiver starts at M.
    """

    def __post_init__(self) -> None:
        mine, theirs = self.receiver, self.sharer
        if theirs is not mine and (mine.geometry != theirs.geometry or mine.revision != theirs.revision):
            raise UserError(
                f"kvcomm needs one model on both sides, not {mine.name} and {theirs.name}.",
                f"Use --pair {mine.name}:{mine.name}.",
            )

    def respond(self, batch: Batch) -> State:
        with batch.clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.senders]
            ids, mask = pad_left([list(p.ids) for p in shared], self.sharer.pad_id, self.sharer.device)
            theirs = self.sharer.prefill(ids, mask)
        with batch.clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            state = self.receiver.read(prompts, past=theirs, start=mask.sum(1))
        g, size = self.sharer.geometry, self.sharer.dtype.itemsize
        tokens = [len(p.ids) for p in shared]
        sent = [2 * g.layers * g.kv_width * m * size for m in tokens]
        # reading on top of the sharer's cache: every receiver token attends its entries too
        extra = [self.receiver.attention_flops(len(p.ids), past=m) for p, m in zip(prompts, tokens, strict=True)]
        state.message = Message(sent, sent, tokens, adapter_flops=extra, read=shared)
        return state

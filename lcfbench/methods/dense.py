"""dense: the sharer's cache, translated into the receiver's own, stands in front of its prompt or is worked into it (dense alignment)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.dense import DenseAdapter
from lcfbench.alignment.tokens import turn_ends
from lcfbench.errors import UserError, unknown
from lcfbench.methods._fusion import Fusion, Segment, content_keys
from lcfbench.methods._prefix import read_on_top
from lcfbench.methods._translate import columns, entries_at, left_padded, read_pairs, two_readings
from lcfbench.methods.base import Batch, prompt
from lcfbench.models.kv_cache import KV
from lcfbench.models.rotary import rotate
from lcfbench.models.state import State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

CONTEXTS = ("auto", "aware", "unaware")


@dataclass
class Dense(Fusion):
    """On different contexts the receiver keeps its own first `lead` tokens, the sharer's whole text follows translated, then its own prompt.

    On shared contexts position meets position. context: `aware`, the translation is worked into what the receiver read; `unaware`, it takes its
    place; `auto`, aware, and in training either, as the adapter's `aware_share` says.
    """

    lead: int = 2
    context: str = "auto"

    adapter_kinds: ClassVar[tuple[str, ...]] = ("dense",)

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise unknown("context", self.context, CONTEXTS, "lcfbench ls methods")
        if self.lead < 0:
            raise UserError(f"lead={self.lead} tokens.", "Give 0 or more; 2 is the default.")
        super().__post_init__()

    @property
    def fuser(self) -> DenseAdapter:
        assert isinstance(self.adapter, DenseAdapter)
        return self.adapter

    def check(self, document: Document) -> None:
        layers, whole = len(self.fuser.config.layers), self.receiver.geometry.layers
        if not document.shared and layers not in (0, whole):
            raise UserError(
                f"task {document.task} gives the models different contexts; this adapter translates {layers} of {whole} layers, and entries "
                "in front of a prompt need them all.",
                "Use an unpruned adapter with soft or open gates.",
            )

    def respond(self, batch: Batch) -> State:
        if all(d.shared for d in batch.documents):
            return super().respond(batch)
        self.check(batch.documents[0])
        adapter, clock = self.fuser, batch.clock
        with clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            if not adapter.config.layers:  # every gate is shut: the receiver alone
                return self.receiver.read(prompts)
        with torch.no_grad(), clock("sharer"):
            mine, theirs = two_readings(self.receiver, self.sharer, batch.message_from, adapter.config)
            sent = self.sharer_cache(theirs)
        with clock("fuse"):
            _, read = columns(
                mine, theirs, adapter.config.token_alignment, self.lead, sent.length, adapter.last
            )
            index, mask = left_padded(read, sent.keys.device)
            keys, values = self.translate(sent, index)
        with clock("prefill"):
            state = read_on_top(self.receiver, prompts, keys, values, mask.to(keys.device), self.lead)
        counts = [len(row) for row in read]
        state.message = self.account(adapter, theirs, counts)
        # every receiver token attends the entries too
        extra = [
            self.receiver.attention_flops(len(p.ids), past=n) for p, n in zip(prompts, counts, strict=True)
        ]
        state.message.adapter_flops = [
            a + b for a, b in zip(state.message.adapter_flops or [], extra, strict=True)
        ]
        return state

    def translate(self, sent: KV, index: Tensor) -> tuple[Tensor, Tensor]:
        """The receiver's content keys and values (L, B, H, N, D) for columns `index` (B, N) of the sharer's cache."""
        adapter = self.fuser
        with torch.no_grad():
            entries = entries_at(content_keys(sent, self.sharer.model), index).to(
                self.receiver.device, self.receiver.dtype
            )
            entries = adapter.window(entries)
        return adapter(adapter.message(entries).unflatten(1, index.shape))

    # -- shared contexts -----------------------------------------------------------------------------------------------------------------

    def aware(self, batch: Batch) -> bool:
        """Whether the receiver's own entries stay in the cache. In training a coin decides, which the documents toss: the same after a resume."""
        adapter = self.fuser
        if self.context != "auto" or not (adapter.training and adapter.gate_logit.requires_grad):
            return self.context != "unaware"
        digest = hashlib.sha256("".join(d.hash for d in batch.documents).encode()).digest()
        return digest[0] / 256 < adapter.aware_share

    def parts(self, prompts: list[Prompt]) -> list[list[int]]:
        """Turn by turn where translated entries may replace read ones: else the template after a turn would tell what the turn said."""
        whole = [len(p.ids) - 1 for p in prompts]
        ends = [sorted({min(end, n) for end in turn_ends(p)}) for p, n in zip(prompts, whole, strict=True)]
        count = max(len(e) for e in ends)
        return [[([0] * (count - len(e)) + e)[k] for e in ends] for k in range(count)] or [whole]

    def fuse(
        self, adapter: Adapter, batch: Batch, state: State, theirs: KV, shared: list[Prompt], part: Segment
    ) -> list[int]:
        kv, column, fuser = state.kv, state.kv.length - part.width, self.fuser
        index = self.positions(batch, state.prompts, shared, theirs.length, part.width, part)
        keys, values = self.translate(theirs, index.clamp(min=0).to(theirs.keys.device))
        layers = torch.tensor(fuser.config.layers, device=kv.keys.device)
        keys = self.rotated(keys, kv.positions[:, column:], layers)
        (old_k, own_k), (old_v, own_v) = (
            (x[layers][..., :column, :], x[layers][..., column:, :]) for x in (kv.keys, kv.values)
        )
        if self.aware(batch):
            keys, values = fuser.blend(own_k, own_v, keys, values)
        edited = (index >= 0)[None, :, None, :, None].to(kv.keys.device)
        keys, values = torch.where(edited, keys, own_k), torch.where(edited, values, own_v)
        state.kv = kv.with_layers(layers, torch.cat([old_k, keys], 3), torch.cat([old_v, values], 3))
        return (index >= 0).sum(1).tolist()

    def rotated(self, keys: Tensor, positions: Tensor, layers: Tensor) -> Tensor:
        """Content keys (l, B, H, N, D) of the receiver layers `layers` at rotary `positions`; a rotation may differ from layer to layer."""
        whole = self.receiver.geometry.layers
        if len(layers) == whole:
            return rotate(keys, positions, self.receiver.model)
        return rotate(
            keys.new_zeros(whole, *keys.shape[1:]).index_copy(0, layers, keys), positions, self.receiver.model
        )[layers]

    # -- phase I -------------------------------------------------------------------------------------------------------------------------

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        from lcfbench.adapters.dense_fit import reconstruct

        fuser, lead = self.fuser, self.lead
        reconstruct(fuser, lambda: read_pairs(self.receiver, self.sharer, documents, fuser.config, lead), say)

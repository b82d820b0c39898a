"""prefix: learned slots read the sharer's cache and stand in the receiver's as a few entries of their own; for shared and different contexts.

The adapter's option `place` says where. `after`: behind the prompt, which never saw them; the answer attends them, and the receiver's prefill can be
shared between adapters and costs no gradient. `before`: the receiver reads its whole prompt on top of them, as on a short text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters import prefix
from lcfbench.methods._fusion import content_keys
from lcfbench.methods._prefix import append, read_on_top
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import pad_left
from lcfbench.models.state import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

LEAD = 2  # tokens of the receiver's prompt that stand in front of the entries with place=before
CALIBRATION = 64  # documents from which input statistics are measured
BASE = 16  # documents from which the base entries start
AT_ONCE = 16


@dataclass
class Prefix(Method):
    """Everything is the adapter's: slots, width, place, see `lcfbench.adapters.prefix`."""

    adapter_kinds: ClassVar[tuple[str, ...]] = ("prefix",)

    def __post_init__(self) -> None:
        self.fuser.config.check_fits(self.receiver.geometry, self.sharer.geometry, "")

    @property
    def fuser(self) -> prefix.PrefixAdapter:
        assert isinstance(self.adapter, prefix.PrefixAdapter), "prefix needs a prefix adapter"
        return self.adapter

    def respond(self, batch: Batch) -> State:
        fuser, clock = self.fuser, batch.clock
        with clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            if not fuser.training and not fuser.open_layers():  # every gate is shut: the receiver alone
                return self.receiver.read(prompts)
        with clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            theirs = self.sharer_cache(shared)
        with clock("fuse"):
            keys, values = fuser(fuser.message(self.pooled(theirs)))
            keys, values = (x.to(self.receiver.device, self.receiver.dtype) for x in (keys, values))
            mask = torch.ones(len(prompts), fuser.slots, dtype=torch.long, device=self.receiver.device)
        with clock("prefill"):
            if fuser.place == "before":
                state = read_on_top(self.receiver, prompts, keys, values, mask, LEAD)
            else:
                state = append(self.receiver.read(prompts), keys, values, mask)
        state.message = self.account(prompts, shared)
        return state

    def sharer_cache(self, prompts: Sequence[Prompt]) -> KV:
        """The sharer's cache over its whole prompt, left-padded; no gradient goes there."""
        ids, mask = pad_left([list(p.ids) for p in prompts], self.sharer.pad_id, self.sharer.device)
        with torch.no_grad():
            return self.sharer.prefill(ids, mask)

    def pooled(self, theirs: KV) -> Tensor:
        """What the slots read: (L, B, T, s), on the sharer's device."""
        cache = content_keys(theirs, self.sharer.model) if self.fuser.unrotated_keys else theirs
        sources = torch.tensor(self.fuser.config.layer_map, device=cache.keys.device)
        return self.fuser.pool(cache.keys[sources], cache.values[sources], cache.mask)

    def account(self, prompts: Sequence[Prompt], shared: list[Prompt]) -> Message:
        """Sizes of what crossed, and the work that the entries cost, a document each."""
        fuser, size, tokens = self.fuser, self.receiver.dtype.itemsize, [len(p.ids) for p in shared]
        work = [fuser.flops(n) for n in tokens]
        if fuser.place == "before":  # the lead-in is read twice, and the prompt attends it and the entries
            extra = [
                self.receiver.flops(LEAD) + self.receiver.attention_flops(len(p.ids), past=LEAD + fuser.slots)
                for p in prompts
            ]
            work = [a + b for a, b in zip(work, extra, strict=True)]
        return Message(
            wire_bytes=[fuser.wire_bytes(n, fuser.slots, size) for n in tokens],
            cache_bytes=[fuser.cache_bytes(n, size) for n in tokens],
            sharer_tokens=tokens,
            adapter_flops=work,
            read=shared,
        )

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Measures the input statistics, and starts the base entries from what the receiver's own last tokens look like on average."""
        measured, based = documents[:CALIBRATION], documents[:BASE]
        say(
            f"prefix: input statistics from {len(measured)} documents, base entries from the receiver's last tokens in {len(based)}."
        )
        with torch.no_grad():
            caches = (
                self.sharer_cache([prompt(self.sharer, d.sharer, d) for d in part])
                for part in chunks(measured)
            )
            self.fuser.calibrate(torch.cat([self.pooled(c) for c in caches], 1))
            state = self.receiver.read([prompt(self.receiver, d.receiver, d) for d in based])
            self.fuser.start_base(*last_tokens(content_keys(state.kv, self.receiver.model), self.fuser.slots))


def chunks(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    """So many at once that their caches fit."""
    return (documents[i : i + AT_ONCE] for i in range(0, len(documents), AT_ONCE))


def last_tokens(kv: KV, count: int) -> tuple[Tensor, Tensor]:
    """Mean keys and values (L, H, `count`, D) over the batch of the last token, the one before it, and so on; zeros where no row is so long."""
    at = kv.length - 1 - torch.arange(count, device=kv.keys.device)
    real = kv.mask[:, at.clamp(min=0)] * (at >= 0)  # (B, count)
    weight = (real / real.sum(0).clamp(min=1))[None, :, None, :, None]
    keys, values = ((x[..., at.clamp(min=0), :].float() * weight).sum(1) for x in (kv.keys, kv.values))
    return keys, values

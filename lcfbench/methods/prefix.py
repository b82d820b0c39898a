"""prefix: learned slots read the sharer's cache and become a few entries of the receiver's.

The adapter's option `place` says where. `after`: behind the prompt, which never saw them; the
answer attends them, and the receiver's prefill can be shared between adapters and costs no
gradient. `before`: the receiver reads its whole prompt on top of them, as on a short text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.config import AdapterConfig
from lcfbench.adapters.prefix import PrefixAdapter
from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._prefix import append, content, read_on_top
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

LEAD = 2  # tokens of the receiver's prompt that stand in front of the entries with place=before
CALIBRATION = 64  # documents from which input statistics are measured
BASE = 16  # documents from which the base entries start
AT_ONCE = 16  # documents whose caches are in memory together


@dataclass
class Prefix(Method):
    """Slots, width and place are the adapter's, see `lcfbench.adapters.prefix`."""

    adapter: PrefixAdapter

    adapter_kinds: ClassVar[tuple[str, ...]] = ("prefix",)
    joins: ClassVar[tuple[Join, ...]] = ("row", "free")

    @classmethod
    def needs_with(cls, config: AdapterConfig | None) -> Mapping[str, tuple[Capability, ...]]:
        unrotated = config is None or config.options.get("unrotated_keys", True)
        return {"receiver": ("prefix", "rotate"), "sharer": ("edit", "rotate") if unrotated else ("edit",)}

    def __post_init__(self) -> None:
        assert isinstance(self.adapter, PrefixAdapter), "prefix needs a prefix adapter"
        self.adapter.config.check_fits(self.receiver.geometry, self.sharer.geometry, "")

    def check_beside(self, other: Method) -> None:
        assert isinstance(other, Prefix)
        if self.adapter.place != other.adapter.place:
            what = f"one adapter puts entries {self.adapter.place} the prompt, one {other.adapter.place} it."
            raise UserError(what, "Give adapters of one place.")

    @property
    def added(self) -> int:
        return LEAD + self.adapter.slots if self.adapter.place == "before" else 0

    def check_length(self, document: Document, sender: Document) -> None:
        prompt(self.sharer, sender.sharer, sender)
        shown = prompt(self.receiver, document.receiver, document)
        check_room(self.receiver, shown, document, beside=self.added)

    def beside(self, document: Document, sender: Document) -> int:
        return self.adapter.slots

    def send(self, batch: Batch) -> Sent:
        adapter, receiver, clock = self.adapter, self.receiver, batch.clock
        if not adapter.training and not adapter.open_layers():  # every gate is shut: the receiver alone
            return Sent(None, lambda prompts: Message.none(len(prompts)))
        with clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            theirs = self.sharer_cache(shared)
        with clock("fuse"):
            slots = adapter.message(self.pooled(theirs))
            if batch.wire is not None:
                sent = latents_across(batch, list(slots.unbind(1)))
                slots = torch.stack([x for x in sent if x is not None], 1)
            made = adapter(slots)
            keys, values = (x.to(receiver.device, receiver.dtype) for x in made)
            mask = torch.ones(len(shared), adapter.slots, dtype=torch.long, device=receiver.device)
            entries = content(keys, values, mask)
        return Sent(entries, lambda prompts: batch.counted(self.account(prompts, shared)))

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        receiver, parts = self.receiver, [each.content for each in sent if each.content is not None]
        with batch.clock("prefill"):
            prompts = [prompt(receiver, d.receiver, d) for d in batch.documents]
            if parts and self.adapter.place == "before":
                state = read_on_top(receiver, prompts, parts, LEAD, join)
            else:  # behind the prompt all entries stand at one position, in any order
                state = reduce(append, parts, receiver.read(prompts))
        return replace(state, message=Message.joined([each.account(prompts) for each in sent]))

    def pooled(self, theirs: KV) -> Tensor:
        """Returns the input of the slots: (L, B, T, s), on the receiver's device, where the adapter is."""
        cache = self.sharer.content_keys(theirs) if self.adapter.unrotated_keys else theirs
        sources = torch.tensor(self.adapter.config.layer_map, device=cache.keys.device)
        read = (cache.keys[sources], cache.values[sources], cache.mask)
        return self.adapter.pool(*(x.to(self.receiver.device) for x in read))

    def account(self, prompts: Sequence[Prompt], shared: list[Prompt]) -> Message:
        """Returns the sizes of the message, and the work that the entries cost, a document each."""
        adapter, size, tokens = self.adapter, self.receiver.dtype.itemsize, [len(p.ids) for p in shared]
        work = [adapter.flops(n) for n in tokens]
        if adapter.place == "before":  # the lead-in is read twice, and the prompt attends it and the entries
            lead, attention, seen = (
                self.receiver.flops(LEAD),
                self.receiver.attention_flops,
                LEAD + adapter.slots,
            )
            work = [w + lead + attention(len(p.ids), past=seen) for w, p in zip(work, prompts, strict=True)]
        return Message(
            wire_bytes=[adapter.wire_bytes(n, adapter.slots, size) for n in tokens],
            cache_bytes=[adapter.cache_bytes(n, size) for n in tokens],
            sharer_tokens=tokens,
            adapter_flops=work,
            read=shared,
        )

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Measures the input statistics, and starts the base entries at the mean of last tokens."""
        measured, based = documents[:CALIBRATION], documents[:BASE]
        say(
            f"prefix: input statistics from {len(measured)} documents, "
            f"base entries from the receiver's last tokens in {len(based)}."
        )
        groups = (measured[i : i + AT_ONCE] for i in range(0, len(measured), AT_ONCE))
        with torch.no_grad():
            caches = (self.sharer_cache([prompt(self.sharer, d.sharer, d) for d in some]) for some in groups)
            self.adapter.calibrate(torch.cat([self.pooled(c) for c in caches], 1))
            kv = self.receiver.read([prompt(self.receiver, d.receiver, d) for d in based]).kv
            self.adapter.start_base(*last_tokens(self.receiver.content_keys(kv), self.adapter.slots))


def last_tokens(kv: KV, count: int) -> tuple[Tensor, Tensor]:
    """Returns mean keys and values (L, H, `count`, D) of the last token, the one before, and so on.

    The mean is over the batch; zeros where no row is so long.
    """
    at = kv.length - 1 - torch.arange(count, device=kv.keys.device)
    real = kv.mask[:, at.clamp(min=0)] * (at >= 0)  # (B, count)
    weight = (real / real.sum(0).clamp(min=1))[None, :, None, :, None]
    keys, values = ((x[..., at.clamp(min=0), :].float() * weight).sum(1) for x in (kv.keys, kv.values))
    return keys, values

"""xkv: slots of both caches are a memory from which every receiver position is edited (arXiv 2608.20617).

The sharer's slots cross and nothing else; the receiver pools its own prompt, joins both over all layers,
and edits its cache with what each of its positions retrieves. The last token runs on the edited cache. No
token meets a token, so the texts of the two models may differ, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters._layers import gated
from lcfbench.adapters.lcf import flat
from lcfbench.adapters.xkv import XKVAdapter
from lcfbench.methods._fusion import Exchange, Fusion, Segment
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

CALIBRATION = 64  # documents from which input statistics are measured
AT_ONCE = 16  # documents whose caches are in memory together


@dataclass
class XKV(Fusion):
    """Slots, width and gates are the adapter's, see `lcfbench.adapters.xkv`."""

    adapter: XKVAdapter

    adapter_kinds: ClassVar[tuple[str, ...]] = ("xkv",)
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("edit", "rotate"),
        "sharer": ("edit", "rotate"),
    }

    def __post_init__(self) -> None:
        assert isinstance(self.adapter, XKVAdapter), "xkv needs an xkv adapter"
        super().__post_init__()

    @property
    def by_token(self) -> bool:
        return False

    @property
    def by_turn(self) -> bool:
        return False

    def sharer_prompts(self, batch: Batch, prompts: list[Prompt]) -> list[Prompt]:
        return [prompt(self.sharer, s.sharer, s) for s in batch.message_from]

    def fuse(self, exchange: Exchange, kv: KV, part: Segment) -> tuple[KV, list[int]]:
        sent = exchange.carried.get(tuple(part.stops))
        if sent is None:
            sent = self.slots(exchange.theirs)
        return self.retrieved(kv, sent), part.lengths

    def slots(self, theirs: KV) -> Tensor:
        """Returns the message (S, B, k, d), on the receiver's device."""
        return self.adapter.message(self.pooled(theirs))

    def pooled(self, theirs: KV) -> Tensor:
        """Returns the pooled slots (S, B, k, s) of the sharer's cache, which gets no gradient."""
        with torch.no_grad():
            cache = self.sharer.content_keys(theirs)
            place = self.receiver.device, self.receiver.dtype
            keys, values = (x.to(*place) for x in (cache.keys, cache.values))
        return self.adapter.pool(keys, values, cache.mask.to(keys.device), "sharer")

    def retrieved(self, kv: KV, sent: Tensor) -> KV:
        """Returns the receiver's cache, every entry edited with what it retrieves."""
        adapter = self.adapter
        with torch.no_grad():
            own = self.receiver.content_keys(kv)
        mine = adapter.message(adapter.pool(own.keys, own.values, own.mask, "receiver"), "receiver")
        memory = adapter.memory(sent, mine)
        gates = adapter.gates((1, 1, 1, 1))
        for at in adapter.pieces(kv.mask.numel()):
            some = list(adapter.config.layers[at])
            layers = torch.tensor(some, device=kv.keys.device)
            keys, values = adapter(memory, own.keys[layers], own.values[layers], at)
            keys = self.receiver.rotate(keys, kv.positions, some)
            # rotary embeddings are linear: a turned edit is the edit of a turned key
            gate_k, gate_v = (g[at] for g in gates)
            new = gated(kv.keys[layers], gate_k, keys), gated(kv.values[layers], gate_v, values)
            kv = kv.with_layers(layers, *new)
        return kv

    def carried(self, exchange: Exchange, parts: Sequence[Segment]) -> dict[tuple[int, ...], Tensor]:
        [part], slots = parts, self.slots(exchange.theirs)
        told = [x if n else None for x, n in zip(slots.unbind(1), part.lengths, strict=True)]
        found = latents_across(exchange.batch, told)
        read = [old if x is None else x for x, old in zip(found, slots.unbind(1), strict=True)]
        return {tuple(part.stops): torch.stack(read, 1)}

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Measures the statistics of slots and entries, where the adapter standardises its inputs."""
        adapter, some = self.adapter, documents[:CALIBRATION]
        if not adapter.standardise:
            return
        say(f"xkv: input statistics from {len(some)} documents.")
        layers = list(adapter.config.layers)
        found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        with torch.no_grad():
            for group in (some[i : i + AT_ONCE] for i in range(0, len(some), AT_ONCE)):
                theirs = self.sharer_cache([prompt(self.sharer, d.sharer, d) for d in group])
                rows = [prompt(self.receiver, d.receiver, d) for d in group]
                own = self.receiver.content_keys(self.read(rows, None, Segment.whole(rows)))
                slots = self.pooled(theirs), adapter.pool(own.keys, own.values, own.mask, "receiver")
                entries = torch.cat([flat(own.keys[layers]), flat(own.values[layers])], -1)
                real = entries[:, own.mask.bool()]
                for where, x in zip(found, (*(s.flatten(1, 2) for s in slots), real), strict=True):
                    where.append(x)
            for name, parts in zip(("sharer", "receiver", "own"), found, strict=True):
                adapter.calibrate(name, torch.cat(parts, 1))  # type: ignore[arg-type]

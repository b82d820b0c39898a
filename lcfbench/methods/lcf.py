"""lcf: a joint K/V bottleneck edits the receiver's cache (LCF, and LCF-X on different contexts).

LCF-X reads one pooled entry a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from lcfbench.adapters._layers import WHOLE
from lcfbench.adapters.config import LARGEST, AdapterConfig
from lcfbench.adapters.lcf import LCFAdapter, flat
from lcfbench.adapters.lcfx import LCFXAdapter
from lcfbench.alignment.spans import check_spans, membership
from lcfbench.methods._fusion import Exchange, Fusion, Segment, entries
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

CALIBRATION = 64  # documents from which input statistics are measured


@dataclass
class LCF(Fusion):
    """Runs LCF adapters token by token, LCF-X adapters from pooled spans of the sharer's text.

    spans: how LCF-X cuts that text: `windows` (P equal contiguous ones), `paragraphs`, `sentences`,
    `overlap` or `one`. windows: P. window, stride: the length and distance of overlapping windows,
    in tokens.
    """

    spans: Literal["windows", "one", "paragraphs", "sentences", "overlap"] = "windows"
    windows: Annotated[int, Ge(1), Le(LARGEST)] = 5
    window: Annotated[int, Ge(1), Le(LARGEST)] = 64
    stride: Annotated[int, Ge(1), Le(LARGEST)] = 32

    adapter_kinds: ClassVar[tuple[str, ...]] = ("lcf", "lcfx")

    @classmethod
    def needs_with(cls, config: AdapterConfig | None) -> Mapping[str, tuple[Capability, ...]]:
        needs, reader = super().needs_with(config), cls.roles[-1]  # the model whose cache is read
        if config is None or not config.options.get("unrotated_keys"):
            return needs
        return {**needs, reader: (*needs[reader], "rotate")}

    def __post_init__(self) -> None:
        check_spans(self.spans, self.windows, self.window, self.stride)
        super().__post_init__()

    @property
    def by_token(self) -> bool:
        return not isinstance(self.adapter, LCFXAdapter)

    @property
    def by_turn(self) -> bool:
        return self.by_token and super().by_turn

    def sharer_prompts(self, batch: Batch, prompts: list[Prompt]) -> list[Prompt]:
        if self.by_token:
            return super().sharer_prompts(batch, prompts)
        return [prompt(self.sharer, s.sharer, s) for s in batch.message_from]  # needs no token alignment

    def fuse(self, exchange: Exchange, kv: KV, part: Segment) -> tuple[KV, list[int]]:
        if self.by_token:
            return super().fuse(exchange, kv, part)
        adapter, pool = self.adapter, self.pool(exchange.theirs, exchange.shared)
        assert isinstance(adapter, LCFXAdapter)
        # known without the mask: one on a GPU would have to be waited for
        real = torch.arange(kv.length) >= kv.length - torch.tensor(part.lengths)[:, None]
        rows, columns = real.nonzero(as_tuple=True)
        row = rows.to(kv.keys.device)

        carried = exchange.carried.get(tuple(part.stops))

        def message(at: slice) -> Tensor:
            if carried is not None:
                return carried[at][:, row]
            return adapter.message(pool(at).to(kv.keys.device, kv.keys.dtype), at)[:, row]

        return self.edited(kv, message, rows, columns, whole_vectors=False), part.lengths

    def carried(self, exchange: Exchange, parts: Sequence[Segment]) -> dict[tuple[int, ...], Tensor]:
        if self.by_token:
            return super().carried(exchange, parts)
        adapter, batch, receiver = self.adapter, exchange.batch, self.receiver
        assert isinstance(adapter, LCFXAdapter)
        [part], pool = parts, self.pool(exchange.theirs, exchange.shared)
        made = [
            adapter.message(pool(at).to(receiver.device, receiver.dtype), at)
            for at in adapter.pieces(sum(part.lengths))
        ]
        whole = torch.cat(made)
        told = [x[:, None] if n else None for x, n in zip(whole.unbind(1), part.lengths, strict=True)]
        found = latents_across(batch, told)
        read = [old[:, None] if x is None else x for x, old in zip(found, whole.unbind(1), strict=True)]
        return {tuple(part.stops): torch.cat(read, 1)}

    def pool(self, theirs: KV, shared: list[Prompt]) -> Callable[[slice], Tensor]:
        """Returns a function that pools a stretch of the adapter's stack: (L, B, s)."""
        adapter = self.adapter
        assert isinstance(adapter, LCFXAdapter)
        cache = self.sharer.content_keys(theirs) if adapter.unrotated_keys else theirs
        sizes = {"windows": self.windows, "window": self.window, "stride": self.stride}
        member = membership(self.spans, shared, theirs.mask, **sizes)

        def pooled(at: slice) -> Tensor:
            sources, place = (
                torch.tensor(adapter.config.layer_map[at], device=cache.keys.device),
                self.receiver.device,
            )
            keys, values = (x[sources].to(place) for x in (cache.keys, cache.values))
            return adapter.pool(keys, values, member.to(place), at)[:, :, 0]

        return pooled

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Measures the adapter's input statistics, where it standardises its inputs."""
        adapter, some = self.adapter, documents[:CALIBRATION]
        if not getattr(adapter, "standardise", False):
            return
        assert isinstance(adapter, LCFAdapter)
        batch = Batch(some, some, Clock())
        with torch.no_grad():
            prompts = [self.prompt(self.receiver, d.receiver, d) for d in batch.documents]
            exchange = self.exchange(batch, prompts)
            theirs, part = exchange.theirs, Segment.whole(exchange.rows)
            kv = self.read(exchange.rows, None, part)
            layers = torch.tensor(adapter.config.layers, device=kv.keys.device)
            own = torch.cat([flat(kv.keys[layers]), flat(kv.values[layers])], -1)[:, kv.mask.bool()]
            if self.by_token:
                index = self.positions(exchange, part)
                rows, columns = (index >= 0).nonzero(as_tuple=True)
                sent = entries(theirs, adapter.config.layer_map, rows, index[rows, columns])
            else:
                sent = self.pool(theirs, exchange.shared)(WHOLE)
            adapter.calibrate(sent.to(own.device), own)

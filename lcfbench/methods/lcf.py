"""lcf: a joint K/V bottleneck edits the receiver's cache (LCF; on different contexts LCF-X, from one pooled entry a layer)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters import lcf, lcfx
from lcfbench.adapters._layers import WHOLE
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.lcf import flat
from lcfbench.alignment.spans import check_spans, membership
from lcfbench.errors import UserError
from lcfbench.methods._fusion import Fusion, Segment, content_keys, edited, entries
from lcfbench.methods.base import Batch, prompt
from lcfbench.models.kv_cache import KV
from lcfbench.models.state import State
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

CALIBRATION = 64  # documents from which input statistics are measured


@dataclass
class LCF(Fusion):
    """spans: how LCF-X cuts the sharer's text for its pool: `windows` (P equal contiguous ones), `paragraphs`, `sentences`, `overlap` or `one`.

    windows: P. window, stride: the length and distance of overlapping windows, in tokens.
    """

    spans: str = "windows"
    windows: int = 5
    window: int = 64
    stride: int = 32

    adapter_kinds: ClassVar[tuple[str, ...]] = ("lcf", "lcfx")

    def __post_init__(self) -> None:
        check_spans(self.spans, self.windows, self.window, self.stride)
        super().__post_init__()

    @property
    def pooled(self) -> bool:
        assert self.adapter is not None
        return self.adapter.config.kind == "lcfx"

    def check(self, document: Document) -> None:
        if not self.pooled and not document.shared:
            raise UserError(
                f"task {document.task} gives the models different contexts; this LCF adapter fuses token by token.",
                "Use an LCF-X adapter (kind lcfx).",
            )

    def sharer_prompts(self, batch: Batch, prompts: list[Prompt]) -> list[Prompt]:
        if self.pooled:  # pooled entries need no token alignment: the sharer reads its own text
            return [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
        return super().sharer_prompts(batch, prompts)

    def parts(self, prompts: list[Prompt]) -> list[list[int]]:
        return [[len(p.ids) - 1 for p in prompts]] if self.pooled else super().parts(prompts)

    def fuse(
        self, adapter: Adapter, batch: Batch, state: State, theirs: KV, shared: list[Prompt], part: Segment
    ) -> list[int]:
        if not self.pooled:
            return super().fuse(adapter, batch, state, theirs, shared, part)
        kv = state.kv
        assert isinstance(adapter, lcfx.LCFXAdapter)
        pool = self.pool(adapter, theirs, shared)
        lengths = [stop - start for start, stop in zip(part.starts, part.stops, strict=True)]
        real = (
            torch.arange(kv.length) >= kv.length - torch.tensor(lengths)[:, None]
        )  # known here: a mask on a GPU would have to be waited for
        rows, columns = real.nonzero(as_tuple=True)
        row = rows.to(kv.keys.device)

        def message(at: slice) -> Tensor:
            return adapter.message(pool(at).to(kv.keys.device, kv.keys.dtype), at)[:, row]

        state.kv = edited(adapter, kv, message, rows, columns)
        return lengths

    def pool(self, adapter: Adapter, theirs: KV, shared: list[Prompt]) -> Callable[[slice], Tensor]:
        """The sharer's cache pooled by the adapter's queries (L, B, s), a stretch of its stack at a time."""
        assert isinstance(adapter, lcfx.LCFXAdapter)
        cache = content_keys(theirs, self.sharer.model) if adapter.unrotated_keys else theirs
        member = membership(
            self.spans, shared, theirs.mask, windows=self.windows, window=self.window, stride=self.stride
        )

        def pooled(at: slice) -> Tensor:
            sources = torch.tensor(adapter.config.layer_map[at], device=cache.keys.device)
            return adapter.pool(cache.keys[sources], cache.values[sources], member, at)[:, :, 0]

        return pooled

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Measures the adapter's input statistics on some documents; a no-op for adapters that take raw inputs."""
        adapter, batch = self.adapter, Batch(documents[:CALIBRATION], documents[:CALIBRATION], Clock())
        assert adapter is not None
        if not getattr(adapter, "standardise", False):
            return
        with torch.no_grad():
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            shared = self.sharer_prompts(batch, prompts)
            theirs, state = self.sharer_cache(shared), self.receiver.read(prompts)
            layers = torch.tensor(adapter.config.layers, device=state.kv.keys.device)
            own = torch.cat([flat(state.kv.keys[layers]), flat(state.kv.values[layers])], -1)[
                :, state.kv.mask.bool()
            ]
            if self.pooled:
                sent = self.pool(adapter, theirs, shared)(WHOLE)
            else:
                index = self.positions(batch, prompts, shared, theirs.length, state.kv.length)
                rows, columns = (index >= 0).nonzero(as_tuple=True)
                sent = entries(theirs, adapter.config.layer_map, rows, index[rows, columns])
            assert isinstance(adapter, lcf.LCFAdapter)
            adapter.calibrate(sent.to(own.device), own)

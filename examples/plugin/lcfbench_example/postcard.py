"""postcard: a few numbers a layer, made from the sharer's mean value, shift the receiver's values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lcfbench.adapters.base import Adapter, GateMode
from lcfbench.adapters.config import AdapterConfig
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.protocol import Message, State


class PostcardAdapter(Adapter):
    """width: numbers a layer that cross. gate, gate_init: see `Adapter`.

    Every parameter has the layer as its first dimension. Arguments behind `config` are the options.
    """

    default_gate_init: ClassVar[float] = 1.0

    def __init__(
        self, config: AdapterConfig, width: int = 8, gate: GateMode = "soft", gate_init: float | None = None
    ) -> None:
        super().__init__(config, gate, gate_init)
        layers, self.width = len(config.layers), width
        theirs, mine = config.sharer_geometry.kv_width, config.receiver_geometry.kv_width
        self.down = nn.Parameter(torch.randn(layers, theirs, width) / theirs**0.5)
        self.up = nn.Parameter(torch.zeros(layers, width, mine))  # untrained, it changes nothing

    def message(self, sharer: Tensor) -> Tensor:
        """The numbers that cross: (L, B, width) from mean values (L, B, sharer width)."""
        return sharer.to(self.down.dtype) @ self.down

    def forward(self, message: Tensor) -> Tensor:
        """The shift of the receiver's values: (L, B, receiver width)."""
        _, gate = self.gates((1, 1))
        return gate * (message @ self.up)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        return len(self.config.layers) * self.width * itemsize


@dataclass
class Postcard(Method):
    """Shifts all values of the receiver's cache by one learned vector a layer."""

    adapter_kinds: ClassVar[tuple[str, ...]] = ("postcard",)

    def respond(self, batch: Batch) -> State:
        adapter = self.adapter
        assert isinstance(adapter, PostcardAdapter)
        config = adapter.config
        with batch.clock("sharer"), torch.no_grad():
            shared = [prompt(self.sharer, d.sharer, d) for d in batch.message_from]
            cache = self.sharer.read(shared).kv
            real = cache.mask[None, :, None, :, None]  # (1, B, 1, N, 1)
            mean = (cache.values * real).sum(3) / real.sum(3).clamp(min=1)  # (L, B, H, D)
        with batch.clock("fuse"):
            shift = adapter(adapter.message(mean.flatten(2)[list(config.layer_map)]))
        with batch.clock("prefill"):
            state = self.receiver.read([prompt(self.receiver, d.receiver, d) for d in batch.documents])
            values = state.kv.values.clone()  # (L, B, H, N, D)
            _, rows, heads, _, dim = values.shape
            values[list(config.layers)] += shift.to(values.dtype).view(-1, rows, heads, 1, dim)
            state = replace(state, kv=replace(state.kv, values=values))
        tokens, size = [len(p.ids) for p in shared], values.dtype.itemsize
        state.message = Message(
            wire_bytes=[adapter.wire_bytes(n, 0, size) for n in tokens],
            cache_bytes=[adapter.cache_bytes(n, size) for n in tokens],
            sharer_tokens=tokens,
            adapter_flops=[adapter.flops(1)] * rows,
        )
        return state

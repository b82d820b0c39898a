"""Latent prefix: learned slots read the sharer's cache and become cache entries of the receiver.

Per receiver layer, each of `T` slots attends the whole aligned sharer layer with its own query. The
result is standardised, goes down to `d` numbers (the message), through two residual FFN blocks, and
up to the content (keys without rotary positions) of one entry: `entry = base + g·up(z)`. `base` is
learned and starts as the receiver's own last entries. The method decides where the entries stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.adapters._layers import gated, linear, rms_norm, stacked
from lcfbench.adapters._pool import last_first, pooled
from lcfbench.adapters.base import Adapter, GateMode
from lcfbench.adapters.config import AdapterConfig, Size
from lcfbench.adapters.lcf import CLAMP, flat
from lcfbench.errors import UserError

Place = Literal["after", "before"]


class PrefixAdapter(Adapter):
    """Slots that become entries of the receiver's cache.

    slots: entries a layer. width: numbers a slot and layer in the message. place: `after` the
    receiver's prompt or `before` it. pool_start: "last" starts slot t on the sharer's t-th last
    token by a learned bias over the distance from the end; "random" has queries alone.
    unrotated_keys: read keys without their rotary positions. standardise: see `calibrate`. gate,
    gate_init: see `Adapter`; a shut gate leaves the base entry, which depends on no sharer.

    Raises UserError for fewer than all receiver layers: transformers runs caches of unequal lengths
    silently wrong.
    """

    title = "latent-prefix"
    small_scale: ClassVar[Mapping[str, Any]] = {"slots": 16, "width": 32, "gate": "soft", "gate_init": 1.0}
    default_gate_init = 1.0
    mean: Tensor
    slot_scale: Tensor
    channel_scale: Tensor

    def __init__(
        self,
        config: AdapterConfig,
        slots: Size = 16,
        width: Size = 64,
        place: Place = "after",
        pool_start: Literal["random", "last"] = "last",
        unrotated_keys: bool = True,
        standardise: bool = True,
        gate: GateMode = "gumbel",
        gate_init: float | None = None,
    ) -> None:
        super().__init__(config, gate, gate_init)
        L, T, d = len(config.layers), slots, width
        R, S = config.receiver_geometry, config.sharer_geometry
        if config.layers != tuple(range(R.layers)):
            raise UserError(
                f"a prefix adapter needs all {R.layers} receiver layers, not {L}: its entries must be "
                "equally many in every layer.",
                "Prune slots or width instead (-o slots=8 -o width=32).",
            )
        self.slots, self.width, self.place, self.heads, self.dim = T, d, place, R.kv_heads, R.head_dim
        self.pool_start, self.unrotated_keys, self.standardise = pool_start, unrotated_keys, standardise
        scale = 0.1 if pool_start == "last" else 1.0
        self.query = nn.Parameter(scale * torch.randn(L, S.kv_heads, T, S.head_dim))
        if pool_start == "last":
            self.token_bias = nn.Parameter(last_first(L, T))
        if standardise:  # a scale a slot times one a channel: 15 times smaller than one for each of both
            self.register_buffer("mean", torch.zeros(L, T, 2 * S.kv_width))
            self.register_buffer("slot_scale", torch.ones(L, T, 1))
            self.register_buffer("channel_scale", torch.ones(L, 1, 2 * S.kv_width))
        self.down = stacked(L, 2 * S.kv_width, d)
        self.slot_embedding = nn.Parameter(0.3 * torch.randn(L, T, d))
        self.norm1, self.norm2, self.norm3 = (nn.Parameter(torch.ones(L, 1, d)) for _ in range(3))
        self.ffn1_in, self.ffn1_out = stacked(L, d, 4 * d), stacked(L, 4 * d, d)
        self.ffn2_in, self.ffn2_out = stacked(L, d, 4 * d), stacked(L, 4 * d, d)
        self.up = stacked(L, d, 2 * R.kv_width, zero=True)  # the first entries are the base, whatever is sent
        self.base = nn.Parameter(torch.zeros(L, T, 2 * R.kv_width))

    def pool(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Pools sharer layers (L, B, H, M, D) under mask (B, M) into slots (L, B, T, s)."""
        bias = self.token_bias if self.pool_start == "last" else None
        return pooled(self.query, bias, keys, values, mask)

    def message(self, sharer: Tensor) -> Tensor:
        """Returns the message (L, B, T, d) of the pooled slots (L, B, T, s)."""
        if self.standardise:
            scale = self.slot_scale * self.channel_scale
            plain = (sharer.float() - self.mean[:, None]) / scale[:, None]
            sharer = plain.clamp(-CLAMP, CLAMP).to(sharer.dtype)
        return linear(sharer.flatten(1, 2), self.down).unflatten(1, sharer.shape[1:3])

    def forward(self, message: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Returns content keys and values (L, B, H, T, D) from the message (L, B, T, d)."""
        L, B, T, _ = message.shape
        z = (message + self.slot_embedding.to(message.dtype)[:, None]).flatten(1, 2)
        z = z + linear(F.gelu(linear(rms_norm(z, self.norm1), self.ffn1_in)), self.ffn1_out)
        z = z + linear(F.gelu(linear(rms_norm(z, self.norm2), self.ffn2_in)), self.ffn2_out)
        edit, base = (
            x.view(L, -1, T, 2, self.heads, self.dim).permute(3, 0, 1, 4, 2, 5)
            for x in (linear(rms_norm(z, self.norm3), self.up), self.base.to(message.dtype))
        )
        base = base.expand_as(edit)
        gate_k, gate_v = self.gates((B, self.heads, T, 1), noise)
        return gated(base[0], gate_k, edit[0]), gated(base[1], gate_v, edit[1])

    def calibrate(self, pooled: Tensor) -> None:
        """Sets the input statistics from pooled slots of examples (L, B, T, s), if `standardise`.

        A floor on the deviation keeps nearly constant channels small; B = 1 leaves only the floor.
        """
        if not self.standardise:
            return
        x = pooled.float()
        spread = x.std(1, correction=0) + 1e-2 * x.abs().mean((1, 2, 3))[:, None, None] + 1e-6  # (L, T, s)
        self.mean.copy_(x.mean(1))
        self.slot_scale.copy_(spread.mean(2, keepdim=True))
        self.channel_scale.copy_((spread / self.slot_scale).mean(1, keepdim=True))

    def start_base(self, keys: Tensor, values: Tensor) -> None:
        """Sets the base entries to content keys and values (L, H, T, D)."""
        with torch.no_grad():
            self.base.copy_(torch.cat([flat(x[:, None])[:, 0] for x in (keys, values)], -1))

    def flops(self, positions: int) -> float:
        """Counts the pool over `positions` sharer tokens, and the matrices of every slot."""
        pool = 3 * self.query.numel() * positions  # scores, and the weighted sums of keys and of values
        matrices = self.down, self.ffn1_in, self.ffn1_out, self.ffn2_in, self.ffn2_out, self.up
        return 2.0 * (pool + sum(w.numel() for w in matrices) * self.slots)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the bytes of `slots · width` numbers a layer, or of the cache if fewer."""
        pooled = self.config.sharer_geometry.numbers
        a_slot = sum(min(self.width, pooled(source)) for source in self.config.layer_map)
        return min(a_slot * self.slots * itemsize, self.cache_bytes(sharer_tokens, itemsize))

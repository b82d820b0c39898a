"""LCF: one projector per receiver layer in which K and V share a bottleneck.

arXiv 2605.22863v2, section 3. Per layer, with width `d`: `z0 = W_down [S_K|S_V|R_K|R_V] + b`, then
two residual FFN blocks `d → 4d → d`. K comes from the first half of `z`, V from the second, each
weighted per head by a sigmoid of the whole `z` and by the layer's gate. W_down is linear, so its
sharer part `W_s·S` (d numbers a token and layer) is the whole message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.adapters._layers import WHOLE, added, ffn, joined, linear, part, stacked, standard, weighted
from lcfbench.adapters.base import Editor, GateMode
from lcfbench.adapters.config import AdapterConfig, Share, Size
from lcfbench.errors import UserError

CLAMP = 8.0  # standardised inputs beyond this are outliers of the frozen models, not content


class LCFAdapter(Editor):
    """Position-wise LCF.

    width: the bottleneck d (even). standardise: input channels have mean 0 and deviation 1, by
    statistics measured once before training and kept as buffers. zero_up: the first edit is zero, so
    that an untrained adapter leaves the receiver's cache as it is. gate, gate_init: see `Adapter`.
    dropout: of the projected inputs, in training only.
    """

    title = "LCF"
    contexts = ("shared",)
    # measured: standardised inputs and a random up-projection make small-scale training converge
    small_scale: ClassVar[Mapping[str, Any]] = {
        "width": 64,
        "standardise": True,
        "zero_up": False,
        "gate": "soft",
        "gate_init": 1.0,
    }
    own_cache = True  # W_down splits
    sharer_mean: Tensor
    sharer_scale: Tensor
    receiver_mean: Tensor
    receiver_scale: Tensor

    def __init__(
        self,
        config: AdapterConfig,
        width: Size = 128,
        standardise: bool = False,
        zero_up: bool = False,
        gate: GateMode = "gumbel",
        gate_init: float | None = None,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__(config, gate, gate_init)
        self.dropout = dropout
        if width < 2 or width % 2:
            raise UserError(f"width={width} cannot be halved between keys and values.", "Use an even number.")
        L, d = len(config.layers), width
        R, S = config.receiver_geometry, config.sharer_geometry
        self.width, self.heads, self.dim = d, R.kv_heads, R.head_dim
        self.down_sharer = stacked(L, 2 * S.kv_width, d)
        self.down_receiver = stacked(L, 2 * R.kv_width, d)
        self.down_bias = nn.Parameter(torch.zeros(L, 1, d))
        self.norm1, self.norm2 = nn.Parameter(torch.ones(L, 1, d)), nn.Parameter(torch.ones(L, 1, d))
        self.ffn1_in, self.ffn1_out = stacked(L, d, 4 * d), stacked(L, 4 * d, d)
        self.ffn2_in, self.ffn2_out = stacked(L, d, 4 * d), stacked(L, 4 * d, d)
        self.up_key, self.up_value = (stacked(L, d // 2, R.kv_width, zero_up) for _ in "kv")
        self.up_key_bias, self.up_value_bias = (nn.Parameter(torch.zeros(L, 1, R.kv_width)) for _ in "kv")
        self.head_weight = stacked(L, d, 2 * R.kv_heads)
        self.head_bias = nn.Parameter(torch.zeros(L, 1, 2 * R.kv_heads))
        self.standardise = standardise
        if standardise:
            for name, size in (("sharer", 2 * S.kv_width), ("receiver", 2 * R.kv_width)):
                self.register_buffer(f"{name}_mean", torch.zeros(L, 1, size))
                self.register_buffer(f"{name}_scale", torch.ones(L, 1, size))

    @property
    def ranks(self) -> tuple[int, int]:
        return self.width // 2, self.width // 2

    @property
    def widest(self) -> int:
        return max(4 * self.width, super().widest)

    def message(self, sharer: Tensor, at: slice = WHOLE) -> Tensor:
        """Returns W_s·S (L, T, d) of the sharer's entries (L, T, s), K and V flattened."""
        if self.standardise:
            sharer = standard(sharer, part(self.sharer_mean, at), part(self.sharer_scale, at), CLAMP)
        return linear(sharer, part(self.down_sharer, at))

    def forward(
        self,
        message: Tensor,
        keys: Tensor,
        values: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        at: slice = WHOLE,
    ) -> tuple[Tensor, Tensor]:
        """Returns the edited keys and values (L, B, H, N, D) of the stack entries `at`.

        message: (L, B, N or 1, d). keys, values: the receiver's own. noise: see `Adapter.gates`.
        """
        L, B, H, N, D = keys.shape
        own = joined(keys, values)
        if self.standardise:
            own = standard(own, part(self.receiver_mean, at), part(self.receiver_scale, at), CLAMP)
        sent = message + part(self.down_bias, at).to(message.dtype)[:, :, None]
        sent = sent.expand(L, B, N, self.width).reshape(L, B * N, self.width)
        z = linear(own, part(self.down_receiver, at), sent)
        if self.training and self.dropout:
            z = F.dropout(z, self.dropout)
        z = ffn(z, part(self.norm1, at), part(self.ffn1_in, at), part(self.ffn1_out, at))
        z = ffn(z, part(self.norm2, at), part(self.ffn2_in, at), part(self.ffn2_out, at))
        half = self.width // 2
        delta_k = linear(z[..., :half], part(self.up_key, at), part(self.up_key_bias, at))
        delta_v = linear(z[..., half:], part(self.up_value, at), part(self.up_value_bias, at))
        alpha = torch.sigmoid(linear(z, part(self.head_weight, at), part(self.head_bias, at)))
        alpha = alpha.view(L, B, N, 2, H, 1).permute(3, 0, 1, 4, 2, 5)
        gates = self.gates((B, H, N, 1), noise, at)
        edits = []
        for own_x, gate, share, delta in zip((keys, values), gates, alpha, (delta_k, delta_v), strict=True):
            delta = delta.view(L, B, N, H, D).transpose(2, 3)
            edit = weighted(delta, share * gate.to(share.dtype))
            edits.append(added(own_x, edit, gate if self.can_shut else None))
        return edits[0], edits[1]

    def calibrate(self, sharer: Tensor, receiver: Tensor) -> None:
        """Sets the input statistics from entries of sharer (L, T, s) and receiver (L, T', r)."""
        for side, x in (("sharer", sharer.float()), ("receiver", receiver.float())):
            getattr(self, f"{side}_mean").copy_(x.mean(1, keepdim=True))
            # a floor on the deviation, so that nearly constant channels are not blown up
            floor = 1e-2 * x.abs().mean((1, 2), keepdim=True)
            getattr(self, f"{side}_scale").copy_(x.std(1, keepdim=True) + floor)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the bytes of the message, or those of the sharer's cache where they are fewer."""
        projected = len(self.config.layers) * self.width * fused_tokens * itemsize
        return min(projected, self.cache_bytes(sharer_tokens, itemsize))


def flat(x: Tensor) -> Tensor:
    """(L, B, H, N, D) → (L, B, N, H·D)."""
    L, B, H, N, D = x.shape
    return x.transpose(2, 3).reshape(L, B, N, H * D)

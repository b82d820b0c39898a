"""LCF: one projector per receiver layer in which K and V share a bottleneck (arXiv 2605.22863v2, section 3).

Per layer, with `r = 2·H_r·D_r`, `s = 2·H_s·D_s`, width `d`: `z0 = W_down [S_K|S_V|R_K|R_V] + b`, two residual FFN blocks `d → 4d → d`,
then K from the first half of `z`, V from the second, each weighted per head by a sigmoid of the whole `z` and by the layer's gate.
W_down is linear, so its sharer part `W_s·S` (d numbers a token and layer) is all that has to cross the wire.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.adapters._layers import gated, linear, rms_norm, stacked
from lcfbench.adapters.base import Adapter, GateMode
from lcfbench.adapters.config import AdapterConfig
from lcfbench.errors import UserError

CLAMP = 8.0  # standardised inputs beyond this are outliers of the frozen models, not content


class Fuser(Adapter):
    """Position-wise LCF.

    width: the bottleneck d (even). standardise: subtract mean and divide by deviation of each input channel, measured once before training and
    kept as buffers. zero_up: start from no edit at all. gate, gate_init: see `Adapter`.
    """

    own_cache: ClassVar[bool] = True  # W_down splits

    def __init__(
        self,
        config: AdapterConfig,
        width: int = 128,
        standardise: bool = False,
        zero_up: bool = False,
        gate: GateMode = "gumbel",
        gate_init: float | None = None,
    ) -> None:
        super().__init__(config, gate, gate_init)
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
        self.up_key, self.up_value = stacked(L, d // 2, R.kv_width, zero_up), stacked(L, d // 2, R.kv_width, zero_up)
        self.up_key_bias, self.up_value_bias = (
            nn.Parameter(torch.zeros(L, 1, R.kv_width)),
            nn.Parameter(torch.zeros(L, 1, R.kv_width)),
        )
        self.head_weight, self.head_bias = stacked(L, d, 2 * R.kv_heads), nn.Parameter(torch.zeros(L, 1, 2 * R.kv_heads))
        self.standardise = standardise
        if standardise:
            for name, size in (("sharer", 2 * S.kv_width), ("receiver", 2 * R.kv_width)):
                self.register_buffer(f"{name}_mean", torch.zeros(L, 1, size))
                self.register_buffer(f"{name}_scale", torch.ones(L, 1, size))

    def message(self, sharer: Tensor) -> Tensor:
        """What crosses the wire: sharer entries (L, T, s), K and V flattened → W_s·S (L, T, d)."""
        return linear(self._standard(sharer, "sharer"), self.down_sharer)

    def forward(self, message: Tensor, keys: Tensor, values: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Edited keys and values (L, B, H, N, D) from the message (L, B, N or 1, d) and the receiver's own."""
        L, B, H, N, D = keys.shape
        own = torch.cat([flat(keys), flat(values)], -1).view(L, B * N, -1)
        received = linear(self._standard(own, "receiver"), self.down_receiver, self.down_bias).view(L, B, N, -1)
        z = (received + message).view(L, B * N, -1)
        z = z + linear(F.gelu(linear(rms_norm(z, self.norm1), self.ffn1_in)), self.ffn1_out)
        z = z + linear(F.gelu(linear(rms_norm(z, self.norm2), self.ffn2_in)), self.ffn2_out)
        half = self.width // 2
        delta_k = linear(z[..., :half], self.up_key, self.up_key_bias).view(L, B, N, H, D).transpose(2, 3)
        delta_v = linear(z[..., half:], self.up_value, self.up_value_bias).view(L, B, N, H, D).transpose(2, 3)
        alpha = torch.sigmoid(linear(z, self.head_weight, self.head_bias)).view(L, B, N, 2, H, 1).permute(3, 0, 1, 4, 2, 5)
        gate_k, gate_v = self.gates((B, H, N, 1), noise)
        return gated(keys, gate_k, alpha[0] * delta_k), gated(values, gate_v, alpha[1] * delta_v)

    def _standard(self, x: Tensor, side: str) -> Tensor:
        if not self.standardise:
            return x
        mean, scale = getattr(self, f"{side}_mean"), getattr(self, f"{side}_scale")
        return ((x.float() - mean) / scale).clamp(-CLAMP, CLAMP).to(x.dtype)

    def calibrate(self, sharer: Tensor, receiver: Tensor) -> None:
        """Sets the input statistics from examples: sharer (L, T, s), receiver (L, T', r), padding left out."""
        for side, x in (("sharer", sharer.float()), ("receiver", receiver.float())):
            getattr(self, f"{side}_mean").copy_(x.mean(1, keepdim=True))
            # a floor on the deviation, so that nearly constant channels are not blown up
            floor = 1e-2 * x.abs().mean((1, 2), keepdim=True)
            getattr(self, f"{side}_scale").copy_(x.std(1, keepdim=True) + floor)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """The smaller of the projected message, d numbers a fused token and layer, and the sharer's cache itself."""
        return min(len(self.config.layers) * self.width * fused_tokens * itemsize, self.cache_bytes(sharer_tokens, itemsize))


def flat(x: Tensor) -> Tensor:
    """(L, B, H, N, D) → (L, B, N, H·D)."""
    L, B, H, N, D = x.shape
    return x.transpose(2, 3).reshape(L, B, N, H * D)

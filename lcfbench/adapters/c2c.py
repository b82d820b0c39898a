"""C2C: one fuser per receiver layer, K and V fully apart (Cache-to-Cache, arXiv 2510.03215v2, section 3.2; methods.md, section 4).

For each of K and V: `u = trunk(in([sharer, receiver]))`, `Δ = out(delta(u))`, `α = sigmoid(head(scale(u)))`, one weight a token and
head, and `cache' = cache + g·α⊙Δ`. K and V of all layers run in the same batched matmuls: weights are (L, 2, in, out), K first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.adapters._layers import gated, linear, rms_norm, stacked
from lcfbench.adapters.base import Adapter, GateMode
from lcfbench.adapters.config import AdapterConfig
from lcfbench.adapters.lcf import flat
from lcfbench.errors import UserError


class Fuser(Adapter):
    """hidden, intermediate: widths of the blocks. blocks: C2C's `num_layers`: one block is the trunk, blocks − 2 follow
    on the way to the edit, one on the way to the head weights.

    dropout: inside the blocks, in training only. gate, gate_init: see `Adapter`.
    """

    def __init__(
        self,
        config: AdapterConfig,
        hidden: int = 1024,
        intermediate: int = 1024,
        blocks: int = 3,
        dropout: float = 0.1,
        gate: GateMode = "gumbel",
        gate_init: float | None = None,
    ) -> None:
        super().__init__(config, gate, gate_init)
        if blocks < 3:
            raise UserError(f"blocks={blocks} leaves a C2C fuser without an edit.", "Use 3 or more.")
        L, h = len(config.layers), hidden
        R, S = config.receiver_geometry, config.sharer_geometry
        self.in_weight, self.in_bias = twice(L, S.kv_width + R.kv_width, h), bias(L, h)
        self.trunk = Block(L, h, intermediate, dropout)
        self.scale = Block(L, h, h, dropout)
        self.delta = nn.ModuleList(Block(L, h, intermediate, dropout) for _ in range(blocks - 2))
        self.head_weight, self.head_bias = twice(L, h, R.kv_heads), bias(L, R.kv_heads)
        self.out_weight, self.out_bias = twice(L, h, R.kv_width), bias(L, R.kv_width)

    def message(self, sharer: Tensor) -> Tensor:
        """What crosses the wire: the sharer's entries (L, T, s) as they are; C2C's input layer is wider than they are."""
        return sharer

    def forward(self, message: Tensor, keys: Tensor, values: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Edited keys and values (L, B, H, N, D) from the message (L, B, N or 1, s) and the receiver's own.

        noise: the uniform draws (L, B, H, N, 1) of the K and V gates in training, for tests.
        """
        L, B, H, N, D = keys.shape
        sharer = torch.stack(message.expand(L, B, N, -1).chunk(2, -1), 1)  # (L, 2, B, N, S)
        own = torch.stack([flat(keys), flat(values)], 1)  # (L, 2, B, N, T)
        x = torch.cat([sharer, own], -1).view(2 * L, B * N, -1)
        u = self.trunk(linear(x, self.in_weight.flatten(0, 1), self.in_bias.flatten(0, 1)))
        z = u
        for block in self.delta:
            z = block(z)
        delta = linear(z, self.out_weight.flatten(0, 1), self.out_bias.flatten(0, 1)).view(L, 2, B, N, H, D)
        alpha = torch.sigmoid(linear(self.scale(u), self.head_weight.flatten(0, 1), self.head_bias.flatten(0, 1))).view(L, 2, B, N, H, 1)
        edit = (alpha * delta).permute(1, 0, 2, 4, 3, 5)  # (2, L, B, H, N, D)
        gate_k, gate_v = self.gates((B, H, N, 1), noise)
        return gated(keys, gate_k, edit[0]), gated(values, gate_v, edit[1])


class Block(nn.Module):
    """`x + Dropout(W2·GELU(W1·RMSNorm(x)))` for K and V of all layers, without biases."""

    def __init__(self, layers: int, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(layers, 2, 1, width))
        self.up, self.down = twice(layers, width, inner), twice(layers, inner, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:  # (2L, T, width)
        inner = F.gelu(linear(rms_norm(x, self.norm.flatten(0, 1)), self.up.flatten(0, 1)))
        return x + F.dropout(linear(inner, self.down.flatten(0, 1)), self.dropout, self.training)


def twice(layers: int, fan_in: int, fan_out: int) -> nn.Parameter:
    """Weights (L, 2, in, out), for K and for V."""
    return nn.Parameter(stacked(2 * layers, fan_in, fan_out).data.unflatten(0, (layers, 2)))


def bias(layers: int, size: int) -> nn.Parameter:
    """Biases (L, 2, 1, size), for K and for V."""
    return nn.Parameter(torch.zeros(layers, 2, 1, size))

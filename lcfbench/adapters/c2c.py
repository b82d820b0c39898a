"""C2C: one fuser per receiver layer, K and V fully apart (arXiv 2510.03215v2, section 3.2).

For each of K and V: `u = trunk(in([sharer, receiver]))`, `Δ = out(delta(u))`,
`α = sigmoid(head(scale(u)))`, one weight a token and head, and `cache' = cache + g·α⊙Δ`. K and V of
all layers run in the same batched matmuls: weights are (L, 2, in, out), K first.

The paper's ablations leave out one part after another with its weights: the head weights (α = 1),
then the gates (g = 1), then the receiver's part of the input and the residual
(`cache' = out(delta(trunk(in(sharer))))`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.adapters._layers import WHOLE, added, linear, onto, part, rms_norm, stacked, weighted
from lcfbench.adapters.base import Editor, GateMode
from lcfbench.adapters.config import AdapterConfig, Share, Size
from lcfbench.errors import UserError

Ablation = Literal["none", "no-heads", "no-gate", "projection"]
ABLATIONS = get_args(Ablation)  # each leaves out more than the one before


class C2CAdapter(Editor):
    """C2C's fusers, stacked.

    hidden, intermediate: widths of the blocks. blocks: C2C's `num_layers`: one block is the trunk,
    blocks − 2 follow on the way to the edit, one on the way to the head weights. dropout: inside
    the blocks, in training only. gate, gate_init: see `Adapter`; unused without gates. ablation:
    `no-heads`: no head weights; `no-gate`: nor gates; `projection`: nor the receiver's input, and
    no residual.
    """

    title = "C2C"
    contexts = ("shared",)
    small_scale: ClassVar[Mapping[str, Any]] = {
        "hidden": 64,
        "intermediate": 64,
        "gate": "soft",
        "gate_init": 1.0,
    }

    def __init__(
        self,
        config: AdapterConfig,
        hidden: Size = 1024,
        intermediate: Size = 1024,
        blocks: Size = 3,
        dropout: Share = 0.1,
        gate: GateMode = "gumbel",
        gate_init: float | None = None,
        ablation: Ablation = "none",
    ) -> None:
        level = ABLATIONS.index(ablation)
        super().__init__(config, gate if level < 2 else "hard", gate_init)
        self.heads, self.fuses = level < 1, level < 3
        if blocks < 3:
            raise UserError(f"blocks={blocks} leaves a C2C fuser without an edit.", "Use 3 or more.")
        L, h = len(config.layers), hidden
        R, S = config.receiver_geometry, config.sharer_geometry
        if level >= 2:  # open for good, a constant and no parameter
            del self.gate_logit
            self.register_buffer("gate_logit", torch.ones(L, 2))
        self.in_weight, self.in_bias = twice(L, S.kv_width + (R.kv_width if self.fuses else 0), h), bias(L, h)
        self.trunk = Block(L, h, intermediate, dropout)
        if self.heads:
            self.scale = Block(L, h, h, dropout)
        self.delta = nn.ModuleList(Block(L, h, intermediate, dropout) for _ in range(blocks - 2))
        if self.heads:
            self.head_weight, self.head_bias = twice(L, h, R.kv_heads), bias(L, R.kv_heads)
        self.out_weight, self.out_bias = twice(L, h, R.kv_width), bias(L, R.kv_width)

    @property
    def ranks(self) -> tuple[int, int]:
        return self.in_weight.shape[3], self.in_weight.shape[3]

    @property
    def widest(self) -> int:
        return 2 * max(self.in_weight.shape[2:] + self.trunk.up.shape[3:] + (self.out_weight.shape[3],))

    def message(self, sharer: Tensor, at: slice = WHOLE) -> Tensor:
        """Returns the sharer's entries (L, T, s): the input layer makes them no smaller."""
        return sharer

    def forward(
        self,
        message: Tensor,
        keys: Tensor,
        values: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        at: slice = WHOLE,
    ) -> tuple[Tensor, Tensor]:
        """Returns the edited keys and values (L, B, H, N, D) of the stack entries `at`.

        message: (L, B, N or 1, s). keys, values: the receiver's own. noise: see `Adapter.gates`.
        """
        L, B, H, N, D = keys.shape
        x = message.expand(L, B, N, -1).unflatten(3, (2, -1)).movedim(3, 1)  # (L, 2, B, N, S)
        if self.fuses:
            own = torch.stack([keys.transpose(2, 3), values.transpose(2, 3)], 1).view(L, 2, B, N, H * D)
            x = torch.cat([x, own], -1)  # (L, 2, B, N, S+T)
        x = linear(x.reshape(2 * L, B * N, -1), both(self.in_weight, at), both(self.in_bias, at))
        z = u = self.trunk(x, at, over=True)
        for number, block in enumerate(self.delta):
            z = block(z, at, over=number > 0)  # the head weights need u as well
        edit = linear(z, both(self.out_weight, at), both(self.out_bias, at)).view(L, 2, B, N, H, D)
        edit = edit.permute(1, 0, 2, 4, 3, 5)  # (2, L, B, H, N, D)
        if not self.fuses:  # the edit replaces the cache
            return edit[0].to(keys.dtype), edit[1].to(values.dtype)
        gates = self.gates((B, H, N, 1), noise, at)
        share = [gate.to(edit.dtype) for gate in gates]
        if self.heads:
            head = linear(self.scale(u, at), both(self.head_weight, at), both(self.head_bias, at))
            alpha = torch.sigmoid(head).view(L, 2, B, N, H, 1).permute(1, 0, 2, 4, 3, 5)
            share = [alpha[i] * share[i] for i in (0, 1)]
        edited = [
            added(own, weighted(each, part), gate if self.can_shut else None)
            for own, each, part, gate in zip((keys, values), edit, share, gates, strict=True)
        ]
        return edited[0], edited[1]


class Block(nn.Module):
    """`x + Dropout(W2·GELU(W1·RMSNorm(x)))` for K and V of all layers, without biases."""

    def __init__(self, layers: int, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(layers, 2, 1, width))
        self.up, self.down = twice(layers, width, inner), twice(layers, inner, width)
        self.dropout = dropout

    def forward(self, x: Tensor, at: slice = WHOLE, over: bool = False) -> Tensor:
        """x: (2L, T, width). over: x has no other user and may be written over, see `onto`."""
        inner, down = F.gelu(linear(rms_norm(x, both(self.norm, at)), both(self.up, at))), both(self.down, at)
        if self.training and self.dropout:
            return x + F.dropout(linear(inner, down), self.dropout)
        return onto(x, inner, down) if over else linear(inner, down, x)


def both(stack: Tensor, at: slice) -> Tensor:
    """Returns a view (2L, …) of the entries `at` of a stack (L, 2, …), K's and V's in turn."""
    return part(stack, at).flatten(0, 1)


def twice(layers: int, fan_in: int, fan_out: int) -> nn.Parameter:
    """Returns weights (L, 2, in, out), for K and for V."""
    return nn.Parameter(stacked(2 * layers, fan_in, fan_out).data.unflatten(0, (layers, 2)))


def bias(layers: int, size: int) -> nn.Parameter:
    """Returns biases (L, 2, 1, size), for K and for V."""
    return nn.Parameter(torch.zeros(layers, 2, 1, size))

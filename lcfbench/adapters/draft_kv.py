"""Draft-KV: a draft answer's keys and values as a side memory of a few receiver layers (arXiv 2609.34754).

The sharer writes a draft; the K/V of the tokens that it wrote cross, keys without their rotary
positions. Each of a few receiver layers (the paper's 4; which ones is open there, here spread over the
upper half) reads one sharer layer. A projector for each receiver KV head, one for keys and one for
values, makes the entries:

    entry = base + scale · (up · GELU(down · standardised + bias))

base is learned and starts at the mean of the receiver's own entries, scale is their deviation. With L
layers, H receiver heads of D numbers and S numbers in a sharer layer's keys, width d, these are
`L · (2·H·(S·d + d + d·D + D) + 2)` parameters. The method decides where the entries stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from lcfbench.adapters.base import Adapter, GateMode
from lcfbench.adapters.config import AdapterConfig, Size
from lcfbench.errors import UserError

CLAMP = 8.0  # deviations beyond which an input is cut
PUBLISHED = "0.64+0.16+0.2"  # 16,000, 4,000 and 5,000 updates
Weight = Annotated[float, Ge(0), Le(1e3)]


class DraftKVAdapter(Adapter):
    """Projects the entries of a draft.

    draft: tokens that the sharer may write. into: receiver layers that read them, spread over the upper
    half when a training begins. width: of each projector. stages: shares of the training's steps that
    reconstruct the draft, answer with reconstruction, and choose options under the guard. replay:
    weight of reconstruction in the second stage. guard: weight of the guard in the third. margin: nats
    by which a wrong packet may be worse than none. gate, gate_init: see `Adapter`; the product of a
    layer's two gates is what one entry of the memory weighs in attention against one of its own.

    Raises UserError for stages that are no three shares.
    """

    title = "Draft-KV"
    small_scale: ClassVar[Mapping[str, Any]] = {"draft": 8, "width": 32, "gate": "soft"}
    default_gate_init = 1.0
    mean: Tensor
    deviation: Tensor
    scale: Tensor

    def __init__(
        self,
        config: AdapterConfig,
        draft: Annotated[int, Ge(1), Le(4096)] = 32,
        into: Size = 4,
        width: Size = 128,
        stages: str = PUBLISHED,
        replay: Weight = 0.5,
        guard: Weight = 0.1,
        margin: Weight = 0.1,
        gate: GateMode = "soft",
        gate_init: float | None = None,
    ) -> None:
        super().__init__(config, gate, gate_init)
        self.draft, self.into, self.width = draft, into, width
        self.stages, self.replay, self.guard, self.margin = parse_stages(stages), replay, guard, margin
        L, R, S = len(config.layers), config.receiver_geometry, config.sharer_geometry
        self.heads, self.dim = R.kv_heads, R.head_dim
        self.down = nn.Parameter(_uniform(L, 2, R.kv_heads, S.kv_width, width))
        self.down_bias = nn.Parameter(torch.zeros(L, 2, R.kv_heads, 1, width))
        self.up = nn.Parameter(_uniform(L, 2, R.kv_heads, width, R.head_dim))
        self.base = nn.Parameter(torch.zeros(L, 2, R.kv_heads, 1, R.head_dim))
        self.register_buffer("mean", torch.zeros(L, 2, 1, S.kv_width))
        self.register_buffer("deviation", torch.ones(L, 2, 1, S.kv_width))
        self.register_buffer("scale", torch.ones(L, 2, R.kv_heads, 1, R.head_dim))

    def message(self, sharer: Tensor) -> Tensor:
        """Returns the packet (L, T, s) itself: the sharer's entries, K and V flattened."""
        return sharer

    def forward(self, packet: Tensor) -> tuple[Tensor, Tensor]:
        """Returns content keys and values (L, H, T, D) from the packet (L, T, 2·S), keys first."""
        x = packet.unflatten(-1, (2, -1)).transpose(1, 2).float()  # (L, 2, T, S)
        x = ((x - self.mean) / self.deviation).clamp(-CLAMP, CLAMP).to(packet.dtype)
        z = F.gelu(x[:, :, None] @ self.down.to(x.dtype) + self.down_bias.to(x.dtype))
        out = self.base.to(x.dtype) + self.scale.to(x.dtype) * (z @ self.up.to(x.dtype))
        return out[:, 0], out[:, 1]

    def weights(self, noise: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Returns what an entry of the memory weighs in each layer, (L,), 0 to 1."""
        keys, values = self.gates((), noise)
        return keys * values

    def open_layers(self) -> list[int]:
        """Returns the stack indices both of whose gates are open: a layer with a shut one reads nothing."""
        shut = torch.sigmoid(self.gate_logit) if self.gate_mode == "soft" else self.gate_logit
        return (shut > 0).all(1).nonzero()[:, 0].tolist()

    def calibrate(self, packet: Tensor) -> None:
        """Sets the input statistics from packets (L, T, 2·S)."""
        x = packet.float().unflatten(-1, (2, -1)).transpose(1, 2)
        floor = 1e-2 * x.abs().mean((2, 3), keepdim=True) + 1e-6
        self.mean.copy_(x.mean(2, keepdim=True))
        self.deviation.copy_(x.std(2, correction=0, keepdim=True) + floor)

    def start_base(self, keys: Tensor, values: Tensor) -> None:
        """Starts the entries as the receiver's own content keys and values (L, H, T, D) are on average."""
        own = torch.stack([keys, values], 1).float()
        with torch.no_grad():
            self.base.copy_(own.mean(3, keepdim=True))
            self.scale.copy_(own.std(3, correction=0, keepdim=True))

    def stage(self, done: float) -> int:
        """Returns the stage, 1 to 3, after a share `done` (0 to 1) of the training's steps."""
        first, second, _ = self.stages
        return 1 if done < first else 2 if done < first + second else 3

    def flops(self, positions: int) -> float:
        """Counts the projectors on so many tokens of a draft."""
        return 2.0 * (self.down.numel() + self.up.numel()) * positions


def parse_stages(text: str) -> tuple[float, float, float]:
    """Reads three shares that make 1, joined by `+`: commas part values. Raises UserError for anything else.

    >>> parse_stages("0+0.5+0.5")
    (0.0, 0.5, 0.5)
    """
    try:
        first, second, third = (float(part) for part in text.split("+"))
    except ValueError:
        first, second, third = math.nan, math.nan, math.nan
    if not (min(first, second, third) >= 0 and abs(first + second + third - 1) < 1e-6):
        raise UserError(
            f"stages={text[:40]} are not three shares of the steps that make 1.", f"Use stages={PUBLISHED}."
        )
    return first, second, third


def spread(layers: int, count: int) -> list[int]:
    """Returns `count` of so many layers, evenly over the upper half; over more where that is too small.

    >>> spread(30, 4), spread(4, 3)
    ([16, 20, 24, 28], [1, 2, 3])
    """
    first = min(layers // 2, max(layers - count, 0))
    return [first + (2 * i + 1) * (layers - first) // (2 * count) for i in range(count)]


def _uniform(*shape: int) -> Tensor:
    """Weights (…, in, out) with PyTorch's own linear initialisation."""
    bound = 1 / math.sqrt(shape[-2])
    return torch.empty(shape).uniform_(-bound, bound)

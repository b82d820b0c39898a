"""LCF-X: LCF for different contexts (arXiv 2605.22863v2, section 4).

The sharer's cache is pooled to one K and one V a layer and head, then offered to every receiver
position. Inside each of P spans a learned query pools the tokens; a second one pools the spans. No
parameter depends on P, so any scheme of spans may be used at inference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lcfbench.adapters import lcf
from lcfbench.adapters._layers import WHOLE, part
from lcfbench.adapters.base import GateMode
from lcfbench.adapters.config import AdapterConfig, Share, Size

TAIL = 64  # distances from the end that have a bias of their own with `pool_start="last"`
LAST_SPAN = 5
SPANS_AT_ONCE = 16


class LCFXAdapter(lcf.LCFAdapter):
    """LCF on a pooled cache.

    pool_start: "random" queries (the paper), or "last": learned biases over the distance from the
    end start the pool on the sharer's last tokens and last span. unrotated_keys: pool keys without
    their rotary positions, which tell the place and not the content.
    """

    title = "LCF-X"
    own_method = "lcf"
    contexts = ("different",)
    small_scale: ClassVar[Mapping[str, Any]] = dict(lcf.LCFAdapter.small_scale) | {
        "pool_start": "last",
        "unrotated_keys": True,
    }
    default_gate_init = 1.0  # 0 gave weak gate gradients (the paper)

    def __init__(
        self,
        config: AdapterConfig,
        width: Size = 128,
        pool_start: Literal["random", "last"] = "random",
        unrotated_keys: bool = False,
        standardise: bool = False,
        zero_up: bool = False,
        gate: GateMode = "gumbel",
        gate_init: float | None = None,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__(config, width, standardise, zero_up, gate, gate_init, dropout)
        L, S = len(config.layers), config.sharer_geometry
        self.unrotated_keys, self.pool_start = unrotated_keys, pool_start
        scale = 0.1 if pool_start == "last" else 1.0
        self.query_base = nn.Parameter(scale * torch.randn(L, S.kv_heads, S.head_dim))
        self.query_layer = nn.Parameter(scale * torch.randn(L, S.kv_heads, S.head_dim))
        if pool_start == "last":
            self.token_bias = nn.Parameter(torch.zeros(L, TAIL))
            self.span_bias = nn.Parameter(torch.zeros(L, LAST_SPAN))
            with torch.no_grad():
                self.token_bias[:, 0], self.span_bias[:, 0] = 6.0, 4.0

    def pool(self, keys: Tensor, values: Tensor, member: Tensor, at: slice = WHOLE) -> Tensor:
        """Pools keys and values (L, B, H, M, D) of the stack entries `at` into (L, B, 1, s).

        member: (B, P, M), whether each token belongs to each span; spans may overlap or be empty.
        Padding and tokens that are not read belong to none. Spans are pooled a few at a time, so
        that the weights stay smaller than the cache.
        """
        L, B, H, M, D = keys.shape
        query = part(self.query_base, at).float()
        score = torch.einsum("lhd,lbhmd->lbhm", query, keys.float()) / math.sqrt(D)
        if self.pool_start == "last":
            read = member.any(1).long()
            from_end = read.flip(1).cumsum(1).flip(1).sub(1).clamp(0, TAIL - 1)  # 0 at the last token read
            score = score + part(self.token_bias, at).float()[:, from_end][:, :, None]  # (L, B, 1, M)
        pooled = []
        for some in member.split(SPANS_AT_ONCE, 1):
            inside = masked_softmax(score[:, :, :, None], some[None, :, None]).to(
                keys.dtype
            )  # (L, B, H, P', M)
            pooled.append((inside @ keys, inside @ values))
        span_k, span_v = (torch.cat(x, 3) for x in zip(*pooled, strict=True))  # (L, B, H, P, D)
        query = part(self.query_layer, at).float()
        across = torch.einsum("lhd,lbhpd->lbhp", query, span_k.float()) / math.sqrt(D)
        filled = member.any(2)  # (B, P)
        if self.pool_start == "last":
            number = torch.arange(member.shape[1], device=member.device)
            from_last = ((filled * number).amax(1, keepdim=True) - number).clamp(0, LAST_SPAN - 1)  # (B, P)
            across = across + part(self.span_bias, at).float()[:, from_last][:, :, None]
        weight = masked_softmax(across, filled[None, :, None]).to(keys.dtype)[..., None, :]  # (L, B, H, 1, P)
        return torch.cat([lcf.flat(weight @ span_k), lcf.flat(weight @ span_v)], -1)

    def flops(self, positions: int) -> float:
        """Counts pool and sharer's half of W_down once a document, the rest at every position."""
        once = self.down_sharer.numel() + self.query_base.numel() + self.query_layer.numel()
        return 2.0 * (once + (self.params - once) * positions)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Counts one pooled entry a layer: d projected numbers, or s where they are fewer."""
        numbers = self.config.sharer_geometry.numbers
        return sum(min(self.width, numbers(source)) for source in self.config.layer_map) * itemsize


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Returns the softmax over the last dim where `mask` is true; all zeros where it never is."""
    weights = score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1)
    return weights * mask

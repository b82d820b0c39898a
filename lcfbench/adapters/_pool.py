"""Learned queries that pool a cache into a few slots, each layer and head by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lcfbench.adapters.lcf import flat

TAIL = 64  # distances from the end that have a bias of their own


def last_first(layers: int, slots: int) -> Tensor:
    """Returns biases (L, k, TAIL) with which slot t starts on the t-th last token."""
    bias = torch.zeros(layers, slots, TAIL)
    bias[:, range(slots), [min(t, TAIL - 1) for t in range(slots)]] = 6.0
    return bias


def pooled(query: Tensor, bias: Tensor | None, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Pools layers (L, B, H, M, D) under mask (B, M) into slots (L, B, k, 2·H·D), keys first.

    query: (L, H, k, D). bias: (L, k, TAIL), by the distance from the last token; None for none.
    """
    score = torch.einsum("lhtd,lbhmd->lbhtm", query.float(), keys.float())
    score = score / math.sqrt(keys.shape[-1])
    if bias is not None:
        from_end = mask.flip(1).cumsum(1).flip(1).sub(1).clamp(0, TAIL - 1)  # (B, M), 0 at the last token
        score = score + bias.float()[:, :, from_end].transpose(1, 2)[:, :, None]
    score = score.masked_fill(~mask.bool()[None, :, None, None], torch.finfo(score.dtype).min)
    weight = score.softmax(-1).to(keys.dtype)
    return torch.cat([flat(weight @ keys), flat(weight @ values)], -1)

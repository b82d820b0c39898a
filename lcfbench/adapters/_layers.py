"""Layers whose weights are stacked: one batched matmul serves all layers of a model (28 small launches become one)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHOLE = slice(None)  # of a stack: all its layers


def stacked(layers: int, fan_in: int, fan_out: int, zero: bool = False) -> nn.Parameter:
    """Weights (L, in, out) with PyTorch's own linear initialisation, or zeros."""
    if zero:
        return nn.Parameter(torch.zeros(layers, fan_in, fan_out))
    return nn.Parameter(
        torch.empty(layers, fan_in, fan_out).uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    )


def linear(x: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """One batched matmul for all layers: x (L, T, in) · weight (L, in, out) + plus, in the dtype of x.

    plus: a bias (L, 1, out) or a term (L, T, out) that the matmul itself adds: no pass over memory of its own.
    """
    if plus is None:
        return torch.bmm(x, weight.to(x.dtype))
    return torch.baddbmm(plus.to(x.dtype), x, weight.to(x.dtype))


def onto(z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """z + x · weight as `linear` has it; written over z, a tensor nobody else holds, where no gradient needs what it was."""
    return linear(x, weight, z) if torch.is_grad_enabled() else z.baddbmm_(x, weight.to(x.dtype))


def ffn(z: Tensor, norm: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The residual block z + GELU(RMSNorm(z)·up)·down; may be written over z, see `onto`."""
    return onto(z, F.gelu(linear(rms_norm(z, norm), up)), down)


def standard(x: Tensor, mean: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Standardised x, clamped to ±limit, in the dtype of x; statistics (L, 1, width) in fp32."""
    if x.requires_grad:
        return ((x.float() - mean) / scale).clamp(-limit, limit).to(x.dtype)
    return (
        torch.sub(x.float(), mean).div_(scale).clamp_(-limit, limit).to(x.dtype)
    )  # the same numbers with one buffer


def joined(keys: Tensor, values: Tensor) -> Tensor:
    """K and V (L, B, H, N, D) as one entry a token, K first: (L, B·N, 2·H·D), in one pass over memory."""
    L, B, H, N, D = keys.shape
    return torch.stack([keys.transpose(2, 3), values.transpose(2, 3)], 3).view(L, B * N, 2 * H * D)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """RMSNorm over the last dim, a weight (L, 1, d) a layer, statistics in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def gated(own: Tensor, gate: Tensor, edit: Tensor) -> Tensor:
    """own + gate·edit, and own bit for bit where the gate is shut (−0.0 + 0 would be 0.0)."""
    return torch.where(gate == 0, own, own + gate.to(own.dtype) * edit)


def weighted(edit: Tensor, weight: Tensor) -> Tensor:
    """weight·edit; written over edit, a tensor nobody else holds, where no gradient needs what it was."""
    return weight * edit if torch.is_grad_enabled() else edit.mul_(weight)


def added(own: Tensor, edit: Tensor, gate: Tensor | None) -> Tensor:
    """own + edit, an edit that its gate has weighted; own bit for bit where the gate is shut (−0.0 + 0 would be 0.0). None: no gate can be."""
    return own + edit if gate is None else torch.where(gate == 0, own, own + edit)

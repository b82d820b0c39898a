"""Building blocks with stacked weights: one batched matmul serves all layers of a model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHOLE = slice(None)  # of a stack: all its layers


def stacked(layers: int, fan_in: int, fan_out: int, zero: bool = False) -> nn.Parameter:
    """Returns weights (L, in, out) with PyTorch's own linear initialisation, or zeros."""
    if zero:
        return nn.Parameter(torch.zeros(layers, fan_in, fan_out))
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(layers, fan_in, fan_out).uniform_(-bound, bound))


def part(stack: Tensor, at: slice) -> Tensor:
    """Returns the entries `at` of a stack; for all of them the stack itself, whose gradient is not written
    into zeros of its size first.
    """
    return stack if at.indices(len(stack)) == (0, len(stack), 1) else stack[at]


def linear(x: Tensor, weight: Tensor, plus: Tensor | None = None) -> Tensor:
    """Returns x (L, T, in) · weight (L, in, out) + plus for all layers, in the dtype of x.

    plus: a bias (L, 1, out) or a term (L, T, out); the matmul itself adds it.
    """
    if plus is None:
        return torch.bmm(x, weight.to(x.dtype))
    return torch.baddbmm(plus.to(x.dtype), x, weight.to(x.dtype))


def onto(z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Returns z + x · weight; without gradients written over z, which must have no other user."""
    return linear(x, weight, z) if torch.is_grad_enabled() else z.baddbmm_(x, weight.to(x.dtype))


def ffn(z: Tensor, norm: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Returns the residual block z + GELU(RMSNorm(z)·up)·down; may write over z, see `onto`."""
    return onto(z, F.gelu(linear(rms_norm(z, norm), up)), down)


def standard(x: Tensor, mean: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Returns x standardised and clamped to ±limit; statistics (L, 1, width) are in fp32."""
    if x.requires_grad:
        return ((x.float() - mean) / scale).clamp(-limit, limit).to(x.dtype)
    return (
        torch.sub(x.float(), mean).div_(scale).clamp_(-limit, limit).to(x.dtype)
    )  # one buffer, same numbers


def joined(keys: Tensor, values: Tensor) -> Tensor:
    """Returns K and V (L, B, H, N, D) as one entry a token, K first: (L, B·N, 2·H·D)."""
    L, B, H, N, D = keys.shape
    return torch.stack([keys.transpose(2, 3), values.transpose(2, 3)], 3).view(L, B * N, 2 * H * D)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Returns RMSNorm over the last dim, with a weight (L, 1, d) a layer and statistics in fp32."""
    wide = x.float()
    scale, weight = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps), weight.to(x.dtype)
    if torch.is_grad_enabled() or wide is x:
        return (wide * scale).to(x.dtype) * weight
    return wide.mul_(scale).to(x.dtype).mul_(weight)  # fewer buffers, same numbers


def gated(own: Tensor, gate: Tensor, edit: Tensor) -> Tensor:
    """Returns own + gate·edit; own bit for bit where the gate is shut (−0.0 + 0 would be 0.0)."""
    return torch.where(gate == 0, own, own + gate.to(own.dtype) * edit)


def weighted(edit: Tensor, weight: Tensor) -> Tensor:
    """Returns weight·edit; without gradients written over edit, which must have no other user."""
    return weight * edit if torch.is_grad_enabled() else edit.mul_(weight)


def added(own: Tensor, edit: Tensor, gate: Tensor | None) -> Tensor:
    """Returns own + edit (weighted by its gate before); own bit for bit where the gate is shut.

    gate: None where no gate can be shut. Without gradients written over edit, see `weighted`.
    """
    whole = own + edit if torch.is_grad_enabled() else edit.add_(own)
    return whole if gate is None else torch.where(gate == 0, own, whole)

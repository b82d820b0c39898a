"""Layers whose weights are stacked: one batched matmul serves all layers of a model (28 small launches become one)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def stacked(layers: int, fan_in: int, fan_out: int, zero: bool = False) -> nn.Parameter:
    """Weights (L, in, out) with PyTorch's own linear initialisation, or zeros."""
    if zero:
        return nn.Parameter(torch.zeros(layers, fan_in, fan_out))
    return nn.Parameter(torch.empty(layers, fan_in, fan_out).uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One batched matmul for all layers: x (L, T, in) · weight (L, in, out) + bias (L, 1, out), in the dtype of x."""
    if bias is None:
        return torch.bmm(x, weight.to(x.dtype))
    return torch.baddbmm(bias.to(x.dtype), x, weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """RMSNorm over the last dim, a weight (L, 1, d) a layer, statistics in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def gated(own: Tensor, gate: Tensor, edit: Tensor) -> Tensor:
    """own + gate·edit, and own bit for bit where the gate is shut (−0.0 + 0 would be 0.0)."""
    return torch.where(gate == 0, own, own + gate.to(own.dtype) * edit)

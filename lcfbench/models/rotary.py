"""Rotary position embeddings of cached keys: applied and undone by the model's own rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _cos_sin(model: Any, positions: Tensor, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin (B, N, D) with which `model` rotates the keys of one layer (local and global layers may differ, as in Gemma 3)."""
    decoder = model.get_decoder()
    probe = torch.zeros(1, device=positions.device, dtype=dtype)
    types = getattr(model.config, "layer_types", None)
    kinds = getattr(decoder.rotary_emb, "layer_types", None)
    if kinds is not None and types is not None:
        return decoder.rotary_emb(probe, positions, types[layer])
    return decoder.rotary_emb(probe, positions)


def _half_turn(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def rotate(keys: Tensor, positions: Tensor, model: Any, inverse: bool = False) -> Tensor:
    """Applies (or undoes) the rotary embedding of `model` on keys (L, B, H, N, D) at `positions` (B, N).

    Undoing leaves content keys that no longer depend on where in the prompt a token stood. Computed in fp32.
    """
    out, known = [], {}
    types = getattr(model.config, "layer_types", None) or [None] * keys.shape[0]
    for layer in range(keys.shape[0]):
        if types[layer] not in known:
            known[types[layer]] = _cos_sin(model, positions, layer, torch.float32)
        cos, sin = (t[:, None] for t in known[types[layer]])  # (B, 1, N, D)
        x = keys[layer].float()
        turned = x * cos - _half_turn(x) * sin if inverse else x * cos + _half_turn(x) * sin
        out.append((turned / (cos * cos + sin * sin) if inverse else turned).to(keys.dtype))
    return torch.stack(out)

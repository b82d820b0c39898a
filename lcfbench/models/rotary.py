"""Rotary position embeddings of cached keys, applied and undone by the model's own rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _cos_sin(model: Any, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
    """Returns cos, sin (B, 1, N, D), fp32, for one kind of layer: Gemma 3 has two."""
    embedding = model.get_decoder().rotary_emb
    probe = torch.zeros(1, device=positions.device, dtype=torch.float32)
    by_kind = kind is not None and getattr(embedding, "layer_types", None) is not None
    cos, sin = embedding(probe, positions, kind) if by_kind else embedding(probe, positions)
    return cos[:, None], sin[:, None]


def _half_turn(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def rotate(
    keys: Tensor, positions: Tensor, model: Any, layers: Sequence[int] | None = None, inverse: bool = False
) -> Tensor:
    """Applies or undoes a model's rotary embedding on keys (l, B, H, N, D) at positions (B, N).

    layers: the model's layers that the keys belong to; all without it. Undoing leaves content keys,
    which do not depend on where in the prompt a token stood. Computed in fp32.
    """
    kinds = getattr(model.config, "layer_types", None) or {}
    out, known = [], {}
    for x, layer in zip(keys, range(len(keys)) if layers is None else layers, strict=True):
        kind = kinds[layer] if kinds else None
        if kind not in known:
            known[kind] = _cos_sin(model, positions, kind)
        cos, sin = known[kind]
        y = x.float()
        turned = y * cos - _half_turn(y) * sin if inverse else y * cos + _half_turn(y) * sin
        out.append((turned / (cos * cos + sin * sin) if inverse else turned).to(x.dtype))
    return torch.stack(out)

"""Token rows of different lengths as rectangles: padding, masks, rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Returns ids (B, N) and mask (B, N), padded on the left so that the last tokens line up."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[pad] * (width - len(r)) + [*r] for r in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], dtype=torch.long)
    return ids.view(len(rows), width).to(device), mask.view(len(rows), width).to(device)


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Returns ids (B, N) and mask (B, N), padded on the right: for continuations of a cache."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[*r] + [pad] * (width - len(r)) for r in rows], dtype=torch.long)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], dtype=torch.long)
    return ids.view(len(rows), width).to(device), mask.view(len(rows), width).to(device)


def left_to_right(mask: Tensor, *rows: Tensor) -> list[Tensor]:
    """Turns left-padded rows (B, T) into right-padded ones: the mask first, then `rows`."""
    order = torch.argsort(1 - mask, dim=1, stable=True)
    return [x.gather(1, order) for x in (mask, *rows)]


def positions_of(mask: Tensor, start: Tensor | int = 0) -> Tensor:
    """Returns rotary positions (B, N): real tokens count from `start`; padding's are harmless."""
    offset = start[:, None] if isinstance(start, Tensor) else start
    return (mask.cumsum(1) - 1).clamp(min=0) + offset

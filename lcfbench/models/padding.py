"""Token rows of different lengths as rectangles: padding on the left or the right, masks, rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pad_left(rows: list[list[int]], pad: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Token ids (B, N) and mask (B, N), padded on the left so that the last tokens line up."""
    width = max((len(r) for r in rows), default=0)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        if row:
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def pad_right(rows: list[list[int]], pad: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and mask (B, T), padded on the right: for continuations of a cache whose ends line up."""
    width = max((len(r) for r in rows), default=0)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def left_to_right(mask: Tensor, *rows: Tensor) -> list[Tensor]:
    """Left-padded rows (B, T) as right-padded ones: the mask first, then `rows`, each in the same new order."""
    order = torch.argsort(1 - mask, dim=1, stable=True)
    return [x.gather(1, order) for x in (mask, *rows)]


def positions_of(mask: Tensor, start: Tensor | int = 0) -> Tensor:
    """Rotary positions (B, N) of real tokens counted from `start`; padding gets a harmless in-range one."""
    offset = start[:, None] if isinstance(start, Tensor) else start
    return (mask.cumsum(1) - 1).clamp(min=0) + offset

"""Token rows of different lengths as rectangles: padding, masks, rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Returns ids (B, N) and mask (B, N), padded on the left so that the last tokens line up."""
    ids, mask = pad_right([row[::-1] for row in rows], pad)
    return ids.flip(1).to(device), mask.flip(1).to(device)


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: Any = None) -> tuple[Tensor, Tensor]:
    """Returns ids (B, N) and mask (B, N), padded on the right: for continuations of a cache."""
    width = max(map(len, rows), default=0)
    ids = [[*row] + [pad] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    shape = len(rows), width
    return tuple(torch.tensor(x, dtype=torch.long).view(shape).to(device) for x in (ids, mask))  # type: ignore[return-value]


def left_to_right(mask: Tensor, *rows: Tensor) -> list[Tensor]:
    """Turns left-padded rows (B, T) into right-padded ones: the mask first, then `rows`."""
    order = torch.argsort(1 - mask, dim=1, stable=True)
    return [x.gather(1, order) for x in (mask, *rows)]


Real = Sequence[Sequence[bool]]  # a list a row: False where a token is padding inside a prompt


def positions_of(mask: Tensor, start: Tensor | int = 0) -> Tensor:
    """Returns rotary positions (B, N): real tokens count from `start`; padding's are harmless.

    start: the position of the first token, a number or (B,).
    """
    offset = start[:, None] if isinstance(start, Tensor) else start
    return (mask.cumsum(1) - 1).clamp(min=0) + offset


def silent_at(mask: Tensor, real: Real) -> Tensor:
    """Returns (B, N) bool: where the tokens that `mask` holds are padding inside a prompt."""
    silent = torch.zeros_like(mask, dtype=torch.bool)
    silent[mask.bool()] = torch.tensor([not r for row in real for r in row], device=mask.device)
    return silent

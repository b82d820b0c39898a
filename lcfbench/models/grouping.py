"""Groups of rows of different lengths, cut so that padding and forwards together cost least."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# One forward costs about as much as so many more tokens in another one: weights are read and
# kernels started once more. Measured: 11 ms of weights and 8 ms of starting beside 0.75 ms a token
# on two cores; on a GPU small models hardly fill a forward.
FORWARD_TOKENS = {"cpu": 32, "cuda": 2048}


def in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Counts the tokens with which two prompts begin alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def forward_tokens(device: torch.device) -> int:
    """Returns the cost of one more forward on a device, in tokens of another forward."""
    return FORWARD_TOKENS.get(device.type, FORWARD_TOKENS["cuda"])


def groups(lengths: Sequence[int], cost: int, start: int = 0) -> list[tuple[int, int]]:
    """Cuts ascending lengths into [begin, end) pairs, counted from `start`, of the least cost.

    A group costs the tokens it runs, padding included, and `cost` more for its forward.
    """
    best: list[tuple[int, int]] = [(0, 0)]  # tokens of the first n rows, and where their last group begins
    for n in range(1, len(lengths) + 1):
        best.append(min((best[b][0] + (n - b) * lengths[n - 1] + cost, b) for b in range(n)))
    cuts, end = [], len(lengths)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    return [(a + start, b + start) for a, b in reversed(cuts)]

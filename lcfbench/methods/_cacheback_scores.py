"""Chooses the entries that cacheback sends: scores of positions, and spans within a budget.

Scores are sums over layers and KV heads, in float32 (CacheBack, arXiv 2609.32046). Models with sliding
windows are scored by their global layers, where they have any.

>>> positions = spans(support(scored), budget=64)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.models.finite import NotFiniteError, finite
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel

POOL = 7  # neighbours, itself counted, over which attention is max-pooled
SPAN = 16  # tokens that are kept or dropped together
SINK = 4  # first tokens that `streaming` keeps (StreamingLLM, arXiv 2309.17453)


@dataclass(frozen=True)
class Attended:
    """What a request attends of a context, averaged over its tokens: (L·H, n) each, in float32.

    H: KV heads of a layer; each is the mean of its query heads. mean: of the attention.
    pooled, squared: of the attention max-pooled over neighbours, and of the squares of that. Position 0
    counts as 0: it is always kept, and what it receives has no meaning, so that it must not raise its
    neighbours.
    """

    mean: Tensor
    pooled: Tensor
    squared: Tensor


def pool(x: Tensor) -> Tensor:
    """Returns the largest value among `POOL` neighbours along the last dimension."""
    flat = x.reshape(-1, 1, x.shape[-1])
    return F.max_pool1d(flat, POOL, stride=1, padding=POOL // 2).view(x.shape)


def global_layers(lm: LanguageModel) -> list[int]:
    """Returns the layers of the cache that attend everything; all of them where none does."""
    g, windows = lm.geometry, lm.windows
    at = g.at or range(g.layers)
    return [i for i, number in enumerate(at) if windows[number] is None] or list(range(g.layers))


def attended(lm: LanguageModel, request: Sequence[int], past: KV) -> Attended:
    """Reads a request on top of a context's cache (one row, no padding).

    Raises NotFiniteError, and UserError for a model that gives no attention weights.
    """
    n, layers = past.length, global_layers(lm)
    heads = [h for h, _, _ in past.shapes]
    sums: dict[int, list[Tensor]] = {}

    def see(layer: int, weights: Tensor) -> None:
        if layer not in layers:
            return
        rows = weights[..., :n].float().unflatten(0, (heads[layer], -1)).mean(1)  # (H, T, n)
        rows[..., 0] = 0
        pooled = pool(rows)
        found = [x.sum(1) for x in (rows, pooled, pooled.square())]
        sums[layer] = [a + b for a, b in zip(sums[layer], found, strict=True)] if layer in sums else found

    lm.attention_to(request, past, see)
    count = max(len(request), 1)
    parts = [torch.cat([sums[layer][i].to(lm.device) for layer in layers]) / count for i in range(3)]
    check(lm, *parts)
    return Attended(*parts)


def check(lm: LanguageModel, *scores: Tensor) -> None:
    """Raises NotFiniteError for scores that rank nothing."""
    if not all(map(finite, scores)):
        raise NotFiniteError(f"attention of {lm.name} to the sharer's context is not finite")


def snapkv(a: Attended) -> Tensor:
    """Returns (n,): the mean attention of a request, max-pooled (SnapKV, arXiv 2404.14469)."""
    return pool(a.mean).sum(0)


def support(a: Attended) -> Tensor:
    """Returns (n,): `snapkv` times (row energy / energy)², so that what one row leans on keeps its weight.

    Energy is the squared mean of the pooled attention, row energy the mean of its squares. Both are
    floored at the smallest normal number: where both vanish the factor is 1.
    """
    least = torch.finfo(torch.float32).tiny
    energy, row_energy = a.pooled.square().clamp(min=least), a.squared.clamp(min=least)
    return (pool(a.mean) * (row_energy / energy).square()).sum(0)


def accumulated(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Returns (n,): the attention that each token of a text receives from all of it (H2O, arXiv 2306.14048).

    The text is read once more, for the weights. Raises NotFiniteError.
    """
    layers, total = global_layers(lm), torch.zeros(len(ids), device=lm.device)

    def see(layer: int, weights: Tensor) -> None:
        if layer in layers:
            found = weights.float().sum((0, 1)).to(lm.device)
            total[: len(found)] += found

    lm.attention_to(ids, None, see)
    check(lm, total)
    return total


def spans(scores: Tensor, budget: int) -> list[int]:
    """Returns `budget` positions, or all, in order: spans of the highest mean score, and position 0.

    Spans of `SPAN` positions are kept whole until the budget is spent. The last one gives one window of
    neighbours round its highest score. Of equal ones the earlier counts.
    """
    n = len(scores)
    if budget >= n:
        return list(range(n))
    values = scores.tolist()
    starts = range(0, n, SPAN)
    means = {a: sum(values[a : a + SPAN]) / len(values[a : a + SPAN]) for a in starts}
    kept, left = {0}, budget - 1
    for a in sorted(starts, key=lambda a: (-means[a], a)):
        inside = range(max(a, 1), min(a + SPAN, n))  # position 0 is there already
        if len(inside) > left:
            peak = max(inside, key=lambda i: (values[i], -i))
            first = min(max(peak - left // 2, inside.start), inside.stop - left)
            kept.update(range(first, first + left))
            break
        kept.update(inside)
        left -= len(inside)
    return sorted(kept)


def highest(scores: Tensor, budget: int) -> list[int]:
    """Returns `budget` positions, or all, in order: position 0 and the highest scores, one by one."""
    order = scores[1:].argsort(descending=True, stable=True)[: budget - 1] + 1
    return [0, *sorted(order.tolist())]


def streaming(n: int, budget: int) -> list[int]:
    """Returns `budget` of n positions, or all: the first ones, `SINK` at most, and the last ones."""
    sink = min(SINK, budget, n)
    recent = min(budget, n) - sink
    return [*range(sink), *range(n - recent, n)]

"""Reads and runs rows without padding, for models whose padded rows would differ from each row alone.

`left`: a text's beginning may be padded on its left, where a recurrent layer has nothing to keep yet;
a cache is continued in groups of equally many tokens, because padding behind them would change its state.
`equal`: no padding at all; rows of equal length run together.
`steps`: so too, and a cache is continued token by token: some recurrent layers of transformers begin
anew where they are given several.
`whole`: the cache cannot be used at all; each forward runs the whole text, as lm-eval does.

>>> kv = equal_run(lm, ids, mask, past, start)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.layout import Layout

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM


def by_length(*masks: Tensor) -> Iterator[Tensor]:
    """Yields the rows (b,) of which each mask (B, N) holds equally many columns."""
    counts = torch.stack([mask.sum(1) for mask in masks], 1)
    kinds, which = counts.unique(dim=0, return_inverse=True)
    for kind in range(len(kinds)):
        yield (which == kind).nonzero()[:, 0]


def alike(lm: CausalLM, past: KV, mask: Tensor) -> Iterator[Tensor]:
    """Yields the rows (b,) that may run together: equally many tokens, and on equally many."""
    return by_length(mask) if lm.reading == "left" else by_length(past.present, mask)


def in_order(parts: list[tuple[Tensor, KV]]) -> KV:
    """Returns caches of some rows each as one batch. parts: rows (b,) of the batch, and their cache."""
    back = torch.argsort(torch.cat([rows for rows, _ in parts]))
    return stacked([kv for _, kv in parts]).rows_at(back).flush()


def equal_run(lm: CausalLM, ids: Tensor, mask: Tensor, past: KV | None, start: Tensor | int) -> KV:
    """Returns the cache after ids (B, N) under a mask (B, N), on top of `past`."""
    before = KV.empty(lm.layout, len(ids), lm.device, lm.dtype) if past is None else past
    parts = []
    for rows in alike(lm, before, mask):
        some = ids[rows][mask[rows].bool()].view(len(rows), -1)
        at = start[rows] if isinstance(start, Tensor) else start
        kv = before.rows_at(rows).flush()
        for begin, piece in pieces(lm, kv, some):
            kv = lm.run_padded(piece, torch.ones_like(piece), kv, at + begin)
        parts.append((rows, kv))
    return in_order(parts)


def pieces(lm: CausalLM, kv: KV, ids: Tensor) -> list[tuple[int, Tensor]]:
    """Returns the stretches of ids (b, T) that run at once on a cache, and where each begins."""
    if lm.reading == "steps" and kv.states is not None:
        return list(enumerate(ids.split(1, 1)))
    return [(0, ids)]


def equal_forward(
    lm: CausalLM, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
) -> tuple[Tensor, Callable[[], KV]]:
    """Returns what `CausalLM.forward` does, for rows of different lengths."""
    order: list[Tensor] = []
    logits: list[Tensor] = []
    makers: list[tuple[Tensor, Callable[[], KV]]] = []
    column = (mask.cumsum(1) - 1)[at]  # without padding
    for rows in alike(lm, kv, mask):
        keep = mask[rows].bool()
        some, places = (x[rows][keep].view(len(rows), -1) for x in (ids, positions))
        wanted = (at[0][:, None] == rows).nonzero()
        own = kv.rows_at(rows).flush()
        make: Callable[[], KV] = own.flush
        for begin, piece in pieces(lm, own, some):
            own, width = make(), piece.shape[1]
            here = wanted[(column[wanted[:, 0]] >= begin) & (column[wanted[:, 0]] < begin + width)]
            found, make = lm.forward_padded(
                own,
                piece,
                torch.ones_like(piece),
                places[:, begin : begin + width],
                (here[:, 1], column[here[:, 0]] - begin),
            )
            order.append(here[:, 0])
            logits.append(found)
        makers.append((rows, make))
    back = torch.argsort(torch.cat(order))
    return torch.cat(logits)[back], lambda: in_order([(rows, make()) for rows, make in makers])


def whole_run(lm: CausalLM, ids: Tensor, mask: Tensor, past: KV | None, start: Tensor | int) -> KV:
    """Returns the tokens read so far: nothing is computed until an answer is asked for."""
    before = KV.empty(Layout(), len(ids), lm.device, lm.dtype) if past is None else past
    begin = start[:, None] if isinstance(start, Tensor) else start
    positions = (mask.cumsum(1) - 1).clamp(min=0) + begin
    none = before.keys.new_zeros(0, len(ids), 1, ids.shape[1], 1)
    return before.then(KV(none, none, mask, positions, layout=before.layout, tokens=ids)).flush()


def whole_forward(
    lm: CausalLM, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
) -> tuple[Tensor, Callable[[], KV]]:
    """Returns what `CausalLM.forward` does, from the whole text of each row."""
    assert kv.tokens is not None
    tokens, full = torch.cat([kv.tokens, ids], 1), torch.cat([kv.mask, mask], 1)
    column = (full.cumsum(1) - 1)[at[0], at[1] + kv.length]  # without padding
    order, logits = [], []
    for rows in by_length(full):
        some = tokens[rows][full[rows].bool()].view(len(rows), -1)
        wanted = (at[0][:, None] == rows).nonzero()
        if len(wanted):
            order.append(wanted[:, 0])
            logits.append(lm.logits_of(some, (wanted[:, 1], column[wanted[:, 0]])).float())
    back = torch.argsort(torch.cat(order))

    def longer() -> KV:
        return whole_run(lm, ids, mask, kv, positions[:, 0])

    return torch.cat(logits)[back], longer


class WholeTexts:
    """The texts of a batch that grows token by token, where there is no cache. rows: (B, N) ids."""

    def __init__(self, kv: KV) -> None:
        assert kv.tokens is not None and bool(kv.mask.all()), "rows of one length decode together"
        self.rows = kv.tokens

    def add(self, ids: Tensor) -> Tensor:
        """Adds one token ids (B,) a row and returns the texts."""
        self.rows = torch.cat([self.rows, ids[:, None]], 1)
        return self.rows

    def keep(self, index: Tensor) -> None:
        """Keeps the rows `index`."""
        self.rows = self.rows[index]

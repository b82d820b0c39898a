"""Reading prompts from an empty cache without doing anything twice: equal prompts, a beginning that all have in common, padding.

A batch is read in one canonical order, whatever order its prompts come in, so that what is shared is bit for bit what would have been computed:
a derangement of a batch is the same batch.

>>> kv = read(lm, [[1, 5, 6], [1, 7]], shared)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from lcfbench.models.grouping import forward_tokens, groups, in_common
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.padding import pad_left, pad_right
from lcfbench.models.timing import now

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

Rows = tuple[tuple[int, ...], ...]
BEGINNINGS = 8  # kept: chat templates open every prompt of a task with the same system message
BEGINNING_BYTES = 64 << 20  # of one; a longer one is read once a batch
_warned = False  # of prefills that are not shared


@dataclass
class Shared:
    """Caches of prompts read before, for as long as a batch is worked on.

    limit: bytes that are kept at most. seconds: what everything handed out since `start_accounting` would have taken, had it not been there already then.
    """

    limit: int
    seconds: float = 0.0
    held: dict[Rows, tuple[KV, float]] = field(default_factory=dict)
    own: set[Rows] = field(default_factory=set)

    def start_accounting(self) -> None:
        """Counts from here, for another borrower: what it reads itself is not lent to it."""
        self.seconds, self.own = 0.0, set()

    def get(self, rows: Rows) -> KV | None:
        if rows not in self.held:
            return None
        kv, seconds = self.held[rows]
        if rows not in self.own:
            self.seconds += seconds
            self.own.add(rows)
        return kv

    def put(self, rows: Rows, kv: KV, seconds: float) -> None:
        self.own.add(rows)
        if sum(size(kv) for kv, _ in self.held.values()) + size(kv) <= self.limit:
            self.held[rows] = kv, seconds
        else:
            warn_unshared(self.limit)


def size(kv: KV) -> int:
    """Bytes of a cache."""
    return kv.keys.nbytes + kv.values.nbytes


def read(lm: CausalLM, prompts: Sequence[Sequence[int]], shared: Shared | None = None) -> KV:
    """The cache after reading each prompt's tokens, left-padded to the longest. Equal prompts, and those of `shared`, are read once."""
    given = [tuple(p) for p in prompts]
    rows: Rows = tuple(sorted(set(given), key=lambda row: (len(row), row)))
    kv = shared.get(rows) if shared is not None else None
    if kv is None:
        if shared is None:
            kv = compute(lm, rows)
        else:
            began = now(lm.device)
            kv = compute(lm, rows)
            shared.put(rows, kv, now(lm.device) - began)
    if list(rows) == given:
        return kv
    place = {row: i for i, row in enumerate(rows)}
    return kv.rows_at(torch.tensor([place[row] for row in given], device=kv.keys.device))


def compute(lm: CausalLM, rows: Rows) -> KV:
    """The cache of prompts in ascending order of length: the beginning they share is read once, the rest in groups of near length."""
    lengths, cost = [len(row) for row in rows], forward_tokens(lm.device)
    empty = lengths.count(0)
    common = min(
        in_common(min(rows), max(rows)), lengths[0] - 1
    )  # the first and the last in order agree where all do
    # the caches of a group and of its beginning are copied together once more: not worth it for a few tokens
    if common * (len(rows) - 1) < cost:
        common = 0
    first = beginning(lm, rows[0][:common]) if common else None
    parts = [
        rest(lm, rows[a:b], first) for a, b in groups([n - common for n in lengths[empty:]], cost, empty)
    ]
    if empty or not parts:
        g = lm.geometry
        parts.insert(
            0,
            KV.empty(
                g.layers, empty, g.kv_heads, g.head_dim, torch.zeros(0, device=lm.device, dtype=lm.dtype)
            ),
        )
    return parts[0] if len(parts) == 1 else stacked(parts)


def beginning(lm: CausalLM, ids: tuple[int, ...]) -> KV:
    """The cache of one row of tokens; the last few are kept, for models whose weights stay as they are."""
    kept = lm.beginnings
    if kept is None:
        return rest(lm, (ids,), None)
    if ids not in kept:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # kept longer than the mode in which it was first wanted
            kv = rest(lm, (ids,), None)
        if size(kv) > BEGINNING_BYTES:
            return kv
        kept[ids] = kv
        while len(kept) > BEGINNINGS:
            kept.popitem(last=False)
    kept.move_to_end(ids)
    return kept[ids]


def rest(lm: CausalLM, rows: Rows, first: KV | None) -> KV:
    """The cache of some prompts, of which `first` (one row) holds the beginning."""
    if first is None:
        return lm.run(*pad_left([list(row) for row in rows], lm.pad_id), None, 0)
    begun = first.rows_at(torch.zeros(len(rows), dtype=torch.long, device=first.keys.device))
    ids, mask = pad_right([list(row[first.length :]) for row in rows], lm.pad_id)
    return lm.run(ids, mask, begun, first.length)


def warn_unshared(limit: int) -> None:
    """Says once a process that `limit` bytes were not enough."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"prefills are no longer shared beyond {limit / 1e9:.1f} GB; results are the same, only slower.",
            stacklevel=2,
        )

"""Reads prompts from an empty cache and does nothing twice.

Equal prompts are read once, a beginning that all prompts share is read once, and rows of near
length go together, so that little padding is read. A batch is read in one canonical order, whatever
order its prompts come in: the cache of a prompt is bit for bit the same in any order of the batch.

>>> kv = SharedPrefill(lm.device, lm.pad_id).read([[1, 5, 6], [1, 7]], lm.run)
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lcfbench.models.grouping import forward_tokens, groups, in_common
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.memory import free_bytes
from lcfbench.models.padding import pad_left, pad_right
from lcfbench.models.prefill_memory import Memory, Rows
from lcfbench.models.timing import now

T = TypeVar("T")
Run = Callable[[Tensor, Tensor, KV | None, Tensor | int], KV]  # ids, mask, past, start: see `CausalLM.run`
Join = Callable[[Rows, KV | None, Sequence[tuple[int, int]]], KV]  # see `ragged.joined_run`
Held = dict[Rows, tuple[KV, float]]  # caches of batches, and the seconds that each took
LEAST_HELD = 1 << 30  # bytes of caches that may be held in any case
BEGINNINGS = 8  # kept: chat templates open every prompt of a task with the same system message
BEGINNING_BYTES = 256 << 20  # of one; a longer one is read once a batch
KEPT_BYTES = 512 << 20  # of all
_warned = False  # of prefills that are not shared


class SharedPrefill:
    """Readings of one model, shared between methods, adapters and controls.

    held: caches of the batches read within `sharing`, and the seconds each took; None outside. made: what
    `once` has made there, such as prompts.
    beginnings: caches of the last few common beginnings; None for weights that may change.
    saved_seconds: time that the held caches handed out since `start_accounting` would have taken.
    read_seconds: time that all readings within `sharing` have taken. memory: rows that are kept
    longer, see `remembering`. frozen: whether the weights stay as they are.
    """

    def __init__(self, device: torch.device, pad_id: int, keep_beginnings: bool = True) -> None:
        self.device, self.pad_id = device, pad_id
        self.held: Held | None = None
        self.made: dict[Hashable, tuple[Any, float]] | None = None
        self.beginnings: OrderedDict[tuple[int, ...], KV] | None = OrderedDict() if keep_beginnings else None
        self.frozen, self.memory = keep_beginnings, cast("Memory | None", None)
        self.read_seconds = 0.0
        # whether rows of different lengths may run together, and whether behind a beginning that they share
        self.padded = self.beginning_first = True
        self.limit = 0  # bytes that are held at most; measured when sharing begins
        self.start_accounting()

    def start_accounting(self) -> None:
        """Counts saved seconds from zero, for the next user: what it reads itself is not saved."""
        self.saved_seconds = 0.0
        self._counted: set[Hashable] = set()

    @contextmanager
    def sharing(self, kept: Held | None = None) -> Iterator[SharedPrefill]:
        """Reads equal batches once within it; drops the caches at the end of the outermost.

        Caches are never written in place, so sharing them is safe. A quarter of the memory that was
        free at the first time is held at most, and 1 GiB in any case. kept: caches that the outermost
        one begins with, and that it leaves to its caller.
        """
        outer = self.held
        if outer is None:
            self.held, self.made = {} if kept is None else kept, {}
            self.start_accounting()
            self.limit = self.limit or max(free_bytes(self.device) // 4, LEAST_HELD)
        try:
            yield self
        finally:
            self.held = outer
            self.made = None if outer is None else self.made

    @contextmanager
    def remembering(self, memory: Memory) -> Iterator[None]:
        """Within it rows come from a memory where they are in it, if the weights are frozen."""
        outer, self.memory = self.memory, memory if self.frozen else None
        try:
            yield
        finally:
            self.memory = outer

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it nothing is shared, and no beginning is kept: what is timed must be done."""
        outer = self.held, self.made, self.beginnings
        self.held = self.made = self.beginnings = None
        try:
            yield
        finally:
            self.held, self.made, self.beginnings = outer

    def release(self) -> int:
        """Drops the caches held for sharing and returns how many there were."""
        held = self.held or {}
        count = len(held)
        held.clear()
        return count

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns what `make` returns, which depends on `key` alone; within `sharing` it is called once."""
        if self.made is None:
            return make()
        if key in self.made:
            found, seconds = self.made[key]
            self.saved_seconds += 0.0 if key in self._counted else seconds
        else:
            began = time.perf_counter()
            found = make()
            self.made[key] = found, time.perf_counter() - began
        self._counted.add(key)
        return found

    def read(self, prompts: Sequence[Sequence[int]], run: Run, join: Join | None = None) -> KV:
        """Returns the cache after reading each prompt, left-padded to the longest.

        run: reads ids (B, N) under a mask (B, N) on top of a cache, as `CausalLM.run` does. join: reads
        groups of rows in one forward, where the model can.
        """
        given = [tuple(p) for p in prompts]
        rows: Rows = tuple(sorted(set(given), key=lambda row: (len(row), row)))
        once = partial(self._once, run=run, join=join)
        kv = once(rows) if self.memory is None else self.memory.read(rows, once)
        if list(rows) == given:
            return kv
        place = {row: i for i, row in enumerate(rows)}
        return kv.rows_at(torch.tensor([place[row] for row in given], device=self.device))

    def _once(self, rows: Rows, run: Run, join: Join | None) -> KV:
        if self.held is None:
            return self._compute(rows, run, join)
        return self._held_or_read(self.held, rows, run, join)

    def _held_or_read(self, held: Held, rows: Rows, run: Run, join: Join | None) -> KV:
        if rows in held:
            kv, seconds = held[rows]
            self.saved_seconds += 0.0 if rows in self._counted else seconds
        else:
            began = now(self.device)
            kv = self._compute(rows, run, join)
            seconds = now(self.device) - began
            self.read_seconds += seconds
            if sum(each.nbytes for each, _ in held.values()) + kv.nbytes <= self.limit:
                held[rows] = kv, seconds
            else:
                warn_unshared(self.limit)
        self._counted.add(rows)
        return kv

    def _compute(self, rows: Rows, run: Run, join: Join | None) -> KV:
        """Reads prompts of ascending length: their common beginning, then the rest in groups."""
        if not self.padded:
            return self._rest(rows, None, run)
        lengths, cost = [len(row) for row in rows], forward_tokens(self.device)
        empty = lengths.count(0)
        # the first and the last in order agree where all do
        common = min(in_common(min(rows), max(rows)), lengths[0] - 1)
        # the caches of a group and of its beginning are copied together: not worth it for a few
        # tokens
        worth = self.beginning_first and common * (len(rows) - 1) >= cost
        first = self._beginning(rows[0][:common], run) if worth else None
        skip = first.length if first is not None else 0
        cuts = groups([n - skip for n in lengths[empty:]], cost, empty)
        if join is not None and not empty and len(rows) > 1:
            return join(rows, first, cuts)
        parts = [self._rest(rows[a:b], first, run) for a, b in ([(0, empty)] if empty else []) + cuts]
        return parts[0] if len(parts) == 1 else stacked(parts)

    def _beginning(self, ids: tuple[int, ...], run: Run) -> KV:
        """Reads one row of tokens; the last few such caches are kept, for frozen weights."""
        kept = self.beginnings
        if kept is None:
            return self._rest((ids,), None, run)
        if ids not in kept:
            # kept longer than the mode in which it is first needed
            with torch.inference_mode(False), torch.no_grad():
                kv = self._rest((ids,), None, run)
            if kv.nbytes > BEGINNING_BYTES:
                return kv
            kept[ids] = kv
            while len(kept) > BEGINNINGS or sum(each.nbytes for each in kept.values()) > KEPT_BYTES:
                kept.popitem(last=False)
        kept.move_to_end(ids)
        return kept[ids]

    def _rest(self, rows: Rows, first: KV | None, run: Run) -> KV:
        """Reads prompts whose beginning `first` (one row) holds already."""
        if first is None:
            return run(*pad_left(rows, self.pad_id), None, 0)
        begun = first.rows_at(torch.zeros(len(rows), dtype=torch.long, device=self.device))
        return run(*pad_right([row[first.length :] for row in rows], self.pad_id), begun, first.length)


def warn_unshared(limit: int) -> None:
    """Warns once a process that `limit` bytes were not enough."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"prefills are no longer shared beyond {limit / 1e9:.1f} GB; results are the same, only slower.",
            stacklevel=2,
        )

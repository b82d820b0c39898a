"""Readings of a frozen model that are kept, row by row, from one pass over the prompts to the next.

A row has the numbers of the batch in which it was first read, its home. A process that goes on from
elsewhere reads the home again: which rows are in memory changes no number.

>>> memory = Memory(Budget(2 << 30), store={})
>>> kv = memory.read(rows, lambda some: shared.read(some, lm.run))             # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.padding import positions_of

Row = tuple[int, ...]  # token ids
Rows = tuple[Row, ...]
Store = dict[tuple[Rows, Row], tuple[Tensor, Tensor]]  # home, row → keys and values (L, H, n, D)


@dataclass
class Budget:
    """How many bytes may be kept, and how many are."""

    limit: int
    used: int = 0


@dataclass
class Memory:
    """The rows of one model that one user of it has read.

    budget: shared with the memories of other models. store: may be shared with other users of the
    same model. homes: the batch that each kept row was read in. adds: whether new rows are kept.
    """

    budget: Budget
    store: Store
    homes: dict[Row, Rows] = field(default_factory=dict)
    adds: bool = True

    def read(self, rows: Rows, once: Callable[[Rows], KV]) -> KV:
        """Returns the cache of distinct rows, left-padded.

        once: reads a batch of rows together.
        """
        new = tuple(row for row in rows if row not in self.homes)
        read = once(new) if new else None
        if read is not None:
            self._add(new, read)
        if read is not None and len(new) == len(rows):
            return read
        parts: dict[Row, tuple[Tensor, Tensor]] = {}
        if read is not None:
            parts |= {row: entries_of(read, i, len(row)) for i, row in enumerate(new)}
        for row in rows:
            if row not in parts:
                home = self.homes[row]
                if (home, row) not in self.store:
                    self._put(home, once(home))
                parts[row] = self.store[home, row]
        return stacked([alone(*parts[row]) for row in rows])

    def _add(self, rows: Rows, kv: KV) -> None:
        """Keeps rows that were read together, if all have room."""
        plain = kv.layout is kv.hidden is kv.silent is kv.states is kv.tokens is None
        size = sum(map(len, rows)) * (kv.nbytes // max(kv.rows * kv.length, 1))
        if self.adds and plain and self.budget.used + size <= self.budget.limit:
            self.budget.used += size
            self.homes |= dict.fromkeys(rows, rows)
            self._put(rows, kv)

    def _put(self, home: Rows, kv: KV) -> None:
        for i, row in enumerate(home):
            if (home, row) not in self.store:
                keys, values = entries_of(kv, i, len(row))
                self.store[home, row] = keys.clone(), values.clone()

    def state(self) -> list[Rows]:
        """Returns the homes: all that a checkpoint needs beside the budget."""
        return list(dict.fromkeys(self.homes.values()))

    def restore(self, homes: Iterable[Iterable[Iterable[int]]]) -> None:
        """Takes the homes of a checkpoint; their rows are read when they are needed."""
        every = [tuple(tuple(row) for row in home) for home in homes]
        self.homes = {row: home for home in every for row in home}


def entries_of(kv: KV, row: int, length: int) -> tuple[Tensor, Tensor]:
    """Returns views of the last entries of a row: keys and values (L, H, n, D)."""
    begin = kv.length - length
    return kv.keys[:, row, :, begin:], kv.values[:, row, :, begin:]


def alone(keys: Tensor, values: Tensor) -> KV:
    """Returns a row of keys and values (L, H, n, D) as a batch."""
    mask = torch.ones(1, keys.shape[2], dtype=torch.long, device=keys.device)
    return KV(keys[:, None], values[:, None], mask, positions_of(mask))

"""Every touch of a transformers cache, and the asserts that keep it honest.

A cache is held stacked, all layers in one tensor, because adapters work on all layers in one batched matmul. `KV` knows which entries
are real (`mask`) and which rotary position each was written at (`positions`); transformers knows neither once the forward is over.

>>> kv = KV.from_cache(cache, mask, positions); cache_again = kv.to_cache()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class KV:
    """A KV cache of a batch.

    keys, values: (L, B, H, N, D), keys post-RoPE, as the model wrote them.
    mask: (B, N), 1 where an entry is real, 0 where it is padding.
    positions: (B, N), the rotary position of each entry.
    hidden: (L, B, N) bool, entries that a layer must not attend, as if it did not have them; None where all layers see the same.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    positions: Tensor
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        L, B, H, N, D = self.keys.shape
        assert self.values.shape[:4] == (L, B, H, N), (
            f"values {tuple(self.values.shape)} do not go with keys {tuple(self.keys.shape)}"
        )
        assert self.mask.shape == (B, N) == self.positions.shape, (
            f"mask {tuple(self.mask.shape)} and positions {tuple(self.positions.shape)} must be {(B, N)}"
        )
        assert self.hidden is None or (self.hidden.shape == (L, B, N) and self.hidden.dtype == torch.bool), (
            f"hidden must be bool and {(L, B, N)}"
        )

    @property
    def length(self) -> int:
        """Entries a row, padding counted."""
        return self.keys.shape[3]

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @classmethod
    def from_cache(cls, cache: Any, mask: Tensor, positions: Tensor, hidden: Tensor | None = None) -> KV:
        """From a transformers cache whose layers are all of one shape.

        hidden: (L, B, n) of its first n entries; those behind them are hidden from no layer.
        Ragged lengths over layers run silently wrong in transformers (one-token queries under SDPA), so they stop here.
        """
        shapes = {tuple(layer.keys.shape) for layer in cache.layers}
        assert len(shapes) == 1, f"all layers must have one shape, found {sorted(shapes)}"
        keys = torch.stack([layer.keys for layer in cache.layers])
        values = torch.stack([layer.values for layer in cache.layers])
        return cls(
            keys,
            values,
            mask,
            positions,
            None if hidden is None else F.pad(hidden, (0, mask.shape[1] - hidden.shape[2])),
        )

    def to_cache(self) -> DynamicCache:
        """A transformers cache over the same storage. A forward appends by concatenation, so `self` stays as it was.

        No config is passed: with one, sliding-window models would get layers that drop what lies outside the window, and the
        lengths over layers would differ. The window itself is kept by the attention mask.
        """
        return cached(self, DynamicLayer)

    def rows_at(self, index: Tensor) -> KV:
        """Rows `index` (B',) of the batch, repeated or reordered."""
        hidden = None if self.hidden is None else self.hidden[:, index]
        return KV(self.keys[:, index], self.values[:, index], self.mask[index], self.positions[index], hidden)

    def then(self, other: KV) -> KV:
        """`self` followed by `other` along the sequence."""
        hidden = None
        if self.hidden is not None or other.hidden is not None:
            parts = [
                self.mask.new_zeros(*kv.keys.shape[:2], kv.length).bool() if kv.hidden is None else kv.hidden
                for kv in (self, other)
            ]
            hidden = torch.cat(parts, 2)
        return KV(
            torch.cat([self.keys, other.keys], 3),
            torch.cat([self.values, other.values], 3),
            torch.cat([self.mask, other.mask], 1),
            torch.cat([self.positions, other.positions], 1),
            hidden,
        )

    def flush(self) -> KV:
        """The same entries with all padding on the left, as narrow as the longest row.

        Padding in the middle would push real tokens out of a sliding window, which transformers counts in columns.
        """
        lengths = self.mask.sum(1)
        width = int(lengths.max()) if self.rows else 0
        if width == self.length and bool((self.mask.diff(dim=1) >= 0).all()):
            return self
        order = torch.argsort(self.mask, dim=1, stable=True)[
            :, self.length - width :
        ]  # (B, width): padding first, then the rest in order
        at = order[None, :, None, :, None]
        keys, values = (
            x.gather(3, at.expand(*x.shape[:3], width, x.shape[4])) for x in (self.keys, self.values)
        )
        hidden = (
            None if self.hidden is None else self.hidden.gather(2, order.expand(self.hidden.shape[0], -1, -1))
        )
        return KV(keys, values, self.mask.gather(1, order), self.positions.gather(1, order), hidden)

    def with_layers(self, layers: Tensor, keys: Tensor, values: Tensor) -> KV:
        """A copy in which the given layers (l,) are replaced by `keys`, `values` (l, B, H, N, D)."""
        if len(layers) == self.keys.shape[0]:
            return replace(self, keys=keys, values=values)
        return replace(
            self, keys=self.keys.index_copy(0, layers, keys), values=self.values.index_copy(0, layers, values)
        )

    def entries_at(self, layers: Sequence[int], rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (l, H, T, D) of the entries at `rows`, `columns` (T,), of the given layers (l,)."""
        return tuple(at(x, layers, rows, columns).transpose(1, 2) for x in (self.keys, self.values))  # type: ignore[return-value]

    @classmethod
    def empty(cls, layers: int, rows: int, heads: int, dim: int, like: Tensor) -> KV:
        """A cache without entries, on the device of `like` and in its dtype."""
        none = torch.zeros(layers, rows, heads, 0, dim, device=like.device, dtype=like.dtype)
        index = torch.zeros(rows, 0, device=like.device, dtype=torch.long)
        return cls(none, none, index, index)


def at(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (l, T, H, D) of keys or values x (L, B, H, N, D)."""
    first, x = layers[0], x.transpose(2, 3)
    if list(layers) == list(range(first, first + len(layers))):  # one stretch: a view of it
        return x[first : first + len(layers)][:, rows, columns]
    return x[torch.tensor(layers, device=x.device)[:, None], rows[None], columns[None]]


def put(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor, entries: Tensor) -> None:
    """Writes entries (l, T, H, D) to where `at` finds them."""
    first, x = layers[0], x.transpose(2, 3)
    if list(layers) == list(range(first, first + len(layers))):
        x[first : first + len(layers)][:, rows, columns] = entries
    else:
        x[torch.tensor(layers, device=x.device)[:, None], rows[None], columns[None]] = entries


def cached(kv: KV, kind: type[DynamicLayer]) -> DynamicCache:
    """A transformers cache of layers of a kind, over the same storage (`update` would copy it)."""
    cache = DynamicCache()
    for keys, values in zip(kv.keys, kv.values, strict=True) if kv.length else ():
        layer = kind()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


class Growing(DynamicLayer):
    """A layer that appends in place, with room to spare: concatenating the whole cache at every token is a fifth of decoding a batch.

    Sharing storage with whoever made it until it first grows, it writes only into room of its own.
    """

    room = 64  # entries by which the storage grows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = (
            self.grown(name, old, new)
            for name, old, new in (("_keys", self.keys, key_states), ("_values", self.values, value_states))
        )
        return self.keys, self.values

    def grown(self, name: str, old: Tensor | None, new: Tensor) -> Tensor:
        """`old` (B, H, N, D) with `new` behind it, in the storage kept under `name`, which is made larger where it is full."""
        n, more = (old.shape[2] if old is not None and old.dim() == 4 else 0), new.shape[2]
        storage = getattr(self, name, None)
        if storage is None or storage.shape[0] != new.shape[0] or storage.shape[2] < n + more:
            B, H, _, D = new.shape
            storage = new.new_empty(B, H, n + more + self.room, D)
            if old is not None and n:
                storage[:, :, :n] = old
            setattr(self, name, storage)
        storage[:, :, n : n + more] = new
        return storage[:, :, : n + more]

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._keys = self._values = None  # what is left is a copy, and as full as can be


def growing(kv: KV) -> DynamicCache:
    """A transformers cache that starts as `kv`, for decoding token by token."""
    return cached(kv, Growing)


def stacked(parts: Sequence[KV]) -> KV:
    """Caches of different widths as one batch, padded on the left."""
    width = max(kv.length for kv in parts)
    wide = [
        replace(
            kv,
            keys=F.pad(kv.keys, (0, 0, width - kv.length, 0)),
            values=F.pad(kv.values, (0, 0, width - kv.length, 0)),
            mask=F.pad(kv.mask, (width - kv.length, 0)),
            positions=F.pad(kv.positions, (width - kv.length, 0)),
        )
        for kv in parts
    ]
    return KV(
        torch.cat([kv.keys for kv in wide], 1),
        torch.cat([kv.values for kv in wide], 1),
        torch.cat([kv.mask for kv in wide]),
        torch.cat([kv.positions for kv in wide]),
    )

"""The KV cache of a batch, stacked over layers, and its way to a transformers cache and back.

All layers stand in one tensor, because adapters work on all layers in one batched matmul. `KV`
knows which entries are real (`mask`) and at which rotary position each was written (`positions`);
transformers knows neither once the forward is over.

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

from lcfbench.geometry import Geometry


@dataclass(frozen=True)
class KV:
    """A KV cache of a batch.

    keys, values: (L, B, H, N, D); keys carry their rotary embedding, as the model wrote them.
    mask: (B, N), 1 where an entry is real, 0 where it is padding.
    positions: (B, N), the rotary position of each entry.
    hidden: (L, B, N) bool, entries that a layer must not attend; None where no entry is hidden.
    silent: (B, N) bool, padding inside a prompt (C2C's sections). It keeps its place, and while the
    prompt is read no token attends it.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    positions: Tensor
    hidden: Tensor | None = None
    silent: Tensor | None = None

    def __post_init__(self) -> None:
        L, B, H, N, D = self.keys.shape
        shapes = (
            f"keys {tuple(self.keys.shape)}, values {tuple(self.values.shape)}, mask {tuple(self.mask.shape)}"
        )
        assert self.values.shape[:4] == (L, B, H, N), f"values do not go with keys: {shapes}"
        assert self.mask.shape == (B, N) == self.positions.shape, (
            f"mask, positions must be {(B, N)}: {shapes}"
        )
        assert self.hidden is None or (self.hidden.shape == (L, B, N) and self.hidden.dtype == torch.bool), (
            f"hidden must be bool and {(L, B, N)}"
        )

    @property
    def present(self) -> Tensor:
        """The mask (B, N) with silent entries counted in."""
        return self.mask if self.silent is None else self.mask | self.silent.long()

    @property
    def length(self) -> int:
        """Entries a row, padding counted."""
        return self.keys.shape[3]

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @classmethod
    def from_cache(
        cls,
        cache: Any,
        mask: Tensor,
        positions: Tensor,
        hidden: Tensor | None = None,
        silent: Tensor | None = None,
    ) -> KV:
        """Stacks a transformers cache whose layers are all of one shape.

        hidden: (L, B, n) of its first n entries; later ones are hidden from no layer. Lengths that
        differ between layers run silently wrong in transformers (one-token queries under SDPA), so
        they stop here.
        """
        shapes = {tuple(layer.keys.shape) for layer in cache.layers}
        assert len(shapes) == 1, f"all layers must have one shape, found {sorted(shapes)}"
        keys = torch.stack([layer.keys for layer in cache.layers])
        values = torch.stack([layer.values for layer in cache.layers])
        if hidden is not None:
            hidden = F.pad(hidden, (0, mask.shape[1] - hidden.shape[2]))
        return cls(keys, values, mask, positions, hidden, silent)

    def to_cache(self) -> DynamicCache:
        """Makes a transformers cache over the same storage. A forward leaves `self` as it was.

        No config is passed: with one, sliding-window models would get layers that drop all entries
        outside the window, and lengths would differ. The attention mask keeps the window instead.
        """
        return cached(self, DynamicLayer)

    def rows_at(self, index: Tensor) -> KV:
        """Returns rows `index` (B',) of the batch, repeated or reordered."""
        hidden = None if self.hidden is None else self.hidden[:, index]
        silent = None if self.silent is None else self.silent[index]
        return KV(
            self.keys[:, index],
            self.values[:, index],
            self.mask[index],
            self.positions[index],
            hidden,
            silent,
        )

    def then(self, other: KV) -> KV:
        """Returns `self` followed by `other` along the sequence."""
        both, hidden, silent = (self, other), None, None
        if self.silent is not None or other.silent is not None:
            silent = torch.cat([kv.present != kv.mask for kv in both], 1)
        if self.hidden is not None or other.hidden is not None:
            none = [kv.mask.new_zeros(*kv.keys.shape[:2], kv.length, dtype=torch.bool) for kv in both]
            hidden = torch.cat(
                [n if kv.hidden is None else kv.hidden for kv, n in zip(both, none, strict=True)], 2
            )
        return KV(
            torch.cat([kv.keys for kv in both], 3),
            torch.cat([kv.values for kv in both], 3),
            torch.cat([kv.mask for kv in both], 1),
            torch.cat([kv.positions for kv in both], 1),
            hidden,
            silent,
        )

    def flush(self) -> KV:
        """Returns the same entries with the batch's padding on the left, as narrow as the longest row.

        Padding in the middle would push real tokens out of a sliding window, which transformers
        counts in columns.
        """
        present, silent = self.present, self.silent
        width = int(present.sum(1).max()) if self.rows else 0
        if width == self.length and bool((present.diff(dim=1) >= 0).all()):
            return self
        # (B, width): padding first, then the rest in order
        order = torch.argsort(present, dim=1, stable=True)[:, self.length - width :]
        at = order[None, :, None, :, None]
        keys, values = (
            x.gather(3, at.expand(*x.shape[:3], -1, x.shape[4])) for x in (self.keys, self.values)
        )
        hidden = self.hidden
        if hidden is not None:
            hidden = hidden.gather(2, order.expand(len(hidden), -1, -1))
        if silent is not None:
            silent = silent.gather(1, order)
        return KV(keys, values, self.mask.gather(1, order), self.positions.gather(1, order), hidden, silent)

    def with_layers(self, layers: Tensor, keys: Tensor, values: Tensor) -> KV:
        """Returns a copy with other keys and values (l, B, H, N, D) in the given layers (l,)."""
        if len(layers) < self.keys.shape[0]:
            keys = self.keys.index_copy(0, layers, keys)
            values = self.values.index_copy(0, layers, values)
        return replace(self, keys=keys, values=values)

    def entries_at(self, layers: Sequence[int], rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values (l, H, T, D) of the entries at `rows`, `columns` (T,)."""
        return tuple(at(x, layers, rows, columns).transpose(1, 2) for x in (self.keys, self.values))  # type: ignore[return-value]

    @classmethod
    def empty(cls, geometry: Geometry, rows: int, device: Any, dtype: torch.dtype) -> KV:
        """Returns a cache without entries."""
        g = geometry
        none = torch.zeros(g.layers, rows, g.kv_heads, 0, g.head_dim, device=device, dtype=dtype)
        index = torch.zeros(rows, 0, device=device, dtype=torch.long)
        return cls(none, none, index, index)


def at(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the entries (l, T, H, D) of keys or values x (L, B, H, N, D)."""
    first, x = layers[0], x.transpose(2, 3)
    if list(layers) == list(range(first, first + len(layers))):  # one stretch: a view of it
        return x[first : first + len(layers)][:, rows, columns]
    return x[torch.tensor(layers, device=x.device)[:, None], rows[None], columns[None]]


def put(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor, entries: Tensor) -> Tensor:
    """Writes entries (l, T, H, D) into x where `at` finds them; returns x."""
    first, turned = layers[0], x.transpose(2, 3)
    if list(layers) == list(range(first, first + len(layers))):
        turned[first : first + len(layers)][:, rows, columns] = entries
    else:
        turned[torch.tensor(layers, device=x.device)[:, None], rows[None], columns[None]] = entries
    return x


def cached(kv: KV, kind: type[DynamicLayer]) -> DynamicCache:
    """Makes a transformers cache of one kind of layer over the same storage, without a copy."""
    cache = DynamicCache()
    for keys, values in zip(kv.keys, kv.values, strict=True) if kv.length else ():
        layer = kind()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


class Growing(DynamicLayer):
    """A layer that appends in place, with room to spare.

    Concatenating the whole cache at every token is a fifth of the time of decoding a batch. Until
    it first grows it shares the storage it was made from; it writes only into storage of its own.
    """

    room = 64  # entries by which the storage grows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._grown("_keys", self.keys, key_states)
        self.values = self._grown("_values", self.values, value_states)
        return self.keys, self.values

    def _grown(self, name: str, old: Tensor | None, new: Tensor) -> Tensor:
        """Returns `old` (B, H, N, D) and `new` in the storage `name`, enlarged if full."""
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
        self._keys = self._values = None  # the selection is a copy, and as full as can be


def growing(kv: KV) -> DynamicCache:
    """Makes a transformers cache that starts as `kv`, for decoding token by token."""
    return cached(kv, Growing)


def stacked(parts: Sequence[KV]) -> KV:
    """Returns caches of different widths as one batch, padded on the left."""
    width = max(kv.length for kv in parts)

    def joined(name: str, dim: int) -> Tensor:
        inner = (0, 0) if dim else ()  # keys and values: F.pad counts from the last dimension, D
        return torch.cat([F.pad(getattr(kv, name), (*inner, width - kv.length, 0)) for kv in parts], dim)

    return KV(joined("keys", 1), joined("values", 1), joined("mask", 0), joined("positions", 0))

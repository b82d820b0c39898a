"""The KV cache of a batch, stacked over layers, and its way to a transformers cache and back.

All layers stand in one tensor, because adapters work on all layers in one batched matmul; layers
that are smaller than others are filled up with zeros. `KV` knows which entries are real (`mask`)
and at which rotary position each was written (`positions`); transformers knows neither once the
forward is over.

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

from lcfbench.models.activations import Edits
from lcfbench.models.layout import Layout, States, put_states, states_of


@dataclass(frozen=True)
class KV:
    """A KV cache of a batch.

    keys, values: (L, B, H, N, D); keys carry their rotary embedding, as the model wrote them.
    mask: (B, N), 1 where an entry is real, 0 where it is padding.
    positions: (B, N), the rotary position of each entry.
    hidden: (L, B, N) bool, entries that a layer must not attend; None where no entry is hidden. Or
    floats, which a layer adds to the attention logits of its entries: −∞ hides one, log(g) lets it weigh
    g times as much.
    silent: (B, N) bool, padding inside a prompt (C2C's sections). It keeps its place, and while the
    prompt is read no token attends it.
    layout: of the model, where its layers differ; then H and D are the largest and zeros fill up what a
    layer lacks. states: what recurrent layers have kept of the rows; None before the first token.
    tokens: (B, N) ids, of a model that has no cache to be used (L is 0) and reads whole texts anew.
    edits: what becomes of hidden states of the tokens that are run next; the longer cache has none.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    positions: Tensor
    hidden: Tensor | None = None
    silent: Tensor | None = None
    layout: Layout | None = None
    states: States | None = None
    tokens: Tensor | None = None
    edits: Edits | None = None

    def __post_init__(self) -> None:
        L, B, H, N, D = self.keys.shape
        shapes = (
            f"keys {tuple(self.keys.shape)}, values {tuple(self.values.shape)}, mask {tuple(self.mask.shape)}"
        )
        assert self.values.shape[:4] == (L, B, H, N), f"values do not go with keys: {shapes}"
        assert self.mask.shape == (B, N) == self.positions.shape, (
            f"mask, positions must be {(B, N)}: {shapes}"
        )
        assert self.hidden is None or (
            self.hidden.shape == (L, B, N)
            and (self.hidden.dtype == torch.bool or self.hidden.is_floating_point())
        ), f"hidden must be bool or floats and {(L, B, N)}"

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
        """Bytes of keys and values as stacked, and of recurrent states."""
        return self.keys.nbytes + self.values.nbytes + sum(x.nbytes for x in (self.states or {}).values())

    @classmethod
    def from_cache(
        cls,
        cache: Any,
        mask: Tensor,
        positions: Tensor,
        hidden: Tensor | None = None,
        silent: Tensor | None = None,
        layout: Layout | None = None,
    ) -> KV:
        """Stacks a transformers cache.

        hidden: (L, B, n) of its first n entries; later ones are hidden from no layer. Lengths that
        differ between layers run silently wrong in transformers (one-token queries under SDPA), so
        they stop here.
        """
        layers = cache.layers if layout is None else [cache.layers[i] for i in layout.at]
        shapes = {tuple(layer.keys.shape) for layer in layers}
        if layout is None:
            assert len(shapes) == 1, f"all layers must have one shape, found {sorted(shapes)}"
            keys = torch.stack([layer.keys for layer in layers])
            values = torch.stack([layer.values for layer in layers])
        else:
            assert len({shape[2] for shape in shapes}) == 1, f"layers differ in length: {sorted(shapes)}"
            assert layout.geometry is not None
            g = layout.geometry
            keys, values = (
                torch.stack([filled(x.to(mask.device), g.kv_heads, g.head_dim) for x in some])
                for some in ([layer.keys for layer in layers], [layer.values for layer in layers])
            )
        if hidden is not None:
            hidden = F.pad(hidden, (0, mask.shape[1] - hidden.shape[2]))
        return cls(keys, values, mask, positions, hidden, silent, layout, states_of(cache))

    def to_cache(self, kind: type[DynamicLayer] = DynamicLayer) -> DynamicCache:
        """Makes a transformers cache over the same storage. A forward leaves `self` as it was.

        kind: of layers of plain attention. No config is passed: with one, sliding-window models would
        get layers that drop all entries outside the window, and lengths would differ. The attention
        mask keeps the window instead.
        """
        layout = self.layout or Layout()
        cache = layout.new(kind)
        if self.length:
            at = range(len(self.keys)) if self.layout is None else self.layout.at
            for i, keys, values, shape in zip(at, self.keys, self.values, self.shapes, strict=True):
                heads, k, v = shape
                if not layout.kinds:
                    cache.layers.append(kind())
                layer: Any = cache.layers[i]
                keys, values = keys[:, :heads, :, :k], values[:, :heads, :, :v]
                if layout.devices:
                    keys, values = keys.to(layout.devices[i]), values.to(layout.devices[i])
                DynamicLayer.lazy_initialization(layer, keys, values)
                layer.keys, layer.values = keys, values
        put_states(cache, self.states)
        return cache

    @property
    def shapes(self) -> Sequence[tuple[int, int, int]]:
        """Heads, numbers of a key and numbers of a value of each layer."""
        L, _, H, _, D = self.keys.shape
        shapes = self.layout.geometry.shapes if self.layout and self.layout.geometry else None
        return shapes or [(H, D, self.values.shape[-1])] * L

    def widened(self, mask: Tensor, positions: Tensor, silent: Tensor | None = None) -> KV:
        """Returns a copy with room for new entries behind, which nobody has written yet.

        mask, positions: (B, N), of the entries and of those to come.
        """
        n, more = self.length, mask.shape[1] - self.length
        keys, values = (x.new_empty(*x.shape[:3], n + more, x.shape[4]) for x in (self.keys, self.values))
        keys[..., :n, :], values[..., :n, :] = self.keys, self.values
        hidden = None if self.hidden is None else F.pad(self.hidden, (0, more))
        return KV(keys, values, mask, positions, hidden, silent)

    def written_from(self, n: int, windows: Sequence[int | None] = ()) -> DynamicCache:
        """Makes a transformers cache of the first n entries; a forward writes the others in place.

        windows: see `seen_within`. All layers are of plain attention and of one shape.
        """
        cache = DynamicCache()
        for keys, values in zip(self.keys, self.values, strict=True):
            layer = Growing()
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer._keys, layer._values = keys, values
            layer.keys, layer.values = keys[:, :, :n], values[:, :, :n]
            cache.layers.append(layer)
        return seen_within(cache, windows)

    def entries_alone(self) -> KV:
        """Returns the entries without recurrent states: the next text is read from its beginning."""
        return replace(self, states=None)

    def rows_at(self, index: Tensor) -> KV:
        """Returns rows `index` (B',) of the batch, repeated or reordered."""
        return replace(
            self,
            keys=self.keys.index_select(1, index),
            values=self.values.index_select(1, index),
            mask=self.mask[index],
            positions=self.positions[index],
            hidden=None if self.hidden is None else self.hidden[:, index],
            silent=None if self.silent is None else self.silent[index],
            states=None
            if self.states is None
            else {key: x[index.to(x.device)] for key, x in self.states.items()},
            tokens=None if self.tokens is None else self.tokens[index],
            edits=None if self.edits is None else self.edits.rows_at(index),
        )

    def then(self, other: KV) -> KV:
        """Returns `self` followed by `other` along the sequence; the later text's states hold."""
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
            self.layout or other.layout,
            self.states if other.states is None else other.states,
            None if other.tokens is None else torch.cat([kv.tokens for kv in both], 1),  # type: ignore[misc]
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
        keys, values = (columns(x, order) for x in (self.keys, self.values))
        hidden = self.hidden
        if hidden is not None:
            hidden = hidden.gather(2, order.expand(len(hidden), -1, -1))
        if silent is not None:
            silent = silent.gather(1, order)
        return replace(
            self,
            keys=keys,
            values=values,
            mask=self.mask.gather(1, order),
            positions=self.positions.gather(1, order),
            hidden=hidden,
            silent=silent,
            tokens=None if self.tokens is None else self.tokens.gather(1, order),
        )

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
    def empty(cls, layout: Layout, rows: int, device: Any, dtype: torch.dtype) -> KV:
        """Returns a cache without entries, of a model with this layout."""
        g = layout.geometry
        shape = (0, rows, 1, 0, 1) if g is None else (g.layers, rows, g.kv_heads, 0, g.head_dim)
        none = torch.zeros(shape, device=device, dtype=dtype)
        index = torch.zeros(rows, 0, device=device, dtype=torch.long)
        own = None if layout.plain else layout
        return cls(none, none, index, index, layout=own, tokens=index if g is None else None)


def filled(x: Tensor, heads: int, dim: int) -> Tensor:
    """Returns entries (B, h, N, d) of one layer with zeros up to `heads` and `dim`."""
    more = heads - x.shape[1], dim - x.shape[3]
    return F.pad(x, (0, more[1], 0, 0, 0, more[0])) if any(more) else x


def columns(x: Tensor, index: Tensor) -> Tensor:
    """Returns the entries (L, B, H, T, D) of keys or values x in columns `index` (B, T) of each row.

    `gather` gives the same number by number, and takes five to twelve times as long.
    """
    L, B, H, N, D = x.shape
    lines = torch.arange(L * B * H, device=x.device).view(L, B, H, 1)
    found = x.reshape(-1, D).index_select(0, (lines * N + index[None, :, None]).flatten())
    return found.view(L, B, H, index.shape[1], D)


def at(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the entries (l, T, H, D) of keys or values x (L, B, H, N, D)."""
    H, D = x.shape[2], x.shape[4]
    found = x.reshape(-1, D).index_select(0, places(x, layers, rows, columns))
    return found.view(len(layers), len(rows), H, D)


def put(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor, entries: Tensor) -> Tensor:
    """Writes entries (l, T, H, D) into contiguous x where `at` finds them; returns x."""
    into, new = x.view(-1, x.shape[4]), entries.reshape(-1, x.shape[4])
    if x.device.type == "cpu" and not torch.is_grad_enabled() and new.shape[1] * x.itemsize % 16 == 0:
        into, new = into.view(torch.complex128), new.view(torch.complex128)  # the same bits, copied faster
    into[places(x, layers, rows, columns)] = new
    return x


def places(x: Tensor, layers: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Returns where the entries at `rows`, `columns` (T,) stand among the vectors of x, (l·T·H,)."""
    _, B, H, N, _ = x.shape
    layer, head = torch.tensor(layers, device=x.device)[:, None, None], torch.arange(H, device=x.device)
    return (((layer * B + rows[:, None]) * H + head) * N + columns[:, None]).flatten()


BLOCK = 512  # entries that the processor's attention reads together: cut elsewhere, its sums were other ones
PART = 16  # storage of n entries grows by a part of them


class Growing(DynamicLayer):
    """A layer that appends in place, with room to spare.

    Concatenating the whole cache at every token is a fifth of the time of decoding a batch. Until
    it first grows it shares the storage it was made from; it writes only into storage of its own.

    window: entries that a token attends, itself counted; None for all. Attention is shown no block
    of entries that lies before it, and transformers makes its masks for what is shown.
    """

    room = 64  # entries by which the storage grows, or a part of it where that is more
    window: int | None = None
    _keys: Tensor | None = None
    _values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first = self.first
        self.keys = self._grown("_keys", self.keys, key_states)
        self.values = self._grown("_values", self.values, value_states)
        return self.keys[:, :, first:], self.values[:, :, first:]

    @property
    def first(self) -> int:
        """The first entry that the next tokens are shown."""
        if self.window is None:
            return 0
        return max(self.get_seq_length() - self.window + 1, 0) // BLOCK * BLOCK

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns how many entries are shown to the next tokens, themselves counted, and the first."""
        return self.get_seq_length() + query_length - self.first, self.first

    def _grown(self, name: str, old: Tensor | None, new: Tensor) -> Tensor:
        """Returns `old` (B, H, N, D) and `new` in the storage `name`, enlarged if full."""
        n, more = (old.shape[2] if old is not None and old.dim() == 4 else 0), new.shape[2]
        storage: Tensor | None = getattr(self, name)
        if storage is None or storage.shape[0] != new.shape[0] or storage.shape[2] < n + more:
            B, H, _, D = new.shape
            storage = new.new_empty(B, H, n + more + max(self.room, n // PART), D)
            if old is not None and n:
                storage[:, :, :n] = old
            setattr(self, name, storage)
        storage[:, :, n : n + more] = new
        return storage[:, :, : n + more]

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._keys = self._values = None  # the selection is a copy, and as full as can be


def growing(kv: KV, windows: Sequence[int | None] = ()) -> DynamicCache:
    """Makes a transformers cache that starts as `kv`, for decoding token by token.

    windows: see `seen_within`.
    """
    return seen_within(kv.to_cache(Growing), windows)


def seen_within(cache: DynamicCache, windows: Sequence[int | None]) -> DynamicCache:
    """Shows the layers of a cache no entries before their windows; returns the cache.

    windows: of each layer, None where it sees all; () where all do.
    """
    for i, window in enumerate(windows):
        layer: Any = cache.layers[i]
        layer.window, layer.is_sliding = window, window is not None
    return cache


def stacked(parts: Sequence[KV]) -> KV:
    """Returns caches of different widths as one batch, padded on the left."""
    width = max(kv.length for kv in parts)

    def joined(name: str, dim: int) -> Tensor:
        # F.pad counts from the last dimension, which is D for keys and values
        inner = (0, 0) if name in ("keys", "values") else ()
        return torch.cat([F.pad(getattr(kv, name), (*inner, width - kv.length, 0)) for kv in parts], dim)

    return replace(
        parts[0],
        keys=joined("keys", 1),
        values=joined("values", 1),
        mask=joined("mask", 0),
        positions=joined("positions", 0),
        hidden=None if parts[0].hidden is None else joined("hidden", 1),
        silent=None if parts[0].silent is None else joined("silent", 0),
        states=stacked_states(parts),
        tokens=None if parts[0].tokens is None else joined("tokens", 0),
    )


def stacked_states(parts: Sequence[KV]) -> States | None:
    """Returns the recurrent states of several batches as one: zeros where no token was read yet."""
    some = next((kv.states for kv in parts if kv.states is not None), None)
    if some is None:
        return None
    return {
        key: torch.cat([(kv.states or {}).get(key, x.new_zeros(kv.rows, *x.shape[1:])) for kv in parts])
        for key, x in some.items()
    }

"""Rows of any length in one forward: only attention sees rows and padding.

Norms, projections and feed-forward layers work on each token for itself. So the tokens of all rows stand
side by side in one row there: no padding is multiplied, and the weights are read once for all groups of
rows. Attention gets each group as the padded rectangle that a forward of that group alone would give it,
so the numbers are the same. With and without in turn, SmolLM2 alone on one thread of a busy CPU, bfloat16:
1.1–1.2 times as many documents a second by letters, 1.35 by full texts, 1.6 where texts of three batches are
written side by side; all answers were equal, bit for bit.

>>> kv = joined_run(lm, [[1, 5, 6], [1, 7]])                                        # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lcfbench.models.entries import may_end, until_written, written
from lcfbench.models.kv_cache import KV
from lcfbench.models.layer_masks import attention_of, visible
from lcfbench.models.layout import blocks_of, decoder_of
from lcfbench.models.padding import pad_left, pad_right, positions_of

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM
    from lcfbench.models.protocol import Step

Write = Callable[[int, Tensor, Tensor], None]
KERNEL = "lcfbench_ragged"
# numbers do not depend on how many tokens run: kernels compute the ends of odd lengths in another way
EVEN = 4
NEAR = 0.02  # of the norm: two ways of reading differ by rounding alone, which is most in bfloat16


@dataclass
class Piece:
    """Rows that attention takes as one rectangle.

    kv: what they stand on, one row for all of them or one each; None for nothing. ids, mask, positions:
    (B, T). see: makes the mask (B, 1, T, N + T), bool, of layers with a sliding window or without; None
    where all is seen. cache: the transformers cache that they extend, in place of kv.
    """

    kv: KV | None
    ids: Tensor
    mask: Tensor
    positions: Tensor
    see: Callable[[int | None], Any]
    cache: Any = None

    @cached_property
    def real(self) -> Tensor:
        """The places (n,) of tokens among the B·T of the rectangle."""
        return self.mask.flatten().nonzero()[:, 0]

    @cached_property
    def full(self) -> bool:
        """Whether it has no padding."""
        return len(self.real) == self.mask.numel()


class Attention:
    """What stands in for a model's attention during one forward. keys, values: (1, H, T, D) a layer.

    last: the layer behind whose entries the forward ends, see `models.entries`. write: takes a layer's
    number and the keys and values (T, H, D) of all tokens, which are not kept then.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        windows: Sequence[int | None],
        last: int | None = None,
        write: Write | None = None,
    ) -> None:
        self.pieces, self.windows, self.last, self.write = pieces, windows, last, write
        self.layers = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._masks: dict[int | None, list[Tensor | None]] = {}
        self.takes, self.begins, begin = list[Tensor](), list[int](), 0
        for piece in pieces:
            take = torch.zeros(piece.mask.numel(), dtype=torch.long)  # padding is a copy of a token
            take[piece.real] = torch.arange(len(piece.real))
            self.takes.append(take + begin)
            self.begins.append(begin)
            begin += len(piece.real)

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **given: Any
    ) -> tuple[Tensor, None]:
        layer, window = self.layers, self.windows[self.layers]
        self.layers += 1
        rows = [x.transpose(1, 2)[0] for x in (query, key, value)]  # (T, H, D)
        if self.write is None:
            self.keys.append(key)
            self.values.append(value)
        else:
            self.write(layer, *rows[1:])
        if layer == self.last:
            written()
        if window not in self._masks:
            self._masks[window] = [additive(piece.see(window), query.dtype) for piece in self.pieces]
        found = []
        for number, (piece, mask) in enumerate(zip(self.pieces, self._masks[window], strict=True)):
            q, k, v = (self._rectangle(x, number).transpose(1, 2) for x in rows)
            if piece.cache is not None:
                k, v = piece.cache.update(k, v, layer)
            elif piece.kv is not None:
                k, v = (
                    torch.cat([old[layer].expand(len(new), -1, -1, -1), new], 2)
                    for old, new in ((piece.kv.keys, k), (piece.kv.values, v))
                )
            out, _ = sdpa_attention_forward(module, q, k, v, mask, **given)  # (B, T, H, D)
            out = out.flatten(0, 1)
            found.append(out if piece.full else out.index_select(0, piece.real))
        if rest := query.shape[2] - sum(map(len, found)):
            found.append(found[0].new_zeros(rest, *found[0].shape[1:]))
        return (torch.cat(found) if len(found) > 1 else found[0])[None], None

    def _rectangle(self, x: Tensor, number: int) -> Tensor:
        """Returns a piece's tokens (B, T, H, D) of all tokens x (n, H, D)."""
        piece, begin = self.pieces[number], self.begins[number]
        if piece.full:
            return x[begin : begin + len(piece.real)].unflatten(0, piece.ids.shape)
        # indexing by [take] gives the same and takes seven times as long
        return x.index_select(0, self.takes[number]).unflatten(0, piece.ids.shape)


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns what attention makes of a bool mask at each layer: numbers to add, 0 or −inf."""
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


_running: ContextVar[Attention] = ContextVar("running")


def _attend(*args: Any, **given: Any) -> tuple[Tensor, None]:
    return _running.get()(*args, **given)


AttentionInterface.register(KERNEL, _attend)


def can_join(lm: CausalLM) -> bool:
    """Says whether rows run joined: on a CPU, with attention that can be replaced, and with equal results.

    Three short rows are read both ways to find out.
    """
    model = lm.model
    if not (
        lm.takes_layer_masks and lm.uneven is None and getattr(model, "_supports_attention_backend", False)
    ):
        return False
    if lm.attention != "sdpa" or lm.device.type != "cpu":
        return False
    config = decoder_of(model).config
    for layer in blocks_of(model):
        attention = attention_of(layer)
        own = getattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS", None)
        if getattr(attention, "config", None) is not config or "sdpa" in getattr(
            own, "_local_mapping", "sdpa"
        ):
            return False
    rows = [[(7 * i + n) % lm.vocabulary_size for i in range(n)] for n in (3, 5, 9)]
    plain, kv = lm.run_padded(*pad_left(rows, lm.pad_id), None, 0), joined_run(lm, rows)
    if plain.keys.shape != kv.keys.shape:  # layers that read other layers' entries keep none
        return False
    real = plain.mask.bool()[None, :, None, :, None]
    both = [(getattr(plain, name) * real, getattr(kv, name)) for name in ("keys", "values")]
    return all(bool((a - b).float().norm() <= NEAR * a.float().norm()) for a, b in both)


@contextmanager
def joined(
    lm: CausalLM, pieces: Sequence[Piece], last: int | None = None, write: Write | None = None
) -> Iterator[Attention]:
    """Within it one forward of a model, on `tokens(pieces)` and without a cache, attends by pieces."""
    config, attention = decoder_of(lm.model).config, Attention(pieces, lm.windows, last, write)
    before, token = config._attn_implementation, _running.set(attention)
    config._attn_implementation = KERNEL
    try:
        yield attention
    finally:
        config._attn_implementation = before
        _running.reset(token)


def tokens(pieces: Sequence[Piece]) -> list[Tensor]:
    """Returns ids and positions (1, T) of all tokens of the pieces, side by side, T a multiple of `EVEN`."""
    every = [
        [x.flatten()[piece.real] for x, piece in zip(some, pieces, strict=True)]
        for some in ([piece.ids for piece in pieces], [piece.positions for piece in pieces])
    ]
    more = -sum(map(len, every[0])) % EVEN
    return [torch.cat([*some, some[0][:1].expand(more)])[None] for some in every]


def joined_run(
    lm: CausalLM, rows: Sequence[Sequence[int]], first: KV | None = None, cuts: Sequence[tuple[int, int]] = ()
) -> KV:
    """Returns the left-padded cache after reading rows from an empty one.

    first: one row with which all begin, read already. cuts: the rows [begin, end) that attention takes
    together, in order; without any, all of them.
    """
    begun, pieces = (0 if first is None else first.length), []
    for a, b in cuts or [(0, len(rows))]:
        pad = pad_left if first is None else pad_right
        ids, mask = pad([row[begun:] for row in rows[a:b]], lm.pad_id, lm.device)
        full = mask if first is None else torch.cat([first.mask.expand(b - a, -1), mask], 1)
        see = partial(visible, full, torch.zeros_like(full, dtype=torch.bool), ids.shape[1])
        pieces.append(Piece(first, ids, mask, positions_of(mask, begun), see))
    ids, positions = tokens(pieces)
    mask = pad_left(rows, lm.pad_id, lm.device)[1]
    new = mask[:, : mask.shape[1] - begun]  # of the columns from `begun` on: what is read here
    place = (new.flatten().cumsum(0) - 1).clamp(min=0)  # of each among the tokens; padding is any of them
    out: list[Tensor] = []

    def write(layer: int, *entries: Tensor) -> None:
        """Lays a layer's entries where they belong in the cache, which is made with the first."""
        if not out:
            # all decoder layers, also where some read others' entries and the model's own cache has fewer
            shape = (len(lm.windows), len(rows), entries[0].shape[1], mask.shape[1])
            out.extend(x.new_empty(*shape, x.shape[2]) for x in entries)
        for laid, x in zip(out, entries, strict=True):
            laid[layer, :, :, begun:] = x.index_select(0, place).unflatten(0, new.shape).transpose(1, 2)

    last = lm.geometry.layers - 1 if may_end(lm) else None
    with joined(lm, pieces, last, write) as ran, until_written():
        decoder_of(lm.model)(input_ids=ids, use_cache=False, **lm.places(positions))
    out = [laid[: ran.layers] for laid in out]  # a layer that did not attend has written nothing
    for b, begin in enumerate((mask.shape[1] - mask.sum(1)).tolist()):
        for laid, old in zip(out, (None, None) if first is None else (first.keys, first.values), strict=True):
            laid[:, b, :, :begin] = 0
            if old is not None:
                laid[:, b, :, begin : begin + begun] = old[:, 0]
    return KV(out[0], out[1], mask, positions_of(mask))


def joined_forward(
    lm: CausalLM, pieces: Sequence[Piece], at: Sequence[tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Callable[[], KV]]]:
    """Returns what `CausalLM.forward_pieces` does, from one forward."""
    ids, positions = tokens(pieces)
    begins, columns = [0], []
    for piece, (rows, columns_at) in zip(pieces, at, strict=True):
        number = piece.mask.flatten().cumsum(0) - 1
        columns.append(number[rows * piece.ids.shape[1] + columns_at] + begins[-1])
        begins.append(begins[-1] + len(piece.real))
    column = torch.cat(columns)
    with joined(lm, pieces) as ran:
        logits = lm.logits_of(ids, (torch.zeros_like(column), column), **lm.places(positions))
    each = logits.split([len(some) for some in columns])
    return [(found, partial(longer, ran, i)) for i, found in enumerate(each)]


def joined_steps(lm: CausalLM, steps: Sequence[Step]) -> list[Tensor]:
    """Returns what `CausalLM.steps` does, from one forward."""
    pieces = []
    for step in steps:
        full = step.mask

        def see(window: int | None, full: Tensor = full, whole: bool = bool(full.all())) -> Tensor | None:
            if whole and (window is None or full.shape[1] < window):  # as transformers leaves the mask out
                return None
            return visible(full, torch.zeros_like(full, dtype=torch.bool), 1, window)

        ids, places = step.ids[:, None], step.positions[:, None]
        pieces.append(Piece(None, ids, torch.ones_like(ids), places, see, step.cache))
    ids, positions = tokens(pieces)
    column = torch.arange(sum(len(step.ids) for step in steps), device=ids.device)
    with joined(lm, pieces):
        logits = lm.logits_of(ids, (torch.zeros_like(column), column), **lm.places(positions))
    return list(logits.split([len(step.ids) for step in steps]))


def longer(ran: Attention, number: int) -> KV:
    """Returns the cache of a piece with its new entries behind it, padding and all."""
    piece, take = ran.pieces[number], ran.takes[number]
    assert piece.kv is not None
    keys, values = (
        torch.cat(
            [old, torch.cat(new).index_select(2, take).unflatten(2, piece.ids.shape).transpose(1, 2)], 3
        )
        for old, new in ((piece.kv.keys, ran.keys), (piece.kv.values, ran.values))
    )
    mask, positions = (
        torch.cat(both, 1) for both in ((piece.kv.mask, piece.mask), (piece.kv.positions, piece.positions))
    )
    return KV(keys, values, mask, positions)

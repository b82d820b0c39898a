"""What C2C, LCF and LCF-X share: both models prefill, an adapter edits the receiver's cache, the last prompt token runs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter, Editor
from lcfbench.alignment.remap import remap_prompt
from lcfbench.alignment.tokens import aligned_positions, turn_ends
from lcfbench.errors import UserError
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.kv_cache import KV, put
from lcfbench.models.padding import pad_left, positions_of
from lcfbench.models.rotary import rotate
from lcfbench.models.state import Message, State
from lcfbench.tasks.prompts import Prompt

VECTOR = 32  # numbers in the widest vector of a processor (bfloat16 in AVX-512)


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompts that is read, then edited: tokens [start, stop) of each."""

    starts: list[int]
    stops: list[int]

    @property
    def width(self) -> int:
        """Columns that hold it: the last ones of the cache, a shorter row's part at their right."""
        return max(stop - start for start, stop in zip(self.starts, self.stops, strict=True))


@dataclass
class Fusion(Method):
    """Base of the methods that edit the receiver's cache with an adapter (methods.md, section 1).

    partly: whether some layers' gates are shut: computing those or not must not move a bit of the others.
    """

    partly: ClassVar[bool] = False

    def __post_init__(self) -> None:
        assert self.adapter is not None, "a fusion method needs an adapter"
        self.adapter.config.check_fits(self.receiver.geometry, self.sharer.geometry, "")
        read, rows = len(self.receiver.tokenizer), self.sharer.model.get_input_embeddings().weight.shape[0]
        if self.adapter.config.token_alignment == "same" and read > rows:
            raise UserError(
                f"this adapter feeds {self.sharer.name} the token ids of {self.receiver.name}, which go to {read}; it knows {rows}.",
                "Use an adapter with token alignment span or remap.",
            )
        trained = next(self.adapter.parameters()).requires_grad
        # at inference, layers whose gates are shut cannot change anything: they are not even computed
        if not trained and len(keep := self.adapter.open_layers()) < len(self.adapter.config.layers):
            self.adapter, self.partly = self.adapter.select(keep), True  # type: ignore[misc]

    def respond(self, batch: Batch) -> State:
        adapter, clock = self.adapter, batch.clock
        assert adapter is not None
        with clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            if not adapter.config.layers:  # every gate is shut: the receiver alone
                return self.receiver.read(prompts)
        with torch.no_grad(), clock("sharer"):
            shared = self.sharer_prompts(batch, prompts)
            theirs = self.sharer_cache(shared)
        return self.edit(adapter, batch, prompts, theirs, shared)

    def edit(
        self, adapter: Adapter, batch: Batch, prompts: list[Prompt], theirs: KV, shared: list[Prompt]
    ) -> State:
        """The receiver reads and is edited, part by part; what follows the last part is left to run on the edited cache."""
        state, starts, fused = None, [0] * len(prompts), [0] * len(prompts)
        for stops in self.parts(prompts):
            part = Segment(starts, stops)
            with batch.clock("prefill"):
                state = self.read(prompts, state, part)
            if part.width:  # a one-token prompt has nothing to fuse
                with batch.clock("fuse"):
                    now = self.fuse(adapter, batch, state, theirs, shared, part)
                fused = [a + b for a, b in zip(fused, now, strict=True)]
            starts = stops
        assert state is not None
        state.message = self.account(adapter, shared, fused)
        return state

    def parts(self, prompts: list[Prompt]) -> list[list[int]]:
        """Where each part ends, in tokens of each prompt. Parts are read and edited in turn, later ones on the edited earlier ones.

        One part, all but the last token; under `remap` one a turn (C2C's sections), so that the template after a turn sees it edited.
        """
        assert self.adapter is not None
        whole = [len(p.ids) - 1 for p in prompts]
        if self.adapter.config.token_alignment != "remap":
            return [whole]
        ends = [sorted({min(end, n) for end in turn_ends(p)}) for p, n in zip(prompts, whole, strict=True)]
        count = max(len(e) for e in ends)
        if count == 0:  # nothing to edit
            return [whole]
        return [[([0] * (count - len(e)) + e)[k] for e in ends] for k in range(count)]

    def read(self, prompts: list[Prompt], state: State | None, part: Segment) -> State:
        """The state after reading a part too, with the rest of the prompts left to run."""
        device, pad = self.receiver.device, self.receiver.pad_id
        starts, stops = torch.tensor(part.starts), torch.tensor(part.stops)
        ids, mask = pad_left(
            [list(p.ids[a:b]) for p, a, b in zip(prompts, part.starts, part.stops, strict=True)], pad
        )
        kv = self.receiver.prefill(ids, mask, state.kv if state is not None else None, starts)
        ids, mask = pad_left([list(p.ids[b:]) for p, b in zip(prompts, part.stops, strict=True)], pad)
        return State(
            self.receiver, kv, ids.to(device), mask.to(device), positions_of(mask, stops).to(device), prompts
        )

    def sharer_prompts(self, batch: Batch, prompts: list[Prompt]) -> list[Prompt]:
        """What the sharer reads for each document: its own view; under `remap` with the receiver's tokens translated one by one
        inside it; under `same` the receiver's very ids.
        """
        assert self.adapter is not None
        config = self.adapter.config
        if config.token_alignment == "span" or not all(d.shared for d in batch.documents):
            return [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
        mine = (
            prompts if all(batch.own) else [prompt(self.receiver, s.receiver, s) for s in batch.message_from]
        )
        if config.token_alignment == "same":
            return mine
        theirs = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
        tokenizers = self.receiver.tokenizer, self.sharer.tokenizer
        return [
            remap_prompt(m, t, *tokenizers, config.remap_strategy) for m, t in zip(mine, theirs, strict=True)
        ]

    def sharer_cache(self, prompts: list[Prompt]) -> KV:
        """The sharer's cache over its whole prompt, left-padded."""
        ids, mask = pad_left([list(p.ids) for p in prompts], self.sharer.pad_id)
        return self.sharer.prefill(ids, mask)

    def fuse(
        self, adapter: Adapter, batch: Batch, state: State, theirs: KV, shared: list[Prompt], part: Segment
    ) -> list[int]:
        """Edits the part's columns of the state's cache. Returns how many positions were edited, a document each."""
        kv, column = state.kv, state.kv.length - part.width
        index = self.positions(batch, state.prompts, shared, theirs.length, kv.length - column, part)
        # nothing is computed for padding, nor for tokens that are not edited (a chat's template)
        rows, columns = (index >= 0).nonzero(as_tuple=True)
        if not len(rows):
            return [0] * len(index)
        assert isinstance(adapter, Editor)

        def message(at: slice) -> Tensor:
            sent = entries(theirs, adapter.config.layer_map[at], rows, index[rows, columns])
            return adapter.message(sent.to(kv.keys.device, kv.keys.dtype), at)

        state.kv = edited(adapter, kv, message, rows, columns + column, self.partly)
        return (index >= 0).sum(1).tolist()

    def positions(
        self,
        batch: Batch,
        prompts: list[Prompt],
        shared: list[Prompt],
        width: int,
        fused: int,
        part: Segment | None = None,
    ) -> Tensor:
        """(B, `fused`): the column of the sharer's padded cache (of `width`) that each receiver position reads; −1 where it is not edited.

        part: the tokens in question, without it all but the last.
        """
        assert self.adapter is not None
        scheme = self.adapter.config.token_alignment
        rows = []
        for i, (mine, theirs, own) in enumerate(zip(prompts, shared, batch.own, strict=True)):
            n, m = len(mine.ids), len(theirs.ids)
            if own:
                source = aligned_positions(mine, theirs, scheme)
            else:
                # another document's text: position t of N reads t·M/N, where this document's own text would be edited
                source = [
                    -1 if e < 0 else t * m // n for t, e in enumerate(aligned_positions(mine, mine, scheme))
                ]
            source = source[part.starts[i] : part.stops[i]] if part is not None else source[:-1]
            rows.append([-1] * (fused - len(source)) + [-1 if p < 0 else p + width - m for p in source])
        return torch.tensor(rows, dtype=torch.long)

    def account(self, adapter: Adapter, shared: list[Prompt], fused: list[int]) -> Message:
        """Sizes of what crossed, a document each; nothing did where no position was edited."""
        tokens = [len(p.ids) for p in shared]
        size = self.receiver.dtype.itemsize
        return Message(
            wire_bytes=[
                adapter.wire_bytes(m, n, size) if n else 0 for m, n in zip(tokens, fused, strict=True)
            ],
            cache_bytes=[
                adapter.cache_bytes(m, size) if n else 0 for m, n in zip(tokens, fused, strict=True)
            ],
            sharer_tokens=tokens,
            adapter_flops=[adapter.flops(n) for n in fused],
            read=shared,
        )


def entries(theirs: KV, sources: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """K and V of the sharer's layers `sources` (L) at `rows`, `columns` (T,), flattened and side by side: (L, T, s)."""
    device = theirs.keys.device
    both = theirs.entries_at(sources, rows.to(device), columns.to(device))
    return torch.cat([x.transpose(1, 2).flatten(2) for x in both], -1)


def edited(
    adapter: Editor,
    kv: KV,
    message: Callable[[slice], Tensor],
    rows: Tensor,
    columns: Tensor,
    partly: bool = False,
) -> KV:
    """The receiver's cache with the entries at `rows`, `columns` (T,) edited by a message.

    message: (L, T, d), of a stretch of the adapter's stack; stretches come one after another, see `Editor.pieces`.
    """
    rows, columns = rows.to(kv.keys.device), columns.to(kv.keys.device)
    whole = kv.keys.clone(), kv.values.clone()
    # where layers are left out the bits of the others must not depend on how many stand before them: each begins where a vector begins
    n, more = len(rows), -len(rows) % VECTOR if partly else 0
    at = torch.cat([torch.arange(n), torch.full((more,), n - 1)]).to(rows.device)
    for some in adapter.pieces(len(at)):
        layers = adapter.config.layers[some]
        own, sent = kv.entries_at(layers, rows[at], columns[at]), message(some)
        # the adapter takes them as one row of a batch
        new = adapter((sent[:, at] if more else sent)[:, None], *(x[:, None] for x in own), None, some)
        for x, edit in zip(whole, new, strict=True):
            put(x, layers, rows, columns, edit[:, 0, :, :n].transpose(1, 2))
    return replace(kv, keys=whole[0], values=whole[1])


def content_keys(theirs: KV, model: object) -> KV:
    """The cache with the rotary positions taken out of its keys."""
    return replace(theirs, keys=rotate(theirs.keys, theirs.positions, model, inverse=True))

"""What dense alignment reads: one text in two tokenizations, and the sharer's content entries at the receiver's tokens.

>>> mine, theirs = two_readings(receiver, sharer, documents, adapter.config)
>>> entries = content_entries(sharer, cache, columns(mine, theirs, "span", lead=2, width=cache.length))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lcfbench.adapters.config import AdapterConfig
from lcfbench.adapters.dense_fit import Pairs
from lcfbench.adapters.lcf import flat
from lcfbench.alignment.remap import remap_prompt
from lcfbench.alignment.tokens import aligned_positions
from lcfbench.methods._fusion import content_keys
from lcfbench.methods.base import prompt
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import pad_left
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, render

HELD_OUT = 10  # every so many-th document judges the translation


def two_readings(
    receiver: CausalLM, sharer: CausalLM, documents: Sequence[Document], config: AdapterConfig
) -> tuple[list[Prompt], list[Prompt]]:
    """The sharer's views in the receiver's tokens, plain (no chat template), and as the sharer reads them."""
    mine = [render(d.sharer, receiver.tokenizer, chat=False, choices=bool(d.steps)) for d in documents]
    if config.token_alignment == "same":
        return mine, mine
    theirs = [prompt(sharer, d.sharer, d) for d in documents]
    if config.token_alignment == "remap":
        both = zip(mine, theirs, strict=True)
        theirs = [
            remap_prompt(m, t, receiver.tokenizer, sharer.tokenizer, config.remap_strategy) for m, t in both
        ]
    return mine, theirs


def columns(
    mine: Sequence[Prompt], theirs: Sequence[Prompt], scheme: str, lead: int, width: int, last: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """For each text the receiver tokens that read something, the first `lead` left out, and the column of the sharer's left-padded cache
    (of `width`) that each reads; only the `last` ones where that is not 0. A token of neither text (a BOS, a template's) reads nothing.
    """
    tokens, read = [], []
    for m, t in zip(mine, theirs, strict=True):
        source = aligned_positions(m, t, scheme)
        tokens.append([i for i, p in enumerate(source) if i >= lead and p >= 0][-last:])
        read.append([source[i] + width - len(t.ids) for i in tokens[-1]])
    return tokens, read


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices (B, T) and mask (B, T) of ragged rows."""
    return pad_left([list(row) for row in rows], 0, device)


def entries_at(content: KV, index: Tensor) -> Tensor:
    """K|V flattened of all layers at columns `index` (B, T) of a cache → (layers, B·T, 2·H·D)."""
    both = torch.cat([flat(content.keys), flat(content.values)], -1)  # (layers, B, M, 2·H·D)
    at = index[None, :, :, None].expand(both.shape[0], -1, -1, both.shape[-1])
    return both.gather(2, at).flatten(1, 2)


@torch.no_grad()
def read_pairs(
    receiver: CausalLM,
    sharer: CausalLM,
    documents: Sequence[Document],
    config: AdapterConfig,
    lead: int,
    batch_size: int = 16,
) -> Iterator[Pairs]:
    """Both models read the sharer's views; one `Pairs` a batch. Nothing is kept between batches."""
    layers = torch.tensor(config.layers, device=receiver.device)
    for start in range(0, len(documents), batch_size):
        group = documents[start : start + batch_size]
        mine, theirs = two_readings(receiver, sharer, group, config)
        ids, mask = pad_left([list(p.ids) for p in theirs], sharer.pad_id, sharer.device)
        sent = content_keys(sharer.prefill(ids, mask), sharer.model)
        ids, mask = pad_left([list(p.ids) for p in mine], receiver.pad_id, receiver.device)
        own = content_keys(receiver.prefill(ids, mask), receiver.model)
        tokens, read = columns(mine, theirs, config.token_alignment, lead, sent.length)
        at = [[t + own.length - len(p.ids) for t in row] for row, p in zip(tokens, mine, strict=True)]
        (index, real), (own_index, _) = left_padded(read, sent.keys.device), left_padded(at, own.keys.device)
        keep = real.flatten().bool()
        held = torch.tensor(
            [(start + i) % HELD_OUT == HELD_OUT - 1 for i in range(len(group))], device=keep.device
        )
        held = held[:, None].expand_as(real).flatten()[keep]
        targets = entries_at(own, own_index)[layers][:, keep.to(own_index.device)]
        entries = entries_at(sent, index)[:, keep].to(targets.device, targets.dtype)
        yield Pairs(entries, targets, held.to(targets.device))

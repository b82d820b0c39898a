"""Inputs of dense alignment: one text in two tokenizations, and the entries of both models on it.

>>> mine, theirs = two_readings(receiver, sharer, documents, adapter.config)
>>> tokens, sources = aligned_tokens(mine, theirs, "span", lead=2)
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
from lcfbench.methods.base import prompt
from lcfbench.models.finite import check_cache
from lcfbench.models.kv_cache import KV, columns
from lcfbench.models.padding import pad_left
from lcfbench.models.protocol import LanguageModel
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, render

HELD_OUT = 10  # every tenth document judges the translation
AT_ONCE = 16  # documents that are read together


def two_readings(
    receiver: LanguageModel, sharer: LanguageModel, documents: Sequence[Document], config: AdapterConfig
) -> tuple[list[Prompt], list[Prompt]]:
    """Returns the sharer's views in the receiver's tokens (no chat template) and in its own."""
    mine = [render(d.sharer, receiver.tokenizer, chat=False, choices=bool(d.steps)) for d in documents]
    if config.token_alignment == "same":
        return mine, mine
    theirs = [prompt(sharer, d.sharer, d) for d in documents]
    if config.token_alignment == "remap":
        tokenizers, both = (receiver.tokenizer, sharer.tokenizer), zip(mine, theirs, strict=True)
        theirs = [remap_prompt(m, t, *tokenizers, config.remap_strategy) for m, t in both]
    return mine, theirs


def aligned_tokens(
    mine: Sequence[Prompt], theirs: Sequence[Prompt], scheme: str, lead: int, last: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns each text's receiver tokens that read a token, and the sharer tokens they read.

    The first `lead` receiver tokens are left out; of the others only the `last` where that is not
    0. A token of neither text (a BOS, a template's) reads nothing.
    """
    tokens, read = [], []
    for m, t in zip(mine, theirs, strict=True):
        source = aligned_positions(m, t, scheme)
        tokens.append([i for i, p in enumerate(source) if i >= lead and p >= 0][-last:])
        read.append([source[i] for i in tokens[-1]])
    return tokens, read


def columns_of(tokens: Sequence[Sequence[int]], prompts: Sequence[Prompt], kv: KV) -> tuple[Tensor, Tensor]:
    """Returns the columns (B, T) of tokens in a left-padded cache, and a mask (B, T)."""
    rows = [[t + kv.length - len(p.ids) for t in row] for row, p in zip(tokens, prompts, strict=True)]
    return pad_left(rows, 0, kv.keys.device)


def entries_at(content: KV, index: Tensor) -> Tensor:
    """Returns K|V flattened of all layers at columns `index` (B, T): (layers, B·T, 2·H·D)."""
    both = (columns(x, index) for x in (content.keys, content.values))
    return torch.cat([flat(x) for x in both], -1).flatten(1, 2)


@torch.no_grad()
def read_pairs(
    receiver: LanguageModel,
    sharer: LanguageModel,
    documents: Sequence[Document],
    config: AdapterConfig,
    lead: int,
) -> Iterator[Pairs]:
    """Yields the entries of both models on the sharer's views, a batch at a time."""
    layers = torch.tensor(config.layers, device=receiver.device)
    for start in range(0, len(documents), AT_ONCE):
        group = documents[start : start + AT_ONCE]
        mine, theirs = two_readings(receiver, sharer, group, config)
        caches = [
            lm.prefill([p.ids for p in prompts]) for lm, prompts in ((sharer, theirs), (receiver, mine))
        ]
        for kv, lm in zip(caches, (sharer, receiver), strict=True):
            check_cache(kv, f"the cache of {lm.name}")
        sent, own = sharer.content_keys(caches[0]), receiver.content_keys(caches[1])
        tokens, read = aligned_tokens(mine, theirs, config.token_alignment, lead)
        (index, real), (own_index, _) = columns_of(read, theirs, sent), columns_of(tokens, mine, own)
        keep = real.flatten().bool()
        held = [(start + i) % HELD_OUT == HELD_OUT - 1 for i in range(len(group))]
        held_out = torch.tensor(held, device=keep.device)[:, None].expand_as(real).flatten()[keep]
        targets = entries_at(own, own_index)[layers][:, keep.to(own_index.device)]
        entries = entries_at(sent, index)[:, keep].to(targets.device, targets.dtype)
        yield Pairs(entries, targets, held_out.to(targets.device))

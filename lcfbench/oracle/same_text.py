"""The same text read by both models: which texts, which tokens belong together, and their caches as plain vectors.

>>> pairs = read_pairs(passages, (receiver.tokenizer, sharer.tokenizer), tokens=8000)
>>> for x, y in caches(receiver, sharer, pairs, 16): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcfbench.adapters.lcf import flat
from lcfbench.alignment.tokens import aligned_positions
from lcfbench.errors import UserError
from lcfbench.models.causal_lm import CausalLM
from lcfbench.oracle.slices import answered, joined
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import Prompt, render
from lcfbench.tasks.task import load_task

DROPPED = 2  # first tokens of each text: their entries are like no others (attention sinks)
EVERY = 5  # each so many-th text is held out
FEWEST = 10  # texts; with fewer there is nothing to hold out
LONGEST = 2000  # characters; longer paragraphs of a file are cut


@dataclass(frozen=True)
class Pair:
    """One text as both models read it. tokens: indices of the receiver tokens that are used; reads: the sharer token of each."""

    mine: Prompt
    theirs: Prompt
    tokens: tuple[int, ...]
    reads: tuple[int, ...]


# -- texts ------------------------------------------------------------------------------------------------------------------------------


def task_texts(name: str, tokens: int, seed: int, offline: bool, options: Mapping[str, str]) -> list[str]:
    """A task's train documents with their answers, as plain text: what both sides hold, then the answer. Raises UserError without a train split."""
    task = load_task(name, seed=seed, offline=offline, options=options)
    # no document has fewer than 10 tokens: what is not needed is not made
    documents = task.documents(split="train", limit=max(tokens // 10, FEWEST), receiver_chat=False)
    return list(dict.fromkeys(joined(d.full.user, answered(d)) for d in documents))


def file_texts(file: Path) -> list[str]:
    """The paragraphs of a file, long ones in pieces. Raises UserError where it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").strip().split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{file} cannot be read: {reason}.", "Name a file of plain text, paragraphs apart by blank lines."
        ) from error
    cut = [p.strip()[i : i + LONGEST] for p in lines for i in range(0, len(p.strip()), LONGEST)]
    return list(dict.fromkeys(cut))


def read_pairs(passages: Sequence[str], tokenizers: tuple[Any, Any], tokens: int) -> list[Pair]:
    """Texts until `tokens` receiver tokens are aligned. Raises UserError for too few texts.

    Left out: the first `DROPPED` receiver tokens of each text, and tokens without a counterpart.
    """
    pairs: list[Pair] = []
    count = 0
    for text in passages:
        if count >= tokens:
            break
        a, b = (render(View(text), t, chat=False, choices=True) for t in tokenizers)
        reads = aligned_positions(a, b, "span")
        used = tuple(t for t, r in enumerate(reads) if t >= DROPPED and r >= 0)
        if used:
            pairs.append(Pair(a, b, used, tuple(reads[t] for t in used)))
            count += len(used)
    if len(pairs) < FEWEST:
        raise UserError(
            f"only {len(pairs)} texts for {tokens} tokens.",
            f"At least {FEWEST} are needed: more or shorter texts, or more --tokens.",
        )
    return pairs


def split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """To fit, and held out."""
    return [p for i, p in enumerate(pairs) if i % EVERY != EVERY - 1], list(pairs[EVERY - 1 :: EVERY])


# -- caches -----------------------------------------------------------------------------------------------------------------------------


def content(lm: CausalLM, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> Tensor:
    """(L, T, 2·H·D): keys without rotary positions, then values, of the given tokens of each prompt, one prompt after another."""
    kv = lm.prefill([p.ids for p in prompts])
    both = torch.cat(
        [flat(lm.rotate(kv.keys.float(), kv.positions, inverse=True)), flat(kv.values.float())], -1
    )  # (L, B, N, 2HD)
    parts = [
        both[:, b, [kv.length - len(p.ids) + t for t in at]]
        for b, (p, at) in enumerate(zip(prompts, tokens, strict=True))
    ]
    return torch.cat(parts, 1)


def caches(
    receiver: CausalLM, sharer: CausalLM, pairs: Sequence[Pair], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (x, y) of aligned entries: x (S, T, s) the sharer's, y (L, T, r) the receiver's, all layers, fp32."""
    order = sorted(pairs, key=lambda p: -len(p.mine.ids))
    for i in range(0, len(order), size):
        some = order[i : i + size]
        y = content(receiver, [p.mine for p in some], [p.tokens for p in some])
        x = content(sharer, [p.theirs for p in some], [p.reads for p in some])
        yield x.to(y.device), y

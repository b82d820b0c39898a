"""One text read by both models: texts, tokens that belong together, cache entries as plain vectors.

>>> texts = align_texts(passages, (receiver.tokenizer, sharer.tokenizer), tokens=8000)
>>> for x, y in entries(receiver, sharer, texts, 16): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.methods._translate import aligned_tokens, columns_of, entries_at
from lcfbench.models.finite import check_cache
from lcfbench.models.protocol import LanguageModel
from lcfbench.oracle.slices import answered, joined
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import Prompt, render
from lcfbench.tasks.task import load_task

DROPPED = 2  # first tokens of each text: their entries are unlike all others (attention sinks)
EVERY = 5  # every fifth text is held out
FEWEST = 10  # texts; with fewer there is nothing to hold out
LONGEST = 2000  # characters; longer paragraphs of a file are cut


@dataclass(frozen=True)
class AlignedText:
    """One text as both models read it.

    tokens: indices of the receiver tokens that are used. reads: the sharer token of each.
    """

    mine: Prompt
    theirs: Prompt
    tokens: list[int]
    reads: list[int]


def task_texts(name: str, tokens: int, seed: int, offline: bool, options: Mapping[str, str]) -> list[str]:
    """Returns a task's train documents as plain text: the text of both sides, then the answer.

    Raises UserError without a train split.
    """
    task = load_task(name, seed=seed, offline=offline, options=options)
    # no document has fewer than 10 tokens
    documents = task.documents(split="train", limit=max(tokens // 10, FEWEST), receiver_chat=False)
    return list(dict.fromkeys(joined(d.full.user, answered(d)) for d in documents))


def file_texts(file: Path) -> list[str]:
    """Returns the paragraphs of a file, long ones cut. Raises UserError for an unreadable file."""
    try:
        lines = file.read_text(encoding="utf-8").strip().split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{file} cannot be read: {reason}.", "Name a file of plain text, paragraphs apart by blank lines."
        ) from error
    cut = [p.strip()[i : i + LONGEST] for p in lines for i in range(0, len(p.strip()), LONGEST)]
    return list(dict.fromkeys(cut))


def align_texts(passages: Sequence[str], tokenizers: tuple[Any, Any], tokens: int) -> list[AlignedText]:
    """Returns texts until `tokens` receiver tokens are aligned.

    Left out are the first `DROPPED` receiver tokens of each text, and tokens without a counterpart.
    Raises UserError for too few texts.
    """
    out: list[AlignedText] = []
    count = 0
    for text in passages:
        if count >= tokens:
            break
        mine, theirs = (render(View(text), t, chat=False, choices=True) for t in tokenizers)
        [used], [reads] = aligned_tokens([mine], [theirs], "span", lead=DROPPED)
        if used:
            out.append(AlignedText(mine, theirs, used, reads))
            count += len(used)
    if len(out) < FEWEST:
        raise UserError(
            f"only {len(out)} texts for {tokens} tokens.",
            f"At least {FEWEST} are needed: more or shorter texts, or more --tokens.",
        )
    return out


def split(texts: Sequence[AlignedText]) -> tuple[list[AlignedText], list[AlignedText]]:
    """Divides texts into those to fit on and those held out."""
    return [t for i, t in enumerate(texts) if i % EVERY != EVERY - 1], list(texts[EVERY - 1 :: EVERY])


def content(lm: LanguageModel, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]]) -> Tensor:
    """Returns content keys, then values, of the tokens of each prompt: (L, T, 2·H·D) in fp32."""
    kv = lm.prefill([p.ids for p in prompts])
    check_cache(kv, f"the cache of {lm.name}")
    kv = lm.content_keys(replace(kv, keys=kv.keys.float(), values=kv.values.float()))
    index, real = columns_of(tokens, prompts, kv)
    return entries_at(kv, index)[:, real.flatten().bool()]


def entries(
    receiver: LanguageModel, sharer: LanguageModel, texts: Sequence[AlignedText], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of aligned entries: the sharer's (S, T, s), the receiver's (L, T, r)."""
    order = sorted(texts, key=lambda t: -len(t.mine.ids))
    for i in range(0, len(order), size):
        some = order[i : i + size]
        y = content(receiver, [t.mine for t in some], [t.tokens for t in some])
        x = content(sharer, [t.theirs for t in some], [t.reads for t in some])
        yield x.to(y.device), y

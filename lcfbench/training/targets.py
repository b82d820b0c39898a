"""Answers that the receiver itself writes when it reads both contexts: targets it can reach, in its own words (dense alignment, phase II)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.batching import batches
from lcfbench.methods.base import prompt
from lcfbench.models.answering import decode
from lcfbench.models.causal_lm import CausalLM
from lcfbench.tasks.document import Document

LONGEST = 256  # tokens of a target


def written_by(
    receiver: CausalLM, documents: Sequence[Document], batch_size: int, say: Callable[[str], None]
) -> list[Document]:
    """The documents with the receiver's own greedy answers as gold, in the order given; those to which it says nothing are left out.

    Raises UserError where nothing is left.
    """
    written: dict[str, str] = {}
    cut = 0
    with torch.inference_mode():
        for group in batches(list({d.hash: d for d in documents}.values()), batch_size):
            opened = receiver.open(receiver.read([prompt(receiver, d.full, d) for d in group]))
            longest = min(max(d.max_new_tokens for d in group), LONGEST)
            texts, lengths = decode(opened, longest, group[0].until)
            # an answer that was cut off would teach to stop in the middle
            whole = [n < longest for n in lengths]
            cut += len(group) - sum(whole)
            written |= {
                d.hash: text.strip() if ok else "" for d, text, ok in zip(group, texts, whole, strict=True)
            }
    out = [
        replace(d, gold=written[d.hash], steps=(), scoring="generate") for d in documents if written[d.hash]
    ]
    if not out:
        raise UserError(
            "the receiver wrote no answer to any example.", "Use --recipe or settings with targets: gold."
        )
    say(
        f"targets written by the receiver: {len(out):,} of {len(documents):,} examples; {cut:,} answers were longer than {LONGEST} tokens."
    )
    return out

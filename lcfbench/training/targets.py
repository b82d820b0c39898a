"""Training targets that the receiver writes itself when it reads both contexts.

It can reach them, and they are in its own words (dense alignment, phase II, arXiv 2606.13594).
"""

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
    """Returns the documents that the receiver answers, with its greedy answers as gold.

    Raises UserError where none is left.
    """
    written: dict[str, str] = {}
    cut = 0
    with torch.inference_mode():
        for group in batches(list({d.hash: d for d in documents}.values()), batch_size):
            opened = receiver.open(receiver.read([prompt(receiver, d.full, d) for d in group]))
            longest = min(max(d.max_new_tokens for d in group), LONGEST)
            texts, lengths = decode(opened, longest, group[0].until)
            for d, text, n in zip(group, texts, lengths, strict=True):
                # a cut answer would teach to stop early
                written[d.hash] = text.strip() if n < longest else ""
                cut += n >= longest
    answered = [d for d in documents if written[d.hash]]
    out = [replace(d, gold=written[d.hash], steps=(), scoring="generate") for d in answered]
    if not out:
        raise UserError(
            "the receiver wrote no answer to any example.", "Use --recipe or settings with targets: gold."
        )
    long = f"{cut:,} answers were longer than {LONGEST} tokens"
    say(f"targets written by the receiver: {len(out):,} of {len(documents):,} examples; {long}.")
    return out

"""Derangement: each document gets the message of another document of about the same length.

>>> senders = deranged(documents, seed=0)       # hash of a document → the document whose message it gets
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from lcfbench.errors import UserError
from lcfbench.tasks.document import Document

NEIGHBOURHOOD = 8  # documents of similar length among which messages are exchanged


def senders_sha256(senders: Mapping[str, Document]) -> str:
    """Digest of the pairs (document, sender of its message), in any order."""
    lines = (f"{to} {sender.hash}\n" for to, sender in sorted(senders.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def deranged(documents: Sequence[Document], seed: int) -> dict[str, Document]:
    """A seeded permutation without fixed points that keeps the length of the sharer's text similar.

    Documents are sorted by that length and exchange messages within small shuffled blocks. Documents
    whose sharer reads the same text (data sets repeat questions) get each other's message only where
    there is no other: a block in which more than half are the same is joined to the next one. Documents
    with different worked examples exchange only where one has no partner.
    Raises UserError for fewer than two documents.
    """
    if len(documents) < 2:
        what_next = "Raise --limit, or give --control matched."
        raise UserError("control deranged needs at least two documents.", what_next)
    rng = random.Random(f"deranged-{seed}")
    blocks = _joined([block for group in groups(documents).values() for block in _joined(_cut(group))])
    out: dict[str, Document] = {}
    for block in blocks:
        rng.shuffle(block)
        times = Counter(d.sharer for d in block)
        first = {d.sharer: n for n, d in reversed(list(enumerate(block)))}
        # equal texts side by side: a step as long as the longest such row leaves every row
        block.sort(key=lambda d: (-times[d.sharer], first[d.sharer]))
        step = min(_most(block), len(block) - 1)
        out |= {d.hash: block[(n + step) % len(block)] for n, d in enumerate(block)}
    return out


def neighbours(documents: Sequence[Document]) -> list[Document]:
    """Documents by the length of the sharer's text, shortest first; blocks are cut from this order."""
    return sorted(documents, key=lambda d: (len(d.sharer.user), d.hash))


def groups(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents by whose worked examples stand in front of them, `neighbours` each; all under "" without.

    Documents whose examples no other has are one group, under "" too.
    """
    times, found = Counter(d.examples for d in documents), dict[str, list[Document]]()
    for d in neighbours(documents):
        found.setdefault(d.examples if times[d.examples] > 1 else "", []).append(d)
    return dict(sorted(found.items()))


def _cut(order: list[Document]) -> list[list[Document]]:
    return [order[i : i + NEIGHBOURHOOD] for i in range(0, len(order), NEIGHBOURHOOD)]


def _joined(blocks: list[list[Document]]) -> list[list[Document]]:
    """Blocks, each of which is joined to the next one where more than half of it is the same."""
    i = 0
    while i < len(blocks) and len(blocks) > 1:
        if 2 * _most(blocks[i]) <= len(blocks[i]):
            i += 1
            continue
        i -= i == len(blocks) - 1  # the last one joins the one before it
        blocks[i] += blocks.pop(i + 1)
    return blocks


def _most(block: Sequence[Document]) -> int:
    """How often the most frequent sharer's text occurs."""
    return max(Counter(d.sharer for d in block).values())

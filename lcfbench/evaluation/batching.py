"""Documents of similar length in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcfbench.controls.assignment import groups
from lcfbench.tasks.document import Document


def length(document: Document) -> int:
    """Returns the characters that both models read of a document."""
    return sum(len(v.user) for v in (document.receiver, document.sharer)) + sum(
        len(text) for _, text in document.receiver.history
    )


def batches(documents: Sequence[Document], size: int) -> list[list[Document]]:
    """Returns batches of documents of similar length, the longest first, in one fixed order.

    Memory peaks in the first batch and padding is small. Batches are cut where derangements are
    (`groups`): where `size` is a multiple of a neighbourhood, every message comes out of the batch
    it goes to, so that matched and deranged runs read the same texts. Documents with the same worked
    examples are batched with each other, and their batches follow one another: their beginning is read
    once.
    """
    ordered = []
    for some in groups(documents).values():
        alike: dict[tuple[Any, ...], list[Document]] = {}
        for d in some:  # documents scored in different ways cannot share a forward
            alike.setdefault((len(d.steps), d.until, d.max_new_tokens), []).append(d)
        cut = [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]
        ordered.append(sorted(cut, key=_longest, reverse=True))
    ordered.sort(key=lambda cut: _longest(cut[0]), reverse=True)
    return [batch for cut in ordered for batch in cut]


def _longest(batch: Sequence[Document]) -> int:
    return max(length(d) for d in batch)

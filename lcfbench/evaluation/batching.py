"""Documents of similar length in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcfbench.controls.assignment import neighbours
from lcfbench.tasks.document import Document


def length(document: Document) -> int:
    """Returns the characters that both models read of a document."""
    return sum(len(v.user) for v in (document.receiver, document.sharer)) + sum(
        len(text) for _, text in document.receiver.history
    )


def batches(documents: Sequence[Document], size: int) -> list[list[Document]]:
    """Returns batches of documents of similar length, the longest first, in one fixed order.

    Memory peaks in the first batch and padding is small. Batches are cut where derangements are
    (`neighbours`): where `size` is a multiple of a neighbourhood, every message comes out of the batch
    it goes to, so that matched and deranged runs read the same texts.
    """
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for d in neighbours(documents):  # documents scored in different ways cannot share a forward
        groups.setdefault((len(d.steps), d.until, d.max_new_tokens), []).append(d)
    cut = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
    return sorted(cut, key=lambda batch: -max(length(d) for d in batch))

"""Documents of similar length in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcfbench.controls.assignment import neighbours
from lcfbench.tasks.document import Document


def length(document: Document) -> int:
    """Characters both models read of a document, for putting documents of near length together."""
    return sum(len(v.user) for v in (document.receiver, document.sharer)) + sum(
        len(text) for _, text in document.receiver.history
    )


def batches(documents: Sequence[Document], size: int) -> list[list[Document]]:
    """Documents of near length together, longest first: memory peaks at once, padding is small, and the order is the same every time.

    They are cut where derangements are (`controls.neighbours`): with a size that is a multiple of those neighbourhoods every message comes out of
    the batch it goes to, so that both runs read the same texts. Only whole batches are put in order by what both models read.
    """
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for d in neighbours(documents):  # what is scored differently cannot share a forward
        groups.setdefault((len(d.steps), d.until, d.max_new_tokens), []).append(d)
    cut = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
    return sorted(cut, key=lambda batch: -max(length(d) for d in batch))

"""Documents whose choices have prompts of their own: asked as a document a choice, answered as one.

In Winogrande each choice fills the gap of the sentence, and the words behind it are ranked. Both models
read each of these prompts; a document's message for its second choice comes from the second prompt of
the document that sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcfbench.config import WireForm
from lcfbench.methods.base import Batch
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Outcome


def batch_of(
    documents: Sequence[Document],
    senders: Sequence[Document],
    clock: Clock,
    wire: WireForm | None = None,
    stored: Mapping[int, bytes] | None = None,
) -> Batch:
    """The batch that asks documents, with all parts of each in a row. wire, stored: see `Batch`."""
    if not any(d.parts for d in documents):
        return Batch(documents, senders, clock, wire, stored=stored)
    asked = [part for d in documents for part in d.parts or (d,)]
    theirs = []
    for document, sender in zip(documents, senders, strict=True):
        parts = sender.parts or (sender,)
        theirs += [parts[min(i, len(parts) - 1)] for i in range(len(document.parts or (document,)))]
    return Batch(asked, theirs, clock, wire, stored=stored)


def row_places(documents: Sequence[Document]) -> list[range]:
    """The rows of the batch that belong to each document."""
    places, at = [], 0
    for document in documents:
        count = len(document.parts or (document,))
        places.append(range(at, at + count))
        at += count
    return places


def together(
    documents: Sequence[Document], outcomes: Sequence[Outcome], tokens: Sequence[int]
) -> tuple[list[Outcome], list[int]]:
    """One outcome and one number of answer tokens a document: its parts' choices are ranked together."""
    found = []
    for document, at in zip(documents, row_places(documents), strict=True):
        mine = [outcomes[i] for i in at]
        if not document.parts:
            found.append(mine[0])
            continue
        ranked = tuple(o.loglikelihoods[0][0] for o in mine)
        best = max(range(len(ranked)), key=lambda i, ranked=ranked: ranked[i][0])  # type: ignore[misc]
        found.append(Outcome((ranked,), None, (best,), parsed=all(o.parsed for o in mine)))
    return found, [sum(tokens[i] for i in at) for at in row_places(documents)]

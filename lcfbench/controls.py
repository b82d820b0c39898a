"""Controls: whose message each document gets. A wrapper round any method, which no method knows of.

`matched` is the ordinary run. Under `deranged` every document gets the message of another one of the same task: what a method gains without
its own message is adaptation, not communication.

>>> senders = sender_of(documents, "deranged", seed=0)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from lcfbench.document import Document
from lcfbench.errors import UserError, unknown

CONTROLS = ("matched", "deranged")
NEIGHBOURHOOD = 8  # documents of near length among which messages are exchanged


def check_control(name: str) -> None:
    """Raises UserError for a control that is not there."""
    if name not in CONTROLS:
        raise unknown("control", name, CONTROLS, "lcfbench run --help")


def sender_of(documents: Sequence[Document], control: str, seed: int) -> dict[str, Document]:
    """The document whose message each document (by hash) gets."""
    check_control(control)
    if control == "matched":
        return {d.hash: d for d in documents}
    return deranged(documents, seed)


def deranged(documents: Sequence[Document], seed: int) -> dict[str, Document]:
    """A seeded permutation without fixed points, near in length of the sharer's text.

    Documents are sorted by that length and exchange messages within small shuffled neighbourhoods. Documents in which the sharer reads the
    same text (data sets repeat questions) do not get each other's message while any other is to be had: a neighbourhood where more than half
    are the same grows. Raises UserError for fewer than two documents.
    """
    if len(documents) < 2:
        raise UserError("control deranged needs at least two documents.", "Raise --limit.")
    rng = random.Random(f"deranged-{seed}")
    order = sorted(documents, key=lambda d: (len(d.sharer.user), d.hash))
    blocks = [order[i : i + NEIGHBOURHOOD] for i in range(0, len(order), NEIGHBOURHOOD)]
    i = 0
    while i < len(blocks) and len(blocks) > 1:
        if 2 * _most(blocks[i]) <= len(blocks[i]):
            i += 1
            continue
        i -= i == len(blocks) - 1  # the last one joins the one before it
        blocks[i] += blocks.pop(i + 1)
    out: dict[str, Document] = {}
    for block in blocks:
        rng.shuffle(block)
        times = Counter(d.sharer for d in block)
        seen = {d.sharer: n for n, d in reversed(list(enumerate(block)))}
        block.sort(key=lambda d: (-times[d.sharer], seen[d.sharer]))  # same texts side by side, so that a step as long as the longest row
        step = min(_most(block), len(block) - 1)  # of them leaves every row
        out |= {d.hash: block[(n + step) % len(block)] for n, d in enumerate(block)}
    return out


def _most(block: Sequence[Document]) -> int:
    """How often the most frequent sharer's text occurs."""
    return max(Counter(d.sharer for d in block).values())

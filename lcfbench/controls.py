"""Controls: whose message each document gets. A wrapper round any method, which no method knows of.

`matched` is the ordinary run. Under `deranged` every document gets the message of another one of the same task: what a method gains without
its own message is adaptation, not communication.

>>> senders = sender_of(documents, "deranged", seed=0)
"""

from __future__ import annotations

import random
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

    Documents are sorted by that length and passed on in a circle within small shuffled neighbourhoods. Documents in which the sharer reads the
    same text (data sets repeat questions) do not get each other's message where any other is to be had.
    """
    if len(documents) < 2:
        raise UserError("control deranged needs at least two documents.", "Raise --limit.")
    rng = random.Random(f"deranged-{seed}")
    order = sorted(documents, key=lambda d: (len(d.sharer.user), d.hash))
    blocks = [order[i : i + NEIGHBOURHOOD] for i in range(0, len(order), NEIGHBOURHOOD)]
    if len(blocks) > 1 and len(blocks[-1]) == 1:
        blocks[-2] += blocks.pop()
    out: dict[str, Document] = {}
    for block in blocks:
        rng.shuffle(block)
        for i, document in enumerate(block):
            others = block[i + 1 :] + block[:i]
            out[document.hash] = next((o for o in others if o.sharer != document.sharer), others[0])
    if all(out[d.hash] is not d for d in documents) and len({o.hash for o in out.values()}) == len(documents):
        return out
    return {d.hash: o for block in blocks for d, o in zip(block, block[1:] + block[:1], strict=True)}

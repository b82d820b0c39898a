"""Controls: what becomes of the message. A wrapper round any method, which no method knows of (protocol.md, "Controls").

- `matched`: its own, the ordinary run.
- `deranged`: that of another document of the same task. What a method gains without its own message is adaptation, not communication.
- `zero`, `noise`: the sharer's cache is emptied, or noise of the same moments (`lcfbench.controls.wrappers`). A sharer that writes or picks goes on from such
  a memory, which holds nothing of what it read but its last token; the words still travel.
- `silent`: none, and the sharer is not run.

>>> senders = sender_of(documents, "deranged", seed=0)
>>> method = under("noise", method, seed=0)
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from lcfbench.controls.names import check_control
from lcfbench.errors import UserError
from lcfbench.tasks.document import Document

NEIGHBOURHOOD = 8  # documents of near length among which messages are exchanged


def sender_of(documents: Sequence[Document], control: str, seed: int) -> dict[str, Document]:
    """The document whose message each document (by hash) gets."""
    check_control(control)
    return deranged(documents, seed) if control == "deranged" else {d.hash: d for d in documents}


def senders_sha256(senders: Mapping[str, Document]) -> str:
    """Digest of who gets whose message, whatever the order."""
    return hashlib.sha256(
        "".join(f"{to} {sender.hash}\n" for to, sender in sorted(senders.items())).encode()
    ).hexdigest()


def deranged(documents: Sequence[Document], seed: int) -> dict[str, Document]:
    """A seeded permutation without fixed points, near in length of the sharer's text.

    Documents are sorted by that length and exchange messages within small shuffled neighbourhoods. Documents in which the sharer reads the
    same text (data sets repeat questions) do not get each other's message while any other is to be had: a neighbourhood where more than half
    are the same grows. Raises UserError for fewer than two documents.
    """
    if len(documents) < 2:
        raise UserError("control deranged needs at least two documents.", "Raise --limit.")
    rng = random.Random(f"deranged-{seed}")
    order = neighbours(documents)
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
        block.sort(
            key=lambda d: (-times[d.sharer], seen[d.sharer])
        )  # same texts side by side, so that a step as long as the longest row
        step = min(_most(block), len(block) - 1)  # of them leaves every row
        out |= {d.hash: block[(n + step) % len(block)] for n, d in enumerate(block)}
    return out


def neighbours(documents: Sequence[Document]) -> list[Document]:
    """Documents in order of the length of the sharer's text, shortest first: a derangement is one of each `NEIGHBOURHOOD` of them."""
    return sorted(documents, key=lambda d: (len(d.sharer.user), d.hash))


def _most(block: Sequence[Document]) -> int:
    """How often the most frequent sharer's text occurs."""
    return max(Counter(d.sharer for d in block).values())

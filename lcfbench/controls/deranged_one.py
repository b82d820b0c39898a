"""deranged-one: the message of one sharer comes from another document, those of the others stay.

The sharer is drawn for each document. What is lost against matched is what single messages are worth
beside the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcfbench.controls.assignment import deranged
from lcfbench.controls.base import Control
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class DerangedOne(Control):
    """Exchanges the messages of one sharer a document as `deranged` exchanges all."""

    needs = "message"
    seeded = True

    def message_from(self, documents: Sequence[Document], seed: int) -> dict[str, Document]:
        return deranged(documents, seed)

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        from lcfbench.methods._several import SeveralSharers  # it imports torch

        if isinstance(method, SeveralSharers):
            return None
        return (
            "one sharer sends, so deranged-one is deranged",
            "Use --control deranged, or name several sharers.",
        )

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.methods._several import SeveralSharers  # it imports torch

        assert isinstance(method, SeveralSharers), "see `refuses`"
        count = len(method.methods)
        return method.exchanging(lambda document: drawn(document, seed, count))


def drawn(document: Document, seed: int, count: int) -> int:
    """Returns the number of the sharer whose message is exchanged, drawn evenly."""
    digest = hashlib.sha256(f"deranged-one-{seed}-{document.hash}".encode()).digest()
    return int.from_bytes(digest[:8]) % count

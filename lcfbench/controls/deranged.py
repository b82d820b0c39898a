"""deranged: each document gets the message of another document of the same task.

A gain that remains without the own message is adaptation, not communication.
"""

from __future__ import annotations

from collections.abc import Sequence

from lcfbench.controls.assignment import deranged
from lcfbench.controls.base import Control
from lcfbench.tasks.document import Document


class Deranged(Control):
    """Exchanges messages between documents whose sharer's texts are about equally long."""

    needs = "message"
    seeded = True

    def message_from(self, documents: Sequence[Document], seed: int) -> dict[str, Document]:
        return deranged(documents, seed)

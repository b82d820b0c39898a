"""previous: each document gets the message of the document before it."""

from __future__ import annotations

from collections.abc import Sequence

from lcfbench.controls.base import Control
from lcfbench.tasks.document import Document


class Previous(Control):
    """Like `deranged`, without a seed and whatever the lengths; the first document gets the last one's."""

    needs = "message"

    def message_from(self, documents: Sequence[Document], seed: int) -> dict[str, Document]:
        return {document.hash: documents[i - 1] for i, document in enumerate(documents)}

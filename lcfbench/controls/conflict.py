"""conflict: the receiver's own text states another value of the fact than the message does.

The score counts the message's value as right; the column `conflict_winner` says who won.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcfbench.controls.base import Control
from lcfbench.tasks.conflicts import conflicting, has_conflicts
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Conflict(Control):
    """Asks the conflicting variant of each document; message and method stay as they are."""

    needs = "message"
    asks_otherwise = True

    def documents(self, documents: Sequence[Document]) -> list[Document]:
        return [conflicting(document) for document in documents]

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        if has_conflicts(documents[0]):
            return None
        what = f"{documents[0].task} has no variant in which the receiver's text contradicts the message"
        return what, "Use --task splitfacts or splitfacts_heldout."

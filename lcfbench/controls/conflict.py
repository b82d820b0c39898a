"""conflict: the receiver's own text states another value of the fact than the message does.

The score counts the message's value as right; the column `conflict_winner` says who won. A method that
sends nothing runs too: how often each value is answered without a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcfbench.controls.base import Control
from lcfbench.tasks.conflicts import TASKS, conflicting, has_conflicts, undisputed
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Conflict(Control):
    """Asks the conflicting variant of each document; message and method stay as they are."""

    asks_otherwise = True

    def documents(self, documents: Sequence[Document]) -> list[Document]:
        return [conflicting(document) for document in documents]

    def message_from(self, documents: Sequence[Document], seed: int) -> dict[str, Document]:
        """The message is made from a text that says nothing of the other value."""
        return {document.hash: undisputed(document) for document in documents}

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        if "receiver" not in method.roles:
            return (
                "the receiver, whose text is contradicted, is not asked",
                "Use a method in which it answers.",
            )
        if has_conflicts(documents[0]):
            return None
        what = f"{documents[0].task} has no variant in which the receiver's text contradicts the message"
        return what, f"Use --task {', '.join(TASKS[:-1])} or {TASKS[-1]}."

"""equal-text: the receiver reads as text the words that the message stands for.

Its ends are the methods `excerpt` (a few bytes of them) and `full_context` (all of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcfbench.controls.base import Control
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class EqualText(Control):
    """Sends the sharer's own text, or the part of it that a method keeps (`Method.words`)."""

    needs = "message"

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        if not any(d.shared for d in documents):
            return None
        what = f"{documents[0].task} shows both models the same text, so there are no words to send"
        return what, "Use a task with different contexts (`lcfbench ls tasks`)."

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.controls.wrappers import TextMethod  # it imports torch

        return TextMethod(method)

    def reading(self, method: Method) -> Method:
        return self.wrap(method, 0)

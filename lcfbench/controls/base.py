"""A control changes the message of a method: where the score stays, the message was not used.

One control is one file of this folder with one class, found by the file's name.

>>> control = load_control("deranged")
>>> senders = control.message_from(documents, seed=0)       # whose message each document gets
>>> method = control.wrap(method, seed=0)                   # the method as it runs under the control
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from lcfbench import registry
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Control:
    """Base of all controls. By itself it changes nothing.

    needs: "message" where a method must send something, "cache" where its message must be made from the
    sharer's cache, or the control would change nothing. seeded: whether another seed is another run.
    """

    needs: ClassVar[Literal["message", "cache"] | None] = None
    seeded: ClassVar[bool] = False

    def message_from(self, documents: Sequence[Document], seed: int) -> dict[str, Document]:
        """The document whose message each document (by hash) gets: its own."""
        return {document.hash: document for document in documents}

    def wrap(self, method: Method, seed: int) -> Method:
        """The method as it runs under this control, after calibration: the same one."""
        return method

    def lacks(self, kind: type[Method]) -> str:
        """The thing a kind of method lacks to run under this control: `message`, `cache` or nothing."""
        if self.needs and not kind.sends:
            return "message"
        return "cache" if self.needs == "cache" and not kind.uses_sharer_cache else ""


def load_control(name: str) -> Control:
    """A control by name. Raises UserError for one that does not exist."""
    return registry.load("controls", name)()

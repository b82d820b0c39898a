"""A control changes the message of a method: where the score stays, the message was not used.

One control is one file of this folder with one class, found by the file's name.

>>> control = load_control("deranged")
>>> documents = control.documents(documents)                # what is asked: mostly the same
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

# the thing that a kind of method lacks → what is said of it
LACKS = {"message": "sends no message", "cache": "sends no cache", "sharer": "runs no sharer"}


class Control:
    """Base of all controls. By itself it changes nothing.

    needs: "message" where a method must send something, "cache" where its message must be made from the
    sharer's cache, "sharer" where a model must make it, or the control would change nothing. seeded:
    whether another seed is another run. asks_otherwise: whether it changes the documents themselves.
    """

    needs: ClassVar[Literal["message", "cache", "sharer"] | None] = None
    seeded: ClassVar[bool] = False
    asks_otherwise: ClassVar[bool] = False

    def documents(self, documents: Sequence[Document]) -> list[Document]:
        """The documents that are asked in the place of a task's: the same ones.

        Raises UserError where a document has none in its place.
        """
        return list(documents)

    def message_from(self, documents: Sequence[Document], seed: int) -> dict[str, Document]:
        """The document whose message each document (by hash) gets: its own."""
        return {document.hash: document for document in documents}

    def wrap(self, method: Method, seed: int) -> Method:
        """The method as it runs under this control, after calibration: the same one."""
        return method

    def reading(self, method: Method) -> Method:
        """The method whose models' room for a document's texts is looked at before anything runs."""
        return method

    def lacks(self, kind: type[Method]) -> str:
        """The thing a kind of method lacks to run under this control (see `LACKS`), or nothing."""
        if self.needs and not kind.sends:
            return "message"
        if self.needs == "sharer" and "sharer" not in kind.roles:
            return "sharer"
        return "cache" if self.needs == "cache" and not kind.uses_sharer_cache else ""

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        """Why this method has no run under this control on these documents, and the next step.

        None where it has one. The method is not calibrated yet.
        """
        return None


def load_control(name: str) -> Control:
    """A control by name. Raises UserError for one that does not exist."""
    return registry.load("controls", name)()

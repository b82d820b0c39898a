"""self: the receiver's own model reads the sharer's context and makes the message.

The rest of a method's score, matched − self, is the worth of a second model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcfbench.controls.base import Control
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class OwnModel(Control):
    """Puts the receiver in the sharer's place; an adapter must take a cache of the receiver's shape."""

    needs = "sharer"

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        from lcfbench.methods._several import SeveralSharers  # it imports torch

        mine = method.receiver
        if all(lm is mine or (lm.name, lm.revision) == (mine.name, mine.revision) for lm in method.sharers):
            return f"both models are {mine.name}, so self is matched", "Use a pair of two models."
        for one in method.methods if isinstance(method, SeveralSharers) else [method]:
            if one.adapter is None:
                continue
            if unlike := one.adapter.config.sharer_geometry.differences(mine.geometry, "sharer"):
                what = f"its adapter reads the cache of {one.sharer.name}, and that of {mine.name} differs"
                step = "Use --control deranged, or a method without adapter."
                return f"{what} ({'; '.join(unlike)})", step
        return None

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.controls.wrappers import each, with_sharer  # it imports torch

        return each(method, lambda one: with_sharer(one, method.receiver))

    def reading(self, method: Method) -> Method:
        return self.wrap(method, 0)

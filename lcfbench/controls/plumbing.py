"""plumbing: the receiver's cache of its own prompt is turned into bytes, sent, and put back.

It tests the instrument, not the method: the next token's distribution must be the untouched receiver's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcfbench.controls.base import Control
from lcfbench.tasks.document import Document

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Plumbing(Control):
    """Stops the run where a cache that was sent and put back predicts something else."""

    needs = "message"

    def refuses(self, method: Method, documents: Sequence[Document]) -> tuple[str, str] | None:
        lm = method.receiver
        why = lm.capabilities.lacks("edit") or ("" if lm.geometry.layers else "it keeps no cache")
        if not why and lm.layout.recurrent:
            why = "some of its layers keep a recurrent state beside the cache"
        return (f"the cache of {lm.name} cannot be put back: {why}", "Use another receiver.") if why else None

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.controls.wrappers import PlumbingMethod  # it imports torch

        return PlumbingMethod(method)

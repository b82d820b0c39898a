"""zero: the sharer's cache holds zeros.

A sharer that writes goes on from such a cache, which holds only its last token; its words still cross.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcfbench.controls.base import Control

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Zero(Control):
    """Replaces every entry that the sharer reads by zeros."""

    needs = "cache"

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.controls.wrappers import emptied  # it imports torch

        return emptied(method)

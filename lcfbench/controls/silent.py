"""silent: nothing is sent and the sharer is not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcfbench.controls.base import Control

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Silent(Control):
    """Leaves the receiver alone, or its adapter on the receiver's own cache where the kind allows that."""

    needs = "message"

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.controls.wrappers import SilentMethod  # it imports torch

        return SilentMethod(method)

"""noise: the sharer's cache holds noise with the mean and deviation of the true entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcfbench.controls.base import Control

if TYPE_CHECKING:
    from lcfbench.methods.base import Method


class Noise(Control):
    """Replaces every entry that the sharer reads by normal noise of the same moments a layer and head."""

    needs = "cache"
    seeded = True

    def wrap(self, method: Method, seed: int) -> Method:
        from lcfbench.controls.wrappers import noised  # it imports torch

        return noised(method, seed)

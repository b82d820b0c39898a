"""matched: each document gets its own message, as in an ordinary run."""

from __future__ import annotations

from lcfbench.controls.base import Control


class Matched(Control):
    """Changes nothing."""

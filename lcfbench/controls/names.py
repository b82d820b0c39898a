"""The names of the controls, without torch."""

from __future__ import annotations

from lcfbench.errors import unknown

CONTROLS = ("matched", "deranged", "zero", "noise", "silent")


ON_CACHE = {"zero", "noise"}  # mean something only where what is sent is made from the sharer's cache


SEEDED = {"deranged", "noise"}  # differ from seed to seed


def check_control(name: str) -> None:
    """Raises UserError for a control that is not there."""
    if name not in CONTROLS:
        raise unknown("control", name, CONTROLS, "lcfbench run --help")

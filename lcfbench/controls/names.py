"""The names of the controls, without torch."""

from __future__ import annotations

from lcfbench import registry

CONTROLS = ("matched", "deranged", "zero", "noise", "silent")  # ours, in the order of tables


def control_names() -> list[str]:
    """Names of all controls: ours in their order, then those of plugins."""
    return [*CONTROLS, *(name for name in registry.names("controls") if name not in CONTROLS)]


def check_control(name: str) -> None:
    """Raises UserError for a control that does not exist."""
    registry.find("controls", name)

"""The names of the controls, without torch."""

from __future__ import annotations

from lcfbench import registry

CONTROLS = (  # ours, in the order of tables
    "matched",
    "deranged",
    "deranged-one",
    "zero",
    "noise",
    "silent",
    "self",
    "equal-text",
    "conflict",
    "plumbing",
)
# no content of the document's own crosses: a message that counts is better than each of them
WITHOUT_CONTENT = ("deranged", "zero", "noise", "silent")


def control_names() -> list[str]:
    """Names of all controls: ours in their order, then those of plugins."""
    return [*CONTROLS, *(name for name in registry.names("controls") if name not in CONTROLS)]


def check_control(name: str) -> None:
    """Raises UserError for a control that does not exist."""
    registry.find("controls", name)

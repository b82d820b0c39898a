"""Texts from files may hold terminal control codes; here they become visible and harmless."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def clean(text: str) -> str:
    r"""Writes control characters as `\u001b`, which is how JSON writes them too."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)

"""The one exception a user is meant to see: what is wrong in one line, and the next step.

The CLI prints it without a traceback and exits 2. Anything else that reaches the top is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum

FEW = 7  # so many names are simply listed


class Exit(IntEnum):
    """What the process says when it ends."""

    OK = 0
    FAILED = 1
    USER = 2
    INCONCLUSIVE = 3
    INCOMPLETE = 4
    INTERRUPTED = 130


class UserError(Exception):
    """`what` went wrong and the `next_step` that mends it."""

    def __init__(self, what: str, next_step: str = "") -> None:
        self.what, self.next_step = what, next_step
        super().__init__(f"{what} {next_step}".strip())


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> UserError:
    """An error for a name that is not among `known`, with the nearest ones and the command that lists them all."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = (
        f"Did you mean {' or '.join(near)}? "
        if near
        else f"Known: {', '.join(names)}. "
        if 0 < len(names) <= FEW
        else ""
    )
    return UserError(f"unknown {kind} {name!r}.", f"{hint}See `{listing}`.")

"""The one exception that users see: the mistake in one line, and the next step.

The command line prints it without a traceback and exits with its `code`, mostly 2. Any other
exception there is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar

FEW = 8  # names that are listed in full


class Exit(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    FAILED = 1
    USER = 2
    INCONCLUSIVE = 3
    INCOMPLETE = 4
    INTERRUPTED = 130


class UserError(Exception):
    """A mistake: `what` went wrong, and the `next_step` that mends it.

    code: how the command line ends.
    """

    code: ClassVar[Exit] = Exit.USER

    def __init__(self, what: str, next_step: str = "") -> None:
        self.what, self.next_step = what, next_step
        super().__init__(f"{what} {next_step}".strip())

    def __reduce__(self) -> tuple[Any, ...]:  # subclasses take other arguments
        return _again, (type(self), self.args, self.__dict__)


class StopRunError(UserError):
    """An error after which no further document is answered: it says more than of one row."""

    code = Exit.FAILED


def _again(kind: type[UserError], args: tuple[Any, ...], attributes: dict[str, Any]) -> UserError:
    """Returns an error that another process raised."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> UserError:
    """Returns an error for an unknown name: the nearest known ones, and the command that lists all."""
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

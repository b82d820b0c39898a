"""Prints lines of text: results on stdout, all else on stderr. Imports rich only to print in colour."""

from __future__ import annotations

import sys

from lcfbench.cli.clean import clean


def echo(text: object, end: str = "\n", stderr: bool = False) -> None:
    """Prints a text unbroken and without colour: JSON, CSV, a path, an error."""
    print(clean(str(text)), end=end, file=sys.stderr if stderr else sys.stdout, flush=True)


def note(text: str, style: str = "", stdout: bool = False) -> None:
    """Prints one line, unbroken, so that a log has one line a message."""
    from lcfbench.cli import terminal

    line = clean(" ".join(text.split()) if "\n" in text else text)
    (terminal.out if stdout else terminal.err).print(line, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    note(f"warning: {text}", "yellow")

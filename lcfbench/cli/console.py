"""Prints lines of text: results on stdout, everything else on stderr. Imports rich only to print in colour.

Texts that come from files may hold terminal control codes; here they are made visible and harmless.
"""

from __future__ import annotations

import re

import typer

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def clean(text: str) -> str:
    r"""Writes control characters as `\u001b`, which is how JSON writes them too."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: object, end: str = "\n", stderr: bool = False) -> None:
    """Prints a text unbroken and without colour: JSON, CSV, a path, an error."""
    typer.echo(clean(str(text)) + end, nl=False, err=stderr)


def note(text: str, style: str = "", stdout: bool = False) -> None:
    """Prints one line, unbroken, so that a log has one line a message."""
    from lcfbench.cli import terminal

    (terminal.out if stdout else terminal.err).print(text, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    note(f"warning: {text}", "yellow")

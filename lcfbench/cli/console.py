"""The two streams of the command line: results go to stdout, everything else to stderr.

Texts that come from files may hold terminal control codes; here they are made visible and harmless.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from lcfbench.progress import quiet_libraries

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def clean(text: str) -> str:
    r"""Writes control characters as `\u001b`, which is how JSON writes them too."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class CleanConsole(Console):
    """A console that prints texts as they are: no markup, no emoji codes, no control characters."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(clean(text), **settings)


__all__ = ["err", "note", "out", "quiet_libraries", "warn"]
err, out = CleanConsole(stderr=True), CleanConsole()


def echo(text: object, end: str = "\n", stderr: bool = False) -> None:
    """Prints a text without wrapping or colour: JSON, CSV, a path, an error."""
    typer.echo(clean(str(text)) + end, nl=False, err=stderr)


def note(text: str, style: str = "") -> None:
    """Prints one line on stderr, unbroken, so that a log has one line a message."""
    err.print(text, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    note(f"warning: {text}", "yellow")

"""The two streams of the command line: results go to stdout, everything else to stderr.

Texts that come from files may hold terminal control codes; here they are made visible and harmless.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

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


def quiet_libraries() -> None:
    """Turns off the progress bars and developers' warnings of libraries; their errors stay."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(transformers|torch|lm_eval)")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

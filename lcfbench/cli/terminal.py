"""The two streams of the command line as rich consoles: results go to `out`, everything else to `err`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from lcfbench.cli.clean import clean


class CleanConsole(Console):
    """A console that prints texts as they are: no markup, no emoji codes, no control characters."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(clean(text), **settings)


err, out = CleanConsole(stderr=True), CleanConsole()


class StatusLine:
    """A line that changes in place on stderr during a `with` block; nothing where that is no terminal."""

    def __init__(self, text: str = "") -> None:
        spinner = "dots" if err.encoding.startswith("utf") else "line"
        self._status = err.status(Text(clean(text)), spinner=spinner)

    def update(self, text: str) -> None:
        self._status.update(Text(clean(text)))

    def __enter__(self) -> StatusLine:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

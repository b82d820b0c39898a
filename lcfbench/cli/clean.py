"""Text for the two streams of the command line: harmless, and in the characters that a stream has."""

from __future__ import annotations

import codecs
import io
import os
import sys

from lcfbench.tables import printable

PLAIN = "lcfbench.plain"  # name of the codec error handler below
ASCII = {
    **dict.fromkeys("–—−‐‑", "-"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("\u00a0\u2009\u202f", " "),
    **{"→": "->", "←": "<-", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "…": "...", "•": "*", "·": "."},
    **{"½": "1/2", "²": "^2", "³": "^3", "⁶": "^6", "▲": "^", "✓": "ok", "✗": "no"},
}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    r"""Replaces characters that an encoding lacks: by ASCII signs that mean the same, else by `\u4e2d`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    written = (ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost)
    return "".join(written), error.end


codecs.register_error(PLAIN, _plainer)


class Stream(io.TextIOWrapper):
    """A stream whose reader may leave (`| head`): the rest is dropped, the work goes on to its exit code."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def prepare_streams() -> None:
    """Makes stdout and stderr replace what their encoding lacks, and outlive their reader."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not where a test or a notebook put its own
            encoding, buffered = stream.encoding, stream.line_buffering
            made = Stream(stream.detach(), encoding=encoding, errors=PLAIN, line_buffering=buffered)
            setattr(sys, name, made)
        elif reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=PLAIN)


def clean(text: str, one_line: bool = False) -> str:
    """Returns a text made printable, in the characters that stdout has, so that its width is known."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text, one_line).encode(encoding, PLAIN).decode(encoding)

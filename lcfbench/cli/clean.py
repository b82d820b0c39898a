"""Text for the two streams of the command line: harmless, and in the characters that a stream has."""

from __future__ import annotations

import codecs
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


def prepare_streams() -> None:
    """Makes both streams replace what their encoding lacks, also where a library prints."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=PLAIN)


def clean(text: str, one_line: bool = False) -> str:
    """Returns a text made printable, in the characters that stdout has, so that its width is known."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return printable(text, one_line).encode(encoding, PLAIN).decode(encoding)

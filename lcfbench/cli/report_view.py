"""What `lcfbench report` does: read, write one file, say what could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lcfbench.cli.console import warn
from lcfbench.errors import UserError
from lcfbench.files import write

NAMES = {"html": "report.html", "markdown": "report.md", "csv": "report.csv"}


def write_report(runs: Sequence[Path], out: Path | None, form: str) -> Path:
    """Writes the report of these runs, whole or not at all, and returns its path.

    out: a file, or a folder that is there; `NAMES[form]` by default. form: html, markdown or csv.
    Raises UserError where nothing can be read or the file cannot be written.
    """
    from lcfbench.analysis.report import FORMS
    from lcfbench.analysis.report.source import read

    path = Path(NAMES[form]) if out is None else out / NAMES[form] if out.is_dir() else out
    source = read(runs)
    for warning in source.warnings:
        warn(warning)
    content = FORMS[form](source).encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}.", "Name another file with -o."
        ) from error
    return path

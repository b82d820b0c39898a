"""Writing files: whole or not at all, with one clear line when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def write(path: Path, data: Buffer) -> None:
    """All of it or nothing: a reader never sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As `write`, for a readable JSON file."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A disk that is full or read-only becomes one line and the next step."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = (
            "Free some space and repeat the command; it resumes."
            if full
            else "Name another folder with --out."
        )
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}.", f"What is recorded stays. {step}"
        ) from error


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")

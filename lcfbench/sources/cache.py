"""The folders assets live in, and the manners of everything that writes there: a lock, a checksum, one line on stderr."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcfbench.errors import UserError

EMBEDDED_PAIR = "smollm2-135m:gemma3-270m"  # real models on any machine that reaches only PyPI


def cache_dir() -> Path:
    """`$LCFBENCH_CACHE`, else the platform's cache folder for lcfbench."""
    import platformdirs

    return Path(os.environ.get("LCFBENCH_CACHE") or platformdirs.user_cache_dir("lcfbench")).expanduser()


def say(line: str) -> None:
    """One line on stderr: stdout belongs to results."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def lock(name: str) -> Iterator[Path]:
    """Holds `name` against other processes and gives an empty folder in the cache, which goes when the block ends.
    What a killed process left there goes at the next start. Raises `UserError` when the cache cannot be written."""
    import filelock

    root = cache_dir() / "tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(root / f"{name}.lock")
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            say(f"waiting for another process that is fetching {name}")
            held.acquire()
    except OSError as e:
        raise UserError(
            f"cannot write to the cache folder {cache_dir()}: {e.strerror}.", "Set LCFBENCH_CACHE to another."
        ) from e
    work = root / name
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        held.release()


def mirror() -> Path | None:
    """The folder of Hub snapshots that `$LCFBENCH_MIRROR` names, if any."""
    root = os.environ.get("LCFBENCH_MIRROR")
    return Path(root).expanduser() if root else None


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def not_found(what: str, name: str, repo_id: str, folder: str, tried: list[str]) -> UserError:
    """What was tried, and the next step; `folder` is where a mirror would have it, under `models/` or `datasets/`."""
    shown = repr(name) if name == repo_id else f"{name!r} ({repo_id})"
    kind = " --repo-type dataset" if folder.startswith("datasets") else ""
    return UserError(
        f"cannot find {what} {shown}. Tried, in order: {'; '.join(tried)}.",
        f"Run `hf download {repo_id}{kind}` where the Hub can be reached, or set LCFBENCH_MIRROR to a folder that has {folder}"
        + ("." if kind else f"; the pair {EMBEDDED_PAIR} needs only PyPI."),
    )

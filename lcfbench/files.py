"""Writing files: whole or not at all, with one clear line when the disk refuses."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lcfbench.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

FRESH_SECONDS = 10
PART, READY = ".part", ".ready"  # files being made; files that are whole and move into their folder


def write(path: Path, data: Buffer) -> None:
    """All of it or nothing: a reader never sees half a file."""
    remove_stale(path.parent, glob.escape(path.name))
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


def remove_stale(folder: Path, name: str = "*", locked: bool = False) -> None:
    """Removes the parts of files that `write` of a killed process left in a folder.

    Only the user's own parts, of processes that are gone, and not those of the last seconds: on a shared
    disk a process of another machine may be writing. locked: no other process can be.
    """
    for part in folder.glob(f".{name}.*"):
        pid = part.suffix[1:]
        try:
            found = part.lstat()
            if not pid.isdigit() or not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                continue
            if locked or (time.time() - found.st_mtime > FRESH_SECONDS and not _runs(int(pid))):
                part.unlink()
        except FileNotFoundError:  # its process has just finished
            continue


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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


def check_room(folder: Path, need: int, what: str, other: str = "set LCFBENCH_CACHE to a folder") -> None:
    """Raises UserError unless the disk of a folder has that many bytes free."""
    if (free := shutil.disk_usage(folder).free) < need:
        raise UserError(
            f"{what} needs {need / 1e9:.1f} GB; the disk of {folder} has {free / 1e9:.1f} GB free.",
            f"Free some space, or {other} on another disk.",
        )


@contextmanager
def locked(place: Path, wait: bool = False, busy: str = "") -> Iterator[None]:
    """Holds a file or folder that is to be written against other processes.

    The lock is a file beside it, which the system frees when its process ends, however it ends. wait:
    wait for the other process instead of giving up. busy: what the error says of the other process.
    Raises UserError where another process holds it, and on a file system without locks.
    """
    with writing(place):
        real = Path(os.path.realpath(place))  # a link to a folder is that folder
        path = real.with_name(f".{real.name}.lock")
        missing = [folder for folder in path.parents if not folder.exists()]
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except FileNotFoundError:  # another process has just removed the empty folder
                continue
            try:
                fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if path.exists() and os.path.samestat(path.stat(), os.fstat(held)):
                    break
                os.close(held)  # its last owner has just removed it
            except BlockingIOError as error:
                os.close(held)
                what = busy or f"another process is writing {place}."
                raise UserError(what, "Wait until it ends, or name another --out.") from error
            except OSError as error:
                os.close(held)
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                what = f"the file system of {place} has no locks."
                raise UserError(what, "Name an --out on a local disk.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)
        with suppress(OSError):  # folders in which something was made stay
            for folder in missing:
                folder.rmdir()


@contextmanager
def replacing(folder: Path, own: Collection[str] = ()) -> Iterator[Path]:
    """Gives an empty folder; when the block ends well, its files replace those in `folder`, all or none.

    Other files of `folder` stay, but for those named in `own`. The exchange begins with one rename; one
    that a kill cuts short is finished by `settle`, or here. The caller holds the lock.
    """
    with writing(folder):
        folder = Path(os.path.realpath(folder))
        finish(folder)
        made = folder / PART if folder.is_dir() else folder.with_name(f".{folder.name}{PART}")
        shutil.rmtree(made, ignore_errors=True)  # of a killed process
        made.mkdir(parents=True)
    try:
        yield made
        with writing(folder):
            for name in own:  # an empty folder in the place of a file that goes
                if not (made / name).exists() and (folder / name).exists():
                    (made / name).mkdir()
            for path in (*(p for p in made.iterdir() if p.is_file()), made):
                handle = os.open(path, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
            if folder.is_dir():
                os.rename(made, folder / READY)
                finish(folder)
            else:
                os.rename(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def finish(folder: Path) -> None:
    """Finishes an exchange of `replacing` that has begun, and removes a killed process's parts.

    The caller holds the lock.
    """
    remove_stale(folder, locked=True)
    ready = folder / READY
    for path in sorted(ready.iterdir()) if ready.is_dir() and not ready.is_symlink() else ():
        if path.is_dir():
            (folder / path.name).unlink(missing_ok=True)
            path.rmdir()
        else:
            os.replace(path, folder / path.name)
    if ready.is_dir():
        ready.rmdir()


def settle(folder: Path) -> None:
    """Waits for an exchange of `replacing`, or finishes that of a killed process. Raises UserError."""
    for left in reversed(range(100)):
        if not (folder / READY).is_dir():
            return
        try:
            with locked(folder), writing(folder):
                finish(Path(os.path.realpath(folder)))
        except UserError:
            if not left:
                raise
            time.sleep(0.05)


def held(path: Path) -> bool:
    """Returns whether a process holds the lock of a file; true where the file system has no locks."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_inside(path: Path, home: Path, largest: int, step: str) -> None:
    """Raises UserError for a file that is missing, too large, no regular file, or a link out of `home`.

    The Hub's cache keeps the content of a snapshot's files in `blobs`, beside `snapshots`. step: the
    next step of the error.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'no file' if path.exists() else 'missing'}.", step)
    real, root = path.resolve(), home.resolve()
    blobs = [p.parent / "blobs" for p in root.parents if p.name == "snapshots"]
    if not any(real.is_relative_to(place) for place in (root, *blobs)):
        raise UserError(f"{path} is a link out of its folder.", "Put the file itself there.")
    if (size := path.stat().st_size) > largest:
        raise UserError(f"{path} has {size:,} bytes; it should have {largest:,} at most.", step)


# -- files that a user names: a report, a figure, a JSON line ----------------------------------------

RECORDED = ("manifest.json", "samples.jsonl", "training.jsonl", "pruning.json", "config.json")
RECORDED_ENDINGS = (".parquet", ".safetensors", ".gguf")
FIGURE = ".figure.parquet"  # ending of the numbers of a figure, which are no samples


def check_output(path: Path) -> bool:
    """Returns whether a file to be written is a stream: a device, a pipe or stdout itself.

    Raises UserError where it cannot be written: a folder, a disk, recorded data, no permission.
    """
    try:
        mode = path.stat().st_mode if path.exists() else None
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if mode is not None and stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder.", "Name a file.")
        if mode is not None and stat.S_ISBLK(mode):
            raise UserError(f"{path} is a disk.", "Name a file.")
        if mode is not None and (not stat.S_ISREG(mode) or standard_stream(path)):
            return True
        endings = (p.suffix for p in (path, target) if not p.name.endswith(FIGURE))
        if any(p.name in RECORDED for p in (path, target)) or any(x in RECORDED_ENDINGS for x in endings):
            what = f"{path} has the name of recorded data, which nothing else may replace."
            raise UserError(what, "Name another file.")
        folder = next(p for p in target.parents if p.exists())
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK) or (mode is not None and not os.access(target, os.W_OK)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.", "Name another file.") from error
    return False


def write_output(path: Path, data: bytes) -> None:
    """Writes a file that a user named: whole or not at all, its folder made, links followed.

    A device or a pipe gets the data as a stream; its reader may leave. Raises UserError.
    """
    stream = check_output(path)
    try:
        if standard := standard_stream(path):
            standard.flush()
            with open(os.dup(standard.fileno()), "wb") as file:
                file.write(data)
        elif stream:
            with open(os.open(path, os.O_WRONLY), "wb") as file:
                file.write(data)
        else:
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = target.stat().st_mode if target.exists() else None
            write(target, data)
            if mode is not None:
                target.chmod(stat.S_IMODE(mode))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and stream:  # its reader left
            return
        raise UserError(f"cannot write {path}: {error.strerror or error}.", "Name another file.") from error


def standard_stream(path: Path) -> IO[str] | None:
    """Returns stdout or stderr where a path leads to the same place, such as /dev/stdout."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except (OSError, ValueError, AttributeError):  # closed, or no file at all
            continue
    return None

"""Writing files: whole or not at all, with one clear line when the disk refuses."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lcfbench import ownership
from lcfbench.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

    from lcfbench.ownership import Owner

PART, READY = ".part", ".ready"  # files being made; files that are whole and move into their folder
LOCK = ".lock"


def write(path: Path, data: Buffer) -> None:
    """As `whole`, for bytes that are there."""
    with whole(path) as file:
        file.write(data)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file that becomes `path` when the block ends well: a reader never sees half of it.

    Raises LostError where this process was the owner of its place and another took over.
    """
    owner = ownership.owner_of(path)
    if owner is None:
        remove_stale(path.parent, glob.escape(path.name))
        part = path.with_name(f".{path.name}.{_own_suffix(path.parent)}")
        try:
            with open(part, "wb") as file:
                yield file
                _sync(file)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return
    name = f"{secrets.token_hex(6)}{PART}"
    try:
        with owner.still() as folder:
            file = open(folder / name, "wb")  # noqa: SIM115
        with file:
            yield file
            _sync(file)
        owner.put(name, path)
    except BaseException:
        with suppress(OSError):  # the disk is full: nothing may lie there for long
            (owner.folder / name).unlink(missing_ok=True)
        raise


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _own_suffix(folder: Path) -> str:
    return f"{os.getpid()}-{ownership.home_of(folder)}"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As `write`, for a readable JSON file."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n")


def remove_stale(folder: Path, name: str = "*", locked: bool = False) -> None:
    """Removes the parts of files that `write` of a killed process left in a folder.

    Only those of processes of this system that are gone: on a shared disk a process of another machine
    may be writing. locked: no other process can be.
    """
    for part in folder.glob(f".{name}.*"):
        pid, _, home = part.suffix[1:].partition("-")
        if not pid.isdigit() or not (home or locked):  # earlier versions named no home
            continue
        try:
            if stat.S_ISREG(part.lstat().st_mode) and (
                locked or (home == ownership.home_of(folder) and ownership.gone(int(pid)))
            ):
                part.unlink()
        except FileNotFoundError:  # its process has just finished
            continue


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


def lock_of(place: Path) -> Path:
    """Returns the lock of a file or folder: beside it, or in it where it is a disk of its own."""
    real = Path(os.path.realpath(place))  # a link to a folder is that folder
    return real / LOCK if os.path.ismount(real) else real.with_name(f".{real.name}{LOCK}")


@contextmanager
def locked(
    place: Path, wait: bool = False, busy: str = "", say: Callable[[str], None] | None = None
) -> Iterator[Owner]:
    """Makes this process the owner of a file or folder that is to be written.

    wait: wait for the other process instead of giving up. busy: what the error says of it. say: is told
    of a wait. Raises HeldError where another process is the owner.
    """
    with writing(place):
        real, path = Path(os.path.realpath(place)), lock_of(place)
        busy = busy or f"another process is writing {place}"
        missing = [folder for folder in path.parents if not folder.exists()]
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                owner = ownership.when_free(lambda: ownership.acquire(path, real, busy), wait, say)
                break
            except FileNotFoundError:  # another process has just removed the empty folder
                continue
    try:
        yield owner
    finally:
        owner.release()
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
        place, name = (folder, ".") if folder.is_dir() else (folder.parent, f".{folder.name}.")
        for left in place.glob(f"{glob.escape(name)}{'?' * 12}{PART}"):  # of a killed process
            shutil.rmtree(left, ignore_errors=True)
        made = place / f"{name}{secrets.token_hex(6)}{PART}"
        made.mkdir(parents=True)
    try:
        yield made
        with writing(folder):
            for name in own:  # an empty folder in the place of a file that goes
                if not (made / name).exists() and (folder / name).exists():
                    (made / name).mkdir()
            for path in (*(p for p in made.iterdir() if p.is_file()), made):
                sync(path)
            inside = folder.is_dir()
            with still(folder):
                os.rename(made, folder / READY if inside else folder)
            if inside:
                finish(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def finish(folder: Path) -> None:
    """Finishes an exchange of `replacing` that has begun, and removes a killed process's parts.

    The caller holds the lock.
    """
    remove_stale(folder, locked=True)
    ready = folder / READY
    for path in sorted(ready.iterdir()) if ready.is_dir() and not ready.is_symlink() else ():
        with still(folder):
            if path.is_dir():
                (folder / path.name).unlink(missing_ok=True)
                path.rmdir()
            else:
                os.replace(path, folder / path.name)
    if ready.is_dir():
        ready.rmdir()


def still(path: Path) -> AbstractContextManager[object]:
    """Keeps this process the owner of the place of a path, if it is; raises LostError if it was."""
    owner = ownership.owner_of(path)
    return nullcontext() if owner is None else owner.still()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk; not all systems can do that of folders."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:
        if folder:  # Windows opens none
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


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
    """As `output`, for bytes that are there."""
    with output(path) as file:
        file.write(data)


@contextmanager
def output(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file that a user named: written whole or not at all, its folder made, links followed.

    A device or a pipe gets the data as a stream; its reader may leave. Raises UserError.
    """
    stream = check_output(path)
    try:
        if standard := standard_stream(path):
            standard.flush()
            with open(os.dup(standard.fileno()), "wb") as file:
                yield file
        elif stream:
            with open(os.open(path, os.O_WRONLY), "wb") as file:
                yield file
        else:
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = target.stat().st_mode if target.exists() else None
            with whole(target) as file:
                yield file
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

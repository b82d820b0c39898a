"""Who writes a place: one process of all machines that share the folder.

>>> owner = acquire(folder / ".lock", "the run is being written")             # doctest: +SKIP
>>> owner.confirm(); owner.release()                                          # doctest: +SKIP

The owner is the name of a folder in the place's lock, `.lock/<record>`: host, process, since when. A lock
with its record appears by one rename, which fails where a record is. Its owner renames the record every
few seconds (a beat). A dead record is taken away under the name that was seen, so a beat in between saves
it, and one taker is the first to put its own. A former owner's name is gone: to rename a file out of its
record or into it fails. No lock of the system is used, no hard link, and no content that may be torn.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import secrets
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from lcfbench.errors import UserError

STALE_SECONDS = 60.0  # without a beat: an owner that cannot be looked up counts as dead
BEAT_SECONDS = 5.0
WAIT_SECONDS = 0.2
T = TypeVar("T")
TRIES = 200  # of steps that another process made void


def stale_seconds() -> float:
    """Returns `$LCFBENCH_STALE_SECONDS`, else 60. Raises UserError."""
    text = os.environ.get("LCFBENCH_STALE_SECONDS") or str(STALE_SECONDS)
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.1 <= found <= 1e6:
        raise UserError(f"LCFBENCH_STALE_SECONDS={text!r} is no number of seconds, 0.1 to a million.", "")
    return found


@dataclass(frozen=True)
class Record:
    """An owner as its folder's name says it.

    since: seconds of the owner's clock, for display. beat: seconds between two beats. started: of the
    process, as its system counts. home: among which processes of which folder pid is looked up.
    count: of beats.
    """

    since: int
    beat: float
    pid: int
    started: str
    home: str
    token: str
    count: int
    host: str

    @cached_property  # one text: a path keeps its parts in a table that grows with every new one
    def name(self) -> str:
        host = quote(self.host, safe="")[:60]
        first = f"{self.since}~{self.beat:g}~{self.pid}~{self.started}~{self.home}"
        return f"{first}~{self.token}~{self.count}~{host}"

    @classmethod
    def read(cls, name: str) -> Record | None:
        """Returns the record of a name; None where it is none."""
        try:
            since, beat, pid, started, home, token, count, host = name.split("~")
            found = cls(int(since), float(beat), int(pid), started, home, token, int(count), unquote(host))
        except ValueError:
            return None
        return found if found.token and 0 < found.pid < 1 << 31 and 0 < found.beat < 1e6 else None

    def __str__(self) -> str:
        try:
            since = f" since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%S} UTC"
        except (ValueError, OverflowError, OSError):
            since = ""
        return f"process {self.pid} on {self.host}{since}"


class HeldError(UserError):
    """Another process owns the place. record: that process, where its record can be read."""

    def __init__(self, busy: str, path: Path, record: Record | None) -> None:
        step = "Wait until it ends (--wait), or name another --out."
        super().__init__(f"{busy} ({record})." if record else f"{busy}.", step)
        self.path, self.record = path, record


class LostError(UserError):
    """Another process took the place over, or its lock was removed."""

    def __init__(self, path: Path) -> None:
        taker = next((record for name in names(path) if (record := Record.read(name))), None)
        by = f"was taken over by {taker}" if taker else "is gone"
        super().__init__(
            f"{path} {by}: this process writes no more there.",
            "What it recorded stays. Repeat the command if the other process ends before it is done.",
        )


# -- processes ----------------------------------------------------------------------------------------


@cache
def _system() -> str:
    """Names the processes that can be looked up here: the system since it booted, and the pid namespace.

    It is another name at each start of Python where the system does not say.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    unknown = sys.platform == "linux" or uuid.getnode() >> 40 & 1  # a random number is no address
    return secrets.token_hex(8) if unknown else f"{sys.platform} {uuid.getnode()}"


def home_of(folder: Path) -> str:
    """Names the system and the folder: a copy of a lock says nothing of its new folder's owner."""
    return f"{_short(_system())}-{_short(f'{_system()} {folder.stat().st_ino}')}"


def _ended(record: Record) -> bool:
    """Says whether an owner was a process of this system and is gone, wherever its lock was copied."""
    own = record.home.partition("-")[0] == _short(_system())
    return own and gone(record.pid, record.started)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def started(pid: int) -> str | None:
    """Returns when a process of this system started; None where it is gone, "" where it is not said."""
    if os.name == "posix":
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return None
        except PermissionError:  # another user's
            pass
    if os.path.exists("/proc/self/stat"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # other users' processes may be hidden
            return ""
        return None if fields[0] in (b"Z", b"X", b"x") else fields[19].decode()
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.3f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return ""


def gone(pid: int, since: str = "") -> bool:
    """Says whether a process of this system has ended. since: when it started, as `started` says it."""
    now = started(pid)
    return now is None or bool(since and now and since != now)


# -- the lock of a place ------------------------------------------------------------------------------


def names(path: Path) -> list[str]:
    """Returns what lies in a lock, in order; nothing where nobody holds it."""
    for left in reversed(range(3)):  # a listing beside a rename may have neither name
        try:
            found = sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno != errno.ESTALE or not left:
                raise
            continue
        if found:
            return found
    return []


class Observer:
    """Tells the dead from the living by what it saw itself: clocks of other machines say nothing.

    A process of the same system is looked up. Of others a beat must come within `STALE_SECONDS`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.stale = path, stale_seconds()
        self._seen: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def look(self) -> tuple[list[str], Record | None, bool | None]:
        """Returns the names in the lock, its owner, and whether it lives: None where only time can tell."""
        found, now = names(self.path), time.monotonic()
        self._seen = {name: self._seen.get(name, now) for name in found}
        records = [Record.read(name) for name in found]
        counts: dict[str, int] = {}  # a copy of a lock may have records of several moments
        for each in filter(None, records):
            counts[each.token] = max(each.count, counts.get(each.token, 0))
        beating = {token for token, count in counts.items() if count > self._counts.get(token, count)}
        self._counts |= counts
        owner, lives = None, False if found else None
        for name, record in zip(found, records, strict=True):
            state = self._state(record, beating, now - self._seen[name])
            if state is not False:
                return found, record, state
            owner = owner or record
        return found, owner, lives

    def _state(self, record: Record | None, beating: set[str], quiet: float) -> bool | None:
        if record is not None:
            if _ended(record):
                return False
            with suppress(FileNotFoundError):
                if is_local(record, self.path):
                    return record.pid != os.getpid() or record.token in _owners
            if record.token in beating:
                return True
        patience = max(self.stale, 3 * record.beat) if record else self.stale
        return None if quiet < patience else False


@dataclass
class Owner:
    """This process as the owner of a place, a file or a folder.

    path: the place's lock. feared: whether a former owner may live, and have files open.
    """

    path: Path
    place: Path
    record: Record
    feared: bool = False
    lost: bool = False
    beaten: float = field(default_factory=time.monotonic)
    _guard: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def folder(self) -> Path:
        """The folder that the owner alone has. Its name changes with each beat."""
        return self.path / self.record.name

    def beat(self) -> None:
        """Gives a sign of life; notices where another process took over. Raises OSError."""
        with self._guard:
            if self.lost:
                return
            after = replace(self.record, count=self.record.count + 1)
            try:
                os.rename(self.folder, self.path / after.name)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                    raise
                if not (self.path / after.name).is_dir():  # a file server may do it and lose its answer
                    self.lost = True
                    return
            self.record, self.beaten = after, time.monotonic()

    def confirm(self) -> None:
        """Raises LostError unless this process is the owner still, OSError where that cannot be seen."""
        if self.record.pid != os.getpid():
            raise LostError(self.path)
        with self._guard:
            if time.monotonic() - self.beaten > 2 * self.record.beat:  # paused, or the disk was away
                self.beat()
            elif not self.folder.is_dir():
                self.lost = True
            if self.lost:
                raise LostError(self.path)

    @contextmanager
    def still(self) -> Iterator[Path]:
        """Gives the owner's folder, which no beat renames meanwhile. Raises LostError.

        A rename out of it or into it is the owner's alone: for a former one its name is gone.
        """
        self.confirm()
        with self._guard:
            try:
                yield self.folder
            except FileNotFoundError:
                self.confirm()
                raise

    def put(self, name: str, target: Path) -> None:
        """Moves a file of the owner's folder to `target`."""
        with self.still() as folder:
            _move(folder / name, target)

    def remove(self, target: Path) -> None:
        """Removes a file that may be there."""
        with self.still() as folder:
            if os.path.lexists(target):
                _move(target, folder / ".removed")
                (folder / ".removed").unlink()

    def release(self) -> None:
        """Gives the place up, if this process has it still. A lock that stays is dead with its process."""
        if self.record.pid != os.getpid():
            return
        with _beats:
            _owners.pop(self.record.token, None)
        with self._guard, suppress(OSError):
            mine, self.lost = self.folder, True
            shutil.rmtree(mine, ignore_errors=True)
            if mine.exists():  # a file server keeps a file for its readers
                _remove(mine)
            self.path.rmdir()


def _move(source: Path, target: Path) -> None:
    """Renames a file; on Windows it waits a moment for readers, which keep it from that."""
    for left in reversed(range(20)):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if sys.platform != "win32" or not left:
                raise
            time.sleep(0.1)


def acquire(path: Path, place: Path, busy: str) -> Owner:
    """Becomes the owner of a place, at once or when its owner has died. path: the place's lock.

    busy: what the error says first. Raises HeldError where another process lives, which takes as long
    as a beat to see where it is of another system, and OSError where the folder cannot be written.
    """
    tries, feared = 0, False
    place, path = Path(os.path.realpath(place)), Path(os.path.realpath(path.parent), path.name)
    observer = Observer(path)
    beat, pid = min(BEAT_SECONDS, observer.stale / 6), os.getpid()
    while tries < TRIES:
        _remove_file(path)
        found, record, lives = observer.look()
        if lives:
            raise HeldError(busy, path, record)
        if found and lives is None:
            time.sleep(beat / 4)
            continue
        home = home_of(path.parent)
        if not found:
            token, host = secrets.token_hex(6), platform.node() or "?"
            own = Record(int(time.time()), beat, pid, started(pid) or "", home, token, 0, host)
            if _create(owner := Owner(path, place, own, feared)):
                return owner
        for name in found:
            dead = Record.read(name)
            feared |= dead is None or (dead.home != home and not _ended(dead))
            _remove(path / name)
        tries += 1
        time.sleep(0.001 * secrets.randbelow(1 + min(tries, 50)))
    raise OSError(errno.EBUSY, f"{path} changes all the time")


def when_free(
    take: Callable[[], T], wait: bool, say: Callable[[str], None] | None = None, last: bool = False
) -> T:
    """Returns what `take` gives. wait: as often as it raises HeldError, tries again; `say` is told once.

    Of two processes that each own what the other waits for, none would go on: a process waits only for
    places that come after its own, in the order of their paths. last: no owner of this place waits for
    another one.
    """
    while True:
        try:
            return take()
        except HeldError as held:
            if not wait or (not last and any(owner.path >= held.path for owner in _owners.values())):
                raise
            if say:
                say(f"{held.what} Waiting.")
            say = None
            time.sleep(WAIT_SECONDS)


def _remove_file(path: Path) -> None:
    """Removes the empty file that earlier versions locked in this place."""
    if path.is_file() and not path.is_symlink() and not path.stat().st_size:
        path.unlink(missing_ok=True)


def _create(owner: Owner) -> bool:
    """Puts a lock into a place that has none, or an empty one; says whether it was the first."""
    path, token = owner.path, owner.record.token
    made = path.with_name(f"{path.name}.{token}")
    with _beats:
        _owners[token] = owner
    try:
        made.mkdir()
        (made / owner.record.name).mkdir()
        os.rename(made, path)
    except FileNotFoundError:  # an owner took it for left over, or the parent is gone
        path.parent.stat()
    except OSError as error:
        there = error.errno in (errno.EEXIST, errno.ENOTEMPTY)  # or it was, a moment ago
        if not there and (error.errno != errno.EACCES or not path.is_dir()):
            raise
        _remove_empty(path)  # such a folder cannot be replaced everywhere
    finally:
        shutil.rmtree(made, ignore_errors=True)
        first = owner.folder.is_dir()
        if not first:
            with _beats:
                _owners.pop(token, None)
    if not first:
        return False
    for left in path.parent.glob(f"{glob.escape(path.name)}.*"):  # of killed processes
        if left.is_dir() and len(left.suffix) == 1 + len(token):
            shutil.rmtree(left, ignore_errors=True)
    _start_beats()
    return True


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
            raise


def _remove(path: Path) -> None:
    """Removes one name of a lock: all of it, or nothing where it has just been renamed by a beat."""
    away = path.parent.with_name(f"{path.parent.name}.{secrets.token_hex(6)}")
    try:
        os.rename(path, away)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EXDEV:  # a layer of a container
            raise
        away = path
    if away.is_dir() and not away.is_symlink():
        shutil.rmtree(away, ignore_errors=True)
    else:
        away.unlink(missing_ok=True)


def is_local(record: Record, path: Path) -> bool:
    """Says whether an owner is a process of this system. path: the lock that it has."""
    return record.home == home_of(path.parent)


def holders(paths: Iterable[Path]) -> dict[Path, Record | None]:
    """Returns the living owner of each place; None where a lock cannot be read. paths: their locks.

    A process of another system whose last beat seems old is watched for a beat: clocks may differ.
    """
    watched = {path: Observer(path) for path in paths}
    found: dict[Path, Record | None] = {}
    end: float | None = None
    while watched:
        for path, observer in list(watched.items()):
            try:
                _, record, lives = observer.look()
            except OSError:  # no lock, or one that this user may not see
                record, lives = None, False
            if lives is None and record is not None and end is None:
                lives = abs(time.time() - _changed(path)) < observer.stale or None
            if lives is not None or record is None or (end is not None and time.monotonic() > end):
                found[path] = record if lives else None
                del watched[path]
        if watched:
            end = end or time.monotonic() + 1.5 * BEAT_SECONDS
            time.sleep(0.1)
    return found


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def owner_of(path: Path) -> Owner | None:
    """Returns this process as the owner of the place that `path` is, or lies in."""
    if not _owners:
        return None
    real = Path(os.path.realpath(path))
    found = [owner for owner in list(_owners.values()) if real.is_relative_to(owner.place)]
    return max(found, key=lambda owner: len(owner.place.parts), default=None)


# -- beats --------------------------------------------------------------------------------------------

_owners: dict[str, Owner] = {}  # of this process, by token
_beats = threading.Condition()  # guards both
_thread: threading.Thread | None = None


def _start_beats() -> None:
    global _thread
    with _beats:
        if _thread is None:
            _thread = threading.Thread(target=_keep_beating, name="lcfbench-owner", daemon=True)
            _thread.start()
        _beats.notify_all()


def _keep_beating() -> None:
    global _thread
    while True:
        with _beats:
            if not _owners:
                _thread = None
                return
            owners = list(_owners.values())
            _beats.wait(min(owner.record.beat for owner in owners) / 2)
        for owner in owners:
            if time.monotonic() - owner.beaten >= owner.record.beat:
                with suppress(OSError):  # it is tried again soon; `confirm` raises it
                    owner.beat()


def _forget() -> None:
    """A fork owns nothing, and no thread of its parent runs in it."""
    global _thread, _beats
    _owners.clear()
    _thread, _beats = None, threading.Condition()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

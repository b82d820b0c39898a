"""The processes of one training: they start from the same, and where one ends, all end with one message.

The first one prints and writes; the others only compute. Each gives signs of life in torch's store. One
that fails leaves its reason there; one that was killed, stopped or hangs is noticed by the others.

>>> with joined(lambda: accelerator_of(recipe)) as group: ...                 # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lcfbench.errors import Exit, UserError
from lcfbench.tables import printable

if TYPE_CHECKING:
    from accelerate import Accelerator

BEAT = 1.0  # seconds between two signs of life
DEAD = 20  # beats of this process without one of another
HUNG = 900  # beats in which another process that this one waits for gets no further
GRACE, LONG_GRACE = 3, 30  # beats to end by itself: for a process that waits for others, and at work
PATIENCE = 10.0  # seconds in which the first process prints a message
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
NUMBERS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
AGAIN = "The same command goes on from the last checkpoint."
T = TypeVar("T")
_trainings = itertools.count()  # of this process: each has keys of its own in the store


def _variable(names: tuple[str, ...], default: int) -> int:
    found = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in found if text.isdecimal()), default)


def count() -> int:
    """Returns the number of processes that a launcher (`accelerate launch`, torchrun, MPI) started."""
    return _variable(SIZES, 1) if _variable(NUMBERS, -1) >= 0 else 1


def number() -> int:
    """Returns the number of this process among them, from 0."""
    return _variable(NUMBERS, 0) if count() > 1 else 0


def local() -> int:
    """Returns the number of this process among those of its machine, from 0."""
    return _variable(LOCAL, number()) if count() > 1 else 0


def check_launch(wanted: int | None = None) -> None:
    """Raises UserError where a launcher started another number of processes than it was asked for.

    `accelerate launch --cpu --num_processes 2` sets up an address for two, and starts one.
    """
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if asked and count() == 1:
        raise UserError(
            "`accelerate launch --cpu` starts one process, however many it is asked for.",
            "Use `lcfbench train --processes N`, or `accelerate launch --multi_gpu`, on CPUs too.",
        )
    if wanted is not None and wanted != count() > 1:
        raise UserError(
            f"--processes {wanted}: a launcher has started {count()} already.",
            "Leave --processes out, or the launcher.",
        )


class FailedError(UserError):
    """Another process of the training failed as the code says."""

    code = Exit.FAILED


class OtherEndedError(Exception):
    """Another process ended the training. record: what it said, or is said of it."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        super().__init__(record["what"])


class Group:
    """The processes of a training. number: of this one, from 0. count: of all. Of one there is no store."""

    def __init__(self, number: int = 0, count: int = 1, store: Any = None) -> None:
        self.number, self.count, self._store = number, count, store
        self._beats = self._steps = self._misses = 0
        self._waits = False
        self._heard: dict[str, Any] | None = None
        self._over = threading.Event()
        self._seen: dict[
            int, tuple[list[int], int, int]
        ] = {}  # sign of another, beats without one, without steps
        self._known: dict[int, dict[str, Any]] = {}
        self._system = _system()
        if store is not None:
            store.set_timeout(timedelta(seconds=10))
            own = {"system": self._system, "pid": os.getpid(), "began": _began(os.getpid())}
            store.set(f"who/{number}", json.dumps(own | {"host": platform.node()}))
            self._thread = threading.Thread(target=self._watch, name="lcfbench-processes", daemon=True)
            self._thread.start()

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.number == 0

    # -- together ----------------------------------------------------------------------------------

    def step(self) -> None:
        """Notes that this process gets on. Raises OtherEndedError where another has ended."""
        self._steps += 1
        if self._heard is not None:
            raise OtherEndedError(self._heard)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Marks that this process waits for the others. Raises OtherEndedError where one has ended."""
        if self._heard is not None:
            raise OtherEndedError(self._heard)
        self._waits = True
        try:
            yield
        except RuntimeError as error:  # the connection to another process broke
            for _ in range(round((DEAD + GRACE) * BEAT / 0.1)) if self._store is not None else ():
                if self._heard is not None:
                    raise OtherEndedError(self._heard) from error
                time.sleep(0.1)
            raise
        finally:
            self._waits = False
            self._steps += 1

    def share(self, value: T) -> T:
        """Returns the first process's value in all."""
        if self.count == 1:
            return value
        import torch

        box = [value]
        with self.waiting():
            torch.distributed.broadcast_object_list(box, 0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, in their order."""
        if self.count == 1:
            return [value]
        import torch

        box: list[Any] = [None] * self.count
        with self.waiting():
            torch.distributed.all_gather_object(box, value)
        return box

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raises UserError where a process starts from other things than the first one."""
        hosts = self.gather((platform.node(), dict(facts)))
        for other, (host, found) in enumerate(hosts):
            if names := [name for name, fact in facts.items() if hosts[0][1][name] != found[name]]:
                pairs = "; ".join(f"{name}: {hosts[0][1][name]} and {found[name]}" for name in names)
                raise UserError(
                    f"process {other} ({host}) has other {', '.join(names)} than process 0 ({hosts[0][0]}).",
                    f"Give all processes the same files, versions and settings. {pairs}.",
                )

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Waits until all processes have done their part; the first one is the last to do so."""
        if self._store is None:
            return
        others = [n for n in range(self.count) if n != self.number]
        if not self.first:
            self._store.set(f"done/{self.number}", "")
        self._wait(lambda: all(self._check(f"done/{n}") for n in (others if self.first else [0])))
        if self.first:
            self._store.set("done/0", "")
            end = time.monotonic() + PATIENCE  # it may be the store that ends with this process
            while self._store.add("parted", 0) < len(others) and time.monotonic() < end:
                time.sleep(0.05)
        else:
            self._store.add("parted", 1)

    def close(self) -> None:
        """Stops the signs of life."""
        self._over.set()
        if self._store is not None and threading.current_thread() is not self._thread:
            self._thread.join(5)

    def fail(self, error: BaseException) -> NoReturn:
        """Tells the others why this process ends. The first one raises what is to be said; others exit."""
        if self._store is None:
            raise error
        if isinstance(error, KeyboardInterrupt):  # perhaps the launcher's, because another one ended
            self._heard = self._heard or self._look()
        if isinstance(error, OtherEndedError) or (isinstance(error, KeyboardInterrupt) and self._heard):
            record = error.record if isinstance(error, OtherEndedError) else self._heard
            assert record is not None
            if record["code"] != Exit.INTERRUPTED or not isinstance(error, KeyboardInterrupt):
                error = _as_error(record)
        else:
            record = self._record_of(error)
            self._publish(record)
        self.close()
        if record.get("printed") == self.number:
            raise error
        try:
            if self.first and self._claims(record):
                raise error from None
            if not self.first:
                self._see_told(record)
        except KeyboardInterrupt:  # the launcher ends all
            if error.__class__ is KeyboardInterrupt and self.first:
                raise
        sys.exit(int(record["code"]))

    def _record_of(self, error: BaseException) -> dict[str, Any]:
        where = f"process {self.number} of {self.count} ({platform.node()}): "
        if isinstance(error, KeyboardInterrupt):
            return {"what": "interrupted.", "step": "", "code": int(Exit.INTERRUPTED)}
        if isinstance(error, UserError):
            where = "" if self.first else where
            return {"what": where + error.what, "step": error.next_step, "code": int(error.code)}
        what = f"{where}{type(error).__name__}: {error}"  # a bug: its traceback is printed where it is
        return {"what": what, "step": "", "code": int(Exit.FAILED), "printed": self.number}

    def _publish(self, record: dict[str, Any]) -> None:
        try:
            self._store.compare_set("failed", "", json.dumps(record))
        except RuntimeError:  # the store's process is gone: the others notice that
            self._misses += 1

    def _claims(self, record: dict[str, Any]) -> bool:
        """Says whether it is this process that prints the message."""
        try:
            return "printed" not in record and self._store.add("told", 1) == 1
        except RuntimeError:  # the store has ended with its process
            return "printed" not in record and self.number in (0, record.get("speaker"))

    def _see_told(self, record: dict[str, Any]) -> None:
        """Waits until the first process has printed the message and ended; prints it where it cannot."""
        end, told = time.monotonic() + PATIENCE, False
        while time.monotonic() < end:
            try:
                told = told or self._store.add("told", 0) > 0  # asked no more: the store may end
            except RuntimeError:
                break
            if self._gone(0) or "printed" in record:
                break
            time.sleep(0.1)
        if not told and self._claims(record):
            _tell(record)

    def _check(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not ready():
            if self._heard is not None:
                raise OtherEndedError(self._heard)
            time.sleep(0.05)

    # -- signs of life -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Gives a sign each second, looks for those of others, and ends a process that cannot end itself."""
        left = 0
        while not self._over.wait(BEAT):
            self._heard = self._heard or self._look()
            if self._heard is None:
                continue
            left += 1
            if left > (GRACE if self._waits else LONG_GRACE):
                self._over.set()
                if not self.first:
                    self._see_told(self._heard)
                elif self._claims(self._heard):
                    _tell(self._heard)
                sys.stderr.flush()
                os._exit(int(self._heard["code"]))

    def _look(self) -> dict[str, Any] | None:
        """Gives a sign of life; returns why the training ends, None while it goes on."""
        others = range(1, self.count) if self.first else [0]
        try:
            self._beats += 1
            self._store.set(f"life/{self.number}", json.dumps([self._beats, self._steps, int(self._waits)]))
            if self._check("failed"):
                return json.loads(self._store.get("failed"))
            for other in others:
                if not self._check(f"done/{other}") and (end := self._ended(other)):
                    if self._check("failed"):  # it said why meanwhile
                        return json.loads(self._store.get("failed"))
                    self._publish(end)
                    return end
            self._misses = 0
        except RuntimeError as error:  # torch's DistError: no answer from the store
            for other in others:
                if self._gone(other):
                    return self._dead(other) | {"speaker": 1}
            self._misses += 1
            if self._misses >= 3:
                why = " ".join(str(error).split())[:120]
                what = "the process that started this training is gone"
                return {"what": f"{what} ({why}).", "step": AGAIN, "code": int(Exit.USER)}
        return None

    def _ended(self, other: int) -> dict[str, Any] | None:
        """Returns what is said of another process that has ended, is stopped or hangs."""
        if other not in self._known:
            if not self._check(f"who/{other}"):
                return None
            self._known[other] = json.loads(self._store.get(f"who/{other}"))
        if self._gone(other):
            return self._dead(other)
        if not self._check(f"life/{other}"):
            return None
        sign = json.loads(self._store.get(f"life/{other}"))
        before, quiet, still = self._seen.get(other, (sign, 0, 0))
        quiet = quiet + 1 if sign[0] == before[0] else 0
        works = sign[1] > 0 and not sign[2] and self._waits
        still = still + 1 if works and sign[1] == before[1] else 0
        self._seen[other] = sign, quiet, still
        if quiet > DEAD:
            return self._of(other, f"gave no sign of life for {round(quiet * BEAT)} s (stopped, or cut off)")
        if still > HUNG:
            return self._of(other, f"got no further for {round(still * BEAT / 60)} min")
        return None

    def _dead(self, other: int) -> dict[str, Any]:
        step = "Its machine may be out of memory: lower --batch-size, or raise --accumulate. "
        return self._of(other, "ended without a word: it was killed", step)

    def _of(self, other: int, what: str, step: str = "") -> dict[str, Any]:
        host = self._known.get(other, {}).get("host", "?")
        text = f"process {other} of {self.count} ({host}) {what}."
        return {"what": text, "step": step + AGAIN, "code": int(Exit.USER)}

    def _gone(self, other: int) -> bool:
        who = self._known.get(other)
        return who is not None and who["system"] == self._system and _began(who["pid"]) != who["began"]


@contextmanager
def joined(start: Callable[[], Accelerator]) -> Iterator[Group]:
    """Gives the group of processes that a launcher started; where one of them fails, all end.

    start: connects them. Raises UserError in the first process only; the others exit without a word.
    """
    check_launch()
    if count() == 1:
        yield Group()
        return
    accelerator = start()
    from torch.distributed import PrefixStore
    from torch.distributed.distributed_c10d import _get_default_store

    default: Any = _get_default_store()  # a clone may be used by another thread
    store = PrefixStore(f"lcfbench/{next(_trainings)}", default.clone())
    group = Group(accelerator.process_index, accelerator.num_processes, store)
    try:
        yield group
        group.finish()
    except BaseException as error:
        group.fail(error)
    finally:
        group.close()


def _as_error(record: dict[str, Any]) -> BaseException:
    if record["code"] == Exit.INTERRUPTED:
        return KeyboardInterrupt()
    kind = FailedError if record["code"] == Exit.FAILED else UserError
    return kind(record["what"], record["step"])


def _tell(record: dict[str, Any]) -> None:
    sys.stderr.write(f"lcfbench: {printable(' '.join((record['what'], record['step'])).strip())}\n")
    sys.stderr.flush()


def _system() -> str:
    """Names the processes that can be looked up here: the system since it booted, and the pid namespace."""
    boot, names = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {os.readlink(names)}" if boot.exists() and names.exists() else ""


def _began(pid: int) -> str:
    """Returns when a process began, as its system counts; "" where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()

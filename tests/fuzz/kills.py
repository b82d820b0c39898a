"""Processes that end at a moment that is chosen: `lcfbench …` in a child, and what disturbs it there.

A step is a change of the disk below the folder that is watched: a file that is opened for writing,
written, synchronised, cut, renamed, linked or removed, a folder that is made or removed.

>>> done = disturbed(["run", "--recipe", "run.yaml"], cwd, Disturbance("stop", step=17, part="half"))
"""

from __future__ import annotations

import datetime
import errno
import functools
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import helpers

STEPS = ("open", "write", "fsync", "ftruncate", "rename", "replace", "link", "unlink", "remove")
STEPS += ("mkdir", "rmdir", "symlink", "chmod")
NEEDS_ROOM = ("open", "write", "fsync", "link", "mkdir", "symlink")
ENDS = 77  # exit code of a process that ended at its step
SIGNALS = ("KILL", "TERM", "INT", "HUP", "QUIT")


@dataclass(frozen=True)
class Disturbance:
    """How a command is disturbed.

    how: "nothing"; a signal's name; "worker": one of its worker processes is killed; "both": all of them
    and it are; "stop": it ends at its `step`; "full": from its `step` on no room is left; "refused": that
    one step has no room; "failing": the batches from its `step` on fail. seconds: of computing time, before
    a signal, which comes after `step` steps. part: of the step that it ends at: "before", "half" or
    "after". clock: seconds by which the child's clock goes wrong.
    """

    how: str = "nothing"
    step: int = 0
    seconds: float = 0.0
    part: str = "before"
    clock: float = 0.0
    more: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """The end of a command. steps: how many it took, where it ended by itself."""

    code: int
    out: str
    err: str
    steps: int
    seconds: float


def disturbed(args: list[str], cwd: Path, how: Disturbance, out: str = "out", wall: float = 300.0) -> Ended:
    """Runs `lcfbench …` in a child that is disturbed, and waits for its end. out: the watched folder."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.devnull, *(f"{folder}/{name}" for name in ("out", "err", "steps"))]
        for path in streams[1:]:
            Path(path).touch()
        env = helpers.environment(HF_HUB_OFFLINE="1", **how.env)
        asked = ([*args, *how.more], cwd, env, streams, how, cwd / out)
        child = helpers.forks().Process(target=_child, args=asked)
        child.start()
        child.join(wall)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise AssertionError(("hung", args, how, Path(streams[2]).read_text()[-3000:]))
        said = [Path(path).read_text(errors="replace") for path in streams[1:]]
        steps, _, seconds = said[2].partition(" ")
        return Ended(child.exitcode, said[0], said[1], int(steps or 0), float(seconds or 0))


def _child(
    args: list[str], cwd: Path, env: dict[str, str], streams: list[str], how: Disturbance, watched: Path
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    *standard, told = streams
    disturb(how, watched, told)
    helpers._forked(args, cwd, env, standard)


def disturb(how: Disturbance, watched: Path, told: str = os.devnull) -> None:
    """Prepares this process to be disturbed."""
    if how.clock:
        shift_clock(how.clock)
    if how.how == "failing":
        fail_from(how.step)
    taken = _watch_steps(how, os.path.realpath(watched), told)
    if how.how in (*SIGNALS, "worker", "both"):
        threading.Thread(target=_signal_later, args=(how, taken), daemon=True).start()


def _signal_later(how: Disturbance, taken: list[int]) -> None:
    end = time.process_time() + how.seconds
    while time.process_time() < end or taken[0] < how.step:
        time.sleep(0.001)
    if how.how in SIGNALS:
        os.kill(os.getpid(), signal.Signals[f"SIG{how.how}"])
    for pid in workers()[: 1 if how.how == "worker" else None]:
        os.kill(pid, signal.SIGKILL)
    if how.how == "both":
        os.kill(os.getpid(), signal.SIGKILL)


def workers() -> list[int]:
    """Processes that this one started to answer batches."""
    found = [int(pid) for p in Path("/proc/self/task").glob("*/children") for pid in p.read_text().split()]
    return [pid for pid in found if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def shift_clock(seconds: float) -> None:
    """The time of day is wrong by so many seconds; the clock that only counts on is not."""
    real, plain = time.time, datetime.datetime

    class Shifted(plain):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:  # type: ignore[override]
            return plain.now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real() + seconds
    from lcfbench import files

    files.datetime = Shifted


def fail_from(batch: int) -> None:
    """From so many batches on every document fails, as where another process took the memory."""
    from lcfbench.evaluation.run import Run

    respond, count = Run._respond, itertools.count()

    @functools.wraps(respond)
    def failing(self: Run, documents: Any) -> Any:
        if next(count) >= batch:
            raise MemoryError("taken by another process")
        return respond(self, documents)

    Run._respond = failing  # type: ignore[method-assign]


def _watch_steps(how: Disturbance, watched: str, told: str) -> list[int]:
    """Counts the steps, and disturbs one; returns a list that holds the number so far."""
    counter, taken, begun, leave = itertools.count(), [0], time.process_time(), os._exit
    lock = threading.RLock()

    def tell() -> None:
        with open(told, "w") as file:
            file.write(f"{taken[0]} {time.process_time() - begun}")

    def place(args: tuple[Any, ...], folder: int | None) -> str:
        if isinstance(args[0], int):
            return os.readlink(f"/proc/self/fd/{args[0]}")
        start = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) else os.getcwd()
        head, name = os.path.split(os.path.join(start, os.fsdecode(args[0])))
        return os.path.join(os.path.realpath(head), name)

    def stepping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            flags = args[1] if name == "open" and len(args) > 1 else 0
            reading = name == "open" and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            folder = kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
            if reading or not place(args, folder).startswith(watched):
                return real(*args, **kwargs)
            with lock:
                step = taken[0] = next(counter)
                if how.how == "stop" and step == how.step:
                    try:
                        if how.part == "after":
                            real(*args, **kwargs)
                        elif how.part == "half" and name == "write":
                            real(args[0], args[1][: len(args[1]) // 2])
                    finally:
                        leave(ENDS)
                full = step >= how.step if how.how == "full" else how.how == "refused" and step == how.step
                if full and name in NEEDS_ROOM:
                    if name == "write" and how.part == "half":
                        return real(args[0], args[1][: len(args[1]) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
                return real(*args, **kwargs)

        return call

    def leaving(code: int) -> None:
        tell()
        leave(code)

    for name in STEPS:
        setattr(os, name, stepping(name, getattr(os, name)))
    os._exit = leaving  # as every command ends in a forked process
    return taken


# -- what is on the disk -----------------------------------------------------------------------------


def recorded(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of every run below a folder, by run and document, read without the package.

    Fails for a document that has two answers, or an answer that a failure has replaced.
    """
    return {folder.name: dict(_rows(folder)) for folder in sorted(out.glob("*")) if folder.is_dir()}


def _rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import json

    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {}
    sealed = folder / "samples.parquet"
    rows = pq.ParquetFile(sealed).read().to_pylist() if sealed.exists() else []
    journal = folder / "samples.jsonl"
    if journal.exists():
        *lines, _ = journal.read_bytes().split(b"\n")
        rows += [json.loads(line) for line in lines]
    for row in rows:
        row = {name: value for name, value in row.items() if value is not None}
        before = found.get(row["doc_hash"])
        # a kill between the sealed file and the removal of the journal leaves both
        assert before in (None, row) or "error" in before, (folder, row["doc_hash"])
        found[row["doc_hash"]] = row
    yield from found.items()

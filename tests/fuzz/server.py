"""Runs `lcfbench …` many times: each in a child forked from one process that has the libraries imported.

A request is one line of JSON on stdin, its answer one line on stdout. The child has limits of time
and memory and no network. It notes what it opens for writing, removes, renames or starts.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MEMORY = 2 << 30  # bytes that a child may take beyond what it was born with
FILE = 1 << 30  # bytes of one file
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# event of sys.addaudithook → positions of paths among its arguments, and of the folders they start from
CHANGES = {
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
}
STOPS = (signal.SIGINT, signal.SIGTERM)
STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
PROGRAMS = ("git", "uname", "lscpu", "sysctl", "fc-list", "python")  # facts of the machine; pip


def warm_up() -> None:
    """Imports what the verbs import, so that each child is born with it."""
    import lcfbench

    for name in (
        "torch._dynamo",
        "matplotlib.pyplot",
        "pandas",
        "scipy.stats",
        "lm_eval.api.task",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "transformers.models.gemma3.modeling_gemma3",
        "transformers.models.qwen3.modeling_qwen3",
    ):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(lcfbench.__path__, "lcfbench."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import torch

    torch.set_num_threads(1)


def note(log: int, event: str, args: tuple[Any, ...]) -> None:
    """Writes down an event that changes a file, starts a program or reaches for the network."""
    found: list[tuple[str, Any, int]] = []
    named = event in ("open", "os.mkdir") and isinstance(args[0], str | bytes | os.PathLike)
    if named and os.path.isdir(args[0]):  # a temporary file without a name, a folder that is there
        return
    if event == "open" and isinstance(args[2], int) and args[2] & WRITES:
        found = [("open", args[0], -1)]
    elif event in CHANGES:
        found = [(event, args[i], -1 if at is None else args[at]) for i, at in CHANGES[event]]
    elif event in STARTS:
        program = os.fsdecode(args[0] if isinstance(args[0], str | bytes) else str(args[0]))
        if Path(program).name.rstrip("3.1") not in PROGRAMS:
            os.write(log, json.dumps(["starts", program]).encode() + b"\n")
    elif event == "socket.connect":
        raise OSError(101, "Network is unreachable")
    for kind, what, folder in found:
        if isinstance(what, str | bytes | os.PathLike):
            start = os.getcwd() if folder == -1 else os.readlink(f"/proc/self/fd/{folder}")
            place, name = os.path.split(os.path.join(start, os.fsdecode(what)))
            path = os.path.join(os.path.realpath(place), name)
            os.write(log, json.dumps([kind, path]).encode() + b"\n")


def child(asked: dict[str, Any]) -> None:
    """The command, as a process of its own would run it. Does not return."""
    os.setsid()
    for number in STOPS:  # until the command listens, each ends it as the system does
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    born = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    for limit, most in (
        (resource.RLIMIT_DATA, born + MEMORY),
        (resource.RLIMIT_FSIZE, asked.get("file_bytes", FILE)),
        (resource.RLIMIT_CPU, asked["seconds"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    os.chdir(asked["cwd"])
    os.environ.update(asked.get("env", {}))
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, name in enumerate(("/dev/null", asked["stdout"], asked["stderr"])):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        for number, mode, errors in ((0, "r", "strict"), (1, "w", "strict"), (2, "w", "backslashreplace"))
    )
    sys.addaudithook(lambda event, args: note(log, event, args))
    sys.argv = ["lcfbench", *asked["argv"]]
    code = 1
    try:
        from lcfbench import cli

        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


@dataclasses.dataclass
class Child:
    """A command that runs. kills: moments in seconds, or a file that must be there, and the signals."""

    asked: dict[str, Any]
    pid: int
    handle: int
    begun: float
    kills: list[tuple[float | str, int]]
    hung: bool = False
    answer: dict[str, Any] | None = None

    @classmethod
    def start(cls, asked: dict[str, Any]) -> Child:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # else one would be heard by this process's handlers
        pid = os.fork()
        if pid == 0:
            try:
                child(asked)
            finally:
                os._exit(99)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        kills = [(when, number) for when, number in asked.get("kills", [])]
        return cls(asked, pid, os.pidfd_open(pid), time.monotonic(), kills)

    def signal_if_due(self) -> None:
        age = time.monotonic() - self.begun
        if age > self.asked["wall"]:
            self.hung = True
            os.kill(self.pid, signal.SIGKILL)
        while self.kills:
            when, number = self.kills[0]
            if (
                age < when
                if isinstance(when, float)
                else not (os.path.exists(when) and os.path.getsize(when))
            ):
                break
            del self.kills[0]
            os.kill(self.pid, number)

    def end(self) -> None:
        os.close(self.handle)
        _, status, _ = os.wait4(self.pid, 0)
        code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - self.begun
        hung = self.hung or code == -signal.SIGXCPU
        self.answer = {"code": code, "hung": hung, "seconds": round(seconds, 3)}


def run(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs commands side by side: exit code or signal, seconds, and whether it had to be stopped."""
    begun = time.monotonic()
    waiting, children = sorted(asked, key=lambda one: one.get("delay", 0.0)), []
    while waiting or any(c.answer is None for c in children):
        while waiting and time.monotonic() - begun >= waiting[0].get("delay", 0.0):
            children.append(Child.start(waiting.pop(0)))
        alive = {c.handle: c for c in children if c.answer is None}
        wait = select.poll()
        for handle in alive:
            wait.register(handle, select.POLLIN)
        for handle, _ in wait.poll(2 if waiting or any(c.kills for c in alive.values()) else 1000):
            alive[handle].end()
        for one in alive.values():
            if one.answer is None:
                one.signal_if_due()
    return [next(c.answer for c in children if c.asked is one) or {} for one in asked]


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write among the answers
    warm_up()
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()

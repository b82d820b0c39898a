"""Workers that are processes of this machine, each with its own models and its share of the devices."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import IO, Any

from lcfbench.evaluation.service import Order, Reply, Service
from lcfbench.provenance import usable_cpus

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GPUS = "CUDA_VISIBLE_DEVICES"
SIZE = 8  # bytes in front of a message: its length
LAST_WORDS = 300  # characters of a dead process's stderr that are shown


@dataclass
class Child:
    """A process that answers calls from its stdin on its stdout. errors: a file with its stderr."""

    errors: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    process: subprocess.Popen[bytes] = field(init=False)


class Processes:
    """Starts each worker as a process; the CPUs and GPUs of this one are divided among them.

    on_cpu: whether models run on the CPU, so that workers disturb each other's timings.
    """

    def __init__(self, count: int, on_cpu: bool) -> None:
        self.count, self.gpus = count, 0 if on_cpu else gpu_count()
        self.timing_threads = threads_of(os.environ, usable_cpus()) if on_cpu else 0
        self.threads = threads_of(os.environ, usable_cpus() // count)
        self.children: dict[int, Child] = {}
        self.replies: SimpleQueue[tuple[int, Child, Reply | None]] = SimpleQueue()

    def start(self, number: int, order: Order) -> None:
        """Starts a process, which imports and loads on its own time."""
        if number in self.children:
            self._end(number)
        around = {**os.environ, **shared_out(number, self.count, os.environ, self.gpus)}
        around["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        child = Child()
        command = [sys.executable, "-c", "from lcfbench.evaluation.processes import serve; serve()"]
        pipe = subprocess.PIPE
        child.process = subprocess.Popen(command, env=around, stdin=pipe, stdout=pipe, stderr=child.errors)
        self.children[number] = child
        threading.Thread(target=self._hear, args=(number, child), daemon=True).start()
        self._send(child, pickle.dumps(order))

    def call(self, number: int, name: str, *args: Any) -> None:
        """Sends a call; of a process that is gone `wait` tells."""
        self._send(self.children[number], pickle.dumps((name, args)))

    def wait(self) -> list[tuple[int, Reply | str]]:
        """Waits for a reply or a death."""
        while True:
            number, child, reply = self.replies.get()
            if self.children.get(number) is child:  # else of one that was replaced
                return [(number, reply if reply is not None else how_it_died(child))]

    def stop(self) -> None:
        """Ends all processes; they hold nothing that is not recorded or asked again."""
        for number in list(self.children):
            self._end(number)

    def _send(self, child: Child, message: bytes) -> None:
        assert child.process.stdin is not None
        try:
            write_message(child.process.stdin, message)
        except OSError:  # it is gone, and its stdout ends
            return

    def _hear(self, number: int, child: Child) -> None:
        """Passes replies on, in a thread of each process; None when it has ended."""
        assert child.process.stdout is not None
        while (message := read_message(child.process.stdout)) is not None:
            try:
                reply = pickle.loads(message)
            except Exception:  # else the thread would end, and the pool wait for ever
                reply = Reply(bug=traceback.format_exc())
            self.replies.put((number, child, reply))
        self.replies.put((number, child, None))

    def _end(self, number: int) -> None:
        child = self.children.pop(number)
        child.process.kill()
        child.process.wait()
        child.errors.close()


def gpu_count() -> int:
    """Returns the number of GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


def shared_out(number: int, count: int, around: Mapping[str, str], gpus: int) -> dict[str, str]:
    """Environment variables that give a worker its share of the CPUs and GPUs.

    gpus: of this process. With fewer GPUs than workers, several use one. A number of threads that the
    environment sets stays where it is smaller.
    """
    found = dict.fromkeys(THREADS, str(threads_of(around, usable_cpus() // count)))
    if gpus:
        visible = [name.strip() for name in around.get(GPUS, "").split(",") if name.strip()]
        visible = visible[:gpus] if len(visible) >= gpus else [str(i) for i in range(gpus)]
        each = max(gpus // count, 1)
        mine = [visible[(number * each + i) % gpus] for i in range(each)]
        found[GPUS] = ",".join(mine)
    return found


def threads_of(around: Mapping[str, str], most: int) -> int:
    """Returns the threads of a process: at most so many, fewer where the environment says so."""
    given = [int(text) for name in THREADS if (text := around.get(name, "")).isdecimal()]
    return max(min([most, *given]), 1)


def how_it_died(child: Child) -> str:
    """Says how a process ended, with the last line that it wrote."""
    code = child.process.wait()
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
        memory = " (did memory run out?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{memory}"
    child.errors.seek(0)
    lines = child.errors.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"ended with code {code}" + (f" ({last[:LAST_WORDS]})" if last else "")


def write_message(stream: IO[bytes], message: bytes) -> None:
    """Writes a message behind its length. Raises OSError where the other side is gone."""
    stream.write(len(message).to_bytes(SIZE, "big") + message)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes | None:
    """Reads a message; None where the other side is gone, also in its middle."""
    head = stream.read(SIZE)
    size = int.from_bytes(head, "big")
    body = stream.read(size) if len(head) == SIZE else b""
    return body if len(head) == SIZE and len(body) == size else None


def serve() -> None:
    """Answers the calls of the process that started this one, and ends with it."""
    for name in ("SIGINT", "SIGBREAK"):  # Ctrl-C is for the process that started this one
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    calls, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not stand among the replies
    waiting: SimpleQueue[bytes] = SimpleQueue()

    def hear() -> None:
        while (message := read_message(calls)) is not None:
            waiting.put(message)
        os._exit(1)  # the other process is gone: nothing reads what is being made

    threading.Thread(target=hear, daemon=True).start()
    service = Service(waiting.get())
    while True:
        name, args = pickle.loads(waiting.get())
        write_message(replies, pickle.dumps(service.call(name, *args)))

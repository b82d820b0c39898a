"""The library math-verify in a process of its own, which hostile mathematics cannot take us along with.

The library's own limit is a signal: it works in the main thread alone, and `9^9^9^9` or a regular
expression without end is deaf to it. Here the kernel ends the process after `CPU_SECONDS` of computing,
however busy the machine is, and the next question starts a new one. A system without such limits, as
Windows, ends it after `WALL_SECONDS`.

>>> from lcfbench.tasks.math_worker import ask
>>> ask(r"\\frac{1}{2}", "0.5"), ask("2", "9^{9^{9^{9}}}")                          # doctest: +SKIP
(True, None)
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
import time
from functools import lru_cache

CPU_SECONDS = 5  # for one answer
WALL_SECONDS = 120.0  # a process that is stopped computes nothing and would never end
MEMORY_BYTES = 4 << 30
LONGEST = 4_000  # characters of one answer
_SERVE = "from lcfbench.tasks.math_worker import serve; serve()"
_lock = threading.Lock()
_running: dict[int, subprocess.Popen[str]] = {}  # by the process that asks: a fork starts its own


@lru_cache(maxsize=4096)
def ask(gold: str, answer: str, *, prose: bool = False) -> bool | None:
    """Whether the library takes an answer for the gold; None where it cannot read it, or not in time.

    Both are LaTeX without delimiters. prose: the answer is a text, in which the library finds the
    mathematics by its own rules.
    """
    if len(answer) > LONGEST or "\0" in answer:
        return None
    with _lock:
        worker = _worker()
        assert worker.stdin is not None and worker.stdout is not None
        late = threading.Timer(WALL_SECONDS, worker.kill)
        late.daemon = True
        try:
            late.start()
            worker.stdin.write(json.dumps([gold, answer, prose]) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except BrokenPipeError:  # it ended while nothing was asked
            line = ""
        finally:
            late.cancel()
        if not line:
            _end(os.getpid())
            return None
        found: bool | None = json.loads(line)
        return found


def _worker() -> subprocess.Popen[str]:
    pid = os.getpid()
    if pid not in _running or _running[pid].poll() is not None:
        _end(pid)
        path = os.pathsep.join(filter(None, sys.path))
        _running[pid] = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for us
        )
    return _running[pid]


def _end(pid: int) -> None:
    if worker := _running.pop(pid, None):
        worker.kill()
        worker.communicate()


@atexit.register
def _end_mine() -> None:
    _end(os.getpid())


def _limit(name: str, value: int) -> None:
    """Sets a limit of this process, where the system has such limits."""
    if sys.platform != "win32":
        import resource

        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def serve() -> None:
    """Answers questions line by line, until there are no more."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable()
    out, sys.stdout = sys.stdout, sys.stderr  # the answers alone go there
    _limit("RLIMIT_AS", MEMORY_BYTES)

    def read(text: str) -> list:
        # the second part of what it finds is its text, which says nothing about its value
        found = parse(text, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=0)
        return [each for each in found if not isinstance(each, str)]

    for line in sys.stdin:
        _limit("RLIMIT_CPU", int(time.process_time()) + CPU_SECONDS + 1)
        gold, answer, prose = json.loads(line)
        found = read(answer if prose else f"\\boxed{{{answer}}}")
        equal = verify(read(f"\\boxed{{{gold}}}"), found, timeout_seconds=0) if found else None
        print(json.dumps(equal), file=out, flush=True)

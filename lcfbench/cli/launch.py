"""Starts a command in several processes of this machine, which compute together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from lcfbench.cli.console import echo
from lcfbench.errors import Exit

END_SECONDS = 45.0  # in which the others end by themselves where one has failed


def launch(count: int, arguments: list[str]) -> int:
    """Runs `lcfbench ARGUMENTS` in so many processes until all have ended; returns the exit code.

    They find each other through torch's store of this process. The first one prints.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # it is this process's
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    threads = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1))}
    command = [sys.executable, "-m", "lcfbench", *arguments]
    children = []
    for n in range(count):
        own = {"RANK": str(n), "LOCAL_RANK": str(n)}
        stdin = None if n == 0 else subprocess.DEVNULL
        children.append(subprocess.Popen(command, env=threads | os.environ | common | own, stdin=stdin))
    try:
        _wait(children, float("inf"), END_SECONDS)
    except KeyboardInterrupt:  # one for all of them; Ctrl-C in a terminal has reached them already
        for child in children:
            child.send_signal(signal.SIGINT)
        _wait(children, END_SECONDS, END_SECONDS)
        return Exit.INTERRUPTED
    finally:
        for child in children:
            child.kill()
            child.wait()
    codes = [child.returncode for child in children]
    if not any(codes):
        return Exit.OK
    if said := [code for code in codes if code > 0]:
        return said[0]
    echo(f"lcfbench: all {count} processes were killed. The same command goes on.", stderr=True)
    return Exit.USER


def _wait(children: list[subprocess.Popen[bytes]], longest: float, after: float) -> None:
    """Waits until all have ended, but so many seconds in all, and so many once one has failed."""
    end = time.monotonic() + longest
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        if any(child.poll() for child in children):
            end = min(end, time.monotonic() + after)
        time.sleep(0.05)

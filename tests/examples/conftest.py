"""A folder for PATH whose `lcfbench` is this checkout's, without the seconds of its imports."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from tests.helpers import environment, fork, process, save_pair

CLIENT = f"""#!{sys.executable} -S
import json, os, signal, socket, sys
end = socket.socket(socket.AF_UNIX)
end.connect(os.environ["FORK_SOCKET"])
ends = end.makefile("rw")
print(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:], dict(os.environ)]), file=ends, flush=True)
child = int(ends.readline())
signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
code = int(ends.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def _serve(server: socket.socket) -> None:
    while True:
        try:
            end, _ = server.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_run, args=(end,), daemon=True).start()


def _run(end: socket.socket) -> None:
    """Runs the command that a client sends. A client that is killed takes its command along."""
    with end, end.makefile("rw") as ends:
        pid, cwd, args, env = json.loads(ends.readline())
        child = fork(args, Path(cwd), env, [os.devnull, *(f"/proc/{pid}/fd/{n}" for n in (1, 2))])
        print(child.pid, file=ends, flush=True)
        if child.sentinel not in wait([child.sentinel, end]):
            child.kill()
            child.join()
            return
        child.join()
        print(child.exitcode, file=ends, flush=True)


@pytest.fixture(scope="package")
def commands(tmp_path_factory) -> Iterator[dict[str, str]]:
    """An environment with such a PATH."""
    folder = tmp_path_factory.mktemp("bin")
    client = folder / "lcfbench"
    client.write_text(CLIENT)
    client.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.listen()
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    more = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FORK_SOCKET": str(folder / "socket")}
    yield environment(**more, LCFBENCH_CACHE=str(tmp_path_factory.mktemp("cache")))
    server.close()


@pytest.fixture(scope="package")
def recipe(tmp_path_factory) -> Path:
    """A recipe of three runs on a tiny random pair."""
    folder = tmp_path_factory.mktemp("recipe")
    pair = save_pair(folder / "models")
    path = folder / "recipe.yaml"
    path.write_text(f"""
pair: {pair}
mode: [receiver, {{t2t: {{budget: 6}}}}]
task: splitfacts
limit: 40
batch_size: 1
latency_documents: 0
dtype: float32
device: cpu
""")
    return path


@pytest.fixture(scope="package")
def alone(tmp_path_factory, recipe, commands) -> Path:
    """The results of one process."""
    out = tmp_path_factory.mktemp("alone") / "results"
    code, _, said = process("run", "--recipe", recipe, "--out", out)
    assert code == 0, said
    return out

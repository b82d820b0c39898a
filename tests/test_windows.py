"""The package without what only POSIX systems have: modules, functions and constants, as on Windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import helpers

PROGRAM = r"""
import importlib, importlib.abc, json, os, pkgutil, runpy, signal, sys
# the libraries ask for the platform and have what they need of it
import accelerate, asyncio, datasets, huggingface_hub.hf_file_system, inspect_ai, lm_eval.api.task
import multiprocessing.pool, pandas, platformdirs, psutil, pyarrow.parquet, rich.console, torch, transformers
import typer
import transformers.models.llama.modeling_llama

ABSENT = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ABSENT:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in (
    "geteuid getuid getegid getgid fork link O_NOFOLLOW O_NONBLOCK O_DIRECTORY O_CLOEXEC register_at_fork "
    "sched_getaffinity setsid killpg getpgid fchmod mkfifo pread pwrite chown lchown wait4 pidfd_open"
).split():
    delattr(os, name)
for name in (
    "SIGALRM SIGPROF SIGVTALRM setitimer ITIMER_REAL ITIMER_PROF ITIMER_VIRTUAL SIGKILL SIGUSR1 SIGHUP "
    "SIGQUIT pthread_sigmask alarm"
).split():
    delattr(signal, name)
os.O_BINARY = 0

opened = os.open
def new_open(path, flags, *mode, **more):
    if "dir_fd" not in more and not flags & os.O_RDWR and os.path.isdir(path):  # O_TMPFILE is Linux's
        raise PermissionError(13, "Permission denied", path)
    return opened(path, flags, *mode, **more)
os.open = new_open

replace, rename, unlink = os.replace, os.rename, os.unlink
def closed(path):
    path = os.path.realpath(path)
    for handle in os.listdir("/proc/self/fd"):
        try:
            held = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            continue
        if held == path or held.startswith(path + os.sep):
            raise PermissionError(13, f"{held} is open", path)
def new_replace(source, target, **more):
    closed(source), closed(target)
    replace(source, target, **more)
def new_rename(source, target, **more):
    closed(source)
    if os.path.exists(target):
        raise FileExistsError(17, "Cannot create a file when that file already exists", target)
    rename(source, target, **more)
def new_unlink(path, **more):
    if "dir_fd" not in more:
        closed(path)
    unlink(path, **more)
os.replace, os.rename, os.unlink, os.remove = new_replace, new_rename, new_unlink, new_unlink

import lcfbench
for module in pkgutil.walk_packages(lcfbench.__path__, "lcfbench."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from lcfbench import cli
ended = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["lcfbench", *line]
    try:
        cli.main()
        ended.append(0)
    except SystemExit as end:
        ended.append(end.code or 0)
print("ended", json.dumps(ended))
"""


@pytest.mark.skipif(os.name != "posix", reason="it is so anyway")
def test_all_modules_and_a_run_without_what_is_posix_alone(tmp_path: Path) -> None:
    pair = helpers.save_pair(tmp_path)
    run = ["run", "--pair", pair, "--mode", "receiver,t2t", "--task", "splitfacts", "--limit", "2"]
    run += ["--dtype", "float32", "--offline", "--out", str(tmp_path / "out")]
    train = [
        "train",
        "--pair",
        pair,
        "--task",
        "splitfacts",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--offline",
    ]
    train += ["--dev-documents", "2", "--dtype", "float32", "--out", str(tmp_path / "adapter")]
    out = str(tmp_path / "out")
    lines = [["--help"], ["ls", "tasks"], run, run, ["show", out], ["ls", "runs", "--out", out], train]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)], capture_output=True, text=True, timeout=600
    )
    assert done.stdout.endswith(f"ended {json.dumps([0] * len(lines))}\n"), done.stdout + done.stderr
    assert "complete already" in done.stderr
    for folder in (tmp_path / "out").iterdir():
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "samples.parquet"]
    assert not list(tmp_path.glob(".*"))

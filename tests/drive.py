"""Driving lcfbench as a user does: tiny random models in folders, the CLI in this process or in one of its own, and the rows it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from lcfbench.cli import __main__ as cli
from tests import tiny

ROOT = Path(__file__).parents[1]
TIMES = {
    "written_at",
    "amortized_ms",
    "ttft_ms",
    "ttea_ms",
    "sharer_ms",
    "message_ms",
    "fuse_ms",
    "prefill_ms",
    "decode_ms",
    "peak_memory_bytes",
}


def save_pair(folder: Path) -> str:
    """Two tiny random models of different families as folders; returns the pair."""
    save(folder / "receiver", layers=4)
    save(folder / "sharer", bos=True, family="gemma3", layers=3, heads=1, dim=16, vocabulary=330, seed=1)
    return f"{folder / 'receiver'}:{folder / 'sharer'}"


def save(folder: Path, bos: bool = False, **shape) -> Path:
    """One tiny random model with its tokenizer."""
    model = tiny.model(**shape)
    model.save_pretrained(folder)
    tiny.tokenizer(model.config.vocab_size, bos).save_pretrained(folder)
    return folder


@dataclass
class Watcher:
    """A `Progress` and `TrainProgress` that remembers."""

    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    updates: list[tuple[float, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)

    def begin(self, title, total, done, right):
        self.updates.append((right, done))

    def update(self, title, right, done):
        self.updates.append((right, done))

    def end(self, title):
        pass

    def step(self, step, steps, loss, right, gates_open, gates, examples_per_s):
        self.losses.append(loss)


def invoke(capsys, monkeypatch, *args: object) -> tuple[int, str, str]:
    """`lcfbench …` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["lcfbench", *map(str, args)])
    capsys.readouterr()
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    got = capsys.readouterr()
    return code, got.out, got.err


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def _hear_ctrl_c() -> None:
    """A test run started in the background hands on that SIGINT is ignored; the command under test must hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*args: object, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
    """`lcfbench …` in a process of its own."""
    command = [sys.executable, "-m", "lcfbench.cli", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd or ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )


def process(*args: object, cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
    """As `start`, to its end: exit code, stdout, stderr."""
    child = start(*args, cwd=cwd, **env)
    out, err = child.communicate(timeout=300)
    return child.returncode, out, err


def rows(folder: Path, without: set[str] | None = None) -> list[dict]:
    """The rows of a run folder, in order, without the columns that hold times."""
    drop = TIMES if without is None else without
    return [
        {k: v for k, v in row.items() if k not in drop}
        for row in pq.ParquetFile(folder / "samples.parquet").read().to_pylist()
    ]

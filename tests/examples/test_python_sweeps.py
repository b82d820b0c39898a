"""The sweeps of examples/ from Python: submitit's local executor and a real Ray, with kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.examples.slurm_cluster import recorded_bytes
from tests.helpers import ROOT, environment, rows

SECONDS = 300
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_worker_niceness": "0"}


def start(script: str, recipe: Path, out: Path, *flags: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "examples" / script, recipe, "--out", out, *map(str, flags)],
        env=environment(**env),
        cwd=out.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes(*words: str) -> list[int]:
    """Processes whose command lines have all these words."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if all(word in command for word in words):
            found.append(int(place.name))
    return found


def same_rows(out: Path, alone: Path) -> None:
    runs = sorted(path.parent.name for path in alone.glob("*/samples.parquet"))
    assert sorted(path.parent.name for path in out.glob("*/samples.parquet")) == runs
    assert all(rows(out / run) == rows(alone / run) for run in runs)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_a_job_of_submitit_that_is_preempted_is_queued_again_and_goes_on(tmp_path, recipe, alone):
    pytest.importorskip("submitit")
    out = tmp_path / "results"
    flags = ("--cluster", "local", "--gpus", 0, "--minutes", 5)
    child = start("submitit_sweep.py", recipe, out, *flags)
    while child.poll() is None and not recorded_bytes(out):
        time.sleep(0.005)
    jobs = processes("submitit.core._submit", str(out))
    assert jobs, child.communicate()[0]
    os.kill(jobs[0], signal.SIGUSR2)  # as before a time limit and a preemption
    said, _ = child.communicate(timeout=SECONDS)
    assert child.returncode == 0 and "t2t" in said, said
    logs = "".join(path.read_text() for path in (out / ".submitit").rglob("*_log.*"))
    assert "Requeued job" in logs and "Traceback" not in logs, logs
    same_rows(out, alone)


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory):
    """A real Ray of two CPUs."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(**QUIET).items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, num_gpus=0, object_store_memory=80_000_000, include_dashboard=False)
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_a_ray_sweep_whose_worker_and_driver_are_killed_goes_on(tmp_path, recipe, alone, ray_head):
    out = tmp_path / "results"
    first = start("ray_sweep.py", recipe, out, "--address", ray_head, **QUIET)
    seen = ""
    while "2 to come" not in seen:
        line = first.stdout.readline()
        assert line, seen
        seen += line
        if "runs to do" in line:
            while not (workers := processes("ray::answer")):
                time.sleep(0.02)
            os.kill(workers[0], signal.SIGKILL)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert len(list(out.glob("*/samples.parquet"))) >= 1
    second = start("ray_sweep.py", recipe, out, "--address", ray_head, **QUIET)
    said, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 0 and "3 runs to do" not in said, said
    same_rows(out, alone)

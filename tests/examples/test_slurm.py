"""examples/slurm.sh with a fake cluster: its array tasks really run, and some are killed."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.examples.slurm_cluster import Cluster
from tests.helpers import ROOT, rows

SCRIPT = ROOT / "examples" / "slurm.sh"
TERM, KILL = signal.SIGTERM, signal.SIGKILL


@pytest.fixture
def cluster(tmp_path, commands) -> Cluster:
    return Cluster(tmp_path / "cluster", {**commands, "GPUS": "0", "LCFBENCH_STALE_SECONDS": "1"})


def same_rows(out: Path, alone: Path) -> None:
    """Every run of `alone`, with its rows, and nothing else."""
    runs = sorted(path.parent.name for path in alone.glob("*/manifest.json"))
    assert sorted(path.parent.name for path in out.glob("**/manifest.json")) == runs
    for run in runs:
        assert rows(out / run) == rows(alone / run)
        assert json.loads((out / run / "manifest.json").read_text())["state"] == "complete"


def test_it_is_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.parametrize(("division", "tasks"), [({}, 3), ({"SHARDS": "2"}, 2)], ids=str)
def test_array_tasks_that_are_killed_and_queued_again_make_the_rows_of_one_process(
    tmp_path, cluster, recipe, alone, division, tasks
):
    command = ["bash", SCRIPT, "--recipe", recipe, "--out", "results"]
    done = cluster.submit(*command, cwd=tmp_path, **division)
    assert done.returncode == 0, done.stderr
    kills = {(1, 0): TERM, (2, 0): KILL, (2, 1): TERM}  # SIGKILL: its node is lost
    said = cluster.drain(kills)
    assert "Traceback" not in said, said
    ended = [(1, 143), (1, 0), (2, -9), (2, 143), (2, 0), *((3, 0),) * (tasks - 2), (None, 0)]
    assert [each[1:] for each in cluster.ended] == ended, said
    same_rows(tmp_path / "results", alone)
    assert (tmp_path / "results" / "report.html").is_file()
    again = cluster.submit(*command, cwd=tmp_path, **division)
    assert again.returncode == 0 and "complete" in again.stdout and not cluster.jobs()


def test_the_same_command_submits_what_a_cancelled_array_has_left(tmp_path, cluster, recipe, alone):
    command = ["bash", SCRIPT, "--recipe", recipe, "--out", "results"]
    cluster.submit(*command, cwd=tmp_path)
    cluster.cancelled = {2}
    said = cluster.drain()
    assert cluster.ended[-1][1:] == (None, 1) and "1 runs are not complete" in said
    cluster.cancelled = set()
    again = cluster.submit(*command, cwd=tmp_path)
    assert again.stdout.startswith("1 of 3 runs in 1 array tasks"), again
    cluster.drain()
    assert cluster.ended[-1][1:] == (None, 0)
    same_rows(tmp_path / "results", alone)


def test_more_runs_than_a_cluster_allows_share_array_tasks(tmp_path, cluster, recipe):
    command = ["bash", SCRIPT, "--recipe", recipe, "--out", "results"]
    done = cluster.submit(*command, cwd=tmp_path, MAX_ARRAY_SIZE="3")
    assert done.stdout.startswith("3 of 3 runs in 2 array tasks"), done
    (pieces,) = (tmp_path / "results" / ".slurm").iterdir()
    lines = pieces.read_text().splitlines()
    assert [len(line.split(",")) for line in lines] == [1, 2]
    over = cluster.submit(*command, cwd=tmp_path, MAX_ARRAY_SIZE="3", SHARDS="4")
    assert over.returncode == 2 and "set TASKS or SHARDS" in over.stderr
    (cluster.folder / "jobs" / "queue").write_text("1\n")
    twice = cluster.submit(*command, cwd=tmp_path)
    assert twice.returncode == 2 and "in the queue already" in twice.stderr


def test_a_mistake_is_said_before_anything_is_submitted(tmp_path, cluster, recipe):
    done = cluster.submit("bash", SCRIPT, "--recipe", recipe, "--mode", "nosuch", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not cluster.jobs()

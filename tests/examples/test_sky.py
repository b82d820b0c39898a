"""examples/sky.yaml: its fields, its shell, and its run block on this machine, killed and begun again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import yaml

from tests.examples.slurm_cluster import recorded_bytes
from tests.helpers import ROOT, rows

SKY = yaml.safe_load((ROOT / "examples" / "sky.yaml").read_text())
# the names that SkyPilot's own schemas have (sky/utils/schemas.py, 0.14), of which this file uses some
FIELDS = {
    "": "name workdir num_nodes resources file_mounts service pool setup run envs secrets volumes config",
    "resources": "accelerators cloud cpus memory disk_size disk_tier image_id infra instance_type use_spot "
    "job_recovery any_of ordered region zone labels ports priority autostop",
    "resources.job_recovery": "strategy max_restarts_on_errors recover_on_exit_codes",
    "file_mounts./bucket": "name source store mode persistent type config",
}


def test_its_fields_are_those_of_a_managed_job():
    for place, known in FIELDS.items():
        part = SKY
        for name in place.split(".") if place else []:
            part = part[name]
        assert part and set(part) <= set(known.split()), place
    assert all(isinstance(value, str) for value in SKY["envs"].values())
    assert SKY["resources"]["use_spot"] is True
    assert SKY["envs"]["BUCKET"] in SKY["file_mounts"]


def test_its_blocks_are_bash():
    for name in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", SKY[name]], check=True)


def test_a_machine_that_is_lost_costs_some_seconds_and_the_next_one_goes_on(
    tmp_path, recipe, alone, commands
):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    mine = {"RECIPE": str(recipe), "BUCKET": str(bucket), "SECONDS_BETWEEN_COPIES": "0.1"}
    env = {**commands, **SKY["envs"], **mine, "LCFBENCH_STALE_SECONDS": "1"}

    def machine(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir()
        return subprocess.Popen(
            ["bash", "-c", SKY["run"]],
            cwd=tmp_path / name,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    first = machine("first")
    while first.poll() is None and not recorded_bytes(bucket):
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "first")
    second = machine("second")
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0 and "recorded before" not in said.partition("\n")[0], said
    for run in alone.glob("*/samples.parquet"):
        assert rows(bucket / run.parent.name) == rows(run.parent)
    assert not recorded_bytes(bucket)

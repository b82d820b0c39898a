"""A stand-in for a SLURM cluster: its commands queue jobs, and `drain` really runs them, killing some."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SBATCH = """#!/bin/bash
# keeps a copy of the script, as sbatch does, and everything that was given
n=$(($(ls "$CLUSTER" | grep -c script) + 1))
options=()
while [[ ${1-} == -* ]]; do options+=("$1"); shift; done
cp "$1" "$CLUSTER/$n.script"; shift
python3 -c 'import json, os, sys
n, count, *words = sys.argv[1:]
job = {"options": words[: int(count)], "args": words[int(count) :]}
job |= {"cwd": os.getcwd(), "env": dict(os.environ)}
json.dump(job, open(os.path.join(os.environ["CLUSTER"], n + ".json"), "w"))' \
    "$n" "${#options[@]}" "${options[@]}" "$@"
echo "$n"
"""
SRUN = """#!/bin/bash
echo $$ > "$CLUSTER/step.$SLURM_JOB_ID"
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
show) echo "MaxArraySize            = ${MAX_ARRAY_SIZE:-1001}" ;;
requeue) touch "$CLUSTER/requeue.$2" ;;
*) exit 1 ;;
esac
"""
SQUEUE = """#!/bin/bash
cat "$CLUSTER/queue" 2> /dev/null || true
"""
COMMANDS = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE}


@dataclass
class Cluster:
    """The queue of a cluster. folder: its own. environment: of the user who submits.

    ended: (job, array task, exit code) of each attempt, in order. cancelled: array tasks that never run.
    """

    folder: Path
    environment: dict[str, str]
    ended: list[tuple[int, int | None, int]] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir(parents=True)
        (self.folder / "jobs").mkdir()
        for name, text in COMMANDS.items():
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)
        path = f"{self.folder / 'bin'}{os.pathsep}{self.environment['PATH']}"
        self.environment = {**self.environment, "PATH": path, "CLUSTER": str(self.folder / "jobs")}

    def submit(self, *command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def jobs(self) -> list[Path]:
        return sorted((self.folder / "jobs").glob("*.json"), key=lambda path: int(path.stem))

    def drain(self, kills: Mapping[tuple[int | None, int], int] = {}) -> str:
        """Runs all jobs to their end, each after the array that it depends on; returns what they said.

        kills: signals by (array task, attempt); an attempt gets its signal once it has recorded a row.
        SIGTERM reaches the step alone, as before a time limit; SIGKILL everything, as when a node is lost,
        and the job is queued again.
        """
        said = []
        for path in self.jobs():
            job = json.loads(path.read_text())
            options = dict(option[2:].partition("=")[::2] for option in job["options"])
            last = int(options["array"].partition("-")[2]) if "array" in options else 0
            for task in range(1, last + 1) if last else (None,):
                again, attempt = task not in self.cancelled, 0
                while again:
                    again, text = self._attempt(path, job, (task, attempt), kills.get((task, attempt)))
                    said.append(text)
                    attempt += 1
            path.rename(path.with_suffix(".done"))
        return "".join(said)

    def _attempt(
        self, path: Path, job: dict, which: tuple[int | None, int], kill: int | None
    ) -> tuple[bool, str]:
        """Runs the job of a file once; returns whether it is queued again, and what it said."""
        task, attempt = which
        number = f"{path.stem}{task or ''}"
        env = job["env"] | {"SLURM_JOB_ID": number, "SLURM_CPUS_PER_TASK": "1"}
        if task:
            env |= {"SLURM_ARRAY_JOB_ID": path.stem, "SLURM_ARRAY_TASK_ID": str(task)}
        if attempt:
            env["SLURM_RESTART_COUNT"] = str(attempt)
        step, requeue = (self.folder / "jobs" / f"{name}.{number}" for name in ("step", "requeue"))
        for file in (step, requeue):
            file.unlink(missing_ok=True)
        before = recorded_bytes(Path(job["cwd"]))
        child = subprocess.Popen(
            ["bash", path.with_suffix(".script"), *job["args"]],
            cwd=job["cwd"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if kill:
            while child.poll() is None and recorded_bytes(Path(job["cwd"])) <= before:
                time.sleep(0.005)
            if child.poll() is None and kill == signal.SIGKILL:
                os.killpg(child.pid, kill)
            elif child.poll() is None:
                os.kill(int(step.read_text()), kill)
        said, _ = child.communicate(timeout=300)
        self.ended.append((int(path.stem), task, child.returncode))
        return requeue.exists() or child.returncode == -signal.SIGKILL, said


def recorded_bytes(folder: Path) -> int:
    """Bytes of the journals below a folder."""
    found = 0
    for place, _, files in os.walk(folder):  # does not mind folders that go meanwhile
        if "samples.jsonl" in files:
            with suppress(FileNotFoundError):
                found += Path(place, "samples.jsonl").stat().st_size
    return found

"""Runs recipes with submitit: one SLURM job a run, or, with --cluster local, one process a run here.

    pip install lcfbench submitit
    python submitit_sweep.py a.yaml b.yaml --out results --minutes 240 --partition gpu

--out lies on a file system that all nodes see. Two minutes before its time limit, and when it is preempted,
a job seals what it has recorded and is queued again; what is recorded is not done twice. So the same command
goes on after any kill: it submits the runs that are not complete.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import submitit

import lcfbench


class Part(submitit.helpers.Checkpointable):
    """One run of a recipe. It has no state of its own: the results folder is its checkpoint."""

    def __call__(self, recipe: str, key: str, out: str) -> list[str]:
        """Runs it, or what is left of it, and returns its id."""
        return lcfbench.run(recipe, only=[key], out=out, wait=True).run_ids


def main() -> None:
    """Submits what is not complete, waits for it, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--cluster", help="slurm or local; by default SLURM where it is")
    parser.add_argument("--partition")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of each job")
    parser.add_argument("--minutes", type=int, default=240, help="time limit of each job")
    chosen = parser.parse_args()

    executor = submitit.AutoExecutor(Path(chosen.out) / ".submitit", chosen.cluster, slurm_max_num_timeout=50)
    executor.update_parameters(
        timeout_min=chosen.minutes,
        gpus_per_node=chosen.gpus,
        cpus_per_task=4,
        slurm_mem="32GB",
        slurm_signal_delay_s=120,
        **({"slurm_partition": chosen.partition} if chosen.partition else {}),
    )
    jobs = []
    with executor.batch():
        for recipe in chosen.recipes:
            plan = lcfbench.plan(recipe, out=chosen.out)
            for key in plan.loc[plan.state != "complete", "key"]:
                jobs.append(executor.submit(Part(), recipe, key, chosen.out))
    print(f"{len(jobs)} jobs; their logs are in {executor.folder}", flush=True)
    failed = [job for job in submitit.helpers.as_completed(jobs) if job.exception()]
    for job in failed:
        print(f"{job.job_id} failed; see {job.paths.stderr}", file=sys.stderr)
    print(lcfbench.load_summary(chosen.out)[["pair", "task", "label", "control", "n", "score"]].to_string())
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

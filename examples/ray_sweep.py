"""Runs many recipes at once on a Ray cluster; no file system is shared.

    pip install 'lcfbench[ray]'                    # on every node
    python ray_sweep.py a.yaml b.yaml --out results --address auto --gpus 1

Each run of each recipe is a Ray task, which sends its folder back to the driver. A task whose worker or node
dies is done again elsewhere. If the driver dies, the same command goes on with the runs that have not come
back. For one recipe of few long runs `lcfbench run --on ray` is better: it cuts the runs themselves.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import ray

import lcfbench


@ray.remote(max_retries=-1)
def answer(recipe: lcfbench.Recipe, key: str) -> tuple[str, bytes]:
    """Does one run of a recipe; returns its id and its folder as a tar archive."""
    with tempfile.TemporaryDirectory() as out:
        (run_id,) = lcfbench.run(recipe, only=[key], out=out, processes=1).run_ids
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            tar.add(f"{out}/{run_id}", run_id)
        return run_id, archive.getvalue()


def keep(run_id: str, archive: bytes, out: Path) -> None:
    """Unpacks a run beside its place, then moves it there whole."""
    with tempfile.TemporaryDirectory(prefix=".", dir=out) as beside:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(beside, filter="data")
        if (out / run_id).exists():  # a part of it, of another command
            (out / run_id).rename(f"{beside}/before")
        Path(beside, run_id).rename(out / run_id)


def main() -> None:
    """Does the runs that are not complete, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--address", help="auto, or ray://HOST:10001; by default a Ray of this machine alone")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each task")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of each task")
    chosen = parser.parse_args()

    ray.init(chosen.address, include_dashboard=False)
    chosen.out.mkdir(parents=True, exist_ok=True)
    # ids depend on the kind of device, so the plan is made for the one that the tasks have
    place: dict[str, Any] = {"device": "cuda"} if chosen.gpus else {}
    task = answer.options(num_gpus=chosen.gpus, num_cpus=chosen.cpus)
    waiting = []
    for name in chosen.recipes:
        recipe = lcfbench.Recipe.merge(name, {"out": chosen.out, **place})
        plan = lcfbench.plan(recipe)
        waiting += [task.remote(recipe, key) for key in plan.loc[plan.state != "complete", "key"]]
    print(f"{len(waiting)} runs to do", flush=True)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        run_id, archive = ray.get(done)
        keep(run_id, archive, chosen.out)
        print(f"{run_id} is here; {len(waiting)} to come", flush=True)
    print(lcfbench.load_summary(chosen.out)[["pair", "task", "label", "control", "n", "score"]].to_string())


if __name__ == "__main__":
    main()

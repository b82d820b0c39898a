"""Gathers the parts of runs that were made apart: shards, and runs of other folders.

>>> gather([Path("from-node-1"), Path("from-node-2")], Path("results"))            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcfbench.results.gathering import Gathered, found_in
from lcfbench.results.gathering import gather as gather_run
from lcfbench.results.manifest import Manifest
from lcfbench.tasks.stock import StockTask
from lcfbench.tasks.stock_index import is_stock
from lcfbench.tasks.task import load_task
from lcfbench.tasks.yaml_files import options_for


def gather(folders: Sequence[Path], out: Path) -> list[Gathered]:
    """Puts the rows of all parts in some folders into the runs of `out`; complete runs are sealed.

    Raises UserError for a folder without runs, and where another process writes one of them.
    """
    return [gather_run(out, run_id, parts, summary_of) for run_id, parts in found_in(folders).items()]


def summary_of(manifest: Manifest, recorded: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """What all scores of a run give together: lm-eval's aggregates of its own tasks.

    recorded: the scores of every document, None for one that failed. Raises UserError where the task is
    not known here.
    """
    name, recipe = str(manifest.identity.get("task")), manifest.recipe or {}
    rows = [row for row in recorded if row is not None]
    if not is_stock(name) or not rows or len(rows) < len(recorded):  # lm-eval knows no failed document
        return {}
    options = options_for([name], recipe.get("task_options") or {})[name]
    seed, offline = int(manifest.identity["seed"]), bool(recipe.get("offline"))
    shots, prompt = recipe.get("shots"), recipe.get("prompt")
    task = load_task(name, seed=seed, offline=offline, options=options, shots=shots, prompt=prompt)
    assert isinstance(task, StockTask)
    return {"lm_eval": task.summary(rows)}

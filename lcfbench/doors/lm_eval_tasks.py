"""Our tasks as tasks of lm-eval, by the names `lcfbench_NAME`.

Their documents, in the order of `lcfbench run`, so that `--limit 100` asks the same ones; their options
and `scoring` come from lm-eval's metadata (`--metadata hops=3 scoring=generate`), the seed from the
model's.

>>> TaskManager(include_path=task_folder()).load("lcfbench_splitfacts")             # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from lcfbench.tasks.task import load_task
from lcfbench.tasks.yaml_files import describe, task_names

PREFIX = "lcfbench_"


class OurTask:
    """Makes lm-eval's task object of a task of ours from the few lines in `task_folder`."""

    def __new__(cls, config: dict[str, Any]) -> Any:
        name, given = config["task"].removeprefix(PREFIX), config.get("metadata") or {}
        known = describe(name)["options"]
        options = {key: str(value) for key, value in given.items() if key in known}
        task = load_task(name, seed=int(given.get("seed", 0)), options=options)
        made: Any = task.drawn_lm_eval_task(given.get("scoring"))
        made.config.task = config["task"]
        return made

    def __init__(self, config: dict[str, Any]) -> None:  # lm-eval looks for this parameter
        raise AssertionError("no object of this class is made")


@cache
def task_folder() -> Path:
    """A folder with a file for each of our tasks, for lm-eval's `include_path`; gone with the process."""
    folder = tempfile.TemporaryDirectory(prefix="lcfbench-tasks-")
    _kept.append(folder)
    for name in task_names():
        function = f"{__name__}.{OurTask.__name__}"
        Path(folder.name, f"{name}.yaml").write_text(f"task: {PREFIX}{name}\nclass: !function {function}\n")
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []

"""The YAML files of `tasks/`: found, parsed and checked without lm-eval, so that listing tasks costs milliseconds.

A file is an lm-eval task whose extra keys stand under `metadata`; lm-eval skips a file it cannot parse without a word, so every
one is parsed here first and a mistake is an error.

>>> from lcfbench.tasks.yaml_files import describe, task_names
>>> "openbookqa" in task_names(), describe("openbookqa")["default_scoring"]
(True, 'letters')
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from lcfbench.errors import UserError, unknown

_SHIPPED = (
    Path(__file__).parents[1] / "_tasks"
)  # in the wheel; in a checkout the folder stands beside the package
TASKS = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[2] / "tasks"
SCORINGS = ("letters", "cloze", "generate")


def task_names() -> list[str]:
    """Names of all tasks: the YAML files that do not begin with an underscore."""
    return sorted(path.stem for path in TASKS.glob("*.yaml") if not path.stem.startswith("_"))


def describe(name: str) -> dict[str, Any]:
    """What `lcfbench ls tasks` shows: name, description, scorings, default_scoring, context, dataset, licence, options."""
    config = read_task(name)
    extra = config["metadata"]
    dataset = "/".join(filter(None, (config.get("dataset_path"), config.get("dataset_name")))) or "generated"
    return {
        "name": name,
        "description": extra["description"],
        "scorings": list(extra["scorings"]),
        "default_scoring": extra["default_scoring"],
        "context": extra["context"],
        "dataset": dataset,
        "licence": extra["licence"],
        "options": {key: dict(option) for key, option in extra.get("options", {}).items()},
    }


def options_for(names: Sequence[str], given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The given options of each task, by name; each must be known to one of them. Raises UserError."""
    known = {name: set(describe(name)["options"]) for name in names}
    every = set().union(*known.values())
    for key in given:
        if key not in every:
            raise unknown(f"option of {', '.join(names)}", key, every, "lcfbench ls tasks --json")
    return {name: {k: v for k, v in given.items() if k in known[name]} for name in names}


def read_task(name: str, *, functions: bool = False) -> dict[str, Any]:
    """A task's YAML with its includes merged; `!function` values as functions or, without `functions`, as their names.

    Raises `UserError` for an unknown task, a file that does not parse and one that lacks what every task needs.
    """
    if name not in task_names():
        raise unknown("task", name, task_names(), "lcfbench ls tasks")
    path = TASKS / f"{name}.yaml"
    config = _read(path, functions)
    extra = config.get("metadata")
    missing = [
        key
        for key in ("description", "licence", "context", "default_scoring", "scorings")
        if key not in (extra or {})
    ]
    if missing or not isinstance(extra, dict):
        raise UserError(
            f"{path.name} lacks metadata.{', metadata.'.join(missing)}.",
            "tasks/openbookqa.yaml shows the form.",
        )
    if config.get("task") != name:
        raise UserError(f"{path.name} says task: {config.get('task')}.", "A task is called like its file.")
    if strange := [s for s in extra["scorings"] if s not in SCORINGS]:
        raise unknown("scoring", strange[0], SCORINGS, f"tasks/{path.name}")
    if extra["context"] not in ("shared", "different"):
        raise UserError(f"{path.name}: metadata.context is {extra['context']!r}.", "Say shared or different.")
    return config


def file_digest(name: str) -> str:
    """sha256 over the task's YAML, its includes and the Python files they name: what the task file says, in full."""
    digest = hashlib.sha256()
    for path in sorted(_sources(TASKS / f"{name}.yaml")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _read(path: Path, functions: bool) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.Loader, node: yaml.Node) -> Any:
        name = str(loader.construct_scalar(node))  # type: ignore[arg-type]
        return _function(name, path) if functions else name

    Loader.add_constructor("!function", function)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{path.name} does not parse: {' '.join(str(error).split())}.", "Mend the file."
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path.name} is not a mapping.", "tasks/openbookqa.yaml shows the form.")
    if "include" not in config:
        return config
    base = _read(path.parent / config.pop("include"), functions)
    extra = {**base.get("metadata", {}), **config.get("metadata", {})}
    if "options" in base.get("metadata", {}):
        extra["options"] = base["metadata"]["options"] | config.get("metadata", {}).get("options", {})
    return {**base, **config, "metadata": extra}


def _function(name: str, path: Path) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    if not (path.parent / f"{module}.py").is_file() or not hasattr(
        found := _module(path.parent / f"{module}.py"), attribute
    ):
        raise UserError(
            f"{path.name} names {name}, which is not there.", f"Define {attribute} in tasks/{module}.py."
        )
    return getattr(found, attribute)


@cache
def _module(path: Path) -> ModuleType:
    name = f"lcfbench._tasks.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its functions pickle
    spec.loader.exec_module(module)
    return module


def _sources(path: Path) -> set[Path]:
    found = {path}
    for word in path.read_text(encoding="utf-8").replace("include:", "!include").split("\n"):
        if "!function" in word:
            found.add(path.parent / f"{word.split('!function')[1].split()[0].rpartition('.')[0]}.py")
        elif word.startswith("!include"):
            found |= _sources(path.parent / word.split()[1])
    return found

"""Task files: found, parsed and checked without lm-eval, so that listing tasks costs milliseconds.

A file is an lm-eval task whose extra keys stand under `metadata`. lm-eval skips a file it cannot parse
without a word, so every file is parsed here first and a mistake is an error.

>>> from lcfbench.tasks.yaml_files import describe, task_names
>>> "openbookqa" in task_names(), describe("openbookqa")["default_scoring"]
(True, 'letters')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lcfbench import registry
from lcfbench.errors import UserError, unknown
from lcfbench.parsing import load_yaml
from lcfbench.python_files import files_digest, import_file, source_files

SCORINGS = ("letters", "cloze", "generate")
CONTEXTS = ("shared", "different")
REQUIRED = ("description", "licence", "context", "default_scoring", "scorings")
FORM = "tasks/openbookqa.yaml shows the form."


def task_names() -> list[str]:
    """Names of all tasks: the YAML files that do not begin with an underscore."""
    return registry.names("tasks")


def describe(name: str) -> dict[str, Any]:
    """The facts about a task that `lcfbench ls tasks` shows. Raises UserError as `read_task` does."""
    config = read_task(name)
    extra = config["metadata"]
    dataset = "/".join(filter(None, (config.get("dataset_path"), config.get("dataset_name")))) or "generated"
    shown = {key: extra[key] for key in ("description", "default_scoring", "context", "licence")}
    options = {key: dict(option) for key, option in extra.get("options", {}).items()}
    return {
        "name": name,
        **shown,
        "scorings": list(extra["scorings"]),
        "dataset": dataset,
        "options": options,
    }


def task_table() -> list[dict[str, Any]]:
    """`describe` of every task; the description of one that cannot be used says why."""
    empty = {
        "default_scoring": "",
        "context": "",
        "licence": "",
        "scorings": [],
        "dataset": "",
        "options": {},
    }
    rows = []
    for name in task_names():
        try:
            rows.append(describe(name))
        except UserError as error:
            rows.append({"name": name, "description": f"cannot be used: {error}", **empty})
    return rows


def options_for(names: Sequence[str], given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The given options of each task, by name. Raises UserError for an option that none of them has."""
    known = {name: set(describe(name)["options"]) for name in names}
    every = set().union(*known.values())
    for key in given:
        if key not in every:
            raise unknown(f"option of {', '.join(names)}", key, every, "lcfbench ls tasks --json")
    return {name: {k: v for k, v in given.items() if k in known[name]} for name in names}


def read_task(name: str, *, functions: bool = False) -> dict[str, Any]:
    """A task's YAML with its includes merged; `!function` values as functions, else as their names.

    Raises UserError for an unknown task, and for a file that does not parse or lacks what it needs.
    """
    path = registry.find("tasks", name).file
    config = _read(path, _function if functions else lambda text, _: text, set())
    extra = config.get("metadata")
    if not isinstance(extra, dict) or (missing := [key for key in REQUIRED if key not in extra]):
        lacking = REQUIRED if not isinstance(extra, dict) else missing
        raise UserError(f"{path.name} lacks metadata.{', metadata.'.join(lacking)}.", FORM)
    if config.get("task") != name:
        raise UserError(f"{path.name} says task: {config.get('task')}.", "A task is called like its file.")
    if strange := [s for s in [*extra["scorings"], extra["default_scoring"]] if s not in SCORINGS]:
        raise unknown("scoring", strange[0], SCORINGS, f"tasks/{path.name}")
    if extra["default_scoring"] not in extra["scorings"]:
        raise unknown(
            "scoring", extra["default_scoring"], extra["scorings"], f"metadata.scorings of {path.name}"
        )
    if extra["context"] not in CONTEXTS:
        raise UserError(f"{path.name}: metadata.context is {extra['context']!r}.", "Say shared or different.")
    return config


def file_digest(name: str) -> str:
    """sha256 over a task's YAML, its includes, the Python files they name and the modules these import.

    Modules of the same folder and of `lcfbench.tasks` count: those that word and score the task.
    """
    files = set[Path]()

    def add_sources(function: str, path: Path) -> None:
        if (file := _file_of(function, path)).is_file():
            files.update(source_files(file, with_tasks=True))

    _read(registry.find("tasks", name).file, add_sources, files)
    return files_digest(files)


def _read(path: Path, resolve: Callable[[str, Path], Any], read: set[Path]) -> dict[str, Any]:
    """A YAML file with its includes. resolve: makes the value of a `!function`. read: gets all paths."""

    read.add(path)
    config = load_yaml(path, "task file", {"!function": lambda text: resolve(text, path)})
    if "include" not in config:
        return config
    base = _read(path.parent / config.pop("include"), resolve, read)
    own, theirs = config.get("metadata") or {}, base.get("metadata") or {}
    extra = {**theirs, **own}
    if "options" in theirs:
        extra["options"] = theirs["options"] | own.get("options", {})
    return {**base, **config, "metadata": extra}


def _file_of(function: str, path: Path) -> Path:
    return path.parent / f"{function.rpartition('.')[0]}.py"


def _function(name: str, path: Path) -> Callable[..., Any]:
    file, attribute = _file_of(name, path), name.rpartition(".")[2]
    found = _module(file, files_digest(source_files(file))) if file.is_file() else None
    if not hasattr(found, attribute):
        raise UserError(f"{path.name} names {name}, which is not there.", f"Define {attribute} in {file}.")
    return getattr(found, attribute)


@cache
def _module(file: Path, digest: str) -> ModuleType:
    """A Python file beside a task; one that has changed since has another digest and is read again."""
    try:
        return import_file(file, f"lcfbench._tasks.{file.stem}" if file.parent == registry.TASKS else "")
    except Exception as error:
        what = f"{file} cannot be imported: {type(error).__name__}: {error}."
        raise UserError(what, "Mend the file.") from error

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
from lcfbench.python_files import PACKAGE, files_digest, import_file, source_files
from lcfbench.tasks.examples import KEY as EXAMPLES
from lcfbench.tasks.examples import place_of
from lcfbench.tasks.groups import group_files
from lcfbench.tasks.own_files import completed
from lcfbench.tasks.stock_index import described, is_stock

SCORINGS = ("letters", "cloze", "generate")
CONTEXTS = ("shared", "different")
REQUIRED = ("description", "licence", "context", "default_scoring", "scorings")
FORM = "tasks/openbookqa.yaml shows the form."
SPLIT_KEYS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
_EXAMPLES = "_examples.yaml"  # those of our tasks: outside their own files, whose digests runs have recorded


def task_names() -> list[str]:
    """Names of all tasks: the YAML files that do not begin with an underscore and hold no group."""
    groups = group_files()
    return [name for name in registry.names("tasks") if name not in groups]


def describe(name: str) -> dict[str, Any]:
    """The facts about a task that `lcfbench ls tasks` shows. Raises UserError as `read_task` does."""
    if is_stock(name):
        return described(name)
    config = read_task(name)
    extra = config["metadata"]
    data = config.get("dataset_path")
    if files := extra.get("files"):
        data = ", ".join(dict.fromkeys(file.name for several in files.values() for file in several))
    dataset = "/".join(filter(None, (data, config.get("dataset_name")))) or "generated"
    own = (s for s, key in SPLIT_KEYS.items() if config.get(key))
    splits = () if dataset == "generated" else extra.get("splits") or [*own]
    shown = {key: extra[key] for key in ("description", "default_scoring", "context", "licence")}
    options = {key: dict(option) for key, option in (extra.get("options") or {}).items()}
    return {
        "name": name,
        **shown,
        "scorings": list(extra["scorings"]),
        "dataset": dataset,
        "examples": place_of(extra.get(EXAMPLES), splits),
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
        "examples": "",
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


def read_task(name: str, *, functions: bool = False, offline: bool | None = None) -> dict[str, Any]:
    """A task's YAML with its includes merged; `!function` values as functions, else as their names.

    The file of a user is completed (`own_files`); offline: whether the Hub may be asked for what that
    needs, None: only this disk. A table without a YAML counts as one of a few lines.
    Raises UserError for an unknown task, and for a file that does not parse or lacks what it needs.
    """
    entry = registry.find("tasks", name)
    path, resolve = entry.file, _function if functions else _named
    if path.suffix.lower() in registry.DATA:
        config: dict[str, Any] = {"dataset_path": path.name}
    else:
        config = _read(path, resolve, set())
    if entry.source == registry.OURS:
        if config.get("task") != name:
            raise UserError(
                f"{path.name} says task: {config.get('task')}.", "A task is called like its file."
            )
        if (given := _read(registry.TASKS / _EXAMPLES, resolve, set()).get(name)) is not None:
            config = laid_over({"metadata": {EXAMPLES: given}}, config)
    else:
        config = completed(config, path, lambda form: _read(registry.TASKS / form, resolve, set()), offline)
        config["task"] = name
    _check(config, path)
    return config


def _check(config: dict[str, Any], path: Path) -> None:
    """Raises UserError for metadata that lack a key or say something else than a task can use."""
    extra = config.get("metadata")
    if not isinstance(extra, dict) or (missing := [key for key in REQUIRED if key not in extra]):
        lacking = REQUIRED if not isinstance(extra, dict) else missing
        raise UserError(f"{path.name} lacks metadata.{', metadata.'.join(lacking)}.", FORM)
    kinds = {"scorings": dict, "options": dict, "views": dict, "description": str, "licence": str}
    for key, kind in kinds.items():
        if not isinstance(extra.get(key, kind()), kind):
            shown = "a mapping" if kind is dict else "text"
            raise UserError(f"{path.name}: metadata.{key} is not {shown}.", FORM)
    if strange := [s for s in [*extra["scorings"], extra["default_scoring"]] if s not in SCORINGS]:
        raise unknown("scoring", str(strange[0]), SCORINGS, f"metadata of {path.name}")
    if extra["default_scoring"] not in extra["scorings"]:
        raise unknown(
            "scoring", extra["default_scoring"], extra["scorings"], f"metadata.scorings of {path.name}"
        )
    for scoring, over in extra["scorings"].items():
        if not isinstance(over, dict) or not isinstance(over.get("primary"), str):
            raise UserError(
                f"{path.name}: metadata.scorings.{scoring} names no primary metric.",
                f"Write {scoring}: {{primary: acc}}.",
            )
    for option, facts in extra.get("options", {}).items():
        if not isinstance(facts, dict) or "default" not in facts:
            raise UserError(
                f"{path.name}: metadata.options.{option} has no default.", f"Write {option}: {{default: 0}}."
            )
    if extra["context"] not in CONTEXTS:
        raise UserError(f"{path.name}: metadata.context is {extra['context']!r}.", "Say shared or different.")


def file_digest(name: str) -> str:
    """sha256 over a task's YAML, its includes, the Python files they name and the modules these import.

    Modules of the same folder and of `lcfbench.tasks` count: those that word and score the task. Of a
    table without a YAML, its name counts; its rows are in the digest of the data.
    """
    entry = registry.find("tasks", name)
    files = dict[Path, None]()

    def add_sources(function: str, path: Path) -> None:
        if (file := _file_of(function, path)).is_file():
            files.update(dict.fromkeys(source_files(file, with_tasks=True)))

    read = set[Path]()
    if entry.file.suffix.lower() not in registry.DATA:
        _read(entry.file, add_sources, read)
    if entry.source != registry.OURS and read_task(name)["metadata"].get("columns") is not None:
        for form in ("_own_choice.yaml", "_own_text.yaml", "_own_different.yaml"):
            _read(registry.TASKS / form, add_sources, read)
        files[PACKAGE / "tasks" / "columns.py"] = None
    root = entry.file if entry.file in read else registry.TASKS / "_own_choice.yaml"
    return files_digest(dict.fromkeys([root, *sorted(read), *files]))


def _read(
    path: Path, resolve: Callable[[str, Path], Any], read: set[Path], above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A YAML file with its includes. resolve: makes the value of a `!function`. read: gets all paths.

    above: the files that include this one.
    """
    if path.resolve() in above:
        raise UserError(f"{path.name} includes itself.", "Take the include: out of one of the files.")
    read.add(path)
    config = load_yaml(path, "task file", {"!function": lambda text: resolve(text, path)})
    named = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for include in named if isinstance(named, list) else [named]:
        if not isinstance(include, str):
            raise UserError(f"{path.name}: include: {include!r} names no file.", "Write include: base.yaml.")
        other = path.parent / include
        if not other.is_file():
            raise UserError(f"{path.name} includes {include}, which is not there.", f"Write {other}.")
        merged = laid_over(_read(other, resolve, read, (*above, path.resolve())), merged)
    return laid_over(config, merged) if merged else config


def laid_over(config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A file over what it includes: its keys win, those of metadata and of its options each alone."""
    own, theirs = config.get("metadata") or {}, base.get("metadata") or {}
    if not (isinstance(own, dict) and isinstance(theirs, dict)):
        raise UserError("metadata is no mapping.", FORM)
    extra = {**theirs, **own}
    if "options" in theirs:
        extra["options"] = theirs["options"] | own.get("options", {})
    return {**base, **config, "metadata": extra}


def _named(text: str, path: Path) -> str:
    return text


def _file_of(function: str, path: Path) -> Path:
    return path.parent / f"{function.rpartition('.')[0].replace('.', '/')}.py"


def _function(name: str, path: Path) -> Callable[..., Any]:
    file, attribute = _file_of(name, path), name.rpartition(".")[2]
    found = _module(file, files_digest(source_files(file))) if file.is_file() else None
    if found is None or not hasattr(found, attribute):
        raise UserError(f"{path.name} names {name}, which is not there.", f"Define {attribute} in {file}.")
    return getattr(found, attribute)


@cache
def _module(file: Path, digest: str) -> ModuleType:
    """A Python file beside a task; one that has changed since has another digest and is read again."""
    try:
        return import_file(file, f"lcfbench._tasks.{file.stem}" if file.parent == registry.TASKS else "")
    except (Exception, SystemExit) as error:  # an author's module may raise anything
        what = f"{file} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}."
        raise UserError(what, "Mend the file.") from error

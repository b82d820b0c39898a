"""Names of methods, adapter kinds, tasks and controls, and the class or file behind each name.

A name comes from a file of this package; from an entry point `lcfbench.methods`, `lcfbench.adapters`,
`lcfbench.tasks` or `lcfbench.controls` of an installed package; from a file or folder that
`LCFBENCH_PLUGINS` (tasks: `LCFBENCH_TASKS` too) names; or from a path given on the spot.
Listing imports none of them, and nothing here imports torch.

>>> "lcf" in names("methods"), add_path("methods", "lcf")
(True, 'lcf')
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from lcfbench.errors import UserError, unknown
from lcfbench.python_files import docstring, extended, files_digest, import_file, source_files

PACKAGE = Path(__file__).parent
# in a wheel the task files lie inside the package, in a checkout beside it
TASKS = PACKAGE / "_tasks" if (PACKAGE / "_tasks").is_dir() else PACKAGE.parent / "tasks"
YAML, PYTHON = (".yaml", ".yml"), (".py",)
DATA = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # a table is a task as it stands
LONGEST_PART, LONGEST_PATH = 255, 4095  # bytes of a path's parts, and of the whole
LONGEST = 40  # characters of a task's name: it is part of every run folder's
OURS = "lcfbench"
LIBRARY = "lm-eval/"  # names of lm-eval's own tasks begin so (tasks.stock_index)


@dataclasses.dataclass(frozen=True)
class Group:
    """The facts that all members of a group share.

    base: the class they extend. must: methods of which a class defines at least one. helpers: files
    of the group's folder that are no members, beside those that begin with an underscore.
    """

    noun: str
    listing: str
    base: str = ""
    must: tuple[str, ...] = ()
    helpers: str = ""
    suffixes: tuple[str, ...] = PYTHON


GROUPS = {
    "methods": Group(
        "method", "lcfbench ls methods", "Method", ("respond", "send"), "base create load_pair ask needs"
    ),
    "adapters": Group(
        "adapter kind",
        "lcfbench adapter size --help",
        "Adapter",
        helpers="base config files card hub finding proof select dense_fit ridge c2c_files options untrained",
    ),
    "controls": Group(
        "control",
        "lcfbench run --help",
        "Control",
        ("message_from", "wrap"),
        "base names assignment wrappers",
    ),
    "tasks": Group("task", "lcfbench ls tasks", suffixes=YAML),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a name comes from.

    source: who offers it. file: its Python or YAML file. module: its dotted name, empty for a file
    outside any package. class_name: where an entry point gives one. problem: why it cannot be used
    and the next step.
    """

    name: str
    source: str
    file: Path
    module: str = ""
    class_name: str = ""
    problem: tuple[str, str] | None = None


_given: dict[Path, tuple[str, str]] = {}  # path → (group, path as it was typed)


def names(group: str) -> list[str]:
    """Names of a group in alphabetical order."""
    return list(_entries(group))


def method_names() -> list[str]:
    """Names of all methods."""
    return names("methods")


def kinds() -> list[str]:
    """Names of all adapter kinds."""
    return names("adapters")


def summaries(group: str) -> dict[str, str]:
    """The first docstring line of each member, or `cannot be used: …` with the reason."""
    out = {}
    for name in names(group):
        try:
            out[name] = _described(group, find(group, name)).removeprefix(f"{name}: ")
        except UserError as error:
            out[name] = f"cannot be used: {error}"
    return out


def method_summaries() -> dict[str, str]:
    """`NAME: what it does` for every method."""
    return {name: f"{name}: {text}" for name, text in summaries("methods").items()}


def given_paths() -> dict[Path, tuple[str, str]]:
    """Returns the files that were registered by path, for `adopt_paths` in another process."""
    return dict(_given)


def adopt_paths(given: Mapping[Path, tuple[str, str]]) -> None:
    """Registers the files that another process registered."""
    _given.update(given)


def add_path(group: str, text: str) -> str:
    """Registers the file where `text` is a path, and returns its name; returns other text unchanged.

    A path has a separator or ends as a file of the group does. Raises UserError where there is no such
    file, where its name is taken, and for a folder of several tasks.
    """
    names = add_paths(group, text)
    if len(names) > 1:
        raise UserError(f"{text} holds {len(names)} tasks: {', '.join(names)}.", "Name the file of one.")
    return names[0]


def add_paths(group: str, text: str) -> list[str]:
    """As `add_path`; a folder stands for every task file in it."""
    if not isinstance(text, str) or (group == "tasks" and text.startswith(LIBRARY)):
        return [text]  # its setting says what is wrong; a name of lm-eval's is no path
    path = Path(os.path.expanduser(text))
    sizes = [len(part.encode(errors="replace")) for part in path.parts]
    if max(sizes, default=0) > LONGEST_PART or sum(sizes) + len(sizes) > LONGEST_PATH:
        return [text]  # no file can be called so
    if group == "tasks" and path.is_dir() and (path.name != text or text not in _entries(group)):
        if not (files := _members(path, group)):
            raise UserError(f"{text} holds no task file (.yaml).", "Write one with `lcfbench task new`.")
        return [_add(group, file, text) for file in files]
    suffixes = PYTHON + YAML + (DATA if group == "tasks" else ())
    if "/" not in text and os.sep not in text and path.suffix.lower() not in suffixes:
        return [text]
    known, form = GROUPS[group], f"a {'YAML' if group == 'tasks' else 'Python'} file"
    if not path.is_file() or path.suffix.lower() not in (
        *known.suffixes,
        *(DATA if group == "tasks" else ()),
    ):
        what = f"{text} is not {form}." if path.exists() else f"there is no file {text}."
        raise UserError(what, f"Name {form} with one {known.noun}, or one of `{known.listing}`.")
    return [_add(group, path, text)]


def _add(group: str, path: Path, text: str) -> str:
    _given[path.resolve()] = group, text
    try:
        return find(group, name_of(group, path)).name
    except UserError:
        del _given[path.resolve()]  # the name stays with its first owner
        raise


def name_of(group: str, file: Path) -> str:
    """Returns the name of a file's member. A task's is short and of plain letters: it names folders too."""
    if group != "tasks":
        return file.stem
    plain = unicodedata.normalize("NFKD", file.stem).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip("_.-")
    lost = re.sub(r"[^\w.-]+", "_", file.stem).strip("_.-") != name
    if len(name) > LONGEST or lost:
        digest = hashlib.sha256(file.stem.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        name = f"{name[: LONGEST - 7].rstrip('_.') or 'task'}_{digest}"
    return name


def find(group: str, name: str) -> Entry:
    """Where a name comes from. Raises UserError for unknown names, names taken twice, broken entries."""
    known, noun = _entries(group), GROUPS[group].noun
    if group == "tasks" and name.startswith(LIBRARY):
        return Entry(name, OURS, Path(name))  # tasks.stock_index knows which there are
    if name not in known:
        raise unknown(noun, name, known, GROUPS[group].listing)
    entry, *others = known[name]
    if others:
        sources = " and by ".join(e.source for e in known[name])
        raise UserError(f"{noun} {name!r} is offered by {sources}.", "Rename or remove one of them.")
    if entry.problem:
        raise UserError(*entry.problem)
    return entry


def is_ours(group: str, name: str) -> bool:
    """Whether a name is one of this package's."""
    return find(group, name).source == OURS


# -- classes -------------------------------------------------------------------------------------


def load(group: str, name: str) -> type[Any]:
    """The class behind a name. A file outside any package is imported again once it has changed.

    Raises UserError for unknown names, modules that fail to import and classes that lack something.
    """
    entry = find(group, name)
    if entry.source == OURS:
        return class_in(entry.module, _base(group))
    return _plugin_class(group, entry, source_digest(group, name))


@cache
def class_in(module: str, base: Any) -> type[Any]:
    """The one class of a module of ours that extends `base`."""
    found = _classes_in(importlib.import_module(module), base)
    assert len(found) == 1, f"{module} must define exactly one {base.__name__}, found {found}"
    return found[0]


@cache
def _plugin_class(group: str, entry: Entry, digest: str | None) -> type[Any]:
    base, noun, must = _base(group), GROUPS[group].noun, GROUPS[group].must
    who = f"{noun} {entry.name} ({entry.source})"
    _described(group, entry)
    try:
        module = importlib.import_module(entry.module) if entry.module else _module(entry.file, digest)
        found = [getattr(module, entry.class_name)] if entry.class_name else _classes_in(module, base)
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(entry.file)]
        what = f"{who} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}."
        step = f"Mend {entry.file}{f', line {lines[-1]}' if lines else ''}."
        raise UserError(what, step) from error
    step = f"Define one class that extends lcfbench.{group}.base.{base.__name__} in {entry.file}."
    if len(found) != 1:
        classes = ", ".join(c.__name__ for c in found)
        raise UserError(f"{who} defines {f'several classes: {classes}' if found else f'no {noun}'}.", step)
    kind = found[0]
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UserError(f"{who}: {entry.class_name} does not extend {base.__name__}.", step)
    if must and all(getattr(kind, method) is getattr(base, method) for method in must):
        raise UserError(f"{who}: class {kind.__name__} defines no {' or '.join(must)}.", f"See {entry.file}.")
    options = [k for k, hint in inspect.get_annotations(kind).items() if "ClassVar" not in str(hint)]
    if dataclasses.is_dataclass(base) and options and "__dataclass_params__" not in vars(kind):
        what = f"{who}: class {kind.__name__} has an option {options[0]} but is no dataclass."
        raise UserError(what, f"Put @dataclass above it in {entry.file}.")
    return kind


@cache  # once for the groups of a file: its method names its own adapter's class
def _module(file: Path, digest: str | None) -> ModuleType:
    return import_file(file)


def _base(group: str) -> Any:
    return getattr(importlib.import_module(f"lcfbench.{group}.base"), GROUPS[group].base)


def _classes_in(module: ModuleType, base: type) -> list[type]:
    """Classes that a module defines on top of `base`: no `_Names`, none that another of them extends."""
    own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    own = [c for c in own if c.__module__ == module.__name__ and not c.__name__.startswith("_")]
    return [c for c in own if not any(c in other.__mro__[1:] for other in own)]


def _described(group: str, entry: Entry) -> str:
    """The first docstring line. Raises UserError where there is none."""
    if text := docstring(entry.file, entry.class_name):
        return text
    raise UserError(
        f"{entry.file} has no docstring.", f"Say in its first line what the {GROUPS[group].noun} does."
    )


def source_digest(group: str, name: str) -> str | None:
    """sha256 of a plugin's file and of the modules beside it that it imports; None for what is ours.

    None for tasks: `tasks.yaml_files.file_digest` gives theirs.
    """
    entry = find(group, name)
    if entry.source == OURS or group == "tasks":
        return None
    return _package_digest(entry.file) if entry.module else files_digest(source_files(entry.file))


@cache  # a package is imported once in a process: its code stays as it was then
def _package_digest(file: Path) -> str:
    return files_digest(source_files(file))


# -- where names come from -----------------------------------------------------------------------


def _entries(group: str) -> dict[str, tuple[Entry, ...]]:
    variables = ["LCFBENCH_PLUGINS", *(["LCFBENCH_TASKS"] if group == "tasks" else [])]
    named = [(v, text) for v in variables for text in os.environ.get(v, "").split(os.pathsep) if text]
    given = tuple((file, how) for file, how in _given.items() if file.is_file())
    return _scan(group, TASKS, tuple(named), given, tuple(sys.path))


@cache
def _scan(
    group: str, tasks: Path, named: Sequence, given: Sequence, path: Sequence
) -> dict[str, tuple[Entry, ...]]:
    found: dict[str, dict[Path, Entry]] = {}
    by_path = [
        Entry(name_of(group, f), text, f) for f, (of, text) in given if group == of or group in _groups(f)
    ]
    for entry in [*_ours(group, tasks), *_installed(group), *_named(group, named), *by_path]:
        found.setdefault(entry.name, {}).setdefault(entry.file.resolve(), entry)
    return {name: tuple(found[name].values()) for name in sorted(found)}


def _members(folder: Path, group: str) -> list[Path]:
    files = [f for f in folder.iterdir() if f.suffix in GROUPS[group].suffixes]
    return sorted(f for f in files if not f.name.startswith(("_", ".")))


def _ours(group: str, tasks: Path) -> Iterator[Entry]:
    for file in _members(tasks if group == "tasks" else PACKAGE / group, group):
        if file.stem not in GROUPS[group].helpers.split():
            name = file.stem.replace("_", "-") if group == "controls" else file.stem  # equal-text
            yield Entry(name, OURS, file, f"lcfbench.{group}.{file.stem}")


def _installed(group: str) -> Iterator[Entry]:
    for point in entry_points(group=f"lcfbench.{group}"):
        source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        place = _place(point.module)
        if place is None:
            problem = f"{source} names the module {point.module}, which is not there.", "Install it again."
            yield Entry(point.name, source, Path(point.module), problem=problem)
        elif group == "tasks":
            files = _members(place if place.is_dir() else place.parent, group)
            yield from (Entry(name_of(group, file), source, file) for file in files)
        else:
            yield Entry(point.name, source, place, point.module, point.attr)


def _place(module: str) -> Path | None:
    """The file of a module, or its folder, found without importing the packages round it."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not rest:
        return Path(spec.origin) if spec is not None and spec.origin else None
    for base in (Path(folder, *rest) for folder in spec.submodule_search_locations or ()):
        for place in (base.with_name(f"{base.name}.py"), base / "__init__.py", base):
            if place.exists():
                return place
    return None


def _named(group: str, named: Sequence[tuple[str, str]]) -> Iterator[Entry]:
    for variable, text in named:
        place = Path(text).expanduser()
        problem = None
        if place.is_dir():
            files = [f for f in _members(place, group) if group == "tasks" or group in _groups(f)]
            yield from (Entry(name_of(group, f), f"{variable} ({f})", f) for f in files)
            continue
        if not place.exists():
            problem = f"{variable} names {text}, which is not there.", "Correct the path, or leave it out."
        elif group != "tasks" and not _groups(place):
            problem = (
                f"{text} ({variable}) defines no method, adapter kind or control.",
                "Extend Method, Adapter or Control in it (docs/extending.md).",
            )
        mine = problem or group == "tasks" or group in _groups(place)
        suffixes = (*GROUPS[group].suffixes, *(DATA if variable == "LCFBENCH_TASKS" else ()))
        if not place.exists() and not place.suffix:  # a folder that is not there
            suffixes = ("",)
        if mine and place.suffix.lower() in suffixes:
            yield Entry(name_of(group, place), f"{variable} ({text})", place, problem=problem)


def _groups(file: Path) -> set[str]:
    """Groups whose base class, or a class of whose folder, the classes of a Python file extend."""
    try:
        bases = extended(file) if file.suffix in PYTHON else set()
    except UserError:
        return {"methods", "adapters", "controls"}  # what is wrong is said where it is listed or used
    return {
        group
        for group, known in GROUPS.items()
        if known.base
        and any(b == f"lcfbench.{known.base}" or b.startswith(f"lcfbench.{group}.") for b in bases)
    }

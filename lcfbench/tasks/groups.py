"""Groups of tasks: a name that stands for several, and how their scores make one average.

A packaged group is a file `tasks/groups/NAME.yaml`. A user's own is a YAML with `group: NAME` and
`task: [A, B]`, as lm-eval has them, or with `members: {A: 2, B: 1}`.

>>> from lcfbench.tasks.groups import expand
>>> expand(["c2c", "arc_challenge"])
['openbookqa', 'arc_challenge', 'mmlu_redux', 'ceval']
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lcfbench import registry
from lcfbench.errors import UserError, unknown
from lcfbench.parsing import load_yaml
from lcfbench.tasks import stock_index

Weighting = Literal["documents", "equal", "given"]
FORM = "tasks/groups/lcf-shared.yaml shows the form."
KEYS = ("group", "title", "members", "weighting", "published")  # ours, then lm-eval's
THEIRS = ("task", "group_alias", "aggregate_metric_list", "metadata")


@dataclass(frozen=True)
class PublishedAverage:
    """A published average of a group.

    score: a fraction. label: the source's name of the method. adapter_mb: 10⁶ bytes, None where the
    source gives none. whole: label of the adapter that this one was pruned from.
    """

    pair: str
    method: str
    score: float
    source: str
    label: str = ""
    control: str = "matched"
    adapter_mb: float | None = None
    whole: str = ""


@dataclass(frozen=True)
class Group:
    """Tasks under one name.

    members: the weight of each task; None: the documents of its run. weighting: "documents" (weights
    are numbers of questions), "equal" or "given". source: who offers it.
    """

    name: str
    title: str
    members: Mapping[str, float | None]
    weighting: Weighting
    published: tuple[PublishedAverage, ...] = ()
    source: str = registry.OURS


def group_names() -> list[str]:
    """Names of the packaged groups, then of the user's own."""
    return list(dict.fromkeys([*packaged_names(), *(own.name for own in _own_files())]))


def packaged_names() -> list[str]:
    """Names of the groups that this package has."""
    return [path.stem for path in sorted((registry.TASKS / "groups").glob("*.yaml"))]


def find_group(name: str) -> Group | None:
    """The group of that name; None where no finder knows one.

    Raises UserError for a broken file, and for a name that several finders know.
    """
    found = [group for finder in FINDERS if (group := finder(name)) is not None]
    if len(found) > 1:
        sources = " and by ".join(group.source for group in found)
        raise UserError(f"group {name!r} is offered by {sources}.", "Rename one of them.")
    return found[0] if found else None


def expand(names: Iterable[Any]) -> list[Any]:
    """The names with every group replaced by its members, each task once, in their order."""
    found: dict[Any, None] = {}
    for name in names:
        group = find_group(name) if isinstance(name, str) else None
        found |= dict.fromkeys([name] if group is None else group.members)
    return list(found)


def group_table() -> list[dict[str, Any]]:
    """The facts about every group that `lcfbench ls groups` shows; of a broken one what is wrong."""
    rows = []
    for name in group_names():
        try:
            group = _found(name)
            rows.append(
                {
                    "name": name,
                    "weighting": group.weighting,
                    "members": dict(group.members),
                    "description": group.title,
                    "published": len(group.published),
                    "source": group.source,
                }
            )
        except UserError as error:
            empty = {"weighting": "", "members": {}, "published": 0, "source": ""}
            rows.append({"name": name, **empty, "description": f"cannot be used: {error}"})
    return rows


def chosen_groups(texts: Sequence[str]) -> list[Group]:
    """The groups of these names or files. Raises UserError for a name that no group has."""
    return [_found(name) for text in texts for name in registry.add_paths("tasks", text)]


def known_groups() -> list[Group]:
    """Every group that `group_names` lists and that can be read."""
    found = []
    for name in group_names():
        try:
            found.append(_found(name))
        except UserError:  # `lcfbench ls groups` says what is wrong with it
            continue
    return found


def _found(name: str) -> Group:
    if (group := find_group(name)) is None:
        raise unknown("group", name, group_names(), "lcfbench ls groups")
    return group


# -- files ---------------------------------------------------------------------------------------


def is_group(config: Mapping[str, Any]) -> bool:
    """Whether a YAML's content is a group of tasks, and no task."""
    return isinstance(config.get("task"), list) or "members" in config


def group_files() -> set[str]:
    """Names under which the registry of tasks holds the files of groups."""
    return {own.file_name for own in _own_files()}


def _packaged(name: str) -> Group | None:
    known = name in packaged_names()
    return _read(registry.TASKS / "groups" / f"{name}.yaml", registry.OURS) if known else None


def _own(name: str) -> Group | None:
    """A user's own group, by its name or that of its file."""
    path = _own_file(name)
    return None if path is None else _read(path, str(path), (path.resolve(),))


def _stock(name: str) -> Group | None:
    """A group or tag of lm-eval's. lm-eval gives an average of a group that lists its metrics alone."""
    if not stock_index.is_group(name):
        return None
    facts = stock_index.entry(name)
    weighting: Weighting = facts.get("weights") or "equal"
    weight = 1.0 if weighting == "equal" else None
    title = facts.get("title") or f"lm-eval's {facts['kind']} {name.removeprefix(registry.LIBRARY)}"
    members = {one.name: weight for one in stock_index.leaves(name)}
    return Group(name, title, members, weighting, source=f"lm-eval {stock_index.version()}")


FINDERS: list[Callable[[str], Group | None]] = [_packaged, _own, _stock]


class _File(NamedTuple):
    """A user's group file. name: of the group. file_name: in the registry of tasks."""

    name: str
    file_name: str
    path: Path


def _own_files() -> list[_File]:
    found = []
    for name in registry.names("tasks"):
        try:
            entry = registry.find("tasks", name)
        except UserError:  # it is said where the name is used
            continue
        if entry.source != registry.OURS and entry.file.suffix.lower() in registry.YAML:
            config = _content(entry.file)
            if is_group(config):
                said = config.get("group")
                found.append(_File(said if isinstance(said, str) and said else name, name, entry.file))
    return found


def _own_file(name: str) -> Path | None:
    files = [own for own in _own_files() if name in (own.name, own.file_name)]
    if len(files) > 1:
        paths = " and by ".join(str(own.path) for own in files)
        raise UserError(f"group {name!r} is offered by {paths}.", "Rename one of them.")
    if files and name != files[0].file_name and name in registry.names("tasks"):
        raise UserError(f"{files[0].path.name}: {name} is also a task.", "Give the group another name.")
    return files[0].path if files else None


def _content(path: Path) -> dict[str, Any]:
    """The content of a YAML file; empty where it is none, which is said where its task is read."""
    try:
        state = os.stat(path)
        return _loaded(path, (state.st_mtime_ns, state.st_size))
    except (OSError, UserError):
        return {}


@cache
def _loaded(path: Path, state: tuple[int, int]) -> dict[str, Any]:
    return load_yaml(path, "task file", {"!function": str})


def _read(path: Path, source: str, above: tuple[Path, ...] = ()) -> Group:
    """A group's file. above: it, and the files of the groups that it is part of."""
    config, who = load_yaml(path, "group file"), path.name
    if strange := [key for key in config if key not in (*KEYS, *THEIRS)]:
        what = f"{who} is a group of tasks, which has no key {strange[0]!r}."
        raise UserError(what, f"Write it in the tasks' own files. Its keys: {', '.join((*KEYS, *THEIRS))}.")
    name = config.get("group") or path.stem
    title = config.get("title") or config.get("group_alias") or f"{name} ({who})"
    if not (isinstance(name, str) and isinstance(title, str)):
        raise UserError(f"{who}: the group's name or title is no text.", FORM)
    weighting = _weighting(config, who)
    members = _members(config, who, path, above)
    if weighting == "equal":
        members = dict.fromkeys(members, 1.0)
    if weighting == "given" and (lacking := [task for task, weight in members.items() if weight is None]):
        raise UserError(f"{who}: {lacking[0]} has no weight.", f"Write members: {{{lacking[0]}: 1}}.")
    published = tuple(_published(row, who) for row in _list(config, "published", who))
    return Group(name, title, members, weighting, published, source)


def _weighting(config: Mapping[str, Any], who: str) -> Weighting:
    """As the file says; else by lm-eval's weight_by_size; else given where it has weights, or equal."""
    said = config.get("weighting")
    if said is None:
        sized = {
            entry.get("weight_by_size", True)
            for entry in _list(config, "aggregate_metric_list", who)
            if isinstance(entry, dict)
        }
        if len(sized) == 1:
            said = "documents" if sized.pop() else "equal"
        else:
            said = "given" if "members" in config else "equal"
    if said not in get_args(Weighting):
        raise unknown("weighting", str(said), get_args(Weighting), f"weighting in {who}")
    return said  # type: ignore[return-value]


def _members(
    config: Mapping[str, Any], who: str, path: Path, above: tuple[Path, ...]
) -> dict[str, float | None]:
    """The weight of each task; a group among them stands for its own members."""
    given = config.get("members", config.get("task"))
    if isinstance(given, list):
        given = dict.fromkeys(given) if all(isinstance(name, str) for name in given) else None
    if not isinstance(given, dict) or not given:
        what = f"{who}: {'members' if 'members' in config else 'task'} is no list of names."
        raise UserError(what, "Write task: [openbookqa, arc_challenge]; a changed task is a file of its own.")
    found: dict[str, float | None] = {}
    for text, weight in given.items():
        if weight is not None and not _positive(weight):
            raise UserError(f"{who}: the weight of {text} is {weight!r}.", "Give a number above 0.")
        name, below = _member(text, who, path, above)
        if below is not None and weight is not None:
            raise UserError(f"{who}: {text} is a group and has a weight.", "Give each of its tasks one.")
        found |= {name: weight and float(weight)} if below is None else below.members
    return found


def _member(text: str, who: str, path: Path, above: tuple[Path, ...]) -> tuple[str, Group | None]:
    """The name of a member, and the group where it is one. A file's path counts from the group's file."""
    name = text
    if Path(text).suffix.lower() in registry.YAML + registry.DATA:
        name = registry.add_path("tasks", str(path.parent / text))
    if (file := _own_file(name)) is None:
        return name, next((g for finder in FINDERS if finder is not _own and (g := finder(name))), None)
    if file.resolve() in above:
        raise UserError(f"{who}: the group includes itself.", "Take it out of the list of its tasks.")
    return name, _read(file, str(file), (*above, file.resolve()))


def _positive(weight: Any) -> bool:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return number and math.isfinite(weight) and weight > 0


def _list(config: Mapping[str, Any], key: str, who: str) -> list[Any]:
    found = config.get(key) or []
    if not isinstance(found, list):
        raise UserError(f"{who}: {key} is no list.", FORM)
    return found


def _published(row: Any, who: str) -> PublishedAverage:
    known = {f.name for f in fields(PublishedAverage)}
    if not isinstance(row, dict) or not {"pair", "method", "score", "source"} <= set(row) <= known:
        what = f"{who}: a published average has pair, method, score and source, and no other keys than"
        raise UserError(f"{what} {', '.join(sorted(known))}.", FORM)
    score = row["score"]
    if not (_positive(score) and score <= 100):
        raise UserError(f"{who}: the published score {score!r} is no number of per cent.", FORM)
    texts = {key: str(value) for key, value in row.items() if key not in ("score", "adapter_mb")}
    return PublishedAverage(**texts, score=score / 100, adapter_mb=row.get("adapter_mb"))

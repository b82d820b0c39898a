"""Names of lm-eval's own tasks and groups, from an index that is made once for an installed version.

lm-eval reads about 14,000 files to know its tasks; the index is kept in the cache as one JSON file.
Here a task is called `lm-eval/NAME`.

>>> from lcfbench.tasks.stock_index import is_stock, leaves
>>> is_stock("lm-eval/hellaswag"), [leaf.name for leaf in leaves("lm-eval/ai2_arc")]   # doctest: +SKIP
(True, ['lm-eval/arc_challenge', 'lm-eval/arc_easy'])
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError, unknown
from lcfbench.registry import LIBRARY
from lcfbench.sources.cache import cache_dir, lock

PREFIX = LIBRARY
EXAMPLES = "as lm-eval takes them"  # of a task of its own
LISTING = "lcfbench ls tasks 'lm-eval/*'"
FORM = 2  # of the index file

OPTIONS: dict[str, dict[str, Any]] = {
    "chat": {
        "default": "no",
        "choices": ["no", "yes", "multiturn"],
        "help": "chat template as lm-eval's --apply_chat_template; multiturn: each example is a turn",
    },
    "metric": {
        "default": "",
        "help": "score of a document, as acc_norm or exact_match,FILTER; empty: the first",
    },
    "fewshot_seed": {"default": 1234, "help": "seed that draws the examples, as lm-eval's own default"},
    "system": {"default": "", "help": "system instruction, as lm-eval's --system_instruction"},
}


@dataclass(frozen=True)
class Leaf:
    """A task as it is run: its name here, the file it comes from, and what groups lay over its config."""

    name: str
    file: str
    over: Mapping[str, Any] = field(default_factory=dict)


def is_stock(name: str) -> bool:
    """Says whether a name is written as one of lm-eval's, known or not."""
    return name.startswith(PREFIX)


def folder() -> Path:
    """The folder of lm-eval's task files; lm-eval is not imported."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed.", 'Install it: pip install "lm-eval[hf]==0.4.13".')
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def version() -> str:
    """The installed version of lm-eval."""
    return importlib.metadata.version("lm-eval")


def index() -> dict[str, dict[str, Any]]:
    """Every task, group and tag by lm-eval's own name.

    Each has `kind` (task, class, group or tag) and `file`; tasks `output`, `dataset`, `shots` and
    `splits`; groups and tags `members`, as lm-eval lists them, groups also `over` and `weights`.
    """
    root = folder()
    return _index(str(root), _state(root))


@cache
def _state(root: Path) -> str:
    """A digest of the version and of the folders' times: an edited installation is read again."""
    inner = sorted((e.name, e.stat().st_mtime_ns) for e in os.scandir(root) if e.is_dir())
    return hashlib.sha256(json.dumps([FORM, version(), str(root), inner]).encode()).hexdigest()[:16]


@cache
def _index(root: str, state: str) -> dict[str, dict[str, Any]]:
    file = cache_dir() / "lm-eval" / f"{version()}-{state}.json"
    if (found := _kept(file)) is not None:
        return found
    with lock("lm-eval-index"):
        if (found := _kept(file)) is not None:
            return found
        made = _made(Path(root))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(made, sort_keys=True), encoding="utf-8")
        os.replace(part, file)
    return made


def _kept(file: Path) -> dict[str, dict[str, Any]] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut by a kill: it is made again
        return None
    return found if isinstance(found, dict) and found else None


def _made(root: Path) -> dict[str, dict[str, Any]]:
    """lm-eval's own index, without what it does not need to be found again."""
    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of names that its files give twice
    from lm_eval.tasks._index import Kind, TaskIndex

    kinds = {Kind.TASK: "task", Kind.PY_TASK: "class", Kind.GROUP: "group", Kind.TAG: "tag"}
    found = {}
    for name, entry in TaskIndex.build([root]).items():
        config = entry.cfg or {}
        facts: dict[str, Any] = {"kind": kinds[entry.kind], "file": ""}
        if entry.yaml_path is not None:
            facts["file"] = entry.yaml_path.relative_to(root).as_posix()
        if facts["kind"] == "tag":
            facts["members"] = sorted(entry.tags)
        elif facts["kind"] == "group":
            facts |= _group_facts(config)
        else:
            facts |= {
                "output": str(config.get("output_type") or "generate_until"),
                "dataset": "/".join(
                    str(config[k]) for k in ("dataset_path", "dataset_name") if config.get(k)
                ),
                "shots": config.get("num_fewshot"),
                "splits": [k for k in ("training", "validation", "test") if config.get(f"{k}_split")],
            }
        found[name] = facts
    return json.loads(json.dumps(found, default=str))


def _group_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES

    members = config.get("task") or []
    metrics = config.get("aggregate_metric_list") or []
    weights = [m.get("weight_by_size", True) for m in ([metrics] if isinstance(metrics, dict) else metrics)]
    over = {k: v for k, v in config.items() if k not in GROUP_FIELD_NAMES}
    return {
        "members": [members] if isinstance(members, str) else members,
        "over": over,
        "weights": None if not weights else "documents" if weights[0] else "equal",
        "title": config.get("group_alias") or "",
    }


def entry(name: str) -> dict[str, Any]:
    """The facts behind a name here. Raises UserError for one that lm-eval does not have."""
    known, plain = index(), name.removeprefix(PREFIX)
    if plain not in known:
        raise unknown("lm-eval task", plain, known, LISTING)
    return known[plain]


def matching(pattern: str) -> list[dict[str, Any]]:
    """The facts of the names that fit a pattern such as `lm-eval/mmlu*`, in alphabetical order.

    A pattern without `*`, `?` and `[` is a part of a name.
    """
    plain = pattern.removeprefix(PREFIX)
    found = fnmatch.filter(index(), plain if set(plain) & set("*?[") else f"*{plain}*")
    return [{"name": PREFIX + name, **index()[name]} for name in sorted(found)]


def is_group(name: str) -> bool:
    """Says whether a name stands for several tasks."""
    return is_stock(name) and index().get(name.removeprefix(PREFIX), {}).get("kind") in ("group", "tag")


def leaf(name: str) -> Leaf:
    """The one task of a name; `lm-eval/GROUP::TASK` is a task as a group asks it.

    Raises UserError for an unknown name and for a group.
    """
    plain = name.removeprefix(PREFIX)
    if plain not in index() and "::" in plain:
        group = next((g for g in _heads(plain) if g in index()), None)
        if group is not None:
            for one in leaves(PREFIX + group):
                if one.name == name:
                    return one
    facts = entry(name)
    if facts["kind"] in ("group", "tag"):
        raise UserError(
            f"{name} is a group of tasks.", "Name one of its tasks, or the group alone in --task."
        )
    return Leaf(name, facts["file"])


def _heads(plain: str) -> list[str]:
    parts = plain.split("::")
    return ["::".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def leaves(name: str) -> list[Leaf]:
    """The tasks that a group or tag stands for, in lm-eval's order, each once.

    A task that a group asks in another way than its own file, such as with examples, is called
    `lm-eval/GROUP::TASK`. Raises UserError for an unknown name.
    """
    facts = entry(name)
    if facts["kind"] in ("task", "class"):
        return [leaf(name)]
    plain = name.removeprefix(PREFIX)
    found: dict[str, Leaf] = {}
    for one in _leaves(plain, facts, {}, (plain,)):
        twice, number = one.name, 2
        while twice in found and found[twice].over != one.over:
            twice, number = f"{one.name}~{number}", number + 1
        found.setdefault(twice, Leaf(twice, one.file, one.over))
    return list(found.values())


def _leaves(group: str, facts: Mapping[str, Any], over: Mapping[str, Any], path: Sequence[str]) -> list[Leaf]:
    """As lm-eval's factory builds a group: the group's own keys lie under those of its callers.

    path: the groups from the one that was asked for down to this one.
    """
    known, found = index(), []
    merged = {**facts.get("over", {}), **over}
    for item in facts["members"]:
        inner = {k: v for k, v in item.items() if k != "group"} if isinstance(item, dict) else {}
        own = {**merged, **inner}
        name = item if isinstance(item, str) else item.get("group") or item.get("task")
        if not isinstance(name, str):
            raise UserError(f"lm-eval's group {group} lists an entry without a name.", "Name its tasks.")
        there = known.get(name)
        if isinstance(item, dict) and "group" in item and there is None:
            nested = {**_group_facts(item), "kind": "group"}
            found += _leaves(f"{group}::{name}", nested, merged, (*path, name))
        elif there is not None and there["kind"] in ("group", "tag"):
            if name in path:
                raise UserError(f"lm-eval's group {name} holds itself.", "Name its tasks.")
            found += _leaves(name, there, own, (*path, name))
        else:
            found.append(_leaf(path[0], name, own))
    return found


def _leaf(root: str, name: str, over: Mapping[str, Any]) -> Leaf:
    known = index().get(name)
    laid = {k: v for k, v in over.items() if k not in ("task", "task_alias", "tag", "metadata")}
    if known is None:
        return Leaf(f"{PREFIX}{root}::{name}", "", {**over, "task": name})
    return Leaf(f"{PREFIX}{root}::{name}" if laid else PREFIX + name, known["file"], laid)


def described(name: str) -> dict[str, Any]:
    """The facts that `ls tasks` shows; lm-eval is not imported. Raises UserError for an unknown name."""
    one = leaf(name)
    facts = index().get(name.removeprefix(PREFIX), {})
    output = str(one.over.get("output_type") or facts.get("output") or "")
    scoring = "generate" if output == "generate_until" else "cloze"
    return {
        "name": name,
        "description": f"lm-eval's {name.removeprefix(PREFIX)} ({output.replace('_', ' ') or 'a class'}).",
        "default_scoring": scoring,
        "context": "shared",
        "licence": "see the data set's card",
        "scorings": [scoring],
        "dataset": str(facts.get("dataset") or one.over.get("dataset_path") or ""),
        "examples": EXAMPLES,
        "options": copy.deepcopy(OPTIONS),
    }

"""Labels: the mode, and where several groups share it, the settings that tell them apart.

from lcfbench.analysis.naming import labels
labels(groups)   # ["receiver", "lcf width=64", "lcf width=128"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

ADAPTER = ("adapter_sha256", "adapter_config")  # of an identity
VARIANT = ("options.", "adapter.")  # settings that a label shows on every task
FOLDER = "adapter.folder"
UNTOLD = ("prompts_sha256", "plugins", "behaviour")  # tell a reader nothing


def labels(groups: Sequence[Any]) -> list[str]:
    """One for each `RunGroup`, in order; a variant has one label on all tasks and controls.

    Adapters are told apart by what they are, else by their folders. Digests tell groups apart only
    where nothing else does, the run's id where groups differ in what tells a reader nothing.
    """
    families: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}
    for i, group in enumerate(groups):
        cells = families.setdefault((group.pair, group.mode), {})
        cells.setdefault((group.task, group.scoring, group.control), []).append(i)
    found: dict[int, str] = {}
    for cells in families.values():
        found |= _of_family(groups, list(cells.values()))
    return [found[i] for i in range(len(groups))]


def _of_family(groups: Sequence[Any], cells: Sequence[Sequence[int]]) -> dict[int, str]:
    """The labels of one method. cells: the groups of one task, scoring and control."""
    every = [i for members in cells for i in members]
    settings = {i: _flat(groups[i].identity or {"run": groups[i].run_ids[0][-6:]}) for i in every}
    if words := _adapters([[groups[i] for i in members] for members in cells]):
        for i in every:
            kept = {name: value for name, value in settings[i].items() if name not in ADAPTER}
            settings[i] = words[_adapter(groups[i])] | kept
    differ = [_differing([settings[i] for i in members]) for members in cells]
    variant = dict.fromkeys(name for names in differ for name in names if name.startswith(VARIANT))
    found = {}
    for members, names in zip(cells, differ, strict=True):
        flat = [settings[i] for i in members]
        told = [*variant, *(n for n in names if n not in variant and n.split(".")[0] not in UNTOLD)]
        tell = [
            name for name in told if not all(own.get(name) is None or is_digest(own[name]) for own in flat)
        ] or told
        for i, own in zip(members, flat, strict=True):
            texts = [
                ("" if n == FOLDER else f"{n.rpartition('.')[2]}=") + _short(own[n])
                for n in tell
                if own.get(n) is not None
            ]
            found[i] = " ".join([groups[i].mode, *texts])
        alike = Counter(found[i] for i in members)
        for i in members:
            if names and alike[found[i]] > 1:  # they differ in what was left out
                found[i] += f" run={groups[i].run_ids[0][-6:]}"
    return found


def _adapters(cells: Sequence[Sequence[Any]]) -> dict[Any, dict[str, Any]]:
    """What tells the adapters of one method apart, for each of them; empty where nothing must.

    One or two of their settings (width, layers), else their folders; empty too where folders are alike.
    """
    apart = [members for members in cells if len({_adapter(group) for group in members}) > 1]
    groups = [group for members in cells for group in members]
    shapes = {_adapter(group): _shape(group) for group in groups}
    names = {_adapter(g): {FOLDER: g.manifest.adapter} for g in groups if _known(g)}
    names = {_adapter(group): {} for group in groups} | names
    differ = _differing([shapes[_adapter(g)] for members in apart for g in members])
    choices = [[name] for name in differ] + ([differ] if len(differ) == 2 else [])
    for chosen in choices if apart else []:
        told = {key: {n: shape[n] for n in chosen if n in shape} for key, shape in shapes.items()}
        if all(_unique(members, told) for members in apart):
            return told
    return names if apart and all(_unique(members, names) for members in apart) else {}


def _unique(groups: Sequence[Any], words: Mapping[Any, Any]) -> bool:
    adapters = {_adapter(group) for group in groups}
    return len({repr(words[key]) for key in adapters}) == len(adapters)


def _adapter(group: Any) -> tuple[Any, ...]:
    """Which adapter a group ran."""
    return tuple(group.identity.get(name) for name in ADAPTER)


def _known(group: Any) -> bool:
    return bool(getattr(getattr(group, "manifest", None), "adapter", None))


def _shape(group: Any) -> dict[str, Any]:
    """The options of a group's adapter, and its layers as `9/30`; empty where they are not recorded."""
    facts = getattr(getattr(group, "manifest", None), "adapter_facts", None)
    if facts is None:
        return {}
    options = {name: value for name, value in facts.options.items() if not isinstance(value, (list, dict))}
    return _flat({"adapter": {**options, "layers": f"{facts.layers}/{facts.receiver_layers}"}})


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for own in settings for name in own)
    return [name for name in names if len({repr(own.get(name)) for own in settings}) > 1]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return found


def _short(value: Any) -> str:
    if is_digest(value):
        return "+".join(each[:6] for each in value.split("+"))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "_".join(text.split())


def is_digest(value: Any) -> bool:
    """Whether a value is a text of 32 or more hexadecimal digits, or several with a plus between them."""
    if not isinstance(value, str):
        return False
    return all(len(each) >= 32 and not each.strip("0123456789abcdef") for each in value.split("+"))

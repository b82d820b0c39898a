"""Labels: the mode, and where several groups share it, the settings that tell them apart.

from lcfbench.analysis.naming import labels
labels(groups)   # ["receiver", "lcf width=64", "lcf width=128"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

UNTOLD = ("prompts_sha256", "plugins", "behaviour")  # tell a reader nothing


def labels(groups: Sequence[Any]) -> list[str]:
    """One for each `RunGroup`, in order. Digests tell groups apart only where nothing else does, the
    run's id where groups differ in what tells a reader nothing."""
    together: dict[tuple[str, ...], list[int]] = {}
    for i, group in enumerate(groups):
        together.setdefault((group.pair, group.task, group.scoring, group.mode, group.control), []).append(i)
    found = [group.mode for group in groups]
    for members in together.values():
        flat = [_flat(groups[i].identity or {"run": groups[i].run_ids[0][-6:]}) for i in members]
        names = dict.fromkeys(name for settings in flat for name in settings)
        differ = [name for name in names if len({repr(settings.get(name)) for settings in flat}) > 1]
        told = [name for name in differ if name.split(".")[0] not in UNTOLD]
        tell = [
            name
            for name in told
            if not all(settings.get(name) is None or is_digest(settings[name]) for settings in flat)
        ] or told
        for i, settings in zip(members, flat, strict=True):
            texts = [
                f"{name.rpartition('.')[2]}={_short(settings[name])}"
                for name in tell
                if settings.get(name) is not None
            ]
            found[i] = " ".join([found[i], *texts])
        alike = Counter(found[i] for i in members)
        for i in members:
            if differ and alike[found[i]] > 1:  # they differ in what was left out
                found[i] += f" run={groups[i].run_ids[0][-6:]}"
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {prefix + name: item}
    return found


def _short(value: Any) -> str:
    return str(value)[:6] if is_digest(value) else f"{value:.4g}" if isinstance(value, float) else str(value)


def is_digest(value: Any) -> bool:
    """Whether a value is a text of 32 or more hexadecimal digits."""
    return isinstance(value, str) and len(value) >= 32 and not value.strip("0123456789abcdef")

"""Short names of runs in a figure, and which of them form a line: one method at several sizes.

    from lcfbench.analysis.families import members
    [(member.short, member.series) for member in members(groups)]   # [("LCF-64 9L", "lcf"), …]

A method's adapters differ in size, and a text method in its budget: joined in that order they show
what more of it buys. Pruned adapters branch off the whole one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lcfbench.analysis.naming import is_digest

NAMES = {"lcf": "LCF", "lcfx": "LCF-X", "c2c": "C2C", "t2t": "T2T"}
SIZES = ("width", "hidden", "rank", "slots")  # an adapter's size is the first that its kind has
BUDGETS = ("budget", "bytes")  # of a method without an adapter
IDENTITY = ("options", "task_options", "limit", "dtype", "device", "attention", "batch_size", "wire")
ON_A_LINE = ("training", "limit", "batch_size")  # points of one line may differ in these
LARGEST = 1e15  # of a number that orders a line
Settings = Mapping[str, Any]  # "options.budget" → 50


class Member(NamedTuple):
    """One run group's place in a family.

    short: a name of few characters, unique among the groups of its task, method and control. series:
    runs of one series are joined. place: where in it, by adapter size, then budget. whole: name of the
    adapter without its pruning, pruned: whether it edits fewer layers than the receiver has.
    """

    short: str
    series: str
    place: int
    whole: str
    pruned: bool


def members(groups: Sequence[Any]) -> list[Member]:
    """Returns a `Member` for each `RunGroup`, in order."""
    together: dict[tuple[str, ...], list[int]] = {}
    for i, group in enumerate(groups):
        together.setdefault((group.pair, group.task, group.scoring, group.mode, group.control), []).append(i)
    found: dict[int, Member] = {}
    for places in together.values():
        found |= zip(places, _family([groups[i] for i in places]), strict=True)
    return [found[i] for i in range(len(groups))]


def _family(groups: Sequence[Any]) -> list[Member]:
    """The members among the groups of one task, method and control."""
    settings = [_settings(group) for group in groups]
    differ = _differing(settings)
    sizes = [name for name in differ if name.startswith("adapter.") and _numeric(settings, name)]
    dials = [name for name in differ if name.startswith("options.") and _numeric(settings, name)]
    dial = dials[0] if len(dials) == 1 else ""
    split = [n for n in differ if n not in (*sizes, dial) and n.partition(".")[0] not in ON_A_LINE]
    series = [" ".join([group.mode, *_told(split, one)]) for group, one in zip(groups, settings, strict=True)]
    amounts = [_amount(group, one.get(dial)) for group, one in zip(groups, settings, strict=True)]
    names = [_name(group) for group in groups]
    points = list(zip(series, names, amounts, strict=True))
    for same in [point for point, count in Counter(points).items() if count > 1]:  # then a line each
        apart = _differing([one for one, point in zip(settings, points, strict=True) if point == same])
        for i in [i for i, point in enumerate(points) if point[0] == same[0]]:
            series[i] = " ".join([points[i][0], *_told(apart, settings[i])])
    ranks = sorted({(amount, -layers) for amount, (_, layers) in zip(amounts, names, strict=True)})
    found = []
    for short, line, amount, (whole, layers) in zip(
        _unique(names, settings, groups), series, amounts, names, strict=True
    ):
        found.append(Member(short, line, ranks.index((amount, -layers)), whole, layers > 0))
    return found


def _settings(group: Any) -> Settings:
    """What a person may have set, flat; no digests."""
    facts, identity = group.manifest.adapter_facts, group.identity
    parts: dict[str, Any] = {name: identity.get(name) for name in IDENTITY}
    if facts is not None:
        made = dict(facts.training)
        if made.get("data_seed") == made.get("seed"):  # one seed for both is said once
            made.pop("data_seed", None)
        parts |= {"adapter": facts.options, "training": made}
    return {name: value for name, value in _flat(parts).items() if not is_digest(value)}


def _flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _flat(item, f"{above}{name}.") if isinstance(item, Mapping) else {above + name: item}
    return found


def _differing(settings: Sequence[Settings]) -> list[str]:
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]


def _numeric(settings: Sequence[Settings], name: str) -> bool:
    values = [one.get(name) for one in settings]
    numbers = (isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return all(numbers) and all(abs(value) < LARGEST for value in values if value is not None)


def _told(names: Collection[str], settings: Settings) -> list[str]:
    return [f"{name.rpartition('.')[2]}={settings[name]}" for name in names if settings.get(name) is not None]


def _amount(group: Any, dial: Any) -> tuple[float, float]:
    """Adapter size, then the budget; without both the size of the message."""
    size = group.median("adapter_bytes")
    size = size if size > 0 else 0.0
    message = group.median("message_bytes")
    return size, float(dial) if dial is not None else 0.0 if size or message != message else message


def _name(group: Any) -> tuple[str, int]:
    """Returns the name without pruning, and the number of layers of a pruned adapter, else 0."""
    facts, mode = group.manifest.adapter_facts, group.mode
    if facts is None:
        options = group.identity.get("options") or {}
        amount = next((options[name] for name in BUDGETS if options.get(name) is not None), None)
        return (group.label, 0) if amount is None else (f"{NAMES.get(mode, mode)} {amount}", 0)
    kind = facts.kind if (facts.kind.startswith(mode)) else mode
    size = next((facts.options[name] for name in SIZES if name in facts.options), None)
    whole = NAMES.get(kind, kind) + ("" if size is None else f"-{size}")
    return whole, facts.layers if facts.layers < facts.receiver_layers else 0


def _unique(
    names: Sequence[tuple[str, int]], settings: Sequence[Settings], groups: Sequence[Any]
) -> list[str]:
    """Short names; what tells those apart that would be alike, and the run where nothing else does."""
    shorts = [f"{whole} {layers}L" if layers else whole for whole, layers in names]
    shorts = [
        f"{short} ×{group.adapters}" if group.adapters > 1 else short
        for short, group in zip(shorts, groups, strict=True)
    ]
    for same in [short for short, count in Counter(shorts).items() if count > 1]:
        alike = [i for i, short in enumerate(shorts) if short == same]
        apart = _differing([settings[i] for i in alike])
        for i in alike:
            shorts[i] = " ".join([same, *_told(apart, settings[i])])
        again = Counter(shorts[i] for i in alike)
        for i in alike:
            if again[shorts[i]] > 1:
                shorts[i] += f" run={groups[i].run_ids[0][-6:]}"
    return shorts

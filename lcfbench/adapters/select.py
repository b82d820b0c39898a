"""Adapters that ship with the package, and the choice among adapters.

>>> for folder in shipped(): print(folder.name)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from lcfbench.adapters.config import CHECKPOINT, WEIGHTS, AdapterConfig, read_config, recorded_names
from lcfbench.errors import UserError, unknown
from lcfbench.files import PART, READY
from lcfbench.sources.cache import cache_dir

FOLDER = Path(__file__).parents[1] / "shipped_adapters"
JOINT = "+"  # between the adapters of several sharers


def shipped() -> list[Path]:
    """Returns the folders of the shipped adapters."""
    return sorted(p.parent for p in FOLDER.glob("*/config.json"))


def cached() -> Path:
    """Returns the folder of the cache in which imported, fetched and trained adapters are kept."""
    return cache_dir() / "adapters"


def within(root: Path) -> list[Path]:
    """Returns the adapter folders below a folder; none where it does not exist."""
    every = [p.parent for p in sorted(root.glob(f"**/{WEIGHTS}"))]
    return [p.parent if p.name == READY else p for p in every if not p.name.endswith(PART)]


def unfinished(folder: Path) -> str:
    """Says that a training is not finished, whose best state so far an adapter is; "" where it is."""
    places = (folder, folder.parent)  # of several trained together the checkpoint lies above
    return "of a training that is not finished" if any((p / CHECKPOINT).is_file() for p in places) else ""


def adapters_table(extra: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Returns a row for each shipped adapter and each one under the `extra` folders.

    Imports no torch. A folder that cannot be read is of kind "unreadable".
    """
    rows: list[dict[str, Any]] = []
    for folder in [*shipped(), *(place for root in extra for place in within(root))]:
        row: dict[str, Any] = {"name": folder.name, "kind": "unreadable", "pair": "", "tasks": ""}
        row |= {"layers": None, "mb": None, "folder": str(folder)}
        rows.append(row)
        try:
            config = read_config(folder)
        except UserError as error:
            row["pair"] = error.what
            continue
        weights = folder / WEIGHTS
        row["kind"], row["pair"], row["layers"] = config.kind, ":".join(config.pair), len(config.layers)
        row["tasks"] = ",".join(config.training.get("tasks", []))
        row["mb"] = weights.stat().st_size / 1e6 if weights.exists() else None
    return rows


def serves(config: AdapterConfig, mode: str) -> bool:
    """Tells whether an adapter was made for a method.

    One whose sharer is the receiver's own model serves `identical` and its kind's method alike.
    """
    from lcfbench.adapters.base import method_of, own_method  # imports torch, which `ls` must not

    trained, own = method_of(config), own_method(config.kind)
    if mode == "identical":
        return config.receiver == config.sharer and trained in (mode, own)
    return trained == mode or (trained == "identical" and mode == own)


def pick_adapter(
    given: Sequence[Path], kinds: Sequence[str], pair: tuple[str, str], **asked: Any
) -> Path | None:
    """As `pick_adapters`, the first of them; None for a method without adapters."""
    found = pick_adapters(given, kinds, pair, **asked)
    return found[0] if found else None


def pick_adapters(
    given: Sequence[Path],
    kinds: Sequence[str],
    pair: tuple[str, str],
    *,
    shared: bool,
    mode: str,
    task: str,
    offline: bool = False,
) -> list[Path]:
    """Returns the adapter folders for a method on a task; none for a method without adapters.

    Of `given` all whose kind and method serve; without any, the one that `finding` finds.
    Those trained under this very method come alone where there are any, and of them those whose pair
    has these names. pair: the models on both sides. shared: whether both models read the same context.
    Raises UserError where none fits, or a folder holds no weights.
    """
    from lcfbench.adapters.base import method_of  # imports torch, which `ls` must not
    from lcfbench.adapters.finding import Wanted, find_for

    if not kinds:
        return []
    if not given:
        return [find_for(Wanted(mode, tuple(kinds), pair, task, shared, offline)).folder]
    fits = serving(given, kinds, shared=shared, mode=mode)
    if fits:
        rank = {f: (method_of(c) != mode, c.pair != recorded_names(pair)) for f, c in fits.items()}
        best = [f for f in given if rank.get(f) == min(rank.values())]
        if bare := [f for f in best if not (f / WEIGHTS).is_file()]:
            raise UserError(f"{bare[0]} has no {WEIGHTS}.", "Fetch or train it again.")
        return best
    configs = {folder: read_config(folder) for folder in given}
    have = ", ".join(f"{f} ({c.kind}, {method_of(c)} of {':'.join(c.pair)})" for f, c in configs.items())
    of_pair = f" (pair {pair[0]}:{pair[1]})" if pair[0] == pair[1] else ""
    kind = " or ".join(kinds_for(kinds, shared))
    raise UserError(
        f"no adapter of kind {kind} for {mode} on {task} among those given: {have}.",
        f"Pass one trained with --mode {mode}{of_pair}.",
    )


def serving(
    folders: Iterable[Path], kinds: Sequence[str], *, shared: bool, mode: str
) -> dict[Path, AdapterConfig]:
    """The adapters whose kind and method serve a method on such a task, with their configs."""
    fitting = kinds_for(kinds, shared)
    configs = {folder: read_config(folder) for folder in folders}
    return {f: c for f, c in configs.items() if c.kind in fitting and serves(c, mode)}


def kinds_for(kinds: Sequence[str], shared: bool) -> list[str]:
    """Of a method's kinds of adapter those that serve such a task; all where none does."""
    from lcfbench.adapters.base import adapter_class  # imports torch, which `ls` must not

    context = "shared" if shared else "different"
    return [k for k in kinds if context in adapter_class(k).contexts] or list(kinds)


class AdapterMissing(UserError):  # noqa: N818
    """No adapter is at hand for what is asked, and none was given. wanted: what it is wanted for."""

    def __init__(self, what: str, next_step: str, wanted: Any) -> None:
        self.wanted = wanted
        super().__init__(what, next_step)


def check_used(given: Sequence[Path], used: Iterable[Path | None], modes: Sequence[str]) -> None:
    """Raises UserError for a given adapter that none of the methods uses."""
    if unused := [str(f) for f in given if f not in set(used)]:
        raise UserError(
            f"--adapter {', '.join(unused)} would have no effect: {', '.join(modes)} "
            f"{'does' if len(modes) == 1 else 'do'} not use it.",
            "Leave it out, or add the --mode that it was made for (`lcfbench adapter info` tells).",
        )


def named(folder: Path) -> str:
    """Returns what `find_adapter` finds an adapter by: its folder, or the name of one that ships."""
    return folder.name if folder.parent == FOLDER else str(folder)


def find_adapter(place: Path) -> Path:
    """Returns an adapter's folder: `place`, or the shipped adapter of that name.

    Raises UserError with the nearest names for a name that is neither.
    """
    if place.exists() or len(place.parts) != 1:
        return place
    if not (FOLDER / place).is_dir():
        near = unknown("adapter", str(place), [f.name for f in shipped()], "lcfbench ls adapters").next_step
        raise UserError(f"{place} holds no adapter, and none of that name ships.", near)
    return FOLDER / place


def find_adapters(place: Path, sharers: int) -> tuple[Path, ...]:
    """Returns the folders of the adapters that a place names: one, or `A+B`, one for each of the sharers.

    A plus in the name of a folder that is there, or of an adapter that ships, joins nothing. Raises
    UserError as `find_adapter` does, for another number of adapters, and for a text that may be several.
    """
    pieces = str(place).split(JOINT)
    if len(pieces) == 1 or _is_adapter(str(place)):
        return (find_adapter(place),)
    every = {count: _joined(pieces, count) for count in range(2, len(pieces) + 1)}
    known = {count: [ways for ways in found if all(map(_is_adapter, ways))] for count, found in every.items()}
    fitting = known.get(sharers, [])
    if len(fitting) > 1:
        what = " or ".join(" and ".join(names) for names in fitting)
        raise UserError(f"--adapter {place} may be {what}.", "Rename a folder, or name it by another path.")
    if fitting:
        return tuple(find_adapter(Path(name)) for name in fitting[0])
    for count, found in known.items():
        if found:
            what = f"--adapter {place} names {count} adapters, and --pair {_counted(sharers)}."
            raise UserError(what, "Give one for each sharer, in their order.")
    if len(pieces) == sharers:
        return tuple(find_adapter(Path(name.strip())) for name in pieces)
    return (find_adapter(place),)


def _joined(pieces: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Every way to put pieces of a name together again so that so many names are left."""
    cuts = combinations(range(1, len(pieces)), count - 1)
    ends = ((0, *cut, len(pieces)) for cut in cuts)
    return [tuple(JOINT.join(pieces[a:b]).strip() for a, b in pairwise(cut)) for cut in ends]


def _is_adapter(name: str) -> bool:
    return bool(name) and (Path(name).exists() or (len(Path(name).parts) == 1 and (FOLDER / name).is_dir()))


def _counted(sharers: int) -> str:
    return "names one sharer" if sharers == 1 else f"names {sharers} sharers"


def told(folders: Iterable[Path]) -> str:
    """The names of adapters as `--adapter` takes them, without their places."""
    return JOINT.join(folder.name for folder in folders)

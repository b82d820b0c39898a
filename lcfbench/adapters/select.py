"""Adapters that ship with the package, and the choice among adapters.

>>> for folder in shipped(): print(folder.name)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lcfbench.adapters.config import WEIGHTS, AdapterConfig, read_config, recorded_names
from lcfbench.errors import UserError, unknown
from lcfbench.files import PART, READY

FOLDER = Path(__file__).parents[1] / "shipped_adapters"


def shipped() -> list[Path]:
    """Returns the folders of the shipped adapters."""
    return sorted(p.parent for p in FOLDER.glob("*/config.json"))


def adapters_table(extra: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Returns a row for each shipped adapter and each one under the `extra` folders.

    Imports no torch. A folder that cannot be read is of kind "unreadable".
    """
    rows: list[dict[str, Any]] = []
    every = [p.parent for root in extra for p in sorted(root.glob(f"**/{WEIGHTS}"))]
    found = [p.parent if p.name == READY else p for p in every if not p.name.endswith(PART)]
    for folder in [*shipped(), *found]:
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
    given: Sequence[Path], kinds: Sequence[str], pair: tuple[str, str], *, shared: bool, mode: str, task: str
) -> Path | None:
    """As `pick_adapters`, the first of them; None for a method without adapters."""
    found = pick_adapters(given, kinds, pair, shared=shared, mode=mode, task=task)
    return found[0] if found else None


def pick_adapters(
    given: Sequence[Path], kinds: Sequence[str], pair: tuple[str, str], *, shared: bool, mode: str, task: str
) -> list[Path]:
    """Returns the adapter folders for a method on a task; none for a method without adapters.

    Of `given` all whose kind and method serve; without any, the shipped one for this pair and task.
    Those trained under this very method come alone where there are any, and of them those whose pair
    has these names. pair: the models on both sides. shared: whether both models read the same context.
    Raises UserError where none fits, or a folder holds no weights.
    """
    from lcfbench.adapters.base import method_of  # imports torch, which `ls` must not

    if not kinds:
        return []
    context = "shared" if shared else "different"
    fits = serving(given or shipped(), kinds, shared=shared, mode=mode)
    if given and fits:
        rank = {f: (method_of(c) != mode, c.pair != recorded_names(pair)) for f, c in fits.items()}
        best = [f for f in given if rank.get(f) == min(rank.values())]
        if bare := [f for f in best if not (f / WEIGHTS).is_file()]:
            raise UserError(f"{bare[0]} has no {WEIGHTS}.", "Fetch or train it again.")
        return best
    if given:
        configs = {folder: read_config(folder) for folder in given}
        have = ", ".join(f"{f} ({c.kind}, {method_of(c)} of {':'.join(c.pair)})" for f, c in configs.items())
        of_pair = f" (pair {pair[0]}:{pair[1]})" if pair[0] == pair[1] else ""
        raise UserError(
            f"no adapter of kind {' or '.join(_kinds(kinds, shared))} for {mode} on {task} among those "
            f"given: {have}.",
            f"Pass one trained with --mode {mode}{of_pair}.",
        )
    fits = {
        f: c
        for f, c in fits.items()
        if c.pair == pair
        and c.training.get("senders", "matched") == "matched"  # the others ship for comparison
        and context in c.training.get("contexts", [context])
    }
    trained = {f: c for f, c in fits.items() if _near(c, task)}
    if not trained:
        names = f"{pair[0]}:{pair[1]}"
        tasks = ", ".join(sorted({t for c in fits.values() for t in c.tasks}))
        there = f" (those that ship were trained on {tasks})" if tasks else ""
        raise AdapterMissing(
            f"no adapter ships for --mode {mode} on {task} with {names}{there}.",
            f"Pass --adapter NAME (`lcfbench ls adapters`), or make one: "
            f"lcfbench train --mode {mode} --pair {names} --task {task}",
        )
    return [min(trained, key=lambda f: (method_of(trained[f]) != mode, len(trained[f].tasks)))]


def serving(
    folders: Iterable[Path], kinds: Sequence[str], *, shared: bool, mode: str
) -> dict[Path, AdapterConfig]:
    """The adapters whose kind and method serve a method on such a task, with their configs."""
    fitting = _kinds(kinds, shared)
    configs = {folder: read_config(folder) for folder in folders}
    return {f: c for f, c in configs.items() if c.kind in fitting and serves(c, mode)}


def _kinds(kinds: Sequence[str], shared: bool) -> list[str]:
    """Of a method's kinds of adapter those that serve such a task; all where none does."""
    from lcfbench.adapters.base import adapter_class  # imports torch, which `ls` must not

    context = "shared" if shared else "different"
    return [k for k in kinds if context in adapter_class(k).contexts] or list(kinds)


class AdapterMissing(UserError):  # noqa: N818
    """No adapter ships for what is asked, and none was given."""


def check_used(given: Sequence[Path], used: Iterable[Path | None], modes: Sequence[str]) -> None:
    """Raises UserError for a given adapter that none of the methods uses."""
    if unused := [str(f) for f in given if f not in set(used)]:
        raise UserError(
            f"--adapter {', '.join(unused)} would have no effect: {', '.join(modes)} "
            f"{'does' if len(modes) == 1 else 'do'} not use it.",
            "Leave it out, or add the --mode that it was made for (`lcfbench adapter info` tells).",
        )


def _near(config: AdapterConfig, task: str) -> bool:
    """Says whether an adapter was trained on a task or its family (splitfacts for splitfacts_heldout).

    True where its config names no task.
    """
    return not config.tasks or task.removesuffix("_heldout") in config.tasks


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

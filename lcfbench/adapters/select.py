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
    """Returns the adapter folder for a method on a task; None for a method without adapters.

    Of `given` it is the one whose kind and method serve; without any, the shipped one for this pair
    and task. One trained under this very method comes first, then, of those given, one whose pair has
    these names. pair: the models on both sides. shared: whether both models read the same context.
    Raises UserError where none fits, or two of those given fit equally well.
    """
    from lcfbench.adapters.base import adapter_class, method_of  # imports torch, which `ls` must not

    if not kinds:
        return None
    context = "shared" if shared else "different"
    fitting = [k for k in kinds if context in adapter_class(k).contexts] or list(kinds)
    configs = {folder: read_config(folder) for folder in given or shipped()}
    fits = {f: c for f, c in configs.items() if c.kind in fitting and serves(c, mode)}
    if given and fits:
        rank = {f: (method_of(c) != mode, c.pair != recorded_names(pair)) for f, c in fits.items()}
        best, *others = (f for f in fits if rank[f] == min(rank.values()))
        if others:
            raise UserError(
                f"{best} and {others[0]} are both {fits[best].kind} adapters for {mode} on {task}.",
                "Give one of them, and run the other one in a second command.",
            )
        if not (best / WEIGHTS).is_file():
            raise UserError(f"{best} has no {WEIGHTS}.", "Fetch or train it again.")
        return best
    if given:
        have = ", ".join(f"{f} ({c.kind}, {method_of(c)} of {':'.join(c.pair)})" for f, c in configs.items())
        of_pair = f" (pair {pair[0]}:{pair[1]})" if pair[0] == pair[1] else ""
        raise UserError(
            f"no adapter of kind {' or '.join(fitting)} for {mode} on {task} among those given: {have}.",
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
    return min(trained, key=lambda f: (method_of(trained[f]) != mode, len(trained[f].tasks)))


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

"""Adapters that ship with the package, and the choice among adapters.

>>> for folder in shipped(): print(folder.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcfbench.adapters.config import WEIGHTS, AdapterConfig, read_config, recorded_names
from lcfbench.errors import UserError

FOLDER = Path(__file__).parents[1] / "shipped_adapters"


def shipped() -> list[Path]:
    """Returns the folders of the shipped adapters."""
    return sorted(p.parent for p in FOLDER.glob("*/config.json"))


def adapters_table(extra: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Returns a row for each shipped adapter and each one under the `extra` folders.

    Imports no torch. A folder that cannot be read is of kind "unreadable".
    """
    rows: list[dict[str, Any]] = []
    found = [p.parent for root in extra for p in sorted(root.glob("**/adapter.safetensors"))]
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

    Of `given` it is the first one whose kind and method serve; without any, the shipped one for
    this pair and task. One trained under this very method comes first, then, of those given, one
    whose pair has these names. pair: the models on both sides. shared: whether both models read the
    same context. Raises UserError where none fits.
    """
    from lcfbench.adapters.base import adapter_class, method_of  # imports torch, which `ls` must not

    if not kinds:
        return None
    context = "shared" if shared else "different"
    fitting = [k for k in kinds if context in adapter_class(k).contexts] or list(kinds)
    configs = {folder: read_config(folder) for folder in given or shipped()}
    fits = {f: c for f, c in configs.items() if c.kind in fitting and serves(c, mode)}
    if given and fits:
        best = min(fits, key=lambda f: (method_of(fits[f]) != mode, fits[f].pair != recorded_names(pair)))
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
    if not fits:
        raise UserError(
            f"no adapter ships for --mode {mode} on {task} with {pair[0]}:{pair[1]}.",
            f"Pass --adapter FOLDER, or make one: "
            f"lcfbench train --mode {mode} --pair {pair[0]}:{pair[1]} --task {task}",
        )
    return min(fits, key=lambda f: (method_of(fits[f]) != mode, *_distance(fits[f], task)))


def _distance(config: AdapterConfig, task: str) -> tuple[bool, int]:
    """Returns a sort key for how far an adapter's training is from a task, nearest first.

    One trained on the task or its family (splitfacts for splitfacts_heldout) comes first, the one
    with the fewest other tasks ahead; of the rest, the one trained on most tasks.
    """
    near = any(task.startswith(name) for name in config.tasks)
    return not near, len(config.tasks) if near else -len(config.tasks)


def find_adapter(place: Path) -> Path:
    """Returns an adapter's folder: `place`, or the shipped adapter of that name."""
    named = not place.exists() and len(place.parts) == 1 and (FOLDER / place).is_dir()
    return FOLDER / place if named else place

"""Adapters that come with the package, and the choice among them. Reads configs only; imports no torch.

>>> for folder in shipped(): print(folder.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError

if TYPE_CHECKING:
    from lcfbench.adapters.config import AdapterConfig

FOLDER = Path(__file__).parents[1] / "shipped_adapters"


def shipped() -> list[Path]:
    """Folders of the shipped adapters."""
    return sorted(p.parent for p in FOLDER.glob("*/config.json"))


def adapters_table(extra: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """One line an adapter for `lcfbench ls adapters`: the shipped ones and those under `extra` folders; a broken one is of kind "unreadable"."""
    from lcfbench.adapters.config import WEIGHTS, read_config

    rows: list[dict[str, Any]] = []
    for folder in [
        *shipped(),
        *(p.parent for root in extra for p in sorted(root.glob("**/adapter.safetensors"))),
    ]:
        row: dict[str, Any] = {
            "name": folder.name,
            "kind": "unreadable",
            "pair": "",
            "tasks": "",
            "layers": None,
            "mb": None,
            "folder": str(folder),
        }
        rows.append(row)
        try:
            config = read_config(folder)
        except UserError as error:
            row["pair"] = error.what
            continue
        row |= {
            "kind": config.kind,
            "pair": f"{config.receiver}:{config.sharer}",
            "tasks": ",".join(config.training.get("tasks", [])),
        }
        row |= {
            "layers": len(config.layers),
            "mb": (folder / WEIGHTS).stat().st_size / 1e6 if (folder / WEIGHTS).exists() else None,
        }
    return rows


def serves(config: AdapterConfig, mode: str) -> bool:
    """Whether an adapter was made for a method. One for a model with itself as sharer is `identical` and its kind's own method alike."""
    trained, own = config.method, config.own_method
    if mode == "identical":
        return config.receiver == config.sharer and trained in (mode, own)
    return trained == mode or (trained == "identical" and mode == own)


def _far(config: AdapterConfig, task: str) -> tuple[bool, int]:
    """How far an adapter's training is from a task: one trained on it (or its family, as splitfacts for splitfacts_heldout) comes first, of
    several the one trained on least else; where none is, the one trained on most.
    """
    tasks = [str(t).partition("*")[0] for t in config.training.get("tasks", [])]
    near = any(task.startswith(name) for name in tasks)
    return not near, len(tasks) if near else -len(tasks)


def pick_adapter(
    given: Sequence[Path], kinds: Sequence[str], pair: tuple[str, str], *, shared: bool, mode: str, task: str
) -> Path | None:
    """The adapter folder for a method on a task: the first of `given` whose kind and method serve it, else the shipped one for this pair
    and task kind. One trained under this very method goes first, among those given then one whose pair has these names.

    pair: the models on both sides; twice the receiver for methods that run it alone. None for methods without adapters. Raises
    UserError when none is there or none fits.
    """
    from lcfbench.adapters.config import WEIGHTS, read_config

    if not kinds:
        return None
    wanted = [k for k in kinds if k.endswith("x") is not shared] or list(kinds)
    configs = {folder: read_config(folder) for folder in given}
    fits = [folder for folder, c in configs.items() if c.kind in wanted and serves(c, mode)]
    if fits:
        best = min(
            fits, key=lambda f: (configs[f].method != mode, (configs[f].receiver, configs[f].sharer) != pair)
        )
        if not (best / WEIGHTS).is_file():
            raise UserError(f"{best} has no {WEIGHTS}.", "Fetch or train it again.")
        return best
    if given:
        have = ", ".join(f"{f} ({c.kind}, {c.method} of {c.receiver}:{c.sharer})" for f, c in configs.items())
        raise UserError(
            f"no adapter of kind {' or '.join(wanted)} for {mode} on {task} among those given: {have}.",
            f"Pass one trained with --mode {mode}"
            + (f" (pair {pair[0]}:{pair[1]})" if pair[0] == pair[1] else "")
            + ".",
        )
    configs = {folder: read_config(folder) for folder in shipped()}
    fits = [
        f
        for f, c in configs.items()
        if c.kind in wanted and (c.receiver, c.sharer) == pair and serves(c, mode)
    ]
    fits = [
        f for f in fits if configs[f].training.get("senders", "matched") == "matched"
    ]  # the others are there to be compared with
    context = "shared" if shared else "different"
    fits = [f for f in fits if context in configs[f].training.get("contexts", [context])]
    fits.sort(key=lambda f: (configs[f].method != mode, *_far(configs[f], task)))
    if not fits:
        raise UserError(
            f"no adapter ships for --mode {mode} on {task} with {pair[0]}:{pair[1]}.",
            f"Pass --adapter FOLDER, or make one: lcfbench train --mode {mode} --pair {pair[0]}:{pair[1]} --task {task}",
        )
    return fits[0]


def find_adapter(place: Path) -> Path:
    """Returns an adapter's folder: `place`, or the shipped adapter of that name."""
    shipped_folder = FOLDER / place
    return (
        shipped_folder if not place.exists() and len(place.parts) == 1 and shipped_folder.is_dir() else place
    )

"""Adapters that come with the package, and the choice among them. Reads configs only; imports no torch.

>>> for folder in shipped(): print(folder.name)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError

FOLDER = Path(__file__).parent / "shipped_adapters"


def shipped() -> list[Path]:
    """Folders of the shipped adapters."""
    return sorted(p.parent for p in FOLDER.glob("*/config.json"))


def adapters_table(extra: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """One line an adapter for `lcfbench ls adapters`: the shipped ones and those under `extra` folders; a broken one is of kind "unreadable"."""
    from lcfbench.adapters.config import WEIGHTS, read_config

    rows: list[dict[str, Any]] = []
    for folder in [*shipped(), *(p.parent for root in extra for p in sorted(root.glob("**/adapter.safetensors")))]:
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
        row |= {"kind": config.kind, "pair": f"{config.receiver}:{config.sharer}", "tasks": ",".join(config.training.get("tasks", []))}
        row |= {"layers": len(config.layers), "mb": (folder / WEIGHTS).stat().st_size / 1e6 if (folder / WEIGHTS).exists() else None}
    return rows


def pick_adapter(given: Sequence[Path], kinds: Sequence[str], pair: tuple[str, str], *, shared: bool, mode: str, task: str) -> Path | None:
    """The adapter folder for a method on a task: the first of `given` whose kind serves it, else the shipped one for this pair and task kind.

    None for methods without adapters. Raises UserError when none is there or none fits.
    """
    from lcfbench.adapters.config import WEIGHTS, read_config

    if not kinds:
        return None
    wanted = [k for k in kinds if k.endswith("x") is not shared] or list(kinds)
    for folder in given:
        if read_config(folder).kind in wanted:
            if not (folder / WEIGHTS).is_file():
                raise UserError(f"{folder} has no {WEIGHTS}.", "Fetch or train it again.")
            return folder
    if given:
        have = ", ".join(f"{folder} ({read_config(folder).kind})" for folder in given)
        raise UserError(
            f"no adapter of kind {' or '.join(wanted)} for {mode} on {task} among those given: {have}.",
            "Pass one of that kind with --adapter.",
        )
    fits = [f for f in shipped() if (c := read_config(f)).kind in wanted and (c.receiver, c.sharer) == pair]
    # the one trained on this very task first
    fits.sort(key=lambda f: task not in read_config(f).training.get("tasks", []))
    if not fits:
        raise UserError(
            f"no adapter ships for --mode {mode} on {task} with {pair[0]}:{pair[1]}.",
            f"Pass --adapter FOLDER, or make one: lcfbench train --mode {mode} --pair {pair[0]}:{pair[1]} --task {task}",
        )
    return fits[0]

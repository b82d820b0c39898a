"""Adapters that come with the package, and the choice among them. Reads configs only; imports no torch.

>>> for folder in shipped(): print(folder.name)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError

FOLDER = Path(__file__).parent / "shipped_adapters"


def shipped() -> list[Path]:
    """Folders of the shipped adapters."""
    return sorted(p.parent for p in FOLDER.glob("*/config.json"))


def adapters_table(extra: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """One line an adapter for `lcfbench ls adapters`: the shipped ones and those under `extra` folders."""
    rows = []
    for folder in [*shipped(), *(p.parent for root in extra for p in sorted(root.glob("**/adapter.safetensors")))]:
        config = json.loads((folder / "config.json").read_text())
        rows.append(
            {
                "name": folder.name,
                "kind": config["kind"],
                "pair": f"{config['receiver']}:{config['sharer']}",
                "tasks": ",".join(config.get("training", {}).get("tasks", [])),
                "layers": len(config["layers"]),
                "mb": (folder / "adapter.safetensors").stat().st_size / 1e6,
                "folder": str(folder),
            }
        )
    return rows


def pick_adapter(given: Sequence[Path], kinds: Sequence[str], pair: tuple[str, str], *, shared: bool, mode: str, task: str) -> Path | None:
    """The adapter folder for a method on a task: the first of `given` whose kind serves it, else the shipped one for this pair and task kind.

    None for methods without adapters. Raises UserError when none is there or none fits.
    """
    from lcfbench.adapters.config import read_config

    if not kinds:
        return None
    wanted = [k for k in kinds if k.endswith("x") is not shared] or list(kinds)
    for folder in given:
        if read_config(folder).kind in wanted:
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

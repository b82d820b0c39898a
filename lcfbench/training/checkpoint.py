"""The file from which a killed training or teaching goes on.

>>> save(folder / CHECKPOINT, {"recipe": recipe.digest(), "step": 3})         # doctest: +SKIP
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.files import whole, writing


def save(path: Path, state: dict[str, Any]) -> None:
    """Saves all that the next step depends on, whole or not at all. Raises UserError for a full disk."""
    with writing(path.parent):
        try:
            with whole(path) as file:
                torch.save(state, file)
        except RuntimeError as error:  # torch's own follows the refusal of the disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: Path, digest: str, what: str) -> dict[str, Any] | None:
    """Reads the state to go on from; None where there is none.

    digest: of the settings, which must be those of the state. what: "training" or "teaching". Raises
    UserError for a file that is torn or of other settings.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as parts:  # torch compares no checksums
            if (bad := parts.testzip()) is not None:
                raise ValueError(f"{bad} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint fail anywhere in torch's unpickler
        raise torn(path, error) from error
    if not isinstance(state, dict) or not isinstance(state.get("recipe"), str):
        raise torn(path, "it names no recipe")
    if state["recipe"] != digest:
        raise UserError(
            f"{path} is of a {what} with other settings.",
            "Repeat that command, name another --out, or start over with --force.",
        )
    return state


def check_same(path: Path, state: dict[str, Any], facts: Mapping[str, str], processes: int) -> None:
    """Raises UserError where a training would go on with other data, models or processes.

    facts: digests of what it starts from, by name. A checkpoint of before they were kept has none.
    """
    if not all(isinstance(state.get(name), dict) for name in ("facts", "machine")):
        raise UserError(f"{path} is of an earlier version.", "Start over with --force, or remove it.")
    if (before := state.get("processes")) != processes:
        how = f"lcfbench train --processes {before}" if before != 1 else "lcfbench train, without a launcher"
        raise UserError(
            f"{path} is of a training with {before} processes; {processes} would make another adapter.",
            f"Go on with {before} ({how}), or start over with --force.",
        )
    if other := [name for name, fact in facts.items() if state["facts"].get(name) != fact]:
        raise UserError(
            f"{path} was made with other {' and '.join(other)} than those of now.",
            "Put them back, name another --out, or start over with --force.",
        )


def torn(path: Path, why: object) -> UserError:
    """Returns the error for a checkpoint that cannot be read."""
    text = " ".join(str(why).split())[:160]
    return UserError(
        f"{path} cannot be read (it is no checkpoint, or torn: {text}).", "Remove it to start over."
    )

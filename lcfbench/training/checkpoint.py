"""The file from which a killed training or teaching goes on.

>>> save(folder / CHECKPOINT, {"recipe": recipe.digest(), "step": 3})         # doctest: +SKIP
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.files import writing


def save(path: Path, state: dict[str, Any]) -> None:
    """Saves all that the next step depends on, whole or not at all. Raises UserError for a full disk."""
    part = path.with_suffix(".partial")
    with writing(path.parent):
        try:
            with open(part, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except RuntimeError as error:  # torch's own follows the refusal of the disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        finally:
            part.unlink(missing_ok=True)


def load(path: Path, digest: str, what: str) -> dict[str, Any] | None:
    """Reads the state to go on from; None where there is none.

    digest: of the settings, which must be those of the state. what: "training" or "teaching". Raises
    UserError for a file that is torn or of other settings.
    """
    if not path.exists():
        return None
    try:
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


def torn(path: Path, why: object) -> UserError:
    """Returns the error for a checkpoint that cannot be read."""
    text = " ".join(str(why).split())[:160]
    return UserError(
        f"{path} cannot be read (it is no checkpoint, or torn: {text}).", "Remove it to start over."
    )

"""What an adapter is, without its weights: a folder's `config.json`. Imports no torch, so that listing adapters stays quick.

An adapter is a folder: `adapter.safetensors`, `config.json`, `README.md` (the card).

>>> read_config(Path("my-adapter")).kind
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lcfbench.alignment import layer_map as make_map
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
HELPERS = {"base", "config", "files", "import_c2c"}  # files of this folder that are no kind of adapter


class AdapterConfig(BaseModel):
    """All that is needed to rebuild an adapter without its weights.

    kind: the file of this folder. layers: receiver layers that are edited, in stack order. layer_map: the sharer layer each of them reads;
    stored, never recomputed. token_alignment: `span`, `remap` (with its strategy) or `same`, see `lcfbench.alignment`.
    options: the kind's own settings. training: how it was made (free form, for the card).
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    kind: str
    receiver: str
    sharer: str
    receiver_geometry: Geometry
    sharer_geometry: Geometry
    layers: tuple[int, ...]
    layer_map: tuple[int, ...]
    token_alignment: Literal["span", "remap", "same"] = "span"
    remap_strategy: Literal["longest", "first"] = "longest"
    options: dict[str, Any] = {}
    training: dict[str, Any] = {}

    def check_fits(self, receiver: Geometry, sharer: Geometry, where: str) -> None:
        """Raises UserError naming every dim in which the pair at hand differs from the one this adapter was made for."""
        wrong = self.receiver_geometry.differences(receiver, "receiver") + self.sharer_geometry.differences(sharer, "sharer")
        if wrong:
            raise UserError(
                f"adapter {where} was made for {self.receiver}:{self.sharer} and does not fit this pair: {'; '.join(wrong)}.",
                f"Run it with --pair {self.receiver}:{self.sharer}, or train one for this pair.",
            )


def kinds() -> list[str]:
    """Kinds of adapter: the files of this folder that are not helpers."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_") and p.stem not in HELPERS)


def pair_config(
    kind: str,
    receiver: tuple[str, Geometry],
    sharer: tuple[str, Geometry],
    *,
    layer_map: str = "terminal",
    token_alignment: str = "span",
    options: dict[str, Any] | None = None,
    layers: int | None = None,
) -> AdapterConfig:
    """The config of a fresh adapter for a pair. `layers` keeps only the last so many receiver layers (for sizes of pruned adapters)."""
    L, S = receiver[1].layers, sharer[1].layers
    if layers is not None and not 0 < layers <= L:
        raise UserError(f"layers={layers} is outside 1..{L}.", "The receiver has that many layers.")
    first = 0 if layers is None else L - layers
    return AdapterConfig(
        kind=kind,
        receiver=receiver[0],
        sharer=sharer[0],
        receiver_geometry=receiver[1],
        sharer_geometry=sharer[1],
        layers=tuple(range(first, L)),
        layer_map=tuple(make_map(layer_map, L, S)[first:]),
        token_alignment=token_alignment,  # type: ignore[arg-type]
        options=options or {},
    )


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder; UserError for what is missing, broken or from a future version."""
    path = folder / CONFIG
    if folder.is_file():
        raise UserError(f"{folder} is a file; an adapter is a folder of {WEIGHTS} and {CONFIG}.", "Name the folder.")
    if not path.is_file():
        raise UserError(
            f"{folder} holds no adapter ({CONFIG} is missing).",
            "Name a folder made by `lcfbench train`; see `lcfbench ls adapters`.",
        )
    try:
        raw = json.loads(path.read_text())
        if isinstance(raw, dict) and raw.get("format", 0) > FORMAT:
            raise UserError(f"{path} has format {raw['format']}; this version reads up to {FORMAT}.", "Upgrade lcfbench.")
        return AdapterConfig.model_validate(raw)
    except (json.JSONDecodeError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a valid adapter config ({str(error).splitlines()[0]}).", "Fetch or train it again.") from error


def weights_sha256(folder: Path) -> str:
    """sha256 of the weights file, by which a run names its adapter."""
    with (folder / WEIGHTS).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

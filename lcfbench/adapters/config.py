"""What an adapter is, without its weights: a folder's `config.json`. Imports no torch, so that listing adapters stays quick.

An adapter is a folder: `adapter.safetensors`, `config.json`, `README.md` (the card).

>>> read_config(Path("my-adapter")).kind
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError, model_validator

from lcfbench.alignment.layers import layer_map as make_map
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
LARGEST = (
    1 << 20
)  # no dim of a cache comes near it; a larger one in a config is a mistake, and arithmetic on it may overflow
# files of this folder that are no kind of adapter


TRAINING: dict[str, type] = {
    "tasks": list,
    "dev": list,
    "revisions": dict,
    "pruned": dict,
}  # what is read of `training`, not only shown


class AdapterConfig(BaseModel):
    """All that is needed to rebuild an adapter without its weights.

    kind: the file of this folder. layers: receiver layers that are edited, in stack order. layer_map: the sharer layer each of them reads;
    stored, never recomputed. token_alignment: `span`, `remap` (with its strategy) or `same`, see `lcfbench.alignment`.
    options: the kind's own settings. training: how it was made (free form, for the card).
    """

    model_config = ConfigDict(extra="forbid")

    format: StrictInt = FORMAT
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

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        """What cannot be in an adapter that was saved here: a file edited by hand, or damaged."""
        for who, shape in (("receiver", self.receiver_geometry), ("sharer", self.sharer_geometry)):
            for name, value in shape.model_dump().items():
                if not 0 < value <= LARGEST:
                    raise ValueError(f"{who}_geometry has {name} {value}")
        if len(self.layers) != len(self.layer_map):
            raise ValueError(f"layers names {len(self.layers)} layers, layer_map {len(self.layer_map)}")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError("layers names a layer twice")
        for name, numbers, count in (
            ("layers", self.layers, self.receiver_geometry.layers),
            ("layer_map", self.layer_map, self.sharer_geometry.layers),
        ):
            if outside := [n for n in numbers if not 0 <= n < count]:
                raise ValueError(f"{name} names layer {outside[0]} of a model with {count}")
        for key, kind in TRAINING.items():
            if not isinstance(self.training.get(key, kind()), kind):
                raise ValueError(f"training.{key} is not a {kind.__name__}")
        return self

    @property
    def own_method(self) -> str:
        """The method that runs adapters of this kind: LCF-X is LCF on different contexts, other kinds have their method's name."""
        return {"lcfx": "lcf"}.get(self.kind, self.kind)

    @property
    def method(self) -> str:
        """The method this adapter was trained under; where it does not say, its kind's own."""
        return str(self.training.get("method") or self.own_method)

    def check_fits(self, receiver: Geometry, sharer: Geometry, where: str) -> None:
        """Raises UserError naming every dim in which the pair at hand differs from the one this adapter was made for."""
        wrong = self.receiver_geometry.differences(receiver, "receiver") + self.sharer_geometry.differences(
            sharer, "sharer"
        )
        if wrong:
            raise UserError(
                f"adapter {where} was made for {self.receiver}:{self.sharer} and does not fit this pair: {'; '.join(wrong)}.",
                f"Run it with --pair {self.receiver}:{self.sharer}, or train one for this pair.",
            )


def pair_config(
    kind: str,
    receiver: tuple[str, Geometry],
    sharer: tuple[str, Geometry],
    *,
    layer_map: str = "terminal",
    token_alignment: str = "span",
    remap_strategy: str = "longest",
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
        remap_strategy=remap_strategy,  # type: ignore[arg-type]
        options=options or {},
    )


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder; UserError for what is missing, broken or from a future version (before anything else is read)."""
    path = folder / CONFIG
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; an adapter is a folder of {WEIGHTS} and {CONFIG}.", "Name the folder."
        )
    if not path.is_file():
        looks_like_hub = not folder.exists() and len(folder.parts) == 2 and folder.parts[0] not in ("/", "..")
        raise UserError(
            f"{folder} holds no adapter ({CONFIG} is missing).",
            "Name a folder made by `lcfbench train`; see `lcfbench ls adapters`."
            + (
                f" One on the Hub is fetched with `lcfbench adapter pull {folder}`." if looks_like_hub else ""
            ),
        )
    try:
        raw = json.loads(path.read_text())
        version = raw.get("format", 0) if isinstance(raw, dict) else 0
        if isinstance(version, int) and version > FORMAT:
            shown = version if version < LARGEST else "beyond count"
            raise UserError(
                f"{path} has format {shown}; this version reads up to {FORMAT}.", "Upgrade lcfbench."
            )
        if not isinstance(version, int) or isinstance(version, bool) or version < 0:
            raise ValueError(f"format is {str(version)[:40]!r}, not a version number")
        return AdapterConfig.model_validate(raw)
    except (
        ValueError,
        RecursionError,
    ) as error:  # pydantic's, JSON's and Unicode's errors are all ValueErrors
        raise UserError(
            f"{path} is not a valid adapter config ({reason(error)}).", "Fetch or train it again."
        ) from error


def reason(error: Exception) -> str:
    """What a validation or parse error says, in one short phrase with the place it speaks of."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        return f"{place}: {first['msg'].lower()}" if place else first["msg"].removeprefix("Value error, ")
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_options(config: AdapterConfig, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raises UserError for an option whose value its kind could not have been trained with.

    parameters: of the kind's constructor, annotations evaluated.
    """
    for name, value in config.options.items():
        if (parameter := parameters.get(name)) is None:
            continue  # `build` names options that are not known
        default, words = parameter.default, get_args(parameter.annotation)
        if isinstance(default, bool):
            fits = isinstance(value, bool)
        elif isinstance(default, int):
            fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST**2
        elif isinstance(default, float):
            fits = isinstance(value, int | float) and math.isfinite(value)
        elif isinstance(default, str) and words:
            fits = value in words
        elif default is None and float in words:  # a number or nothing
            fits = value is None or (isinstance(value, int | float) and math.isfinite(value))
        else:
            fits = True
        if not fits:
            raise UserError(
                f"option {name}={str(value)[:40]} of this {config.kind} adapter makes no sense.",
                "Fetch or train it again, or mend its config.json.",
            )


def weights_sha256(folder: Path) -> str:
    """sha256 of the weights file, by which a run names its adapter."""
    with (folder / WEIGHTS).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

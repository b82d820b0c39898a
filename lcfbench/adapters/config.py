"""An adapter without its weights: a folder's `config.json`. Imports no torch, so lists stay quick.

An adapter is a folder: `adapter.safetensors`, `config.json`, `README.md` (the card).

>>> read_config(Path("my-adapter")).kind
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError, model_validator

from lcfbench.alignment.layers import layer_map as make_map
from lcfbench.errors import UserError
from lcfbench.files import settle
from lcfbench.geometry import Geometry
from lcfbench.parsing import parse_json, read_text
from lcfbench.provenance import digest, file_sha256
from lcfbench.sources import taught
from lcfbench.sources.models import alias
from lcfbench.sources.names import is_folder, is_path, path_of, split_revision

FORMAT = 1
TAG = "lcfbench"  # of every card on the Hub
CHECKPOINT = "checkpoint.pt"  # beside an adapter whose training is not finished
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
SOURCE = "source.json"  # where an adapter was fetched from
PROOF = "proof.json"  # what the adapter did with its own messages and with those of others
LARGEST = 1 << 20  # no dim of a cache comes near it; arithmetic on a larger one may overflow
Size = Annotated[int, Ge(1), Le(LARGEST)]
Share = Annotated[float, Ge(0), Lt(1)]
SizeOrZero = Annotated[int, Ge(0), Le(LARGEST)]  # 0 leaves the part out
TRAINING: dict[str, type] = {
    "tasks": list,
    "dev": list,
    "revisions": dict,
    "pruned": dict,
    "fit": dict,
}  # read, not only shown
# of `training`: how it was made, without what came of it
MAKING = (
    *"method method_options tasks task_options contexts senders supervise targets loss_mean steps".split(),
    *"batch_size lr warmup weight_decay clip seed data_seed fit".split(),
)
ITEMS: dict[str, type] = {"dev": dict, "results": dict, "beside": str, "contexts": str}  # of lists

PLAIN = (
    "activation",
    "codec",
    "dense",
    "draft_kv",
    "lcfx",
    "lora",
    "prefix",
    "xkv",
)  # kinds that read no chat in C2C's padded sections


class AdapterConfig(BaseModel):
    """All that is needed to rebuild an adapter without its weights.

    kind: a file of this folder. layers: receiver layers that are edited, in stack order. layer_map:
    the sharer layer that each of them reads; stored, never computed again. token_alignment: `span`,
    `remap` (with its strategy) or `same`, see `lcfbench.alignment`. remap_padding: whether a chat's
    template is padded as C2C does and rotary positions count it. options: the kind's own
    settings. training: how it was made (free form, for the card).
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
    remap_padding: Literal["none", "counted"] = "none"
    options: dict[str, Any] = {}
    training: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> AdapterConfig:
        """Refuses what no adapter saved here has: a file edited by hand, or damaged."""
        for role, shape in (("receiver", self.receiver_geometry), ("sharer", self.sharer_geometry)):
            for name in ("layers", "kv_heads", "head_dim"):
                value = getattr(shape, name)
                if not 0 < value <= LARGEST:
                    raise ValueError(f"{role}_geometry has {name} {value}")
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
        for key, item in ITEMS.items():
            found = self.training.get(key) or []
            if not (isinstance(found, list) and all(isinstance(each, item) for each in found)):
                raise ValueError(f"training.{key} is not a list of {item.__name__}s")
        if reason := unlike_pruning(self.training.get("pruned")):
            raise ValueError(f"training.pruned {reason}")
        if why := not_counted(self.kind, self.token_alignment, self.remap_padding):
            raise ValueError(why)
        if not isinstance(self.training.get("notes") or "", str):
            raise ValueError("training.notes is not a text")
        return self

    @property
    def pair(self) -> tuple[str, str]:
        """Names of the models it was made for, receiver first."""
        return self.receiver, self.sharer

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks it was trained on, without their weights in the mixture."""
        return [str(task).partition("*")[0] for task in self.training.get("tasks", [])]

    @property
    def facts(self) -> dict[str, Any]:
        """The shape and the making of the adapter, as a run's manifest records them."""
        return {
            "kind": self.kind,
            "options": self.options,
            "layers": len(self.layers),
            "receiver_layers": self.receiver_geometry.layers,
            "training": {name: self.training[name] for name in MAKING if name in self.training},
        }

    @property
    def imported_without_padding(self) -> bool:
        """Whether it is an imported fuser with token alignment from before `remap_padding` was stored."""
        imported = self.training.get("format") == "C2C" and self.token_alignment == "remap"
        return imported and "remap_padding" not in self.model_fields_set

    def check_fits(self, receiver: Geometry, sharer: Geometry, where: str) -> None:
        """Raises UserError that names every dim in which these models differ from the adapter's."""
        wrong = self.receiver_geometry.differences(receiver, "receiver")
        wrong += self.sharer_geometry.differences(sharer, "sharer")
        if wrong:
            raise UserError(
                f"adapter {where} was made for {self.receiver}:{self.sharer} and does not fit this pair: "
                f"{'; '.join(wrong)}.",
                f"Run it with --pair {shlex.quote(':'.join(self.pair))}, or train one for this pair.",
            )


def not_counted(kind: str, alignment: str, padding: str) -> str:
    """Says why an adapter would ignore `remap_padding`; "" where it does not."""
    if padding != "counted":
        return ""
    if kind in PLAIN:
        return f"remap_padding is counted, which no {kind} adapter does"
    return "" if alignment == "remap" else f"remap_padding is counted, token_alignment is {alignment}"


def unlike_pruning(record: Any) -> str:
    """Says what is wrong with a record of `prune`, in the form that the card shows; "" where nothing is."""

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    if not record:
        return ""
    if not all(isinstance(record.get(key), str) for key in ("adapter", "task", "metric")):
        return "names no adapter, task and metric"
    if not (isinstance(record.get("documents"), int) and isinstance(record.get("kept"), list)):
        return "has no number of documents or no list of layers kept"
    dropped = record.get("dropped")
    if not (isinstance(dropped, dict) and all(isinstance(some, list) for some in dropped.values())):
        return "has no lists of layers dropped"
    for name in ("whole", "pruned"):
        one = record.get(name)
        if not (isinstance(one, dict) and isinstance(one.get("params"), int) and "layers" in one):
            return f"has no sizes of the {name} adapter"
        scores = [one.get("matched"), *([one["deranged"]] if one.get("deranged") else [])]
        if not all(
            isinstance(s, dict) and number(s.get("score")) and number(s.get("loglik")) for s in scores
        ):
            return f"has no scores of the {name} adapter"
    return ""


def pair_config(
    kind: str,
    receiver: tuple[str, Geometry],
    sharer: tuple[str, Geometry],
    *,
    layer_map: str = "terminal",
    layers: int | None = None,
    **settings: Any,
) -> AdapterConfig:
    """Returns the config of a fresh adapter for a pair of (name, geometry).

    layers: keeps only the last so many receiver layers. settings: further fields of the config.
    Raises UserError for a number of layers that the receiver does not have.
    """
    L, S = receiver[1].layers, sharer[1].layers
    for name, shape in (receiver, sharer):
        if not shape.layers:
            raise UserError(
                f"no layer of {name} keeps keys and values that an adapter could use.",
                f"Use text methods; `lcfbench doctor --model {name}` tells more.",
            )
    if layers is not None and not 0 < layers <= L:
        raise UserError(f"layers={layers} is outside 1..{L}.", "The receiver has that many layers.")
    alignment, padding = (str(settings.get(k, "")) for k in ("token_alignment", "remap_padding"))
    if why := not_counted(kind, alignment, padding):
        raise UserError(f"{why}.", "Use a c2c or lcf adapter with -o token_alignment=remap.")
    first = 0 if layers is None else L - layers
    return AdapterConfig(
        kind=kind,
        receiver=receiver[0],
        sharer=sharer[0],
        receiver_geometry=receiver[1],
        sharer_geometry=sharer[1],
        layers=tuple(range(first, L)),
        layer_map=tuple(make_map(layer_map, L, S)[first:]),
        **settings,
    )


def recorded_name(name: str) -> str:
    """Returns a model's name as adapters record it: of a local folder the last part of its path.

    Its revision is recorded beside it.
    """
    base, lora = taught.split(name)
    if lora is not None:
        return f"{recorded_name(base)}+{taught.recorded_lora(alias(base), lora)}"
    plain = split_revision(name)[0]
    gone = is_path(plain) and not is_folder(plain)
    return (path_of(plain).resolve().name or plain) if gone else taught.recorded(plain)


def recorded_names(pair: tuple[str, str]) -> tuple[str, str]:
    """Returns both names as adapters record them.

    Two folders of one name are told apart by a digest of the sharer's place, two revisions of a model
    by these.
    """
    receiver, sharer = map(recorded_name, pair)
    if receiver == sharer and pair[0] != pair[1]:
        if not is_folder(split_revision(pair[1])[0]):
            return pair
        sharer += f"-{hashlib.sha256(str(Path(pair[1]).expanduser().resolve()).encode()).hexdigest()[:8]}"
    return receiver, sharer


def read_config(folder: Path) -> AdapterConfig:
    """Reads the config of an adapter folder.

    Raises UserError for one that is missing, broken or of a later version.
    """
    path = folder / CONFIG
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; an adapter is a folder of {WEIGHTS} and {CONFIG}.", "Name the folder."
        )
    settle(folder)
    if not path.is_file():
        like_hub = not folder.exists() and len(folder.parts) == 2 and folder.parts[0] not in ("/", "..")
        pull = f" One on the Hub is fetched with `lcfbench adapter pull {folder}`." if like_hub else ""
        raise UserError(
            f"{folder} holds no adapter ({CONFIG} is missing).",
            f"Name a folder made by `lcfbench train`; see `lcfbench ls adapters`.{pull}",
        )
    try:
        raw = parse_json(read_text(path, "adapter config"), str(path))
        version = raw.get("format", 0) if isinstance(raw, dict) else 0
        if isinstance(version, int) and version > FORMAT:
            shown = version if version < LARGEST else "beyond count"
            raise UserError(
                f"{path} has format {shown}; this version reads up to {FORMAT}.", "Upgrade lcfbench."
            )
        if not isinstance(version, int) or isinstance(version, bool) or version < 0:
            raise ValueError(f"format is {str(version)[:40]!r}, not a version number")
        return AdapterConfig.model_validate(raw)
    except (ValueError, RecursionError) as error:  # pydantic's, JSON's and Unicode's are ValueErrors
        raise UserError(
            f"{path} is not a valid adapter config ({reason(error)}).", "Fetch or train it again."
        ) from error


def reason(error: Exception) -> str:
    """Returns one short phrase of a validation or parse error, with the place it names."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        return f"{place}: {text.lower()}" if place else text[0].lower() + text[1:]
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def weights_sha256(folder: Path) -> str:
    """Returns the sha256 of the weights file, by which a run names its adapter."""
    return file_sha256(folder / WEIGHTS)


def config_sha256(folder: Path) -> str:
    """Returns a digest of the config without its notes on training: equal adapters have one digest."""
    config = parse_json(read_text(folder / CONFIG, "adapter config"), str(folder / CONFIG))
    return digest({k: v for k, v in config.items() if k != "training"})

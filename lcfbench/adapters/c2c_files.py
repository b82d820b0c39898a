"""Reads fusers in C2C's released layout (`nics-efc/C2C_Fuser` on the Hub).

A fuser is C2C's name for an adapter. Its folder holds `config.json` (the training recipe),
`final/projector_{i}.pt` and `.json`, and `final/projector_config.json` (the layer map).

>>> adapter = import_c2c(Path("qwen3_0.6b+qwen2.5_0.5b_Fuser"))        # doctest: +SKIP
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.card import card
from lcfbench.adapters.config import LARGEST, WEIGHTS, AdapterConfig, reason, recorded_name
from lcfbench.adapters.files import DTYPES, check_free, check_numbers, making, save
from lcfbench.adapters.select import cached
from lcfbench.errors import UserError
from lcfbench.files import check_inside, check_room, writing
from lcfbench.geometry import Geometry
from lcfbench.parsing import load_json
from lcfbench.sources.c2c_fusers import find_fuser, origin
from lcfbench.sources.cache import lock, say

LARGEST_JSON, MOST_LAYERS = 16 << 20, 4096
FETCH = "Fetch the folder again: config.json and all of final/."
SETTINGS = (
    "source_dim",
    "target_dim",
    "source_num_heads",
    "target_num_heads",
    "hidden_dim",
    "intermediate_dim",
    "num_layers",
)


def import_to(
    where: str,
    place: Path,
    *,
    force: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    offline: bool = False,
) -> Adapter:
    """Imports a fuser and saves it as an adapter, its matrices in `dtype`.

    where: a folder, or `ORG/NAME/SUBFOLDER` on the Hub. Raises UserError where nothing is found, a
    file is wrong, or `place` already holds an adapter and not `force`.
    """
    check_free(place, force)
    return _import(find_fuser(where, offline=offline), where, place, force=force, dtype=dtype)


def import_once(where: str, *, offline: bool = False) -> Path:
    """Returns the folder in the cache of a fuser `ORG/NAME/SUBFOLDER`; imports it where it is not there yet.

    Of several processes one imports, the others wait for it. Raises FuserMissingError where the fuser is
    in no place, UserError where it is damaged or the disk has no room.
    """
    place = cached() / "--".join(where.split("/")[:2]) / where.split("/")[-1]
    if (place / WEIGHTS).is_file():
        return place
    with lock(place.name):
        if (place / WEIGHTS).is_file():
            return place
        folder = find_fuser(where, offline=offline)
        need = sum(path.stat().st_size for path in (folder / "final").glob("*.pt"))
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        check_room(place.parent, need, f"an adapter made of {where}")
        adapter = _import(folder, where, place)
        facts = (
            f"{adapter.params:,} parameters, licence: {adapter.config.training.get('license', 'not stated')}"
        )
        say(f"imported {where} ({facts}) into {place}; it stays there.")
    return place


def _import(
    folder: Path, where: str, place: Path, *, force: bool = False, dtype: torch.dtype = torch.bfloat16
) -> Adapter:
    """Imports the fuser of a folder, found under the name `where`, and saves it."""
    adapter = import_c2c(folder)
    if folder != Path(where).expanduser():
        adapter.config.training.update(origin(folder, where))
    check_numbers(adapter.state_dict(), str(folder), dtype)
    with making(place, force) as made:
        save(adapter, made, card(adapter), dtype)
    return adapter


def import_c2c(
    folder: Path, receiver: tuple[str, Geometry] | None = None, sharer: tuple[str, Geometry] | None = None
) -> Adapter:
    """Returns the adapter of a released folder for inference, in the dtype it was saved in.

    Gates are in fp32, which holds them exactly. receiver, sharer: name and geometry of the models;
    without them names come from config.json, depths from the layer map. The recorded layer map is
    used. With `is_do_alignment` the adapter aligns tokens by `remap`, without by `same`.
    Raises UserError for a missing, broken or misshapen file and for dims of another pair.
    """
    recipe = _json(folder / "config.json", folder).get("model")
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / 'config.json'} has no section model.", FETCH)
    final = folder / "final"
    layers, sources, numbers = _layer_map(final / "projector_config.json", folder)
    settings = {n: _settings(final / f"projector_{n}.json", folder) for n in sorted(set(numbers))}
    first = settings[numbers[0]]
    if other := [n for n, found in settings.items() if found != first]:
        raise UserError(
            f"{final / f'projector_{other[0]}.json'} differs from projector {numbers[0]} in size.",
            "Adapters with layers of several sizes are not supported.",
        )
    found_r, found_s = (
        Geometry(layers=max(at) + 1, kv_heads=first[f"{role}_num_heads"], head_dim=first[f"{role}_dim"])
        for role, at in (("target", layers), ("source", sources))
    )
    names = {"base_model": "receiver", "teacher_model": "sharer"}
    for key, role in names.items():
        if not isinstance(name := recipe.get(key, role), str) or not name.strip():
            raise UserError(f"{folder / 'config.json'}: model.{key} is {str(name)[:40]!r}, no name.", FETCH)
    receiver = receiver or (recorded_name(recipe.get("base_model", "receiver")), found_r)
    sharer = sharer or (recorded_name(recipe.get("teacher_model", "sharer")), found_s)
    _check(folder, (receiver[1], found_r, "receiver"), (sharer[1], found_s, "sharer"))
    strategy, aligns = recipe.get("alignment_strategy", "first"), recipe.get("is_do_alignment", False)
    for key, value in (
        ("is_do_alignment", aligns),
        ("include_response", recipe.get("include_response", False)),
    ):
        if not isinstance(value, bool):
            raise UserError(
                f"{folder / 'config.json'}: model.{key} is {str(value)[:40]!r}, not true or false.", FETCH
            )
    if recipe.get("include_response"):
        raise UserError(
            f"{folder} was trained to fuse the answer too (include_response).",
            "Only fusers of the prompt are supported.",
        )
    if aligns and strategy not in ("longest", "first"):
        raise UserError(
            f"{folder / 'config.json'} names the alignment strategy {strategy!r}.",
            "Known are longest and first.",
        )
    config = AdapterConfig(
        kind="c2c",
        receiver=receiver[0],
        sharer=sharer[0],
        receiver_geometry=receiver[1],
        sharer_geometry=sharer[1],
        layers=tuple(layers),
        layer_map=tuple(sources),
        token_alignment="remap" if aligns else "same",
        remap_strategy=strategy if aligns else "longest",
        remap_padding="counted" if aligns else "none",
        options={
            "hidden": first["hidden_dim"],
            "intermediate": first["intermediate_dim"],
            "blocks": first["num_layers"],
            "dropout": first["dropout"],
        },
        training={"imported_from": folder.resolve().name, "format": "C2C"},
    )
    with torch.device("meta"):
        adapter = build(config)
    states = {n: _state(final / f"projector_{n}.pt", folder, first) for n in settings}
    stacked = _stack([states[n] for n in numbers], first["num_layers"])
    adapter.load_state_dict(stacked, strict=True, assign=True)
    return adapter.requires_grad_(False).eval()


def _json(path: Path, folder: Path) -> dict[str, Any]:
    """Reads a JSON object of the folder, strictly. Raises UserError."""
    check_inside(path, folder, LARGEST_JSON, FETCH)
    return load_json(path, "file")


def _layer_map(path: Path, folder: Path) -> tuple[list[int], list[int], list[int]]:
    """Receiver layers in order, then the sharer layer and the projector of each."""
    raw = _json(path, folder)
    try:
        ((receiver, sharers),) = raw.items()
        ((sharer, layers),) = sharers.items()
        assert (receiver, sharer) == ("0", "1")
        entries = sorted(
            (_index(t), [(_index(s), _index(n)) for s, n in pairs]) for t, pairs in layers.items()
        )
    except (AssertionError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is not a layer map of one receiver and one sharer ({{"0": {{"1": …}}}}).', FETCH
        ) from error
    for t, pairs in entries:
        if len(pairs) != 1:
            raise UserError(
                f"{path} gives receiver layer {t} {len(pairs)} sharer layers.",
                "Only maps of one sharer layer a receiver layer are supported.",
            )
    if not entries:
        raise UserError(f"{path} maps no layer.", FETCH)
    places, sources, numbers = zip(*((t, *pairs[0]) for t, pairs in entries), strict=True)
    for name, found in (("receiver layer", places), ("sharer layer", sources), ("projector", numbers)):
        if outside := [n for n in found if not 0 <= n < MOST_LAYERS]:
            raise UserError(f"{path} names {name} {str(outside[0])[:24]}; no model has it.", FETCH)
    if twice := [t for t, n in Counter(places).items() if n > 1]:
        raise UserError(f"{path} names receiver layer {twice[0]} twice.", FETCH)
    return list(places), list(sources), list(numbers)


def _index(value: Any) -> int:
    """Returns a layer's number, which as a key is a string. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(value)
    return int(value)


def _settings(path: Path, folder: Path) -> dict[str, Any]:
    raw = _json(path, folder)
    args = found if isinstance(found := raw.get("init_args"), dict) else {}
    if raw.get("class") != "C2CProjector" or any(type(args.get(k)) is not int for k in SETTINGS):
        raise UserError(
            f"{path} does not describe a C2CProjector with {', '.join(SETTINGS)}.",
            "Only C2C's released fusers are supported.",
        )
    for name in SETTINGS:
        if not (3 if name == "num_layers" else 1) <= args[name] <= (64 if name == "num_layers" else LARGEST):
            raise UserError(f"{path}: {name} is {str(args[name])[:24]}, which no fuser has.", FETCH)
    dropout = args.get("dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UserError(f"{path}: dropout is {str(dropout)[:24]!r}, not a number from 0 to 1.", FETCH)
    return {k: args[k] for k in SETTINGS} | {"dropout": float(dropout)}


def _check(folder: Path, *sides: tuple[Geometry, Geometry, str]) -> None:
    """Raises UserError that names the dims in which a model differs from the files."""
    wrong = []
    for model, found, role in sides:
        wrong += [
            f"{role} {k} {getattr(model, k)}, not {getattr(found, k)}"
            for k in ("kv_heads", "head_dim")
            if getattr(model, k) != getattr(found, k)
        ]
        if model.layers < found.layers:
            wrong.append(f"{role} layers {model.layers}, not {found.layers} or more")
    if wrong:
        raise UserError(
            f"{folder} does not fit this pair: {'; '.join(wrong)}.",
            "Run it with the pair its folder is named after.",
        )


def _shapes(a: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a projector with these settings."""
    S, T = a["source_num_heads"] * a["source_dim"], a["target_num_heads"] * a["target_dim"]
    h, i, H = a["hidden_dim"], a["intermediate_dim"], a["target_num_heads"]
    blocks = [
        ("mlp1", 0, i),
        ("scalar_mlp2", 0, h),
        *(("proj_mlp2", k, i) for k in range(a["num_layers"] - 2)),
    ]
    out: dict[str, tuple[int, ...]] = {"gate_temperature": ()}
    for p in ("key", "value"):
        out[f"{p}_gate_logit"] = ()
        for name, fan_in, fan_out in (("in", S + T, h), ("scalar_head", h, H), ("proj_out", h, T)):
            out |= {f"{p}_{name}.weight": (fan_out, fan_in), f"{p}_{name}.bias": (fan_out,)}
        for name, k, inner in blocks:
            block = f"{p}_{name}.blocks.{k}"
            out |= {
                f"{block}.norm.weight": (h,),
                f"{block}.w1.weight": (inner, h),
                f"{block}.w2.weight": (h, inner),
            }
    return out


def _state(path: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one projector: complete, of the right shapes, finite.

    Sizes are held against the settings before anything is read into memory.
    """
    want = _shapes(settings)
    largest = 8 * sum(math.prod(shape) for shape in want.values()) + (1 << 20)  # float64, and the archive
    check_inside(path, folder, largest, FETCH)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > largest:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, not {largest:,} at most")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensor that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise of every type on hostile bytes
        raise UserError(f"{path} is truncated or no torch file ({reason(error)}).", FETCH) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a dict of tensors.", FETCH)
    wrong = [f"{k} is missing" for k in want if k not in state]
    wrong += [f"{str(k)[:60]} is unknown" for k in state if k not in want]
    wrong += [why for k, shape in want.items() if k in state and (why := _unfit(k, state[k], shape))]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not match its JSON: {'; '.join(wrong[:3])}{more}.", FETCH)
    return {k: t.detach() for k, t in state.items()}


def _unfit(name: str, value: Any, shape: tuple[int, ...]) -> str:
    """Says why a value is not that tensor of a fuser; empty where it is."""
    if not isinstance(value, Tensor):
        return f"{name} is no tensor but a {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return f"{name} is a sparse, quantized or empty tensor"
    if value.dtype not in DTYPES:
        return f"{name} is of type {str(value.dtype).removeprefix('torch.')}"
    if tuple(value.shape) != shape:
        return f"{name} is {tuple(value.shape)}, not {shape}"
    return "" if bool(torch.isfinite(value).all()) else f"{name} holds NaN or infinity"


def _stack(states: list[dict[str, Tensor]], num_layers: int) -> dict[str, Tensor]:
    """Our stacked tensors, from one state a layer."""

    def both(name: str) -> Tensor:  # (L, 2, …), K first
        return torch.stack([torch.stack([s[f"{p}_{name}"] for p in ("key", "value")]) for s in states])

    def weight(name: str) -> Tensor:  # Linear holds (out, in)
        return both(f"{name}.weight").transpose(2, 3).contiguous()

    out = {"gate_logit": both("gate_logit").float()}
    for mine, theirs in (("in", "in"), ("head", "scalar_head"), ("out", "proj_out")):
        out |= {f"{mine}_weight": weight(theirs), f"{mine}_bias": both(f"{theirs}.bias").unsqueeze(2)}
    deltas = [(f"delta.{k}", f"proj_mlp2.blocks.{k}") for k in range(num_layers - 2)]
    for mine, theirs in [("trunk", "mlp1.blocks.0"), ("scale", "scalar_mlp2.blocks.0"), *deltas]:
        out[f"{mine}.norm"] = both(f"{theirs}.norm.weight").unsqueeze(2)
        out |= {f"{mine}.up": weight(f"{theirs}.w1"), f"{mine}.down": weight(f"{theirs}.w2")}
    return out

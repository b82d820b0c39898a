"""Reads fusers in C2C's released layout (`nics-efc/C2C_Fuser` on the Hub).

A fuser is C2C's name for an adapter. Its folder holds `config.json` (the training recipe),
`final/projector_{i}.pt` and `.json`, and `final/projector_config.json` (the layer map).

>>> adapter = import_c2c(Path("qwen3_0.6b+qwen2.5_0.5b_Fuser"))        # doctest: +SKIP
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.card import card
from lcfbench.adapters.config import WEIGHTS, AdapterConfig
from lcfbench.adapters.files import save
from lcfbench.errors import UserError
from lcfbench.files import writing
from lcfbench.geometry import Geometry
from lcfbench.sources.c2c_fusers import find_fuser

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
    if (place / WEIGHTS).exists() and not force:
        raise UserError(f"{place} already holds an adapter.", "Name another --out, or pass --force.")
    folder = find_fuser(where, offline=offline)
    adapter = import_c2c(folder)
    if folder != Path(where).expanduser():
        adapter.config.training["imported_from"] = where
    with writing(place):
        (place / WEIGHTS).unlink(missing_ok=True)
        save(adapter, place, card(adapter), dtype)
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
    recipe = _json(folder / "config.json").get("model")
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / 'config.json'} has no section model.", FETCH)
    final = folder / "final"
    layers, sources, numbers = _layer_map(final / "projector_config.json")
    settings = {n: _settings(final / f"projector_{n}.json") for n in sorted(set(numbers))}
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
    receiver = receiver or (str(recipe.get("base_model", "receiver")), found_r)
    sharer = sharer or (str(recipe.get("teacher_model", "sharer")), found_s)
    _check(folder, (receiver[1], found_r, "receiver"), (sharer[1], found_s, "sharer"))
    strategy, aligns = recipe.get("alignment_strategy", "longest"), bool(recipe.get("is_do_alignment"))
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
        training={"imported_from": folder.name, "format": "C2C"},
    )
    with torch.device("meta"):
        adapter = build(config)
    states = {n: _state(final / f"projector_{n}.pt", first) for n in settings}
    stacked = _stack([states[n] for n in numbers], first["num_layers"])
    adapter.load_state_dict(stacked, strict=True, assign=True)
    return adapter.requires_grad_(False).eval()


def _json(path: Path) -> dict[str, Any]:
    try:
        out = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.", FETCH) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({str(error).splitlines()[0]}).", FETCH) from error
    if not isinstance(out, dict):
        raise UserError(f"{path} does not hold a JSON object.", FETCH)
    return out


def _layer_map(path: Path) -> tuple[list[int], list[int], list[int]]:
    """Receiver layers in order, then the sharer layer and the projector of each."""
    raw = _json(path)
    try:
        entries = sorted((int(t), [(int(s), int(n)) for s, n in pairs]) for t, pairs in raw["0"]["1"].items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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
    if any(t < 0 or pairs[0][0] < 0 for t, pairs in entries):
        raise UserError(f"{path} names a negative layer.", FETCH)
    layers, sources, numbers = zip(*((t, *pairs[0]) for t, pairs in entries), strict=True)
    return list(layers), list(sources), list(numbers)


def _settings(path: Path) -> dict[str, Any]:
    raw = _json(path)
    args = found if isinstance(found := raw.get("init_args"), dict) else {}
    if raw.get("class") != "C2CProjector" or any(not isinstance(args.get(k), int) for k in SETTINGS):
        raise UserError(
            f"{path} does not describe a C2CProjector with {', '.join(SETTINGS)}.",
            "Only C2C's released fusers are supported.",
        )
    return {k: args[k] for k in SETTINGS} | {"dropout": float(args.get("dropout", 0.0))}


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


def _state(path: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one projector, complete and of the right shapes."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.", FETCH) from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is truncated or no torch file ({why}).", FETCH) from error
    want = _shapes(settings)
    have = {k: tuple(v.shape) for k, v in state.items()} if isinstance(state, dict) else {}
    wrong = [f"{k} is missing" for k in want if k not in have]
    wrong += [f"{k} is unknown" for k in have if k not in want]
    wrong += [f"{k} is {have[k]}, not {shape}" for k, shape in want.items() if k in have and have[k] != shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not match its JSON: {'; '.join(wrong[:3])}{more}.", FETCH)
    return state


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

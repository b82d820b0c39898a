"""Reads fusers in C2C's released layout (`nics-efc/C2C_Fuser` on the Hub).

A folder holds `config.json` (the recipe), `final/projector_{i}.pt` and `.json`, and `final/projector_config.json` (the layer map).

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
    """Imports a fuser (a folder, or `ORG/NAME/SUBFOLDER` on the Hub) and saves it as an adapter, its matrices in `dtype`.

    Raises UserError where nothing is found, a file is wrong, or `place` already holds an adapter and not `force`.
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


def card(adapter: Adapter) -> str:
    """Markdown with the model-hub metadata block on top."""
    c = adapter.config
    return (
        f"---\nlibrary_name: lcfbench\ntags:\n- lcfbench\n- latent-communication\n- c2c\n---\n\n# C2C adapter, {c.receiver} ← {c.sharer}\n\n"
        f"- imported from {c.training['imported_from']}, in C2C's released layout; its authors trained it (arXiv 2510.03215)\n"
        f"- {adapter.params:,} parameters in {len(c.layers)} receiver layers, {len(adapter.open_layers())} of them with an open gate\n"
        f"- options {c.options}; token alignment {c.token_alignment}\n"
    )


def import_c2c(
    folder: Path, receiver: tuple[str, Geometry] | None = None, sharer: tuple[str, Geometry] | None = None
) -> Adapter:
    """The adapter of a released folder, ready for inference, in the dtype it was saved in (gates in fp32, which holds them exactly).

    receiver, sharer: name and geometry of the models at hand; without them names come from config.json, depths from the layer map.
    The recorded layer map is used, never recomputed. With `is_do_alignment` the adapter aligns tokens by `remap`, without by `same`.
    Raises UserError for a missing, broken or misshapen file and for dims of another pair.
    """
    recipe = _json(folder / "config.json").get("model")
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / 'config.json'} has no section model.", FETCH)
    layers, sources, numbers = _map(folder / "final" / "projector_config.json")
    settings = {n: _settings(folder / "final" / f"projector_{n}.json") for n in sorted(set(numbers))}
    first = settings[numbers[0]]
    for n, other in settings.items():
        if other != first:
            raise UserError(
                f"{folder / 'final' / f'projector_{n}.json'} differs from projector {numbers[0]} in size.",
                "Adapters with layers of several sizes are not supported.",
            )
    found_r = Geometry(
        layers=max(layers) + 1, kv_heads=first["target_num_heads"], head_dim=first["target_dim"]
    )
    found_s = Geometry(
        layers=max(sources) + 1, kv_heads=first["source_num_heads"], head_dim=first["source_dim"]
    )
    receiver = receiver or (str(recipe.get("base_model", "receiver")), found_r)
    sharer = sharer or (str(recipe.get("teacher_model", "sharer")), found_s)
    _check(folder, (receiver[1], found_r, "receiver"), (sharer[1], found_s, "sharer"))
    strategy = recipe.get("alignment_strategy", "longest")
    if recipe.get("is_do_alignment") and strategy not in ("longest", "first"):
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
        token_alignment="remap" if recipe.get("is_do_alignment") else "same",
        remap_strategy=strategy if recipe.get("is_do_alignment") else "longest",
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
    states = {n: _state(folder / "final" / f"projector_{n}.pt", first) for n in settings}
    adapter.load_state_dict(
        _stack([states[n] for n in numbers], first["num_layers"]), strict=True, assign=True
    )
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter.eval()


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


def _map(path: Path) -> tuple[list[int], list[int], list[int]]:
    """Receiver layers in order, the sharer layer and the projector of each."""
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
    return (
        [t for t, _ in entries],
        [pairs[0][0] for _, pairs in entries],
        [pairs[0][1] for _, pairs in entries],
    )


def _settings(path: Path) -> dict[str, Any]:
    raw = _json(path)
    args = raw.get("init_args")
    if (
        not isinstance(args, dict)
        or raw.get("class") != "C2CProjector"
        or any(not isinstance(args.get(k), int) for k in SETTINGS)
    ):
        raise UserError(
            f"{path} does not describe a C2CProjector with {', '.join(SETTINGS)}.",
            "Only C2C's released fusers are supported.",
        )
    return {k: args[k] for k in SETTINGS} | {"dropout": float(args.get("dropout", 0.0))}


def _check(folder: Path, *sides: tuple[Geometry, Geometry, str]) -> None:
    """Raises UserError naming the dims in which a model differs from what the files hold."""
    wrong = []
    for model, found, who in sides:
        wrong += [
            f"{who} {k} {getattr(model, k)}, not {getattr(found, k)}"
            for k in ("kv_heads", "head_dim")
            if getattr(model, k) != getattr(found, k)
        ]
        if model.layers < found.layers:
            wrong.append(f"{who} layers {model.layers}, not {found.layers} or more")
    if wrong:
        raise UserError(
            f"{folder} does not fit this pair: {'; '.join(wrong)}.",
            "Run it with the pair its folder is named after.",
        )


def _shapes(a: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a projector of these settings has."""
    S, T = a["source_num_heads"] * a["source_dim"], a["target_num_heads"] * a["target_dim"]
    h, i, H = a["hidden_dim"], a["intermediate_dim"], a["target_num_heads"]
    out: dict[str, tuple[int, ...]] = {"gate_temperature": ()}
    for p in ("key", "value"):
        out |= {f"{p}_gate_logit": (), f"{p}_in.weight": (h, S + T), f"{p}_in.bias": (h,)}
        out |= {
            f"{p}_scalar_head.weight": (H, h),
            f"{p}_scalar_head.bias": (H,),
            f"{p}_proj_out.weight": (T, h),
            f"{p}_proj_out.bias": (T,),
        }
        blocks = [
            ("mlp1", 0, i),
            ("scalar_mlp2", 0, h),
            *(("proj_mlp2", k, i) for k in range(a["num_layers"] - 2)),
        ]
        for name, k, inner in blocks:
            block = f"{p}_{name}.blocks.{k}"
            out |= {
                f"{block}.norm.weight": (h,),
                f"{block}.w1.weight": (inner, h),
                f"{block}.w2.weight": (h, inner),
            }
    return out


def _state(path: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one projector, all there and of the right shapes."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.", FETCH) from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} is truncated or no torch file ({(str(error).strip() or type(error).__name__).splitlines()[0]}).",
            FETCH,
        ) from error
    want, have = (
        _shapes(settings),
        {k: tuple(v.shape) for k, v in state.items()} if isinstance(state, dict) else {},
    )
    wrong = [f"{k} is missing" for k in want if k not in have] + [
        f"{k} is unknown" for k in have if k not in want
    ]
    wrong += [f"{k} is {have[k]}, not {shape}" for k, shape in want.items() if k in have and have[k] != shape]
    if wrong:
        raise UserError(
            f"{path} does not match its JSON: {'; '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}.",
            FETCH,
        )
    return state


def _stack(states: list[dict[str, Tensor]], num_layers: int) -> dict[str, Tensor]:
    """Our stacked tensors from one state a layer."""

    def both(name: str) -> Tensor:  # (L, 2, …), K first
        return torch.stack([torch.stack([s[f"{p}_{name}"] for p in ("key", "value")]) for s in states])

    def weight(name: str) -> Tensor:  # Linear holds (out, in)
        return both(f"{name}.weight").transpose(2, 3).contiguous()

    out = {"gate_logit": both("gate_logit").float()}
    for mine, theirs in (("in", "in"), ("head", "scalar_head"), ("out", "proj_out")):
        out |= {f"{mine}_weight": weight(theirs), f"{mine}_bias": both(f"{theirs}.bias").unsqueeze(2)}
    blocks = [
        ("trunk", "mlp1.blocks.0"),
        ("scale", "scalar_mlp2.blocks.0"),
        *((f"delta.{k}", f"proj_mlp2.blocks.{k}") for k in range(num_layers - 2)),
    ]
    for mine, theirs in blocks:
        out |= {
            f"{mine}.norm": both(f"{theirs}.norm.weight").unsqueeze(2),
            f"{mine}.up": weight(f"{theirs}.w1"),
            f"{mine}.down": weight(f"{theirs}.w2"),
        }
    return out

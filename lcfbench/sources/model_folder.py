"""Checks of a model's folder before any library reads it. Imports no torch.

>>> lacks(Path("my-model"))
'no config.json'
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.parsing import load_json

INDEX, WEIGHTS, PEFT = "model.safetensors.index.json", "model.safetensors", "adapter_config.json"
STEP = "Check the folder or name another model."
LARGEST = 1 << 24  # of a size in a config; layers are modules, so fewer
MOST_LAYERS = 1000


def lacks(folder: Path) -> str:
    """The reason why a folder holds no model, as a phrase; empty when all that is needed is there.

    Weights are `model.safetensors`, or the files that its index names; pickled ones do not count.
    """
    if not (folder / "config.json").is_file():
        return "no config.json"
    if (folder / PEFT).exists():
        return f"{PEFT} makes it an adapter of PEFT"
    if odd := [p.name for p in sorted(folder.iterdir()) if not p.is_file() and not p.is_dir()]:
        return f"{odd[0]} is no regular file"
    if (folder / INDEX).is_file():
        try:
            names = load_json(folder / INDEX, "index").get("weight_map")
        except UserError as error:
            return error.what.rstrip(".")
        if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
            return f"{INDEX} names no files"
        if outside := sorted(n for n in names.values() if Path(n).name != n):
            return f"{INDEX} names {outside[0]!r}, which is no file of the folder"
        missing = sorted({n for n in names.values() if not (folder / n).is_file()})
        if missing:
            return f"no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    elif not (folder / WEIGHTS).is_file():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        return f"no {WEIGHTS}" + (f" ({pickled[0]} is pickled and is not read)" if pickled else "")
    if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return "no tokenizer"
    return ""


def check_configs(folder: Path) -> dict[str, Any]:
    """Returns what config.json says.

    Raises UserError where a config is no JSON object, or names sizes that no model has.
    """
    config = load_json(folder / "config.json", "config")
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            load_json(folder / name, "config")
    for part in (config, config.get("text_config")):
        for key, value in part.items() if isinstance(part, dict) else ():
            most = MOST_LAYERS if key in ("num_hidden_layers", "n_layer", "num_layers") else LARGEST
            sized = key.endswith(("_size", "_dim")) or key.startswith(("num_", "n_"))
            if sized and isinstance(value, int | float) and not -1 <= value <= most:
                raise UserError(f"{folder / 'config.json'}: {key} is {value!r:.40}.", STEP)
    return config


def needs_code(folder: Path) -> UserError:
    """Returns the error for a folder whose code is not trusted."""
    step = "Read that code and pass --trust-remote-code, or name a model that transformers knows."
    return UserError(f"{folder} needs Python code of its own, which is not run.", step)


def check_loaded(folder: Path, config: dict[str, Any], model: Any, info: dict[str, Any]) -> None:
    """Raises UserError where a loaded model is not all that its folder holds, or holds more.

    info: names of weights, as transformers reports them.
    """
    kind = type(model).__name__
    if config.get("quantization_config") and not getattr(model, "is_quantized", False):
        raise UserError(f"{folder}: transformers does not know its quantization_config.", STEP)
    named = config.get("architectures") or [kind]
    if not isinstance(named, list):
        raise UserError(f"{folder / 'config.json'}: architectures is no list of names.", STEP)
    own = type(model).__module__.startswith("transformers_modules")  # code of the folder, trusted
    if not own and kind.lower() not in [str(n).lower() for n in named]:
        if "auto_map" in config:
            raise needs_code(folder)
        raise UserError(
            f"{folder} holds a {named[0]!s:.60}, not a causal language model ({kind}).", "Name another model."
        )
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape for")):
        if names := sorted(map(str, info.get(key) or ())):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder} {what} the weights {names[0]:.100}{more}.", STEP)
    if extra := sorted(n for n in info.get("unexpected_keys") or () if ".layers." in f".{n}"):
        raise UserError(f"{folder} has weights that its config.json knows nothing of: {extra[0]:.100}.", STEP)

"""Checks of a model's folder before any library reads it. Imports no torch.

>>> lacks(Path("my-model"))
'no config.json'
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.parsing import load_json

INDEX, WEIGHTS, PEFT = "model.safetensors.index.json", "model.safetensors", "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them makes a tokenizer
STEP = "Check the folder or name another model."
LARGEST = 1 << 24  # of a size in a config; layers are modules, so fewer
MOST_LAYERS = 1000
NUMBERS = {"F64", "F32", "F16", "BF16"}  # as safetensors names those that are no quantised weights
OTHER_PARTS = (
    "vision",
    "visual",
    "audio",
    "image",
)  # of a model, in the names of weights it reads no text with


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
    if not any((folder / f).is_file() for f in TOKENIZER_FILES):
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
    named = config.get("architectures") or [kind]
    if not isinstance(named, list):
        raise UserError(f"{folder / 'config.json'}: architectures is no list of names.", STEP)
    own = type(model).__module__.startswith("transformers_modules")  # code of the folder, trusted
    known = {kind, *_generative(str(config.get("model_type")))}
    if not own and not {n.lower() for n in known} & {str(n).lower() for n in named}:
        if "auto_map" in config:
            raise needs_code(folder)
        raise UserError(
            f"{folder} holds a {named[0]!s:.60}, not a causal language model ({kind}).", "Name another model."
        )
    for key, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape for")):
        if names := sorted(map(str, info.get(key) or ())):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder} {what} the weights {names[0]:.100}{more}.", STEP)
    unexpected = [n for n in info.get("unexpected_keys") or () if not any(part in n for part in OTHER_PARTS)]
    if extra := sorted(n for n in unexpected if ".layers." in f".{n}"):
        raise UserError(f"{folder} has weights that its config.json knows nothing of: {extra[0]:.100}.", STEP)


def _generative(model_type: str) -> set[str]:
    """The classes that write text with a type of model, those that also look at pictures among them."""
    from transformers.models.auto import modeling_auto as auto

    tables = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )
    names = [table.get(model_type) for table in tables]
    return {n for name in names if name for n in ([name] if isinstance(name, str) else name)}


def check_quantised(folder: Path, config: dict[str, Any]) -> str:
    """Returns how the weights of a folder are quantised, "" where they are not.

    Raises UserError where transformers does not know how, and where the files hold quantised weights of
    which config.json says nothing: they would be read as plain numbers.
    """
    text = config.get("text_config")
    given = config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config"))
    if given:
        from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

        method = given.get("quant_method") if isinstance(given, dict) else None
        if (
            isinstance(given, dict)
            and method is None
            and (given.get("load_in_4bit") or given.get("load_in_8bit"))
        ):
            method = "bitsandbytes"
        known = {"bitsandbytes", *AUTO_QUANTIZER_MAPPING}
        if not isinstance(method, str) or method not in known:
            raise UserError(f"{folder}: transformers does not know its quantization_config.", STEP)
        return method
    for file in sorted(folder.glob("*.safetensors")):
        for name, kind, _ in _stored(file):
            if name.endswith("weight") and kind not in NUMBERS:
                what = f"{file}: {name:.100} is stored as {kind}, and config.json has no quantization_config"
                raise UserError(
                    f"{what}.", "Name a copy that is not quantised, or one that transformers saved."
                )
    return ""


def check_size(folder: Path, described: int) -> None:
    """Raises UserError where a config describes far more weights than the files hold.

    described: weights of the model as config.json has it. transformers would make room for all of them,
    and draw those that are missing at random, before it says so.
    """
    held = sum(count for file in folder.glob("*.safetensors") for *_, count in _stored(file))
    if held and described > 2 * held:
        what = f"config.json describes a model of {described:,} weights, and its files hold {held:,}"
        raise UserError(f"{folder}: {what}.", STEP)


def _stored(file: Path) -> list[tuple[str, str, int]]:
    """Names, number formats and sizes of a file's tensors; none of a damaged one, which loading reports."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            slices = [(name, weights.get_slice(name)) for name in weights.keys()]  # noqa: SIM118
            return [(name, part.get_dtype(), math.prod(part.get_shape())) for name, part in slices]
    except (SafetensorError, OSError):
        return []


def check_trusted(folder: Path, config: dict[str, Any]) -> None:
    """Raises UserError where code of a folder lies elsewhere: its digest would not cover it."""
    configs = [config]
    if (folder / "tokenizer_config.json").exists():
        configs.append(load_json(folder / "tokenizer_config.json", "config"))
    for part in configs:
        found = part.get("auto_map")
        for value in found.values() if isinstance(found, dict) else ():
            for name in value if isinstance(value, list) else [value]:
                if "--" in str(name):
                    what = f"{folder} takes its code from another repository, {str(name).split('--')[0]:.80}"
                    step = "Put that code into the folder and name it there (auto_map of config.json)."
                    raise UserError(f"{what}.", step)

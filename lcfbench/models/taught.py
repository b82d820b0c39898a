"""Merges a LoRA of PEFT's into its base model: W + scale·B·A, computed in float32.

>>> check_fits(Path("taught/gemma3-270m+mine"), read_config(base), "gemma3-270m")
>>> merge(model, Path("taught/gemma3-270m+mine"))
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lcfbench.errors import UserError
from lcfbench.parsing import load_json
from lcfbench.sources.model_folder import PEFT
from lcfbench.sources.taught import STEP, WEIGHTS, check

NAME = "default"  # PEFT's name for its only adapter
_OPTIONS = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)


def check_fits(folder: Path, config: Any, base: str, trust_remote_code: bool = False) -> None:
    """Raises UserError for a LoRA that was made for another model, before its base is loaded.

    config: of the base. base: its name in the message.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # modules without storage
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    given, modules = check(folder), dict(model.named_modules())
    table = model.get_input_embeddings().weight
    for name, sides in given.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            there = "no such module" if module is None else f"a {type(module).__name__} there"
            raise UserError(f"{folder} changes {name:.100}, and {base} has {there}.", STEP)
        here, made_for = (module.out_features, module.in_features), (sides["B"][0], sides["A"][1])
        if here != made_for:
            shapes = f"is {made_for[0]} × {made_for[1]}, of {base} {here[0]} × {here[1]}"
            raise UserError(f"{folder} was made for another model: {name:.100} {shapes}.", STEP)
        if module.weight is table:
            raise UserError(f"{folder} changes {name:.100}, which is the embedding table too.", STEP)
        if not sides["A"][0]:
            raise UserError(f"{folder}: {name:.100} has rank 0.", STEP)
    for name, expected in _ranks(model, folder).items():
        if name not in given:
            raise UserError(f"{folder}: {WEIGHTS} lacks {name:.100}, which {PEFT} names.", STEP)
        if expected != (rank := given.pop(name)["A"][0]):
            raise UserError(f"{folder}: {name:.100} has rank {rank}, by {PEFT} {expected}.", STEP)
    if given:
        raise UserError(f"{folder}: {PEFT} does not name {min(given):.100}, which {WEIGHTS} holds.", STEP)


def _ranks(model: Any, folder: Path) -> dict[str, int]:
    """Returns module → rank as PEFT reads the config of a LoRA; puts layers into the model for it."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    try:
        inject_adapter_in_model(lora_config(folder), model, low_cpu_mem_usage=True, adapter_name=NAME)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, re.error) as error:
        line = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{folder / PEFT} makes no LoRA of this model ({line}).", STEP) from error
    return {name: m.r[NAME] for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def lora_config(folder: Path) -> Any:
    """Returns PEFT's config of a LoRA, of those entries that decide how it is merged."""
    from peft import LoraConfig

    config = load_json(folder / PEFT, "config of a LoRA")
    given = {key: config[key] for key in _OPTIONS if config.get(key) is not None}
    return LoraConfig(**given, inference_mode=True)


def merge(model: Any, folder: Path) -> list[str]:
    """Merges a LoRA into a float32 model in place; returns the names of the linear modules it changed.

    Raises UserError for weights that are not finite.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise UserError(f"{folder}: the weights {name:.120} hold NaN or infinity.", STEP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads names that transformers will drop
        with_lora: Any = PeftModel(model, lora_config(folder), adapter_name=NAME)
    set_peft_model_state_dict(with_lora, weights, adapter_name=NAME)
    try:
        with_lora.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"{folder}: the merged weights hold NaN or infinity.", STEP) from error
    return sorted(check(folder))


def copy_weights(names: list[str], merged: nn.Module, model: nn.Module) -> None:
    """Copies the weights of linear modules into another model, in its dtype."""
    with torch.no_grad():
        for name in names:
            model.get_parameter(f"{name}.weight").copy_(merged.get_parameter(f"{name}.weight"))

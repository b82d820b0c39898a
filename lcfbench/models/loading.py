"""Loads a frozen model that is on this disk: its numbers, its attention, its place.

>>> model = load_model(find_model("smollm2-135m"), How(dtype="float32")).model
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.models.cpu_packing import packed
from lcfbench.models.dtypes import absent, pick_device, pick_dtype
from lcfbench.models.placement import loaded_weights, offloaded
from lcfbench.models.taught import check_fits, copy_weights, merge
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.sources.model_folder import (
    STEP,
    check_configs,
    check_loaded,
    check_quantised,
    check_size,
    lacks,
)
from lcfbench.sources.models import Found, code_digest, read_config, unloadable
from lcfbench.sources.taught import split
from lcfbench.tasks.chat_template import Thinking

SDPA = "scaled_dot_product_attention"  # in transformers' words, where a model has none
CODE = "transformers_modules"  # where transformers imports code of a folder from
NEXT = {"sdpa": "eager, or leave --attention out", "eager": "sdpa"}


@dataclass(frozen=True)
class How:
    """How a model is loaded. "auto" is the choice that is fastest here.

    attention: "auto" is sdpa, and eager for a model that has no sdpa. device_map: spreads the model over
    the devices of this machine as accelerate does; None: one device. trust_remote_code: run code of the
    model's folder. thinking: whether it writes a thought before an answer. weights: whether they are
    loaded; without them the model stands on the meta device, where that tells what a loaded one would.
    """

    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False
    thinking: Thinking = "off"
    weights: bool = True


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer. facts: see `CausalLM`. place: where one without weights would stand."""

    model: Any
    tokenizer: Any
    facts: dict[str, str]
    place: torch.device | None = None


class WeightsNeededError(UserError):
    """The weights of a model are needed to say how it computes, and they are not on this disk."""


def load_model(found: Found, how: How) -> Loaded:
    """Returns the model and the tokenizer of a folder.

    Quantised weights are loaded as transformers loads them here: kept where package and hardware are
    there, else restored to `dtype`, where it can. Raises UserError when the folder holds no causal model
    that can be run.
    """
    place = pick_device(how.device)
    number = pick_dtype(how.dtype, place)
    raw = check_configs(found.path)
    config = read_config(found.path, how.trust_remote_code)
    quantised = check_quantised(found.path, raw)
    tokenizer = load_tokenizer(found.path, how.trust_remote_code, how.thinking)
    if found.lora:
        if quantised:
            raise UserError(f"{found.path} is quantised: no LoRA can be merged into it.", STEP)
        check_fits(found.lora, config, split(found.name)[0], how.trust_remote_code)

    if not quantised and (how.weights or not lacks(found.path)):
        check_size(found.path, _described(found, raw, config, how.trust_remote_code))
    if not how.weights:
        if (model := _outlined(found, raw, how, config, number, quantised)) is not None:
            check_tables(found.path, model, tokenizer)
            return Loaded(model, tokenizer, {"quantisation": quantised} if quantised else {}, place)
        if why := lacks(found.path):
            raise WeightsNeededError(
                f"{found.name} tells how it computes only when it is loaded, and it has {why}."
            )
        how = replace(how, weights=True)

    # a quantised model cannot be moved
    spread = how.device_map or ({"": place} if quantised else None)

    def read(number: torch.dtype) -> Any:
        return _read(found, raw, how, {"dtype": number, "device_map": spread})

    model, info = read(number)
    check_loaded(found.path, raw, model, info)
    if found.lora:
        if offloaded(model):
            what = f"{found.name} does not fit into the memory of the devices, and a LoRA is merged there"
            raise UserError(f"{what}.", "Use larger devices, or save the merged model.")
        whole = model if number == torch.float32 else read(torch.float32)[0]
        names = merge(whole, found.lora)
        copy_weights(names, whole, model)
    if spread is None:
        try:
            model.to(place)
        except Exception as error:  # too large for the device, for one
            raise unloadable(found.path, raw, error) from error
    check_weights(found.path, model)
    check_tables(found.path, model, tokenizer)
    facts = {}
    if quantised:
        kept = getattr(model, "is_quantized", False)
        facts["quantisation"] = quantised if kept else f"{quantised}, restored"
    if any(type(part).__module__.startswith(CODE) for part in (model, tokenizer)):
        facts["code"] = code_digest(found.path)
    return Loaded(packed(model), tokenizer, facts)


def _described(found: Found, raw: dict[str, Any], config: Any, trust_remote_code: bool) -> int:
    """The number of weights of the model that a config describes."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):  # modules without storage
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a folder can break transformers in any place
        raise unloadable(found.path, raw, error) from error
    return sum(p.numel() for p in model.parameters())


def _read(found: Found, raw: dict[str, Any], how: How, given: dict[str, Any]) -> Any:
    """Returns what `from_pretrained` returns, with eager attention where "auto" finds no other."""
    from transformers import AutoModelForCausalLM

    asked = "sdpa" if how.attention == "auto" else how.attention
    try:
        if not how.weights:
            trusted = how.trust_remote_code
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    attn_implementation=asked, trust_remote_code=trusted, **given
                )
        return AutoModelForCausalLM.from_pretrained(
            found.path,
            attn_implementation=asked,
            trust_remote_code=how.trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **given,
        )
    except Exception as error:  # a folder can break transformers in any place
        lacking = asked != "eager" and isinstance(error, ValueError | ImportError) and _on_attention(error)
        if lacking and how.attention == "auto":
            return _read(found, raw, replace(how, attention="eager"), given)
        if lacking:
            line = " ".join(str(error).split())[:160].rstrip(".")
            what = f"{found.path} cannot run with --attention {asked} ({line})"
            raise UserError(f"{what}.", f"Use --attention {NEXT.get(asked, 'sdpa or eager')}.") from error
        raise unloadable(found.path, raw, error) from error


def described(found: Found, raw: dict[str, Any], how: How, config: Any, number: torch.dtype) -> Any:
    """Returns a model without weights, on the meta device. Raises UserError."""
    return _read(found, raw, replace(how, weights=False), {"config": config, "dtype": number})


def _outlined(
    found: Found, raw: dict[str, Any], how: How, config: Any, number: torch.dtype, quantised: str
) -> Any:
    """Returns a model on the meta device; None where only a loaded one tells how it computes.

    That is so where it is spread over devices or quantised, as memory and packages decide then, where
    code of its folder runs, and where its code needs weights to begin with. On a GPU that is not here
    quantised weights are presumed to be kept.
    """
    away = absent(pick_device(how.device))
    if how.device_map or (quantised and not away) or (how.trust_remote_code and "auto_map" in str(raw)):
        return None
    flash = away and how.attention == "flash_attention_2"  # transformers looks for the GPU
    asked = replace(how, attention="sdpa") if flash else how
    try:
        model = described(found, raw, asked, config, number)
    except UserError as error:
        if "--attention" in error.what:
            raise
        return None
    from transformers import GenerationConfig

    with contextlib.suppress(OSError, ValueError):  # optional, as transformers reads it
        text = (found.path / "generation_config.json").read_text()
        model.generation_config = GenerationConfig.from_dict(json.loads(text))
    return model


def _on_attention(error: Exception) -> bool:
    text = str(error)
    return SDPA in text or "attention" in text or "flash" in text.lower()


def check_weights(folder: Any, model: Any) -> None:
    """Raises UserError for weights that are not finite."""
    for name, weight in loaded_weights(model):
        if not weight.is_floating_point():
            continue
        if weight.itemsize == 1:  # few operations know numbers of 8 bits
            weight = weight.to(torch.float32)
        if not weight.numel():
            continue
        lowest, highest = torch.aminmax(weight)  # NaN where there is one; a sum takes 20 times as long
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            raise UserError(f"{folder}: the weights {name} hold NaN or infinity.", STEP)


def check_tables(folder: Any, model: Any, tokenizer: Any) -> None:
    """Raises UserError for a tokenizer of another model, and for ends of a text that are no tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        what = f"its tokenizer has {tokenizer.vocab_size:,} tokens, its embedding table {rows:,}"
        raise UserError(f"{folder}: {what}.", "Put the model's own tokenizer there.")
    ends = getattr(model.generation_config, "eos_token_id", None)
    if not all(isinstance(i, int) for i in (ends if isinstance(ends, list) else [ends]) if i is not None):
        raise UserError(f"{folder}: eos_token_id is {str(ends)[:60]!r}, not token ids.", STEP)

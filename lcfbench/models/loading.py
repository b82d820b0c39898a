"""Loads a frozen model that is on this disk: its numbers, its attention, its place.

>>> model = load_model(find_model("smollm2-135m"), How(dtype="float32")).model
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.models.cpu_packing import packed
from lcfbench.models.dtypes import pick_device, pick_dtype
from lcfbench.models.placement import loaded_weights, offloaded
from lcfbench.models.taught import check_fits, copy_weights, merge
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.sources.model_folder import STEP, check_configs, check_loaded, check_quantised
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
    model's folder. thinking: whether it writes a thought before an answer.
    """

    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    device_map: str | None = None
    trust_remote_code: bool = False
    thinking: Thinking = "off"


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer. facts: see `CausalLM`."""

    model: Any
    tokenizer: Any
    facts: dict[str, str]


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
    check_weights(found.path, model, tokenizer)
    facts = {}
    if quantised:
        kept = getattr(model, "is_quantized", False)
        facts["quantisation"] = quantised if kept else f"{quantised}, restored"
    if any(type(part).__module__.startswith(CODE) for part in (model, tokenizer)):
        facts["code"] = code_digest(found.path)
    return Loaded(packed(model), tokenizer, facts)


def _read(found: Found, raw: dict[str, Any], how: How, given: dict[str, Any]) -> Any:
    """Returns what `from_pretrained` returns, with eager attention where "auto" finds no other."""
    from transformers import AutoModelForCausalLM

    asked = "sdpa" if how.attention == "auto" else how.attention
    try:
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


def _on_attention(error: Exception) -> bool:
    text = str(error)
    return SDPA in text or "attention" in text or "flash" in text.lower()


def check_weights(folder: Any, model: Any, tokenizer: Any) -> None:
    """Raises UserError for weights that are not finite, and for a tokenizer of another model."""
    for name, weight in loaded_weights(model):
        if not weight.is_floating_point():
            continue
        if weight.itemsize == 1:  # few operations know numbers of 8 bits
            weight = weight.to(torch.float32)
        # a sum, which makes no copy, is finite only where every term is
        if not torch.isfinite(weight.sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise UserError(f"{folder}: the weights {name} hold NaN or infinity.", STEP)
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        what = f"its tokenizer has {tokenizer.vocab_size:,} tokens, its embedding table {rows:,}"
        raise UserError(f"{folder}: {what}.", "Put the model's own tokenizer there.")
    ends = getattr(model.generation_config, "eos_token_id", None)
    if not all(isinstance(i, int) for i in (ends if isinstance(ends, list) else [ends]) if i is not None):
        raise UserError(f"{folder}: eos_token_id is {str(ends)[:60]!r}, not token ids.", STEP)

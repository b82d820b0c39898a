"""Settings of adapters as texts from the command line, and the ones that make small-scale training converge."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from lcfbench.adapters.base import adapter_class
from lcfbench.errors import UserError, unknown

SMALL_SCALE: dict[str, dict[str, Any]] = {
    # what makes small-scale training converge: standardised inputs and a pool that starts on the last tokens; gates hardly matter, and LCF-X
    # learns faster from a random up-projection than from no edit at all (three seeds each, results/ablation)
    "lcf": {"width": 64, "standardise": True, "zero_up": True, "gate": "soft", "gate_init": 1.0},
    "lcfx": {
        "width": 64,
        "standardise": True,
        "zero_up": False,
        "gate": "soft",
        "gate_init": 1.0,
        "pool_start": "last",
        "unrotated_keys": True,
    },
    "c2c": {"hidden": 64, "intermediate": 64, "gate": "soft", "gate_init": 1.0},
    # translation in closed form, then a small residual: 2 million parameters for the embedded pair
    "dense": {
        "form": "linear",
        "rank": 48,
        "residual": 32,
        "reconstruction": "ridge",
        "ridge_tokens": 8_000,
        "blend": "mix",
        "gate": "soft",
        "gate_init": 0.0,
    },
    "prefix": {"slots": 16, "width": 32, "gate": "soft", "gate_init": 1.0},
}
ALIGNMENT = {
    "layer_map": ("terminal", "proportional"),
    "token_alignment": ("span", "remap", "same"),
    "remap_strategy": ("longest", "first"),
}
SMALL_SCALE_ALIGNMENT = {
    "layer_map": "proportional"
}  # the embedded pair differs much in depth: 30 layers read 18


def adapter_options(
    kind: str, given: dict[str, str], small_scale: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the adapter (typed by its constructor) and of the alignment, from `-o` texts. UserError for unknown ones.

    small_scale: start from the settings that converge in minutes on a CPU; without it, from the constructor's own, which are the papers'.
    """
    parameters = {
        n: p
        for n, p in inspect.signature(adapter_class(kind).__init__, eval_str=True).parameters.items()
        if n not in {"self", "config"}
    }
    options: dict[str, Any] = dict(SMALL_SCALE.get(kind, {})) if small_scale else {}
    alignment: dict[str, Any] = dict(SMALL_SCALE_ALIGNMENT) if small_scale else {}
    for key, text in given.items():
        if key in ALIGNMENT:
            if text not in ALIGNMENT[key]:
                raise unknown(key.replace("_", " "), text, ALIGNMENT[key], "lcfbench train --help")
            alignment[key] = text
        elif key in parameters:
            options[key] = convert(key, text, parameters[key])
        else:
            raise unknown(
                f"option of a {kind} adapter", key, [*parameters, *ALIGNMENT], "lcfbench train --help"
            )
    return {k: v for k, v in options.items() if k in parameters}, alignment


def split_options(
    kind: str, method_kind: Any, general: dict[str, str], own: dict[str, str]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Options of the method and of the adapter, from those given to all adapters (`general`) and to this one (`own`, which win).

    A general option that this adapter does not know is left to the others; the third value names those it took.
    """
    from lcfbench.methods.base import option_fields

    of_adapter = {*inspect.signature(adapter_class(kind).__init__).parameters, *ALIGNMENT} - {
        "self",
        "config",
    }
    of_method = {f.name for f in option_fields(method_kind)}
    taken = set(general) & (of_adapter | of_method)
    chosen = {k: v for k, v in general.items() if k in taken} | own
    for_method = {k: v for k, v in chosen.items() if k in of_method and k not in of_adapter}
    return for_method, {k: v for k, v in chosen.items() if k not in for_method}, taken


def convert(key: str, text: str, parameter: inspect.Parameter) -> Any:
    """The text as the type of the parameter's default. Raises UserError."""
    default, words = parameter.default, get_args(parameter.annotation)
    if words and isinstance(default, str) and text not in words:
        raise unknown(f"{key}", text, words, "lcfbench train --help")
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
                text.lower()
            ]
        if isinstance(default, int):
            if (number := int(text)) < min(default, 1):  # 0 where it is the default: it means none
                raise ValueError
            return number
        if isinstance(default, float) or default is None:
            return float(text)
    except (ValueError, KeyError) as error:
        like = (
            "yes or no"
            if isinstance(default, bool)
            else f"a whole number, {min(default, 1)} or more"
            if isinstance(default, int)
            else "a number"
        )
        raise UserError(f"option {key}={text} is not {like}.", f"Its default is {default!r}.") from error
    return text

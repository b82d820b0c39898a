"""Options of an adapter as texts from the command line.

>>> adapter_options("lcf", {"width": "128"}, small_scale=False)
({'width': 128}, {})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lcfbench.adapters.base import adapter_class, option_parameters
from lcfbench.adapters.config import AdapterConfig
from lcfbench.config import convert
from lcfbench.errors import unknown

FIELDS = AdapterConfig.model_fields
ALIGNMENT: dict[str, tuple[Any, str]] = {  # option → type, default
    "layer_map": (Literal["terminal", "proportional"], "terminal"),
    "token_alignment": (FIELDS["token_alignment"].annotation, FIELDS["token_alignment"].default),
    "remap_strategy": (FIELDS["remap_strategy"].annotation, FIELDS["remap_strategy"].default),
    "remap_padding": (FIELDS["remap_padding"].annotation, FIELDS["remap_padding"].default),
}
SMALL_SCALE_ALIGNMENT = {"layer_map": "proportional"}  # for pairs that differ much in depth


def adapter_options(
    kind: str, given: Mapping[str, str], small_scale: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts `-o` texts to the settings of the adapter and of the alignment.

    small_scale: start from the kind's own small-scale options; without it, from the constructor's
    defaults, which are the papers'. Raises UserError for unknown names and unfit values.
    """
    parameters = option_parameters(kind)
    options: dict[str, Any] = dict(adapter_class(kind).small_scale) if small_scale else {}
    alignment: dict[str, Any] = dict(SMALL_SCALE_ALIGNMENT) if small_scale else {}
    for key, text in given.items():
        if key in ALIGNMENT:
            alignment[key] = convert(key, text, *ALIGNMENT[key])
        elif key in parameters:
            parameter = parameters[key]
            options[key] = convert(key, text, parameter.annotation, parameter.default, f"a {kind} adapter")
        else:
            known = [*parameters, *ALIGNMENT]
            raise unknown(f"option of a {kind} adapter", key, known, "lcfbench train --help")
    return options, alignment

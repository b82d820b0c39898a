"""Options of adapters as texts from the command line, and the adapters that several values make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, get_type_hints

from lcfbench.adapters.base import option_parameters
from lcfbench.adapters.options import ALIGNMENT
from lcfbench.config import values_of
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import method_class
from lcfbench.training.recipe import TrainRecipe, spec_fields, split_spec


def split_options(
    kind: str, method: type[Method], general: Mapping[str, str], own: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Divides options into those of the method and those of the adapter.

    general: given to all adapters; one that this adapter does not know is left to the others. own:
    given to this adapter; they win. Returns (for the method, for the adapter, general ones taken).
    """
    of_adapter = {*option_parameters(kind), *ALIGNMENT}
    of_method = {f.name for f in option_fields(method)}
    taken = set(general) & (of_adapter | of_method)
    chosen = {k: v for k, v in general.items() if k in taken} | dict(own)
    for_method = {k: v for k, v in chosen.items() if k in of_method and k not in of_adapter}
    return for_method, {k: v for k, v in chosen.items() if k not in for_method}, taken


def expanded(recipe: TrainRecipe) -> TrainRecipe:
    """Returns the same training with an adapter for each value of an option that has several.

    Several such options make their product, for every adapter that has them and sets them not itself.
    Settings of an adapter (`seed`, `lr`, …) among the options go to each adapter. Raises UserError.
    """
    texts = []
    for text in recipe.adapters:
        mode, own = split_spec(text)
        hints = option_hints(method_class(mode), own.get("kind", recipe.options.get("kind")))
        each = {
            key: values_of(key, value, hints[key], mode)
            for key, value in recipe.options.items()
            if key not in own and key in hints
        }
        mine = {k: v for k, v in each.items() if len(v) > 1 or "," in recipe.options[k] or k in spec_fields()}
        for chosen in itertools.product(*mine.values()):
            if not chosen:
                texts.append(text)
                continue
            options = own | dict(zip(mine, chosen, strict=True))
            texts.append(":".join(filter(None, (mode, ",".join(f"{k}={v}" for k, v in options.items())))))
    left = {k: v for k, v in recipe.options.items() if k not in spec_fields()}
    return recipe.model_copy(update={"adapters": texts, "options": left})


def option_hints(method: type[Method], kind: str | None) -> dict[str, Any]:
    """Returns the type of each option of a method, of its kinds of adapter, and of a training of them."""
    found = {key: hint for key, (hint, _) in {**ALIGNMENT, **spec_fields()}.items()}
    for each in [kind] if kind in method.adapter_kinds else method.adapter_kinds:
        found |= {key: p.annotation for key, p in option_parameters(each).items()}
    hints = get_type_hints(method, include_extras=True)
    return found | {f.name: hints[f.name] for f in option_fields(method)}

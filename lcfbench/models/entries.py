"""Reading for the cache alone: a forward that ends where its last layer has written its entries.

Nothing reads what the last layer makes of a prompt's tokens but the last: its attention, its feed-forward
part and the final norm run for nobody, one layer's work less its projections of keys and values.

>>> cache = ending(DynamicCache(), 29)
>>> with until_written():
...     decoder(input_ids=ids, past_key_values=cache)                               # doctest: +SKIP
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

import torch

from lcfbench.errors import UserError
from lcfbench.models.layout import blocks_of, decoder_of

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM


class _WrittenError(Exception):
    """The last layer has written its entries."""


def until_written() -> AbstractContextManager[Any]:
    """Within it a forward may end early, see `written`."""
    return suppress(_WrittenError)


def written() -> None:
    """Ends the forward that runs."""
    raise _WrittenError


def ending(cache: Any, last: int) -> Any:
    """Returns a transformers cache whose layer `last` ends the forward when it has been written."""
    update = cache.update

    def ends(keys: Any, values: Any, layer: int, *args: Any, **given: Any) -> Any:
        found = update(keys, values, layer, *args, **given)
        if layer == last:
            written()
        return found

    cache.update = ends
    return cache


def ends_early(lm: CausalLM) -> bool:
    """Says whether a model's last decoder layer is the last that writes entries, and all stand on one device.

    Not where layers keep states or read other layers' entries, and not where accelerate moves weights
    behind each layer.
    """
    if not lm.layout.plain or len(set((getattr(lm.model, "hf_device_map", None) or {}).values())) > 1:
        return False
    try:
        return len(blocks_of(lm.model)) == lm.geometry.layers
    except UserError:
        return False


def may_end(lm: CausalLM) -> bool:
    """Says whether a forward may end early now.

    Not where a gradient's way back would be cut, nor where a hook looks at what comes after the entries.
    """
    if torch.is_grad_enabled() or not lm.ends_early:
        return False
    decoder = decoder_of(lm.model)
    after = (decoder, *decoder.children(), *blocks_of(lm.model)[-1].modules())
    return not any(part._forward_hooks for part in after)

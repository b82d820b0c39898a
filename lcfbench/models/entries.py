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
from torch import nn

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


def last_block(lm: CausalLM) -> nn.Module | None:
    """Returns the decoder layer in which a reading may end; None where it must go on to the model's end.

    It must where layers keep states or read other layers' entries, and where accelerate moves weights
    behind each layer.
    """
    if not lm.layout.plain or len(set((getattr(lm.model, "hf_device_map", None) or {}).values())) > 1:
        return None
    try:
        blocks = blocks_of(lm.model)
    except UserError:
        return None
    return blocks[-1] if len(blocks) == lm.geometry.layers else None


def may_end(lm: CausalLM) -> bool:
    """Says whether a forward may end early now.

    Not where a gradient's way back would be cut, nor where a hook looks at what comes after the entries.
    """
    if torch.is_grad_enabled() or lm.last_block is None:
        return False
    decoder = decoder_of(lm.model)
    after = (decoder, *decoder.children(), *lm.last_block.modules())
    return not any(part._forward_hooks for part in after)

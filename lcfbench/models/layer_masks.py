"""Attention that differs from layer to layer: entries of the cache that some layers must not attend.

transformers wants caches of equal length in all layers: ragged ones run silently wrong. So an entry that a layer should not have stays where
it is and is masked in that layer alone, by hooks that live as long as one forward. What a layer sees is then what it would see if the entry
were not there: a sliding window counts the entries the layer has, not those it is kept from.

>>> with hiding(model, kv.hidden, mask, new=ids.shape[1]): model(input_ids=ids, attention_mask=mask, ...)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.errors import UserError

Key = TypeVar("Key", bound=Hashable)
KERNELS = ("sdpa", "eager")  # those that take a mask of their own for every layer
KINDS = ("full_attention", "sliding_attention")


def check_kernel(model: Any) -> None:
    """Raises UserError where the model's attention cannot be masked layer by layer."""
    if (kernel := model.config._attn_implementation) not in KERNELS:
        raise UserError(
            f"layers that see different parts of a cache need a mask a layer, which {kernel} does not take.",
            f"Use --attention {' or '.join(KERNELS)}.",
        )


def maskable(model: Any) -> bool:
    """Whether the model's layers can be given masks of their own."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not layers or "attention_mask" not in inspect.signature(layers[0].forward).parameters:
        return False
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return model.config._attn_implementation in KERNELS and set(kinds) <= set(KINDS)


def windows(model: Any) -> list[int | None]:
    """The sliding window of each layer in tokens, None where it attends everything. UserError for layers that attend otherwise."""
    config = model.config.get_text_config()
    kinds, size = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is None:
        return [size] * config.num_hidden_layers
    if strange := sorted(set(kinds) - set(KINDS)):
        raise UserError(
            f"entries cannot be hidden from layers of kind {', '.join(strange)}.",
            "Use a model of plain attention layers.",
        )
    return [size if kind == "sliding_attention" else None for kind in kinds]


def visible(mask: Tensor, hidden: Tensor, new: int, window: int | None) -> Tensor:
    """(B, 1, T, N) bool: what each of the last T = `new` columns attends in a layer that `hidden` (B, N) entries are kept from.

    mask: (B, N), 1 where an entry is real. Causal; `window` counts columns that are not hidden (padding too, as transformers does).
    Every column sees itself, so that padding attends something: what nobody reads may be anything but undefined.
    """
    column = torch.arange(mask.shape[1], device=mask.device)
    query = column[-new:, None]  # (T, 1)
    see = (mask.bool() & ~hidden)[:, None, :] & (column <= query)  # (B, T, N)
    if window is not None:
        rank = (~hidden).cumsum(1)
        see = see & (rank[:, None, :] > rank[:, -new:, None] - window)
    return (see | (column == query))[:, None]


@contextmanager
def hiding(model: Any, hidden: Tensor | None, mask: Tensor, new: int) -> Iterator[None]:
    """Within it every decoder layer of `model` is kept from its own `hidden` (L, B, n) of the first n cache entries.

    mask: (B, N), cache and the `new` last columns that are run now. Without `hidden` nothing is touched.
    """
    if hidden is None:
        yield
        return
    check_kernel(model)
    L, B, n = hidden.shape
    # few distinct patterns over layers, so few masks
    patterns, which = hidden.reshape(L, -1).unique(dim=0, return_inverse=True)
    columns = F.pad(patterns.view(-1, B, n), (0, mask.shape[1] - n))  # what is run now is hidden from nobody
    keys = list(zip(which.tolist(), windows(model), strict=True))
    with masking(model, keys, lambda key: visible(mask, columns[key[0]], new, key[1])):
        yield


@contextmanager
def masking(model: Any, keys: Sequence[Key], make: Callable[[Key], Tensor]) -> Iterator[None]:
    """Within it decoder layer i attends what `make(keys[i])` (B, 1, T, N) bool says, in place of the model's own mask. Equal keys, one mask."""
    layers = model.get_decoder().layers
    assert len(layers) == len(keys), f"masks of {len(keys)} layers, the model has {len(layers)}"
    masks: dict[Key, Tensor] = {}

    def hook(key: Key) -> Callable[..., Any]:
        def replace(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            assert "attention_mask" in kwargs, f"{type(module).__name__} does not take its mask by name"
            if key not in masks:
                states = args[0] if args else kwargs["hidden_states"]
                masks[key] = as_taken(model, make(key), states.dtype)
            return args, kwargs | {"attention_mask": masks[key]}

        return replace

    handles = [
        layer.register_forward_pre_hook(hook(key), with_kwargs=True)
        for layer, key in zip(layers, keys, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_taken(model: Any, see: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as the model's attention takes it: bool for sdpa, added to the scores for eager."""
    if model.config._attn_implementation == "sdpa":
        return see
    return torch.zeros(see.shape, device=see.device, dtype=dtype).masked_fill(~see, torch.finfo(dtype).min)

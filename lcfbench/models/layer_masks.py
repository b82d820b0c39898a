"""Attention that differs from layer to layer: cache entries that some layers must not attend.

transformers wants caches of equal length in all layers: ragged ones run silently wrong. So an entry
that a layer should not have stays in its place and is masked in that layer alone, by hooks that
live as long as one forward. A layer then sees what it would see if the entry were not there: a
sliding window counts the entries the layer has, not those that are hidden from it.

>>> with hiding(model, kv.hidden, mask, new=ids.shape[1]):
...     model(input_ids=ids, attention_mask=mask, past_key_values=cache)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.errors import UserError
from lcfbench.models.layout import blocks_of, decoder_of, layer_count

Key = TypeVar("Key", bound=Hashable)
KERNELS = ("sdpa", "eager")  # those that take a mask of their own for every layer
KINDS = {"full_attention", "sliding_attention"}


def check_maskable(model: Any, layers: int | None = None) -> None:
    """Raises UserError where the model's attention cannot be masked layer by layer.

    layers: that keep a cache; without it, all.
    """
    every = layer_count(model)
    if layers not in (None, every):
        raise UserError(
            f"entries cannot be hidden from single layers: only {layers} of {every} keep a cache.",
            "Use all layers.",
        )
    if strange := sorted(kinds_of(model) - KINDS):
        raise UserError(
            f"entries cannot be hidden from layers of kind {', '.join(strange)}.",
            "Use a model of plain attention layers.",
        )
    if (kernel := model.config._attn_implementation) not in KERNELS:
        raise UserError(
            f"layers that see different parts of a cache need a mask a layer, which {kernel} does not take.",
            f"Use --attention {' or '.join(KERNELS)}.",
        )


def maskable(model: Any) -> bool:
    """Says whether the model's layers can be given masks of their own."""
    # elsewhere (GPT-2's `h`, ALiBi's models) a mask may hold more than who attends whom
    layers = getattr(decoder_of(model), "layers", None)
    if not layers or len(layers) != len(windows(model)):
        return False
    if not {"hidden_states", "attention_mask"} <= {*inspect.signature(layers[0].forward).parameters}:
        return False
    return model.config._attn_implementation in KERNELS and kinds_of(model) <= KINDS


def kinds_of(model: Any) -> set[str]:
    """Returns the kinds of attention that the model's layers have; empty where all are alike."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ())


def windows(model: Any) -> list[int | None]:
    """Returns the sliding window of each layer in tokens, None where it has none."""
    config = model.config.get_text_config()
    kinds, size = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is None:
        return [size] * layer_count(model)
    return [size if kind == "sliding_attention" else None for kind in kinds]


def visible(mask: Tensor, hidden: Tensor, new: int, window: int | None) -> Tensor:
    """Returns (B, 1, T, N) bool: what each of the last T = `new` columns attends in a layer.

    mask: (B, N), 1 where an entry is real. hidden: (B, N), entries the layer must not attend.
    Causal; `window` counts columns that are not hidden (padding too, as transformers does). Every
    column sees itself: a row of padding attends something, so that its values are defined.
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
    """Hides from every decoder layer its own `hidden` (L, B, n) of the first n cache entries.

    mask: (B, N), the cache and the `new` last columns, which run now. Nothing changes without
    `hidden`. One of floats is added to attention's logits, see `KV`; gradients flow into it.
    """
    if hidden is None:
        yield
        return
    check_maskable(model)
    L, B, n = hidden.shape
    if hidden.dtype != torch.bool:
        with weighing(model, hidden, mask, new):
            yield
        return
    # few distinct patterns over layers, so few masks
    patterns, which = hidden.reshape(L, -1).unique(dim=0, return_inverse=True)
    columns = F.pad(patterns.view(-1, B, n), (0, mask.shape[1] - n))  # columns that run now are not hidden
    keys = list(zip(which.tolist(), windows(model), strict=True))
    with masking(model, keys, lambda key: visible(mask, columns[key[0]], new, key[1])):
        yield


@contextmanager
def weighing(model: Any, added: Tensor, mask: Tensor, new: int) -> Iterator[None]:
    """Adds to every decoder layer's attention logits its own `added` (L, B, n), see `hiding`.

    −∞ hides an entry. Layers to which nothing finite is added keep a mask of true and false.
    """
    columns = F.pad(added, (0, mask.shape[1] - added.shape[2]))
    hidden = columns.detach().isneginf()
    plain = [bool(((layer == 0) | gone).all()) for layer, gone in zip(columns.detach(), hidden, strict=True)]
    same = hidden.flatten(1).unique(dim=0, return_inverse=True)[1].tolist()
    # a layer whose logits change has a mask of its own, as its gradient is its own
    ids = [
        (pattern, -1) if alone else (pattern, i)
        for i, (pattern, alone) in enumerate(zip(same, plain, strict=True))
    ]
    first = {key: i for i, key in reversed(list(enumerate(ids)))}
    keys = [(first[key], window) for key, window in zip(ids, windows(model), strict=True)]

    def make(key: tuple[int, int | None]) -> Tensor:
        layer, window = key
        see = visible(mask, hidden[layer], new, window)
        if plain[layer]:
            return see
        more = columns[layer].masked_fill(hidden[layer], 0)  # a gradient through −∞ would be no number
        return more[:, None, None].masked_fill(~see, -torch.inf)

    with masking(model, keys, make):
        yield


@contextmanager
def masking(model: Any, keys: Sequence[Key], make: Callable[[Key], Tensor]) -> Iterator[None]:
    """Gives decoder layer i the mask `make(keys[i])` (B, 1, T, N) instead of its own.

    Bool, or what is added to the logits. Layers of equal keys share one mask.
    """
    layers = blocks_of(model)
    assert len(layers) == len(keys), f"masks of {len(keys)} layers, the model has {len(layers)}"
    masks: dict[Key, Tensor] = {}

    def hook(key: Key) -> Callable[..., Any]:
        def masked(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | given
            assert "attention_mask" in given, f"{type(module).__name__} takes no mask"
            if key not in masks:
                masks[key] = as_taken(model, make(key), given["hidden_states"].dtype)
            return (), given | {"attention_mask": masks[key]}

        return masked

    with ExitStack() as stack:
        for layer, key in zip(layers, keys, strict=True):
            stack.callback(layer.register_forward_pre_hook(hook(key), with_kwargs=True).remove)
        yield


def as_taken(model: Any, see: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the mask as attention takes it: bool for sdpa, added to scores for eager.

    see: bool, or itself what is added to the logits, −∞ where nothing is seen.
    """
    if see.dtype != torch.bool:
        return see.to(dtype).clamp(min=torch.finfo(dtype).min)
    if model.config._attn_implementation == "sdpa":
        return see
    return torch.zeros(see.shape, device=see.device, dtype=dtype).masked_fill(~see, torch.finfo(dtype).min)


@contextmanager
def attention_seen(model: Any, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Shows `see` the attention weights (B, heads, T, N) of each decoder layer, layer by layer, a forward.

    Only eager attention knows its weights, so the model is switched to it and back: grouped heads,
    windows and masks are its own. Raises UserError where a layer gives no weights.
    """

    def shown_as(number: int) -> Callable[..., None]:
        def take(module: Any, args: Any, out: tuple[Any, ...]) -> None:
            weights = out[1]
            if weights is None or weights.dim() != 4:
                raise UserError(
                    f"{type(module).__name__} gives no attention weights.",
                    "Use a method or an option that does not need them.",
                )
            see(number, weights)

        return take

    with ExitStack() as stack:
        stack.callback(model.set_attn_implementation, model.config._attn_implementation)
        for number, layer in enumerate(blocks_of(model)):
            stack.callback(attention_of(layer).register_forward_hook(shown_as(number)).remove)
        model.set_attn_implementation("eager")
        yield


@contextmanager
def attention_sums(model: Any, columns: slice) -> Iterator[list[list[Tensor]]]:
    """Collects the attention (B, heads, T) of each layer's queries to `columns`, an entry a forward."""
    sums: list[list[Tensor]] = [[] for _ in blocks_of(model)]

    def see(number: int, weights: Tensor) -> None:
        sums[number].append(weights[..., columns].float().sum(-1))

    with attention_seen(model, see):
        yield sums


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a decoder layer. Raises UserError where it has none."""
    for module in layer.children():
        if type(module).__name__.endswith("Attention"):
            return module
    raise UserError(
        f"{type(layer).__name__} has no attention of its own.",
        "Use a method or an option that does not need it.",
    )

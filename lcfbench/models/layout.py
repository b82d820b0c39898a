"""What each layer of a model's cache keeps, counted from a cache that the model itself has filled.

transformers knows several kinds of layer: attention that keeps all keys and values, attention that
drops those outside its window, recurrent layers that keep one state however long the text, layers
that use another one's entries, and layers that keep nothing. Here windows are kept by the attention
mask alone, so that all layers hold equally many entries.

>>> layout = measured(model); layout.geometry.layers, layout.recurrent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)

from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.models.memory import DeviceError, device_named, ran_out
from lcfbench.models.placement import main_device
from lcfbench.sources import taught
from lcfbench.sources.models import GEOMETRIES, alias, canonical, config_of

# kinds of layers that drop entries, and those that keep them all
WHOLE = {
    "sliding_attention": "full_attention",
    "chunked_attention": "full_attention",
    "hybrid_sliding": "hybrid",
}
Reading = Literal["padded", "left", "equal", "steps", "whole"]  # see `lcfbench.models.unpadded`
READINGS: tuple[Reading, ...] = ("padded", "left", "equal", "steps", "whole")
PROBE = 5  # tokens that fill a cache to be counted
States = dict[tuple[int, str, int], Tensor]  # (layer, "conv" or "recurrent", number) → (B, …)


class UnusableCacheError(Exception):
    """A model keeps something of a text for which there is no place here."""


class RecurrentLayer(LinearAttentionLayer):
    """A recurrent layer's state, replaced at each step: a gradient may need the one before."""

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        before, size = self.conv_states[state_idx], conv_kernel_size or conv_states.shape[-1]
        if before is not None and self.has_previous_state[state_idx]:
            full, size = torch.cat([before, conv_states], -1), before.shape[-1]
        else:
            full = F.pad(conv_states, (max(size - conv_states.shape[-1], 0), 0))
        self.conv_states[state_idx], self.conv_kernel_size[state_idx] = full[..., -size:], size
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        return full

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class HybridLayer(RecurrentLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override]
    """A layer of attention and recurrence side by side."""


MADE = {
    "linear_attention": RecurrentLayer,
    "conv": RecurrentLayer,
    "hybrid": HybridLayer,
    "dummy": DummyLayer,
}


@dataclass(frozen=True)
class Layout:
    """The layers of a model's cache.

    geometry: of the layers that keep keys and values, None where there is no cache to be used. kinds:
    type of each layer and the number of states it keeps; empty where the cache makes layers of plain
    attention itself. devices: of each layer of a model that is spread over several. reason: why there
    is no cache to be used.
    """

    geometry: Geometry | None = None
    kinds: tuple[tuple[str, int], ...] = ()
    devices: tuple[torch.device, ...] = ()
    reason: str = ""

    @property
    def at(self) -> tuple[int, ...]:
        """The cache's layers that keep keys and values."""
        assert self.geometry is not None
        return self.geometry.at or tuple(range(self.geometry.layers))

    @property
    def recurrent(self) -> tuple[int, ...]:
        """The layers that keep a state."""
        return tuple(i for i, (kind, _) in enumerate(self.kinds) if kind not in ("full_attention", "dummy"))

    @property
    def plain(self) -> bool:
        """Whether all layers of the cache are of plain attention and of one shape."""
        g = self.geometry
        even = g is not None and g.shapes is None and g.at is None
        return even and not self.kinds and not self.devices

    def new(self, kind: type[DynamicLayer] = DynamicLayer) -> DynamicCache:
        """Makes an empty cache. kind: of its layers of plain attention."""
        cache = DynamicCache()
        if self.kinds:
            # layers are known beforehand: none is made where a layer is missing
            cache.layer_class_to_replicate = None
            cache.layers = [
                MADE[name](number_of_states=count) if name in MADE else kind() for name, count in self.kinds
            ]
        return cache


def measured(model: Any) -> Layout:
    """Fills a cache with a few tokens and counts what its layers keep.

    A model whose cache is none of transformers' general ones gets a layout without a geometry.
    """
    try:
        layout = Layout(kinds=_kinds(model.config.get_text_config(decoder=True)))
        cache = layout.new()
        home, rows = main_device(model), model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(1, PROBE + 1, device=home)[None] % rows
        with torch.no_grad(), device_named():
            decoder_of(model)(input_ids=ids, past_key_values=cache, use_cache=True)
        geometry = _counted(cache)
        devices = [getattr(getattr(layer, "keys", None), "device", home) for layer in cache.layers]
    except UnusableCacheError as error:
        return Layout(reason=str(error))
    except Exception as error:  # a model's own code raises anything; the reason is told
        if ran_out(error) or isinstance(error, DeviceError):
            raise
        why = " ".join(str(error).split())[:160].rstrip(".")
        return Layout(
            reason=f"it takes no cache of transformers' general kind ({type(error).__name__}: {why})"
        )
    if geometry is None:
        return Layout(reason="no layer keeps keys and values" if layout.recurrent else "it keeps no cache")
    return replace(layout, geometry=geometry, devices=tuple(devices) if len(set(devices)) > 1 else ())


def _kinds(config: Any) -> tuple[tuple[str, int], ...]:
    """The type and number of states of each cache layer; empty where all are plain attention."""
    types, given = get_layer_types_and_kwargs(config)
    kinds = [WHOLE.get(kind, kind) for kind in types]
    if strange := sorted(set(kinds) - {"full_attention", *MADE}):
        raise UnusableCacheError(f"layers of {strange[0]} keep more than keys and values")
    own = [kind for kind in kinds if kind != "dummy"]
    if set(own) == {"full_attention"} and kinds[: len(own)] == own:
        return ()
    counts = [int(each.get("number_of_states", 1)) for each in given]
    return tuple(zip(kinds, counts, strict=True))


def _counted(cache: Any) -> Geometry | None:
    """The shape of the layers of a cache of `PROBE` entries; None where none keeps keys and values."""
    filled = {
        i: (layer.keys, layer.values)
        for i, layer in enumerate(cache.layers)
        if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.numel()
    }
    shapes = []
    for i, (keys, values) in filled.items():
        if keys.dim() != 4 or keys.shape[2] != PROBE or values.shape[:3] != keys.shape[:3]:
            what = f"{tuple(keys.shape)} and {tuple(values.shape)}"
            raise UnusableCacheError(f"after {PROBE} tokens layer {i} keeps {what}")
        shapes.append((keys.shape[1], keys.shape[3], values.shape[3]))
    if not shapes:
        return None
    heads, dim = max(h for h, _, _ in shapes), max(max(k, v) for _, k, v in shapes)
    at = tuple(filled)
    return Geometry(
        layers=len(shapes),
        kv_heads=heads,
        head_dim=dim,
        shapes=None if set(shapes) == {(heads, dim, dim)} else tuple(shapes),
        at=None if at == tuple(range(len(at))) else at,
    )


def states_of(cache: Any) -> States | None:
    """The recurrent states in a cache; None where no layer keeps one."""
    found: States = {}
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for name in ("conv", "recurrent"):
                kept = getattr(layer, f"{name}_states")
                found |= {(i, name, n): x for n, x in kept.items() if x is not None}
    return found or None


def put_states(cache: Any, states: States | None) -> None:
    """Puts copies of recurrent states into a new cache: models write them in place."""
    for (i, name, n), x in (states or {}).items():
        layer = cache.layers[i]
        getattr(layer, f"{name}_states")[n] = x.clone()
        getattr(layer, f"is_{name}_states_initialized")[n] = layer.has_previous_state[n] = True
        layer.device, layer.dtype = x.device, x.dtype
        if name == "conv":
            layer.conv_kernel_size[n] = x.shape[-1]


def select_rows(cache: Any, index: Tensor) -> None:
    """Keeps the rows `index` of a cache."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for kept in (layer.conv_states, layer.recurrent_states):
                kept.update({n: x[index.to(x.device)] for n, x in kept.items() if x is not None})
        if not isinstance(layer, LinearAttentionLayer) or isinstance(layer, DynamicLayer):
            keys = getattr(layer, "keys", None)
            layer.batch_select_indices(index if keys is None else index.to(keys.device))


def layers_named(layers: Sequence[int]) -> str:
    """Names layers in words: `layer 3`, `layers 0, 1, 2, 4 …`, `layers 0–23`."""
    numbers = list(layers)
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]}–{numbers[-1]}"
    return f"layers {', '.join(map(str, numbers[:4]))}" + (" …" if len(numbers) > 4 else "")


def decoder_of(model: Any) -> Any:
    """The part of a model that makes hidden states from token ids."""
    decoder = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model


def blocks_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a model. Raises UserError where it has no list of them."""
    decoder, config = decoder_of(model), model.config.get_text_config(decoder=True)
    found: list[nn.ModuleList] = [x for x in decoder.modules() if isinstance(x, nn.ModuleList)]
    for count in (getattr(config, "num_hidden_layers", None), getattr(config, "decoder_layers", None)):
        for some in found:
            if len(some) == count:
                return some
    raise UserError(
        f"{type(model).__name__} has no list of its layers.", "Use a method that changes none of them."
    )


def layer_count(model: Any) -> int:
    """The number of a model's decoder layers."""
    try:
        return len(blocks_of(model))
    except UserError:
        return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def geometry_named(
    name: str, *, offline: bool = False, by_code: bool = False, trust_remote_code: bool = False
) -> Geometry:
    """The geometry of a model by its name, without its weights. by_code: see `geometry_of`.

    Raises UserError.
    """
    base = alias(taught.split(canonical(name))[0])
    if base in GEOMETRIES and not by_code:
        return GEOMETRIES[base]
    config = config_of(name, offline=offline, trust_remote_code=trust_remote_code)
    return geometry_of(config, by_code, trust_remote_code)


def geometry_of(config: Any, by_code: bool = False, trust_remote_code: bool = False) -> Geometry:
    """The geometry of a model that is not loaded: from its config, or from its code without weights.

    by_code: not from the config, which some models do not keep to. Raises UserError where neither tells.
    """
    try:
        if by_code:
            raise UserError("the config is not asked.")
        return Geometry.of_config(config)
    except UserError:
        with torch.device("meta"):
            layout = measured(
                AutoModelForCausalLM.from_config(
                    config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code
                )
            )
        if layout.geometry is None:
            raise
        return layout.geometry

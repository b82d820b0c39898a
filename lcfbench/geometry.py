"""The shape of a model's KV cache: all that an untrained adapter needs to know of a model.

>>> from lcfbench.geometry import Geometry
>>> Geometry(layers=28, kv_heads=8, head_dim=128).kv_width
1024
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from lcfbench.errors import UserError


class Geometry(BaseModel):
    """Layers, KV heads and head dim of one frozen model, counted over the layers that keep keys and values.

    Where layers differ, kv_heads and head_dim are the largest, and shapes has each layer's own:
    heads, numbers of a key, numbers of a value. at: the decoder layers that these layers are; None
    where they are the first ones.
    """

    model_config = ConfigDict(frozen=True)

    layers: int
    kv_heads: int
    head_dim: int
    shapes: tuple[tuple[int, int, int], ...] | None = None
    at: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Geometry:
        for name, each in (("shapes", self.shapes), ("at", self.at)):
            if each is not None and len(each) != self.layers:
                raise ValueError(f"{name} has {len(each)} layers, not {self.layers}")
        if self.shapes and any(
            not 0 < heads <= self.kv_heads or not 0 < key <= self.head_dim or not 0 < value <= self.head_dim
            for heads, key, value in self.shapes
        ):
            raise ValueError("shapes has a layer larger than kv_heads and head_dim, or an empty one")
        return self

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def kv_width(self) -> int:
        """Numbers in one token's keys (or values) of one layer, as stacked: `kv_heads · head_dim`."""
        return self.kv_heads * self.head_dim

    def numbers(self, layer: int) -> int:
        """Numbers in one token's keys and values of a layer: its own, without what fills it up."""
        if self.shapes is None:
            return 2 * self.kv_width
        heads, key, value = self.shapes[layer]
        return heads * (key + value)

    @property
    def token_numbers(self) -> int:
        """Numbers in one token's keys and values of all layers."""
        return sum(self.numbers(layer) for layer in range(self.layers))

    @classmethod
    def of_config(cls, config: Any) -> Geometry:
        """Reads the shape from a transformers config, or from its `text_config`.

        Raises UserError for a model whose layers differ in shape, share their cache or keep none.
        """
        text = getattr(config, "text_config", None) or config
        kind = getattr(text, "model_type", "") or type(text).__name__
        try:
            if why := _uneven(text):
                raise UserError(
                    f"the config of a {kind} model gives no shape of its cache: {why}.",
                    "See what `lcfbench doctor --model NAME` counts.",
                )
            heads = text.num_attention_heads
            made = cls(
                layers=text.num_hidden_layers,
                kv_heads=getattr(text, "num_key_value_heads", None) or heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            )
        except UserError:
            raise
        except Exception as error:  # a config may compute what it is asked for
            what = f"the config of a {kind} model gives no shape of its cache"
            raise UserError(f"{what} ({str(error).splitlines()[0]:.160}).", "Name another model.") from error
        if min(made.layers, made.kv_heads, made.head_dim) < 1:
            raise UserError(f"the config of a {kind} model has a size below 1.", "Name another model.")
        return made

    def differences(self, other: Geometry, who: str) -> list[str]:
        """Names the dims in which `other` differs, one phrase each: `sharer kv_heads 2, not 8`."""
        return [
            f"{who} {name} {getattr(other, name)}, not {getattr(self, name)}"
            for name in type(self).model_fields
            if getattr(other, name) != getattr(self, name)
        ]


def _uneven(text: Any) -> str:
    """The reason why the layers of a model have no cache of one shape, as a phrase; empty where they do."""
    if getattr(text, "num_kv_shared_layers", 0):
        return "some of its layers share one cache"
    for own in ("head_dim", "num_key_value_heads"):
        other = own.replace("num_", "num_global_") if "num_" in own else f"global_{own}"
        if getattr(text, other, None) not in (None, getattr(text, own, None)):
            return f"its layers differ in {own}"
    if getattr(text, "kv_lora_rank", None):
        return "its cache is compressed (multi-head latent attention)"
    named = [getattr(text, name, None) or () for name in ("layer_types", "layers_block_type")]
    kinds = sorted({str(kind) for some in named for kind in some})
    if odd := [k for k in kinds if not k.endswith("attention") or k.startswith("linear")]:
        return f"it has layers of {odd[0]}, which keep no keys and values"
    return ""

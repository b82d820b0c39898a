"""The shape of a model's KV cache: all that an untrained adapter needs to know of a model.

>>> from lcfbench.geometry import Geometry
>>> Geometry(layers=28, kv_heads=8, head_dim=128).kv_width
1024
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Geometry(BaseModel):
    """Layers, KV heads and head dim of one frozen model."""

    model_config = ConfigDict(frozen=True)

    layers: int
    kv_heads: int
    head_dim: int

    @property
    def kv_width(self) -> int:
        """Numbers in one token's keys (or values) of one layer: `kv_heads · head_dim`."""
        return self.kv_heads * self.head_dim

    @classmethod
    def of_config(cls, config: Any) -> Geometry:
        """Reads the shape from a transformers config, or from its `text_config`."""
        text = getattr(config, "text_config", None) or config
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )

    def differences(self, other: Geometry, who: str) -> list[str]:
        """Names the dims in which `other` differs, one phrase each: `sharer kv_heads 2, not 8`."""
        return [
            f"{who} {name} {getattr(other, name)}, not {value}"
            for name, value in self.model_dump().items()
            if getattr(other, name) != value
        ]

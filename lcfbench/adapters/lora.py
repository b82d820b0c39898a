"""LoRA: low-rank updates of the receiver's own weights, W' = W + scale·B·A (arXiv 2106.09685).

No cache is read or edited. The weights are stacked over layers, one pair of stacks a target module,
so that they are saved, counted and optimised like those of every other kind; the method `lora` puts
them into PEFT's layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig, Size
from lcfbench.errors import UserError

Shapes = Mapping[str, Sequence[int]]  # target module → (out, in) features, equal in all layers


class LoraAdapter(Adapter):
    """Low-rank weights. B starts as zero, A as in PEFT. Gates are always open.

    rank: columns of A and B. params: about how many parameters, instead of the rank (see
    `rank_for`). scale: α/rank. targets: modules by their last name, `q_proj+v_proj`, or `all`
    linear ones of a layer. shapes: from the model.
    """

    title = "LoRA"

    def __init__(
        self,
        config: AdapterConfig,
        rank: Size = 8,
        params: Annotated[int, Ge(0)] = 0,
        scale: float = 2.0,
        targets: str = "all",
        shapes: Shapes | None = None,
    ) -> None:
        super().__init__(config, "hard", 1.0)
        del self.gate_logit
        self.gate_logit = torch.ones(len(config.layers), 2, device="cpu")  # type: ignore[assignment]
        self.rank, self.scale = rank, scale
        L = len(config.layers)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, (fan_out, fan_in) in checked(shapes).items():
            bound = 1 / math.sqrt(fan_in)
            self.down[name] = nn.Parameter(torch.empty(L, rank, fan_in).uniform_(-bound, bound))
            self.up[name] = nn.Parameter(torch.zeros(L, fan_out, rank))

    def open_layers(self) -> list[int]:
        return list(range(len(self.config.layers)))

    def select(self, keep: list[int]) -> Adapter:
        raise UserError(
            "a lora adapter has no gates to prune it by.",
            "Train one of lower rank: -o rank=4, or -o params=1000000.",
        )

    def message(self, sharer: Tensor) -> Tensor:
        raise AssertionError("lora sends nothing")

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        return 0

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        return 0


def checked(shapes: Any) -> dict[str, tuple[int, int]]:
    """Returns the shapes of the target modules. Raises UserError for missing or damaged ones."""
    if shapes is None:
        raise UserError(
            "the size of a lora adapter depends on the receiver's modules, not on its cache alone.",
            "Train it with `lcfbench train --mode lora`; -o params=N picks the rank for a size.",
        )
    try:
        found = {str(name): (int(out), int(into)) for name, (out, into) in dict(shapes).items()}
    except (TypeError, ValueError):
        found = {}
    if not found or any(n < 1 for pair in found.values() for n in pair):
        raise UserError(
            "option shapes of this lora adapter makes no sense.",
            "Fetch or train it again, or mend its config.json.",
        )
    return found


def rank_for(params: int, shapes: Shapes, layers: int) -> int:
    """Returns the rank, 1 or more, that comes nearest to so many parameters."""
    return max(1, round(params / (layers * sum(out + into for out, into in shapes.values()))))

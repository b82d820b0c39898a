"""activation: a linear map from one model's hidden states behind a layer to another's (AC, arXiv 2501.14082).

The sharer's state, standardised and clamped, times a matrix, plus a bias, is a state of the receiver. The
map starts in closed form, by ridge regression on texts that both models read; steps of training go on from
there by the answers' loss.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from lcfbench.adapters._layers import stacked
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig, Size, SizeOrZero
from lcfbench.adapters.ridge import LinearMap, Scale
from lcfbench.errors import UserError

DOCUMENTS = 64  # on whose texts a map is fitted
Layer = Annotated[int, Ge(0)] | None


@dataclass(frozen=True)
class StateMap:
    """Standardises states and maps them. scale, linear: see `lcfbench.adapters.ridge`."""

    scale: Scale
    linear: LinearMap

    def __call__(self, states: Tensor) -> Tensor:
        """Returns states (…, d) of the receiver, in fp32, from states (…, s) of the sharer."""
        x = self.scale(states.to(self.linear.weight.device))
        return self.linear(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    @property
    def sha256(self) -> str:
        parts = (self.scale.mean, self.scale.std, self.linear.weight, self.linear.bias)
        return hashlib.sha256(b"".join(x.cpu().numpy().tobytes() for x in parts)).hexdigest()


class ActivationAdapter(Adapter):
    """One map, from behind a layer of the sharer to behind a layer of the receiver.

    sharer_layer, receiver_layer: see the method; without a number the method's own. documents: of the
    examples, so many give the closed form. sharer_size, receiver_size: numbers of a hidden state, from the
    models. The map is stored and used in fp32; there are no gates.
    """

    title = "activation map"
    full_precision: ClassVar[bool] = True
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        config: AdapterConfig,
        sharer_layer: Layer = None,
        receiver_layer: Layer = None,
        documents: Size = DOCUMENTS,
        sharer_size: SizeOrZero = 0,
        receiver_size: SizeOrZero = 0,
    ) -> None:
        super().__init__(config, "hard", 1.0)
        if not sharer_size or not receiver_size:
            raise UserError(
                "the size of an activation adapter depends on the width of the models' hidden states.",
                "Make it with `lcfbench train --mode activation`.",
            )
        if len(config.layers) != 1:
            raise UserError(
                f"an activation adapter is of one layer, not {len(config.layers)}.",
                "Fetch or train it again, or mend its config.json.",
            )
        del self.gate_logit
        self.gate_logit = torch.ones(1, 2, device="cpu")  # type: ignore[assignment]
        self.documents, self.sizes = documents, (sharer_size, receiver_size)
        self.register_buffer("mean", torch.zeros(1, sharer_size))
        self.register_buffer("deviation", torch.ones(1, sharer_size))
        self.weight = stacked(1, sharer_size, receiver_size)
        self.bias = nn.Parameter(torch.zeros(1, receiver_size))

    @property
    def map(self) -> StateMap:
        """The map as it is now; a gradient goes to its weight and bias."""
        return StateMap(Scale(self.mean[0], self.deviation[0]), LinearMap(self.weight[0], self.bias[0]))

    @torch.no_grad()
    def take(self, fitted: StateMap) -> None:
        """Takes the numbers of a fitted map."""
        self.mean.copy_(fitted.scale.mean[None])
        self.deviation.copy_(fitted.scale.std[None])
        self.weight.copy_(fitted.linear.weight[None])
        self.bias.copy_(fitted.linear.bias[None])

    def forward(self, states: Tensor) -> Tensor:
        """Returns states (…, d) of the receiver, in fp32, from states (…, s) of the sharer."""
        return self.map(states)

    def open_layers(self) -> list[int]:
        return [0]

    def flops(self, positions: int) -> float:
        """Counts the map of one state a document, at any number of positions."""
        return 2.0 * self.sizes[0] * self.sizes[1]

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the bytes of one hidden state of the sharer."""
        return self.sizes[0] * itemsize

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        """Returns the bytes of one hidden state of the sharer; its cache is not read."""
        return self.sizes[0] * itemsize

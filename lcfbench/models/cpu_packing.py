"""Linear layers whose bfloat16 weights are laid out once for oneDNN's kernels on a CPU.

Otherwise they are laid out again at every call, which is most of a matmul's time where rows are
few: one token of SmolLM2 decodes 1.3–1.9 times as fast packed, and prompts gain 2–9 %; gradients of
few tokens pass twice as fast, for one more copy of the weights of a model that they pass. The kernels
are the same, and so are the numbers, bit for bit. In float32 PyTorch calls another library, whose
last bits differ: those weights stay as they are.

>>> packed(model)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.models.dtypes import has_bfloat16
from lcfbench.models.memory import free_bytes

ROWS = 16  # rows that the layout is chosen for; it serves one row and thousands as well


class Packed(nn.Linear):
    """`nn.Linear` of frozen weights, laid out when first called; for gradients, a second time turned.

    Weights that are trained, or made under inference mode, are used as they are.
    """

    _laid_out: Laid | None = None
    _turned: Laid | None = None

    def forward(self, input: Tensor) -> Tensor:
        unseen = self.weight.is_inference()  # nothing tells when such weights change
        if not input.numel() or input.dtype != torch.bfloat16 or self.learns or unseen:
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and input.requires_grad:
            return Passed.apply(input, self)  # type: ignore[no-any-return]
        return self.product(input)

    @property
    def learns(self) -> bool:
        """Whether the weights are trained."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def product(self, input: Tensor) -> Tensor:
        """Returns the layer's output, without a gradient."""
        laid = self._laid_out
        if laid is None or not laid.holds(self.weight):
            laid = self._laid_out = Laid(self.weight)
        return torch.ops.mkldnn._linear_pointwise(input, laid.packed, self.bias, "none", [], "")

    def gradient(self, output: Tensor) -> Tensor:
        """Returns the gradient of the input from that of the output."""
        laid = self._turned
        if laid is None or not laid.holds(self.weight):
            laid = self._turned = Laid(self.weight, turned=True)
        return torch.ops.mkldnn._linear_pointwise(output.contiguous(), laid.packed, None, "none", [], "")


class Passed(torch.autograd.Function):
    """A gradient passes through a `Packed` layer; its weights get none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Packed) -> Tensor:
        ctx.layer = layer
        return layer.product(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.gradient(gradients[0]), None


class Laid:
    """Weights in the kernels' layout. of, version: the tensor they were made of, as it was."""

    def __init__(self, weight: Tensor, turned: bool = False) -> None:
        self.of, self.version = weight, weight._version
        with torch.inference_mode(False), torch.no_grad():
            plain = weight.detach().t().contiguous() if turned else weight.detach()
            self.packed: Any = torch.ops.mkldnn._reorder_linear_weight(plain, ROWS)

    def holds(self, weight: Tensor) -> bool:
        """Whether it is of these weights, as they are."""
        return self.of is weight and self.version == weight._version

    def __deepcopy__(self, memo: dict[int, Any]) -> Laid:
        return self  # a second tree of modules over the same weights (LoRA's) shares this as well


def packed(model: nn.Module) -> nn.Module:
    """Packs a model's linear layers where that helps, and returns the model.

    That is on a CPU in bfloat16, with memory for a second copy of the weights.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.bfloat16]
    layers = [m for m in layers if m.weight.device.type == "cpu"]
    if layers and can_pack() and 4 * sum(m.weight.nbytes for m in layers) < free_bytes(torch.device("cpu")):
        for module in layers:
            module.__class__ = Packed
    return model


def can_pack() -> bool:
    """Says whether this PyTorch has the kernels and this CPU the instructions."""
    has_kernels = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return has_bfloat16() and has_kernels

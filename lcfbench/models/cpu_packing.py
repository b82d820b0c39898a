"""Linear layers whose bfloat16 weights are laid out once for oneDNN's kernels on a CPU.

Otherwise they are laid out again at every call, which is most of a matmul's time where rows are
few: one token of SmolLM2 decodes 1.3–1.9 times as fast packed, and prompts gain 2–9 %. The kernels
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
    """`nn.Linear` of frozen weights, laid out when first called.

    Where a gradient must flow, the plain weights are used.
    """

    _laid_out: Laid | None = None

    def forward(self, input: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and input.requires_grad
        if not input.numel() or input.dtype != torch.bfloat16 or trains:
            return F.linear(input, self.weight, self.bias)
        laid = self._laid_out
        if laid is None or laid.of is not self.weight or laid.version != self.weight._version:
            laid = self._laid_out = Laid(self.weight)
        return torch.ops.mkldnn._linear_pointwise(input, laid.packed, self.bias, "none", [], "")


class Laid:
    """Weights in the kernels' layout. of, version: the tensor they were made of, as it was."""

    def __init__(self, weight: Tensor) -> None:
        self.of, self.version = weight, weight._version
        with torch.inference_mode(False), torch.no_grad():
            self.packed: Any = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)

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

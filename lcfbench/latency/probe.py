"""One matmul of fixed size, timed again and again: how fast the machine is just now.

A busy neighbour, a hot processor or another clock shows in it, and so which repeats to throw away.

>>> probe = Probe(torch.device("cpu"), torch.bfloat16)
>>> probe()  # milliseconds
"""

from __future__ import annotations

from statistics import median

import torch
import torch.nn.functional as F

from lcfbench.models.timing import now

# rows and width: tens of milliseconds on one core, with weights that do not fit into its cache
SIZES = {"cpu": (64, 4096), "cuda": (4096, 8192)}
TURNS = 3  # matmuls of which the median counts


class Probe:
    """A linear layer on one device, in the dtype that the models compute in."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, (self.rows, self.width) = device, SIZES.get(device.type, SIZES["cpu"])
        self.x = torch.full((self.rows, self.width), 0.5, dtype=dtype, device=device)
        self.weight = torch.full((self.width, self.width), 0.01, dtype=dtype, device=device)
        self()

    @torch.inference_mode()
    def __call__(self) -> float:
        """Returns the median of a few turns, in milliseconds."""
        took = []
        for _ in range(TURNS):
            began = now(self.device)
            F.linear(self.x, self.weight)
            took.append(1e3 * (now(self.device) - began))
        return median(took)

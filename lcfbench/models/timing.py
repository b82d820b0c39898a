"""A clock of the phases of an answer.

>>> clock = Clock()
>>> with clock("sharer"): ...
>>> clock.first_token(); clock.ms["sharer"]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lcfbench.models.memory import cuda_devices

PHASES = ("sharer", "message", "fuse", "prefill", "decode")


def now(device: torch.device) -> float:
    """Returns seconds, when all work queued on the device, and on others in use, is done."""
    for place in cuda_devices(device):
        torch.cuda.synchronize(place)
    return time.perf_counter()


class Clock:
    """Milliseconds of each phase.

    The accelerator is synchronised at its begin and end, so that queued work counts where it
    belongs.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.ms: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.ttft_ms: float | None = None
        self.begin = self._now()

    def _now(self) -> float:
        return now(self.device) * 1e3

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = self.moment()
        yield
        self.add(phase, began, self.moment())

    def moment(self, stream: Any = None) -> Any:
        """Marks the moment in which all work is done that is queued now; with `stream` in that one alone."""
        if stream is None:
            return self._now()
        stream.synchronize()
        return time.perf_counter() * 1e3

    def add(self, phase: str, begin: Any, end: Any) -> None:
        """Adds the time between two moments to a phase."""
        self.ms[phase] += end - begin

    def first_token(self) -> None:
        """Marks the moment in which the first answer token is known; later calls change nothing."""
        if self.ttft_ms is None:
            self.ttft_ms = self._now() - self.begin

    def total_ms(self) -> float:
        """Returns the time since construction."""
        return self._now() - self.begin

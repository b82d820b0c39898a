"""Queues the reading of one model on a GPU and goes on at once with that of another.

A GPU works through a queue (a stream) by itself. Readings that do not need each other go into two
queues, of one GPU or of two, so that the longer one decides when both are done. The kernels and
their numbers are the same, and so are the answers.

>>> beside = Beside.of(sharer, receiver, clock)
>>> with beside.first("sharer"): theirs = sharer.prefill(rows)
>>> with beside.second("prefill"): own = receiver.prefill(others)   # at its end all work waits for both
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from lcfbench.models.protocol import LanguageModel
from lcfbench.models.timing import Clock


@dataclass
class Beside:
    """Two readings side by side.

    stream: the queue of the first one. Its memory is handed out again only to work in it, which begins
    when all work queued before is done. devices: of both models.
    """

    clock: Clock
    stream: Any
    devices: set[torch.device]
    begun: Any = None
    phase: str = ""

    @classmethod
    def of(cls, first: LanguageModel, second: LanguageModel, clock: Clock) -> Beside | None:
        """Returns None where one reading must follow the other.

        That is so where the first model is on no GPU, where both are one model, where a model is spread
        over devices, and where readings are shared: their times are taken one by one then.
        """
        models = first, second
        if first.device.type != "cuda" or first.shared is second.shared:
            return None
        if any(lm.shared.held is not None or len(getattr(lm, "devices", ())) > 1 for lm in models):
            return None
        return cls(clock, stream_of(first.device), {lm.device for lm in models})

    @contextmanager
    def first(self, phase: str) -> Iterator[None]:
        """Queues all GPU work of the body behind what is queued already; waits for nothing itself."""
        self.begun, self.phase = self.clock.moment(), phase
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        try:
            with torch.cuda.stream(self.stream):
                yield
        except BaseException:
            self.join()
            raise

    @contextmanager
    def second(self, phase: str) -> Iterator[None]:
        """Runs the body; all work after it waits for both.

        The first phase lasts until its own work is done, this one for the time that is left.
        """
        try:
            yield
            done = self.clock.moment(self.stream)
        finally:
            self.join()
        self.clock.add(self.phase, self.begun, done)
        self.clock.add(phase, done, self.clock.moment())

    def join(self) -> None:
        """Lets what is queued from now on wait for the first reading."""
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).wait_stream(self.stream)


@cache
def stream_of(device: torch.device) -> Any:
    """Returns the one stream of a GPU for readings beside."""
    return torch.cuda.Stream(device)

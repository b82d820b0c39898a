"""A clock for a GPU that never waits inside a phase: device events at both ends, read afterwards.

`models.timing.Clock` waits for the device at both ends of a phase, so that the next phase's launches
cannot overlap it. That is right where phases must add up on the host, and slower than a user sees.

>>> clock = clock_for(torch.device("cuda"))
>>> with clock("sharer"): ...
>>> clock.first_token(); clock.total_ms(); clock.ms["sharer"]
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from lcfbench.models.timing import PHASES, Clock


class Mark(Protocol):
    """A moment that is recorded on the device's stream: a `torch.cuda.Event`, or a test's own."""

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Mark, /) -> float: ...


def cuda_mark(device: torch.device) -> Mark:
    """Records an event on the device's current stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event  # type: ignore[return-value]


class EventClock(Clock):
    """The interface of `models.timing.Clock` on device events.

    Reading `ms`, `ttft_ms` or `total_ms()` waits for the device, once; entering and leaving a phase
    does not. mark: makes a recorded event.
    """

    def __init__(
        self, device: torch.device | str = "cuda", mark: Callable[[torch.device], Mark] = cuda_mark
    ) -> None:
        self.device, self._mark = torch.device(device), mark
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._first: Mark | None = None
        self._begin = mark(self.device)

    def moment(self, stream: Any = None) -> Mark:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            return self._mark(self.device)

    def add(self, phase: str, begin: Mark, end: Mark) -> None:
        self._spans.append((phase, begin, end))

    def first_token(self) -> None:
        if self._first is None:
            self._first = self._mark(self.device)

    @property
    def ms(self) -> dict[str, float]:  # type: ignore[override]
        """Milliseconds of each phase, on the device's own clock."""
        out = dict.fromkeys(PHASES, 0.0)
        if self._spans:
            self._spans[-1][2].synchronize()  # what was recorded before is over too: streams have been joined
        for phase, began, ended in self._spans:
            out[phase] += began.elapsed_time(ended)
        return out

    @property
    def ttft_ms(self) -> float | None:  # type: ignore[override]
        return None if self._first is None else self._between(self._first)

    def total_ms(self) -> float:
        """Milliseconds from construction until now."""
        return self._between(self._mark(self.device))

    def _between(self, mark: Mark) -> float:
        mark.synchronize()
        return self._begin.elapsed_time(mark)


def clock_for(*devices: torch.device) -> Clock:
    """Device events where all models are on one GPU, else the host's clock, which waits for all of them.

    devices: of the models, the receiver's first. Events of two devices have no common time.
    """
    one = devices[0].type == "cuda" and len(set(devices)) == 1
    return EventClock(devices[0]) if one else Clock(devices[0])

"""The clock on device events, with made-up events: no test machine has a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from lcfbench.latency.clock import EventClock, clock_for
from lcfbench.models.timing import PHASES, Clock


@dataclass
class Stream:
    """A device's stream.

    Its time goes on only with the work put on it; counts how often someone waited for it.
    """

    ms: float = 0.0
    waited: int = 0
    devices: list[str] = field(default_factory=list)

    def mark(self, device: torch.device) -> Event:
        self.devices.append(str(device))
        return Event(self, self.ms)


@dataclass
class Event:
    stream: Stream
    at: float

    def synchronize(self) -> None:
        self.stream.waited += 1

    def elapsed_time(self, end_event: Event) -> float:
        return end_event.at - self.at


def test_phases_add_up_without_waiting_inside_one():
    stream = Stream()
    clock = EventClock("cuda:1", stream.mark)
    with clock("sharer"):
        stream.ms += 20
    with clock("prefill"):
        stream.ms += 5
    with clock("fuse"):
        stream.ms += 2
    with clock("prefill"):
        stream.ms += 1
    with clock("decode"):
        stream.ms += 3
        clock.first_token()
        stream.ms += 30
        clock.first_token()  # later calls change nothing
    assert stream.waited == 0 and set(stream.devices) == {"cuda:1"}
    assert clock.ms == dict.fromkeys(PHASES, 0.0) | {"sharer": 20, "prefill": 6, "fuse": 2, "decode": 33}
    assert stream.waited == 1
    assert clock.ttft_ms == 31 and clock.total_ms() == 61 == sum(clock.ms.values())


def test_a_clock_that_saw_nothing():
    clock = EventClock(mark=Stream().mark)
    assert clock.ms == dict.fromkeys(PHASES, 0.0) and clock.ttft_ms is None and clock.total_ms() == 0


def test_what_lies_between_phases_is_in_the_total_only():
    stream = Stream(ms=7)
    clock = EventClock(mark=stream.mark)
    with clock("sharer"):
        stream.ms += 4
    stream.ms += 6
    assert clock.ms["sharer"] == 4 and clock.total_ms() == 10


def test_a_phase_that_fails_is_not_counted():
    clock = EventClock(mark=Stream().mark)
    with pytest.raises(ZeroDivisionError), clock("fuse"):
        _ = 1 / 0
    assert clock.ms["fuse"] == 0


def test_a_gpu_is_timed_on_the_stream_it_works_on(monkeypatch):
    stream, streams = Stream(), []

    class Recorded(Event):
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            super().__init__(stream, float("nan"))

        def record(self, on: str) -> None:
            streams.append(on)
            self.at = stream.ms

    monkeypatch.setattr(torch.cuda, "Event", Recorded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = clock_for(torch.device("cuda", 0))
    with clock("fuse"):
        stream.ms += 3
    assert type(clock) is EventClock and clock.ms["fuse"] == 3 and set(streams) == {"stream of cuda:0"}


def test_the_host_is_timed_by_its_own_clock():
    assert type(clock_for(torch.device("cpu"))) is Clock

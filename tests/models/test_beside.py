"""Readings side by side: the order of the streams, equal answers, and no wait of the host in between.

No test machine has a GPU: see `tests/pretend_gpus.py`.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks._sides import TOLERANCE, difference
from lcfbench.evaluation.answer import answer
from lcfbench.latency.clock import EventClock, clock_for
from lcfbench.methods.base import Batch
from lcfbench.models import beside
from lcfbench.models.beside import Beside
from lcfbench.models.causal_lm import CausalLM, sharing
from lcfbench.models.finite import NotFiniteError
from lcfbench.models.timing import PHASES, Clock
from tests.helpers import SHARED, SPLIT, method_of
from tests.pretend_gpus import move, pretend_gpus

ONE_GPU, TWO_GPUS, SHARER_ALONE = ("cuda:0", "cuda:0"), ("cuda:0", "cuda:1"), ("cpu", "cuda:0")
METHODS = [
    ("receiver", None),
    ("t2t", None),
    ("full_context", None),
    ("lcf", "lcf"),
    ("lcf", "lcfx"),
    ("lcf", "remap"),
    ("c2c", "c2c"),
    ("c2c", "c2c-remap"),
    ("dense", None),
    ("prefix", "after"),
    ("prefix", "before"),
    ("xkv", None),
    ("activation", "map"),
    ("kvcomm", None),
    ("cacheback", None),
    ("identical", "lcf"),
    ("single", "lcf"),
    ("answer_letter", None),
    ("excerpt", None),
]


@pytest.fixture(autouse=True)
def _new_streams():
    beside.stream_of.cache_clear()
    yield
    beside.stream_of.cache_clear()


def moved(method, places):
    """Puts a method's models, made anew, and its adapter where they would be."""
    for lm, place in {method.sharer: places[1], method.receiver: places[0]}.items():
        if place != "cpu":
            own = lm.name, move(lm.model, place), lm.tokenizer, lm.revision
            vars(lm).clear()
            CausalLM.__init__(lm, *own)
    if method.adapter is not None and places[0] != "cpu":
        move(method.adapter, places[0])
    return method


def answered(method, documents):
    with torch.no_grad():
        if method.calibration:
            method.calibrate(documents)
        batch = Batch(documents, documents, Clock(method.receiver.device))
        outcomes, _ = answer(method.respond(batch), batch)
    return {d.hash: o for d, o in zip(documents, outcomes, strict=True)}


@pytest.mark.parametrize(
    ("name", "kind", "places"),
    [(*method, TWO_GPUS) for method in METHODS]
    + [("lcf", "lcf", ONE_GPU), ("lcf", "lcf", SHARER_ALONE), ("dense", None, SHARER_ALONE)],
)
def test_models_on_gpus_answer_as_on_the_cpu(name, kind, places) -> None:
    documents = SPLIT if kind == "lcfx" else SHARED
    want = answered(method_of(name, kind, chat=False), documents)
    with pretend_gpus():
        got = answered(moved(method_of(name, kind, chat=False), places), documents)
    found = difference(got, want)  # a CPU runs the rows of a batch in another way
    assert found.picks == 0 and found.nats < TOLERANCE


@pytest.mark.parametrize("places", [ONE_GPU, TWO_GPUS, SHARER_ALONE])
def test_the_sharer_reads_on_a_stream_of_its_own_and_nothing_waits_in_between(places) -> None:
    with pretend_gpus() as pretended, torch.inference_mode():
        method = moved(method_of("lcf", "lcf", chat=False), places)
        batch = Batch(SHARED[:1], SHARED[:1], Clock(method.receiver.device))
        method.respond(batch)  # what is done once is done
        pretended.seen.clear()
        method.respond(Batch(SHARED[:1], SHARED[:1], Clock(method.receiver.device)))
    side, own = f"side {places[1]}", f"main {places[1]}"
    seen = pretended.seen
    begins, ends = seen.index(f"work on {side}"), seen.index(f"no more work on {side}")
    joins = seen.index(f"{own} waits for {side}")
    assert seen[begins - 1] == f"{side} waits for {own}" and begins < ends < joins
    # transformers looks at the mask before it queues anything; after that the host goes on at once
    waits = [i for i, what in enumerate(seen[:joins]) if "the host waits" in what and i > begins]
    matmuls = [i for i, what in enumerate(seen) if what == f"a matmul on {side}"]
    assert begins < matmuls[0] and matmuls[-1] < ends and not [i for i in waits if matmuls[0] < i < ends]
    assert seen[waits[-1]] == f"the host waits for {side}"  # the clock, when both are queued
    if places[0] != "cpu":
        first = seen.index(f"a matmul on main {places[0]}", ends)
        assert not [i for i in waits[:-1] if i > first]
    if places[0] != "cpu":
        assert f"main {places[0]} waits for {side}" in seen


def test_phases_are_the_time_that_each_adds() -> None:
    with pretend_gpus():
        method = moved(method_of("lcf", "lcf", chat=False), ONE_GPU)
        clock = Clock(method.receiver.device)
        with torch.inference_mode():
            method.respond(Batch(SHARED, SHARED, clock))
        total = clock.total_ms()
    assert all(clock.ms[phase] > 0 for phase in ("sharer", "prefill", "fuse")) and set(clock.ms) == set(
        PHASES
    )
    assert sum(clock.ms.values()) <= total


def test_device_events_are_recorded_on_both_streams(monkeypatch) -> None:
    with pretend_gpus() as pretended:
        method = moved(method_of("lcf", "lcf", chat=False), ONE_GPU)
        marks: list[tuple[str, float]] = []

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream) -> None:
                self.at = float(len(marks))
                marks.append((stream.name, self.at))

            def synchronize(self) -> None:
                pretended.seen.append("the host waits for an event")

            def elapsed_time(self, end) -> float:
                return end.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)
        clock = clock_for(method.receiver.device, method.sharer.device)
        with torch.inference_mode():
            method.respond(Batch(SHARED, SHARED, clock))
        assert isinstance(clock, EventClock) and "the host waits for an event" not in pretended.seen
        total = clock.total_ms()
        assert [name for name, _ in marks].count("side cuda:0") == 1
        assert all(clock.ms[phase] > 0 for phase in ("sharer", "prefill", "fuse"))
        assert sum(clock.ms.values()) <= total


def test_readings_follow_one_another_where_they_must() -> None:
    method, clock = method_of("lcf", "lcf", chat=False), Clock()
    assert Beside.of(method.sharer, method.receiver, clock) is None  # no GPU
    with pretend_gpus():
        moved(method, TWO_GPUS)
        assert Beside.of(method.sharer, method.receiver, clock) is not None
        assert Beside.of(method.receiver, method.receiver, clock) is None
        with sharing([method.sharer]):
            assert Beside.of(method.sharer, method.receiver, clock) is None
        method.sharer.devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
        assert Beside.of(method.sharer, method.receiver, clock) is None


def test_a_cache_that_is_not_finite_is_named_after_both_have_read() -> None:
    with pretend_gpus() as pretended, torch.inference_mode():
        method = moved(method_of("lcf", "lcf", chat=False), ONE_GPU)
        method.sharer.model.get_input_embeddings().weight.inner.fill_(float("nan"))
        with pytest.raises(NotFiniteError, match="the cache of the sharer"):
            method.respond(Batch(SHARED, SHARED, Clock(method.receiver.device)))
    assert "main cuda:0 waits for side cuda:0" in pretended.seen


@pytest.mark.parametrize("failing", ["sharer", "receiver"])
def test_streams_are_joined_where_a_reading_fails(failing, monkeypatch) -> None:
    with pretend_gpus() as pretended, torch.inference_mode():
        method = moved(method_of("lcf", "lcf", chat=False), ONE_GPU)

        def fails(*_args, **_more):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(getattr(method, failing), "prefill", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            method.respond(Batch(SHARED, SHARED, Clock(method.receiver.device)))
        assert pretended.seen[-1] == "main cuda:0 waits for side cuda:0"
        assert pretended.stream("cuda:0").name == "main cuda:0"


def test_events_of_two_devices_have_no_common_time() -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    with pretend_gpus():
        assert type(clock_for(first, first, first)) is EventClock
        assert (
            type(clock_for(first, second)) is Clock and type(clock_for(first, torch.device("cpu"))) is Clock
        )

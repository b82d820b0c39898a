"""The dtype of a run: decided by what is faster here, once, and recorded."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lcfbench.models import dtypes
from lcfbench.provenance import environment

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: True)
    monkeypatch.setattr(dtypes, "PHASES", {"prefill": (4, 8), "decode": (1, 8)})
    return tmp_path / "cache"


def taking(prefill: float, decode: float = 1.0):
    """A timer under which bfloat16 is so many times faster; it counts its calls."""
    calls = []

    def timer(x: torch.Tensor, weight: torch.Tensor) -> float:
        assert x.dtype is weight.dtype
        calls.append(len(x))
        return 1.0 if x.dtype is torch.float32 else 1.0 / (prefill if len(x) > 1 else decode)

    timer.calls = calls
    return timer


@pytest.mark.parametrize(
    ("speedup", "wanted"),
    [(1.9, torch.bfloat16), (1.1, torch.bfloat16), (1.09, torch.float32), (0.2, torch.float32)],
)
def test_the_prefill_decides(cache, speedup, wanted):
    dtype, record = dtypes.choose(CPU, taking(speedup, decode=0.5))
    assert dtype is wanted and record["prefill_speedup"] == speedup and record["decode_speedup"] == 0.5
    assert record["measured_at"] and "1.1 times" in record["rule"]


def test_measured_once_and_never_flips(cache):
    first = dtypes.choose(CPU, taking(1.5))
    slower = taking(0.5)
    assert dtypes.choose(CPU, slower) == first and slower.calls == []


def test_of_several_that_begin_at_once_one_measures(cache):
    """Else each could take another dtype, and write its runs under another name."""
    timers = [taking(speedup) for speedup in (1.5, 0.5, 1.5, 0.5)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda timer: dtypes.choose(CPU, timer), timers))
    assert [found[0]] * 4 == found
    assert sum(bool(timer.calls) for timer in timers) == 1


def test_another_torch_is_another_question_another_thread_count_is_not(cache, monkeypatch):
    first = dtypes.choose(CPU, taking(1.5))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    assert dtypes.choose(CPU, taking(0.5)) == first, "the dtype is part of a run's name"
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert dtypes.choose(CPU, taking(0.5))[0] is torch.float32
    assert len(list((cache / "dtypes").iterdir())) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prefill_speedup": "much"}'])
def test_what_is_no_probe_is_measured_again(cache, text):
    dtypes.choose(CPU, taking(1.5))
    (file,) = (cache / "dtypes").iterdir()
    file.write_text(text)
    assert dtypes.choose(CPU, taking(0.5))[0] is torch.float32
    assert json.loads(file.read_text())["prefill_speedup"] == 0.5


def test_a_cache_that_cannot_be_written_leaves_it_to_the_instructions(cache):
    cache.write_text("a file where the folder should be")
    dtype, record = dtypes.choose(CPU, taking(0.5))
    assert dtype is torch.bfloat16 and "not measured" in record["rule"] and "prefill_speedup" not in record


def test_nothing_is_measured_without_the_instructions(cache, monkeypatch):
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: False)
    timer = taking(9.0)
    assert dtypes.choose(CPU, timer)[0] is torch.float32 and timer.calls == [] and not cache.exists()


@pytest.mark.parametrize(("has", "wanted"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_is_not_measured(cache, monkeypatch, has, wanted):
    # a T4 says yes where emulation counts
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    timer = taking(0.1)
    assert dtypes.choose(torch.device("cuda"), timer)[0] is wanted and timer.calls == []


def test_the_clock_runs_both_shapes_in_both_dtypes():
    torch.set_num_threads(1)
    found = dtypes.probe(dtypes.seconds)
    assert set(found) == {"prefill_speedup", "decode_speedup"} and all(0 < v < 1000 for v in found.values())


def test_the_manifest_says_how_it_was_chosen(cache):
    record = dtypes.choose(CPU, taking(1.5))[1]
    assert environment(dtype=record)["dtype"]["prefill_speedup"] == 1.5 and "dtype" not in environment()

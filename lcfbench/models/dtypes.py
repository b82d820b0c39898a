"""The number format of a model where none is named: the one that this machine runs faster.

bfloat16 halves the bytes of the weights, but only a CPU with instructions for it multiplies faster
in it; others emulate it, many times slower. Where the instructions exist, a probe of a fraction of
a second decides. Its result stays in the cache folder: the dtype is part of a run's name, so it
must not change from one invocation to the next.

>>> dtype, record = choose(torch.device("cpu"))  # record["prefill_speedup"]: bfloat16 over float32
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lcfbench.errors import UserError
from lcfbench.files import now, write_json
from lcfbench.provenance import cpu_name
from lcfbench.sources.cache import cache_dir, lock

ENOUGH = 1.1  # a prefill's matmul must be so many times faster; below, float32's accuracy is worth more
# tokens that are read at once, and the width of a square linear layer; decoding's does not fit into
# a processor's cache, as a model does not
PHASES = {"prefill": (256, 1024), "decode": (1, 4096)}
ROUNDS = 7
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
}
_presumed: ContextVar[bool] = ContextVar("gpus_presumed", default=False)
Timer = Callable[[torch.Tensor, torch.Tensor], float]


def choose(device: torch.device, timer: Timer | None = None) -> tuple[torch.dtype, dict[str, Any]]:
    """Returns the dtype for `device` and its reason: a `rule`, and the probe's result if any.

    timer: (x, weight) → seconds of one linear layer; by default the clock. Never raises: without a
    cache folder to write, the instructions decide.
    """
    if device.type == "cuda" and absent(device):
        return torch.bfloat16, {"rule": "bfloat16, as GPUs have it; none is here"}
    if device.type == "cuda":
        # of one GPU, which may not be the current one; emulated bfloat16 is slower than float16
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if native else torch.float16
        return dtype, {"rule": "bfloat16 where the GPU has it, else float16"}
    if device.type != "cpu" or not has_bfloat16():
        return torch.float32, {"rule": "float32: no bfloat16 instructions here"}
    record = remembered(timer or seconds)
    if record is None:
        rule = "the CPU has instructions for it (not measured: the cache folder cannot be written)"
        return torch.bfloat16, {"rule": f"bfloat16: {rule}"}
    dtype = torch.bfloat16 if record["prefill_speedup"] >= ENOUGH else torch.float32
    return dtype, {"rule": f"bfloat16 where it prefills at least {ENOUGH} times as fast", **record}


def has_bfloat16() -> bool:
    """Says whether this CPU multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def remembered(timer: Timer) -> dict[str, Any] | None:
    """Returns the probe's result for this processor and torch, kept in the cache folder.

    Measured where it is not there, once for all processes; None where it cannot be kept.
    """
    about = {"cpu": cpu_name(), "torch": torch.__version__}
    path = cache_dir() / "dtypes" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}.json"
    if (kept := _read(path)) is not None:
        return kept
    try:
        with lock("dtype"):  # of several that begin at once each could measure, and take, something else
            if _read(path) is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {**about, **probe(timer), "measured_at": now()})
    except (OSError, UserError):
        return None
    return _read(path)  # as every later invocation will read it


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_bytes())
        return kept if isinstance(kept["prefill_speedup"], float) else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or no probe of ours: it is measured again
        return None


@torch.inference_mode()
def probe(timer: Timer) -> dict[str, float]:
    """Measures how many times faster bfloat16 is than float32 in each phase's linear layer.

    The median of rounds in turn, the first of them not counted.
    """
    out = {}
    for phase, (rows, width) in PHASES.items():
        slow, fast = (
            (torch.ones(rows, width, dtype=d), torch.ones(width, width, dtype=d))
            for d in (torch.float32, torch.bfloat16)
        )
        pairs = [(timer(*slow), timer(*fast)) for _ in range(ROUNDS + 1)][1:]
        out[f"{phase}_speedup"] = round(statistics.median(a / b for a, b in pairs), 2)
    return out


def seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Times one linear layer (K, N) on x (M, K), as it is called in a model."""
    began = time.perf_counter()
    F.linear(x, weight)
    return time.perf_counter() - began


@contextmanager
def gpus_presumed() -> Iterator[None]:
    """Lets GPUs be named on a machine that has none: what is planned runs on another one."""
    token = _presumed.set(True)
    try:
        yield
    finally:
        _presumed.reset(token)


def absent(place: torch.device) -> bool:
    """Says whether a device is a GPU that is presumed and not here."""
    return place.type == "cuda" and _presumed.get() and not torch.cuda.is_available()


def pick_device(device: str) -> torch.device:
    """Returns the named device; "auto" is the GPU where there is one. Raises UserError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bad = UserError(f"unknown device {device!r}.", "Use auto, cpu or cuda[:n].")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise bad from error
    if place.type not in ("cpu", "cuda", "mps"):
        raise bad
    if place.type == "cpu" and place.index is not None:
        raise bad
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {device} is not there.", "Use --device cpu, or an Apple GPU.")
    if absent(place):
        return place
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        fix = "Use --device cpu, or a torch build and a machine with CUDA."
        raise UserError(f"device {device} is not there.", fix)
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the named dtype; "auto" is the one that `choose` finds. Raises UserError."""
    if dtype == "auto":
        return choose(device)[0]
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}.", f"Use one of auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]

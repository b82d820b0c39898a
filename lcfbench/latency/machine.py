"""What this machine can do, measured now: bytes a second from memory, floating-point operations a second of matmuls in the run's dtype.

The best of several ways each, at the thread count of the run, because a limit is what the best code reaches. About two seconds on two CPU cores.

>>> limits = measure(torch.device("cpu"), torch.bfloat16, shapes=[(256, 576, 1536)])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

BUFFER = {"cpu": 256 << 20, "cuda": 2 << 30}  # bytes: far more than any cache holds
SQUARES = {"cpu": (512, 1024), "cuda": (2048, 4096, 8192)}
EACH_S = 0.12  # a way is tried for so long, or FEWEST times
FEWEST = 3
SLOW_S = 0.1  # a square that takes longer is the last one


@dataclass(frozen=True)
class Limits:
    """bytes_per_s: read from memory. flops_per_s: of matmuls. ways: what each way reached, bytes or operations a second."""

    bytes_per_s: float
    flops_per_s: float
    ways: dict[str, float]

    def best(self, other: Limits) -> Limits:
        """The higher of two measurements: what something else took from one of them was still there to be had."""
        ways = {k: max(self.ways.get(k, 0.0), other.ways.get(k, 0.0)) for k in self.ways | other.ways}
        return Limits(
            max(self.bytes_per_s, other.bytes_per_s), max(self.flops_per_s, other.flops_per_s), ways
        )

    def facts(self) -> dict[str, Any]:
        """For the JSON line: GB/s and GFLOP/s."""
        ways = {k: round(v / 1e9, 2) for k, v in self.ways.items()}
        return {
            "gb_per_s": round(self.bytes_per_s / 1e9, 2),
            "gflop_per_s": round(self.flops_per_s / 1e9, 1),
            "ways": ways,
        }


def measure(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, int, int]] = (),
    buffer: int | None = None,
) -> Limits:
    """Bandwidth and matmul rate of a device, at the current thread count.

    shapes: (tokens, in, out) of the models' own linear layers, tried beside large squares. buffer: bytes to read, chosen by device when None.
    """
    kind = device.type if device.type in BUFFER else "cpu"
    reads = bandwidth(device, dtype, buffer or BUFFER[kind])
    rates: dict[str, float] = {}
    for n in SQUARES[kind]:
        rates[f"matmul {n}×{n}×{n}"] = rate(device, dtype, n, n, n)
        if 2.0 * n**3 / rates[f"matmul {n}×{n}×{n}"] > SLOW_S:
            break
    for tokens, size_in, size_out in dict.fromkeys(shapes):
        rates[f"linear {tokens}×{size_in}×{size_out}"] = rate(device, dtype, tokens, size_in, size_out)
    return Limits(max(reads.values()), max(rates.values()), reads | rates)


def bandwidth(device: torch.device, dtype: torch.dtype, size: int) -> dict[str, float]:
    """Bytes a second of several ways to read a buffer of `size` bytes once."""
    x = torch.ones(size // 4, device=device)
    rows, one = x.view(-1, 4096), torch.ones(4096, device=device)
    narrow = x.view(dtype).view(-1, 4096)  # the bits of other numbers: what they are does not matter
    ways: dict[str, Callable[[], Any]] = {
        "read: sum": lambda: x.sum(),
        "read: norm": lambda: torch.linalg.vector_norm(x),
        "read: max of int64": lambda: x.view(torch.int64).amax(),
        "read: matrix × vector": lambda: torch.mv(rows, one),
        f"read: linear, {str(dtype).removeprefix('torch.')}": lambda: F.linear(narrow[:1], narrow),
    }
    return {name: size / quickest(way, device) for name, way in ways.items()}


def rate(device: torch.device, dtype: torch.dtype, m: int, k: int, n: int) -> float:
    """Floating-point operations a second of an (m, k) by (k, n) matmul, as a linear layer does it."""
    a, b = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
    return 2.0 * m * k * n / quickest(lambda: F.linear(a, b), device)


def quickest(way: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the quickest of several calls, the first one not counted."""
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, spent, calls = float("inf"), 0.0, 0
    way()
    while calls < FEWEST or (spent < EACH_S and calls < 1000):
        sync()
        began = time.perf_counter()
        way()
        sync()
        took = time.perf_counter() - began
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best

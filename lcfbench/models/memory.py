"""Memory that is free where a model runs, and the most that was taken.

>>> reset_peak_memory(device); ...; peak_memory_bytes(device)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lcfbench.errors import StopRunError


def free_bytes(device: torch.device) -> int:
    """Returns the free memory where a model runs; 8 GiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 8 << 30)
    return min(free, container_bytes())


def container_bytes(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns what a container's own limit leaves (cgroup v2); without one, 2**62."""
    limit, used = group / "memory.max", group / "memory.current"
    if not (limit.is_file() and used.is_file()) or not (most := limit.read_text().strip()).isdigit():
        return 1 << 62
    return max(int(most) - int(used.read_text()), 0)


def cuda_devices(device: torch.device) -> list[int]:
    """Returns the GPUs that this process uses: `device`, if it is one, and those where it holds memory."""
    if not torch.cuda.is_initialized():
        return []
    own = device.index if device.type == "cuda" else -1
    own = torch.cuda.current_device() if own is None else own
    return [i for i in range(torch.cuda.device_count()) if i == own or torch.cuda.memory_reserved(i)]


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new high-water mark; where the system forbids it, marks are the whole process's."""
    for place in cuda_devices(device):
        torch.cuda.reset_peak_memory_stats(place)
    if device.type != "cuda":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory that this process took since the reset.

    On a GPU it is what the allocators of all GPUs in use took.
    """
    if device.type == "cuda":
        return sum(map(torch.cuda.max_memory_allocated, cuda_devices(device)))
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(li for li in status.read_text().splitlines() if li.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class DeviceError(StopRunError):
    """The device reported an error after which it computes nothing more in this process."""

    def __init__(self, error: Exception) -> None:
        why = str(error).strip().partition("\n")[0].rstrip(".")[:300]
        super().__init__(
            f"the device failed ({type(error).__name__}: {why}); it computes nothing more in this process.",
            "What is recorded stays; CUDA_LAUNCH_BLOCKING=1, or --device cpu, shows where it happens.",
        )


def device_failed(error: Exception) -> bool:
    """Says whether every later call of the device would fail too, as after a device-side assert."""
    words = ("CUDA error", "HIP error", "device-side assert")
    known = isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    )
    return known and not ran_out(error)


@contextlib.contextmanager
def device_named() -> Iterator[None]:
    """Turns an error after which the device computes nothing more into DeviceError."""
    try:
        yield
    except RuntimeError as error:
        if device_failed(error):
            raise DeviceError(error) from error
        raise


def ran_out(error: Exception) -> bool:
    """Says whether an exception means that memory ran out: the CPU's allocator raises a RuntimeError."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in ("can't allocate memory", "out of memory"))

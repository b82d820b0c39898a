"""Where a number came from: versions, commit and machine; and the digests that name runs and files.

from lcfbench.provenance import digest, environment
digest({"mode": "lcf", "task": "splitfacts"})[:10]
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "lcfbench torch transformers tokenizers lm_eval datasets accelerate safetensors gguf numpy scipy pandas "
    "pyarrow matplotlib"
).split()


def digest(obj: Any) -> str:
    """Returns 64 hex digits over the canonical JSON of `obj`: equal content has an equal digest.

    Raises TypeError for values that JSON cannot hold and ValueError for NaN: a guess would let two
    different runs share a name.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns 64 hex digits over the file's bytes. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(
    device: str = "cpu",
    threads: int | None = None,
    gpu: str | None = None,
    dtype: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describes the program and the machine, for a manifest.

    device, threads, gpu: as the caller, who runs a model, knows them; threads default to the CPUs that
    this process may use. dtype: how it was chosen, where it was not given.
    """
    return {
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "git": git_state(Path(__file__).resolve().parents[1]),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "device": device,
        "threads": threads or usable_cpus(),
        **({"gpu": gpu} if gpu else {}),
        **({"dtype": dict(dtype)} if dtype else {}),
    }


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may run on: fewer in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Returns the processor's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(root: Path) -> dict[str, Any] | None:
    """Returns {"commit", "dirty"} where `root` is the top of a checkout, else None."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root.resolve():
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""Where a number came from: versions, commit, machine; and the digests that name runs and files.

    from lcfbench.provenance import digest, environment
    digest({"mode": "lcf", "task": "splitfacts"})[:10]

No torch here: whoever runs a model passes its device and thread count in.
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
    *(
        "lcfbench",
        "torch",
        "transformers",
        "tokenizers",
        "lm_eval",
        "datasets",
        "accelerate",
        "safetensors",
        "gguf",
    ),
    *("numpy", "scipy", "pandas", "pyarrow", "matplotlib"),
)


def digest(obj: Any) -> str:
    """64 hex digits over the canonical JSON of `obj` (keys sorted, no spaces): equal content, equal digest.

    Raises TypeError for what JSON cannot say and ValueError for NaN: a guess here would let two different runs share a name.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """64 hex digits over the file's bytes. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(
    device: str = "cpu",
    threads: int | None = None,
    gpu: str | None = None,
    dtype: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ran where. `device`, `threads` and the `gpu`'s name as the model runner knows them; threads default to the CPUs this process may use.

    dtype: how it was chosen, where it was (`dtypes.choose`).
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
    """CPUs this process may run on (fewer than the machine's in a container or under taskset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(root: Path) -> dict[str, Any] | None:
    """{"commit", "dirty"} if `root` is the top of a checkout, else None (an installed package inside another project's tree)."""
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

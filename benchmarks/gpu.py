"""Everything that only a GPU can show, in eight minutes, with no network and no downloads.

    make gpu                                  # or: python -m benchmarks.gpu
    make gpu PYTHON=/path/to/python           # an environment with torch that is at hand
    python -m benchmarks.gpu --device cpu     # a trial with tiny models; proves the script, not the GPU

Models and adapters have the exact shapes of qwen3-0.6b:qwen2.5-0.5b and random weights. Each step is
a process of its own with a bound. Its result is in `results/gpu-<step>.json` as it ends; one that
fails says why there, the rest go on, and the exit code is 1. A step that was killed with the script
says so too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, rounded
from benchmarks._table import met, row
from benchmarks.run_all import RESULTS, run_one
from lcfbench.files import write_json

WHOLE = 480.0  # seconds of all steps
UNFINISHED = "it did not end: the script was killed, or is still running"
# modules that the steps import, by the packages that hold them
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "jinja2": "jinja2",
    "pyyaml": "yaml",
    "platformdirs": "platformdirs",
    "psutil": "psutil",
}


@dataclass(frozen=True)
class Step:
    """seconds: its bound. modules: that it needs beside `NEEDED`."""

    name: str
    seconds: float
    modules: tuple[str, ...] = ()


STEPS = (
    Step("equal", 60),
    Step("bfloat16", 40),
    Step("phases", 40),
    Step("streams", 50),
    Step("per-document", 70),
    Step("bench", 120, ("typer", "rich")),
    Step("training", 80),
    Step("decode-graph", 30),
    Step("fuse-graph", 30),
    Step("prefill-graph", 30),
    Step("memory", 30),
)


def absent(modules: Iterable[str]) -> str:
    """The modules that are not there, as a list in words."""
    return ", ".join(name for name in modules if importlib.util.find_spec(name) is None)


def older() -> str:
    """The packages of another version than pyproject.toml asks for, in words; empty where all fit."""
    from packaging.requirements import Requirement

    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {need.name: need for need in map(Requirement, asked) if need.name in NEEDED}
    here = {name: version(name) for name in found}
    other = [n for n in found if not found[n].specifier.contains(here[n], prereleases=True)]
    return ", ".join(f"{name} {here[name]} (asked for: {found[name].specifier})" for name in other)


def lacking(device: str) -> str:
    """What this environment lacks, as a phrase; empty where nothing does."""
    if gone := absent(NEEDED.values()):
        return f"{sys.executable} has no {gone}"
    if device.startswith("cuda"):
        import torch

        index = int(device.partition(":")[2] or 0)
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device"
        if index >= torch.cuda.device_count():
            return f"there is no {device}: torch finds {torch.cuda.device_count()} GPUs"
    return ""


def run_step(step: Step, given: argparse.Namespace, left: float) -> dict[str, Any]:
    """Runs one step within its bound and what is left of the whole; writes and returns its result."""
    name, path = f"gpu-{step.name}", given.results / f"gpu-{step.name}.json"
    about = {"benchmark": name, "device": given.device, "bound_s": step.seconds, "tiny": given.tiny}
    began, limit = time.perf_counter(), min(step.seconds, left)
    write_json(path, {**about, "failed": UNFINISHED})
    found: dict[str, Any] | None = None
    if gone := absent(step.modules):
        why = f"{sys.executable} has no {gone}"
    elif limit < 1:
        why = f"nothing is left of the {given.seconds:.0f} s of all steps"
    else:
        command = [sys.executable, "-m", "benchmarks._gpu_steps", step.name, "--device", given.device]
        found, why = run_one([*command, *(["--tiny"] if given.tiny else [])], limit)
    result = {**about, **(found or {}), "took_s": time.perf_counter() - began}
    if why:
        result["failed"] = why
    write_json(path, rounded(result))
    return result


def table(found: list[dict[str, Any]]) -> str:
    """All results as Markdown: what was measured, its target, and what failed."""
    lines = ["| step | case | what | target | measured | met | differ |", "| --- " * 7 + "|"]
    for each in found:
        name = each["benchmark"].removeprefix("gpu-")
        lines += [row(name, r) for r in each.get("results", []) if "ratio" in r]
        if why := each.get("failed"):
            lines.append(f"| {name} | | failed: {why} | | | **no** | |".replace("\n", " "))
    return "\n".join(lines)


def summary(found: list[dict[str, Any]], given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The JSON line of all steps: for each its seconds, targets met and missed, and why it failed."""
    steps = {}
    for each in found:
        ends = [met(r) for r in each.get("results", []) if "ratio" in r]
        line = {"seconds": each["took_s"], "met": ends.count(True), "missed": ends.count(False)}
        if why := each.get("failed"):
            line["failed"] = why
        steps[each["benchmark"].removeprefix("gpu-")] = line
    gpu = next((each["gpu"] for each in found if each.get("gpu")), None)
    return {"benchmark": "gpu", "device": given.device, "gpu": gpu, "seconds": seconds, "steps": steps}


def main(argv: list[str] | None = None) -> None:
    """Runs the steps, prints the table and the JSON line; ends with 1 where a step failed."""
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a trial")
    parser.add_argument("--tiny", action="store_true", help="tiny models; always so on a CPU")
    parser.add_argument("--only", default="", help=f"some steps, separated by commas: {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=WHOLE, help="of all steps together, default 480")
    parser.add_argument("--results", type=Path, help="folder of the JSON files, default benchmarks/results")
    given = parser.parse_args(argv)
    asked = [name for name in given.only.split(",") if name] or names
    if unknown := sorted(set(asked) - set(names)):
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(names)}")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", given.device):
        parser.error(f"no device {given.device}; there are cuda, cuda:1 and the like, and cpu for a trial")
    if why := lacking(given.device):
        sys.stderr.write(
            f"gpu: {why}. Nothing was run or installed. Name an environment that has it, make gpu "
            "PYTHON=/path/to/python, or try the script with ARGS='--device cpu'.\n"
        )
        raise SystemExit(2)
    if other := older():
        sys.stderr.write(f"gpu: other versions than this package was made for, steps may fail: {other}.\n")
    given.tiny = given.tiny or given.device == "cpu"
    if given.results is None:  # a trial is no result of a GPU
        given.results = Path(tempfile.mkdtemp(prefix="gpu-trial-")) if given.device == "cpu" else RESULTS
    given.results.mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    began, found = time.perf_counter(), []
    for step in (step for step in STEPS if step.name in asked):
        print(f"{step.name}, at most {step.seconds:.0f} s", flush=True)
        found.append(run_step(step, given, began + given.seconds - time.perf_counter()))
        why = found[-1].get("failed", "")
        print(f"  {f'failed: {why}' if why else 'done'}, {found[-1]['took_s']:.0f} s", flush=True)
    line = summary(found, given, time.perf_counter() - began)
    print(f"\n{table(found)}\n\nResults are in {given.results}.")
    print(json.dumps(rounded(line), ensure_ascii=False))
    if any("failed" in each for each in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

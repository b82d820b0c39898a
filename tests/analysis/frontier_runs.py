"""Recorded runs of whole families, as a sweep makes them, for the tests of the frontier."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lcfbench.results.writer import RunWriter

PAIR = "smollm2-135m:gemma3-270m"
LAYERS = 30
# name → (kind, size, layers, MB, right of 100 with its own message, with another's, first token ms)
ADAPTERS: dict[str, tuple[str, int, int, float, float, float, float]] = {
    "lcf-16": ("lcf", 16, LAYERS, 1.5, 89.8, 28.1, 141),
    "lcf-32": ("lcf", 32, LAYERS, 3.4, 91.4, 27.3, 143),
    "lcf-64": ("lcf", 64, LAYERS, 8.4, 94.5, 29.7, 145),
    "lcf-128": ("lcf", 128, LAYERS, 24.4, 96.0, 28.0, 151),
    "lcf-64-9L": ("lcf", 64, 9, 2.5, 89.1, 27.3, 128),
    "lcf-64-6L": ("lcf", 64, 6, 1.7, 68.8, 26.0, 126),
    "c2c-16": ("c2c", 16, LAYERS, 1.5, 92.2, 27.3, 150),
    "c2c-64": ("c2c", 64, LAYERS, 7.9, 96.1, 26.6, 155),
    "c2c-64-9L": ("c2c", 64, 9, 2.4, 94.5, 25.0, 131),
    "c2c-1024": ("c2c", 1024, LAYERS, 834.5, 98.4, 25.0, 420),
}
BUDGETS = {8: (61.0, 30.0, 310), 16: (84.0, 31.0, 520), 32: (97.0, 31.2, 800), 64: (100.0, 31.2, 1147)}
SIZES = {"lcf": "width", "c2c": "hidden"}


def answers(n: int, percent: float, seed: str) -> list[float]:
    """0 or 1 for each document, so many per cent right."""
    order = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16)).permutation(n)
    right = set(order[: round(n * percent / 100)].tolist())
    return [float(i in right) for i in range(n)]


def record(out: Path, scores: list[float], **more: Any) -> str:
    """One finished run.

    more: identity's fields; `facts` of the adapter, `told`: further keys of the manifest, `row` of every
    document, `errors`: documents that failed, `first`: number of the first document, `named`: beginning
    of their hashes, `chance`.
    """
    facts, row, told = more.pop("facts", None), more.pop("row", {}), more.pop("told", {})
    errors, chance = set(more.pop("errors", ())), more.pop("chance", 0.25)
    first, named = more.pop("first", 0), more.pop("named", None)
    identity = {"mode": "receiver", "control": "matched", "task": "planted", "pair": PAIR, "options": {}}
    identity |= {"receiver": PAIR.partition(":")[0], "scoring": "cloze", "seed": 0, **more}
    manifest = {"chance": chance, "sends": identity["mode"] != "receiver"}
    manifest |= told | ({"adapter_facts": facts} if facts else {})
    writer = RunWriter.open(out, identity, manifest)
    for i, score in enumerate(scores):
        own = {
            "doc_hash": f"{named or identity['task']}{first + i}",
            "doc_index": i,
            "metric": "acc",
            "batch_size": 1,
        }
        answer = {"error": "RuntimeError: too long"} if i in errors else {"score": score}
        writer.append({**own, **row, **answer})
    writer.finish()
    return writer.run_id


def adapter(name: str, seed: int = 0, lr: float = 3e-3) -> dict[str, Any]:
    """Identity and facts of a run with this adapter."""
    kind, size, layers, mb, *_ = ADAPTERS[name]
    facts = {"kind": kind, "options": {SIZES[kind]: size, "zero_up": False}, "layers": layers}
    facts |= {"receiver_layers": LAYERS, "training": {"steps": 120, "lr": lr, "seed": seed}}
    sha = hashlib.sha256(f"{name} {seed} {lr}".encode()).hexdigest()
    return {"mode": kind, "adapter_sha256": sha, "facts": facts}


def write_family(
    out: Path, task: str = "planted", n: int = 128, shift: float = 0.0, names: Any = None, **more: Any
) -> Path:
    """The receiver alone, adapters and T2T at four budgets, each matched and deranged."""
    more = {"task": task, **more}
    record(out, answers(n, 26.6, task), row={"ttft_ms": 46.0, "flops": 6e9}, **more)
    for name in ADAPTERS if names is None else names:
        _, size, layers, mb, *rights, ms = ADAPTERS[name]
        sent = size * layers * 4 * 20
        row = {"ttft_ms": ms, "flops": 2e10 + 3e5 * mb, "adapter_bytes": int(mb * 1e6), "message_bytes": sent}
        for control, right in zip(("matched", "deranged"), rights, strict=True):
            right -= shift if control == "matched" else 0
            scores = answers(n, right, f"{task} {name} {control}")
            record(out, scores, control=control, row=row, **adapter(name), **more)
    for budget, (*both, ms) in BUDGETS.items() if names is None else ():
        row = {"ttft_ms": ms, "flops": 2.2e10 + 5e8 * budget, "message_bytes": 4 * budget}
        for control, right in zip(("matched", "deranged"), both, strict=True):
            options = {"budget": budget, "bytes": None}
            scores = answers(n, right, f"{task} {budget} {control}")
            record(out, scores, mode="t2t", options=options, control=control, row=row, **more)
    return out

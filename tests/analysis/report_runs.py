"""Recorded runs for the report's tests, with text that wants to be markup."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lcfbench.results.writer import RunWriter

PAIR = "smollm2-135m:gemma3-270m"
EVIL = "<script>document.title = 'owned'</script></pre><img src=x onerror=alert(1)>{{ 7 * 7 }} | `x`"
LAYERS = [0, 1, 2, 4]
GATES = {"layers": LAYERS, "key": [1.0, 0.5, 0.0, 0.25], "value": [1.0, 1.0, 0.0, 0.75]}
CALIBRATION = {
    "documents": 8,
    "layers": [1, 3],
    "importance": [0.1, 0.8, 0.2, 0.4],
    "scores": [0.2, 0.9, 0.3, 0.6],
}
MACHINE = {
    "python": "3.11.7",
    "cpu": "AMD EPYC",
    "threads": 1,
    "libraries": {"numpy": "2.4"},
    "git": {"commit": "c" * 40, "dirty": True},
}
# what is right of 60 documents: receiver 20, t2t as much, lcf 55 with its own message and 20 with another's
RIGHT = {
    ("receiver", "matched"): range(20),
    ("t2t", "matched"): range(5, 25),
    ("lcf", "matched"): range(5, 60),
    ("lcf", "deranged"): range(2, 22),
}
N = 60


def record(out: Path, mode: str, control: str, right: range, task: str = "splitfacts", **more) -> str:
    """One finished run.

    more: `options`, `manifest`, `timed` (documents timed alone), `row` (columns of every row).
    """
    identity = {
        "pair": PAIR,
        "receiver": "smollm2-135m",
        "sharer": "gemma3-270m",
        "mode": mode,
        "control": control,
        "task": task,
    }
    identity |= {
        "scoring": "cloze",
        "seed": more.get("seed", 0),
        "options": more.get("options", {}),
        "dtype": "float32",
        "data_sha256": task[0].encode().hex() * 32,
    }
    manifest = {"chance": 1 / 3, "environment": MACHINE, **more.get("manifest", {})}
    writer = RunWriter.open(out, identity, manifest)
    sends = mode not in ("receiver", "sharer")
    for i in range(N):
        sender = (i + 1) % N if control == "deranged" else i
        row = {
            "doc_hash": f"{task}{i}",
            "doc_id": f"{task}-{i}",
            "doc_index": i,
            "score": float(i in right),
            "metric": "acc",
            "batch_size": 8,
        }
        row |= {
            "prediction": "Seoul" if i in right else "Graz",
            "gold": "Seoul",
            "amortized_ms": 50.0,
            "subject": "",
        }
        row |= {
            "receiver_prompt": f"Where is key {i}? {EVIL}",
            "adapter_params": 1000 if mode == "lcf" else 0,
        }
        if task == "mmlu_redux":
            row["subject"] = "astronomy" if i % 3 else "virology"
        if sends:
            row |= {"sharer_prompt": f"Notes of {sender}: {EVIL}", "message_from": f"{task}{sender}"}
            row |= (
                {"message_bytes": 1920}
                if mode != "t2t"
                else {"message_text": f"orange box {EVIL}", "message_bytes": 12}
            )
            row |= {"adapter_bytes": 3_400_000 if mode == "lcf" else 0}
        if i < more.get("timed", 5):
            row |= {
                "ttft_ms": 150.0,
                "ttea_ms": 200.0,
                "prefill_ms": 80.0,
                "decode_ms": 60.0,
                "fuse_ms": 10.0,
                "message_ms": 0.0,
                "sharer_ms": 50.0,
            }
        writer.append({**row, **more.get("row", {})})
    writer.finish()
    return writer.run_id


def write(out: Path) -> Path:
    """All of them."""
    for (mode, control), right in RIGHT.items():
        manifest = {"gates": GATES, "adapter": "mine.lcf"} if mode == "lcf" else {}
        record(out, mode, control, right, manifest=manifest, timed=0 if mode == "t2t" else 5)
    rng = np.random.default_rng(0)
    for mode, control in (("receiver", "matched"), ("kvcomm", "matched"), ("kvcomm", "deranged")):
        start = int(rng.integers(0, 3))
        manifest = {"calibration": CALIBRATION} if mode == "kvcomm" else {}
        record(out, mode, control, range(start, start + 20), task="mmlu_redux", manifest=manifest)
    return out

"""Recorded runs for the tests of compare and check: chosen scores in real files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lcfbench.provenance import digest
from lcfbench.results.schema import DIGESTED
from lcfbench.results.writer import RunWriter

PAIR = "smollm2-135m:gemma3-270m"
MACHINE = {"cpu": "Test CPU", "device": "cpu", "threads": 1}
SHA = {"task_sha256": "a" * 64, "data_sha256": "b" * 64, "split_manifest_sha256": None}


def identity(**more: Any) -> dict[str, Any]:
    """A run's identity as `run` writes it."""
    receiver, _, sharer = str(more.get("pair", PAIR)).partition(":")
    base = {
        **{
            "pair": PAIR,
            "receiver": receiver,
            "sharer": sharer,
            "revisions": ["r1", "s1"],
            "mode": "lcf",
            "options": {},
        },
        **{
            "adapter_sha256": "c" * 64,
            "task": "splitfacts",
            "task_options": {},
            **SHA,
            "scoring": "cloze",
            "control": "matched",
            "seed": 0,
        },
        **{
            "limit": None,
            "dtype": "float32",
            "device": "cpu",
            "attention": "sdpa",
            "batch_size": 16,
            "version": "0.1.0",
        },
    }
    return base | more


def record(
    out: Path,
    scores: Sequence[float],
    ms: Sequence[float] = (),
    errors: Iterable[int] = (),
    order: Iterable[int] | None = None,
    prefix: str = "",
    machine: dict[str, Any] | None = None,
    state: str = "complete",
    row: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """One run's folder.

    ms: first-token times of the first documents. errors: numbers of documents that failed. more:
    identity fields.

    order: in which documents are written and numbered. prefix: of the documents' hashes. state: as
    the run was left. facts: of the manifest, beside the machine.
    """
    known = {"environment": machine or MACHINE, **(facts or {})}
    writer = RunWriter.open(out, identity(**more), known, fresh=True)
    failed = set(errors)
    for number, index in enumerate(range(len(scores)) if order is None else order):
        cells: dict[str, Any] = {
            "score": float(scores[index]),
            "metric": "acc",
            "message_bytes": 1000,
            "adapter_bytes": 5_000_000,
            **(row or {}),
        }
        if index in failed:
            cells |= {"score": 0.0, "error": f"RuntimeError: document {index} is too long"}
        if index < len(ms):
            cells["ttft_ms"] = float(ms[index])
        writer.append(
            {
                "doc_hash": f"{prefix or more.get('task', 'splitfacts')}-{index:05d}",
                "doc_index": number,
                **cells,
            }
        )
    {"complete": writer.finish, "interrupted": writer.interrupt, "running": writer.close}[state]()
    return writer.folder


def answers(n: int, right: float = 0.6, seed: int = 0) -> np.ndarray:
    """(n,) zeros and ones."""
    return (np.random.default_rng(seed).random(n) < right).astype(float)


def changed(scores: np.ndarray, lost: int, gained: int, seed: int = 1) -> np.ndarray:
    """The same answers, of which exactly so many right ones became wrong and wrong ones right."""
    rng, new = np.random.default_rng(seed), scores.copy()
    new[rng.choice(np.flatnonzero(scores == 1), lost, replace=False)] = 0
    new[rng.choice(np.flatnonzero(scores == 0), gained, replace=False)] = 1
    return new


def rewrite(folder: Path, keep: Sequence[int]) -> None:
    """The run's file with these rows only, in this order, repeated where a number is; so recorded."""
    path = folder / "samples.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.take(list(keep)), path)
    _change(folder, documents=len(keep), columns_sha256=None)


def forget(folder: Path, *names: str) -> None:
    """Removes these fields from a run's identity, as an older version may have left it."""
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    identity = {k: v for k, v in identity.items() if k not in names}
    path, version = folder / "samples.parquet", DIGESTED - 1
    table = pq.ParquetFile(path).read()
    number = table.column_names.index("schema_version")
    versions = pa.array([version] * len(table), table.schema.field(number).type)
    pq.write_table(table.set_column(number, table.schema.field(number), versions), path)
    _change(folder, identity=identity, digest=digest(identity), schema_version=version, columns_sha256=None)


def _change(folder: Path, **facts: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))

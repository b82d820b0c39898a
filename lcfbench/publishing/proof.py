"""Makes the proof of an adapter from recorded rows, and holds one against them.

>>> prove(Path("adapters/mine"), [Path("results")])                               # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lcfbench import __version__
from lcfbench.adapters.config import weights_sha256
from lcfbench.adapters.proof import (
    COVERED,
    EXACT_FORM,
    SETTINGS,
    WORDING,
    Proof,
    Rows,
    added,
    foreign,
    read_proofs,
    write_proofs,
)
from lcfbench.analysis.recorded import read_run
from lcfbench.analysis.run_groups import RunGroup, comparable_scores, grouped, joined
from lcfbench.analysis.stats import paired
from lcfbench.analysis.summary import nearest, twins_of
from lcfbench.errors import UserError
from lcfbench.files import locked, now, writing
from lcfbench.provenance import digest
from lcfbench.results.reader import Part, Reading
from lcfbench.results.schema import DIGEST, as_written
from lcfbench.tasks.yaml_files import describe, read_task, task_names

CONTROLS = ("matched", "deranged")
RUN_IT = "Run it with --control matched,deranged."
DERIVED = (
    "matched",
    "deranged",
    "content",
    "low",
    "high",
    "p",
    "n",
    "documents",
    "runs",
    "metric",
    *SETTINGS,
    *WORDING,
)


@dataclass(frozen=True)
class Proved:
    """An adapter's new proofs, and sentences on runs that were left out."""

    folder: Path
    proofs: list[Proof]
    warnings: list[str]


def prove(folder: Path, paths: Sequence[Path], write: bool = True) -> Proved:
    """Makes a proof for each task on which recorded runs let an adapter be judged, and writes them.

    Of several runs of one setting those with the most documents count. Proofs of other tasks stay.
    Raises UserError: no run is of these weights, one is not finished, rows are not as they were written,
    a document failed, no run is under the control deranged.
    """
    reading = Reading(paths, damaged_too=True)
    wanted, seen = weights_sha256(folder), Counter[str]()
    parts = []
    for part in reading:
        found = part.manifest.identity.get("adapter_sha256")
        seen[str(found)[:12] if found else "no adapter"] += 1
        if found == wanted and part.manifest.identity.get("control") in CONTROLS:
            parts.append(part)
    if not parts:
        others = ", ".join(f"{count} of {name}" for name, count in seen.most_common(5)) or "none"
        raise UserError(
            f"no run here is of the weights of {folder} ({wanted[:12]}); there are runs: {others}"
            f"{_left_out(reading.left_out)}.",
            f"{RUN_IT} --adapter {folder}",
        )
    rows = {}
    for part in parts:
        check_run(part)
        rows[part.run_id] = _rows(part)
    groups = grouped(read_run(part.run_id, part.table, part.manifest) for part in parts)
    best: dict[str, Proof] = {}
    for group in groups:
        if group.control == "matched" and (proof := _proof(group, groups, rows)):
            key = digest({name: getattr(proof, name) for name in COVERED})
            if key not in best or proof.n > best[key].n:
                best[key] = proof
    if not best:
        controls = ", ".join(sorted({g.control for g in groups}))
        raise UserError(
            f"the runs of {folder} are {controls} only, so nothing tells what its messages are worth"
            f"{_left_out(reading.left_out)}.",
            RUN_IT,
        )
    proofs = list(best.values())
    for proof in proofs:
        if why := foreign(proof, folder):
            raise UserError(f"these runs prove nothing of {folder}: {why}.", "Name runs of this adapter.")
    if write:
        with locked(folder), writing(folder):
            try:
                kept = read_proofs(folder)
            except UserError:  # what does not hold is replaced
                kept = []
            for proof in proofs:
                kept = added(kept, proof)
            write_proofs(folder, kept)
    return Proved(folder, proofs, reading.warnings)


def held_against(folder: Path, paths: Sequence[Path]) -> list[Proof]:
    """Returns an adapter's proofs once each was made again from its rows, value for value.

    Raises UserError where it has none, a run is missing, or a value is another.
    """
    stored = read_proofs(folder)
    if not stored:
        raise UserError(f"{folder} has no proof.", f"Make one: lcfbench adapter prove {folder}")
    for proof in stored:
        ids = {each.run_id for some in proof.runs.values() for each in some}
        parts = [part for part in Reading(paths) if part.run_id in ids]
        if missing := sorted(ids - {part.run_id for part in parts}):
            raise UserError(f"the proof of {folder} on {proof.task} names {missing[0]}, which is not there.")
        for part in parts:
            check_run(part)
        groups = grouped(read_run(part.run_id, part.table, part.manifest) for part in parts)
        rows = {part.run_id: _rows(part) for part in parts}
        again = [_proof(group, groups, rows) for group in groups if group.control == "matched"]
        values = [{n: getattr(each, n) for n in DERIVED} for each in again if each]
        recorded = {n: getattr(proof, n) for n in DERIVED}
        if recorded not in values:
            other = [n for n in DERIVED if not values or values[0][n] != recorded[n]]
            raise UserError(
                f"the proof of {folder} on {proof.task} is not what its runs say ({', '.join(other[:4])}).",
                "Delete proof.json, or prove the adapter again.",
            )
    return stored


def check_interval(proof: Proof) -> str:
    """Says which number does not follow from a proof's documents; empty where all do."""
    _, own, other = zip(*proof.documents, strict=True)
    pair = paired(own, other)
    got = (*pair.interval(), pair.p())
    names = ("low", "high", "p")
    wrong = [n for n, value in zip(names, got, strict=True) if abs(getattr(proof, n) - value) > 1e-6]
    return f"{wrong[0]} is not that of its documents" if wrong else ""


def check_run(part: Part) -> None:
    """Raises UserError for a run that can prove nothing.

    That is one that is not finished, has failed documents, rows that were not sealed with digests or
    are not as they were written, or messages that are not what its control says.
    """
    name, manifest, table = part.run_id, part.manifest, part.table
    if manifest.state != "complete" or not manifest.columns_sha256:
        raise UserError(f"{name} is not finished ({manifest.state}).", "Repeat its command; it resumes.")
    if failed := len(table) - table["error"].null_count:
        raise UserError(
            f"{failed:,} of {len(table):,} documents of {name} failed.", "Mend that and run it again."
        )
    if table[DIGEST].null_count or not len(table):
        raise UserError(f"the rows of {name} have no digests: an older version wrote them.", "Run it again.")
    if changed := sum(not as_written(row) for row in table.to_pylist()):
        raise UserError(f"{changed:,} rows of {name} are not as they were written.", "Run it again.")
    own = pc.equal(table["message_from"].cast(pa.string()), table["doc_hash"].cast(pa.string()))
    matched = manifest.identity.get("control") == "matched"
    if own.null_count:
        raise UserError(f"{name} sends nothing, so nothing of a message can be proven.")
    if pc.any(own).as_py() != matched or pc.all(own).as_py() != matched:
        raise UserError(f"the messages of {name} are not those of its control.", "Run it again.")


def _rows(part: Part) -> Rows:
    """Names a run's rows by their digests."""
    digests = sorted(part.table[DIGEST].to_pylist())
    return Rows(
        run_id=part.run_id,
        digest=digest(part.manifest.identity),
        rows_sha256=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    )


def _proof(group: RunGroup, groups: Sequence[RunGroup], rows: dict[str, Rows]) -> Proof | None:
    """The proof of runs under their own messages; None without a run under others'. Raises UserError."""
    twin, note = nearest(group, twins_of(group, groups, "deranged"))
    if twin is None:
        if note:
            raise UserError(f"{group.label} on {group.task}: {note}.")
        return None
    own, other, _ = comparable_scores(group, twin)
    pair, codes = paired(own, other), joined(group, twin)[2]
    names = group.hashes[np.isin(group.codes, codes)]
    low, high = pair.interval()
    identity = group.runs[0].manifest.identity
    if absent := [name for name in SETTINGS if name not in identity]:
        raise UserError(f"{group.run_ids[0]} does not record its {absent[0]}.", "Run it again.")
    settings: dict[str, Any] = {name: identity[name] for name in SETTINGS}
    settings |= {name: identity.get(name) for name in WORDING}
    if settings["wire"] == EXACT_FORM:
        settings["wire"] = None
    proof = Proof(
        **settings,
        **_data(group.task),
        made_at=now(),
        lcfbench=__version__,
        metric=group.metric,
        chance=group.manifest.chance,
        matched=float(own.mean()),
        deranged=float(other.mean()),
        content=float(own.mean() - other.mean()),
        low=low,
        high=high,
        p=pair.p(),
        n=len(own),
        runs={"matched": _of(group, rows), "deranged": _of(twin, rows)},
        documents=[(str(n), float(a), float(b)) for n, a, b in zip(names, own, other, strict=True)],
    )
    return proof.model_copy(update={"sha256": proof.own_digest()})


def _of(group: RunGroup, rows: dict[str, Rows]) -> list[Rows]:
    return [rows[run_id] for run_id in group.run_ids]


def _data(task: str) -> dict[str, Any]:
    """The Hub's data set that a task asks as it is; nothing where documents are made or split in two."""
    if task not in task_names() or describe(task)["context"] != "shared":
        return {}
    config = read_task(task)
    if "files" in config["metadata"] or "/" not in str(config.get("dataset_path")):
        return {}
    split = config.get("test_split") or config.get("validation_split")
    names = {"dataset": config["dataset_path"], "dataset_config": config.get("dataset_name")}
    return names | {"dataset_split": split}


def _left_out(sentences: Iterable[str]) -> str:
    some = list(sentences)
    return f"; left out: {some[0]}" + (f" and {len(some) - 1} more" if some[1:] else "") if some else ""

"""Runs in the schema of Every Eval Ever (evalevalai.com), version 0.3.0: a record a run, and its samples.

>>> write_records([Path("results")], Path("eee"))                                 # doctest: +SKIP

A record lies at `data/<task>/<developer>/<model>/<uuid>.json`, its rows beside it. A model that answers
alone has its own id. A pair has one of its own, `lcfbench/RECEIVER+SHARER.METHOD`: its score is not the
receiver's; both models, the method and the adapter stand in `model_info.additional_details`. A run under
a control is a collection of its own (`<task>-deranged`) and its evaluation is named
so: it is never the model's score. Content P = matched − the worst control stands in `score_details.details`.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lcfbench.analysis.recorded import Recorded, read_run
from lcfbench.analysis.run_groups import grouped
from lcfbench.analysis.stats import mean_interval
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from lcfbench.files import write_json
from lcfbench.publishing.export import to_line, written
from lcfbench.results.reader import Part, Reading
from lcfbench.sources.models import hub_id
from lcfbench.tasks.yaml_files import read_task, task_names

SCHEMA = "0.3.0"
NAMESPACE = uuid.UUID("5f6c3f3e-6f0e-4a57-9d0b-6c6366626368")  # of the names of records
METRICS = {"acc": "accuracy", "accuracy": "accuracy", "em": "exact-match", "f1": "f1"}
BINARY = ("accuracy", "exact-match")
ROLES = ("receiver", "sharer")
ALONE = {"receiver": 0, "full_context": 0, "sharer": 1}  # methods in which one model answers as it is
UNKNOWN, RIGHT = "unknown", 1.0
UNPORTABLE = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')
OF_A_ROW = (*"mode control sharer message_from message_text message_bytes sharer_prompt".split(),)
CONTENT = (
    "content",
    "content_low",
    "content_high",
    "content_n",
    "matched_score",
    "deranged_score",
    "worst_control",
    "worst_score",
)


@dataclass(frozen=True)
class Written:
    """files: the records, then nothing else. warnings: sentences on runs that were left out."""

    files: list[Path]
    warnings: list[str]


def write_records(paths: Sequence[Path], out: Path, organization: str = UNKNOWN) -> Written:
    """Writes a record and a file of samples for each finished run under `paths`.

    out: a folder; the records of these runs replace those that it has of them, others stay. Raises
    UserError where nothing can be read or no run is finished.
    """
    reading = Reading(paths)
    finished, warnings = dict[str, Recorded](), list[str]()
    for part in reading:  # scores only stay in memory
        if part.manifest.state != "complete" or not len(part.table):
            warnings.append(f"{part.run_id} is left out: it is not finished ({part.manifest.state})")
        elif not part.manifest.identity:
            warnings.append(f"{part.run_id} is left out: it has no manifest")
        else:
            finished[part.run_id] = read_run(part.run_id, part.table, part.manifest)
    if not finished:
        step = "Repeat their command; it resumes."
        raise UserError(f"no run here is finished: {'; '.join([*reading.warnings, *warnings])}.", step)
    warnings = [*reading.warnings, *warnings]
    contents = contents_of(list(finished.values()))
    files = []
    for part in Reading(paths):
        if recorded := finished.get(part.run_id):
            record, samples = record_of(part, recorded, contents.get(part.run_id, {}), organization)
            place = out / samples["file_path"]
            found = hashlib.sha256()
            with written(place) as file:
                for line in rows_of(part, record):
                    file.write(line)
                    found.update(line.encode())
            record["detailed_evaluation_results"] = samples | {"checksum": found.hexdigest()}
            files.append(place.with_name(place.name.replace("_samples.jsonl", ".json")))
            write_json(files[-1], record)
    return Written(files, warnings)


def contents_of(runs: Sequence[Recorded]) -> dict[str, dict[str, str]]:
    """What matched and deranged runs say together, for each run that has a verdict, as texts."""
    found: dict[str, dict[str, str]] = {}
    for line in summarise(grouped(runs)).to_dict("records"):
        if line["verdict"] and line["content"] == line["content"]:
            facts = {name: text(line[name]) for name in CONTENT} | {"verdict": line["verdict"]}
            found |= dict.fromkeys(str(line["run_id"]).split("+"), facts)
    return found


def record_of(
    part: Part, run: Recorded, content: Mapping[str, str], organization: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a run's record, and where its samples are to be written."""
    manifest, identity = part.manifest, part.manifest.identity
    names = run.names
    ends = model_id(names["receiver"]), model_id(names["sharer"])
    alone = ends[ALONE[names["mode"]]] if names["mode"] in ALONE else ""
    evaluated = alone or f"lcfbench/{'+'.join(portable(names[r]) for r in ROLES)}.{portable(names['mode'])}"
    matched = names["control"] in ("matched", "")
    name = names["task"] if matched else f"{names['task']}-{names['control']}"
    developer, _, model = evaluated.partition("/")
    number = uuid4_of(part.run_id)
    place = "/".join(["data", *map(portable, (name, developer, model)), f"{number}_samples.jsonl"])
    metric = METRICS.get(names["metric"], names["metric"])
    got = mean_interval(run.scores)
    deviation = float(np.std(run.scores, ddof=1)) if got.n > 1 else 0.0
    environment = manifest.environment
    libraries = (environment.libraries if environment else None) or {}
    asked = {
        k: text(identity.get(k))
        for k in ("pair", "mode", "options", "control", "revisions", "adapter_sha256", "attention", "device")
        if identity.get(k) is not None
    }
    asked |= {"receiver": ends[0], "sharer": ends[1], "run_id": part.run_id}
    asked |= {"adapter": manifest.adapter} if manifest.adapter else {}
    said = (
        "two models: the receiver answers, the sharer's knowledge reaches it by the method named in mode"
        if run.sends
        else f"one model answers ({names['mode']}); nothing is sent"
    )
    names_of = [names[r] for i, r in enumerate(ROLES) if not alone or ends[i] == alone]
    control = "matched" if matched else f"{names['control']}: a control, no score of the model"
    result = {
        "evaluation_result_id": part.run_id,
        "evaluation_name": f"lcfbench.{name}",
        "source_data": source_of(names["task"], identity, got.n),
        "metric_config": {
            "evaluation_description": f"{names['task']} ({names['scoring']}), {said}; control {control}",
            "metric_id": metric if metric in METRICS.values() else f"lcfbench.{metric}",
            "metric_name": names["metric"],
            "metric_kind": metric,
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {
            "score": got.value,
            "details": {
                "failed_documents": str(int(run.failed.sum())),
                "control": control,
                **({"chance": text(manifest.chance)} if manifest.chance is not None else {}),
                **content,
            },
            "uncertainty": {
                "standard_error": {"value": deviation / got.n**0.5, "method": "analytic"},
                "confidence_interval": {
                    "lower": got.low,
                    "upper": got.high,
                    "confidence_level": 0.95,
                    "method": "Wilson" if set(run.scores) <= {0.0, 1.0} else "BCa bootstrap",
                },
                "standard_deviation": deviation,
                "num_samples": got.n,
            },
        },
        "generation_config": {
            "generation_args": {"temperature": 0.0} if names["scoring"] == "generate" else {},
            "additional_details": {
                k: text(identity[k])
                for k in ("scoring", "dtype", "batch_size", "seed", "limit", "task_options", "thinking")
                if identity.get(k) is not None
            },
        },
    }
    if stamp := timestamp(manifest.started_at):
        result["evaluation_timestamp"] = stamp
    began = timestamp(manifest.started_at) or "0"
    record: dict[str, Any] = {
        "schema_version": SCHEMA,
        "evaluation_id": f"{name}/{evaluated}/{part.run_id}",
        "retrieved_timestamp": timestamp(manifest.finished_at) or began,
        "source_metadata": {
            "source_name": "lcfbench",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "lcfbench",
            "version": libraries.get("lcfbench") or UNKNOWN,
            "additional_details": {
                "behaviour": text(identity.get("behaviour")),
                **{k: text(v) for k, v in (identity.get("versions") or {}).items()},
            },
        },
        "model_info": {
            "name": alone or f"{names['receiver']} ← {names['sharer']} ({names['mode']})",
            "id": evaluated,
            "developer": developer,
            "inference_engine": {"name": "transformers", "version": libraries.get("transformers") or UNKNOWN},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "open_weights" if all(map(hub_id, names_of)) else UNKNOWN,
                "evaluated": said,
                **asked,
            },
        },
        "evaluation_results": [result],
    }
    samples = {"format": "jsonl", "file_path": place, "hash_algorithm": "sha256", "total_rows": got.n}
    return record, samples


def rows_of(part: Part, record: Mapping[str, Any]) -> Iterator[str]:
    """Yields a run's documents as lines of the schema's samples."""
    (result,) = record["evaluation_results"]
    same = {
        "schema_version": SCHEMA,
        "evaluation_id": record["evaluation_id"],
        "model_id": record["model_info"]["id"],
        "evaluation_name": result["evaluation_name"],
        "evaluation_result_id": result["evaluation_result_id"],
    }
    for batch in part.table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield to_line(same | sample_of(row)) + "\n"


def sample_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """One document: what was asked, what came, how the answer was taken, score and tokens."""
    raw, reference = row["receiver_prompt"] or "", [row["gold"] or ""]
    answer = row["prediction"] or ""
    hashed = json.dumps({"raw": raw, "reference": reference}, sort_keys=True, separators=(",", ":"))
    score = 0.0 if row["error"] is not None else float(row["score"] or 0.0)
    attribution = {
        "turn_idx": 0,
        "source": "output.raw",
        "extracted_value": answer,
        "extraction_method": row["scoring"] or UNKNOWN,
        "is_terminal": True,
    }
    details = {
        k: text(row[k])
        for k in (
            "mode",
            "control",
            "sharer",
            "message_from",
            "message_text",
            "message_bytes",
            "sharer_prompt",
        )
        if row[k] is not None
    }
    details |= {k: text(row[k]) for k in ("doc_hash", "subject", "row_sha256", "metrics") if row[k]}
    out: dict[str, Any] = {
        "sample_id": row["doc_id"] or row["doc_hash"],
        "sample_hash": hashlib.sha256(hashed.encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": raw, "reference": reference},
        "output": {"raw": [answer], **({"reasoning_trace": [row["thought"]]} if row["thought"] else {})},
        "answer_attribution": [attribution],
        "evaluation": {"score": score, "is_correct": score >= RIGHT},
        "metadata": details,
    }
    asked, told = row["receiver_tokens"], row["answer_tokens"]
    if asked is not None and told is not None:
        tokens = {"input_tokens": asked, "output_tokens": told, "total_tokens": asked + told}
        out["token_usage"] = tokens | ({"reasoning_tokens": n} if (n := row["thought_tokens"]) else {})
    if row["ttea_ms"] is not None:
        out["performance"] = {"latency_ms": row["ttea_ms"], "time_to_first_token_ms": row["ttft_ms"]}
    return out | ({"error": row["error"]} if row["error"] is not None else {})


def source_of(task: str, identity: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Where a task's documents come from: a data set of the Hub, else its own."""
    digests = {
        k: str(identity[k])
        for k in ("task_sha256", "data_sha256", "examples_sha256", "split_manifest_sha256")
        if identity.get(k)
    }
    config = read_task(task) if task in task_names() else {}
    path = str(config.get("dataset_path") or "")
    if "/" not in path or "files" in (config.get("metadata") or {}):
        return {"dataset_name": task, "source_type": "other", "additional_details": digests}
    split = str(config.get("test_split") or config.get("validation_split") or "test")
    split = {"validation": "val"}.get(split, split)
    found = {"dataset_name": task, "source_type": "hf_dataset", "hf_repo": path, "hf_split": split}
    if subset := config.get("dataset_name"):
        digests["hf_config"] = str(subset)
    return found | {"samples_number": n, "additional_details": digests}


def model_id(name: str) -> str:
    """Returns `developer/model`: the Hub's id of a model, and `local/NAME` for a folder or a taught one."""
    found = None if "+" in name else hub_id(name)
    return found or f"local/{portable(name)}"


def portable(name: str) -> str:
    """Returns a name that every file system takes."""
    safe = UNPORTABLE.sub("_", name).rstrip(". ") or "_"
    return f"{safe}_" if safe == "data" else safe


def uuid4_of(run_id: str) -> str:
    """Returns the record's name: a UUID of version 4 that is always the same for a run."""
    return str(uuid.UUID(bytes=uuid.uuid5(NAMESPACE, run_id).bytes, version=4))


def timestamp(moment: str | None) -> str:
    """Returns ISO 8601 as seconds since 1970; empty where it is none."""
    try:
        return str(int(datetime.fromisoformat(moment or "").timestamp()))
    except ValueError:
        return ""


def text(value: Any) -> str:
    """Returns a value as the schema's additional details hold it: text, else JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

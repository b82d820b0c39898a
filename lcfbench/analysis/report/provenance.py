"""Provenance: facts that all runs share as a list, the others as a table.

shared, table = provenance(source)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lcfbench.analysis.report.entries import NONE, Entry, Head, Row, Table, text
from lcfbench.analysis.report.source import Source
from lcfbench.results.manifest import Manifest

# a column each, equal or not
OWN = (*"run method task control seed state documents failed started finished".split(),)
LONG = 32  # characters from which a value may take several lines
SHORT = 12  # hex digits of a digest in the table


def provenance(source: Source) -> tuple[list[tuple[str, str]], Table]:
    """(name, value) of what all runs have in common, and a table of the rest with a row a run."""
    runs = []
    for group in source.groups:
        for run in group.runs:
            counts = {"documents": str(len(run.codes)), "failed": str(int(run.failed.sum()))}
            named = {"method": group.label, "task": group.task, "control": group.control}
            runs.append(_facts(run.run_id, run.manifest) | named | counts)
    names = list(dict.fromkeys(name for facts in runs for name in facts))
    values = {name: {facts.get(name, "") for facts in runs} for name in names}
    shared = [
        (name, values[name].copy().pop()) for name in names if name not in OWN and len(values[name]) == 1
    ]
    columns = [*OWN, *(name for name in names if name not in OWN and len(values[name]) > 1)]
    rows = [Row([_entry(_short(facts.get(name, ""))) for name in columns], facts["task"]) for facts in runs]
    heads = [Head(name, number=name in ("documents", "failed")) for name in columns]
    return [(name, value or NONE) for name, value in shared if value], Table(
        "runs", "What differs from run to run", heads, rows
    )


def _facts(run_id: str, manifest: Manifest) -> dict[str, str]:
    identity = manifest.identity
    machine = manifest.environment.model_dump() if manifest.environment else {}
    git = machine.get("git") or {}
    revisions = identity.get("revisions") or []
    facts: dict[str, Any] = {
        **{"run": run_id, "seed": identity.get("seed"), "state": manifest.state},
        **{"started": _moment(manifest.started_at), "finished": _moment(manifest.finished_at)},
        **{name: identity.get(name) for name in ("pair", "scoring")},
    }
    for end, revision in zip(("receiver", "sharer"), revisions, strict=False):
        facts[f"{end} revision"] = revision
    facts |= {f"{end} from": place for end, place in (manifest.sources or {}).items()}
    facts |= {"adapter": manifest.adapter, "adapter sha256": identity.get("adapter_sha256")}
    facts |= {
        "options": identity.get("options"),
        "task options": identity.get("task_options"),
        "prompt": manifest.prompt,
        "dropped documents": manifest.dropped,
    }
    facts |= {name: identity.get(name) for name in ("dtype", "device", "attention")}
    facts |= {"batch size": identity.get("batch_size"), "limit": identity.get("limit")}
    facts |= {name: machine.get(name) for name in ("cpu", "cpus", "threads", "platform")}
    for name in ("task", "data", "split_manifest", "calibration"):
        facts[f"{name.replace('_', ' ')} sha256"] = identity.get(f"{name}_sha256")
    facts["git commit"] = (
        f"{git.get('commit')}{', changed' if git.get('dirty') else ''}" if git.get("commit") else None
    )
    if len(manifest.sessions) > 1:
        facts["sessions"] = len(manifest.sessions)
    facts["python"] = machine.get("python")
    facts |= dict(machine.get("libraries") or {})
    return {name: said for name, value in facts.items() if (said := _said(value))}


def _said(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_said(item) or NONE}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _moment(value: Any) -> str:
    """UTC to the second, without the offset that is always the same."""
    return str(value).replace("T", " ").removesuffix("+00:00") if value else ""


def _entry(value: str) -> Entry:
    return text(value, style="long" if len(value) > LONG else "")


def _short(value: str) -> str:
    """Digests cut to what tells them apart."""
    return re.sub(r"\b[0-9a-f]{40,64}\b", lambda found: found[0][:SHORT], value)

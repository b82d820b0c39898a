"""What `ls`, `doctor` and `adapter` print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from lcfbench.cli.console import out, quiet_libraries
from lcfbench.errors import UserError, unknown

LISTS = ("models", "tasks", "methods", "adapters", "recipes", "runs")


def listing(what: str, results: Path, as_json: bool) -> None:
    """`lcfbench ls`."""
    if what not in LISTS:
        raise unknown("list", what, LISTS, "lcfbench ls --help")
    rows = _rows(what, results)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    if not rows:
        out.print(
            {"runs": f"no runs in {results} yet; make some with `lcfbench run`"}.get(what, f"no {what} yet")
        )
        return
    shown = [_short(what, row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, key in enumerate(shown[0]):
        table.add_column(key, overflow="fold", no_wrap=index == 0 and what != "runs")
    for row in shown:
        table.add_row(*row.values())
    out.print(table)


def _short(what: str, row: dict[str, Any]) -> dict[str, str]:
    """What fits into 80 columns; `--json` has the rest."""
    if what == "models":
        cache = f"{row['layers']} × {row['kv_heads']} × {row['head_dim']}"
        return {
            "model": row["model"],
            "hub id": row["hub_id"],
            "layers ×\nheads × dim": cache,
            "here": row["here"] or "no",
        }
    if what == "tasks":
        ways = "\n".join(name + (" *" if name == row["default_scoring"] else "") for name in row["scorings"])
        return {
            "task": row["name"],
            "context": row["context"],
            "scoring\n(* default)": ways,
            "what it is": row["description"],
        }
    if what == "adapters":
        size = f"{row['mb']:.1f}" if row["mb"] is not None else ""
        return {
            "adapter": row["name"],
            "kind": row["kind"],
            "pair": row["pair"].replace(":", ":\n", 1),
            "trained on": row["tasks"],
            "MB": size,
        }
    if what == "runs":
        when = str(row["started_at"])[:16].replace("T", " ")
        return {
            "run": row["run_id"],
            "state": row["state"],
            "docs": str(row["documents"]),
            "errors": str(row["errors"]),
            "begun (UTC)": when,
        }
    return row


def _rows(what: str, results: Path) -> list[dict[str, Any]]:
    if what == "models":
        from lcfbench.cli.doctor import models_table

        return models_table()
    if what == "tasks":
        from lcfbench.tasks.yaml_files import task_table

        return task_table()
    if what == "methods":
        from lcfbench.registry import method_summaries

        return [
            {"method": name, "what it does": text.partition(": ")[2] or text}
            for name, text in method_summaries().items()
        ]
    if what == "adapters":
        from lcfbench.adapters.select import adapters_table

        return adapters_table([p for p in (Path("adapters"),) if p.is_dir()])
    if what == "recipes":
        from lcfbench.config import packaged_recipes, read_recipe

        return [
            {"recipe": name, "what it does": str(read_recipe(path, None).get("description", ""))}
            for name, path in packaged_recipes().items()
        ]
    from lcfbench.results.reader import list_runs

    return [
        {k: m.get(k, "") for k in ("run_id", "state", "documents", "errors", "started_at")}
        for m in list_runs(results)
    ]


def print_doctor(offline: bool, as_json: bool) -> bool:
    """Prints every check; True when all are well."""
    from lcfbench.cli.doctor import checks

    quiet_libraries()
    found = checks(offline)
    if as_json:
        typer.echo(json.dumps([vars(c) for c in found], indent=1, default=str))
    else:
        for check in found:
            out.print(
                f"{'ok ' if check.ok else 'NO '} {check.name}: {check.detail}"
                + (f"\n    → {check.next_step}" if not check.ok and check.next_step else ""),
                soft_wrap=True,
            )
    return all(c.ok for c in found)


def size_of(mode: str, pair: str, options: dict[str, str], offline: bool) -> dict[str, Any]:
    """Parameters and bytes of a fresh adapter for a pair, built without storage."""
    import torch

    from lcfbench.adapters.base import build
    from lcfbench.adapters.config import pair_config
    from lcfbench.registry import kinds
    from lcfbench.sources.models import geometry, split_pair
    from lcfbench.training.options import adapter_options

    if mode not in kinds():
        raise unknown("adapter kind", mode, kinds(), "lcfbench adapter size --help")
    layers = options.pop("layers", None)
    if layers is not None and not layers.isdecimal():
        raise UserError(f"layers={layers} is not a number.", "Use -o layers=9, say.")
    settings, alignment = adapter_options(mode, options, small_scale=False)
    receiver, sharer = split_pair(pair)
    config = pair_config(
        mode,
        (receiver, geometry(receiver, offline=offline)),
        (sharer, geometry(sharer, offline=offline)),
        options=settings,
        layers=int(layers) if layers else None,
        **alignment,
    )
    with torch.device("meta"):
        params = build(config).params
    return {
        "kind": mode,
        "pair": pair,
        "params": params,
        "layers": len(config.layers),
        "bytes_bf16": 2 * params,
        "mb_bf16": round(2 * params / 1e6, 1),
        "options": settings,
    }


def adapter_facts(place: Path) -> dict[str, Any]:
    """Everything about an adapter: a folder, its weights file, or the name of a shipped one. Raises UserError."""
    from lcfbench.adapters.config import WEIGHTS, read_config, weights_sha256
    from lcfbench.adapters.files import load
    from lcfbench.adapters.select import FOLDER

    folder = place.parent if place.suffix == ".safetensors" else place
    if not folder.exists() and len(folder.parts) == 1 and (FOLDER / folder).is_dir():
        folder = FOLDER / folder
    config, adapter = read_config(folder), load(folder)
    return {
        "folder": str(folder),
        "kind": config.kind,
        "receiver": config.receiver,
        "sharer": config.sharer,
        "params": adapter.params,
        "bytes": (folder / WEIGHTS).stat().st_size,
        "sha256": weights_sha256(folder),
        "layers": list(config.layers),
        "layer_map": list(config.layer_map),
        "layers_open": len(adapter.open_layers()),
        "token_alignment": config.token_alignment,
        "options": config.options,
        "training": config.training,
        "gate_logits_key_value": [[round(float(v), 3) for v in row] for row in adapter.gate_logit],
    }


def print_adapter(place: Path, as_json: bool) -> None:
    """`lcfbench adapter info`."""
    facts = adapter_facts(place)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    training = dict(facts.pop("training"))
    logits = [v for row in facts.pop("gate_logits_key_value") for v in row]
    facts["params"], facts["bytes"] = f"{facts['params']:,}", f"{facts['bytes']:,}"
    facts["layers"] = f"{len(facts['layers'])} of the receiver's: {ranges(facts['layers'])}"
    facts["layer_map"] = f"they read the sharer's {', '.join(map(str, facts['layer_map']))}"
    facts["gate logits"] = f"{min(logits):.2f} to {max(logits):.2f}"
    curve = training.pop("dev", [])
    lines = [f"{key.replace('_', ' ')}: {value}" for key, value in facts.items()]
    lines += [f"training {key.replace('_', ' ')}: {value}" for key, value in training.items()]
    lines += [
        "dev " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items())
        for point in curve
    ]
    out.print("\n".join(lines), soft_wrap=True)


def ranges(numbers: list[int]) -> str:
    """`0–3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

"""The card of a taught model: what it was taught, and how much of it stayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lcfbench.sources.models import hub_id
from lcfbench.tables import Column, Table


def card(name: str, record: Mapping[str, Any]) -> str:
    """Returns the README of a taught model. record: what `teaching.json` holds."""
    base = hub_id(record["base"])
    about = {"base_model": base, "library_name": "peft", "tags": ["lcfbench", "lora"]}
    block = yaml.safe_dump({k: v for k, v in about.items() if v}, sort_keys=False, allow_unicode=True)
    never = record["never_taught"]
    rows = []
    for wording, right in record["right"].items():
        counts = str(record["texts"][wording]), str(record["measured"][wording])
        rows.append([wording, *counts, "no" if wording in never else "yes", f"{100 * right:.1f}"])
    numbers = Column("number", right=True), Column("measured", right=True)
    columns = [Column("texts"), *numbers, Column("taught"), Column("right %", right=True)]
    table = Table("", columns, rows).markdown()
    tasks, options = (
        ", ".join(record["task"]),
        ", ".join(f"{k}={v}" for k, v in record["task_options"].items()),
    )
    return f"""---
{block}---

# {name}

{record["base"]}, taught {tasks}{f" ({options})" if options else ""} by `lcfbench teach`: a LoRA of rank \
{record["rank"]} ({record["params"]:,} parameters, {record["bytes"] / 1e6:.1f} MB in bfloat16).

{record["steps_done"]} steps of {record["batch_size"]}, AdamW, learning rate {record["lr"]}, warm-up \
{record["warmup"]}, seed {record["seed"]}, scale {record["scale"]}, modules {", ".join(record["targets"])}, \
layers {record["layers"]}; last loss {record["loss"]}. Base in {record["models_dtype"]}, \
{record["minutes"]} minutes ({record["machine"]}).

Right: the whole answer is the likeliest one over the whole vocabulary, token by token, with the LoRA merged.

{table}
"""

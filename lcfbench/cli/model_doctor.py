"""One page on one model: what its cache keeps, what was checked, what it allows, which methods run.

    lcfbench doctor --model smollm2-135m --json

The model is both receiver and sharer here; a method between two models needs both to allow it.
"""

from __future__ import annotations

import time
from typing import Any

from lcfbench import registry
from lcfbench.methods.needs import lacking
from lcfbench.models.capabilities import CAPABILITIES, MEANING
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.conformance_store import recorded
from lcfbench.sources.models import find_model
from lcfbench.tables import Cell, Column, Table

READINGS = {
    "padded": "batches, shorter rows padded",
    "left": "batches padded on the left alone; caches continued in groups of equal length",
    "equal": "batches of rows of equal length, no padding",
    "steps": "batches of rows of equal length, continued token by token",
    "whole": "each text anew, without a cache (slow; text methods only)",
}


def examine(name: str, offline: bool, **conditions: Any) -> dict[str, Any]:
    """Loads a model, checks it anew and returns all that was found, as JSON values.

    Raises UserError where the model is not there or cannot be loaded.
    """
    found = find_model(name, offline=offline)
    began = time.perf_counter()
    lm = CausalLM.load(found, check=False, **conditions)
    loaded = time.perf_counter()
    lm.conformance = recorded(lm, again=True)
    checked = time.perf_counter()
    recorded(lm)
    read = time.perf_counter()
    record = lm.conformance
    return {
        "model": lm.name,
        "revision": lm.revision,
        "source": lm.source,
        "class": type(lm.model).__name__,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "attention": lm.model.config._attn_implementation,
        **record.model_dump(mode="json", exclude={"missing"}),
        "capabilities": record.capabilities.record(),
        "methods": {mode: _works(mode, lm) for mode in registry.method_names()},
        "seconds": {
            "load": round(loaded - began, 3),
            "check": round(checked - loaded, 3),
            "check_again": round(read - checked, 4),
        },
    }


def _works(mode: str, lm: CausalLM) -> str | bool:
    """Whether a method runs with this model on both sides, or the first reason why not."""
    missing = lacking(mode, lm, lm)
    return f"needs {missing[0][0]}: {missing[0][2]}" if missing else True


def tables(found: dict[str, Any]) -> list[Table]:
    """The page of a model that was examined."""
    what = f"{found['parameters'] / 1e6:,.1f} M parameters, {found['dtype']} on {found['device']}"
    cache = [f"{found['token_bytes']:,} bytes a token"] if found["token_bytes"] else []
    cache += [f"{found['state_bytes']:,} bytes of recurrent states a text"] if found["state_bytes"] else []
    facts: list[list[Cell]] = [
        ["model", f"{found['model']} ({found['source']}, revision {found['revision'][:12]})"],
        ["class", f"{found['class']}, {what}, {found['attention']} attention"],
        ["cache", tuple([*found["layers"], *cache]) or "none"],
        ["reads", READINGS[found["reading"]]],
    ]
    if found["steady"]:
        facts.append(["rotary", f"frequencies depend on the length beyond {found['steady']:,} tokens"])
    seconds = found["seconds"]
    facts.append(
        [
            "seconds",
            f"{seconds['load']:.1f} to load, {seconds['check']:.1f} to check once, "
            f"{seconds['check_again']:.3f} from then on",
        ]
    )
    checks: list[list[Cell]] = [
        ["ok" if c["ok"] else "NO", c["name"], _far(c["difference"]), c["detail"]] for c in found["checks"]
    ]
    allowed: list[list[Cell]] = [
        [
            "yes" if found["capabilities"][name] is True else "NO",
            name,
            _why(found["capabilities"][name], name),
        ]
        for name in CAPABILITIES
    ]
    able = [mode for mode, works in found["methods"].items() if works is True]
    methods: list[list[Cell]] = [["yes", ", ".join(able), ""]] if able else []
    reasons: dict[str, list[str]] = {}
    for mode, works in found["methods"].items():
        if works is not True:
            reasons.setdefault(works, []).append(mode)
    methods += [["NO", ", ".join(modes), why] for why, modes in reasons.items()]
    text = Column("", wrap=True)
    return [
        Table("", [Column(""), text], facts),
        Table("", [Column(""), Column("check", wrap=True), Column("off by", right=True), text], checks),
        Table("", [Column(""), Column("capability"), text], allowed),
        Table("", [Column(""), Column("methods", wrap=True), text], methods),
    ]


def _far(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.1e}"


def _why(found: str | bool, name: str) -> str:
    return MEANING[name] if found is True else str(found)  # type: ignore[index]

"""The table of all benchmarks, as Markdown, from what their JSON files say. Imports no torch.

>>> result = {"case": "lcf", "claim": "faster", "ratio": 2.0, "target": 1.5}
>>> print(table([{"benchmark": "fusion", "results": [result]}]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._common import shown

HEAD = """# Benchmarks

Written by `make bench` from the JSON files beside it; do not edit. A ratio is the median over paired
repeats of one process (lowest–highest). "Answers differ": documents whose answer or score is not the
same on both sides; in float32 there must be none.

| benchmark | case | what | target | measured | met | answers differ |
| --- | --- | --- | ---: | ---: | --- | ---: |
"""
PLACE = ("machine", "cores", "threads", "gpu", "torch", "transformers", "lcfbench", "commit")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of all results, those with a target first within their benchmark.

    Then where they were measured.
    """
    lines = []
    for each in found:
        results = [r for r in each.get("results", []) if isinstance(r, Mapping) and "ratio" in r]
        for result in sorted(results, key=lambda r: "target" not in r):
            lines.append(row(str(each["benchmark"]), result))
        if why := each.get("failed"):
            lines.append(f"| {each['benchmark']} | | failed: {why} | | | no | |")
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(places(found)) + "\n"


def row(benchmark: str, result: Mapping[str, Any]) -> str:
    """One line of the table."""
    unit, target = f" {result['unit']}" if "unit" in result else "×", result.get("target")
    sign = "≤" if result.get("better") == "lower" else "≥"
    cells = (
        benchmark,
        result.get("case", ""),
        result.get("claim", ""),
        "" if target is None else f"{sign} {target:g}{unit}",
        f"{shown(result['ratio'])}{unit}",
        {True: "yes", False: "**no**", None: ""}[met(result)],
        result.get("differing", ""),
    )
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def met(result: Mapping[str, Any]) -> bool | None:
    """Whether the median reaches the target; None without one."""
    if result.get("target") is None:
        return None
    value = result["ratio"]["median"] if isinstance(result["ratio"], Mapping) else result["ratio"]
    return bool(value <= result["target"] if result.get("better") == "lower" else value >= result["target"])


def places(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where and with what, a line for each place with the benchmarks measured there."""
    by_place: dict[str, list[str]] = {}
    for each in found:
        if "machine" in each:
            where = ", ".join(f"{key} {each[key]}" for key in PLACE if each.get(key) is not None)
            dtype = f" in {str(each['dtype']).removeprefix('torch.')}" if each.get("dtype") else ""
            quick = ", quick" if each.get("quick") else ""
            by_place.setdefault(where, []).append(
                f"{each['benchmark']}{dtype} ({str(each.get('date', ''))[:10]}{quick})"
            )
    return [f"- {where}: {'; '.join(names)}" for where, names in by_place.items()]

"""Gates and calibrations: the layers that an adapter edits or a method chose.

    strips(source)[0].rows[0].values     # one a layer, 0 to 1; None where the adapter has no such layer

An adapter is shown once, however many runs used it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lcfbench.analysis.report.entries import plain
from lcfbench.analysis.report.source import Source
from lcfbench.results.manifest import Manifest


class Strip(NamedTuple):
    """A row of squares.

    values: a layer each, None where there is none; most: the darkest square's value.
    """

    name: str
    values: list[float | None]
    most: float


class Heat(NamedTuple):
    """Strips over the same layers.

    marked: layers with a sign below them; said: the figure in words.
    """

    title: str
    used: str
    strips: list[Strip]
    marked: list[int]
    said: str


def strips(source: Source) -> list[Heat]:
    """One a set of gates or calibration, in the order of the runs.

    Manifests that say nothing of layers give nothing.
    """
    found: dict[str, tuple[Heat, list[str]]] = {}
    for group in source.groups:
        for run in group.runs:
            manifest = run.manifest
            for heat in (_gates(manifest, group.label), _calibration(manifest, group.label)):
                if heat:
                    used = found.setdefault(repr(heat), (heat, []))[1]
                    used.append(
                        f"{group.task}, {group.control}" if group.control != "matched" else group.task
                    )
    return [heat._replace(used="; ".join(dict.fromkeys(used))) for heat, used in found.values()]


def _gates(manifest: Manifest, label: str) -> Heat | None:
    gates = manifest.gates
    if not gates or not gates.layers:
        return None
    layers = gates.layers
    sides = (("keys", gates.key), ("values", gates.value))
    made = [Strip(f"gate, {name}", _spread(layers, values), 1.0) for name, values in sides]
    shut = sorted({layer for strip in made for layer in layers if not strip.values[layer]})
    missing = sorted(set(range(max(layers) + 1)) - set(layers))
    said = f"{len(layers)} layers have an adapter; " + (
        f"a gate is shut in layers {_list(shut)}" if shut else "no gate is shut"
    )
    said += f"; no adapter in layers {_list(missing)}" if missing else ""
    said += "".join(f"; {strip.name} {_range(strip)}" for strip in made)
    name = manifest.adapter or label
    return Heat(f"{name}: how far each receiver layer is edited", "", made, [], said + ".")


def _calibration(manifest: Manifest, label: str) -> Heat | None:
    found = manifest.calibration
    if not found:
        return None
    kinds = (("importance", found.importance), ("score", found.scores))
    made = [Strip(name, list(values), max([*values, 1e-9])) for name, values in kinds if values]
    if not made:
        return None
    chosen = found.layers or []
    ends = ", ".join(f"{strip.name} up to {plain(strip.most, 2)}" for strip in made)
    documents = f" on {found.documents} validation documents" if found.documents else ""
    return Heat(
        f"{label}: layers by calibration{documents}",
        "",
        made,
        chosen,
        f"Sent (▲): layers {_list(chosen)}; {ends}.",
    )


def _range(strip: Strip) -> str:
    values = [value for value in strip.values if value is not None]
    low, high = (plain(end, 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _spread(layers: Sequence[int], values: Sequence[float]) -> list[float | None]:
    given = dict(zip(layers, values, strict=True))
    return [given.get(layer) for layer in range(max(layers) + 1)]


def _list(layers: Sequence[int]) -> str:
    """`0–3, 7`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"

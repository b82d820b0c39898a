"""How long a run may take and how much memory, from the rows of runs that are like it.

>>> pace = Estimates(Path("results")).of(run)                                      # doctest: +SKIP
>>> pace.seconds, pace.memory_bytes                                                # doctest: +SKIP

Like it are runs of the same pair, method and options, in the same way of scoring and the same number
format, on the same kind of device. Those of its task come first; for another task the time is scaled
by the lengths of the prompts. Nothing is guessed where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.run import Run
from lcfbench.results.finding import listed
from lcfbench.results.manifest import Manifest, read_manifest
from lcfbench.results.reader import read_place
from lcfbench.tasks.prompts import rendered

ALIKE = ("pair", "mode", "options", "scoring", "dtype", "device")
NEARER = ("task", "shots", "prompt_sha256", "task_options", "batch_size", "adapter_sha256", "control")
SAME_TASK = NEARER[:4]
SAMPLE = 64  # documents whose prompts are measured
PROBES = Path("results")  # where probes keep their runs


@dataclass(frozen=True)
class Pace:
    """What a recorded run took. seconds: of a document, in its batch. characters: of its prompts."""

    run_id: str
    seconds: float
    memory_bytes: int | None
    characters: float


class Estimates:
    """The runs below a folder, and those of probes."""

    def __init__(self, out: Path) -> None:
        self._known: list[tuple[Path, Manifest]] = []
        self._paces: dict[Path, Pace | None] = {}
        places = [*listed(out), *(run for probe in sorted(PROBES.glob("probe-*")) for run in listed(probe))]
        for folder in {place.resolve(): place for place in places}.values():
            try:
                manifest, _ = Manifest.lenient(read_manifest(folder), folder)
            except UserError:  # `ls runs` names it
                continue
            if manifest.identity:
                self._known.append((folder, manifest))

    def of(self, run: Run) -> Pace | None:
        """Returns the pace that is expected of a run; None where no run like it is recorded."""
        wanted = run.identity
        rivals = [
            (self._nearness(wanted, manifest), folder, manifest.identity)
            for folder, manifest in self._known
            if all(manifest.identity.get(name) == wanted.get(name) for name in ALIKE)
        ]
        for _, folder, identity in sorted(rivals, key=lambda rival: rival[0], reverse=True):
            if (pace := self._pace(folder)) is None:
                continue
            if all(identity.get(name) == wanted.get(name) for name in SAME_TASK):
                return pace
            if pace.characters and (mine := characters_of(run)):
                return replace(pace, seconds=pace.seconds * mine / pace.characters)
        return None

    def _nearness(self, wanted: dict[str, Any], manifest: Manifest) -> tuple[Any, ...]:
        identity, environment = manifest.identity, manifest.environment
        gpu = getattr(environment, "gpu", None)
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else gpu
        same = [identity.get(name) == wanted.get(name) for name in NEARER]
        return (gpu == here, all(same[:4]), *same, manifest.started_at or "")

    def _pace(self, folder: Path) -> Pace | None:
        if folder not in self._paces:
            self._paces[folder] = _pace_of(folder)
        return self._paces[folder]


def _pace_of(folder: Path) -> Pace | None:
    """The pace of a run's rows; None where none has a time."""
    import pyarrow.compute as pc

    try:
        table, *_ = read_place(
            folder, ("amortized_ms", "peak_memory_bytes", "receiver_prompt", "sharer_prompt")
        )
    except UserError:
        return None
    table = table.filter(pc.is_valid(table["amortized_ms"]))
    if not len(table):
        return None
    texts = table.slice(0, SAMPLE)
    sizes = [
        pc.sum(pc.utf8_length(texts[name])).as_py() or 0 for name in ("receiver_prompt", "sharer_prompt")
    ]
    mean = pc.mean(table["amortized_ms"]).as_py() / 1e3
    return Pace(folder.name, mean, pc.max(table["peak_memory_bytes"]).as_py(), sum(sizes) / len(texts))


def characters_of(run: Run) -> float:
    """The mean length of what both models read of a document."""
    some: Sequence[Any] = run.documents[:: max(len(run.documents) // SAMPLE, 1)]
    sides = dict(zip(("receiver", "sharer"), run.models, strict=True))
    total = sum(
        len(rendered(getattr(d, role), sides[role].tokenizer, d.chat and sides[role].has_chat))
        for d in some
        for role in run.method.roles
    )
    return total / len(some)

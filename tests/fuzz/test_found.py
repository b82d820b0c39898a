"""Faults that trying found, each once more by name: a command, and the damage that it must survive."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lcfbench.errors import Exit
from tests.fuzz.verbs import PAIR

Damage = Callable[[Path], None]


def checkpoint(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(work: Path) -> None:
        path = work / "training" / "checkpoint.pt"
        state = torch.load(path, map_location="cpu", weights_only=False)
        buffer = io.BytesIO()
        torch.save(change(state), buffer)
        path.write_bytes(buffer.getvalue())

    return damage


def journal(line: str) -> Damage:
    def damage(work: Path) -> None:
        with (work / "training" / "training.jsonl").open("a") as file:
            file.write(line + "\n")

    return damage


def log(name: str, values: Callable[[int], pa.Array]) -> Damage:
    def damage(work: Path) -> None:
        path = work / "adapters" / "lcf" / "training.parquet"
        table = pq.ParquetFile(path).read()
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, values(len(table))), path)

    return damage


def function(text: str) -> Damage:
    def damage(work: Path) -> None:
        (work / "tasks" / "mine_docs.py").write_text(
            "from lcfbench.tasks.process_docs import per_row\n\n\n@per_row\ndef docs(row, index):\n    "
            + text
        )

    return damage


def odd_columns(work: Path) -> None:
    """The description of the columns in a table's own notes is damaged."""
    [path] = (work / "mirror" / "datasets").rglob("*.parquet")
    table = pq.ParquetFile(path).read()
    notes = {"huggingface": json.dumps({"info": {"features": {"id": {"dtype": "strimg", "_type": "Value"}}}})}
    pq.write_table(table.replace_schema_metadata(notes), path)


def odd_name(work: Path) -> None:
    """A file of a model's folder whose name is no UTF-8."""
    folder = os.fsencode(work / "models" / "sharer")
    os.rename(os.path.join(folder, b"generation_config.json"), os.path.join(folder, b"\xff\xfe.json"))


def nothing(work: Path) -> None:
    pass


TRAIN = "train --recipe train.yaml --out training"
PLOT = "plot training adapters/lcf --out out"
CHECK = f"task check tasks/mine.yaml {PAIR}"
ROW = {"adapter": "lcf", "step": 1, "metric": "loss", "value": 1.0}
FOUND: dict[str, tuple[str, Damage, int]] = {
    "checkpoint-is-a-list": (TRAIN, checkpoint(lambda s: [s]), Exit.USER),
    "checkpoint-without-recipe": (TRAIN, checkpoint(lambda s: {"step": 1}), Exit.USER),
    "checkpoint-step-is-a-list": (TRAIN, checkpoint(lambda s: s | {"step": [1]}), Exit.USER),
    "checkpoint-step-is-a-half": (TRAIN, checkpoint(lambda s: s | {"step": 0.5}), Exit.USER),
    "checkpoint-trainings-is-text": (TRAIN, checkpoint(lambda s: s | {"trainings": "x"}), Exit.USER),
    "checkpoint-trainings-is-none": (TRAIN, checkpoint(lambda s: s | {"trainings": None}), Exit.USER),
    "checkpoint-of-no-training": (TRAIN, checkpoint(lambda s: s | {"trainings": []}), Exit.USER),
    "checkpoint-training-is-empty": (TRAIN, checkpoint(lambda s: s | {"trainings": [{}]}), Exit.USER),
    "log-step-is-a-list": (TRAIN, journal(json.dumps(ROW | {"step": [1]})), Exit.OK),
    "log-step-is-huge": (TRAIN, journal(json.dumps(ROW | {"step": 10**30})), Exit.OK),
    "log-value-is-nested": (TRAIN, journal(json.dumps(ROW | {"value": {"a": 1}})), Exit.OK),
    "log-metric-is-a-list": (TRAIN, journal(json.dumps(ROW | {"metric": ["loss"]})), Exit.OK),
    "log-line-is-a-number": (TRAIN, journal("3"), Exit.OK),
    "figure-of-binary-steps": (PLOT, log("step", lambda n: pa.array([b"\xff"] * n)), Exit.USER),
    "figure-of-text-values": (PLOT, log("value", lambda n: pa.array(["x"] * n)), Exit.USER),
    "figure-of-nested-metrics": (PLOT, log("metric", lambda n: pa.array([[1]] * n)), Exit.USER),
    "figure-of-no-steps": (PLOT, log("step", pa.nulls), Exit.USER),
    "row-is-none": (CHECK, function("pass\n"), Exit.USER),
    "row-is-a-list": (CHECK, function("return [1]\n"), Exit.USER),
    "row-is-a-number": (CHECK, function("return 3\n"), Exit.USER),
    "model-file-of-an-odd-name": ("run --recipe run.yaml --dry-run", odd_name, Exit.OK),
    "table-of-odd-columns": (CHECK, odd_columns, Exit.USER),
    "long-flag": (f"verdict results --delta {'9' * 5000}", nothing, Exit.USER),
    "doctor-lacks-something": ("doctor --offline", nothing, Exit.FAILED),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(world, name):
    command, damage, code = FOUND[name]
    world.reset()
    damage(world.now / "work")
    done = world.run(command.split())
    assert done.code == code, done.err[-2000:]
    assert "Traceback" not in done.err
    told = [line for line in done.err.splitlines() if line.startswith("lcfbench: ")]
    assert len(told) == (code == Exit.USER) and all(len(line) < 1500 for line in told), done.err

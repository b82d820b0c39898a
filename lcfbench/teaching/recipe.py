"""The settings of teaching, and whether it can begin. Imports no torch.

>>> TeachRecipe(model="gemma3-270m", task=["planted"]).folder.name
'gemma3-270m+planted'
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from lcfbench.config import MOST, SEEDS, Device, Settings, several, texts
from lcfbench.errors import UserError
from lcfbench.files import writing
from lcfbench.provenance import digest
from lcfbench.registry import add_paths
from lcfbench.sources import taught
from lcfbench.sources.models import alias, canonical
from lcfbench.tasks.document import Scoring
from lcfbench.tasks.yaml_files import read_task
from lcfbench.training.recipe import SAME, Dtype

RECORD = "teaching.json"


class TeachRecipe(Settings):
    """One teaching: a base model, tasks, and how a LoRA learns them."""

    model: str = Field("gemma3-270m", description="The base model: an alias, a Hub id or a local folder.")
    task: list[str] = Field(
        ["planted"],
        description="Tasks to teach, comma-separated: the facts of one that has some, else its train split.",
    )
    scoring: Scoring | None = Field(
        None, description="Form of the answer: letters, cloze or generate; without it, the task's own."
    )
    rank: int = Field(16, ge=1, le=4096, description="Rank of the LoRA.")
    scale: float = Field(2.0, gt=0, le=1000, description="Factor of its update: alpha divided by the rank.")
    targets: list[str] = Field(
        ["all"], description="Linear modules it changes, by their last names; all takes every one of a layer."
    )
    layers: str = Field("all", description="Layers it changes: all, or FIRST-LAST counted from 0, as 4-17.")
    lr: float = Field(2e-3, gt=0, le=10, description="Peak learning rate of AdamW, with warm-up and decay.")
    warmup: int = Field(20, ge=1, le=MOST, description="Warm-up steps.")
    steps: int = Field(400, ge=1, le=MOST, description="Optimiser steps at most.")
    until: float = Field(
        0.02, ge=0, le=MOST, description="Ends early when the mean loss of a pass over all texts is below it."
    )
    batch_size: int = Field(64, ge=1, le=MOST, description="Texts a step.")
    save_every: int = Field(
        20,
        ge=1,
        le=MOST,
        description="Steps between checkpoints; a killed teaching goes on from the last one.",
    )
    seed: int = Field(0, ge=0, le=SEEDS, description="Seed of the initial weights and of the order.")
    dtype: Dtype = Field("auto", description="Number format of the base: auto, float32 or bfloat16.")
    device: Device = Field("auto", description="Where the model runs: auto, cpu or cuda[:n].")
    out: Path | None = Field(
        None, description="Folder of the taught model; without it, taught/MODEL+TASK of the model and task."
    )
    task_options: dict[str, str] = Field({}, description="Options of the task, KEY=VALUE.")
    offline: bool = Field(False, description="Use only models and data on this machine.")
    trust_remote_code: bool = SAME["trust_remote_code"]
    force: bool = Field(False, description="Replace what is in --out, and forget a checkpoint there.")

    _options = field_validator("task_options", mode="before")(texts)
    _targets = field_validator("targets", mode="before")(several)

    @field_validator("task", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """Takes names separated by commas; a file by path is registered."""
        return [name for text in several(value) for name in add_paths("tasks", text)]

    @property
    def folder(self) -> Path:
        """Where the taught model goes."""
        base = taught.recorded(alias(canonical(self.model))).replace("/", "-")
        return self.out or taught.TAUGHT / f"{base}+{'-'.join(self.task)}"

    def digest(self) -> str:
        """Returns a digest of all that changes the result; a checkpoint needs the same."""
        other = {"out", "offline", "force", "save_every", "device"}
        return digest({"teaching": 1, **self.model_dump(mode="json", exclude=other)})[:16]


def check(recipe: TeachRecipe) -> None:
    """Raises UserError unless there is a base to teach, tasks that are there, and a folder for the result."""
    if taught.split(canonical(recipe.model))[1] is not None:
        raise UserError(f"{recipe.model} is a taught model already.", "Name its base alone, and all tasks.")
    if not recipe.task:
        raise UserError("nothing to teach.", "Name a --task; see `lcfbench ls tasks`.")
    for task in recipe.task:
        read_task(task)
    layers_of(recipe, MOST)
    folder = recipe.folder
    if any((folder / name).exists() for name in ("config.json", "adapter.safetensors")):
        raise UserError(f"{folder} holds something else than a taught model.", "Name another --out.")
    if (folder / taught.PEFT).exists() and not recipe.force:
        raise UserError(f"{folder} already holds a taught model.", "Name another --out, or pass --force.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def usable_as(recipe: TeachRecipe) -> str:
    """Returns the name under which a run takes the taught model: BASE+NAME, or BASE+FOLDER."""
    base, folder = canonical(recipe.model), recipe.folder
    known = taught.listed(taught.recorded(alias(base))).get(folder.name)
    name = folder.name.partition("+")[2] if known and known.resolve() == folder.resolve() else str(folder)
    return f"{base}+{name}"


def layers_of(recipe: TeachRecipe, layers: int) -> list[int] | None:
    """Returns the layers that are changed, of so many; None for all. Raises UserError."""
    if recipe.layers == "all":
        return None
    first, _, last = recipe.layers.partition("-")
    numbers = [int(n) for n in (first, last or first) if n.isascii() and n.isdigit() and len(n) < 10]
    if len(numbers) < 2 or not numbers[0] <= numbers[1] < layers:
        there = f"; {recipe.model} has layers 0-{layers - 1}" if layers < MOST else ""
        raise UserError(f"layers {recipe.layers!r} are none{there}.", "Write all, or FIRST-LAST as in 4-17.")
    return list(range(numbers[0], numbers[1] + 1))

"""What to train and how, and whether it can be done at all."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lcfbench.adapters.config import WEIGHTS
from lcfbench.document import Scoring
from lcfbench.errors import UserError
from lcfbench.records import writing


@dataclass
class TrainRecipe:
    """One training run. Defaults are the small-scale recipe that converges in minutes on two CPU cores."""

    mode: str = "lcf"
    pair: str = "smollm2-135m:gemma3-270m"
    task: list[str] = field(default_factory=lambda: ["splitfacts"])
    steps: int = 200
    batch_size: int = 16
    lr: float = 3e-4
    warmup: int = 20
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    scoring: Scoring | None = None
    train_documents: int | None = None
    dev_documents: int = 64
    eval_every: int = 50
    dtype: str = "auto"
    device: str = "auto"
    out: Path = Path("adapters/new")
    options: dict[str, str] = field(default_factory=dict)
    task_options: dict[str, str] = field(default_factory=dict)
    offline: bool = False
    force: bool = False


class TrainProgress(Protocol):
    """What the trainer tells whoever watches."""

    def say(self, text: str) -> None: ...

    def step(self, step: int, steps: int, loss: float, right: float, gates_open: int, gates: int, examples_per_s: float) -> None: ...


def check(recipe: TrainRecipe) -> None:
    """Numbers that make sense, and a folder that can be written: better known now than after an hour. Raises UserError."""
    for name in ("steps", "batch_size", "dev_documents", "eval_every", "train_documents"):
        if (number := getattr(recipe, name)) is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} is {number}; it must be 1 or more.", "See `lcfbench train --help`.")
    for name in ("lr", "warmup", "weight_decay"):
        if not 0 <= (number := getattr(recipe, name)) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {number}; it must be 0 or more.", "See `lcfbench train --help`.")
    if not recipe.task:
        raise UserError("nothing to train on.", "Name a --task; see `lcfbench ls tasks`.")
    if (recipe.out / WEIGHTS).exists() and not recipe.force:
        raise UserError(f"{recipe.out} already holds an adapter.", "Name another --out, or pass --force.")
    with writing(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=recipe.out):
            pass

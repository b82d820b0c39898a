"""The settings of training and of pruning, and whether a training can begin. Imports no torch.

>>> TrainRecipe.merge("lcf-paper-shared", {"out": "adapters/lcf"}, "train")        # doctest: +SKIP
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Le
from pydantic import Field, field_validator

from lcfbench.adapters.config import CHECKPOINT, WEIGHTS
from lcfbench.config import (
    MOST,
    PLACES,
    SEEDS,
    Device,
    Settings,
    check_text,
    convert,
    grouped,
    parse_several,
    several,
    texts,
)
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import DeviceMap, Recipe
from lcfbench.files import writing
from lcfbench.provenance import digest
from lcfbench.registry import add_path, add_paths
from lcfbench.tasks.document import Scoring
from lcfbench.tracking import TrackerName, check_tracker

BLOCK = 8  # batches between which examples are sorted by length
OWN = ("steps", "lr", "warmup", "weight_decay", "clip", "loss_mean")  # settings that each adapter may have
SAME: dict[str, Any] = dict(Recipe.model_fields)  # settings that mean the same in `run`
Dtype = Literal["auto", "float32", "bfloat16"]


class TrainRecipe(Settings):
    """One training. Defaults are the small-scale recipe that converges in minutes on a CPU."""

    adapters: list[str] = Field(
        ["lcf"],
        description="Adapters to train side by side: METHOD or METHOD:key=value,… each, with its options, "
        "steps, lr, warmup, seed and the like.",
    )
    pair: str = Field(
        "smollm2-135m:gemma3-270m",
        description="RECEIVER:SHARER: aliases, Hub ids (NAME@REVISION) or local folders.",
    )
    task: list[str] = Field(
        ["splitfacts"],
        description="Sources of examples, comma-separated: TASK[*WEIGHT] or chat:DATASET[*WEIGHT].",
    )
    dev: list[str] | None = Field(
        None,
        description="Tasks whose validation split chooses the saved state; without it, those trained on.",
    )
    steps: int = Field(
        200,
        ge=0,
        le=MOST,
        description="Optimiser steps; 0 saves what the method fits before them (activation, dense, hub).",
    )
    batch_size: int = Field(16, ge=1, le=MOST, description="Examples a step.")
    accumulate: int = Field(
        1,
        ge=1,
        le=MOST,
        description="Forward passes a step; more than one for a batch that does not fit into memory.",
    )
    lr: float = Field(
        3e-4, gt=0, le=10, description="Peak learning rate of AdamW, with linear warm-up and linear decay."
    )
    warmup: float = Field(20, ge=0, le=MOST, description="Warm-up steps; below 1, a share of all steps.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="Weight decay of AdamW.")
    clip: float = Field(
        1.0, gt=0, le=MOST, description="Largest norm of a step's gradient; a longer one is shortened."
    )
    seed: int = Field(
        0, ge=0, le=SEEDS, description="Seed of the initial weights and of the order of the examples."
    )
    scoring: Scoring | None = Field(
        None, description="Form of the answer: letters, cloze or generate; without it, the task's own."
    )
    targets: Literal["gold", "receiver"] = Field(
        "gold",
        description="Answers to learn: gold, or those that the receiver writes when it reads both contexts.",
    )
    loss_mean: Literal["document", "token"] = Field(
        "document",
        description="What counts alike in the loss: every document (document) or every token (token).",
    )
    train_documents: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Examples to draw from; without it, as many as all steps take, or all there are.",
    )
    max_tokens: int = Field(
        2048, ge=1, le=MOST, description="Longest example in tokens; longer ones are left out."
    )
    dev_documents: int = Field(64, ge=1, le=MOST, description="Documents a task in each dev evaluation.")
    eval_every: int = Field(50, ge=1, le=MOST, description="Steps between dev evaluations.")
    save_every: int = Field(
        50,
        ge=1,
        le=MOST,
        description="Steps between checkpoints; a killed training goes on from the last one.",
    )
    prefills_gb: float = Field(
        2.0,
        ge=0,
        le=MOST,
        description="Gigabytes of the models' readings that are kept for later passes and evaluations; "
        "0 keeps none.",
    )
    preset: Literal["small-scale", "paper"] = Field(
        "small-scale",
        description="Where the options start: small-scale converges in minutes; paper is the papers' own.",
    )
    dtype: Dtype = Field("auto", description="Number format of the models: auto, float32 or bfloat16.")
    device: Device = Field("auto", description="Where the models run: auto, cpu or cuda[:n].")
    receiver_device: Device | None = SAME["receiver_device"]
    sharer_device: Device | None = SAME["sharer_device"]
    device_map: DeviceMap | None = SAME["device_map"]
    tracker: TrackerName | None = Field(
        None, description="Also log to trackio, wandb or tensorboard, where it is installed."
    )
    out: Path = Field(Path("adapters/new"), description="Folder of the new adapter.")
    options: dict[str, str] = Field(
        {},
        description="Options of the method or of the adapter, KEY=VALUE; several values, KEY=16,32, are "
        "several adapters.",
    )
    task_options: dict[str, str] = Field({}, description="Options of the task, KEY=VALUE.")
    shots: int | None = SAME["shots"]
    prompt: str | None = SAME["prompt"]
    offline: bool = Field(False, description="Use only models and data on this machine.")
    trust_remote_code: bool = SAME["trust_remote_code"]
    force: bool = Field(False, description="Replace the adapter in --out, and forget a checkpoint there.")
    wait: bool = Field(False, description="Wait for a process that writes the same --out, instead of ending.")

    _options = field_validator("options", "task_options", mode="before")(texts)

    @field_validator("task", "dev", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """Takes names separated by commas; a file by path is registered."""
        if value is None:
            return None
        return [name for text in several(value) for name in _named("tasks", text, "*")]

    @field_validator("adapters", mode="before")
    @classmethod
    def _adapters(cls, value: Any) -> Any:
        """Splits texts into adapters with their options (see `grouped`); a file by path is registered."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("give METHOD or METHOD:key=value,…, or a list of them")
        for text in texts:
            check_text(text)
        return [name for text in texts for one in grouped(text) for name in _named("methods", one, ":")]

    @property
    def at_once(self) -> int:
        """Documents in one forward pass."""
        return -(-self.batch_size // self.accumulate)

    @property
    def warmup_steps(self) -> int:
        return max(round(self.warmup * self.steps if self.warmup < 1 else self.warmup), 1)

    @property
    def drawn(self) -> int:
        """Examples that are drawn: those of whole blocks, so that more steps go on with the same ones."""
        block = BLOCK * self.batch_size
        return self.train_documents or max(-(-self.steps * self.batch_size // block), 1) * block

    def specs(self) -> list[AdapterSpec]:
        """Returns the adapters to train. Raises UserError for a wrong entry, or one named twice."""
        made = [AdapterSpec.parse(text, self.seed) for text in self.adapters]
        labels = [s.label for s in made]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise UserError(
                f"adapter {twice.pop()} is asked for twice.", "Give each its own options or seed."
            )
        return made

    def digest(self) -> str:
        """Returns a digest of all that changes the result; a checkpoint needs the same."""
        other = {"out", "offline", "force", "wait", "tracker", "save_every", "accumulate", *PLACES}
        if not self.trust_remote_code:
            other.add("trust_remote_code")
        other |= {name for name in ("shots", "prompt") if getattr(self, name) is None}
        return digest({"checkpoint": 5, **self.model_dump(mode="json", exclude=other)})[:16]


def _named(group: str, text: Any, sign: str) -> list[Any]:
    """A text whose part before `sign` is a path begins with the name of that file instead.

    A folder of tasks gives a text for each.
    """
    if not isinstance(text, str) or text.startswith("chat:"):
        return [text]
    name, found, rest = text.partition(sign)
    return [f"{each}{found}{rest}" for each in add_paths(group, name.strip())]


class PruneRecipe(Settings):
    """What to prune, and on which documents."""

    adapter: Path = Field(description="An adapter folder, or the name of a shipped one.")
    dev: str = Field(description="Task whose validation split decides; the test split is never read.")
    keep: list[Annotated[int, Ge(1), Le(MOST)]] | None = Field(
        None,
        description="Layers that stay at most; several numbers are several adapters. None: all that help.",
    )
    pair: str | None = Field(
        None,
        description="RECEIVER:SHARER: aliases, Hub ids (NAME@REVISION) or local folders; none: its own pair.",
    )
    limit: int = Field(64, ge=2, le=MOST, description="Dev documents.")
    batch_size: int = Field(16, ge=1, le=MOST, description="Documents a batch.")
    seed: int = Field(
        0, ge=0, le=SEEDS, description="Seed of the choice of documents and of the deranged messages."
    )
    scoring: Scoring | None = Field(
        None, description="Form of the answer: letters, cloze or generate; without it, the task's own."
    )
    options: dict[str, str] = Field({}, description="Options of the method, KEY=VALUE.")
    task_options: dict[str, str] = Field({}, description="Options of the task, KEY=VALUE.")
    out: Path | None = Field(
        None, description="Folder of the smaller adapter, or of several; none: adapters/NAME-9L for --keep 9."
    )
    dtype: Dtype = Field("auto", description="Number format of the models: auto, float32 or bfloat16.")
    device: Device = Field("auto", description="Where the models run: auto, cpu or cuda[:n].")
    receiver_device: Device | None = SAME["receiver_device"]
    sharer_device: Device | None = SAME["sharer_device"]
    device_map: DeviceMap | None = SAME["device_map"]
    offline: bool = Field(False, description="Use only models and data on this machine.")
    trust_remote_code: bool = SAME["trust_remote_code"]
    force: bool = Field(False, description="Replace the adapter in --out.")

    _options = field_validator("options", "task_options", mode="before")(texts)
    _dev = field_validator("dev", mode="before")(partial(add_path, "tasks"))

    @field_validator("keep", mode="before")
    @classmethod
    def _keep(cls, value: Any) -> Any:
        """Takes `9,6,3`, a number or a list of numbers."""
        parts = several(value) if isinstance(value, str | list) else value if value is None else [value]
        return parts and [int(p) if isinstance(p, str) and p.isdecimal() else p for p in parts]

    def folders(self) -> dict[int | None, Path]:
        """Returns where the smaller adapters go, by the number of layers asked for."""
        name = self.adapter.resolve().name
        wanted: list[int | None] = [*self.keep] if self.keep else [None]
        made = {keep: f"{name}-{f'{keep}L' if keep else 'pruned'}" for keep in wanted}
        if self.out and len(made) == 1:
            return dict.fromkeys(made, self.out)
        return {keep: (self.out or Path("adapters")) / last for keep, last in made.items()}


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter of a training: `lcf`, `lcf:width=128`, `lcf:width=128,lr=1e-3,seed=1`.

    seed: of its initial weights (the order of examples is the training's own). senders: `deranged`
    trains it on messages of other documents; what it gains then is adaptation. supervise: the steps
    of an answer that count. kind: of adapter, where a method takes several (`identical:kind=c2c`).
    own: the training's settings that it has otherwise (`OWN`).
    """

    mode: str
    label: str
    options: tuple[tuple[str, str], ...] = ()
    seed: Annotated[int, Ge(0), Le(SEEDS)] = 0
    senders: Literal["matched", "deranged"] = "matched"
    supervise: Literal["all", "first", "last"] = "all"
    kind: str | None = None
    own: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str, seed: int) -> AdapterSpec:
        """Reads `METHOD` or `METHOD:key=value,…`. Raises UserError for another form."""
        mode, options = split_spec(text)
        label = re.sub(r"[^\w.-]+", "-", text.strip()).strip("-")
        chosen = {
            key: convert(key, options.pop(key), hint, default, f"adapter {text}")
            for key, (hint, default) in spec_fields().items()
            if key in options
        }
        own = tuple((key, chosen.pop(key)) for key in OWN if key in chosen)
        return cls(mode, label, tuple(options.items()), own=own, **({"seed": seed} | chosen))

    def recipe(self, whole: TrainRecipe) -> TrainRecipe:
        """Returns the settings of the whole training as this adapter has them."""
        return whole.model_copy(update=dict(self.own))


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """Divides `METHOD:key=value,…` into the method and its options. Raises UserError for another form."""
    mode, _, rest = text.partition(":")
    given = parse_several(filter(None, rest.split(",")), f"--adapter {mode}:")
    if twice := [key for key, values in given.items() if len(values) > 1]:
        raise UserError(f"adapter {text} gives {twice[0]} twice.", "Write an entry for each value.")
    return mode.strip(), {key: value for key, [value] in given.items()}


def spec_fields() -> dict[str, tuple[Any, Any]]:
    """Returns type and default of each setting that an adapter may have of its own, by name."""
    hints = get_type_hints(AdapterSpec, include_extras=True)
    found = {key: (hints[key], getattr(AdapterSpec, key)) for key in ("seed", "senders", "supervise", "kind")}
    for key in OWN:
        field = TrainRecipe.model_fields[key]
        found[key] = field.rebuild_annotation(), field.default
    return found


def check(recipe: TrainRecipe) -> None:
    """Raises UserError unless there is something to train."""
    if not recipe.task or not recipe.adapters:
        raise UserError("nothing to train.", "Name a --task and a --mode; see `lcfbench ls tasks`.")
    if recipe.batch_size < recipe.accumulate:
        raise UserError(
            f"--accumulate {recipe.accumulate} leaves no examples a pass.",
            f"--batch-size is {recipe.batch_size}.",
        )
    check_tracker(recipe.tracker)


def check_folder(recipe: TrainRecipe) -> None:
    """Raises UserError unless the output folder can be written and holds no finished adapter."""
    for folder in (folder_of(recipe, spec) for spec in recipe.specs()):
        if (folder / WEIGHTS).exists() and not recipe.force and not (recipe.out / CHECKPOINT).exists():
            raise UserError(f"{folder} already holds an adapter.", "Name another --out, or pass --force.")
    with writing(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=recipe.out):
            pass


def folder_of(recipe: TrainRecipe, spec: AdapterSpec) -> Path:
    """Returns where an adapter is saved: `out`, or a folder below it where several are trained."""
    return recipe.out if len(recipe.adapters) == 1 else recipe.out / spec.label

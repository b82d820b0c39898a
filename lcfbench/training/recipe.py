"""What to train and how, and whether it can be done at all.

>>> TrainRecipe.merge("lcf-paper-shared", {"out": "adapters/lcf"}, "train")        # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from lcfbench.adapters.config import WEIGHTS
from lcfbench.config import Settings, several, texts
from lcfbench.errors import UserError, unknown
from lcfbench.files import writing
from lcfbench.tasks.document import Scoring

CHECKPOINT = "checkpoint.pt"
SUPERVISE = ("all", "first", "last")
SENDERS = ("matched", "deranged")


class TrainRecipe(Settings):
    """One training. Defaults are the small-scale recipe that converges in minutes on two CPU cores.

    adapters: what is trained side by side over the same prefills; each entry `METHOD` or `METHOD:key=value,…`, see `AdapterSpec`.
    task: sources of examples, `NAME*WEIGHT` each, `chat:DATASET` for a chat data set. dev: tasks whose validation split chooses the saved
    state; without them every task in the mixture. warmup: steps, or below 1 a share of them. accumulate: forward passes a step, for a
    batch that does not fit. targets: `receiver` replaces gold answers by what the receiver writes when it reads both contexts.
    loss_mean: over the tokens of each document and then over documents, or over all tokens of the batch.
    preset: where options start, `small-scale` (methods that converge in minutes) or `paper`.
    """

    adapters: list[str] = ["lcf"]
    pair: str = "smollm2-135m:gemma3-270m"
    task: list[str] = ["splitfacts"]
    dev: list[str] | None = None
    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=3e-4, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=20, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float = Field(default=1.0, gt=0)
    seed: int = 0
    scoring: Scoring | None = None
    targets: Literal["gold", "receiver"] = "gold"
    loss_mean: Literal["document", "token"] = "document"
    train_documents: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=2048, ge=1)
    dev_documents: int = Field(default=64, ge=1)
    eval_every: int = Field(default=50, ge=1)
    save_every: int = Field(default=50, ge=1)
    preset: Literal["small-scale", "paper"] = "small-scale"
    dtype: str = "auto"
    device: str = "auto"
    tracker: Literal["tensorboard", "trackio"] | None = None
    out: Path = Path("adapters/new")
    options: dict[str, str] = {}
    task_options: dict[str, str] = {}
    offline: bool = False
    force: bool = False

    _lists = field_validator("task", "dev", mode="before")(several)
    _options = field_validator("options", "task_options", mode="before")(texts)

    @field_validator("adapters", mode="before")
    @classmethod
    def _adapters(cls, value: Any) -> Any:
        """One text is one adapter: commas separate its options."""
        return [value] if isinstance(value, str) else value

    @property
    def at_once(self) -> int:
        """Documents in one pass."""
        return -(-self.batch_size // self.accumulate)

    @property
    def warmup_steps(self) -> int:
        return max(round(self.warmup * self.steps if self.warmup < 1 else self.warmup), 1)

    def specs(self) -> list[AdapterSpec]:
        """The adapters asked for. Raises UserError for entries that cannot be read or occur twice."""
        made = [AdapterSpec.parse(text, self.seed) for text in self.adapters]
        labels = [s.label for s in made]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise UserError(
                f"adapter {twice.pop()} is asked for twice.", "Give each its own options or seed."
            )
        return made

    def digest(self) -> str:
        """Of all that changes what is learned: a checkpoint goes on only under the same."""
        asked = self.model_dump(
            mode="json", exclude={"out", "offline", "force", "tracker", "save_every", "device", "accumulate"}
        )
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter of a training: `lcf`, `lcf:width=128`, `lcf:width=128,seed=1,senders=deranged`.

    seed: of its initialisation (the order of examples is the training's own). senders: `deranged` trains it on messages of other
    documents: what it gains then is adaptation. supervise: which of an answer's steps count, `all`, `first` or `last`. kind: of adapter,
    where the method takes several (`identical:kind=c2c`).
    """

    mode: str
    label: str
    options: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    senders: str = "matched"
    supervise: str = "all"
    kind: str | None = None

    @classmethod
    def parse(cls, text: str, seed: int) -> AdapterSpec:
        """Raises UserError for entries that are no KEY=VALUE."""
        mode, _, rest = text.partition(":")
        options: dict[str, str] = {}
        for part in filter(None, rest.split(",")):
            key, sign, value = part.partition("=")
            if not sign:
                raise UserError(
                    f"adapter {text!r}: {part!r} is not KEY=VALUE.", "For example lcf:width=128,seed=1."
                )
            options[key.strip().replace("-", "_")] = value.strip()
        label = re.sub(r"[^\w.-]+", "-", text.strip()).strip("-")
        own: dict[str, Any] = {"seed": seed, "kind": options.pop("kind", None)}
        if "seed" in options:
            if not re.fullmatch(r"\d+", given := options.pop("seed")):
                raise UserError(
                    f"adapter {text!r}: seed={given} is not a whole number.", "For example lcf:seed=1."
                )
            own["seed"] = int(given)
        for key, known in (("senders", SENDERS), ("supervise", SUPERVISE)):
            if key in options:
                own[key] = options.pop(key)
                if own[key] not in known:
                    raise unknown(key, own[key], known, "lcfbench train --help")
        return cls(mode.strip(), label, tuple(options.items()), **own)


def check(recipe: TrainRecipe) -> None:
    """Something to train, and a folder that can be written: better known now than after an hour. Raises UserError."""
    if not recipe.task or not recipe.adapters:
        raise UserError("nothing to train.", "Name a --task and a --mode; see `lcfbench ls tasks`.")
    if recipe.batch_size < recipe.accumulate:
        raise UserError(
            f"--accumulate {recipe.accumulate} leaves no examples a pass.",
            f"--batch-size is {recipe.batch_size}.",
        )
    specs = recipe.specs()
    for folder in (folder_of(recipe, s) for s in specs):
        if (folder / WEIGHTS).exists() and not recipe.force and not (recipe.out / CHECKPOINT).exists():
            raise UserError(f"{folder} already holds an adapter.", "Name another --out, or pass --force.")
    with writing(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=recipe.out):
            pass


def folder_of(recipe: TrainRecipe, spec: AdapterSpec) -> Path:
    """Where an adapter is saved: `out` itself, or below it where several are trained."""
    return recipe.out if len(recipe.adapters) == 1 else recipe.out / spec.label

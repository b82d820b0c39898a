"""The settings of `lcfbench probe`. Imports no torch.

>>> ProbeRecipe.merge(None, {"task": "openbookqa", "minutes": 10}, "probe").minutes
10.0
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from lcfbench.config import MOST, PLACES, Device, Settings, texts
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Attention, DeviceMap, Recipe, check_known
from lcfbench.provenance import digest
from lcfbench.registry import add_path
from lcfbench.sources.models import split_pair
from lcfbench.tasks.document import Scoring
from lcfbench.tasks.own_files import SHARE
from lcfbench.tasks.yaml_files import describe, options_for

Dtype = Literal["auto", "float32", "bfloat16"]
SAME: dict[str, Any] = dict(Recipe.model_fields)  # settings that mean the same in `run`
HELD_OUT = 60  # per cent of the rows to learn from, where all are in one split
OTHER = {"out", "offline", "fresh"}  # settings that change no number


class ProbeRecipe(Settings):
    """A pair, a task and the minutes to spend on the question whether a cache channel is worth it."""

    pair: str = SAME["pair"]
    task: str = Field("splitfacts", description="The task: a name (see `ls tasks`) or a file.")
    minutes: float = Field(30, ge=0.5, le=10_000, description="Wall-clock time to spend, in minutes.")
    mode: str | None = Field(
        None,
        description="The method to train; none: lcf, or dense where contexts differ and answers are written.",
    )
    train_task: str | None = Field(None, description="Task whose train split is learnt; none: --task.")
    scoring: Scoring | None = SAME["scoring"]
    limit: int | None = Field(
        None, ge=4, le=MOST, description="Documents to ask; none: as many as the time allows."
    )
    batch_size: int = SAME["batch_size"]
    budget: int = Field(32, ge=1, le=4096, description="Tokens of the written note that is compared with.")
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate of the short training; none: what has worked for such an adapter.",
    )
    options: dict[str, str] = Field({}, description="Options of the method or of the adapter, KEY=VALUE.")
    task_options: dict[str, str] = SAME["task_options"]
    train_anyway: bool = Field(False, description="Train also where nothing could be gained.")
    seed: int = SAME["seed"]
    dtype: Dtype = Field("auto", description="Number format of the models: auto, float32 or bfloat16.")
    device: Device = SAME["device"]
    receiver_device: Device | None = SAME["receiver_device"]
    sharer_device: Device | None = SAME["sharer_device"]
    device_map: DeviceMap | None = SAME["device_map"]
    attention: Attention = SAME["attention"]
    out: Path | None = Field(None, description="Folder of the page and the runs; none: results/probe-….")
    offline: bool = SAME["offline"]
    trust_remote_code: bool = SAME["trust_remote_code"]
    fresh: bool = Field(False, description="Forget what is recorded in --out and start over.")

    _options = field_validator("options", "task_options", mode="before")(texts)

    @property
    def names(self) -> tuple[str, str]:
        """Receiver and sharer. Raises UserError where the pair is not RECEIVER:SHARER."""
        return split_pair(self.pair)

    @property
    def task_name(self) -> str:
        """The name of the task; a file given by its path is registered."""
        return add_path("tasks", self.task)

    def identity(self) -> dict[str, Any]:
        """The settings that change a number."""
        unset = {name for name in (*PLACES, "trust_remote_code") if not getattr(self, name)}
        plain = (
            {"attention": "sdpa"} if self.attention == "auto" else {}
        )  # as it was recorded before there was auto
        return self.model_dump(mode="json", exclude=OTHER | unset) | plain

    @property
    def folder(self) -> Path:
        """Where the page and all runs go."""
        if self.out is not None:
            return self.out
        names = "-".join(re.sub(r"\W+", "-", Path(n).name).strip("-") for n in (*self.names, self.task_name))
        return Path("results") / f"probe-{names}-{digest(self.identity())[:6]}"

    def holding_out(self) -> ProbeRecipe:
        """These settings, with rows kept for learning where a user's own task has one split alone.

        Which rows they are is told by their hash (the task's option train_share).
        """
        options = describe(self.task_name)["options"]
        if self.train_task is not None or SHARE not in options or SHARE in self.task_options:
            return self
        return self.model_copy(update={"task_options": {**self.task_options, SHARE: str(HELD_OUT)}})

    def check(self) -> None:
        """Checks names before anything heavy is imported or loaded. Raises UserError."""
        task, more = self.task_name, [add_path("tasks", self.train_task)] if self.train_task else []
        check_known(self.pair, [self.mode] if self.mode else [], [task, *more])
        options_for([task], self.task_options)
        if self.scoring is not None and self.scoring not in (known := describe(task)["scorings"]):
            raise UserError(
                f"{task} is not scored by {self.scoring}.", f"It is scored by {', '.join(known)}."
            )

"""The settings of the oracles. Imports no torch.

>>> Enrich.merge(None, {"task": "splitfacts", "limit": 32}, "oracle enrich").shots
4
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lcfbench.config import MOST, SEEDS, Device, Settings, texts
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Attention, Recipe
from lcfbench.registry import add_path
from lcfbench.tasks.document import Scoring

SAME: dict[str, Any] = dict(Recipe.model_fields)  # settings that mean the same in `run`


class OracleSettings(Settings):
    """The settings that all oracles have."""

    seed: int = Field(0, ge=0, le=SEEDS, description="Seed of the choice of documents and examples.")
    batch_size: int = Field(16, ge=1, le=MOST, description="Documents a batch.")
    task_options: dict[str, str] = Field({}, description="Options of the task, KEY=VALUE.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the models: auto, float32 or bfloat16."
    )
    device: Device = Field("auto", description="Where the models run: auto, cpu or cuda[:n].")
    attention: Attention = Field(
        "auto", description="Attention implementation; auto: sdpa, and eager for a model that has no sdpa."
    )
    out: Path = Field(Path("results"), description="Folder of results.")
    offline: bool = Field(False, description="Use only models and data on this machine.")
    trust_remote_code: bool = SAME["trust_remote_code"]
    fresh: bool = Field(False, description="Compute again, even where the result is recorded.")

    _options = field_validator("task_options", mode="before")(texts)
    _task = field_validator("task", mode="before", check_fields=False)(partial(add_path, "tasks"))


class Enrich(OracleSettings):
    """The settings of `oracle enrich`."""

    model: str = Field("smollm2-135m", description="The model that answers: alias, Hub id or local folder.")
    task: str = Field("openbookqa", description="The task, see `lcfbench ls tasks`.")
    before: Literal["examples", "context"] | None = Field(
        None,
        description="Text in front of the question: examples (of the train split) or context (of the "
        "other side); without it, context where the task has one.",
    )
    shots: int = Field(4, ge=1, le=MOST, description="Examples in front of the question.")
    limit: int = Field(64, ge=2, le=MOST, description="Documents; intervals are useful from about 50.")
    per_layer: bool = Field(False, description="Also enrich one layer at a time.")
    positions: Literal["direct", "kept"] = Field(
        "direct",
        description="Rotary positions of the slice: direct (as without text in front) or kept (unchanged).",
    )
    scoring: Scoring | None = Field(
        None, description="Form of the answer: letters, cloze or generate; without it, the task's own."
    )

    @model_validator(mode="after")
    def _positions_of_layers(self) -> Enrich:
        if self.per_layer and self.positions == "kept":
            raise UserError(
                "layers can be compared at the question's own positions only.",
                "Leave out --per-layer or --positions kept.",
            )
        return self


class Transform(OracleSettings):
    """The settings of `oracle transform`."""

    pair: str = Field(
        "smollm2-135m:gemma3-270m",
        description="RECEIVER:SHARER: aliases, Hub ids (NAME@REVISION) or local folders.",
    )
    task: str = Field("splitfacts", description="Task whose train split is the text.")
    text: Path | None = Field(
        None, description="A file of plain text instead, paragraphs separated by blank lines."
    )
    tokens: int = Field(
        8000, ge=200, le=MOST, description="Receiver tokens; a fifth of the texts is held out."
    )
    map: Literal["proportional", "terminal", "nearest", "best"] = Field(
        "proportional",
        description="Layer map: proportional, terminal, nearest, or best (every pair of layers is tried).",
    )
    sources: int = Field(
        1, ge=1, le=3, description="Sharer layers that each receiver layer is mapped from, 1 to 3."
    )

    @model_validator(mode="after")
    def _one_source_for_best(self) -> Transform:
        if self.map == "best" and self.sources > 1:
            raise UserError(
                "--map best tries sharer layers one at a time.", "Leave out --sources, or name a map."
            )
        return self

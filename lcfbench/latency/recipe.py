"""The settings of `lcfbench bench`. Imports no torch.

>>> BenchRecipe.merge(None, {"mode": "receiver,t2t", "prompt_tokens": "64,256"}, "bench").prompt_tokens
[64, 256]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from lcfbench.config import MOST, Device, Settings, WireForm, lists_of_texts, several
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Attention, DeviceMap, Dtype, Recipe, check_known, names_or_files
from lcfbench.evaluation.variants import read_entry, split_modes
from lcfbench.registry import method_names
from lcfbench.sources.models import first_pair, split_sharers

BUDGETS = [16, 64]  # where a method has a budget and none is given
SAME: dict[str, Any] = dict(Recipe.model_fields)  # settings that mean the same in `run`


Length = Annotated[int, Field(ge=1, le=1_000_000)]


def is_spec(place: Path) -> bool:
    """Returns whether an adapter is given by its shape, `METHOD:key=value,…`, and not by its place."""
    return not place.exists() and read_entry(str(place))[0] in method_names()


class BenchRecipe(Settings):
    """A grid: every method × prompt tokens × answer tokens, and × budgets where the method has one."""

    pair: str = SAME["pair"]
    random_weights: bool = Field(
        False,
        description="Models of the pair's shapes with random weights: needs no weights and no network. "
        "Tells times, and never goes with scores.",
    )
    mode: list[str] = Field(
        ["receiver", "t2t", "lcf"],
        description=f"{SAME['mode'].description} Those of untrained adapters need not be named.",
    )
    sharers: list[Annotated[int, Field(ge=1, le=MOST)]] = Field(
        [],
        description="How many of the pair's sharers send, the first ones, comma-separated; without it, all.",
    )
    task: list[str] = Field(
        [], description="Tasks whose text is read, comma-separated; without it, those of the adapters."
    )
    prompt_tokens: list[Length] = Field(
        [64, 256], description="Lengths of the receiver's prompt, template included, comma-separated."
    )
    answer_tokens: list[Length] = Field([1, 32], description="Lengths of the answer, comma-separated.")
    budget: list[Length] = Field(
        [],
        description=f"Lengths of the note of methods that write one; without it, {BUDGETS[0]},{BUDGETS[1]}.",
    )
    repeats: int = Field(7, ge=1, le=MOST, description="Timed passes of each cell, in turn.")
    warm_up: int = Field(2, ge=1, le=MOST, description="Passes before them that are not timed.")
    drift: float = Field(
        5.0,
        ge=0,
        le=100,
        description="Percent by which a fixed matmul beside a repeat may be off its usual time, or a repeat "
        "may lack processor time: else it is thrown away and made again; 0 keeps all, without a matmul.",
    )
    precision: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Percent within which the medians of the times to the first token and to the "
        "answer's end shall be known (95 %): a cell whose repeats differ more gets further ones, up to "
        "five times --repeats. Needs 5 repeats; 0: --repeats are all.",
    )
    minutes: float | None = Field(
        None, gt=0, le=100_000, description="Stop after so many minutes; each length has its share."
    )
    adapter: list[Path] = Field(
        [],
        description="Adapter's folder, name of a shipped one, or METHOD:KEY=VALUE,… for an untrained one of "
        "that shape (lcf:width=128,layers=9).",
    )
    options: dict[str, list[str]] = SAME["options"]
    wire: WireForm | None = Field(
        None,
        description="Form in which messages cross as bytes, making and reading which is then timed; none: "
        "they are handed over.",
    )
    dtype: Dtype = SAME["dtype"]
    device: Device = SAME["device"]
    receiver_device: Device | None = SAME["receiver_device"]
    sharer_device: Device | None = SAME["sharer_device"]
    device_map: DeviceMap | None = SAME["device_map"]
    attention: Attention = SAME["attention"]
    offline: bool = SAME["offline"]
    trust_remote_code: bool = SAME["trust_remote_code"]

    _names = field_validator("task", mode="before")(names_or_files)
    _modes = field_validator("mode", mode="before")(split_modes)
    _lists = field_validator("adapter", mode="before")(several)
    _options = field_validator("options", mode="before")(lists_of_texts)

    @field_validator("prompt_tokens", "answer_tokens", "budget", "sharers", mode="before")
    @classmethod
    def _lengths(cls, value: Any, info: Any) -> Any:
        parts = several([value] if isinstance(value, int) else value)
        for part in parts:
            if not str(part).isdecimal() or int(part) < 1:
                what = "sharers" if info.field_name == "sharers" else "tokens"
                raise ValueError(f"{str(part)[:40]!r} is no number of {what}; give whole numbers from 1")
        return [int(part) for part in parts]

    @model_validator(mode="after")
    def _modes_of_adapters(self) -> BenchRecipe:
        """Adds the methods of untrained adapters where no method is named."""
        heads = [read_entry(str(place))[0] for place in self.adapter if is_spec(place)]
        if heads and "mode" not in self.model_fields_set:
            self.mode = list(dict.fromkeys(["receiver", "t2t", *heads]))
        return self

    @property
    def names(self) -> tuple[str, str]:
        """Receiver and first sharer. Raises UserError where the pair is not RECEIVER:SHARER."""
        return first_pair(self.pair)

    @property
    def counts(self) -> list[int]:
        """How many sharers send, in turn."""
        return list(dict.fromkeys(self.sharers)) or [len(split_sharers(self.pair)[1])]

    @property
    def methods(self) -> list[str]:
        """The names of the methods, each once."""
        return list(dict.fromkeys(read_entry(entry)[0] for entry in self.mode))

    def check_names(self) -> None:
        """Checks names and combinations before anything heavy is imported. Raises UserError."""
        check_known(self.pair, self.methods, self.task)
        if not (self.mode and self.prompt_tokens and self.answer_tokens):
            raise UserError("nothing to measure.", "Give --mode, --prompt-tokens and --answer-tokens.")
        if (most := max(self.counts)) > (named := len(split_sharers(self.pair)[1])):
            what = f"--sharers {most}: --pair names {named}."
            raise UserError(what, "Name as many, RECEIVER:SHARER,SHARER; a model may stand there twice.")
        for head in {read_entry(str(place))[0] for place in self.adapter if is_spec(place)}:
            if head not in self.methods:
                raise UserError(f"--adapter {head}:… would have no effect.", f"Add {head} to --mode.")
        if "budget" in self.options:
            raise UserError("-o budget is one length of the grid.", "Use --budget, which takes several.")

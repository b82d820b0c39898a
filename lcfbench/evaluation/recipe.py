"""Describes what to run: YAML < `LCFBENCH_*` < flags.

>>> recipe = Recipe.merge("recipe.yaml", {"limit": 100})
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from lcfbench.config import (
    MOST,
    SEEDS,
    Device,
    Join,
    Settings,
    WireForm,
    lists_of_texts,
    once,
    several,
    texts,
)
from lcfbench.controls.names import check_control
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.variants import read_entry, split_modes
from lcfbench.registry import add_paths, method_names
from lcfbench.results.manifest import HALF, most_failed
from lcfbench.results.shards import Shard
from lcfbench.sources.cache import EMBEDDED_PAIR
from lcfbench.sources.models import split_sharers
from lcfbench.tasks.chat_template import Thinking, parse_thinking
from lcfbench.tasks.document import Scoring
from lcfbench.tasks.groups import expand, find_group, group_names
from lcfbench.tasks.stock_index import is_stock, leaf
from lcfbench.tasks.yaml_files import task_names
from lcfbench.tracking import TrackerName, check_tracker

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
QUICK_LIMIT = 32
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]


def check_known(pair: str, modes: list[str], tasks: list[str]) -> None:
    """Checks the names of a pair, methods and tasks. Raises UserError with the nearest names."""
    split_sharers(pair)
    for kind, names, known in (("method", modes, method_names()), ("task", tasks, task_names())):
        for name in names:
            if kind == "task" and is_stock(name):
                leaf(name)
            elif name not in known:
                if kind == "task" and (group := find_group(name)):
                    what = f"{name} is a group of tasks, and one task is asked for."
                    raise UserError(what, f"Name one of {', '.join(group.members)}.")
                near = [*known, *(group_names() if kind == "task" else ())]
                raise unknown(kind, name, near, f"lcfbench ls {kind}s")


def names_or_files(value: Any, info: Any) -> Any:
    """Splits a list of names; a file given by its path is registered and replaced by its name.

    A group of tasks is replaced by its members.
    """
    group = {"task": "tasks", "control": "controls"}[info.field_name]
    whole = isinstance(value, str) and "," in value and Path(value).expanduser().exists()
    every = [
        [v] if not isinstance(v, str) else add_paths(group, v) for v in ([value] if whole else several(value))
    ]
    names = once([name for names in every for name in names])
    return expand(names) if group == "tasks" else names


def some(value: Any) -> Any:
    """As `several`, but a text must name something."""
    parts = several(value)
    if not parts and isinstance(value, str):
        raise ValueError("it names nothing")
    return parts


def names_of_runs(value: Any) -> Any:
    """As `some`; numbers of a YAML file become texts, and each name stands once."""
    parts = some([value] if isinstance(value, int) and not isinstance(value, bool) else value)
    if isinstance(parts, list):
        return list(dict.fromkeys(str(p) if type(p) is int else p for p in parts))
    return parts


def part_of_a_run(value: Any) -> Any:
    """Checks the form of a shard."""
    if not isinstance(value, str):
        return value
    return str(Shard.parse(value.strip()))


def share_or_number(value: Any) -> Any:
    """Checks how many documents may fail; numbers of a YAML file become texts."""
    if isinstance(value, bool):
        raise ValueError("yes or no is no number")
    text = str(value).strip()
    most_failed(text, 0)
    return text


def ray_address(text: str | None) -> str | None:
    """Checks the address of a Ray cluster."""
    if text is not None and not re.fullmatch(
        r"ray|ray://(auto|[^\s/:]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5})", text
    ):
        raise ValueError("give ray, ray://auto or ray://HOST:PORT")
    return text


class Recipe(Settings):
    """Says which methods answer which tasks under which controls, and how."""

    pair: str = Field(
        EMBEDDED_PAIR,
        description="RECEIVER:SHARER: aliases, Hub ids (NAME@REVISION) or local folders; several sharers as "
        "RECEIVER:SHARER,SHARER.",
    )
    mode: list[str] = Field(
        ["receiver", "lcf"],
        description="Methods, comma-separated: names (see `ls methods`) or Python files, each with its own "
        "options where wanted, as t2t:budget=16,32,lcf:spans=windows or lcf:adapter=NAME.",
    )
    task: list[str] = Field(
        ["splitfacts"],
        description="Tasks, comma-separated: names of tasks or of groups (see `ls tasks`) or YAML files.",
    )
    control: list[str] = Field(
        ["matched", "deranged"],
        description="Controls: matched, deranged (another document's message); others: `ls controls`.",
    )
    quick: bool = Field(
        False, description=f"Only control matched and {QUICK_LIMIT} documents, where nothing else is given."
    )
    scoring: Scoring | None = Field(None, description="letters, cloze or generate; none: each task's own.")
    limit: int | None = Field(None, ge=1, le=MOST, description="Documents of each task; none: all.")
    shots: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Worked examples before each question; none: as the task says, mostly 0.",
    )
    prompt: str | None = Field(
        None,
        description="A Jinja file, or a name of the task's `prompts:`, in place of the task's own prompt, "
        "request and parse rule.",
    )
    seed: int = Field(0, ge=0, le=SEEDS, description="Seed of samples, splits, derangements and noise.")
    seeds: list[Annotated[int, Field(ge=0, le=SEEDS)]] = Field(
        [], description="Several seeds, comma-separated: one run for each where something is random."
    )
    adapter: list[Path] = Field(
        [],
        description="Adapter folders, a run for each that a method and task can use; of different sharers "
        "one for each, as A+B; none: the adapter that ships for the pair and the task.",
    )
    options: dict[str, list[str]] = Field(
        {},
        description="Settings of the methods that have them; budget=16,32 is a run for each. Of a text, as "
        "kvcomm's layers=3,7,12, commas are part: give the option again for another run.",
    )
    task_options: dict[str, str] = Field({}, description="Settings of the tasks.")
    batch_size: int = Field(16, ge=1, le=MOST, description="Documents in a batch.")
    wire: list[WireForm] = Field(
        [],
        description="Send messages as bytes and read them back before they are used, a run for each form: "
        "native (exact), bf16, fp8, int8, int4; none: they are handed over, and their size is counted.",
    )
    keep_messages: bool = Field(
        False,
        description="Store every message that crossed beside the rows, in RUN/messages; without --wire they "
        "cross as native.",
    )
    join: list[Join] = Field(
        [],
        description="How messages of several sharers are joined, a run for each way that a method has: row, "
        "free (without an order), parallel, sequential; none: each method's first way.",
    )
    latency_documents: int = Field(
        5, ge=0, le=MOST, description="Documents that are also timed alone, warm, for the latency columns."
    )
    max_failed: Annotated[str, BeforeValidator(share_or_number)] = Field(
        HALF,
        description="Documents that may fail, as a share (0.5, 10%) or a number (8): a run in which more of "
        "them fail, or all, is no result, and the command ends with 1.",
    )
    require_proof: bool = Field(
        False,
        description="Refuse adapters that carry no proof, for this task and these settings, that their "
        "messages count (`lcfbench adapter prove`).",
    )
    dtype: Dtype = Field("auto", description="auto, float32, bfloat16 or float16.")
    device: Device = Field("auto", description="auto, cpu, cuda[:n] or mps.")
    receiver_device: Device | None = Field(None, description="Of the receiver alone; none: --device.")
    sharer_device: Device | None = Field(None, description="Of the sharer alone; none: --device.")
    device_map: DeviceMap | None = Field(
        None,
        description="Spread each model that has no device of its own over all devices, as accelerate does.",
    )
    attention: Attention = Field(
        "auto", description="Attention implementation; auto: sdpa, and eager for a model that has no sdpa."
    )
    thinking: Thinking = Field(
        "off",
        description="Thoughts of models that write one before an answer: off, on, or the tokens after which "
        "a thought is closed.",
    )
    only: list[str] = Field(
        [], description="Only these runs, comma-separated: ids, keys or numbers of `lcfbench plan`."
    )
    shard: str | None = Field(
        None,
        description="I/N: answer every N-th batch of each run, from the I-th on, in a folder beside the run; "
        "when all have rows the run is put together.",
    )
    out: Path = Field(Path("results"), description="Folder of the runs.")
    offline: bool = Field(False, description="Use only files that are on this machine.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that a model's folder brings along; read it before."
    )
    train: bool = Field(
        False, description="Train the adapters that no place has, keep them in the cache, and go on."
    )
    train_options: dict[str, str] = Field(
        {},
        description="Settings of that training (steps=20, recipe=NAME) or options of its adapter, KEY=VALUE.",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Workers that answer batches side by side, each with its own models and its share of the "
        "CPUs or GPUs; under --on, the number of its workers. None: 2 on a CPU where the work is long, "
        "else 1.",
    )
    on: Annotated[str | None, AfterValidator(ray_address)] = Field(
        None,
        description="Let workers of a Ray cluster answer: ray (this machine, or RAY_ADDRESS), ray://auto or "
        "ray://HOST:PORT.",
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        le=1024,
        description="GPUs of each worker under --on, a fraction shares one; none: one, where the cluster has "
        "any.",
    )
    fresh: bool = Field(False, description="Forget what is recorded of these runs and start over.")
    wait: bool = Field(False, description="Wait for a process that writes the same run, instead of ending.")
    tracker: TrackerName | None = Field(
        None, description="Also log to trackio, wandb or tensorboard, where it is installed."
    )

    _lists = field_validator("adapter", "wire", "join", mode="before")(some)
    _options = field_validator("options", mode="before")(lists_of_texts)
    _shard = field_validator("shard", mode="before")(part_of_a_run)
    _only = field_validator("only", mode="before")(names_of_runs)
    _texts = field_validator("task_options", "train_options", mode="before")(texts)

    _thinking = field_validator("thinking", mode="before")(parse_thinking)
    _modes = field_validator("mode", mode="before")(split_modes)
    _names = field_validator("task", "control", mode="before")(names_or_files)

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        return some([value] if isinstance(value, int) else value)

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("seeds") and "seed" in given:
            what = f"seed {given['seed']} and seeds {given['seeds']} are both given."
            raise UserError(what, "Leave one of them out.")
        return given

    @model_validator(mode="before")
    @classmethod
    def _quick(cls, given: Any) -> Any:
        """Fills in what `quick` means; a single document cannot be deranged."""
        if not isinstance(given, dict):
            return given
        if given.get("quick") is True:
            return {"control": ["matched"], "limit": QUICK_LIMIT, **given}
        return {"control": ["matched"], **given} if str(given.get("limit")) == "1" else given

    @model_validator(mode="before")
    @classmethod
    def _bytes(cls, given: Any) -> Any:
        """Messages that are kept cross as bytes, exactly where no form is named."""
        if isinstance(given, dict) and given.get("keep_messages") is True and not given.get("wire"):
            return {**given, "wire": ["native"]}
        return given

    @model_validator(mode="after")
    def _training(self) -> Recipe:
        if self.train_options and not self.train:
            raise UserError("--train-option has no effect without --train.", "Add --train.")
        if self.train and self.adapter:
            raise UserError("--train and --adapter are both given.", "Leave one of them out.")
        if self.gpus_per_worker is not None and self.on is None:
            raise UserError("--gpus-per-worker has no effect without --on.", "Add --on ray.")
        return self

    @property
    def every_seed(self) -> list[int]:
        """The seeds, at least one."""
        return list(dict.fromkeys(self.seeds)) or [self.seed]

    @property
    def methods(self) -> list[str]:
        """The names of the methods, each once."""
        return list(dict.fromkeys(read_entry(entry)[0] for entry in self.mode))

    def check_names(self) -> None:
        """Checks every name before anything heavy is imported or loaded. Raises UserError."""
        check_known(self.pair, self.methods, self.task)
        if self.join and len(split_sharers(self.pair)[1]) < 2:
            raise UserError("--join has no effect with one sharer.", "Leave it out, or name several.")
        check_tracker(self.tracker)
        for control in self.control:
            check_control(control)
        if not (self.mode and self.task and self.control):
            raise UserError(
                "nothing to run.", f"Give --mode ({', '.join(method_names())}), --task and --control."
            )

"""From a recipe to cells that can be timed: models, adapters and documents, all looked up before anything is measured.

>>> bench = plan(BenchRecipe(mode=["receiver"], prompt_tokens=[64], answer_tokens=[1]))
>>> [(b.title, [c.label for c in b.cells]) for b in bench.blocks]
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lcfbench.adapters.base import adapter_class
from lcfbench.adapters.config import read_config
from lcfbench.adapters.files import load as load_adapter
from lcfbench.adapters.select import pick_adapter, serves, shipped
from lcfbench.errors import UserError
from lcfbench.latency.counting import Watched
from lcfbench.latency.documents import of_length
from lcfbench.latency.machine import Limits
from lcfbench.latency.recipe import BUDGETS, BenchRecipe
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import check_options, create, method_class, sides
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import describe, task_names

DIFFERENT, SHARED = "splitfacts", "openbookqa"  # where an adapter's own tasks are none of ours


@dataclass
class Cell:
    """One method at one point of the grid. times: milliseconds of each repeat, by phase, `ttft` and `ttea`. problem: why it was left out."""

    mode: str
    budget: int | None
    adapter: Path | None
    method: Method
    document: Document
    watched: Watched | None = None
    times: list[dict[str, float]] = field(default_factory=list)
    problem: str = ""

    @property
    def label(self) -> str:
        return self.mode if self.budget is None else f"{self.mode} {self.budget}"


@dataclass
class Block:
    """Cells that are timed in turn: same task, prompt and answer."""

    task: Task
    prompt_tokens: int
    answer_tokens: int
    cells: list[Cell]

    @property
    def title(self) -> str:
        return f"{self.task.name} · {self.prompt_tokens} prompt tokens · {self.answer_tokens} answer token{'s'[: self.answer_tokens > 1]}"


@dataclass
class Bench:
    """Everything that was planned, and what came out of it. left_out: methods that cannot serve a task, and why."""

    recipe: BenchRecipe
    lms: dict[str, CausalLM]
    blocks: list[Block] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    limits: Limits | None = None

    @property
    def device(self) -> torch.device:
        return next(iter(self.lms.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.lms.values())).dtype

    def leave_out(self, mode: str, task: str, error: UserError) -> None:
        said = {"mode": mode, "task": task, "why": str(error)}
        if said not in self.left_out:
            self.left_out.append(said)


def plan(recipe: BenchRecipe) -> Bench:
    """Loads models and adapters and builds every document. Raises UserError; a method that cannot serve a task is left out and said."""
    recipe.check_names()
    kinds = {mode: method_class(mode) for mode in recipe.mode}
    check_settings(recipe, kinds)
    first, second = split_pair(recipe.pair)
    bench = Bench(recipe, {})
    names = {mode: tasks_of(recipe, mode, kind, (first, second)) for mode, kind in kinds.items()}
    every = list(dict.fromkeys(t for tasks in names.values() for t in tasks)) or recipe.task or [DIFFERENT]
    tasks = {name: load_task(name, offline=recipe.offline) for name in every}
    for name in dict.fromkeys(name for kind in kinds.values() for name in sides(kind, first, second)):
        if name not in bench.lms:
            found = find_model(name, offline=recipe.offline)
            bench.lms[name] = CausalLM.load(
                found, dtype=recipe.dtype, device=recipe.device, attention=recipe.attention
            )
    for task in tasks.values():
        here = {mode: kind for mode, kind in kinds.items() if task.name in (names[mode] or every)}
        _blocks(bench, task, here, (first, second))
    if not any(block.cells for block in bench.blocks):
        raise UserError(f"nothing to measure: {'; '.join(each['why'] for each in bench.left_out)}")
    return bench


def check_settings(recipe: BenchRecipe, kinds: dict[str, type[Method]]) -> None:
    """Raises UserError for options no method here has, and for budgets where none has one."""
    if recipe.budget and not any(f.name == "budget" for kind in kinds.values() for f in option_fields(kind)):
        raise UserError(
            f"--budget: none of {', '.join(kinds)} has one.",
            "Leave it out, or add a method that writes a note (t2t).",
        )
    check_options(kinds, recipe.options)


def tasks_of(recipe: BenchRecipe, mode: str, kind: type[Method], pair: tuple[str, str]) -> list[str]:
    """The tasks a method runs on: those asked for, else the first one its adapter was trained on; [] where it has no adapter: all there are."""
    if recipe.task or not kind.adapter_kinds:
        return recipe.task
    pair = sides(kind, *pair)
    for folder in recipe.adapter or shipped():
        config = read_config(folder)
        if (
            config.kind not in kind.adapter_kinds
            or not serves(config, mode)
            or ((config.receiver, config.sharer) != pair and not recipe.adapter)
        ):
            continue
        different = adapter_class(config.kind).contexts == ("different",) or config.training.get(
            "contexts"
        ) == ["different"]
        candidates = [str(t).partition("*")[0] for t in config.training.get("tasks", [])] + [
            DIFFERENT if different else SHARED
        ]
        for name in [c for c in candidates if c in task_names()]:
            try:
                pick_adapter(
                    recipe.adapter,
                    kind.adapter_kinds,
                    pair,
                    shared=describe(name)["context"] == "shared",
                    mode=mode,
                    task=name,
                )
            except UserError:  # an adapter for the other kind of context
                continue
            return [name]
    return [DIFFERENT]  # where the search for an adapter will say what is missing


def _methods(
    bench: Bench, mode: str, kind: type[Method], task: Task, pair: tuple[str, str]
) -> list[tuple[int | None, Path | None, Method]]:
    """A method ready for a task, once for each budget where it has one. Raises UserError where the pair, adapter or task do not suit it."""
    recipe, pair = bench.recipe, sides(kind, *pair)
    receiver, sharer = (bench.lms[name] for name in pair)
    fields = {f.name for f in option_fields(kind)}
    options = {k: v for k, v in recipe.options.items() if k in fields}
    folder = pick_adapter(
        recipe.adapter, kind.adapter_kinds, pair, shared=task.shared, mode=mode, task=task.name
    )
    adapter = load_adapter(folder, receiver.device, receiver.dtype) if folder is not None else None
    if adapter is not None:
        adapter.config.check_fits(receiver.geometry, sharer.geometry, str(folder))
    out: list[tuple[int | None, Path | None, Method]] = []
    for budget in (recipe.budget or BUDGETS) if "budget" in fields else [None]:
        method = create(
            mode, receiver, sharer, adapter, options | ({} if budget is None else {"budget": str(budget)})
        )
        if method.calibration:
            seen = task.documents(
                limit=method.calibration, split="validation", receiver_chat=receiver.has_chat
            )
            with torch.inference_mode():
                method.calibrate(seen)
        out.append((budget, folder, method))
    return out


def _blocks(bench: Bench, task: Task, kinds: dict[str, type[Method]], pair: tuple[str, str]) -> None:
    """Adds the task's part of the grid. A method that cannot serve it is left out of it."""
    ready: list[tuple[str, int | None, Path | None, Method]] = []
    for mode, kind in kinds.items():
        try:
            ready += [(mode, *each) for each in _methods(bench, mode, kind, task, pair)]
        except UserError as error:
            bench.leave_out(mode, task.name, error)
    reader = bench.lms.get(pair[0]) or bench.lms[pair[1]]
    for tokens in bench.recipe.prompt_tokens if ready else []:
        document = of_length(task, tokens, reader)
        for answer in bench.recipe.answer_tokens:
            block = Block(task, tokens, answer, [])
            bench.blocks.append(block)
            for mode, budget, folder, method in ready:
                asked = replace(document, max_new_tokens=answer)
                try:
                    method.check(asked)
                except UserError as error:
                    bench.leave_out(mode, task.name, error)
                    continue
                block.cells.append(Cell(mode, budget, folder, method, asked))


def shapes_of(bench: Bench) -> list[tuple[int, int, int]]:
    """(tokens, in, out) of each model's feed-forward layers at the longest prompt: what the matmul rate is also measured on."""
    longest, out = max(bench.recipe.prompt_tokens), []
    for lm in bench.lms.values():
        if lm.intermediate_size:
            out.append((longest, lm.hidden_size, lm.intermediate_size))
    return out

"""Opens the models and adapters of a bench recipe and makes its documents, before anything is timed.

>>> bench = plan(BenchRecipe(mode=["receiver"], prompt_tokens=[64], answer_tokens=[1]))
>>> [cell.mode for block in bench.blocks for cell in block.cells]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lcfbench.adapters.config import read_config
from lcfbench.adapters.select import check_used, find_adapter, pick_adapter, serves, shipped
from lcfbench.errors import UserError
from lcfbench.latency.documents import of_length
from lcfbench.latency.recipe import BUDGETS, BenchRecipe
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import check_options, create, method_class, sides
from lcfbench.methods.load_pair import CONDITIONS, Pair, load_adapter, load_pair, roles_of
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import describe, task_names

DIFFERENT, SHARED = "splitfacts", "openbookqa"  # for an adapter that was trained on none of our tasks


@dataclass
class Cell:
    """One method at one point of the grid.

    times: milliseconds of each repeat, by phase, `ttft` and `ttea`. tokens: read and written.
    """

    mode: str
    budget: int | None
    adapter: Path | None
    method: Method
    document: Document
    times: list[dict[str, float]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass
class Block:
    """Cells that are timed in turn: same task, prompt and answer."""

    task: Task
    prompt_tokens: int
    answer_tokens: int
    cells: list[Cell]


@dataclass
class Bench:
    """A plan and its results. left_out: methods that cannot serve a task, and why."""

    recipe: BenchRecipe
    pair: Pair
    blocks: list[Block] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.pair.receiver.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pair.receiver.dtype

    def leave_out(self, mode: str, task: str, error: UserError) -> None:
        """Notes, once, that a method cannot serve a task."""
        entry = {"mode": mode, "task": task, "why": str(error)}
        if entry not in self.left_out:
            self.left_out.append(entry)


def plan(recipe: BenchRecipe) -> Bench:
    """Opens models and adapters and makes every document.

    A method that cannot serve a task is left out. Raises UserError where nothing is left, and for
    names, options and models that are not there.
    """
    recipe.check_names()
    kinds = {mode: method_class(mode) for mode in recipe.mode}
    check_options(kinds, recipe.options)
    given = [find_adapter(place) for place in recipe.adapter]
    if not any(kind.adapter_kinds for kind in kinds.values()):
        check_used(given, [], recipe.mode)
    if recipe.budget and not any(_has_budget(kind) for kind in kinds.values()):
        raise UserError(
            f"--budget: none of {', '.join(kinds)} has one.",
            "Leave it out, or add a method that writes a note (t2t).",
        )
    names = {mode: tasks_of(recipe, mode) for mode in kinds}
    every = list(dict.fromkeys(t for tasks in names.values() for t in tasks)) or recipe.task or [DIFFERENT]
    tasks = {name: load_task(name, offline=recipe.offline) for name in every}
    conditions = recipe.model_dump(include=CONDITIONS)
    bench = Bench(recipe, load_pair(recipe.pair, roles=roles_of(kinds), **conditions))
    for task in tasks.values():
        _add_blocks(bench, task, [mode for mode in kinds if task.name in (names[mode] or every)])
    if not any(block.cells for block in bench.blocks):
        raise UserError(f"nothing to measure: {'; '.join(each['why'] for each in bench.left_out)}")
    return bench


def tasks_of(recipe: BenchRecipe, mode: str) -> list[str]:
    """The tasks a method runs on: those of the recipe, else the first one its adapter was trained on.

    [] for a method without adapter, which runs on all tasks there are.
    """
    kind = method_class(mode)
    if recipe.task or not kind.adapter_kinds:
        return recipe.task
    names = sides(kind, *recipe.names)
    given = [find_adapter(place) for place in recipe.adapter]
    for folder in given or shipped():
        config = read_config(folder)
        ours = recipe.adapter or (config.receiver, config.sharer) == names
        if not ours or config.kind not in kind.adapter_kinds or not serves(config, mode):
            continue
        for name in (t for t in (*config.tasks, DIFFERENT, SHARED) if t in task_names()):
            try:
                shared = describe(name)["context"] == "shared"
                pick_adapter(given, kind.adapter_kinds, names, shared=shared, mode=mode, task=name)
            except UserError:  # an adapter for the other kind of context
                continue
            return [name]
    return [DIFFERENT]  # where the search for an adapter will say that none is there


def _methods(bench: Bench, mode: str, task: Task) -> Iterator[tuple[int | None, Path | None, Method]]:
    """Yields a method ready for a task, once for each budget where it has one. Raises UserError."""
    recipe, kind = bench.recipe, method_class(mode)
    names = sides(kind, *bench.pair.names)
    given = [find_adapter(place) for place in recipe.adapter]
    folder = pick_adapter(given, kind.adapter_kinds, names, shared=task.shared, mode=mode, task=task.name)
    adapter = load_adapter(folder, bench.pair, mode) if folder is not None else None
    known = {f.name for f in option_fields(kind)}
    options = {k: v for k, v in recipe.options.items() if k in known}
    models = bench.pair.models_for(kind.roles)
    for budget in (recipe.budget or BUDGETS) if _has_budget(kind) else [None]:
        own = {} if budget is None else {"budget": str(budget)}
        method = create(mode, *models, adapter, options | own)
        if method.calibration:
            chat = method.receiver.has_chat
            documents = task.documents(limit=method.calibration, split="validation", receiver_chat=chat)
            with torch.inference_mode():
                method.calibrate(documents)
        yield budget, folder, method


def _add_blocks(bench: Bench, task: Task, modes: list[str]) -> None:
    """Adds a task's part of the grid to the bench; leaves out the methods that cannot serve it."""
    ready: list[tuple[str, int | None, Path | None, Method]] = []
    for mode in modes:
        try:
            ready += [(mode, *each) for each in _methods(bench, mode, task)]
        except UserError as error:
            bench.leave_out(mode, task.name, error)
    for tokens in bench.recipe.prompt_tokens if ready else []:
        document = of_length(task, tokens, bench.pair.receiver)
        for answer in bench.recipe.answer_tokens:
            block = Block(task, tokens, answer, [])
            bench.blocks.append(block)
            for mode, budget, folder, method in ready:
                own = replace(document, max_new_tokens=answer)
                try:
                    method.check(own)
                except UserError as error:
                    bench.leave_out(mode, task.name, error)
                    continue
                block.cells.append(Cell(mode, budget, folder, method, own))


def _has_budget(kind: type[Method]) -> bool:
    return any(f.name == "budget" for f in option_fields(kind))

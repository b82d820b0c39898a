"""Opens the models and adapters of a bench recipe and makes its documents, before anything is timed.

>>> bench = plan(BenchRecipe(mode=["receiver"], prompt_tokens=[64], answer_tokens=[1]))
>>> [cell.variant.mode for block in bench.blocks for cell in block.cells]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.config import read_config
from lcfbench.adapters.select import check_used, find_adapter, pick_adapters, serves, shipped
from lcfbench.errors import UserError
from lcfbench.evaluation.plan import options_of
from lcfbench.evaluation.variants import Variant, labelled
from lcfbench.latency.documents import of_length
from lcfbench.latency.recipe import BUDGETS, BenchRecipe
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import create, method_class, sides
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

    variant: Variant
    budget: int | None
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
    kinds = {mode: method_class(mode) for mode in recipe.methods}
    asked = options_of(recipe.mode, recipe.options)
    given = [find_adapter(place) for place in recipe.adapter]
    if not any(kind.adapter_kinds for kind in kinds.values()):
        check_used(given, [], recipe.methods)
    if recipe.budget and not any(_has_budget(kind) for kind in kinds.values()):
        raise UserError(
            f"--budget: none of {', '.join(kinds)} has one.",
            "Leave it out, or add a method that writes a note (t2t).",
        )
    names = [tasks_of(recipe, variant.mode, own or given) for variant, own in asked]
    every = list(dict.fromkeys(t for tasks in names for t in tasks)) or recipe.task or [DIFFERENT]
    tasks = {name: load_task(name, offline=recipe.offline) for name in every}
    conditions = recipe.model_dump(include=CONDITIONS)
    bench = Bench(recipe, load_pair(recipe.pair, roles=roles_of(kinds), **conditions))
    for task in tasks.values():
        here = [
            (variant, own or given)
            for (variant, own), its in zip(asked, names, strict=True)
            if task.name in (its or every)
        ]
        _add_blocks(bench, task, here)
    if not any(block.cells for block in bench.blocks):
        raise UserError(f"nothing to measure: {'; '.join(each['why'] for each in bench.left_out)}")
    return bench


def tasks_of(recipe: BenchRecipe, mode: str, given: Sequence[Path]) -> list[str]:
    """The tasks a method runs on: those of the recipe, else the first one its adapter was trained on.

    given: its adapters. [] for a method without adapter, which runs on all tasks there are.
    """
    kind = method_class(mode)
    if recipe.task or not kind.adapter_kinds:
        return recipe.task
    names = sides(kind, *recipe.names)
    for folder in given or shipped():
        config = read_config(folder)
        ours = given or (config.receiver, config.sharer) == names
        if not ours or config.kind not in kind.adapter_kinds or not serves(config, mode):
            continue
        for name in (t for t in (*config.tasks, DIFFERENT, SHARED) if t in task_names()):
            try:
                shared = describe(name)["context"] == "shared"
                asked: dict[str, Any] = {"shared": shared, "mode": mode, "task": name, "offline": True}
                pick_adapters(given, kind.adapter_kinds, names, **asked)
            except UserError:  # an adapter for the other kind of context
                continue
            return [name]
    return [DIFFERENT]  # where the search for an adapter will say that none is there


def _folders(bench: Bench, mode: str, given: Sequence[Path], task: Task) -> list[Path | None]:
    """The adapters of a method on a task; one None for a method without. Raises UserError."""
    kind = method_class(mode)
    names = sides(kind, *bench.pair.names)
    asked: dict[str, Any] = {
        "shared": task.shared,
        "mode": mode,
        "task": task.name,
        "offline": bench.recipe.offline,
    }
    found = pick_adapters(given, kind.adapter_kinds, names, **asked)
    return [*found] or [None]


def _methods(bench: Bench, variant: Variant, task: Task) -> Iterator[tuple[int | None, Method]]:
    """Yields a method ready for a task, once for each budget where it has one. Raises UserError."""
    mode, kind = variant.mode, method_class(variant.mode)
    adapter = load_adapter(variant.adapter, bench.pair, mode) if variant.adapter is not None else None
    models, options = bench.pair.models_for(kind.roles), dict(variant.options)
    budgets = [int(options["budget"])] if "budget" in options else bench.recipe.budget or BUDGETS
    for budget in budgets if _has_budget(kind) else [None]:
        own = {} if budget is None else {"budget": str(budget)}
        method = create(mode, *models, adapter, options | own)
        if method.calibration:
            chat = method.receiver.has_chat
            documents = task.documents(limit=method.calibration, split="validation", receiver_chat=chat)
            with torch.inference_mode():
                method.calibrate(documents)
        yield budget, method


def _add_blocks(bench: Bench, task: Task, asked: Sequence[tuple[Variant, Sequence[Path]]]) -> None:
    """Adds a task's part of the grid to the bench; leaves out the methods that cannot serve it."""
    variants: list[Variant] = []
    for variant, given in asked:
        try:
            variants += [replace(variant, adapter=f) for f in _folders(bench, variant.mode, given, task)]
        except UserError as error:
            bench.leave_out(variant.mode, task.name, error)
    ready: list[tuple[Variant, int | None, Method]] = []
    for variant in labelled(variants):
        try:
            ready += [(variant, *each) for each in _methods(bench, variant, task)]
        except UserError as error:
            bench.leave_out(variant.label, task.name, error)
    for tokens in bench.recipe.prompt_tokens if ready else []:
        document = of_length(task, tokens, bench.pair.receiver)
        for answer in bench.recipe.answer_tokens:
            block = Block(task, tokens, answer, [])
            bench.blocks.append(block)
            for variant, budget, method in ready:
                own = replace(document, max_new_tokens=answer)
                try:
                    method.check(own)
                except UserError as error:
                    bench.leave_out(variant.label, task.name, error)
                    continue
                block.cells.append(Cell(variant, budget, method, own))


def _has_budget(kind: type[Method]) -> bool:
    return any(f.name == "budget" for f in option_fields(kind))

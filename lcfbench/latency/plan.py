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

from lcfbench.adapters.base import Adapter, adapter_class, build
from lcfbench.adapters.config import pair_config, read_config
from lcfbench.adapters.options import adapter_options
from lcfbench.adapters.select import check_used, find_adapter, kinds_for, pick_adapters, serves, shipped
from lcfbench.adapters.untrained import untrained
from lcfbench.config import WireForm, convert
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.plan import options_of
from lcfbench.evaluation.variants import Variant, labelled, read_entry
from lcfbench.latency.documents import Texts, Words, of_length
from lcfbench.latency.recipe import BUDGETS, BenchRecipe, is_spec
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import create, method_class, sides
from lcfbench.methods.load_pair import CONDITIONS, Pair, load_adapter, load_pair, roles_of
from lcfbench.models.layout import geometry_named
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import load_task
from lcfbench.tasks.yaml_files import describe, task_names

DIFFERENT, SHARED = "splitfacts", "openbookqa"  # for an adapter that was trained on none of our tasks


@dataclass
class Took:
    """The times of one repeat, in milliseconds.

    ms: by phase, `ttft`, `ttea`, and `tpot` where there are two tokens or more. gaps: between tokens.
    beside: of the fixed matmul before and after it. busy: seconds of processor time a second.
    """

    ms: dict[str, float]
    gaps: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    busy: float = 1.0


@dataclass
class Cell:
    """One method at one point of the grid. times: of each repeat. tokens: read and written."""

    variant: Variant
    budget: int | None
    method: Method
    document: Document
    times: list[Took] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass
class Block:
    """Cells that are timed in turn: same task, prompt and answer."""

    task: Texts
    prompt_tokens: int
    answer_tokens: int
    cells: list[Cell]


@dataclass
class Bench:
    """A plan and its results.

    left_out: methods that cannot serve a task, and why. probes: times of the fixed matmul, in milliseconds.
    """

    recipe: BenchRecipe
    pair: Pair
    blocks: list[Block] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

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
    given = [place if is_spec(place) else find_adapter(place) for place in recipe.adapter]
    for place in filter(is_spec, given):
        Shape.read(place, shared=True).check(read_entry(str(place))[0], recipe)
    if not any(kind.adapter_kinds for kind in kinds.values()):
        check_used(given, [], recipe.methods)
    if recipe.budget and not any(_has_budget(kind) for kind in kinds.values()):
        raise UserError(
            f"--budget: none of {', '.join(kinds)} has one.",
            "Leave it out, or add a method that writes a note (t2t).",
        )
    names = [tasks_of(recipe, variant.mode, own or given) for variant, own in asked]
    words = {each.name: each for each in (Words(shared=True), Words(shared=False))}
    default = [*words][:1] if recipe.random_weights else [DIFFERENT]
    every = list(dict.fromkeys(t for tasks in names for t in tasks)) or recipe.task or default
    tasks: dict[str, Texts] = {}
    for name in every:
        tasks[name] = words[name] if name in words else load_task(name, offline=recipe.offline)
    conditions = recipe.model_dump(include={*CONDITIONS, "random_weights"})
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
    if recipe.task or not kind.adapter_kinds or (kind.adapter_optional and not _used(given, mode)):
        return recipe.task
    names = sides(kind, *recipe.names)
    shapes = [Shape.read(place, shared=True) for place in given if _is_for(place, mode)]
    if recipe.random_weights or shapes:
        kinds_asked = [shape.kind for shape in shapes] or list(kind.adapter_kinds)
        contexts = {context for each in kinds_asked for context in adapter_class(each).contexts}
        return [Words(shared="shared" in contexts).name]
    folders = [place for place in given if not is_spec(place)]
    for folder in folders or shipped():
        config = read_config(folder)
        ours = folders or (config.receiver, config.sharer) == names
        if not ours or config.kind not in kind.adapter_kinds or not serves(config, mode):
            continue
        for name in (t for t in (*config.tasks, DIFFERENT, SHARED) if t in task_names()):
            try:
                shared = describe(name)["context"] == "shared"
                asked: dict[str, Any] = {"shared": shared, "mode": mode, "task": name, "offline": True}
                pick_adapters(folders, kind.adapter_kinds, names, **asked)
            except UserError:  # an adapter for the other kind of context
                continue
            return [name]
    return [DIFFERENT]  # where the search for an adapter will say that none is there


@dataclass(frozen=True)
class Shape:
    """The shape of an untrained adapter. layers: it has only the last so many; None for all."""

    kind: str
    options: dict[str, Any]
    alignment: dict[str, Any]
    layers: int | None = None

    @classmethod
    def read(cls, spec: Path, shared: bool) -> Shape:
        """Reads `METHOD:key=value,…`: options of the adapter, `layers` and `kind`. Raises UserError."""
        mode, given = read_entry(str(spec))
        kinds = method_class(mode).adapter_kinds
        if not kinds:
            raise UserError(f"--adapter {spec}: {mode} runs no adapter.", f"Use --mode {mode}.")
        own = {key: texts[-1] for key, texts in given.items()}
        kind = own.pop("kind", kinds_for(kinds, shared)[0])
        if kind not in kinds:
            raise unknown(f"kind of adapter for {mode}", kind, kinds, "lcfbench ls adapters")
        layers = convert("layers", own.pop("layers", "none"), int | None, None, f"--adapter {spec}")
        return cls(kind, *adapter_options(kind, own, small_scale=False), layers)

    def check(self, mode: str, recipe: BenchRecipe) -> None:
        """Raises UserError for a shape that the pair of a recipe cannot have, before a model is loaded."""
        kind = method_class(mode)
        if kind.configure.__func__ is not Method.configure.__func__:  # type: ignore[attr-defined]
            return  # only loaded models tell
        known = {"offline": recipe.offline, "trust_remote_code": recipe.trust_remote_code}
        ends = [(name, geometry_named(name, **known)) for name in sides(kind, *recipe.names)]
        with torch.device("meta"):
            build(pair_config(self.kind, *ends, layers=self.layers, options=self.options, **self.alignment))

    def made(self, mode: str, pair: Pair) -> Adapter:
        """Makes the adapter for a pair, on the receiver's device and in its dtype. Raises UserError."""
        kind = method_class(mode)
        receiver, sharer = pair.models_for(kind.roles)
        ends = ((receiver.name, receiver.geometry), (sharer.name, sharer.geometry))
        config = pair_config(self.kind, *ends, layers=self.layers, options=self.options, **self.alignment)
        return untrained(kind.configure(config, receiver, sharer), receiver.device, receiver.dtype)


def _is_for(place: Path, mode: str) -> bool:
    """Returns whether a given adapter is the shape of an untrained one for a method."""
    return is_spec(place) and read_entry(str(place))[0] == mode


def _used(given: Sequence[Path], mode: str) -> bool:
    """Returns whether any of the given adapters is for a method."""
    kinds = method_class(mode).adapter_kinds
    folders = [place for place in given if not is_spec(place)]
    return any(_is_for(place, mode) for place in given) or any(read_config(f).kind in kinds for f in folders)


def _adapters(bench: Bench, mode: str, given: Sequence[Path], task: Texts) -> list[Path | None]:
    """The adapters of a method on a task; one None for a method without. Raises UserError.

    With random weights, one as the method's kind of adapter begins where none is given.
    """
    kind = method_class(mode)
    if not kind.adapter_kinds or (kind.adapter_optional and not _used(given, mode)):
        return [None]
    shapes: list[Path | None] = [place for place in given if _is_for(place, mode)]
    given = [place for place in given if not is_spec(place)]
    if not given and not shapes and bench.recipe.random_weights:
        return [Path(mode)]
    if shapes and not given:
        return shapes
    names = sides(kind, *bench.pair.names)
    asked: dict[str, Any] = {
        "shared": task.shared,
        "mode": mode,
        "task": task.name,
        "offline": bench.recipe.offline,
    }
    return [*shapes, *pick_adapters(given, kind.adapter_kinds, names, **asked)]


def _methods(bench: Bench, variant: Variant, task: Texts) -> Iterator[tuple[int | None, Method]]:
    """Yields a method ready for a task, once for each budget where it has one. Raises UserError."""
    mode, kind = variant.mode, method_class(variant.mode)
    adapter = None
    if variant.adapter is not None and is_spec(variant.adapter):
        adapter = Shape.read(variant.adapter, task.shared).made(mode, bench.pair)
    elif variant.adapter is not None:
        adapter = load_adapter(variant.adapter, bench.pair, mode)
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


def _add_blocks(bench: Bench, task: Texts, asked: Sequence[tuple[Variant, Sequence[Path]]]) -> None:
    """Adds a task's part of the grid to the bench; leaves out the methods that cannot serve it."""
    variants: list[Variant] = []
    for variant, given in asked:
        try:
            variants += [replace(variant, adapter=f) for f in _adapters(bench, variant.mode, given, task)]
        except UserError as error:
            bench.leave_out(variant.mode, task.name, error)
    ready: list[tuple[Variant, int | None, Method]] = []
    for variant in map(_short, labelled(variants)):
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
                sent = replace(variant, wire=_form(bench.recipe, type(method)))
                block.cells.append(Cell(sent, budget, method, own))


def _form(recipe: BenchRecipe, kind: type[Method]) -> WireForm | None:
    """The form in which a method's messages cross: text has one, and a method that sends nothing none."""
    if recipe.wire is None or not kind.sends:
        return None
    return "native" if kind.sends_text else recipe.wire


def _short(variant: Variant) -> Variant:
    """A variant of an untrained adapter, labelled by its shape alone."""
    if variant.adapter is None or not is_spec(variant.adapter):
        return variant
    told = f"{variant.mode} {variant.adapter}"
    return replace(variant, label=variant.label.replace(told, str(variant.adapter), 1))


def _has_budget(kind: type[Method]) -> bool:
    # one that is not set counts by another option of the method
    return any(f.name == "budget" and f.default is not None for f in option_fields(kind))

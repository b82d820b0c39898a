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
from lcfbench.adapters.select import check_used, find_adapters, kinds_for, pick_adapters, serves, shipped
from lcfbench.adapters.untrained import untrained
from lcfbench.config import WireForm, convert
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.plan import Adapters, options_of, pairs_of, picked, told_whole
from lcfbench.evaluation.variants import Variant, labelled, read_entry
from lcfbench.latency.documents import Texts, Words, of_length
from lcfbench.latency.recipe import BUDGETS, BenchRecipe, is_spec
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import create, method_class, sides
from lcfbench.methods.load_pair import CONDITIONS, Pair, load_adapter, load_pair, roles_of
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.layout import geometry_named
from lcfbench.sources.models import split_sharers
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
    """One method at one point of the grid.

    times: of each repeat. tokens: read and written. sharers: how many send; None where no message is sent.
    """

    variant: Variant
    budget: int | None
    method: Method
    document: Document
    times: list[Took] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    sharers: int | None = None


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
    count = len(split_sharers(recipe.pair)[1])
    asked = options_of(recipe.mode, recipe.options, count)
    given = [(place,) if is_spec(place) else find_adapters(place, count) for place in recipe.adapter]
    for place in (row[0] for row in given if is_spec(row[0])):
        Shape.read(place, shared=True).check(read_entry(str(place))[0], recipe)
    if not any(kind.adapter_kinds for kind in kinds.values()):
        check_used([*map(told_whole, given)], [], recipe.methods)
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
    bench = Bench(recipe, load_pair(recipe.pair, roles=roles_of(kinds), several=True, **conditions))
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


def tasks_of(recipe: BenchRecipe, mode: str, given: Sequence[Adapters]) -> list[str]:
    """The tasks a method runs on: those of the recipe, else the first one its adapter was trained on.

    given: its adapters. [] for a method without adapter, which runs on all tasks there are.
    """
    kind = method_class(mode)
    if recipe.task or not kind.adapter_kinds or (kind.adapter_optional and not _used(given, mode)):
        return recipe.task
    names, firsts = sides(kind, *recipe.names), [row[0] for row in given]
    shapes = [Shape.read(place, shared=True) for place in firsts if _is_for(place, mode)]
    if recipe.random_weights or shapes:
        kinds_asked = [shape.kind for shape in shapes] or list(kind.adapter_kinds)
        contexts = {context for each in kinds_asked for context in adapter_class(each).contexts}
        return [Words(shared="shared" in contexts).name]
    folders = [place for place in firsts if not is_spec(place)]
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
        receiver, sharers = split_sharers(recipe.pair)
        for sharer in dict.fromkeys(sharers):
            ends = [(name, geometry_named(name, **known)) for name in sides(kind, receiver, sharer)]
            settings: dict[str, Any] = {"layers": self.layers, "options": self.options, **self.alignment}
            with torch.device("meta"):
                build(pair_config(self.kind, *ends, **settings))

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


def _used(given: Sequence[Adapters], mode: str) -> bool:
    """Returns whether any of the given adapters is for a method."""
    kinds, places = method_class(mode).adapter_kinds, [row[0] for row in given]
    folders = [place for place in places if not is_spec(place)]
    return any(_is_for(place, mode) for place in places) or any(read_config(f).kind in kinds for f in folders)


def _adapters(bench: Bench, mode: str, given: Sequence[Adapters], task: Texts) -> list[Adapters]:
    """The adapters of a method on a task: one for all sharers, or one for each; one empty without any.

    With random weights, one as the method's kind of adapter begins where none is given. Raises UserError.
    """
    kind = method_class(mode)
    if not kind.adapter_kinds or (kind.adapter_optional and not _used(given, mode)):
        return [()]
    shapes = [row for row in given if _is_for(row[0], mode)]
    given = [row for row in given if not is_spec(row[0])]
    if not given and not shapes and bench.recipe.random_weights:
        return [(Path(mode),)]
    if shapes and not given:
        return shapes
    pairs = pairs_of(bench.recipe.pair, kind)
    if given:
        return [*shapes, *picked(given, pairs, mode, shared=task.shared, task=task.name)]
    asked: dict[str, Any] = {"shared": task.shared, "mode": mode, "task": task.name}
    asked["offline"] = bench.recipe.offline
    return [tuple(pick_adapters([], kind.adapter_kinds, pair, **asked)[0] for pair in pairs)]


def _made(bench: Bench, variant: Variant, task: Texts, count: int) -> list[Adapter | None]:
    """The adapter of each of the first sharers of a variant, ready; None for a method without."""
    found, known = list[Adapter | None](), dict[tuple[Path, CausalLM], Adapter]()
    for k in range(count):
        if not variant.adapters:
            found.append(None)
            continue
        place, pair = variant.adapters[k if variant.more else 0], bench.pair.alone(k)
        if (key := (place, pair.sharer)) not in known:
            if is_spec(place):
                known[key] = Shape.read(place, task.shared).made(variant.mode, pair)
            else:
                known[key] = load_adapter(place, pair, variant.mode)
        found.append(known[key])
    return found


def _counts(bench: Bench, kind: type[Method]) -> list[int | None]:
    """How many sharers send, in turn; None for a method that makes no message of a sharer's."""
    if not kind.sends and "sharer" not in kind.roles:
        return [None]
    return [*bench.recipe.counts]


def _methods(
    bench: Bench, variant: Variant, task: Texts, count: int | None
) -> Iterator[tuple[int | None, Method]]:
    """Yields a method ready for a task, once for each budget where it has one. Raises UserError.

    count: the sharers that send, see `_counts`.
    """
    mode, kind, several = variant.mode, method_class(variant.mode), count or 1
    if several > 1 and not kind.ways(task.shared):
        raise UserError(f"{mode} takes the message of one sharer.", "Add --sharers 1.")
    adapters, options = _made(bench, variant, task, several), dict(variant.options)
    rivals = bench.pair.rivals_for(kind.roles)
    rivals = [rivals[k if "sharer" in kind.roles else 0] for k in range(several)]
    budgets = [int(options["budget"])] if "budget" in options else bench.recipe.budget or BUDGETS
    for budget in budgets if _has_budget(kind) else [None]:
        own = {} if budget is None else {"budget": str(budget)}
        both = zip(rivals, adapters, strict=True)
        each = [create(mode, *models, adapter, options | own) for models, adapter in both]
        method = each[0] if several == 1 else SeveralSharers(each, kind.ways(task.shared)[0])
        if method.calibration:
            chat = method.receiver.has_chat
            documents = task.documents(limit=method.calibration, split="validation", receiver_chat=chat)
            with torch.inference_mode():
                method.calibrate(documents)
        yield budget, method


def _add_blocks(bench: Bench, task: Texts, asked: Sequence[tuple[Variant, Sequence[Adapters]]]) -> None:
    """Adds a task's part of the grid to the bench; leaves out the methods that cannot serve it."""
    variants: list[Variant] = []
    for variant, given in asked:
        try:
            rows = _adapters(bench, variant.mode, given, task)
            variants += [replace(variant, adapter=next(iter(row), None), more=row[1:]) for row in rows]
        except UserError as error:
            bench.leave_out(variant.mode, task.name, error)
    ready: list[tuple[Variant, int | None, int | None, Method]] = []
    for whole in map(_short, labelled(variants)):
        for count in _counts(bench, method_class(whole.mode)):
            variant = _of_several(whole, count, task)
            try:
                ready += [(variant, count, *each) for each in _methods(bench, variant, task, count)]
            except UserError as error:
                bench.leave_out(variant.label, task.name, error)
    for tokens in bench.recipe.prompt_tokens if ready else []:
        dealt = {count or 1 for _, count, *_ in ready}
        documents = {n: of_length(task, tokens, bench.pair.receiver, sharers=n) for n in dealt}
        for answer in bench.recipe.answer_tokens:
            block = Block(task, tokens, answer, [])
            bench.blocks.append(block)
            for variant, count, budget, method in ready:
                own = replace(documents[count or 1], max_new_tokens=answer)
                try:
                    method.check(own)
                except UserError as error:
                    bench.leave_out(variant.label, task.name, error)
                    continue
                sent = replace(variant, wire=_form(bench.recipe, type(method)))
                block.cells.append(Cell(sent, budget, method, own, sharers=count))


def _of_several(variant: Variant, count: int | None, task: Texts) -> Variant:
    """A variant with the way in which the messages of several sharers are joined, and so labelled."""
    ways = method_class(variant.mode).ways(task.shared)
    if count is None or count == 1:
        return replace(variant, more=())
    join, label = next(iter(ways), None), f"{variant.label} sharers={count}"
    return replace(variant, more=variant.more[: count - 1], join=join, label=label)


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

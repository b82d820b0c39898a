"""Trains the adapters that a run lacks: `lcfbench run --train`.

The recipe. On a GPU, for a pair of a billion parameters or more, the packaged paper recipe that has the
method and names the task (`lcf-paper-shared`, `lcf-paper-cross`, `c2c-paper`, …). Else the packaged
`small-scale-shared` or `small-scale-different` on the task's own train split. A task without a train
split takes the paper recipe of the method that trains on chat data, where both models read the same.
The adapter is saved in the cache under a name that covers models and settings, so the same command goes
on with a training that was interrupted, and finds one that was finished.

>>> recipe = train_missing(Recipe(mode=["lcf"], train=True), progress)               # doctest: +SKIP
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.adapters.config import WEIGHTS, read_config, recorded_names
from lcfbench.adapters.finding import Found, Wanted, find_for, on_this_disk
from lcfbench.adapters.select import AdapterMissing, cached, unfinished
from lcfbench.config import PLACES, convert, packaged_recipes, read_recipe
from lcfbench.errors import UserError
from lcfbench.evaluation.plan import look_up, pairs_of, told_whole, wanted_by, with_tasks
from lcfbench.evaluation.recipe import Recipe
from lcfbench.files import writing
from lcfbench.methods.create import method_class
from lcfbench.models.dtypes import pick_device
from lcfbench.progress import TrainProgress
from lcfbench.provenance import digest
from lcfbench.sources.models import find_model, look, split_sharers
from lcfbench.tasks.document import Document
from lcfbench.tasks.groups import expand
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for, task_names
from lcfbench.training.cost import Cost, cost_of, numbers_of
from lcfbench.training.recipe import AdapterSpec, TrainRecipe
from lcfbench.training.setup import check_adapters
from lcfbench.training.trainer import train

LARGE = 1_000_000_000  # parameters of both models together from which a GPU trains by a paper's recipe
SAMPLE = 32  # examples that are read for the estimate
PASSED_ON = ("pair", "seed", "scoring", "shots", "prompt", "offline", "trust_remote_code", *sorted(PLACES))
FIXED = ("out", "force", "adapters", *PASSED_ON)  # of the settings of a training: the run decides them


@dataclass(frozen=True)
class Plan:
    """A training that a run lacks. name: of its packaged recipe. documents: some of its examples."""

    name: str
    recipe: TrainRecipe
    wanted: Wanted
    documents: Sequence[Document]

    def cost(self) -> Cost:
        return cost_of(self.recipe, self.wanted.shared, self.documents)

    def said(self) -> str:
        data = ", ".join(self.recipe.task)
        size = f"{self.recipe.steps} steps of {self.recipe.batch_size}"
        return f"{self.wanted.mode} by the recipe {self.name} on {data}, {size}"


def train_missing(run: Recipe, progress: TrainProgress) -> Recipe:
    """Trains the adapters that no place has, one after the other; returns the recipe of the run itself.

    Says recipe, time and memory of each first. Raises UserError where one cannot be trained, does not
    fit into memory or on the disk, or has failed before.
    """
    run = with_tasks(run)
    tasks = look_up(run)
    plans = list[Plan]()
    for wanted in wanted_by(run, tasks):
        if run.train_options or not _at_hand(wanted):
            plans.append(plan_for(run, next(t for t in tasks if t.name == wanted.task), wanted))
    places = {plan.recipe.out: plan for plan in plans}  # a task and its held-out half share one
    if run.train_options and len(places) > len({(p.wanted.mode, p.wanted.pair) for p in plans}):
        what = f"--train-option asks for one training a method; {', '.join(run.task)} need several."
        raise UserError(what, "Run the tasks one by one.")
    left = list[tuple[Plan, Cost]]()
    for out, plan in places.items():
        if (out / WEIGHTS).is_file() and not unfinished(out):
            if failed := read_config(out).training.get("failed"):
                what = f"this training has failed before: its {failed} was not finite ({out})."
                raise UserError(what, "Lower --train-option lr=…, or remove that folder.")
            progress.say(f"{plan.said()}: trained before, {out}.")
            continue
        for name in plan.wanted.pair:
            find_model(name, offline=run.offline)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        check_adapters(plan.recipe)
        left.append((plan, plan.cost()))
        left[-1][1].check(out.parent)
    for plan, cost in left:
        progress.say(f"training {plan.said()}: {cost.said()}; saved in {plan.recipe.out}.")
        try:
            train(plan.recipe, progress)
        except UserError as error:
            raise UserError(error.what, _as_options(error.next_step)) from error
    given = {"adapter": _given(run, places)} if run.train_options else {}  # what else is at hand was not
    return run.model_copy(update={"train": False, "train_options": {}, **given})


def _given(run: Recipe, places: Mapping[Path, Plan]) -> list[Path]:
    """The trained adapters as a run takes them: those of several sharers of a method together."""
    found = list[Path]()
    for mode in dict.fromkeys(plan.wanted.mode for plan in places.values()):
        mine = {plan.wanted.pair: out for out, plan in places.items() if plan.wanted.mode == mode}
        found.append(told_whole(tuple(mine[pair] for pair in pairs_of(run.pair, method_class(mode)))))
    return found


def with_estimate(error: AdapterMissing, run: Recipe) -> AdapterMissing:
    """The error for a missing adapter with the command that trains all missing ones, and what each takes."""
    if error.wanted is None:
        return error
    wanted, chosen = error.wanted, with_tasks(run)
    tasks = {task.name: task for task in look_up(chosen)}
    missing = [
        each
        for each in wanted_by(chosen, list(tasks.values()))
        if each == wanted or not isinstance(on_this_disk(each), Found)
    ]
    try:
        plans = [plan_for(run, tasks[each.task], each) for each in missing]
    except UserError as why:
        return AdapterMissing(error.what, f"Pass --adapter FOLDER; none can be trained: {why.what}", wanted)
    each = [f"{plan.said()}: {plan.cost().said()}" for plan in {p.recipe.out: p for p in plans}.values()]
    what = "Train one" if len(each) == 1 else f"Train {len(each)}"
    return AdapterMissing(error.what, f"{what} ({'; '.join(each)}): {command_of(run)} --train", wanted)


def plan_for(run: Recipe, task: Task, wanted: Wanted) -> Plan:
    """The training of an adapter for a method on a task. Raises UserError where there is none."""
    base = task.name.removesuffix("_heldout")
    if base not in task_names():
        base = task.name
    options = options_for(run.task, run.task_options)[task.name]
    try:
        source = load_task(base, seed=run.seed, offline=run.offline, options=options)
        documents, why = source.documents(split="train", limit=SAMPLE), None
    except UserError as error:
        documents, why = [], error
    name = _recipe_for(run, wanted, base if documents else None)
    if not name:
        raise why or UserError(f"no packaged recipe trains {wanted.mode}.")
    own = read_recipe(name, "train")
    chosen: dict[str, Any] = {key: getattr(run, key) for key in PASSED_ON}
    if len(split_sharers(run.pair)[1]) > 1:  # one training a sharer
        chosen["pair"] = ":".join(wanted.pair)
    chosen["adapters"] = [_entry(name, own, wanted.mode)]
    chosen["dtype"] = run.dtype if run.dtype in ("float32", "bfloat16") else "auto"
    if name.startswith("small-scale"):
        chosen |= {"task": [base], "task_options": options}
    given = {key: text for key, text in run.train_options.items() if key != "recipe"}
    recipe = TrainRecipe.merge(name, chosen | _settings(given), "train")
    known = digest({"recipe": recipe.digest(), "revisions": wanted.revisions})
    label = f"{'.'.join(recorded_names(wanted.pair))}.{wanted.mode}-{base}-{known[:8]}"
    place = cached() / re.sub(r"[^\w.+-]", "-", label)
    return Plan(name, recipe.model_copy(update={"out": place}), wanted, documents)


def _as_options(text: str) -> str:
    """A next step of `train` as one of `run`, which takes its flags by `--train-option`."""

    def name(flag: re.Match[str]) -> str:
        setting = flag[1].replace("-", "_")
        known = setting in TrainRecipe.model_fields and setting not in FIXED
        return f"--train-option {setting}=…" if known else flag[0]

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", name, text)


def _at_hand(wanted: Wanted) -> bool:
    try:
        find_for(wanted)
    except AdapterMissing:
        return False
    return True


def _recipe_for(run: Recipe, wanted: Wanted, base: str | None) -> str:
    """The name of the recipe; "" where none trains this method. base: None without a train split."""
    if name := run.train_options.get("recipe"):
        return name
    papers = {}
    for name in packaged_recipes():
        own = read_recipe(name, None).get("train") or {}
        methods = [entry.partition(":")[0] for entry in own.get("adapters", [])]
        if own.get("preset") == "paper" and wanted.mode in methods:
            papers[name] = own
    if base is None:
        chat = [n for n, own in papers.items() if all(t.startswith("chat:") for t in own["task"])]
        return chat[0] if chat and wanted.shared else ""
    if pick_device(run.device).type == "cuda" and _large(wanted.pair):
        for name in papers:
            if base in expand(read_recipe(name, "run").get("task", [])):
                return name
    return f"small-scale-{wanted.context}"


def _large(pair: tuple[str, str]) -> bool:
    """Whether the models have a billion parameters together; one not on this disk counts as large."""
    found = [look(name)[0] for name in pair]
    return not all(found) or sum(numbers_of(model)[0] for model in found if model) >= LARGE


def _entry(name: str, own: dict[str, Any], mode: str) -> str:
    """The adapter of a method that a recipe trains; of several the one that its run takes."""
    entries = [entry for entry in own.get("adapters", []) if entry.partition(":")[0] == mode]
    run = {} if len(entries) < 2 else read_recipe(name, "run")
    used = {Path(place).name for place in run.get("adapter", [])}
    labels = {entry: AdapterSpec.parse(entry, 0).label for entry in entries}
    return next((entry for entry in entries if labels[entry] in used), (entries or [mode])[0])


def _settings(given: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a training from `--train-option`; other keys are options of the adapter."""
    settings, options = dict[str, Any](), dict[str, str]()
    for key, text in given.items():
        field = TrainRecipe.model_fields.get(key)
        if key in FIXED:
            what = f"--train-option {key}={text}: the run decides that."
            raise UserError(what, "Use `lcfbench train` for a training of another kind.")
        if field is None:
            options[key] = text
        else:
            settings[key] = convert(key, text, field.rebuild_annotation(), field.default, "--train-option")
    return settings | ({"options": options} if options else {})


def command_of(run: Recipe) -> str:
    """The command line of a run, as its settings were given."""
    words = ["lcfbench", "run"]
    for name in Recipe.model_fields:
        value = getattr(run, name)
        if name not in run.model_fields_set or value is None or value is False or value in ({}, []):
            continue
        flag = {"options": "-o", "task_options": "--task-option"}.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, dict):
            given = [
                (key, t) for key, text in value.items() for t in ([text] if isinstance(text, str) else text)
            ]
            words += [word for key, text in given for word in (flag, f"{key}={text}")]
        elif isinstance(value, bool):
            words.append(flag)
        elif name == "adapter":
            words += [word for place in value for word in (flag, str(place))]
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)

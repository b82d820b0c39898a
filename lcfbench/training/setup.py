"""What a training starts from: devices, models, examples, dev documents, untrained adapters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from lcfbench.adapters.base import adapter_class, build
from lcfbench.adapters.config import pair_config, recorded_names
from lcfbench.adapters.options import adapter_options
from lcfbench.config import PLACES
from lcfbench.controls.base import load_control
from lcfbench.errors import UserError, unknown
from lcfbench.methods._lengths import too_long
from lcfbench.methods.base import Method
from lcfbench.methods.create import method_class, parse_options
from lcfbench.methods.load_pair import CONDITIONS, Pair, load_pair
from lcfbench.methods.needs import check_needs
from lcfbench.models.dtypes import pick_dtype
from lcfbench.registry import method_names
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import describe, options_for
from lcfbench.training import data, processes
from lcfbench.training.adapter_training import AdapterTraining
from lcfbench.training.options import split_options
from lcfbench.training.recipe import AdapterSpec, TrainRecipe
from lcfbench.training.targets import written_by

if TYPE_CHECKING:
    from accelerate import Accelerator

WORDED = {"offline", "shots", "prompt"}  # how tasks are loaded, beside their seed and options
Dev = dict[str, tuple[Task, list[Document]]]


def accelerator_of(recipe: TrainRecipe) -> Accelerator:
    """Returns the processes and devices, one or those of `accelerate launch`.

    Raises UserError for float16, and for devices that several processes cannot have.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    check_devices(recipe, cpu)
    if pick_dtype(recipe.dtype, torch.device("cpu" if cpu else "cuda")) == torch.float16:
        raise UserError(
            "float16 gradients vanish without scaling.",
            "Train with --dtype bfloat16, or float32 where that is not to be had.",
        )
    # no autocast: adapters keep fp32 weights and compute in the models' dtype
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # the first one evaluates alone
    )


def check_devices(recipe: TrainRecipe, cpu: bool) -> None:
    """Raises UserError unless each of several processes of a machine has a GPU, or all are on the CPU."""
    if processes.count() == 1:
        return
    if placed := [name for name in sorted(PLACES) if name != "device" and getattr(recipe, name) is not None]:
        what = f"--{placed[0].replace('_', '-')} gives {processes.count()} processes the same devices."
        raise UserError(what, "Leave it out, or train in one process.")
    if not cpu and recipe.device != "auto":
        what = f"--device {recipe.device} gives {processes.count()} processes the same GPU."
        raise UserError(what, "Leave --device out: each process takes the next one.")
    if not cpu and processes.local() >= torch.cuda.device_count():
        what = f"this machine has fewer GPUs ({torch.cuda.device_count()}) than processes."
        raise UserError(what, "Start as many processes as it has GPUs, or use --device cpu.")


def models_of(recipe: TrainRecipe, accelerator: Accelerator) -> Pair:
    """Loads the frozen models; the sharer only where a method needs it."""
    roles = {role for spec in recipe.specs() for role in trainable(spec).roles}
    apart = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
    device = str(accelerator.device) if apart else recipe.device
    conditions = recipe.model_dump(include=CONDITIONS) | {"device": device}
    pair = load_pair(recipe.pair, roles=roles, **conditions)
    for spec in recipe.specs():
        check_needs(spec.mode, *pair.models_for(trainable(spec).roles))
    return pair


def trainable(spec: AdapterSpec) -> type[Method]:
    """Returns the method of an adapter. Raises UserError for a method that trains none."""
    method = method_class(spec.mode)
    if not method.adapter_kinds:
        able = [name for name in method_names() if method_class(name).adapter_kinds]
        raise UserError(f"method {spec.mode} has nothing to train.", f"Use --mode {', '.join(able)}.")
    return method


def data_of(recipe: TrainRecipe, pair: Pair, say: Callable[[str], None]) -> tuple[list[Document], Dev]:
    """Returns examples and dev documents. Raises UserError where there are none."""
    sources = [data.parse_source(text) for text in recipe.task]
    examples = data.examples(
        sources,
        count=max(spec.recipe(recipe).drawn for spec in recipe.specs()),
        pair=pair,
        say=say,
        **recipe.model_dump(include={*WORDED, "seed", "scoring", "task_options", "max_tokens"}),
    )
    tasks = [s.name for s in sources if s.kind == "task"]
    names = recipe.dev if recipe.dev is not None else tasks
    if not names:
        raise UserError(
            f"no task to choose the saved state by: {', '.join(recipe.task)} have no accuracy.",
            "Name one with --dev.",
        )
    dev: Dev = {}
    given = options_for(list(dict.fromkeys([*tasks, *names])), recipe.task_options)
    for name in names:
        worded = recipe.model_dump(include=WORDED)
        task = load_task(name, seed=recipe.seed, options=given[name], **worded)
        documents = task.documents(
            scoring=recipe.scoring if recipe.scoring in task.scorings else None,
            split="validation",
            limit=recipe.dev_documents,
            receiver_chat=pair.receiver.has_chat,
        )
        if not documents:
            raise UserError(f"task {name} has no dev documents.", "Name another task with --dev.")
        dev[name] = task, documents
    if recipe.scoring is not None and not any(recipe.scoring in task.scorings for task, _ in dev.values()):
        known = sorted({s for task, _ in dev.values() for s in task.scorings})
        raise unknown(f"scoring of {', '.join(dev)}", recipe.scoring, known, "lcfbench ls tasks")
    if recipe.targets == "receiver":
        examples = written_by(pair.receiver, examples, recipe.at_once, say)
    return examples, dev


def fitting(dev: Dev, trainings: Sequence[AdapterTraining], seed: int, say: Callable[[str], None]) -> Dev:
    """Returns the dev documents that have room in the models; says how many have not.

    Raises UserError where a task has none.
    """
    out: Dev = {}
    for name, (task, documents) in dev.items():
        kept = documents
        while kept and (long := _long(kept, trainings, seed)):
            kept = [d for d in kept if d.hash not in long]
            why = next(iter(long.values()))
            if not kept:
                raise UserError(f"all dev documents of {name} are longer than a model reads: {why}")
            count = f"{len(long):,} of {len(documents):,} dev documents"
            say(f"{name}: {count} are longer than a model reads and are left out; the first: {why}")
        out[name] = task, kept
    return out


def _long(documents: Sequence[Document], trainings: Sequence[AdapterTraining], seed: int) -> dict[str, str]:
    """Why dev documents are too long under a control that they are asked under, by hash."""
    found: dict[str, str] = {}
    for control in ("matched", "deranged")[: len(documents)]:
        senders = load_control(control).message_from(documents, seed)
        for one in trainings:
            found |= too_long(one.method, documents, senders)
    return found


def trainings_of(recipe: TrainRecipe, pair: Pair, examples: Sequence[Document]) -> list[AdapterTraining]:
    """Returns the untrained adapters, each from its own seed.

    Each sees those examples that it would be given alone. Raises UserError where a method cannot
    serve the examples, and for options of no adapter.
    """
    trainings = []
    shared = {d.shared for d in examples}
    contexts = tuple(name for name, flag in (("shared", True), ("different", False)) if flag in shared)
    used: set[str] = set()
    for spec in recipe.specs():
        method_kind = trainable(spec)
        kind = adapter_kind(method_kind, contexts, spec)
        receiver, sharer = pair.models_for(method_kind.roles)
        names = pair.names if receiver is not sharer else (pair.names[0], pair.names[0])
        for_method, options, alignment, taken = chosen_options(recipe, spec, kind)
        used |= taken
        torch.manual_seed(spec.seed)
        recorded = recorded_names(names)
        models = (recorded[0], receiver.geometry), (recorded[1], sharer.geometry)
        config = pair_config(kind, *models, options=options, **alignment)
        check_needs(spec.mode, receiver, sharer, config)
        adapter = build(method_kind.configure(config, receiver, sharer)).to(receiver.device)
        method = method_kind(receiver, sharer, adapter, **for_method)
        for document in examples[:64]:
            method.check(document)
        control, mine = load_control(spec.senders), examples[: spec.recipe(recipe).drawn]
        senders = control.message_from(mine, recipe.seed) if spec.senders != "matched" else None
        trainings.append(AdapterTraining(spec, method, recipe, senders, contexts))
    check_used(recipe, used)
    return trainings


def chosen_options(
    recipe: TrainRecipe, spec: AdapterSpec, kind: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], set[str]]:
    """Returns the options of the method, of the adapter and of the alignment, and the general ones taken.

    Of several adapters each takes the general options that it knows; a single one must know them all.
    Raises UserError for names and values that make no sense.
    """
    general, own = (recipe.options, {}) if len(recipe.adapters) > 1 else ({}, recipe.options)
    method = method_class(spec.mode)
    for_method, for_adapter, taken = split_options(kind, method, general, own | dict(spec.options))
    options, alignment = adapter_options(kind, for_adapter, small_scale=recipe.preset == "small-scale")
    return parse_options(method, spec.mode, for_method), options, alignment, taken | set(own)


def check_used(recipe: TrainRecipe, used: set[str]) -> None:
    """Raises UserError for a general option that no adapter has taken."""
    if unused := set(recipe.options) - used:
        raise UserError(
            f"no adapter asked for has an option {', '.join(sorted(unused))}.", "See `lcfbench train --help`."
        )


def check_adapters(recipe: TrainRecipe) -> None:
    """Raises UserError for adapters, tasks and options that make no sense, before a model is loaded."""
    sources = [data.parse_source(text) for text in recipe.task]
    names = dict.fromkeys([*(s.name for s in sources if s.kind == "task"), *(recipe.dev or [])])
    for name, own in options_for(list(names), recipe.task_options).items():
        load_task(name, seed=recipe.seed, options=own, **recipe.model_dump(include=WORDED))
    contexts = {describe(s.name)["context"] if s.kind == "task" else "shared" for s in sources}
    used = set[str]()
    for spec in recipe.specs():
        if spec.recipe(recipe).steps == 0 and not trainable(spec).starts_fitted:
            able = [name for name in method_names() if method_class(name).starts_fitted]
            what = f"steps=0: {spec.mode} learns in steps alone, and its adapter would stay as it is made."
            raise UserError(what, f"Give 1 or more; without any {', '.join(able)} are fitted.")
        kind = adapter_kind(trainable(spec), contexts, spec)
        used |= chosen_options(recipe, spec, kind)[3]
    check_used(recipe, used)


def adapter_kind(method: type[Method], contexts: Collection[str], spec: AdapterSpec) -> str:
    """Returns the kind of adapter to train: the one asked for, else the method's first that serves.

    contexts: those of the examples, "shared" and "different". Raises UserError where no kind of
    several serves all of them.
    """
    kinds = method.adapter_kinds
    if spec.kind is not None:
        if spec.kind not in kinds:
            raise unknown(f"kind of adapter for {spec.mode}", spec.kind, kinds, "lcfbench train --help")
        return spec.kind
    serving = [k for k in kinds if set(contexts) <= set(adapter_class(k).contexts)]
    if not serving and len(kinds) > 1 and len(contexts) > 1:
        raise UserError(
            f"{spec.mode} needs different adapters for tasks with shared and with different contexts.",
            "Train them one at a time.",
        )
    return (serving or kinds)[0]

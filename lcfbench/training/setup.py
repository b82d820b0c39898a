"""What a training starts from: device, both models, examples and dev documents, untrained adapters."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.controls.assignment import sender_of
from lcfbench.errors import UserError, unknown
from lcfbench.methods.base import Method
from lcfbench.methods.create import method_class, parse_options
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.dtypes import pick_dtype
from lcfbench.registry import method_names
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for
from lcfbench.training.lane import AdapterTraining
from lcfbench.training.options import adapter_options, split_options
from lcfbench.training.recipe import AdapterSpec, TrainRecipe, folder_of

if TYPE_CHECKING:
    from accelerate import Accelerator

Dev = dict[str, tuple[Task, list[Document]]]


def accelerator_of(recipe: TrainRecipe) -> Accelerator:
    """Processes and devices (one, or as many as `accelerate launch` started), gradient scaling for float16, the tracker."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if (
        recipe.tracker
        and importlib.util.find_spec({"tensorboard": "tensorboard", "trackio": "trackio"}[recipe.tracker])
        is None
    ):
        raise UserError(
            f"tracker {recipe.tracker} is not installed.",
            f"pip install {recipe.tracker}, or leave --tracker out.",
        )
    cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    if pick_dtype(recipe.dtype, torch.device("cpu" if cpu else "cuda")) == torch.float16:
        raise UserError(
            "float16 gradients vanish without scaling.",
            "Train with --dtype bfloat16, or float32 where that is not to be had.",
        )
    # models run in their own dtype, adapters keep fp32 weights and compute in the models' dtype: nothing is left for autocast
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # the others wait while the first evaluates
    made = Accelerator(
        cpu=cpu,
        mixed_precision="no",
        log_with=recipe.tracker,
        project_dir=str(recipe.out),
        kwargs_handlers=[patient],
    )
    if recipe.tracker:
        made.init_trackers("lcfbench", config={"recipe": recipe.model_dump_json()})
    return made


def ends_of(recipe: TrainRecipe, accelerator: Accelerator) -> tuple[CausalLM, CausalLM]:
    """Both frozen models; one object where they are the same, or where no method needs the sharer."""
    first, second = split_pair(recipe.pair)
    device = recipe.device
    if device == "auto" and accelerator.num_processes > 1:
        device = str(accelerator.device)
    receiver = CausalLM.load(find_model(first, offline=recipe.offline), dtype=recipe.dtype, device=device)
    alone = all(trainable(spec).roles == ("receiver",) for spec in recipe.specs())
    if first == second or alone:
        return receiver, receiver
    return receiver, CausalLM.load(
        find_model(second, offline=recipe.offline), dtype=recipe.dtype, device=device
    )


def trainable(spec: AdapterSpec) -> type[Method]:
    """The method of an adapter to be trained. Raises UserError for those that have none."""
    kind = method_class(spec.mode)
    if not kind.adapter_kinds:
        able = [name for name in method_names() if method_class(name).adapter_kinds]
        raise UserError(f"method {spec.mode} has nothing to train.", f"Use --mode {', '.join(able)}.")
    return kind


def data_of(
    recipe: TrainRecipe, ends: tuple[CausalLM, CausalLM], say: Callable[[str], None]
) -> tuple[list[Document], Dev]:
    """Examples of the mixture, and the documents of each dev task. Raises UserError where there are none."""
    from lcfbench.training import data

    sources = [data.parse_source(text) for text in recipe.task]
    examples = data.examples(
        sources, count=recipe.train_documents or recipe.steps * recipe.batch_size, seed=recipe.seed, scoring=recipe.scoring,
        task_options=recipe.task_options, offline=recipe.offline, receiver=ends[0], sharer=ends[1], max_tokens=recipe.max_tokens, say=say,
    )  # fmt: skip
    names = recipe.dev if recipe.dev is not None else [s.name for s in sources if s.kind == "task"]
    if not names:
        raise UserError(
            f"no task to choose the saved state by: {', '.join(recipe.task)} have no accuracy.",
            "Name one with --dev.",
        )
    dev: Dev = {}
    given = options_for(
        list(dict.fromkeys([*(s.name for s in sources if s.kind == "task"), *names])), recipe.task_options
    )
    for name in names:
        task = load_task(name, seed=recipe.seed, offline=recipe.offline, options=given[name])
        scoring = recipe.scoring if recipe.scoring in task.scorings else None
        documents = task.documents(
            scoring=scoring, split="validation", limit=recipe.dev_documents, receiver_chat=ends[0].has_chat
        )
        if not documents:
            raise UserError(f"task {name} has no dev documents.", "Name another task with --dev.")
        dev[name] = task, documents
    if recipe.scoring is not None and not any(recipe.scoring in task.scorings for task, _ in dev.values()):
        known = sorted({s for task, _ in dev.values() for s in task.scorings})
        raise unknown(f"scoring of {', '.join(dev)}", recipe.scoring, known, "lcfbench ls tasks")
    if recipe.targets == "receiver":
        from lcfbench.training.targets import written_by

        examples = written_by(ends[0], examples, recipe.at_once, say)
    return examples, dev


def lanes_of(
    recipe: TrainRecipe, ends: tuple[CausalLM, CausalLM], examples: Sequence[Document]
) -> list[AdapterTraining]:
    """Untrained adapters, each from its own seed. Raises UserError where a method cannot serve the examples."""
    lanes = []
    shared = {d.shared for d in examples}
    used: set[str] = set()
    for spec in recipe.specs():
        method_kind = trainable(spec)
        kind = adapter_kind(method_kind, shared, spec)
        first, second = split_pair(recipe.pair)
        receiver, sharer = ends if method_kind.roles != ("receiver",) else (ends[0], ends[0])
        names = (first, first if method_kind.roles == ("receiver",) else second)
        # with one adapter every option is its own, and an unknown one is named with its nearest; with several each takes what it knows
        general, own = (recipe.options, {}) if len(recipe.adapters) > 1 else ({}, recipe.options)
        for_method, for_adapter, taken = split_options(kind, method_kind, general, own | dict(spec.options))
        used |= taken | set(own)
        options, alignment = adapter_options(kind, for_adapter, small_scale=recipe.preset == "small-scale")
        torch.manual_seed(spec.seed)
        config = pair_config(
            kind, (names[0], receiver.geometry), (names[1], sharer.geometry), options=options, **alignment
        )
        config = method_kind.configure(config, receiver, sharer)
        adapter = build(config).to(receiver.device)
        method = method_kind(receiver, sharer, adapter, **parse_options(method_kind, spec.mode, for_method))
        for document in examples[:64]:
            method.check(document)
        senders = sender_of(examples, spec.senders, recipe.seed) if spec.senders != "matched" else None
        contexts = tuple(name for name, flag in (("shared", True), ("different", False)) if flag in shared)
        lanes.append(
            AdapterTraining(
                spec, method, folder_of(recipe, spec), senders, contexts, loss_mean=recipe.loss_mean
            )
        )
    if unused := set(recipe.options) - used:
        raise UserError(
            f"no adapter asked for has an option {', '.join(sorted(unused))}.", "See `lcfbench train --help`."
        )
    return lanes


def adapter_kind(method_kind: type[Method], shared: set[bool], spec: AdapterSpec) -> str:
    """Which of a method's kinds of adapter serves these examples: the one asked for, else LCF, pooled (LCF-X) for different contexts."""
    kinds = method_kind.adapter_kinds
    if spec.kind is not None:
        if spec.kind not in kinds:
            raise unknown(f"kind of adapter for {spec.mode}", spec.kind, kinds, "lcfbench train --help")
        return spec.kind
    kinds = tuple(k for k in kinds if k.startswith("lcf")) or kinds
    plain, pooled = [k for k in kinds if not k.endswith("x")], [k for k in kinds if k.endswith("x")]
    if not pooled or not plain:
        return kinds[0]
    if len(shared) > 1:
        raise UserError(
            f"{spec.mode} needs different adapters for tasks with shared and with different contexts.",
            "Train them one at a time.",
        )
    return plain[0] if shared == {True} else pooled[0]

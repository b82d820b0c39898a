"""Trains an adapter between two frozen models through the same `respond` path that a run uses.

>>> train(TrainRecipe(mode="lcf", task=["splitfacts"], steps=200), progress)
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import WEIGHTS, pair_config
from lcfbench.adapters.files import save
from lcfbench.assets import find_model, split_pair
from lcfbench.controls import sender_of
from lcfbench.document import Document
from lcfbench.endpoint import Endpoint
from lcfbench.errors import UserError
from lcfbench.harness import Task, load_task
from lcfbench.loop import batches
from lcfbench.methods.base import Batch, Method, method_class
from lcfbench.records import writing
from lcfbench.scoring import answer, target
from lcfbench.timing import Clock
from lcfbench.training.card import card
from lcfbench.training.options import adapter_options
from lcfbench.training.recipe import TrainProgress, TrainRecipe, check


def train(recipe: TrainRecipe, progress: TrainProgress) -> Path:
    """Trains, evaluates on the dev split matched and deranged, saves the best state by dev accuracy. Returns the adapter's folder.

    Raises UserError: a method without adapter, tasks that need different kinds, no train split, a loss that is not finite (the best state so
    far is saved first), an output folder that already holds an adapter.
    """
    method_kind = method_class(recipe.mode)
    if not method_kind.adapter_kinds:
        raise UserError(f"method {recipe.mode} has nothing to train.", "Use --mode lcf or c2c.")
    check(recipe)
    torch.manual_seed(recipe.seed)
    names = split_pair(recipe.pair)
    tasks = [load_task(n, seed=recipe.seed, offline=recipe.offline, options=recipe.task_options) for n in recipe.task]
    receiver = Endpoint.load(find_model(names[0], offline=recipe.offline), dtype=recipe.dtype, device=recipe.device)
    sharer = (
        receiver
        if names[0] == names[1]
        else Endpoint.load(find_model(names[1], offline=recipe.offline), dtype=recipe.dtype, device=recipe.device)
    )
    needed = recipe.steps * recipe.batch_size
    examples = [d for task in tasks for d in _documents(task, recipe, receiver, "train", recipe.train_documents or needed)]
    dev = {task.name: (task, _documents(task, recipe, receiver, "validation", recipe.dev_documents)) for task in tasks}
    shared = {d.shared for d in examples}
    if len(shared) > 1:
        raise UserError("tasks with shared and with different contexts need different adapters.", "Train them one at a time.")
    kind = "lcfx" if recipe.mode == "lcf" and shared == {False} else recipe.mode
    options, alignment = adapter_options(kind, recipe.options)
    config = pair_config(kind, (names[0], receiver.geometry), (names[1], sharer.geometry), options=options, **alignment)
    adapter = build(config).to(receiver.device)
    method = method_kind(receiver, sharer, adapter)
    method.check(examples[0])
    progress.say(
        f"{kind} adapter, {adapter.params:,} parameters; {len(examples):,} examples from {', '.join(recipe.task)}; models in {receiver.dtype}."
    )
    trainer = _Trainer(recipe, method, adapter, dev, progress)
    method.prepare(examples, progress.say)
    try:
        trainer.fit(examples)
    except KeyboardInterrupt:
        if trainer.best is not None:
            progress.say(f"the best state so far is in {trainer.save()}.")
        raise
    return trainer.save()


def _documents(task: Task, recipe: TrainRecipe, receiver: Endpoint, split: str, limit: int) -> list[Document]:
    return task.documents(scoring=recipe.scoring, split=split, limit=limit, receiver_chat=receiver.has_chat)


@dataclass
class _Trainer:
    recipe: TrainRecipe
    method: Method
    adapter: Adapter
    dev: dict[str, tuple[Task, list[Document]]]
    progress: TrainProgress
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    seconds: float = 0.0
    steps_done: int = 0

    def fit(self, examples: list[Document]) -> None:
        """The loop. The order of examples is drawn once from the seed; each batch holds documents of near length."""
        r = self.recipe
        parameters = [p for p in self.adapter.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=r.lr, weight_decay=r.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min((s + 1) / max(r.warmup, 1), max(1 - s / r.steps, 0.02)))
        order = _order(examples, r)
        began = time.perf_counter()
        self.adapter.train()
        for step in range(r.steps):
            self.adapter.anneal(step)
            loss, right = self.loss(order[step])
            value = float(loss.detach())
            if not math.isfinite(value):
                self.stop("loss", step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if not math.isfinite(float(nn.utils.clip_grad_norm_(parameters, r.clip))):
                self.stop("gradient", step)  # before it reaches the weights
            optimiser.step()
            schedule.step()
            self.steps_done, self.seconds = step + 1, time.perf_counter() - began
            rate = (step + 1) * r.batch_size / self.seconds
            gates = self.adapter.gate_logit
            self.progress.step(step + 1, r.steps, value, float(right), int((gates > 0).sum()), gates.numel(), rate)
            if (step + 1) % r.eval_every == 0 or step + 1 == r.steps:
                self.evaluate(step + 1, value)

    def stop(self, what: str, step: int) -> NoReturn:
        """Saves the last good state and ends the training."""
        folder = self.save()
        raise UserError(f"the {what} is not finite at step {step + 1}.", f"The best state so far is in {folder}; lower --lr.")

    def loss(self, documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the receiver on the edited cache, through `respond`."""
        endpoint = self.method.receiver
        state = self.method.respond(Batch(documents, documents, Clock()))
        eos = endpoint.tokenizer.eos_token_id
        pairs = [target(d, p, endpoint.tokenizer, eos) for d, p in zip(documents, state.prompts, strict=True)]
        return endpoint.loss(state, [ids for ids, _ in pairs], [flags for _, flags in pairs])

    def evaluate(self, step: int, loss: float) -> None:
        """Dev accuracy, matched and with messages of other documents; the best matched state is kept."""
        self.adapter.eval()
        point: dict[str, Any] = {"step": step, "loss": loss}
        with torch.inference_mode():
            for name, (task, documents) in self.dev.items():
                for control in ("matched", "deranged")[: len(documents)]:  # one document has no other to be deranged with
                    senders, scores = sender_of(documents, control, self.recipe.seed), []
                    for group in batches(documents, self.recipe.batch_size):
                        batch = Batch(group, [senders[d.hash] for d in group], Clock())
                        outcomes, _ = answer(self.method.respond(batch), batch)
                        scores += [task.score(d, o)[task.metric(d.scoring)] for d, o in zip(group, outcomes, strict=True)]
                    point[f"{name}/{control}"] = sum(scores) / len(scores)
        self.curve.append(point)
        mean = sum(point[f"{n}/matched"] for n in self.dev) / len(self.dev)
        if self.best is None or mean >= self.best[0]:
            self.best = (mean, copy.deepcopy(self.adapter.state_dict()))
        self.progress.say(f"step {step}, dev: " + ", ".join(f"{k} {v:.3f}" for k, v in point.items() if "/" in k))
        self.adapter.train()

    def save(self) -> Path:
        """The best state by dev accuracy (the present one before the first evaluation), with its card."""
        r = self.recipe
        if self.best is not None:
            self.adapter.load_state_dict(self.best[1])
        training = {
            "tasks": r.task,
            "task_options": r.task_options,
            "steps": self.steps_done,
            "batch_size": r.batch_size,
            "lr": r.lr,
            "warmup": r.warmup,
            "weight_decay": r.weight_decay,
            "clip": r.clip,
            "seed": r.seed,
            "models_dtype": str(self.method.receiver.dtype).removeprefix("torch."),
            "revisions": {"receiver": self.method.receiver.revision, "sharer": self.method.sharer.revision},
            "device": self.method.receiver.device.type,
            "minutes": round(self.seconds / 60, 1),
            "dev_documents": r.dev_documents,
            "dev": self.curve,
        }
        self.adapter.config = self.adapter.config.model_copy(update={"training": training})
        with writing(r.out):
            if r.force:
                (r.out / WEIGHTS).unlink(missing_ok=True)
            save(self.adapter, r.out, card(self.adapter))
        return r.out


def _order(examples: list[Document], recipe: TrainRecipe) -> list[list[Document]]:
    """One batch a step: seeded shuffles of the examples, sorted by length within stretches of eight batches."""
    generator = torch.Generator().manual_seed(recipe.seed)
    need = recipe.steps * recipe.batch_size
    drawn: list[int] = []
    while len(drawn) < need:
        drawn += torch.randperm(len(examples), generator=generator).tolist()
    out: list[list[Document]] = []
    stretch = 8 * recipe.batch_size
    for start in range(0, need, stretch):
        part = sorted(
            (examples[i] for i in drawn[start : min(start + stretch, need)]),
            key=lambda d: len(d.receiver.user) + len(d.sharer.user),
        )
        groups = [part[i : i + recipe.batch_size] for i in range(0, len(part), recipe.batch_size)]
        out += [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    return out[: recipe.steps]

"""Trains adapters between two frozen models through the same `respond` path that a run uses.

Several are trained side by side: each batch is read once by both models and every adapter learns from the same prefills.

>>> train(TrainRecipe(adapters=["lcf:width=64", "lcf:width=128"], task=["splitfacts"]), progress)        # doctest: +SKIP
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lcfbench.controls.assignment import sender_of
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches, length
from lcfbench.files import writing
from lcfbench.methods.base import Batch
from lcfbench.models.causal_lm import sharing
from lcfbench.models.memory import peak_memory_bytes, reset_peak_memory
from lcfbench.models.timing import Clock
from lcfbench.progress import TrainProgress
from lcfbench.results.training_log import TrainLog
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task
from lcfbench.training.lane import AdapterTraining
from lcfbench.training.recipe import CHECKPOINT, TrainRecipe, check
from lcfbench.training.setup import accelerator_of, data_of, ends_of, lanes_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(recipe: TrainRecipe, progress: TrainProgress) -> list[Path]:
    """Trains, evaluates on the dev split matched and deranged, saves the best states by dev accuracy. Returns the adapters' folders.

    A killed training goes on from its last checkpoint under the same recipe and ends as the uninterrupted one. Raises UserError: a
    method without adapter, data that do not fit it, no train split, memory that does not suffice, a loss that is not finite (the best state
    so far is saved first), an output folder that already holds an adapter.
    """
    check(recipe)
    resumed = _checkpoint(recipe)
    accelerator = accelerator_of(recipe)
    ends = ends_of(recipe, accelerator)
    examples, dev = data_of(recipe, ends, progress.say)
    lanes = lanes_of(recipe, ends, examples)
    trainer = Trainer(recipe, lanes, dev, progress, accelerator)
    with trainer.sharing(), trainer.memory_named():
        for lane in lanes if resumed is None else []:
            with lane.own_randomness():
                lane.method.prepare(examples, progress.say)
    for lane in lanes:
        trainer.agree(lane)
        lane.begin(recipe)
        progress.say(
            f"{lane.spec.label}: {lane.adapter.config.kind} adapter, {lane.adapter.params:,} parameters."
        )
    progress.say(
        f"{len(examples):,} examples from {', '.join(recipe.task)}; models in {ends[0].dtype} on {ends[0].device}."
    )
    trainer.fit(examples, resumed)
    failed = [lane for lane in lanes if lane.failed]
    saved = [lane.save(recipe) for lane in lanes] if accelerator.is_main_process else []
    if accelerator.is_main_process:
        (recipe.out / CHECKPOINT).unlink(missing_ok=True)
    if failed:
        kept = ", ".join(str(lane.folder) for lane in failed)
        raise UserError(
            f"the {failed[0].failed} is not finite at step {failed[0].steps_done + 1}.",
            f"The best state so far is in {kept}; lower --lr.",
        )
    return saved


@dataclass
class Trainer:
    """The loop over batches; what belongs to one adapter is its `AdapterTraining`."""

    recipe: TrainRecipe
    lanes: list[AdapterTraining]
    dev: dict[str, tuple[Task, list[Document]]]
    progress: TrainProgress
    accelerator: Accelerator
    step: int = 0
    whole: bool = True  # no step is half done
    _log: TrainLog | None = field(default=None)

    @property
    def alive(self) -> list[AdapterTraining]:
        return [lane for lane in self.lanes if not lane.failed]

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def fit(self, examples: Sequence[Document], resumed: dict[str, Any] | None = None) -> None:
        """Runs the steps that are left. The order of examples is drawn once from the seed; each batch holds documents of near length."""
        r = self.recipe
        if resumed is not None:
            self.step = resumed["step"]
            for lane, state in zip(self.lanes, resumed["lanes"], strict=True):
                lane.restore(state)
            self.progress.say(f"goes on from step {self.step} of {r.steps}.")
        log = self._log = TrainLog(r.out, self.step) if self.main else None
        order = batch_order(examples, r)
        for lane in self.lanes:
            lane.adapter.train()
        if self.step < r.steps:
            self.probe(max(order, key=lambda group: sum(length(d) for d in group)))
        began, first = time.perf_counter(), self.step
        evaluating = 0.0
        try:
            if self.step % r.eval_every == 0 and any(
                not lane.curve or lane.curve[-1]["step"] < self.step for lane in self.alive if self.step
            ):
                self.evaluate()  # an interruption came before it
            while self.step < r.steps and self.alive:
                self.whole = False
                self.once(order[self.step])
                self.step, self.whole = self.step + 1, True
                seconds = time.perf_counter() - began - evaluating
                rate = (self.step - first) * r.batch_size / seconds
                self.tell(rate)
                if self.step % r.eval_every == 0 or self.step == r.steps:
                    started = time.perf_counter()
                    self.evaluate()
                    evaluating += time.perf_counter() - started
                if self.step % r.save_every == 0 and self.step < r.steps:
                    self.save_checkpoint()
        except KeyboardInterrupt:
            self.interrupted()
            raise
        if log is not None:
            log.close()
        self.accelerator.end_training()

    def once(self, group: list[Document]) -> None:
        """One optimiser step of every adapter on the same batch."""
        began = time.perf_counter()
        mine = group[self.accelerator.process_index :: self.accelerator.num_processes]
        per_pass = -(-len(mine) // self.recipe.accumulate)
        for lane in self.alive:
            lane.adapter.anneal(self.step, self.recipe.steps)
        with self.memory_named():
            for start in range(0, len(mine), max(per_pass, 1)):
                for documents in _alike(mine[start : start + per_pass]):
                    self.learn(documents, len(documents) / len(group))
        for lane in self.alive:
            self.gather(lane)
            try:
                norm = lane.step(self.recipe.clip)
            except FloatingPointError as what:
                lane.failed = str(what)
                lane.optimiser.zero_grad(set_to_none=True)
                self.progress.say(
                    f"{lane.spec.label}: the {what} is not finite at step {self.step + 1}; it stops here."
                )
                continue
            lane.steps_done, lane.seconds = (
                self.step + 1,
                lane.seconds + (time.perf_counter() - began) / len(self.lanes),
            )
            if self._log is not None:
                values = {
                    "loss": lane.loss,
                    "tokens_right": lane.right,
                    "gradient_norm": norm,
                    "lr": lane.schedule.get_last_lr()[0],
                }
                self._log.add(lane.spec.label, self.step + 1, values)
                if self.recipe.tracker:
                    self.accelerator.log(
                        {f"{lane.spec.label}/{k}": v for k, v in values.items()}, step=self.step + 1
                    )

    def learn(self, documents: list[Document], share: float) -> None:
        """Gradients of every adapter on documents that both models read once."""
        with self.sharing():
            for lane in self.alive:
                lane.backward(documents, share, self.accelerator.backward)

    def sharing(self) -> AbstractContextManager[None]:
        """Equal prefills are computed once for all adapters; a baseline may use other models than its neighbour."""
        return sharing(
            dict.fromkeys(e for lane in self.lanes for e in (lane.method.receiver, lane.method.sharer))
        )

    def agree(self, lane: AdapterTraining) -> None:
        """Every process starts from the first one's adapter, and draws its own random numbers from here on."""
        if self.accelerator.num_processes > 1:
            for tensor in lane.adapter.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
            if self.accelerator.process_index:
                lane.random = []
                lane.offset = self.accelerator.process_index

    def gather(self, lane: AdapterTraining) -> None:
        """Sums gradients, loss and accuracy over processes: each has read its part of the batch."""
        if self.accelerator.num_processes == 1:
            return
        for p in lane.parameters:
            grad = p.grad if p.grad is not None else torch.zeros_like(p)
            p.grad = self.accelerator.reduce(grad, "sum")  # type: ignore[assignment]
        sums = self.accelerator.reduce(
            torch.tensor([lane.loss, lane.right, lane.weight], device=self.accelerator.device), "sum"
        )
        lane.loss, lane.right, lane.weight = sums.tolist()  # type: ignore[union-attr]

    def probe(self, longest: list[Document]) -> None:
        """Runs the longest batch once without a step, and says what memory it took: known before the first step, not after an hour."""
        device = self.lanes[0].method.receiver.device
        random = [[t.clone() for t in lane.random] for lane in self.lanes]
        reset_peak_memory(device)
        with self.memory_named():
            at_once = -(-len(longest) // self.accelerator.num_processes // self.recipe.accumulate)
            for documents in _alike(sorted(longest, key=length)[-at_once:]):
                self.learn(documents, 1.0)
        for lane, state in zip(self.lanes, random, strict=True):
            lane.optimiser.zero_grad(set_to_none=True)
            lane.random, lane.loss, lane.right, lane.weight = state, 0.0, 0.0, 0.0
        states = sum(
            2 * p.numel() * p.element_size() + p.numel() * p.element_size()
            for lane in self.lanes
            for p in lane.parameters
        )
        total = peak_memory_bytes(device) + states
        self.progress.say(
            f"memory: about {total / 1e9:.1f} GB at its peak (longest batch measured, optimiser and best states added)."
        )

    @contextmanager
    def memory_named(self) -> Iterator[None]:
        """Memory that runs out becomes one line that says which knob to turn."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise self.out_of_memory() from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
                raise
            raise self.out_of_memory() from error

    def out_of_memory(self) -> UserError:
        r = self.recipe
        knob = f"Raise --accumulate (now {r.accumulate}): same batch of {r.batch_size}, less at once; or lower --max-tokens or --batch-size."
        if len(self.lanes) > 1:
            knob += " Train fewer adapters side by side."
        return UserError(f"out of memory at step {self.step + 1}.", knob)

    def tell(self, rate: float) -> None:
        """One line of progress: means over the adapters."""
        lanes = self.alive or self.lanes
        gates = [lane.adapter.gate_logit for lane in lanes if hasattr(lane.adapter, "gate_logit")]
        opened, count = sum(int((g > 0).sum()) for g in gates), sum(g.numel() for g in gates)
        if self.main:
            loss, right = (
                sum(getattr(lane, name) for lane in lanes) / len(lanes) for name in ("loss", "right")
            )
            self.progress.step(self.step, self.recipe.steps, loss, right, opened, count, rate)
            if self._log is not None:
                self._log.add("", self.step, {"examples_per_s": rate, "gates_open": opened})
        for lane in lanes:
            lane.last_loss, lane.loss, lane.right = lane.loss, 0.0, 0.0

    # -- choosing and keeping ----------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Dev accuracy of every adapter, matched and with messages of other documents."""
        if self.main:
            points: list[dict[str, Any]] = [
                {"step": self.step, "loss": lane.last_loss} for lane in self.alive
            ]
            for lane in self.alive:
                lane.adapter.eval()
            with torch.inference_mode(), self.memory_named():
                for name, (task, documents) in self.dev.items():
                    self.score(name, task, documents, points)
            for lane, point in zip(self.alive, points, strict=True):
                lane.adapter.train()
                lane.judge(point)
                scores = {k: v for k, v in point.items() if "/" in k}
                self.progress.say(
                    f"step {self.step}, dev, {lane.spec.label}: "
                    + ", ".join(f"{k} {v:.3f}" for k, v in scores.items())
                )
                if self._log is not None:
                    self._log.add(lane.spec.label, self.step, scores)
                    self._log.seal()
        self.accelerator.wait_for_everyone()

    def score(self, name: str, task: Task, documents: list[Document], points: list[dict[str, Any]]) -> None:
        """Adds the mean scores of a dev task to every adapter's point."""
        controls = ("matched", "deranged")[: len(documents)]  # one document has no other to be deranged with
        senders = {control: sender_of(documents, control, self.recipe.seed) for control in controls}
        sums = {control: [0.0] * len(points) for control in controls}
        for group in batches(documents, self.recipe.at_once):
            with self.sharing():
                for control in controls:
                    for i, lane in enumerate(self.alive):
                        if control != "matched" and not lane.method.sends:
                            continue
                        batch = Batch(group, [senders[control][d.hash] for d in group], Clock())
                        outcomes, _ = answer(lane.method.respond(batch), batch)
                        sums[control][i] += sum(
                            task.score(d, o)[task.metric(d.scoring)]
                            for d, o in zip(group, outcomes, strict=True)
                        )
        for control in controls:
            for i, lane in enumerate(self.alive):
                if control == "matched" or lane.method.sends:
                    points[i][f"{name}/{control}"] = sums[control][i] / len(documents)

    def save_checkpoint(self) -> None:
        """Everything the next step depends on, all of it or nothing."""
        if self.main:
            path = self.recipe.out / CHECKPOINT
            state = {
                "recipe": self.recipe.digest(),
                "step": self.step,
                "lanes": [lane.state() for lane in self.lanes],
            }
            with writing(self.recipe.out):
                part = path.with_suffix(".partial")
                torch.save(state, part)
                part.replace(path)

    def interrupted(self) -> None:
        """Ctrl-C: keeps a checkpoint where no step is half done (else the last one stays), and the best states."""
        if not self.main:
            return
        if self.whole and self.step:
            self.save_checkpoint()
        if any(lane.best is not None for lane in self.lanes):
            saved = [str(lane.save(self.recipe)) for lane in self.lanes if lane.best is not None]
            self.progress.say(f"the best state so far is in {', '.join(saved)}.")
        if (self.recipe.out / CHECKPOINT).exists():
            self.progress.say(
                f"the last checkpoint is in {self.recipe.out}; the same command goes on from there."
            )
        else:
            self.progress.say("no step was checkpointed yet; --force starts over.")


def _checkpoint(recipe: TrainRecipe) -> dict[str, Any] | None:
    """The state to go on from. Raises UserError for one of another recipe, or that cannot be read."""
    path = recipe.out / CHECKPOINT
    if not path.exists() or recipe.force:
        return None
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} cannot be read (it is no checkpoint, or torn).", "Remove it, or start over with --force."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe.digest():
        raise UserError(
            f"{path} is of a training with other settings.",
            "Repeat that command, name another --out, or start over with --force.",
        )
    return dict(state)


def batch_order(examples: Sequence[Document], recipe: TrainRecipe) -> list[list[Document]]:
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
            key=lambda d: (d.shared, length(d)),
        )
        groups = [part[i : i + recipe.batch_size] for i in range(0, len(part), recipe.batch_size)]
        out += [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    return out[: recipe.steps]


def _alike(documents: Sequence[Document]) -> list[list[Document]]:
    """The documents apart by shared and different contexts: the two cannot go through one forward."""
    parts = [[d for d in documents if d.shared is shared] for shared in (True, False)]
    return [part for part in parts if part]

"""Trains adapters between two frozen models, through the same `respond` that a run uses.

Several are trained side by side: both models read each batch once for all adapters.

>>> recipe = TrainRecipe(adapters=["lcf:width=64", "lcf:width=128"], task=["splitfacts"])
>>> train(recipe, progress)                                                   # doctest: +SKIP
"""

from __future__ import annotations

import operator
import platform
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lcfbench.controls.base import load_control
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches, length
from lcfbench.files import check_room, finish, lock_of, locked, still, writing
from lcfbench.methods.base import Batch
from lcfbench.methods.load_pair import Pair
from lcfbench.models.causal_lm import sharing
from lcfbench.models.finite import NotFiniteError
from lcfbench.models.memory import peak_memory_bytes, ran_out, reset_peak_memory
from lcfbench.models.prefill_memory import Store
from lcfbench.models.protocol import LanguageModel
from lcfbench.models.shared_prefill import Held
from lcfbench.models.timing import Clock, now
from lcfbench.progress import Silent, TrainProgress, duration
from lcfbench.provenance import digest
from lcfbench.results.training_log import TrainLog
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task
from lcfbench.tracking import Tracker
from lcfbench.tracking import begin as begin_tracking
from lcfbench.training import checkpoint, processes
from lcfbench.training.adapter_training import DEV_SHARE, AdapterTraining
from lcfbench.training.cost import CHECKPOINT_BYTES
from lcfbench.training.options import expanded
from lcfbench.training.processes import Group
from lcfbench.training.recipe import BLOCK, CHECKPOINT, TrainRecipe, check, check_folder, folder_of
from lcfbench.training.setup import (
    Dev,
    accelerator_of,
    check_adapters,
    data_of,
    fitting,
    models_of,
    trainings_of,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(recipe: TrainRecipe, progress: TrainProgress) -> list[Path]:
    """Trains and saves the best states by dev accuracy. Returns the adapters' folders.

    A killed training goes on from its last checkpoint under the same recipe, and ends like an
    uninterrupted one. Of the processes of a launcher the first one writes, and where one fails, all
    end. Raises UserError: another process writes the folder, a method without adapter, data that do
    not fit it, no train split, too little memory, a loss that is not finite (the best state so far is
    saved first), an output folder that already holds an adapter.
    """
    with processes.joined(lambda: accelerator_of(recipe)) as group, ExitStack() as stack:
        recipe = expanded(recipe)
        check(recipe)
        check_adapters(recipe)
        folders = [folder_of(recipe, spec) for spec in recipe.specs()]
        if group.first:
            check_folder(recipe)
            for place in sorted({recipe.out, *folders}, key=lock_of):  # the order in which all wait
                stack.enter_context(locked(place, recipe.wait, say=progress.say))
                finish(place)
            check_folder(recipe)  # another process may have finished meanwhile
        _train(recipe, progress if group.first else Silent(), accelerator_of(recipe), group)
        return folders


def _train(recipe: TrainRecipe, progress: TrainProgress, accelerator: Accelerator, group: Group) -> None:
    resumed, place = None, recipe.out / CHECKPOINT
    if group.first and not recipe.force:
        resumed = checkpoint.load(place, recipe.digest(), "training")
    torch.set_num_threads(group.share(torch.get_num_threads()))  # sums of equal numbers are equal then
    pair = models_of(recipe, accelerator)
    examples, dev = data_of(recipe, pair, progress.say)
    trainings = trainings_of(recipe, pair, examples)
    dev = fitting(dev, trainings, recipe.seed, progress.say)
    facts, own = facts_of(pair, examples, dev), machine(accelerator.device)
    group.agree({"settings": recipe.digest(), **facts, **own})
    if group.first:
        if resumed is not None:
            checkpoint.check_same(place, resumed, facts, group.count)
            if other := [name for name in own if resumed["machine"].get(name) != own[name]]:
                progress.say(f"goes on with other {' and '.join(other)}: the last digits may differ.")
        need = CHECKPOINT_BYTES * sum(one.adapter.params for one in trainings)
        check_room(recipe.out, need, "this training, with its checkpoints,", "name an --out")
    resumed = group.share(resumed)
    origin = {"processes": group.count, "facts": facts, "machine": own}
    trainer = Trainer(recipe, trainings, dev, progress, accelerator, group, origin)
    if resumed is None:
        trainer.prepare(examples)
    for one in trainings:
        one.join(group)
        kind, params = one.adapter.config.kind, one.adapter.params
        progress.say(f"{one.spec.label}: {kind} adapter, {params:,} parameters.")
    models = f"models in {pair.receiver.dtype} on {pair.receiver.device}"
    progress.say(f"{len(examples):,} examples from {', '.join(recipe.task)}; {models}.")
    if group.count > 1:
        progress.say(f"{group.count} processes; each reads its part of every batch.")
    trainer.fit(examples, resumed)
    if group.first:
        for one in trainings:
            one.save()
            if not one.failed:
                one.method.finished(progress.say)
        with writing(recipe.out), still(place):
            place.unlink(missing_ok=True)
    if failed := [one for one in trainings if one.failed]:
        kept = ", ".join(str(one.folder) for one in failed)
        raise UserError(
            f"the {failed[0].failed} is not finite at step {failed[0].steps_done + 1}.",
            f"The best state so far is in {kept}; lower --lr.",
        )


def facts_of(pair: Pair, examples: Sequence[Document], dev: Dev) -> dict[str, str]:
    """Returns digests of what a training starts from, by name; a checkpoint needs the same."""

    def hashes(documents: Iterable[Document]) -> str:
        return digest([d.hash for d in documents])[:16]

    return {
        "models": f"{pair.receiver.revision}:{pair.sharer.revision}",
        "examples": hashes(examples),
        "dev documents": hashes(d for _, documents in dev.values() for d in documents),
    }


def machine(device: torch.device) -> dict[str, str]:
    """Returns on what the last digits of a training depend, beside its settings."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": f"torch {torch.__version__}, transformers {version('transformers')}",
        "threads": str(torch.get_num_threads()),
        "processor": gpu or f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


@dataclass
class Trainer:
    """Runs the steps. All that belongs to one adapter is in its `AdapterTraining`.

    dev: for each dev task its documents. origin: what else a checkpoint says. kept: whether there is one.
    whole: whether no step, and no record of one, is half done. judged: what the models have read of the
    dev documents, by task and batch.
    """

    recipe: TrainRecipe
    trainings: list[AdapterTraining]
    dev: Dev
    progress: TrainProgress
    accelerator: Accelerator
    group: Group = field(default_factory=Group)
    origin: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = False
    step: int = 0
    whole: bool = True
    judged: dict[tuple[str, int], dict[LanguageModel, Held]] = field(default_factory=dict)
    _log: TrainLog | None = field(default=None)
    _tracker: Tracker | None = field(default=None)

    @property
    def steps(self) -> int:
        """Steps of the longest of them."""
        return max(one.recipe.steps for one in self.trainings)

    @property
    def learning(self) -> list[AdapterTraining]:
        """Those that take the next step: not failed, and not at their last."""
        return [one for one in self.trainings if one.learns_at(self.step)]

    @property
    def owing(self) -> list[AdapterTraining]:
        """Those whose dev evaluation is due and not done."""
        return [one for one in self.trainings if one.owes(self.step)]

    def prepare(self, examples: Sequence[Document]) -> None:
        """Measures input statistics and the like for fresh adapters."""
        with self.sharing(), self.memory_named():
            for one in self.trainings:
                with one.own_randomness():
                    one.method.prepare(examples[: one.recipe.drawn], self.progress.say)

    def fit(self, examples: Sequence[Document], resumed: dict[str, Any] | None = None) -> None:
        """Runs the steps that are left, from the checkpoint `resumed` or from the first."""
        r, table = self.recipe, None
        order = batch_order(examples, r, self.steps)
        stores: dict[LanguageModel, Store] = {lm: {} for lm in self.models}
        for one in self.trainings:
            one.plan(order, stores)
        if resumed is not None:
            try:
                self.step = operator.index(resumed["step"])
                table = bytes(resumed["log"].numpy())
                for one, state in zip(self.trainings, resumed["trainings"], strict=True):
                    one.restore(state)
            except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
                raise checkpoint.torn(self.recipe.out / CHECKPOINT, error) from error
            self.kept = True
            self.progress.say(f"goes on from step {self.step} of {self.steps}.")
        log = self._log = TrainLog(r.out, table) if self.group.first else None
        if r.tracker and self.group.first:
            name = f"{r.out.resolve().name}-{r.digest()[:10]}"
            settings = r.model_dump(mode="json")
            self._tracker = begin_tracking(r.tracker, name, settings, r.out, self.progress.say)
        for one in self.trainings:
            one.adapter.train()
        if self.step < self.steps:
            self.probe(order[self.step : self.steps])
        began, first, evaluating = time.perf_counter(), self.step, 0.0
        try:
            if self.owing:  # an interruption came before it
                self.evaluate()
            while self.learning:
                self.whole = False
                self.once(order[self.step])
                self.step += 1
                seconds = time.perf_counter() - began - evaluating
                self.report((self.step - first) * r.batch_size / seconds)
                judged = bool(self.owing)
                if judged:
                    started = time.perf_counter()
                    self.evaluate()
                    evaluating += time.perf_counter() - started
                # a best state that Ctrl-C saves needs a checkpoint beside it: without one it looks finished
                begin = judged and not self.kept
                if (begin or self.step % r.save_every == 0) and self.step < self.steps:
                    self.save_checkpoint()
        except KeyboardInterrupt:
            self.interrupted()
            raise
        finally:
            if self._tracker is not None:
                best = {f"{o.spec.label}/best": o.best[0] for o in self.trainings if o.best is not None}
                self._tracker.finish(best, good=self.step == self.steps)
        if log is not None:
            log.close()

    def once(self, group: list[Document]) -> None:
        """Does one optimiser step of every adapter on the same batch."""
        common = 0.0
        mine = group[self.accelerator.process_index :: self.accelerator.num_processes]
        per_pass = max(-(-len(mine) // self.recipe.accumulate), 1)
        learning = self.learning
        for one in learning:
            one.adapter.anneal(self.step, one.recipe.steps)
        with self.memory_named():
            for start in range(0, len(mine), per_pass):
                for documents in _alike(mine[start : start + per_pass]):
                    self.group.step()
                    common += self.learn(learning, documents, len(documents) / len(group), self.step)
        for one in learning:
            one.gather(self.accelerator, self.group)
            if not one.step(common / len(learning)):
                where = f"not finite at step {self.step + 1}; it stops here."
                self.progress.say(f"{one.spec.label}: the {one.failed} is {where}")
            elif self._log is not None:
                self._log.add(one.spec.label, self.step + 1, one.last)
                self.track(one.spec.label, one.last, self.step + 1)

    def track(self, label: str, values: Mapping[str, float], step: int) -> None:
        """Passes the numbers of an adapter on to the tracker, where there is one."""
        if self._tracker is not None:
            self._tracker.log({f"{label}/{name}": value for name, value in values.items()}, step)

    def learn(
        self,
        some: Sequence[AdapterTraining],
        documents: list[Document],
        share: float,
        step: int | None = None,
    ) -> float:
        """Adds the gradients of some adapters on documents that both models read once.

        step: whose documents they are; without it nothing is kept for later ones. Returns the seconds
        of reading that the adapters have in common.
        """
        common, device = 0.0, self.trainings[0].method.receiver.device
        with self.sharing():
            for one in some:
                read, began = sum(lm.shared.read_seconds for lm in self.models), now(device)
                with nullcontext() if step is None else one.remembering(documents, step):
                    one.backward(documents, share, self.accelerator.backward)
                reading = sum(lm.shared.read_seconds for lm in self.models) - read
                one.spent += now(device) - began - reading
                common += reading
        return common

    @property
    def models(self) -> list[LanguageModel]:
        """The models of all adapters, each once; a baseline may use other ones."""
        return list(
            dict.fromkeys(lm for one in self.trainings for lm in (one.method.receiver, one.method.sharer))
        )

    def sharing(self, kept: Mapping[LanguageModel, Held] | None = None) -> AbstractContextManager[None]:
        """Lets all adapters share equal prefills. kept: of an earlier time."""
        return sharing(self.models, kept)

    def probe(self, order: Sequence[list[Document]]) -> None:
        """Runs the longest batch left without a step; reports its memory, and the time of all.

        An adapter that ends before the others is given the longest of its own batches.
        """
        sizes = [sum(length(d) for d in group) for group in order]
        device = self.trainings[0].method.receiver.device
        random = [one.random for one in self.trainings]
        tried: dict[int, list[AdapterTraining]] = {}  # number of the batch → adapters
        for one in self.learning:
            own = sizes[: one.recipe.steps - self.step]
            tried.setdefault(own.index(max(own)), []).append(one)
        reset_peak_memory(device)
        with self.memory_named():
            per_token = 0.0
            for place, some in tried.items():
                at_once = -(-len(order[place]) // self.accelerator.num_processes // self.recipe.accumulate)
                parts = _alike(sorted(order[place], key=length)[-at_once:])
                common = sum(self.learn(some, documents, 1.0) for documents in parts)
                per_token = max(per_token, common / sizes[place])
        seconds = per_token * sum(sizes)
        for place, some in tried.items():
            taken = (one.spent * sum(sizes[: one.recipe.steps - self.step]) for one in some)
            seconds += sum(taken) / sizes[place]
        for one, state in zip(self.trainings, random, strict=True):
            one.clear()
            one.random = state
        states = sum(3 * p.numel() * p.element_size() for one in self.trainings for p in one.parameters)
        gigabytes = (peak_memory_bytes(device) + states) / 1e9
        self.progress.say(
            f"memory: about {gigabytes:.1f} GB at its peak (longest batch measured, optimiser and best "
            f"states added), and up to {self.recipe.prefills_gb:g} GB of readings that are kept. "
            f"Time: about {duration(self.recipe.accumulate * seconds)} for "
            f"{len(order)} steps, dev evaluations not counted."
        )

    @contextmanager
    def memory_named(self) -> Iterator[None]:
        """Turns memory that runs out into a UserError that names the setting to change."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            r = self.recipe
            several = " Train fewer adapters side by side." if len(self.trainings) > 1 else ""
            raise UserError(
                f"out of memory at step {self.step + 1}.",
                f"Raise --accumulate (now {r.accumulate}): same batch of {r.batch_size}, less at once; "
                f"or lower --max-tokens or --batch-size.{several}",
            ) from error

    def report(self, rate: float) -> None:
        """Records one step, which is whole then, and reports it: means over the adapters.

        rate: examples per second.
        """
        if self._log is None:
            self.whole = True
            return
        some = [one for one in self.trainings if one.steps_done == self.step] or self.trainings
        gates = [one.adapter.gate_logit for one in some]
        opened, count = sum(int((g > 0).sum()) for g in gates), sum(g.numel() for g in gates)
        loss, right = (sum(one.last[name] for one in some) / len(some) for name in ("loss", "tokens_right"))
        values = {"examples_per_s": rate, "gates_open": opened, "processes": self.group.count}
        self._log.add("", self.step, values)
        self.whole = True
        self.progress.step(self.step, self.steps, loss, right, opened, count, rate)

    # -- choosing and keeping ---------------------------------------------------------------------

    def evaluate(self) -> None:
        """Measures the dev accuracy, matched and deranged, of each adapter that owes an evaluation.

        The first process does it alone; the others wait.
        """
        if self.group.first:
            trainings = self.owing
            points: list[dict[str, Any]] = [
                {"step": self.step, **({"loss": one.last["loss"]} if self.step else {})} for one in trainings
            ]
            for one in trainings:
                one.adapter.eval()
            with torch.inference_mode(), self.memory_named():
                for name, (task, documents) in self.dev.items():
                    for point, scores in zip(
                        points, self.scores(trainings, name, task, documents), strict=True
                    ):
                        point |= scores
            self.whole, said = False, []
            for one, point in zip(trainings, points, strict=True):
                one.adapter.train()
                if one.failed:
                    continue
                one.judge(point)
                scores = {k: v for k, v in point.items() if "/" in k}
                shown = ", ".join(f"{k} {v:.3f}" for k, v in scores.items())
                said.append(f"step {self.step}, dev, {one.spec.label}: {shown}")
                if self._log is not None:
                    self._log.add(one.spec.label, self.step, scores)
                    self.track(one.spec.label, scores, self.step)
                    self._log.seal()
            self.whole = True
            for text in said:
                self.progress.say(text)
        failed = self.group.share([one.failed for one in self.trainings])
        for one, why in zip(self.trainings, failed, strict=True):
            one.failed = why

    def scores(
        self, trainings: Sequence[AdapterTraining], name: str, task: Task, documents: list[Document]
    ) -> list[dict[str, float]]:
        """Returns the mean scores of adapters on a dev task, as `task/control`.

        One whose answers are not finite gets its reason as `failed`.
        """
        controls = ("matched", "deranged")[: len(documents)]  # one document alone cannot be deranged
        senders = {
            control: load_control(control).message_from(documents, self.recipe.seed) for control in controls
        }
        means: list[dict[str, float]] = [{} for _ in trainings]
        for number, group in enumerate(batches(documents, self.recipe.at_once)):
            self.group.step()
            kept = self.judged.pop((name, number), None) or {lm: {} for lm in self.models}
            with self.sharing(kept):
                for control in controls:
                    batch = Batch(group, [senders[control][d.hash] for d in group], Clock())
                    for one, mean in zip(trainings, means, strict=True):
                        if one.failed or (control != "matched" and not one.method.sends):
                            continue
                        try:
                            outcomes, _ = answer(one.method.respond(batch), batch)
                        except NotFiniteError as error:
                            one.failed = "answer to a dev document"
                            self.progress.say(f"{one.spec.label} stops here: {error.what}")
                            continue
                        scored = zip(group, outcomes, strict=True)
                        total = sum(task.score(d, o)[task.metric(d.scoring)] for d, o in scored)
                        key = f"{name}/{control}"
                        mean[key] = mean.get(key, 0.0) + total
            self.judged[name, number] = kept
            if sum(map(bytes_of, self.judged.values())) > 1e9 * DEV_SHARE * self.recipe.prefills_gb:
                del self.judged[name, number]
        return [{key: total / len(documents) for key, total in mean.items()} for mean in means]

    def save_checkpoint(self) -> None:
        """Saves all that the next step depends on, whole or not at all: all processes' random numbers too."""
        own = self.group.gather([one.own_state() for one in self.trainings])
        if self._log is not None:
            states = [one.state(list(each)) for one, *each in zip(self.trainings, *own, strict=True)]
            log = torch.frombuffer(bytearray(self._log.table()), dtype=torch.uint8)
            state = {"recipe": self.recipe.digest(), "step": self.step, "trainings": states, "log": log}
            checkpoint.save(self.recipe.out / CHECKPOINT, {**state, **self.origin})
        self.kept = True

    def interrupted(self) -> None:
        """Keeps a checkpoint where nothing is half done and no other process needed, and the best states."""
        if not self.group.first:
            return
        if self.whole and self.step and self.group.count == 1:
            self.save_checkpoint()
        if self.kept:
            if saved := [str(one.save()) for one in self.trainings if one.best is not None]:
                self.progress.say(f"the best state so far is in {', '.join(saved)}.")
            where = f"the last checkpoint is in {self.recipe.out}"
            self.progress.say(f"{where}; the same command goes on from there.")
        else:
            self.progress.say("no step was checkpointed yet; the same command starts over.")


def batch_order(examples: Sequence[Document], recipe: TrainRecipe, steps: int) -> list[list[Document]]:
    """Returns a batch for each step, sorted by length within eight batches.

    The first pass takes the examples in their order, later ones in seeded shuffles. The batches of
    a shorter training are the first ones of a longer one.
    """
    size, drawn, out = recipe.batch_size, list(examples), list[list[Document]]()
    passes, blocks = (random.Random(f"{name}/{recipe.seed}") for name in ("passes", "blocks"))
    while len(out) < steps:
        while len(drawn) < BLOCK * size:
            drawn += passes.sample(examples, len(examples))
        part, drawn = drawn[: BLOCK * size], drawn[BLOCK * size :]
        part.sort(key=lambda d: (d.shared, length(d)))
        groups = [part[i : i + size] for i in range(0, len(part), size)]
        out += blocks.sample(groups, len(groups))
    return out[:steps]


def bytes_of(kept: Mapping[LanguageModel, Held]) -> int:
    """Returns the bytes of readings of several models."""
    return sum(kv.nbytes for held in kept.values() for kv, _ in held.values())


def _alike(documents: Sequence[Document]) -> list[list[Document]]:
    """Divides documents by shared and different contexts: one forward cannot take both."""
    parts = [[d for d in documents if d.shared is shared] for shared in (True, False)]
    return [part for part in parts if part]

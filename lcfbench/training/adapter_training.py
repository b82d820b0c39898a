"""One adapter in training: method, optimiser, random state, dev curve, best state so far.

Each draws its random numbers from a state of its own, so that an adapter trained beside others is
the one trained alone, bit for bit.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.card import card
from lcfbench.adapters.files import save
from lcfbench.evaluation.answer import target
from lcfbench.files import writing
from lcfbench.methods.base import Batch, Method
from lcfbench.models.answering import answer_loss
from lcfbench.models.memory import cuda_devices
from lcfbench.models.prefill_memory import Budget, Memory, Store
from lcfbench.models.protocol import LanguageModel, State
from lcfbench.models.timing import Clock, now
from lcfbench.tasks.document import Document
from lcfbench.training.processes import Group
from lcfbench.training.recipe import OWN, AdapterSpec, TrainRecipe, folder_of

if TYPE_CHECKING:
    from accelerate import Accelerator

DEV_SHARE = 0.25  # of the bytes for readings: those of the dev documents
FLOOR = 0.02  # of the peak learning rate: the last steps still learn
KEPT = ("curve", "best", "failed", "steps_done", "seconds", "last", "noted")  # in a checkpoint, as they are
RECORDED = {*OWN, "task_options", "targets", "batch_size", "dev_documents"}


@dataclass
class AdapterTraining:
    """An adapter in training.

    recipe: given the whole training's, it becomes the adapter's own settings. senders: by document
    hash the document whose message is read; without it each document's own.
    contexts: `shared`, `different`, as the examples have them. curve: a point for each dev
    evaluation. best: matched dev score and weights. failed: why it has stopped. seconds: of all
    steps. loss, right, weight, spent: sums over the batch so far; spent is its own seconds. last:
    values of the last step, for the log. random: the states of its random numbers. processes: that
    train it. last_use: of each example by hash, the last step that reads it. memories: of each model,
    where examples are read again.
    """

    spec: AdapterSpec
    method: Method
    recipe: TrainRecipe
    senders: dict[str, Document] | None = None
    contexts: tuple[str, ...] = ()
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, dict[str, Tensor]] | None = None
    failed: str | None = None
    steps_done: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    right: float = 0.0
    weight: float = 0.0
    spent: float = 0.0
    last: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "tokens_right": 0.0})
    random: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    last_use: dict[str, int] = field(default_factory=dict)
    memories: dict[LanguageModel, Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Makes the optimiser: AdamW with linear warm-up and decay."""
        assert self.method.adapter is not None
        self.recipe = self.spec.recipe(self.recipe)
        self.adapter: Adapter = self.method.adapter
        self.parameters = [p for p in self.adapter.parameters() if p.requires_grad]
        r, self.process = self.recipe, 0
        # fused: one pass over each tensor; a fifth of the time on a CPU
        self.optimiser = torch.optim.AdamW(self.parameters, lr=r.lr, weight_decay=r.weight_decay, fused=True)
        up, down = r.warmup_steps, max(r.steps - r.warmup_steps, 1)
        self.schedule = LambdaLR(
            self.optimiser, lambda s: min((s + 1) / up, max((r.steps - s) / down, FLOOR))
        )

    @property
    def noted(self) -> dict[str, Any]:
        """What the method has noted in the adapter's config before the first step."""
        return self.adapter.config.training

    @noted.setter
    def noted(self, training: dict[str, Any]) -> None:
        self.adapter.config = self.adapter.config.model_copy(update={"training": training})

    @property
    def folder(self) -> Path:
        """Where the adapter is saved."""
        return folder_of(self.recipe, self.spec)

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Draws random numbers from this adapter's state, and leaves the global one alone."""
        device = self.method.receiver.device
        outside = _random_state(device)
        if self.random:
            _set_random_state(self.random, device)
        else:
            _seed(self.spec.seed + 1_000_003 * self.process)
        try:
            yield
        finally:
            self.random = _random_state(device)
            _set_random_state(outside, device)

    def learns_at(self, step: int) -> bool:
        """Whether it takes the step after so many."""
        return not self.failed and step < self.recipe.steps

    def owes(self, step: int) -> bool:
        """Whether its dev evaluation after so many steps is due and not done."""
        r = self.recipe
        due = step == r.steps or (0 < step < r.steps and step % r.eval_every == 0)
        return due and not self.failed and (not self.curve or self.curve[-1]["step"] < step)

    def plan(self, order: Sequence[Sequence[Document]], stores: Mapping[LanguageModel, Store]) -> None:
        """Keeps readings from now on, where examples come again in these batches.

        stores: of each model, shared by all adapters.
        """
        own = order[: self.recipe.steps]
        self.last_use = {d.hash: step for step, group in enumerate(own) for d in group}
        limit = round(1e9 * self.recipe.prefills_gb * (1 - DEV_SHARE))
        if limit and len(self.last_use) < sum(map(len, own)):
            budget, both = Budget(limit), (self.method.receiver, self.method.sharer)
            self.memories = {lm: Memory(budget, stores[lm]) for lm in both}

    @contextmanager
    def remembering(self, documents: Sequence[Document], step: int) -> Iterator[None]:
        """Within it, what is read of these documents is kept if one of them comes again."""
        with ExitStack() as stack:
            for lm, memory in self.memories.items():
                memory.adds = any(self.last_use[d.hash] > step for d in documents)
                stack.enter_context(lm.shared.remembering(memory))
            yield

    # -- a step -----------------------------------------------------------------------------------

    def backward(
        self, documents: Sequence[Document], share: float, backward: Callable[[Tensor], None]
    ) -> None:
        """Adds the gradient of these documents' loss, weighted by their share of the batch."""
        with self.own_randomness(), self.method.receiver.differentiable():
            loss, right, tokens = self.forward(documents)
            # `step` divides token sums by the number of tokens in the whole batch
            weight = share if self.recipe.loss_mean == "document" else tokens
            backward(loss * weight)
        self.loss += float(loss.detach()) * weight
        self.right += float(right) * weight
        self.weight += weight

    def forward(self, documents: Sequence[Document]) -> tuple[Tensor, Tensor, int]:
        """Returns the method's loss, the share of right tokens, and their number, see `Method.loss`."""
        senders = documents if self.senders is None else [self.senders[d.hash] for d in documents]
        batch, done = Batch(documents, senders, Clock()), self.steps_done / self.recipe.steps
        return self.method.loss(batch, done, partial(self.judge_answers, documents))

    def judge_answers(self, documents: Sequence[Document], state: State) -> tuple[Tensor, Tensor, int]:
        """Returns the cross-entropy of the answers, the share of right tokens, and their number.

        Supervised tokens only, on the state that a method leaves.
        """
        lm = state.lm
        gold = [
            target(d, p, lm.tokenizer, lm.tokenizer.eos_token_id, self.spec.supervise)
            for d, p in zip(documents, state.prompts, strict=True)
        ]
        ids, flags = [ids for ids, _ in gold], [flags for _, flags in gold]
        loss, right = answer_loss(state, ids, flags, self.recipe.loss_mean)
        return loss, right, sum(map(sum, flags))

    def gather(self, accelerator: Accelerator, group: Group) -> None:
        """Sums gradients, loss and accuracy over processes: each has read its part of the batch."""
        if group.count == 1:
            return
        sums = torch.tensor([self.loss, self.right, self.weight], dtype=torch.float64)
        with group.waiting():
            for p in self.parameters:
                grad = p.grad if p.grad is not None else torch.zeros_like(p)
                p.grad = accelerator.reduce(grad, "sum")  # type: ignore[assignment]
            summed: Any = accelerator.reduce(sums.to(accelerator.device), "sum")
        self.loss, self.right, self.weight = summed.tolist()

    def step(self, shared: float) -> bool:
        """Does one optimiser step on the gradients. shared: its part of the seconds of common readings.

        Where loss or gradient is not finite, no weight changes and `failed` is set: False.
        """
        began = now(self.method.receiver.device)
        self.last = {"loss": self.loss / self.weight, "tokens_right": self.right / self.weight}
        if self.recipe.loss_mean == "token":
            for p in self.parameters:
                if p.grad is not None:
                    p.grad /= self.weight
        size = math.nan
        if math.isfinite(self.last["loss"]):
            size = float(nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip))
        if not math.isfinite(size):
            self.failed = "gradient" if math.isfinite(self.last["loss"]) else "loss"
            self.clear()
            return False
        self.optimiser.step()
        self.schedule.step()
        self.steps_done += 1
        self.seconds += self.spent + shared + now(self.method.receiver.device) - began
        self.clear()
        self.last |= {"gradient_norm": size, "lr": float(self.schedule.get_last_lr()[0])}
        return True

    def clear(self) -> None:
        """Drops the gradients and the sums over the batch."""
        self.optimiser.zero_grad(set_to_none=True)
        self.loss = self.right = self.weight = self.spent = 0.0

    # -- choosing and keeping ---------------------------------------------------------------------

    def judge(self, point: dict[str, Any]) -> None:
        """Adds a point of the dev curve; keeps the weights with the best matched mean."""
        self.curve.append(point)
        matched = [v for k, v in point.items() if k.endswith("/matched")]
        mean = sum(matched) / len(matched)
        if self.best is None or mean >= self.best[0]:
            self.best = (mean, copy.deepcopy(self.adapter.state_dict()))

    def save(self) -> Path:
        """Saves the best weights by dev accuracy, with a card; leaves the adapter with them."""
        if self.best is not None:
            self.adapter.load_state_dict(self.best[1])
        r, receiver, sharer = self.recipe, self.method.receiver, self.method.sharer
        training = {
            "method": self.spec.mode,
            "tasks": r.task,
            "contexts": list(self.contexts),
            "dev_tasks": sorted({k.rpartition("/")[0] for p in self.curve for k in p if "/" in k}),
            "senders": self.spec.senders,
            "supervise": self.spec.supervise,
            "method_options": self.method.options(),
            "steps": self.steps_done,
            "warmup": r.warmup_steps,
            "seed": self.spec.seed,
            "data_seed": r.seed,
            "models_dtype": str(receiver.dtype).removeprefix("torch."),
            "revisions": {"receiver": receiver.revision, "sharer": sharer.revision},
            "device": receiver.device.type,
            "processes": self.processes,
            "minutes": round(self.seconds / 60, 1),
            "beside": r.adapters if len(r.adapters) > 1 else [],
            "dev": self.curve,
        }
        if self.failed:
            training["failed"] = self.failed
        training = self.adapter.config.training | r.model_dump(include=RECORDED) | training
        self.adapter.config = self.adapter.config.model_copy(update={"training": training})
        with writing(self.folder):  # an adapter there may be replaced: by --force, or it is an earlier save
            save(self.adapter, self.folder, card(self.adapter), replace=True)
        return self.folder

    @property
    def _stateful(self) -> dict[str, Any]:
        return {"adapter": self.adapter, "optimiser": self.optimiser, "schedule": self.schedule}

    def own_state(self) -> dict[str, Any]:
        """Returns what the next step depends on and every process has of its own."""
        homes = [memory.state() for memory in self.memories.values()]
        used = max((memory.budget.used for memory in self.memories.values()), default=0)
        return {"random": self.random, "homes": homes, "used": used}

    def state(self, own: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns all that the next step depends on. own: `own_state` of each process."""
        kept = {name: getattr(self, name) for name in KEPT} | {"own": own}
        return kept | {name: part.state_dict() for name, part in self._stateful.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a checkpoint."""
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])
        for name in KEPT:
            setattr(self, name, state[name])
        own = state["own"][self.process]
        self.random = own["random"]
        for memory, homes in zip(self.memories.values(), own["homes"], strict=True):
            memory.restore(homes)
            memory.budget.used = own["used"]

    def join(self, group: Group) -> None:
        """Takes the first process's weights; later processes draw random numbers of their own."""
        self.processes = group.count
        if group.count == 1:
            return
        with group.waiting():
            for tensor in self.adapter.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        if not group.first:
            self.random, self.process = {}, group.number


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_state(device: torch.device) -> dict[str, Any]:
    """Returns the states of all global random numbers, in types that a checkpoint may hold."""
    numbers: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numbers
    return {
        "python": random.getstate(),
        "numpy": (str(name), keys.tolist(), *map(float, rest)),
        "torch": torch.get_rng_state(),
        "cuda": {index: torch.cuda.get_rng_state(index) for index in cuda_devices(device)},
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), int(place), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    for index, each in state["cuda"].items():
        torch.cuda.set_rng_state(each, index)

"""One of the adapters that are trained side by side: its method, optimiser, random state, dev curve and best state so far.

A lane draws its random numbers from a state of its own, so that an adapter trained beside others is the one trained alone, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.card import card
from lcfbench.adapters.files import save
from lcfbench.evaluation.answer import target
from lcfbench.files import writing
from lcfbench.methods.base import Batch, Method
from lcfbench.models.answering import answer_loss
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.training.recipe import AdapterSpec, TrainRecipe

FLOOR = 0.02  # of the peak learning rate: the last steps still learn


@dataclass
class AdapterTraining:
    """An adapter in training.

    senders: whose message a document gets (by hash); without it, its own. contexts: `shared`, `different`, as the examples have them.
    failed: why it was stopped.
    """

    spec: AdapterSpec
    method: Method
    folder: Path
    senders: dict[str, Document] | None = None
    contexts: tuple[str, ...] = ()
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, dict[str, torch.Tensor]] | None = None
    failed: str | None = None
    steps_done: int = 0
    seconds: float = 0.0
    right: float = 0.0
    loss: float = 0.0
    last_loss: float = 0.0
    loss_mean: str = "document"
    weight: float = 0.0
    offset: int = 0  # of the random stream, for the processes after the first
    optimiser: Any = None
    schedule: Any = None
    random: list[torch.Tensor] = field(default_factory=list)

    @property
    def adapter(self) -> Adapter:
        assert self.method.adapter is not None
        return self.method.adapter

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.adapter.parameters() if p.requires_grad]

    def begin(self, recipe: TrainRecipe) -> None:
        """A fresh optimiser: AdamW with linear warm-up and decay."""
        # fused: one pass over each tensor; a fifth of the time on a CPU, where PyTorch's default goes over it a dozen times
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        up, steps = recipe.warmup_steps, recipe.steps
        down = max(steps - up, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda s: min((s + 1) / up, max((steps - s) / down, FLOOR))
        )

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Random numbers inside come from this lane's stream, and leave everybody else's where it was."""
        device = self.method.receiver.device
        outside = _random_state(device)
        if self.random:
            _set_random_state(self.random, device)
        else:
            torch.manual_seed(self.spec.seed + 1_000_003 * self.offset)
        try:
            yield
        finally:
            self.random = _random_state(device)
            _set_random_state(outside, device)

    def backward(self, documents: Sequence[Document], share: float, backward: Any) -> None:
        """Adds the gradient of these documents' loss, weighted by their share of the batch."""
        with self.own_randomness():
            loss, right, tokens = self.forward(documents)
            weight = (
                share if self.loss_mean == "document" else tokens
            )  # tokens are divided by their number in the whole batch, in `step`
            backward(loss * weight)
        self.loss += float(loss.detach()) * weight
        self.right += float(right) * weight
        self.weight += weight

    def forward(self, documents: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Cross-entropy of the answers on the state that `respond` leaves, the share of supervised tokens that are right, and their number."""
        senders = [self.senders[d.hash] for d in documents] if self.senders is not None else documents
        state = self.method.respond(Batch(documents, senders, Clock()))
        lm = state.lm
        eos = lm.tokenizer.eos_token_id
        pairs = [
            target(d, p, lm.tokenizer, eos, self.spec.supervise)
            for d, p in zip(documents, state.prompts, strict=True)
        ]
        loss, right = answer_loss(
            state, [ids for ids, _ in pairs], [flags for _, flags in pairs], self.loss_mean
        )
        return loss, right, sum(sum(flags) for _, flags in pairs)

    def step(self, clip: float) -> float:
        """One optimiser step on the gradients gathered. Returns their norm; raises FloatingPointError before anything bad reaches the weights."""
        self.loss, self.right = self.loss / self.weight, self.right / self.weight
        if self.loss_mean == "token":
            for p in self.parameters:
                if p.grad is not None:
                    p.grad /= self.weight
        self.weight = 0.0
        if not math.isfinite(self.loss):
            raise FloatingPointError("loss")
        size = float(nn.utils.clip_grad_norm_(self.parameters, clip))
        if not math.isfinite(size):
            raise FloatingPointError("gradient")
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        return size

    def judge(self, point: dict[str, Any]) -> None:
        """Adds a point of the dev curve; the best matched mean so far is kept, later ones first."""
        self.curve.append(point)
        matched = [v for k, v in point.items() if k.endswith("/matched")]
        mean = sum(matched) / len(matched)
        if self.best is None or mean >= self.best[0]:
            self.best = (mean, copy.deepcopy(self.adapter.state_dict()))

    def save(self, recipe: TrainRecipe) -> Path:
        """The best state by dev accuracy (the present one before the first evaluation), with its card. The adapter is left in that state."""
        if self.best is not None:
            self.adapter.load_state_dict(self.best[1])
        receiver, sharer = self.method.receiver, self.method.sharer
        training = {
            "method": self.spec.mode,
            "tasks": recipe.task,
            "task_options": recipe.task_options,
            "contexts": list(self.contexts),
            "dev_tasks": sorted({k.rpartition("/")[0] for p in self.curve for k in p if "/" in k}),
            "senders": self.spec.senders,
            "supervise": self.spec.supervise,
            "targets": recipe.targets,
            "loss_mean": self.loss_mean,
            "method_options": self.method.options(),
            "steps": self.steps_done,
            "batch_size": recipe.batch_size,
            "lr": recipe.lr,
            "warmup": recipe.warmup_steps,
            "weight_decay": recipe.weight_decay,
            "clip": recipe.clip,
            "seed": self.spec.seed,
            "data_seed": recipe.seed,
            "models_dtype": str(receiver.dtype).removeprefix("torch."),
            "revisions": {"receiver": receiver.revision, "sharer": sharer.revision},
            "device": receiver.device.type,
            "minutes": round(self.seconds / 60, 1),
            "beside": [t for t in recipe.adapters if len(recipe.adapters) > 1],
            "dev_documents": recipe.dev_documents,
            "dev": self.curve,
        }
        config = self.adapter.config
        self.adapter.config = config.model_copy(update={"training": config.training | training})
        with writing(self.folder):
            save(
                self.adapter, self.folder, card(self.adapter), replace=True
            )  # asked for by --force, or this training's own earlier one
        return self.folder

    # -- a checkpoint ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "adapter": self.adapter.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": self.random,
            "curve": self.curve,
            "best": self.best,
            "failed": self.failed,
            "steps_done": self.steps_done,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.adapter.load_state_dict(state["adapter"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        # other processes than the first have streams of their own, which no checkpoint keeps
        self.random, self.curve, self.failed = (
            state["random"] if not self.offset else [],
            state["curve"],
            state["failed"],
        )
        self.best = tuple(state["best"]) if state["best"] is not None else None  # type: ignore[assignment]
        self.steps_done, self.seconds = state["steps_done"], state["seconds"]


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)

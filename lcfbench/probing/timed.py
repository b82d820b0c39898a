"""Seconds a document and a training step, measured once with the models at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch, Method
from lcfbench.methods.create import create
from lcfbench.methods.load_pair import Pair
from lcfbench.models.timing import Clock, now
from lcfbench.probing.plan import EXAMPLES
from lcfbench.tasks.document import Document
from lcfbench.training import data
from lcfbench.training.adapter_training import AdapterTraining
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.setup import trainings_of

DOCUMENTS = 8  # that are timed
DRAWN = 64  # examples from which the input statistics of the timed adapter come


def spread_out(documents: Sequence[Document], count: int = DOCUMENTS) -> list[Document]:
    """Documents of all lengths: every so many of those sorted by length."""
    order = sorted(documents, key=lambda d: len(d.receiver.user) + len(d.sharer.user))
    every = max(len(order) / count, 1.0)
    return [order[int((i + 0.5) * every)] for i in range(min(count, len(order)))]


def a_document(method: Method, some: Sequence[Document]) -> tuple[float, list[int]]:
    """Returns seconds a document, warm, and the message bytes of each."""
    device = method.receiver.device
    with torch.inference_mode():
        for group in (some[:1], some):
            began = now(device)
            batch = Batch(group, group, Clock(device))
            state = method.respond(batch)
            answer(state, batch)
            seconds = (now(device) - began) / len(group)
    return seconds, state.message.wire_bytes


def baselines(pair: Pair, modes: Sequence[str], some: Sequence[Document], budget: int) -> dict[str, Any]:
    """Returns seconds a document for each method that needs no training."""
    found = {}
    for mode in modes:
        options = {"budget": str(budget)} if mode == "t2t" else {}
        found[mode], sizes = a_document(create(mode, pair.receiver, pair.sharer, options=options), some)
        if mode == "t2t":
            found["note_bytes"] = sum(sizes) / len(sizes)
    return found


def training(
    recipe: TrainRecipe, pair: Pair, some: Sequence[Document], say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns seconds of a step, of the start, and of a document; the message's bytes; what learns.

    Two steps are taken on an adapter that is thrown away. Raises UserError as a training does.
    """
    began = time.perf_counter()
    sources = [data.parse_source(text) for text in recipe.task]
    drawn = data.examples(
        sources,
        count=DRAWN,
        pair=pair,
        **recipe.model_dump(include={"seed", "scoring", "task_options", "offline", "max_tokens"}),
    )
    [one] = trainings_of(recipe, pair, drawn)
    with one.own_randomness():
        one.method.prepare(drawn, say)
    start = time.perf_counter() - began
    groups = [spread_out(drawn, EXAMPLES), spread_out(drawn[1:], EXAMPLES)]
    steps = [_step(one, group) for group in groups]
    one.adapter.eval()
    seconds, sizes = a_document(one.method, some)
    return {
        "step": steps[1],
        "start": start + steps[0],
        "document": seconds,
        "message_bytes": sum(sizes) / len(sizes),
        "kind": one.adapter.config.kind,
        "parameters": one.adapter.params,
    }


def _step(one: AdapterTraining, group: list[Document]) -> float:
    began = time.perf_counter()
    one.backward(group, 1.0, lambda loss: loss.backward())
    one.step(0.0)
    return time.perf_counter() - began

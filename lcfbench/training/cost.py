"""Estimates what a training will take, before any model is loaded, and refuses one that cannot fit.

The time is a count of operations divided by this machine's speed at a matrix product, which is timed
for a moment; a model reaches about half of that speed. Memory and disk are counted from the sizes of
the models' files and of the adapter.

>>> cost_of(recipe, shared=False, documents=documents).said()                       # doctest: +SKIP
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.options import adapter_options
from lcfbench.errors import UserError
from lcfbench.files import check_room
from lcfbench.geometry import Geometry
from lcfbench.methods.base import Method
from lcfbench.methods.create import sides
from lcfbench.models.dtypes import pick_device, pick_dtype
from lcfbench.models.layout import geometry_named, geometry_of
from lcfbench.models.memory import free_bytes
from lcfbench.models.tokenizers import load_tokenizers
from lcfbench.progress import duration
from lcfbench.sources.models import Found, look, read_config, split_pair
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import render
from lcfbench.training.options import split_options
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.setup import adapter_kind, trainable

REACHED = 0.5  # of the speed of one large matrix product: attention, norms and small batches cost the rest
PREFILLS = 0.7  # of a step's operations: the rest is the answer, and the way back through it
CHAT_TOKENS = 500  # of a chat example, where none has been read
STATES = 20  # bytes a parameter: fp32 weights, gradients, two moments, the best state
CHECKPOINT_BYTES = (
    32  # bytes a parameter: two checkpoints of weights, moments and the best state, for a moment
)
RUNTIME = 1.0e9  # bytes of the libraries


@dataclass(frozen=True)
class Cost:
    """What a training will take.

    seconds: None where a model is not on this disk yet. memory, disk: bytes. least: of memory, the
    bytes of models and adapter states alone.
    """

    seconds: float | None
    memory: float
    least: float
    disk: int
    device: str

    def said(self) -> str:
        """One phrase: time, memory, and what they are based on."""
        if self.seconds is None:
            return "time unknown until the models are on this machine"
        return (
            f"roughly {duration(self.seconds)} and {self.memory / 1e9:.1f} GB of memory on this machine "
            f"({self.device}), by a count of operations"
        )

    def check(self, place: Path) -> None:
        """Raises UserError where memory or disk cannot be enough. place: a folder of that disk."""
        free = free_bytes(torch.device(self.device))
        if self.least > free:
            raise UserError(
                f"this training needs {self.least / 1e9:.1f} GB of memory for models and adapter alone; "
                f"{free / 1e9:.1f} GB are free ({self.device}).",
                "Free some, or take a smaller pair or adapter.",
            )
        check_room(place, self.disk, "this training, with its checkpoints,")


def cost_of(recipe: TrainRecipe, shared: bool, documents: Sequence[Document]) -> Cost:
    """Returns what a training of one adapter will take. No weights are loaded.

    documents: some of its examples; none for chat data.
    """
    device = torch.device("cuda" if pick_device(recipe.device).type == "cuda" else "cpu")
    dtype = pick_dtype(recipe.dtype, device)
    [spec] = recipe.specs()
    recipe, kind = spec.recipe(recipe), trainable(spec)
    names = sides(kind, *split_pair(recipe.pair))
    adapter = _params(recipe, shared, names)
    here = {name: look(name)[0] for name in names}
    sizes = {name: numbers_of(found) for name, found in here.items() if found}
    states = STATES * adapter
    disk = CHECKPOINT_BYTES * adapter
    if None in here.values():
        return Cost(None, float(states), float(states), disk, str(device))
    least = sum(whole for whole, _ in sizes.values()) * dtype.itemsize + states
    tokens = _tokens(recipe, documents)
    each = [2.0 * sizes[name][1] * n for name, n in zip(names, tokens, strict=True)]
    example = (sum(each) + 6.0 * adapter * tokens[0]) / PREFILLS
    dev = recipe.steps // recipe.eval_every * recipe.dev_documents * 2 * sum(each)
    operations = recipe.steps * recipe.batch_size * example + dev
    shapes = [_geometry(name, found, recipe.trust_remote_code) for name, found in here.items() if found]
    caches = sum(4 * g.token_numbers for g in shapes) * max(tokens) * recipe.at_once
    memory = least + caches * dtype.itemsize + RUNTIME
    return Cost(operations / (REACHED * _speed(device, dtype)), memory, least, disk, str(device))


def _params(recipe: TrainRecipe, shared: bool, names: tuple[str, str]) -> int:
    """The parameters of the adapter; 0 for a kind whose shape only loaded models tell."""
    [spec] = recipe.specs()
    method = trainable(spec)
    kind = adapter_kind(method, ["shared" if shared else "different"], spec)
    if method.configure.__func__ is not Method.configure.__func__:  # type: ignore[attr-defined]
        return 0
    for_adapter = split_options(kind, method, {}, recipe.options | dict(spec.options))[1]
    options, alignment = adapter_options(kind, for_adapter, small_scale=recipe.preset == "small-scale")
    receiver, sharer = ((name, _geometry(name, look(name)[0], recipe.trust_remote_code)) for name in names)
    with torch.device("meta"):
        return build(pair_config(kind, receiver, sharer, options=options, **alignment)).params


def _geometry(name: str, found: Found | None, trusted: bool) -> Geometry:
    if found is None:
        return geometry_named(name, trust_remote_code=trusted)
    return geometry_of(read_config(found.path, trusted), trust_remote_code=trusted)


def numbers_of(found: Found) -> tuple[int, int]:
    """The numbers in a model's weights: all, and those that every token is multiplied with."""
    whole = computed = 0
    for file in sorted(found.path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no dict)
                size = math.prod(weights.get_slice(name).get_shape())
                whole += size
                computed += 0 if "embed_tokens" in name or "lm_head" in name else size
    return whole, computed


def _tokens(recipe: TrainRecipe, documents: Sequence[Document]) -> tuple[float, float]:
    """The mean number of tokens that receiver and sharer read of an example."""
    if not documents:
        return CHAT_TOKENS, CHAT_TOKENS
    both = load_tokenizers(recipe.pair, offline=recipe.offline, trust_remote_code=recipe.trust_remote_code)
    means = []
    for role, tokenizer in zip(("receiver", "sharer"), both, strict=True):
        chats = [d.chat and bool(tokenizer.chat_template) for d in documents]
        views = [(getattr(d, role), c, bool(d.steps)) for d, c in zip(documents, chats, strict=True)]
        lengths = [len(render(v, tokenizer, chat=chat, choices=choices).ids) for v, chat, choices in views]
        means.append(sum(lengths) / len(lengths))
    return means[0], means[1]


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a matrix product, timed for about a third of a second."""
    x, weight = (torch.ones(shape, device=device, dtype=dtype) for shape in ((512, 1024), (4096, 1024)))
    best, began = math.inf, time.perf_counter()
    while time.perf_counter() - began < 0.3:
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2.0 * 512 * 1024 * 4096 / best

"""Linear transformation: how much of the receiver's cache can a linear map read off the sharer's?

Both models read the same texts; receiver tokens are aligned by characters (`span`). Per receiver
layer a ridge regression in closed form goes from the sharer's standardised keys and values (rotary
positions taken out) to the receiver's. Every fifth text is held out. Only sums over the tokens are
kept (`adapters/ridge.py`), so held-out texts are read once more. Nothing is trained by steps.

>>> run_transform(Transform(task="splitfacts", map="best"), say=print)        # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.adapters.ridge import Held, Ridge, Scale
from lcfbench.alignment.layers import layer_sources
from lcfbench.errors import UserError
from lcfbench.methods.load_pair import CONDITIONS, load_pair
from lcfbench.models.protocol import LanguageModel
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.oracle.aligned_texts import (
    AlignedText,
    align_texts,
    content,
    entries,
    file_texts,
    split,
    task_texts,
)
from lcfbench.oracle.recipe import Transform
from lcfbench.oracle.record import OracleRun, circumstances, conditions
from lcfbench.provenance import digest
from lcfbench.sources.models import find_model, labels, split_pair

CALIBRATION = 64  # texts that the input scale is measured on
POINTS = 150  # held-out tokens in the figure, of so many layers:
FIGURE_LAYERS = 4


def run_transform(chosen: Transform, say: Callable[[str], None]) -> OracleRun:
    """Fits and records, or returns the recorded run. Tables `rows` and `points`: see `fit`.

    Raises UserError: unknown names, no train split, a file that cannot be read, too little text.
    """
    names = split_pair(chosen.pair)
    if chosen.text is not None:
        passages, source = file_texts(chosen.text), chosen.text.name
    else:
        source = f"train split of {chosen.task}"
        passages = task_texts(chosen.task, chosen.tokens, chosen.seed, chosen.offline, chosen.task_options)
    found = [find_model(name, offline=chosen.offline) for name in names]
    under = conditions(chosen)
    mine, theirs = (load_tokenizer(f.path, chosen.trust_remote_code) for f in found)
    texts = align_texts(passages, (mine, theirs), chosen.tokens)
    identity = {
        "oracle": "transform",
        **dict(zip(("receiver", "sharer"), labels(names), strict=True)),
        "revisions": [f.revision for f in found],
        "source": source,
        "texts_sha256": digest([t.mine.text for t in texts]),
        **chosen.model_dump(include={"tokens", "map", "sources"}),
        **under,
    }
    run = OracleRun.of(chosen.out, "transform", identity)
    if not chosen.fresh and run.finished():
        return run
    began = time.perf_counter()
    models = load_pair(chosen.pair, **chosen.model_dump(include=CONDITIONS))
    receiver, sharer = models.receiver, models.sharer
    for lm in (receiver, sharer):
        if why := lm.capabilities.lacks("edit") or lm.capabilities.lacks("rotate"):
            raise UserError(
                f"a transform of caches needs keys without their positions, not those of {lm.name}: {why}.",
                "Name another pair.",
            )
    with torch.inference_mode():
        rows, points = fit(receiver, sharer, texts, chosen.map, chosen.sources, chosen.batch_size, say)
    train, held = (sum(len(t.tokens) for t in part) for part in split(texts))
    facts = {"texts": len(texts), "train_tokens": train, "held_out_tokens": held}
    facts |= {"inputs": 2 * sharer.geometry.kv_width * chosen.sources}
    run.keep({"rows": rows, "points": points}, identity, facts | circumstances(chosen, began, receiver))
    return run


@dataclass
class Group:
    """Receiver layers mapped from the same sharer layers: one Gram matrix serves them all."""

    sources: tuple[int, ...]
    layers: list[int]
    ridge: Ridge

    def inputs(self, x: Tensor) -> Tensor:
        """Returns the inputs (T, sources·s) of all sharer layers (S, T, s)."""
        return torch.cat([x[s] for s in self.sources], -1)

    def outputs(self, y: Tensor) -> Tensor:
        """Returns the outputs (T, layers·r) of all receiver layers (L, T, r)."""
        return torch.cat([y[t] for t in self.layers], -1)


def grouped(map_name: str, count: int, receiver: LanguageModel, sharer: LanguageModel) -> list[Group]:
    """Groups receiver layers by the sharer layers they read; with `best` each reads each."""
    L, S = receiver.geometry.layers, sharer.geometry.layers
    readers: dict[tuple[int, ...], list[int]] = {}
    if map_name == "best":
        readers = {(s,): list(range(L)) for s in range(S)}
    else:
        for t, sources in enumerate(layer_sources(map_name, L, S, count)):
            readers.setdefault(tuple(sources or ()), []).append(t)
    s, r = 2 * sharer.geometry.kv_width, 2 * receiver.geometry.kv_width
    return [Group(k, v, Ridge(s * len(k), r * len(v), receiver.device)) for k, v in readers.items()]


def fit(
    receiver: LanguageModel,
    sharer: LanguageModel,
    texts: Sequence[AlignedText],
    map_name: str,
    count: int,
    size: int,
    say: Callable[[str], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the tables `rows` and `points`. count: sharer layers an input. size: texts a batch.

    rows, one for each receiver layer and input: receiver_layer, sharer_layers ("4" or "4,3,5"),
    chosen (with `best`, the input with the highest mean of r2_k and r2_v; the choice flatters it a
    little), r2_k, r2_v, cosine_k, cosine_v (mean over held-out tokens, all KV heads as one vector),
    mean_cosine_k, mean_cosine_v (of the mean over the fitted tokens, which reads nothing).
    points, held-out tokens of a few layers on the first two principal axes: receiver_layer, part
    (key, value), kind (receiver, mapped, sharer), token, x, y.
    """
    train, held = split(texts)
    groups = grouped(map_name, count, receiver, sharer)
    memory = sum(2 * 4 * g.ridge.cross.numel() + 8 * g.ridge.gram.numel() for g in groups)
    fitted, tested_on = (sum(len(t.tokens) for t in part) for part in (train, held))
    say(f"{fitted:,} tokens to fit, {tested_on:,} held out; the sums take {memory / 1e6:,.0f} MB")
    scales = scales_of(sharer, train[:CALIBRATION], size, receiver.device)
    began = last = time.monotonic()
    batches = -(-len(train) // size)
    for number, (x, y) in enumerate(entries(receiver, sharer, train, size), 1):
        x = scaled(scales, x)
        for group in groups:
            group.ridge.add(group.inputs(x), group.outputs(y))
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"batch {number} of {batches}, {last - began:.0f} s")
    tested = [_Tested(group, receiver.geometry.kv_width) for group in groups]
    seen: list[tuple[Tensor, Tensor]] = []
    for raw, y in entries(receiver, sharer, held, size):
        x = scaled(scales, raw)
        for test in tested:
            test.add(x, y)
        if sum(b.shape[1] for _, b in seen) < POINTS:
            seen.append((raw, y))
    rows = pd.DataFrame([row for test in tested for row in test.rows()])
    best = (rows["r2_k"] + rows["r2_v"]).groupby(rows["receiver_layer"]).idxmax()
    rows.insert(2, "chosen", rows.index.isin(best))
    chosen = {int(rows["receiver_layer"][i]): str(rows["sharer_layers"][i]) for i in best}
    first_source = rows["sharer_layers"].str.split(",").str[0].astype(int)
    rows = rows.iloc[np.lexsort((first_source, rows["receiver_layer"]))]
    x, y = (torch.cat(parts, 1)[:, :POINTS] for parts in zip(*seen, strict=True))
    last_layer, points = receiver.geometry.layers - 1, list[dict[str, Any]]()
    for layer in sorted({round(k * last_layer / (FIGURE_LAYERS - 1)) for k in range(FIGURE_LAYERS)}):
        points += _points(layer, next(t for t in tested if t.name == chosen[layer]), scaled(scales, x), x, y)
    return rows.reset_index(drop=True), pd.DataFrame(points)


def scales_of(
    sharer: LanguageModel, texts: Sequence[AlignedText], size: int, device: torch.device
) -> list[Scale]:
    """Measures how the entries of each sharer layer are standardised, on some texts."""
    some = [texts[i : i + size] for i in range(0, len(texts), size)]
    first = [content(sharer, [t.theirs for t in part], [t.reads for t in part]).to(device) for part in some]
    return [Scale.of([x[s] for x in first]) for s in range(sharer.geometry.layers)]


def scaled(scales: Sequence[Scale], x: Tensor) -> Tensor:
    """Returns entries (S, T, s) standardised layer by layer."""
    return torch.stack([scale(part) for scale, part in zip(scales, x, strict=True)])


class _Tested:
    """A solved group, compared with held-out tokens."""

    def __init__(self, group: Group, width: int) -> None:
        self.group, self.width, self.name = group, width, ",".join(map(str, group.sources))
        self.map, self.mean = group.ridge.solve(), group.ridge.mean()
        self.held = Held(len(self.mean), self.mean.device)
        self.cosine, self.mean_cosine = torch.zeros(2, 2 * len(group.layers), device=self.mean.device)

    def add(self, x: Tensor, y: Tensor) -> None:
        mapped, true = self.map(self.group.inputs(x)), self.group.outputs(y)
        self.held.add(mapped, true)
        parts = true.unflatten(1, (-1, self.width))  # (T, layers·2, H·D): keys and values in turn
        self.cosine += F.cosine_similarity(mapped.unflatten(1, (-1, self.width)), parts, dim=-1).sum(0)
        self.mean_cosine += F.cosine_similarity(self.mean.view(1, -1, self.width), parts, dim=-1).sum(0)

    def rows(self) -> Iterator[dict[str, Any]]:
        found = {"r2": self.held.r2(2 * len(self.group.layers))}
        found |= {
            "cosine": self.cosine / self.held.tokens,
            "mean_cosine": self.mean_cosine / self.held.tokens,
        }
        for i, layer in enumerate(self.group.layers):
            row: dict[str, Any] = {"receiver_layer": layer, "sharer_layers": self.name}
            for name, value in found.items():
                row |= {f"{name}_{part}": float(value[2 * i + k]) for k, part in enumerate("kv")}
            yield row


def _points(layer: int, test: _Tested, standard: Tensor, x: Tensor, y: Tensor) -> Iterator[dict[str, Any]]:
    """Yields the figure's points of one layer: the receiver's own entries and the mapped ones.

    Where the dims are equal, the sharer's entries follow as they are.
    """
    at, width = test.group.layers.index(layer), test.width
    mapped = test.map(test.group.inputs(standard)).unflatten(1, (-1, 2, width))[:, at]  # (T, 2, H·D)
    true, raw = y[layer].unflatten(1, (2, width)), x[test.group.sources[0]].unflatten(1, (2, -1))
    for k, part in enumerate(("key", "value")):
        clouds = {"receiver": true[:, k], "mapped": mapped[:, k]}
        if raw.shape[-1] == width:
            clouds["sharer"] = raw[:, k]
        for kind, cloud in zip(clouds, plane(list(clouds.values())), strict=True):
            for token, (a, b) in enumerate(cloud.tolist()):
                yield {"receiver_layer": layer, "part": part, "kind": kind, "token": token, "x": a, "y": b}


def plane(clouds: Sequence[Tensor]) -> list[Any]:
    """Returns clouds (T, p) on the first two principal axes of all of them: numpy arrays (T, 2)."""
    arrays = [c.double().cpu().numpy() for c in clouds]
    centre = np.concatenate(arrays).mean(0)
    _, _, axes = np.linalg.svd(np.concatenate(arrays) - centre, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    signs = np.where(largest < 0, -1.0, 1.0)  # SVD leaves the sign open
    return [(a - centre) @ (axes * signs)[:2].T for a in arrays]

"""What of the sharer's cache can be mapped onto the receiver's by a linear map on the same text, layer by layer? Nothing is trained by steps.

Both models read the same texts; receiver tokens are aligned by characters (`span`). Per receiver layer a ridge regression goes from the sharer's
standardised keys and values (rotary positions taken out) to the receiver's, in closed form (methods.md, sections 6, 7 and 10). Held-out: every
fifth text. Only sums are kept of the tokens (ridge.py); held-out texts are read once more to be compared.

>>> run_transform(Transform(pair="smollm2-135m:gemma3-270m", task="splitfacts", map="best"), say=print)               # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.adapters.ridge import Held, Ridge, Scale
from lcfbench.alignment.layers import layer_sources
from lcfbench.models.causal_lm import CausalLM
from lcfbench.oracle.picture import plane
from lcfbench.oracle.recipe import Transform
from lcfbench.oracle.record import OracleRun, circumstances, conditions
from lcfbench.oracle.same_text import Pair, caches, content, file_texts, read_pairs, split, task_texts
from lcfbench.provenance import digest

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION = 64  # texts that the input scale is measured on
POINTS = 150  # held-out tokens in the picture, of PICTURED layers
PICTURED = 4


def run_transform(chosen: Transform, say: Callable[[str], None]) -> OracleRun:
    """Fits and records, or finds what was recorded. Tables `rows` and `points`: see `fit`.

    Raises UserError: unknown names, no train split, a file that cannot be read, too little text.
    """
    from transformers import AutoTokenizer

    from lcfbench.sources.models import find_model, label, split_pair

    names = split_pair(chosen.pair)
    if chosen.text is not None:
        passages, source = file_texts(chosen.text), chosen.text.name
    else:
        source = f"train split of {chosen.task}"
        passages = task_texts(chosen.task, chosen.tokens, chosen.seed, chosen.offline, chosen.task_options)
    found = [find_model(name, offline=chosen.offline) for name in names]
    under = conditions(chosen)
    mine, theirs = (AutoTokenizer.from_pretrained(f.path) for f in found)
    pairs = read_pairs(passages, (mine, theirs), chosen.tokens)
    identity = {
        "oracle": "transform", "receiver": label(names[0]), "sharer": label(names[1]), "revisions": [f.revision for f in found], "source": source,
        "texts_sha256": digest([p.mine.text for p in pairs]), "tokens": chosen.tokens, "map": chosen.map, "sources": chosen.sources,
        **under,
    }  # fmt: skip
    run = OracleRun.of(chosen.out, "transform", identity)
    if not chosen.fresh and run.finished():
        return run
    began = time.perf_counter()
    receiver = CausalLM.load(found[0], dtype=chosen.dtype, device=chosen.device, attention=chosen.attention)
    same = names[0] == names[1]
    sharer = (
        receiver
        if same
        else CausalLM.load(found[1], dtype=chosen.dtype, device=chosen.device, attention=chosen.attention)
    )
    with torch.inference_mode():
        rows, points = fit(receiver, sharer, pairs, chosen.map, chosen.sources, chosen.batch_size, say)
    facts = {
        "texts": len(pairs),
        "train_tokens": sum(len(p.tokens) for p in split(pairs)[0]),
        "held_out_tokens": sum(len(p.tokens) for p in split(pairs)[1]),
        "inputs": 2 * sharer.geometry.kv_width * chosen.sources,
        **circumstances(chosen, began, receiver),
    }
    run.keep({"rows": rows, "points": points}, identity, facts)
    return run


# -- the fit ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """Receiver layers that are mapped from the same sharer layers: one Gram matrix, all their outputs side by side."""

    sources: tuple[int, ...]
    layers: list[int]
    ridge: Ridge

    def inputs(self, x: Tensor) -> Tensor:
        """(T, sources·s)."""
        return torch.cat([x[s] for s in self.sources], -1)

    def outputs(self, y: Tensor) -> Tensor:
        """(T, layers·r)."""
        return torch.cat([y[t] for t in self.layers], -1)


def grouped(map_name: str, count: int, receiver: CausalLM, sharer: CausalLM) -> list[Group]:
    """Which receiver layers read which sharer layers. `best`: every one reads every one, singly."""
    L, S = receiver.geometry.layers, sharer.geometry.layers
    wanted: dict[tuple[int, ...], list[int]] = {}
    if map_name == "best":
        wanted = {(s,): list(range(L)) for s in range(S)}
    else:
        for t, sources in enumerate(layer_sources(map_name, L, S, count)):
            wanted.setdefault(tuple(sources or ()), []).append(t)
    s, r = 2 * sharer.geometry.kv_width, 2 * receiver.geometry.kv_width
    return [Group(k, v, Ridge(s * len(k), r * len(v), receiver.device)) for k, v in wanted.items()]


def fit(
    receiver: CausalLM,
    sharer: CausalLM,
    pairs: Sequence[Pair],
    map_name: str,
    count: int,
    size: int,
    say: Callable[[str], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables.

    rows, one a receiver layer and input: receiver_layer, sharer_layers ("4" or "4,3,5"), chosen (with `best`, the input with the highest mean of r2_k and
    r2_v; these are a little flattered by the choice), r2_k, r2_v, cosine_k, cosine_v (mean over held-out tokens, all KV heads as one vector),
    mean_cosine_k, mean_cosine_v (what the mean over the fitted tokens reaches, reading nothing).
    points: held-out tokens of a few layers on the first two principal axes: receiver_layer, part (key, value), kind (receiver, mapped, sharer), token, x, y.
    """
    import numpy as np
    import pandas as pd

    train, held = split(pairs)
    groups = grouped(map_name, count, receiver, sharer)
    memory = sum(2 * 4 * g.ridge.cross.numel() + 8 * g.ridge.gram.numel() for g in groups)
    say(
        f"{sum(len(p.tokens) for p in train):,} tokens to fit, {sum(len(p.tokens) for p in held):,} held out; the sums take {memory / 1e6:,.0f} MB"
    )
    scales = scales_of(sharer, train[:CALIBRATION], size, receiver.device)
    began = last = time.monotonic()
    batches = -(-len(train) // size)
    for number, (x, y) in enumerate(caches(receiver, sharer, train, size), 1):
        x = torch.stack([scale(part) for scale, part in zip(scales, x, strict=True)])
        for group in groups:
            group.ridge.add(group.inputs(x), group.outputs(y))
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"batch {number} of {batches}, {last - began:.0f} s")
    tested = [_Tested(group, receiver.geometry.kv_width) for group in groups]
    pictured = sorted({round(k * (receiver.geometry.layers - 1) / (PICTURED - 1)) for k in range(PICTURED)})
    seen: list[tuple[Tensor, Tensor]] = []
    for raw, y in caches(receiver, sharer, held, size):
        x = torch.stack([scale(part) for scale, part in zip(scales, raw, strict=True)])
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
    points = [
        p
        for t in pictured
        for p in _points(t, next(test for test in tested if test.name == chosen[t]), scales, x, y)
    ]
    return rows.reset_index(drop=True), pd.DataFrame(points)


def scales_of(sharer: CausalLM, pairs: Sequence[Pair], size: int, device: torch.device) -> list[Scale]:
    """How each sharer layer's entries are standardised, measured on some texts."""
    some = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    first = [content(sharer, [p.theirs for p in part], [p.reads for p in part]).to(device) for part in some]
    return [Scale.of([x[s] for x in first]) for s in range(sharer.geometry.layers)]


class _Tested:
    """A solved group, held against held-out tokens."""

    def __init__(self, group: Group, width: int) -> None:
        self.group, self.width, self.name = group, width, ",".join(map(str, group.sources))
        self.map, self.mean = group.ridge.solve(), group.ridge.mean()
        self.held = Held(len(self.mean), self.mean.device)
        self.cosine, self.mean_cosine = (
            torch.zeros(2 * len(group.layers), device=self.mean.device) for _ in range(2)
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        mapped, true = self.map(self.group.inputs(x)), self.group.outputs(y)
        self.held.add(mapped, true)
        parts = true.unflatten(1, (-1, self.width))  # (T, layers·2, H·D): keys and values in turn
        self.cosine += F.cosine_similarity(mapped.unflatten(1, (-1, self.width)), parts, dim=-1).sum(0)
        self.mean_cosine += F.cosine_similarity(self.mean.view(1, -1, self.width), parts, dim=-1).sum(0)

    def rows(self) -> Iterator[dict[str, Any]]:
        found = {"r2": self.held.r2(2 * len(self.group.layers)), "cosine": self.cosine / self.held.tokens,
                 "mean_cosine": self.mean_cosine / self.held.tokens}  # fmt: skip
        for i, layer in enumerate(self.group.layers):
            numbers = {
                f"{name}_{part}": float(value[2 * i + k])
                for name, value in found.items()
                for k, part in enumerate("kv")
            }
            yield {"receiver_layer": layer, "sharer_layers": self.name, **numbers}


def _points(
    layer: int, test: _Tested, scales: Sequence[Scale], x: Tensor, y: Tensor
) -> Iterator[dict[str, Any]]:
    """The picture's points of one layer: the receiver's own entries, the mapped ones and, where the dims are equal, the sharer's as they are."""
    standard = torch.stack([scale(part) for scale, part in zip(scales, x, strict=True)])
    at, width = test.group.layers.index(layer), test.width
    mapped = test.map(test.group.inputs(standard)).unflatten(1, (-1, 2, width))[:, at]  # (T, 2, H·D)
    true, raw = y[layer].unflatten(1, (2, width)), x[test.group.sources[0]].unflatten(1, (2, -1))
    for k, part in enumerate(("key", "value")):
        clouds = {"receiver": true[:, k], "mapped": mapped[:, k]} | (
            {"sharer": raw[:, k]} if raw.shape[-1] == width else {}
        )
        flatly = plane(list(clouds.values()))
        for kind, cloud in zip(clouds, flatly, strict=True):
            for token, (a, b) in enumerate(cloud):
                yield {
                    "receiver_layer": layer,
                    "part": part,
                    "kind": kind,
                    "token": token,
                    "x": float(a),
                    "y": float(b),
                }

"""Which layers kvcomm sends: attention importance and a Gaussian prior over depth (KVComm, arXiv 2510.03346).

`score = alpha · importance + (1 − alpha) · exp(−(l − μ)²/2σ²)`: a layer matters when the receiver's prompt attends the sharer's entries in it,
and middle layers are presumed to. The sharer's first token is left out of the importance: all layers get it, and it is where attention goes
that has nowhere to go.

>>> best(scores(importance, alpha=0.5, mean=0.5, width=1 / 3), share=0.3)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.methods.base import prompt
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.padding import pad_left
from lcfbench.tasks.document import Document


def importance(receiver: CausalLM, sharer: CausalLM, documents: Sequence[Document], last: int = 0) -> Tensor:
    """(L,), the share of the receiver's attention that falls on the sharer's entries but the first, in [0, 1].

    The mean over heads, documents and the `last` tokens of the receiver's prompt (0: all of them). Every document is read alone, all layers seeing all entries.
    """
    found = []
    for d in documents:
        theirs = sharer.prefill(
            *pad_left([list(prompt(sharer, d.sharer, d).ids)], sharer.pad_id, sharer.device)
        )
        ids, mask = pad_left([list(prompt(receiver, d.receiver, d).ids)], receiver.pad_id, receiver.device)
        with attention_sums(receiver.model, slice(1, theirs.length), slice(-last or None, None)) as sums:
            receiver.prefill(ids, mask, theirs, theirs.mask.sum(1))
        found.append(torch.stack(sums))
    return torch.stack(found).mean(0)


@contextmanager
def attention_sums(model: Any, columns: slice, queries: slice = slice(None)) -> Iterator[list[Tensor]]:
    """Within it every forward adds, layer after layer, the attention of `queries` that falls on `columns`, mean over heads.

    Only eager attention knows its weights, so the model is switched to it and back: grouped heads, windows and masks are its own.
    """
    sums: list[Tensor] = []

    def take(module: Any, args: Any, out: tuple[Any, ...]) -> None:
        weights = out[1]  # (B, heads, T, N)
        assert weights is not None, f"{type(module).__name__} gives no attention weights"
        sums.append(weights[..., queries, columns].float().sum(-1).mean())

    before = model.config._attn_implementation
    handles = [layer.self_attn.register_forward_hook(take) for layer in model.get_decoder().layers]
    model.set_attn_implementation("eager")
    try:
        yield sums
    finally:
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()


def scores(importance: Tensor, alpha: float, mean: float, width: float) -> Tensor:
    """(L,), by which layers are ranked. importance (L,) is stretched to [0, 1]; mean, width: of the prior, as shares of the depth."""
    low, high = importance.min(), importance.max()
    stretched = (importance - low) / (high - low) if high > low else torch.zeros_like(importance)
    L = len(importance)
    depth = torch.arange(L, device=importance.device) / max(L - 1, 1)
    return alpha * stretched + (1 - alpha) * torch.exp(-((depth - mean) ** 2) / (2 * width**2))


def best(scores: Tensor, share: float) -> list[int]:
    """The layers of the highest scores, a `share` of all and one at least, in order; the earlier of two equal ones."""
    count = max(1, round(share * len(scores)))
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def parse_layers(text: str, depth: int) -> tuple[float, list[int] | None]:
    """`0.3` is a share of the layers; `3,7,12` (or `[7]`) are layers. The share, and the layers where the text settles them.

    Raises UserError for anything else.
    """
    example = "Give a share such as 0.5, or layers such as 3,7,12; one layer alone as [7]."
    inner = text.strip()
    try:
        if "," not in inner and not inner.startswith("["):
            share = float(inner)
            if not 0 < share <= 1:
                raise ValueError
            return share, list(range(depth)) if share == 1 else None
        layers = sorted({int(part) for part in inner.removeprefix("[").removesuffix("]").split(",")})
    except ValueError as error:
        raise UserError(
            f"layers={text} is no share of the layers (above 0, up to 1) and no list of them.", example
        ) from error
    if layers[0] < 0 or layers[-1] >= depth:
        raise UserError(f"layers={text}: the model's layers are 0..{depth - 1}.", example)
    return len(layers) / depth, layers

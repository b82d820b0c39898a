"""Scores the layers that kvcomm sends: attention and a prior over depth (KVComm, arXiv 2510.03346).

`score = alpha · importance + (1 − alpha) · exp(−(l − μ)²/2σ²)`: a layer matters when the receiver's
prompt attends the sharer's entries in it, and middle layers are presumed to. The sharer's first
token is left out of the importance: all layers get it, and it receives attention of no meaning.

>>> best(scores(importance, alpha=0.5, mean=0.5, width=1 / 3), share=0.3)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.methods.base import prompt
from lcfbench.models.finite import NotFiniteError, check_cache, finite
from lcfbench.models.protocol import LanguageModel
from lcfbench.tasks.document import Document


def importance(
    receiver: LanguageModel, sharer: LanguageModel, documents: Sequence[Document], last: int = 0
) -> Tensor:
    """Returns (L,), in [0, 1]: the receiver's attention to the sharer's entries but the first.

    The mean over heads, documents and the `last` tokens of the receiver's prompt (0: all). Every
    document is read alone; all layers see all entries. Raises NotFiniteError.
    """
    found, queries = [], slice(-last or None, None)
    for d in documents:
        theirs = sharer.prefill([prompt(sharer, d.sharer, d).ids])
        mine = prompt(receiver, d.receiver, d).ids
        check_cache(theirs, f"the cache of the sharer {sharer.name}")
        share = receiver.attention_share([mine], theirs, slice(1, theirs.length), queries)
        if not finite(share):
            layer = int((~share.isfinite()).nonzero()[0, 0])
            raise NotFiniteError(f"attention of {receiver.name} in layer {layer} is not finite ({d.doc_id})")
        found.append(share)
    return torch.stack(found).mean(0)


def scores(importance: Tensor, alpha: float, mean: float, width: float) -> Tensor:
    """Returns (L,), by which layers are ranked. importance: (L,), stretched here to [0, 1].

    mean, width: of the prior, as shares of the depth.
    """
    low, high = importance.min(), importance.max()
    stretched = (importance - low) / (high - low) if high > low else torch.zeros_like(importance)
    L = len(importance)
    depth = torch.arange(L, device=importance.device) / max(L - 1, 1)
    return alpha * stretched + (1 - alpha) * torch.exp(-((depth - mean) ** 2) / (2 * width**2))


def best(scores: Tensor, share: float) -> list[int]:
    """Returns the layers of the highest scores, a `share` of all and one at least, in order.

    Of two equal ones the earlier is taken.
    """
    count = max(1, round(share * len(scores)))
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def parse_layers(text: str, depth: int) -> tuple[float, list[int] | None]:
    """Reads `0.3` as a share of the layers, `3,7,12` or `[7]` as layers.

    Returns the share, and the layers where the text settles them. Raises UserError for other texts.
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

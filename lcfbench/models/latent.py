"""Thoughts without words: a model's last hidden state comes back as its next input embedding.

A hidden state h (after the last norm, where the output head reads it) is mapped by
W_a = (W_outᵀ·W_out + λI)⁻¹·W_outᵀ·W_in and brought to the embeddings' mean norm (LatentMAS, arXiv
2511.20639). W_in is what the model makes of each token id: where its embedding layer scales, scaled.

>>> kv = think(lm, lm.prefill(rows), [row[-1] for row in rows], Thought(steps=10))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.models.kv_cache import KV, growing
from lcfbench.models.layout import decoder_of, layers_named

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

ROWS = 1 << 14  # of the embedding table at once
SAMPLE = 6  # tokens that are read as ids and as embeddings
TOLERANCE = (
    0.02  # root mean square of their difference, as a share of the spread; other embeddings do far more
)
LEAST_NORM = 1e-6


@dataclass(frozen=True)
class Thought:
    """steps: hidden states that are fed back. ridge: λ of W_a."""

    steps: int
    ridge: float = 1e-5


@dataclass(frozen=True)
class Realignment:
    """matrix: W_a, fp32 (hidden width, embedding width). norm: the mean norm of an input embedding."""

    matrix: Tensor
    norm: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns input embeddings (B, e) in fp32 from hidden states (B, d)."""
        made = hidden.to(self.matrix.device, torch.float32) @ self.matrix
        return made * (self.norm / made.norm(dim=-1, keepdim=True).clamp(min=LEAST_NORM))


def realignment(lm: CausalLM, ridge: float) -> Realignment:
    """Solves W_a over all tokens of the vocabulary; sums of products are kept in float64."""
    head = lm.model.get_output_embeddings().weight
    square: Any = 0.0
    cross: Any = 0.0
    norms = 0.0
    with torch.no_grad():
        for begin, table in _embeddings(lm):
            out = head[begin : begin + len(table)].to(table.device, torch.float32)
            square = square + (out.T @ out).double().cpu()
            cross = cross + (out.T @ table).double().cpu()
            norms += float(table.norm(dim=1).sum())
        solved = torch.linalg.solve(square + ridge * torch.eye(len(square), dtype=torch.float64), cross)
    return Realignment(solved.float().to(lm.device), norms / lm.vocabulary_size)


def _embeddings(lm: CausalLM) -> Iterator[tuple[int, Tensor]]:
    """Yields stretches of the table as the decoder gets it, fp32 (rows, e), and where each begins."""
    for begin in range(0, lm.vocabulary_size, ROWS):
        ids = torch.arange(begin, min(begin + ROWS, lm.vocabulary_size), device=lm.device)
        yield begin, lm.model.get_input_embeddings()(ids).float()


def think(lm: CausalLM, kv: KV, last: Sequence[int], thought: Thought) -> KV:
    """Returns the cache with the entries of `thought.steps` latent steps behind it; the others stay.

    kv: of whole texts, padded on the left, no entry hidden. last: each row's last token, which runs
    once more on the entries before it for its hidden state and leaves no entry a second time.
    """
    before = replace(
        kv,
        keys=kv.keys[..., :-1, :],
        values=kv.values[..., :-1, :],
        mask=kv.mask[:, :-1],
        positions=kv.positions[:, :-1],
    )
    at, mask, positions = kv.positions[:, -1:], kv.mask, kv.positions
    lm.check_frequencies(kv, at + thought.steps)
    ids = torch.tensor(last, device=lm.device)[:, None]
    hidden = _run(lm, growing(before, lm.cut_windows(kv)), mask, at, input_ids=ids)
    cache = growing(kv, lm.cut_windows(kv))
    for _ in range(thought.steps):
        at, mask = at + 1, F.pad(mask, (0, 1), value=1)
        positions = torch.cat([positions, at], 1)
        embedded = lm.realigned(hidden, thought.ridge)[:, None].to(lm.dtype)
        hidden = _run(lm, cache, mask, at, inputs_embeds=embedded)
    return KV.from_cache(cache, mask, positions, layout=lm.uneven)


def _run(lm: CausalLM, cache: Any, mask: Tensor, positions: Tensor, **read: Tensor) -> Tensor:
    """Runs one position a row; returns its last hidden state (B, d)."""
    out = decoder_of(lm.model)(
        **read, attention_mask=mask, past_key_values=cache, use_cache=True, **lm.places(positions)
    )
    return out.last_hidden_state[:, -1]


def lacking(lm: CausalLM) -> str:
    """Returns why a model's hidden states cannot be its input; empty where they can.

    A model with weights reads a few tokens as ids and as embeddings to find out.
    """
    if lm.layout.recurrent:
        return f"{layers_named(lm.layout.recurrent)} keep a recurrent state"
    if lm.reading == "whole":
        return lm.layout.reason or "its cache is not used"
    head, table = lm.model.get_output_embeddings(), lm.model.get_input_embeddings().weight
    out = getattr(head, "weight", None)
    if out is None or not out.dtype.is_floating_point or not table.dtype.is_floating_point:
        return "its output head or its embedding table holds no plain numbers"
    if len(out) != len(table):
        return f"its output head has {len(out):,} tokens and its embedding table {len(table):,}"
    return _trial(lm) if lm.weights else ""


def _trial(lm: CausalLM) -> str:
    """Holds a text that is read as embeddings against the same text read as ids."""
    step = max(lm.vocabulary_size // (SAMPLE + 1), 1)
    ids = torch.arange(1, SAMPLE + 1, device=lm.device)[None] * step % lm.vocabulary_size
    decoder = decoder_of(lm.model)
    try:
        with torch.no_grad():
            expected = decoder(input_ids=ids, use_cache=False).last_hidden_state.float()
            embedded = lm.model.get_input_embeddings()(ids)
            found = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state.float()
            between = (embedded + embedded.roll(1, 1)) / 2  # of no token: some decoders look tokens up again
            decoder(inputs_embeds=between, use_cache=False)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
    ) as error:  # a decoder that wants ids says it so
        return f"it takes no input embeddings ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    width = lm.model.get_output_embeddings().weight.shape[1]
    if expected.shape[-1] != width:
        return f"its hidden states have {expected.shape[-1]} numbers and its output head reads {width}"
    off = float((found - expected).square().mean().sqrt()) / (float(expected.std()) or 1.0)
    if not off <= TOLERANCE:
        return f"a text read as embeddings differs from the same text read as tokens (by {off:.2g})"
    return ""

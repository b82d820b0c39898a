"""Hidden states between a model's layers: read at the last tokens of a text, changed while one is read.

The state behind a layer is its decoder block's output. Layers are counted as the model's cache counts
them, from 0. A cache carries its `Edits` to the tokens that are run on it next.

>>> states = hidden_states(lm, rows, layers=[24], counts=[1] * len(rows))      # a (1, 1, d) of each row
>>> kv = replace(kv, edits=Edits((24,), positions, vectors, "replace"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.models.layout import blocks_of, decoder_of
from lcfbench.models.padding import pad_right

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

Combine = Literal["replace", "sum", "mean"]
SAMPLE = 6  # tokens that are read to find out


@dataclass(frozen=True)
class Edits:
    """What becomes of some tokens' hidden states, in the forward that runs these tokens.

    blocks: decoder blocks (l of them) whose outputs change. positions: (B, P), rotary positions of the
    tokens; −1 for none. vectors: (l, B, P, d). combine: the vector takes the state's place, is added to
    it, or the mean of both does.
    """

    blocks: tuple[int, ...]
    positions: Tensor
    vectors: Tensor
    combine: Combine

    def __post_init__(self) -> None:
        l, B, P, _ = self.vectors.shape  # noqa: E741
        found = f"blocks {self.blocks}, positions {tuple(self.positions.shape)}, vectors {l, B, P}"
        assert l == len(self.blocks) and self.positions.shape == (B, P), found

    def rows_at(self, index: Tensor) -> Edits:
        """Returns the edits of rows `index` (b,), repeated or reordered."""
        return replace(self, positions=self.positions[index], vectors=self.vectors[:, index])


@contextmanager
def editing(model: Any, edits: Edits | None, positions: Tensor, mask: Tensor) -> Iterator[None]:
    """Changes hidden states in the one forward within it; nothing changes without `edits`.

    positions, mask: (B, T), of the tokens that run. All other tokens' states keep their bits.
    """
    if edits is None:
        yield
        return
    found = (positions[:, :, None] == edits.positions[:, None]) & mask.bool()[:, :, None]  # (B, T, P)
    edited, which = found.any(-1), found.int().argmax(-1)
    layers = blocks_of(model)
    with ExitStack() as stack:
        for block, vectors in zip(edits.blocks, edits.vectors, strict=True):

            def change(module: Any, args: Any, out: Any, vectors: Tensor = vectors) -> Any:
                state = out[0] if isinstance(out, tuple) else out
                at = which.to(state.device)[:, :, None].expand(-1, -1, vectors.shape[-1])
                new = combined(state, vectors.to(state.device, state.dtype).gather(1, at), edits.combine)
                new = torch.where(edited.to(state.device)[:, :, None], new, state)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            stack.callback(layers[block].register_forward_hook(change).remove)
        yield


def combined(state: Tensor, vector: Tensor, combine: Combine) -> Tensor:
    """Returns what stands behind the layer, from its own state and the vector, both (…, d)."""
    if combine == "replace":
        return vector
    return state + vector if combine == "sum" else (state + vector) / 2


@contextmanager
def seeing(model: Any, blocks: Sequence[int]) -> Iterator[list[list[Tensor]]]:
    """Collects the outputs (B, T, d) of decoder blocks, of each block an entry a forward."""
    seen: list[list[Tensor]] = [[] for _ in blocks]
    layers = blocks_of(model)
    with ExitStack() as stack:
        for block, states in zip(blocks, seen, strict=True):

            def take(module: Any, args: Any, out: Any, states: list[Tensor] = states) -> None:
                states.append(out[0] if isinstance(out, tuple) else out)

            stack.callback(layers[block].register_forward_hook(take).remove)
        yield seen


def hidden_states(
    lm: CausalLM, rows: Sequence[Sequence[int]], layers: Sequence[int], counts: Sequence[int]
) -> list[Tensor]:
    """Returns the states (l, n, d) behind layers of the last n = `counts[b]` tokens of each row.

    The tokens before these come from the model's shared readings. Raises UserError for an empty row, of
    which there is no state.
    """
    if not all(rows):
        raise UserError("an empty text leaves no hidden state.", "Use texts of some tokens.")
    before = [list(row[: len(row) - n]) for row, n in zip(rows, counts, strict=True)]
    kv = lm.prefill(before)
    groups: dict[tuple[int, int], list[int]] = {}
    for b, n in enumerate(counts):  # rows that take no padding run with those of their lengths alone
        groups.setdefault((0, 0) if lm.reading == "padded" else (len(before[b]), n), []).append(b)
    found: dict[int, Tensor] = {}
    for some in groups.values():
        past = kv if len(groups) == 1 else kv.rows_at(torch.tensor(some, device=lm.device)).flush()
        behind = [list(rows[b][len(before[b]) :]) for b in some]
        with torch.no_grad(), seeing(lm.model, lm.decoder_layers(layers)) as seen:
            lm.run(*pad_right(behind, lm.pad_id), past, past.present.sum(1))
        states = torch.stack([torch.cat(each, 1).to(lm.device) for each in seen])  # (l, b, T, d)
        found |= {b: states[:, place, : counts[b]] for place, b in enumerate(some)}
    return [found[b] for b in range(len(rows))]


def lacking(lm: CausalLM) -> str:
    """Returns why hidden states of a model cannot be read or changed; empty where they can.

    A model with weights reads a few tokens to find out.
    """
    if lm.reading == "whole" or not lm.geometry.layers:
        return lm.layout.reason or "its cache is not used"
    try:
        blocks = lm.decoder_layers(range(lm.geometry.layers))
        blocks_of(lm.model)
    except UserError as error:
        return error.what.rstrip(".")
    if not lm.weights:
        return ""
    ids = torch.arange(1, SAMPLE + 1, device=lm.device)[None] % lm.vocabulary_size
    with torch.no_grad(), seeing(lm.model, blocks) as seen:
        decoder_of(lm.model)(input_ids=ids, use_cache=False)
    for layer, states in enumerate(seen):
        shapes = [tuple(x.shape) for x in states]
        if shapes != [(1, SAMPLE, lm.hidden_size)]:
            return f"layer {layer} gives {shapes or 'nothing'} for {SAMPLE} tokens of width {lm.hidden_size}"
    return ""

"""Puts entries into the receiver's cache beside its own entries, which stay as they are.

Entries are content (keys without rotary positions) until their place is known. All layers get
equally many: lengths that differ between layers run silently wrong in transformers.

>>> state = read_on_top(receiver, prompts, content(keys, values, mask), lead=2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods.base import Batch, Sent, prompt
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel, Message, State
from lcfbench.tasks.prompts import Prompt


def content(keys: Tensor, values: Tensor, mask: Tensor) -> KV:
    """Returns entries without a place: content keys and values (L, B, H, T, D), mask (B, T)."""
    return KV(keys, values, mask, mask.new_zeros(mask.shape))


def placed(lm: LanguageModel, entries: KV, positions: Tensor) -> KV:
    """Returns content entries at rotary positions (B, T)."""
    return replace(entries, keys=lm.rotate(entries.keys, positions), positions=positions)


def read_on_top(
    lm: LanguageModel, prompts: Sequence[Prompt], entries: KV | Sequence[KV], lead: int, join: Join = "row"
) -> State:
    """Reads `lead` tokens of each prompt, places the entries behind them, then reads whole prompts.

    entries: content, or that of several sharers: in a row, or, `free`, each from the same position on.

    The prompt attends both, as if a text it never saw stood in front. The first tokens of any text
    receive attention of no meaning, so they are the model's own; translated entries there made the
    receiver worse. Gradients flow through keys and values.
    """
    own = lm.prefill([p.ids[:lead] for p in prompts])
    first = own.mask.sum(1, keepdim=True)
    parts = [entries] if isinstance(entries, KV) else list(entries)
    starts, end = starts_of(lm, parts, join)
    behind = [
        placed(lm, part, first + start[:, None] + (part.mask.cumsum(1) - 1).clamp(min=0))
        for part, start in zip(parts, starts, strict=True)
    ]
    past = reduce(KV.then, behind, own).flush().entries_alone()
    return lm.read(prompts, past, first[:, 0] + end)


def starts_of(lm: LanguageModel, parts: Sequence[KV], join: Join) -> tuple[list[Tensor], Tensor]:
    """Returns the position (B,) at which each sharer's entries begin, and the one behind them all.

    In a row each stands behind the one before; `free`, all begin at 0, so that no order is in them. Raises
    UserError for a model whose sliding windows see an order in any case.
    """
    counts = [part.mask.sum(1) for part in parts]
    if join == "free":
        if len(parts) > 1 and any(lm.windows):
            what = f"{lm.name} has layers with a sliding window, which depends on the order of messages."
            raise UserError(what, "Use --join row.")
        return [torch.zeros_like(n) for n in counts], torch.stack(counts).amax(0)
    ends = torch.stack(counts).cumsum(0)
    return list(ends - torch.stack(counts)), ends[-1]


def read_behind(lm: LanguageModel, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
    """Reads whole prompts behind entries that stand at positions from 0 on, as if texts stood in a row."""
    with batch.clock("prefill"):
        prompts = [prompt(lm, d.receiver, d) for d in batch.documents]
        past, start = in_front(lm, [each.content for each in sent], join)
        state = lm.read(prompts, past=past, start=start)
    return replace(state, message=Message.joined([each.account(prompts) for each in sent]))


def in_front(lm: LanguageModel, parts: Sequence[KV], join: Join) -> tuple[KV, Tensor]:
    """Returns the caches of several sharers as one, and the position (B,) behind it.

    Each has positions 0, 1, 2 and so on. One alone stays as it is. Raises UserError for caches that hold more
    than entries.
    """
    starts, end = starts_of(lm, parts, join)
    if len(parts) == 1:
        return parts[0], end
    if any(part.states is not None or part.tokens is not None for part in parts):
        what = f"{lm.name} keeps more than entries of a text, so two caches cannot stand side by side."
        raise UserError(what, "Use --mode t2t, or name one sharer.")
    turned = [moved(lm, part, start) for part, start in zip(parts, starts, strict=True)]
    return reduce(KV.then, turned).flush(), end


def moved(lm: LanguageModel, part: KV, by: Tensor) -> KV:
    """Returns a cache whose entries stand `by` (B,) positions further on."""
    if not bool(by.any()):
        return part
    positions = part.positions + by[:, None] * part.mask
    keys = lm.rotate(lm.rotate(part.keys, part.positions, inverse=True), positions)
    return replace(part, keys=keys, positions=positions)


def append(state: State, entries: KV) -> State:
    """Places the entries behind the prompt, all at the position of the last token read.

    The answer attends them, the prompt did not: this needs no second prefill, and no gradient goes
    through the prompt.
    """
    at = (state.positions[:, :1] - 1).clamp(min=0).expand_as(entries.mask)
    return replace(state, kv=state.kv.then(placed(state.lm, entries, at)).flush())

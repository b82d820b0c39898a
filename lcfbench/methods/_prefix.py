"""Puts entries into the receiver's cache beside its own entries, which stay as they are.

Entries are content (keys without rotary positions) until their place is known. All layers get
equally many: lengths that differ between layers run silently wrong in transformers.

>>> state = read_on_top(receiver, prompts, content(keys, values, mask), lead=2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel, State
from lcfbench.tasks.prompts import Prompt


def content(keys: Tensor, values: Tensor, mask: Tensor) -> KV:
    """Returns entries without a place: content keys and values (L, B, H, T, D), mask (B, T)."""
    return KV(keys, values, mask, mask.new_zeros(mask.shape))


def placed(lm: LanguageModel, entries: KV, positions: Tensor) -> KV:
    """Returns content entries at rotary positions (B, T)."""
    return replace(entries, keys=lm.rotate(entries.keys, positions), positions=positions)


def read_on_top(lm: LanguageModel, prompts: Sequence[Prompt], entries: KV, lead: int) -> State:
    """Reads `lead` tokens of each prompt, places the entries behind them, then reads whole prompts.

    The prompt attends both, as if a text it never saw stood in front. The first tokens of any text
    receive attention of no meaning, so they are the model's own; translated entries there made the
    receiver worse. Gradients flow through keys and values.
    """
    own = lm.prefill([p.ids[:lead] for p in prompts])
    first = own.mask.sum(1, keepdim=True)
    behind = placed(lm, entries, first + (entries.mask.cumsum(1) - 1).clamp(min=0))
    past = own.then(behind).flush().entries_alone()
    return lm.read(prompts, past, (first + entries.mask.sum(1, keepdim=True))[:, 0])


def append(state: State, entries: KV) -> State:
    """Places the entries behind the prompt, all at the position of the last token read.

    The answer attends them, the prompt did not: this needs no second prefill, and no gradient goes
    through the prompt.
    """
    at = (state.positions[:, :1] - 1).clamp(min=0).expand_as(entries.mask)
    return replace(state, kv=state.kv.then(placed(state.lm, entries, at)).flush())

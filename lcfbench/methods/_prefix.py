"""What methods share that put entries into the receiver's cache beside its own, instead of editing its own.

Entries are content (keys without rotary positions) until their place is known; here they get it. All layers get equally many: ragged
lengths run silently wrong in transformers.

>>> state = read_on_top(receiver, prompts, keys, values, mask, lead=2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import pad_left
from lcfbench.models.rotary import rotate
from lcfbench.models.state import State
from lcfbench.tasks.prompts import Prompt


def read_on_top(
    receiver: CausalLM, prompts: Sequence[Prompt], keys: Tensor, values: Tensor, mask: Tensor, lead: int
) -> State:
    """The receiver reads the first `lead` tokens of its own prompt, the entries stand behind them, then it reads its whole prompt and attends
    both: as if a text it never saw stood in front.

    keys (content), values: (L, B, H, T, D); mask: (B, T), 1 where an entry is real. The lead-in takes what attention pours on
    the first tokens of any text; translated entries there made the receiver worse. Gradients flow through keys and values.
    """
    ids, lead_mask = pad_left([list(p.ids[:lead]) for p in prompts], receiver.pad_id, receiver.device)
    own = receiver.prefill(ids, lead_mask)
    first = lead_mask.sum(1, keepdim=True)
    positions = first + (mask.cumsum(1) - 1).clamp(min=0)
    entries = KV(rotate(keys, positions, receiver.model), values, mask, positions)
    return receiver.read(
        prompts, past=own.then(entries).flush(), start=(first + mask.sum(1, keepdim=True))[:, 0]
    )


def append(state: State, keys: Tensor, values: Tensor, mask: Tensor) -> State:
    """The entries stand behind what the receiver has read, all at the position of the last token read: the answer attends them, the prompt did not.

    Needs no second prefill and no gradient through the prompt. Shapes as in `read_on_top`.
    """
    at = (state.positions[:, :1] - 1).clamp(min=0).expand_as(mask)
    entries = KV(rotate(keys, at, state.lm.model), values, mask, at)
    return replace(state, kv=state.kv.then(entries).flush())

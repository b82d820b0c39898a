"""What passes between methods and scoring: the message, and the state from which the receiver may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import pad_left, positions_of
from lcfbench.tasks.prompts import Prompt

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM


@dataclass
class Message:
    """What crossed the wire, one entry a document.

    wire_bytes: the smallest form the receiver's side needs. cache_bytes: the same before any projection (text is what it is).
    sharer_tokens: tokens the sharer read or wrote. texts: the message where it is text. read: what the sharer was shown.
    """

    wire_bytes: list[int]
    cache_bytes: list[int]
    sharer_tokens: list[int]
    texts: list[str] | None = None
    adapter_flops: list[float] | None = None
    read: list[Prompt] | None = None

    @classmethod
    def none(cls, rows: int) -> Message:
        return cls([0] * rows, [0] * rows, [0] * rows)


@dataclass
class State:
    """Everything up to "the model may now answer": the next forward runs `ids` on `kv`, and its last logits are the first answer token's.

    ids, mask: (B, T), left-padded, T ≥ 1. positions: (B, T). prompts: what the answering model was shown.
    """

    lm: CausalLM
    kv: KV
    ids: Tensor
    mask: Tensor
    positions: Tensor
    prompts: list[Prompt]
    message: Message = field(default_factory=lambda: Message([], [], []))


@dataclass
class Opened:
    """A `State` whose `ids` have been run. logits: (B, V) of the next token, fp32. next_position: (B,).

    extended: makes the cache to go on from; where one token was the whole answer nobody asks for it.
    """

    lm: CausalLM
    logits: Tensor
    next_position: Tensor
    extended: Callable[[], KV]

    @cached_property
    def kv(self) -> KV:
        return self.extended()

    def then(self, ids: list[list[int]], prompts: list[Prompt]) -> State:
        """A state that runs `ids` next: how a second ranking step follows the first."""
        x, mask = pad_left(ids, self.lm.pad_id, self.logits.device)
        return State(self.lm, self.kv, x, mask, positions_of(mask, self.next_position), prompts)

"""The interface of a causal language model, and the state from which one may answer.

Everything above `lcfbench.models` sees a model as a `LanguageModel`; `CausalLM` implements it with
transformers. A method turns a batch of documents into a `State`; scoring starts from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from lcfbench.geometry import Geometry
from lcfbench.models.capabilities import Capabilities
from lcfbench.models.kv_cache import KV
from lcfbench.models.latent import Thought
from lcfbench.models.layout import Layout, Reading
from lcfbench.models.padding import Real, pad_left, positions_of, silent_at
from lcfbench.models.ragged import Piece
from lcfbench.models.shared_prefill import SharedPrefill
from lcfbench.tasks.prompts import Prompt


class LanguageModel(Protocol):
    """A frozen causal language model with its tokenizer.

    name, revision, source: which model it is and where it came from. pad_id: the token that fills
    rows up. layout: what the layers of its cache keep; geometry: those that keep keys and values.
    reading: whether rows are padded, see `lcfbench.models.unpadded`. matmul_params: parameters that each
    token is multiplied with. shared: its readings, shared between methods and controls.
    """

    name: str
    revision: str
    source: str
    tokenizer: Any
    layout: Layout
    geometry: Geometry
    reading: Reading
    pad_id: int
    matmul_params: int
    shared: SharedPrefill

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model allows, see `lcfbench.models.capabilities`."""

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model reads at most; None where its config does not say."""

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding table: a token id must be smaller."""

    @property
    def hidden_size(self) -> int:
        """Numbers of an input embedding."""

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer in tokens; None where a layer attends everything."""

    @property
    def joins(self) -> bool:
        """Whether rows of any length run side by side in one forward, see `lcfbench.models.ragged`."""

    @property
    def takes_layer_masks(self) -> bool:
        """Whether each layer can be given an attention mask of its own."""

    def prefill(
        self,
        rows: Sequence[Sequence[int]],
        past: KV | None = None,
        start: Tensor | int = 0,
        real: Real | None = None,
    ) -> KV:
        """Returns the cache after reading each row of token ids, on top of `past` where given.

        start: rotary position of the first token, a number or (B,). real: False where a token of a row
        is padding, which becomes a silent entry. No logits are computed.
        """

    def prefill_latent(self, rows: Sequence[Sequence[int]], thought: Thought) -> KV:
        """Returns the cache after reading each row and `thought.steps` latent steps behind it.

        The rows' entries are those of `prefill`, see `lcfbench.models.latent`. Raises UserError for an
        empty row.
        """

    def hidden_states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int], counts: Sequence[int]
    ) -> list[Tensor]:
        """Returns the hidden states (l, n, d) behind layers of the last n = `counts[b]` tokens of each row.

        See `lcfbench.models.activations`. Raises UserError for an empty row.
        """

    def decoder_layers(self, layers: Sequence[int]) -> list[int]:
        """Returns the decoder blocks that layers of the cache belong to."""

    def read(self, prompts: Sequence[Prompt], past: KV | None = None, start: Tensor | int = 0) -> State:
        """Prefills all but the last token of each prompt; the last is left to run on the cache."""

    def open(self, state: State) -> Opened:
        """Runs the tokens that are left: logits of the first answer token and the longer cache."""

    def forward(
        self, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Callable[[], KV]]:
        """Runs ids (B, T) on a cache. Returns fp32 logits (n, V) and the maker of the longer cache.

        at: rows (n,) and columns (n,) of ids whose logits are computed.
        """

    def forward_pieces(
        self, pieces: Sequence[Piece], at: Sequence[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Callable[[], KV]]]:
        """Runs pieces with attention masks of their own; returns for each what `forward` does.

        The logits may be of the model's dtype: the same numbers, not copied into fp32.
        """

    def decoding(self, kv: KV) -> Any:
        """Makes the cache that `step` extends token by token."""

    def keep_rows(self, cache: Any, index: Tensor) -> None:
        """Keeps the rows `index` of such a cache."""

    def decoded_together(self, opened: Opened) -> list[tuple[list[int], Opened]]:
        """Returns the rows that may be decoded as one batch, and those rows opened."""

    def steps(self, steps: Sequence[Step]) -> list[Tensor]:
        """Runs one token a row of several batches, extends their caches, returns logits (B, V) of each."""

    def stop_ids(self) -> set[int]:
        """Returns the token ids that end an answer."""

    def rotate(
        self, keys: Tensor, positions: Tensor, layers: Sequence[int] | None = None, inverse: bool = False
    ) -> Tensor:
        """Applies or undoes the rotary embedding of keys (l, B, H, N, D) at positions (B, N)."""

    def content_keys(self, kv: KV) -> KV:
        """Returns the cache with the rotary embedding taken out of its keys."""

    def check_layer_masks(self) -> None:
        """Raises UserError where entries cannot be hidden from some layers alone."""

    def attention_share(
        self, rows: Sequence[Sequence[int]], past: KV, columns: slice, queries: slice
    ) -> Tensor:
        """Reads rows on top of `past`; returns each layer's attention to cache `columns`, (L,)."""

    def attention_to(self, ids: Sequence[int], past: KV | None, see: Callable[[int, Tensor], None]) -> None:
        """Reads one row on top of `past` (one row without padding); shows its attention.

        see: gets a layer of the cache and weights (heads, T, N) of some tokens, in order, to all entries
        so far; several times a layer where the text is read in stretches. Raises UserError for a model
        that gives no weights.
        """

    def differentiable(self) -> AbstractContextManager[Any]:
        """Within it a loss and its gradient can be computed: recurrent layers write states in place."""

    def flops(self, tokens: int) -> float:
        """Counts the operations of running `tokens` new tokens from an empty cache."""

    def attention_flops(self, queries: int, past: float = 0.0, tokens: float = 0.0) -> float:
        """Counts the attention of `queries` tokens to `past` entries and `tokens` of their own."""


@dataclass
class Step:
    """The next token of each row of a batch that is written: ids, positions (B,); mask (B, N + 1).

    cache: as `decoding` made it. hidden: (L, B, n), see `KV`.
    """

    cache: Any
    ids: Tensor
    mask: Tensor
    positions: Tensor
    hidden: Tensor | None = None


@dataclass
class Message:
    """The message that the sharer sent, one entry a document.

    wire_bytes: bytes of the smallest form that the receiver's side needs. cache_bytes: the same
    before any projection (equal for text). sharer_tokens: tokens that the sharer read or wrote.
    texts: the message, where it is text. adapter_flops: work beside the models' own readings.
    read: the prompts that the sharer read. packets: the bytes that crossed, empty where none did; None
    where nothing was sent as bytes. request_bytes: what the receiver sent first, if it asks.
    token_bytes: of the ids of the tokens whose entries are sent, from which they could be read anew.
    kept: which tokens of the sharer's prompts have entries in the message, where it is a choice of them.
    parts: the messages of several sharers, in their order, of which this one is the sum.
    """

    wire_bytes: list[int]
    cache_bytes: list[int]
    sharer_tokens: list[int]
    texts: list[str] | None = None
    adapter_flops: list[float] | None = None
    read: list[Prompt] | None = None
    packets: list[bytes] | None = None
    request_bytes: list[int] | None = None
    token_bytes: list[int] | None = None
    kept: list[list[int]] | None = None
    parts: list[Message] | None = None

    @classmethod
    def none(cls, rows: int) -> Message:
        return cls([0] * rows, [0] * rows, [0] * rows)

    @classmethod
    def joined(cls, parts: Sequence[Message]) -> Message:
        """Returns the messages of all sharers as one: sizes are sums, texts stand one a line."""
        if len(parts) == 1:
            return parts[0]

        def total(name: str) -> Any:
            told = [getattr(part, name) for part in parts]
            return None if any(x is None for x in told) else [sum(row) for row in zip(*told, strict=True)]

        texts = None
        if all(part.texts is not None for part in parts):
            texts = ["\n".join(row) for row in zip(*(part.texts or [] for part in parts), strict=True)]
        sums = ("wire_bytes", "cache_bytes", "sharer_tokens", "adapter_flops", "request_bytes", "token_bytes")
        return cls(texts=texts, parts=list(parts), **{name: total(name) for name in sums})


@dataclass
class State:
    """A batch just before the model answers: the next forward runs `ids` on `kv`.

    Its last logits are those of the first answer token. ids, mask, positions: (B, T), left-padded,
    T ≥ 1. prompts: the texts that the answering model was shown. silent: (B, T) bool, padding
    inside a prompt that no token attends; the first answer token may be predicted at it.
    """

    lm: LanguageModel
    kv: KV
    ids: Tensor
    mask: Tensor
    positions: Tensor
    prompts: list[Prompt]
    message: Message = field(default_factory=lambda: Message([], [], []))
    silent: Tensor | None = None

    @property
    def used(self) -> Tensor:
        """The mask (B, T) with silent tokens counted as read."""
        return self.mask if self.silent is None else self.mask | self.silent.long()

    def rows_at(self, index: Tensor) -> State:
        """Returns rows `index` (b,), repeated or reordered, without a message."""
        return State(
            self.lm,
            self.kv.rows_at(index),
            self.ids[index],
            self.mask[index],
            self.positions[index],
            [self.prompts[b] for b in index.tolist()],
            Message.none(len(index)),
            None if self.silent is None else self.silent[index],
        )

    @classmethod
    def before(
        cls,
        lm: LanguageModel,
        kv: KV,
        rows: Sequence[Sequence[int]],
        start: Tensor,
        prompts: Sequence[Prompt],
        real: Real | None = None,
    ) -> State:
        """Returns the state that runs `rows` next, from the rotary positions `start` on.

        start: (B,). real: False where a token is padding inside a prompt.
        """
        ids, mask = pad_left(rows, lm.pad_id, lm.device)
        positions = positions_of(mask, start.to(lm.device))
        state = cls(lm, kv, ids, mask, positions, list(prompts), Message.none(len(rows)))
        if real is None:
            return state
        silent = silent_at(mask, real)
        return replace(state, mask=mask * ~silent, silent=silent)


@dataclass
class Opened:
    """A `State` whose ids have run. logits: (B, V) of the next token, fp32. next_position: (B,).

    extended: makes the longer cache; an answer of one token never needs it.
    """

    lm: LanguageModel
    logits: Tensor
    next_position: Tensor
    extended: Callable[[], KV]

    @cached_property
    def kv(self) -> KV:
        return self.extended()

    def rows_at(self, index: Tensor) -> Opened:
        """Returns some rows (b,), as narrow as the longest of them."""
        return Opened(
            self.lm, self.logits[index], self.next_position[index], lambda: self.kv.rows_at(index).flush()
        )

    def then(self, rows: Sequence[Sequence[int]], prompts: Sequence[Prompt]) -> State:
        """Returns the state that runs `rows` next: a second ranking step follows the first."""
        return State.before(self.lm, self.kv, rows, self.next_position, prompts)

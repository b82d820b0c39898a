"""One frozen model with its tokenizer: prefill, score, decode, all batched, all starting from a `State`.

Letters, full-text choices, generation and the training loss are written here once; a method only has to bring the `State`.

>>> receiver = CausalLM.load(find_model("smollm2-135m"), dtype="float32")
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.models.answering import Answering
from lcfbench.models.cpu_packing import packed
from lcfbench.models.dtypes import pick_device, pick_dtype
from lcfbench.models.kv_cache import KV
from lcfbench.models.layer_masks import hiding
from lcfbench.models.memory import free_bytes
from lcfbench.models.padding import left_to_right, pad_left, positions_of
from lcfbench.models.shared_prefill import Shared, read
from lcfbench.models.state import Message, Opened, State
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.tasks.prompts import Prompt

LEAST_SHARED = 1 << 30  # bytes of caches that `CausalLM.sharing` keeps at least


class CausalLM(Answering):
    """A causal language model, frozen."""

    def __init__(self, name: str, model: Any, tokenizer: Any, revision: str = "", source: str = "") -> None:
        self.name, self.model, self.tokenizer, self.revision, self.source = (
            name,
            model.eval(),
            tokenizer,
            revision,
            source,
        )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.geometry = Geometry.of_config(model.config)
        self._shared: Shared | None = None
        self._shared_limit = 0  # bytes; measured when sharing begins
        self.beginnings: OrderedDict[tuple[int, ...], KV] | None = (
            OrderedDict()
        )  # see `prefill.beginning`; None where weights may change
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad_id: int = 0 if pad is None else pad
        # parameters a token is multiplied with: the embedding table is looked up, unless it is tied and is the output head
        table = model.get_input_embeddings().weight
        tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is table
        self.matmul_params: int = sum(p.numel() for p in model.parameters()) - (0 if tied else table.numel())

    @classmethod
    def load(
        cls, found: Any, *, dtype: str = "auto", device: str = "auto", attention: str = "sdpa"
    ) -> CausalLM:
        """Loads a model that `assets.find_model` found. `dtype` and `device` "auto" mean what is fastest here.

        Raises UserError when the folder holds no causal model transformers can load.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        place = pick_device(device)
        try:
            tokenizer = load_tokenizer(found.path)
            model = AutoModelForCausalLM.from_pretrained(
                found.path, dtype=pick_dtype(dtype, place), attn_implementation=attention
            )
        except ImportError as error:  # an attention implementation that is not installed
            raise UserError(
                f"{found.name} cannot be loaded ({first_line(error)})", "Use --attention sdpa, or install it."
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{found.name}: {found.path} is not a causal language model transformers can load ({first_line(error)}).",
                "Check the folder or name another model.",
            ) from error
        model.to(place)  # type: ignore[arg-type]
        return cls(found.name, packed(model), tokenizer, found.revision, found.source)

    @property
    def saved_seconds(self) -> float:
        """What the prefills handed out by `sharing` since `start_accounting` would have taken."""
        return self._shared.seconds if self._shared is not None else 0.0

    def start_accounting(self) -> None:
        """See `prefill.Shared.start_accounting`."""
        if self._shared is not None:
            self._shared.start_accounting()

    def release(self) -> int:
        """Lets go of what is held for sharing; how many caches that were."""
        held = self._shared.held if self._shared is not None else {}
        count = len(held)
        held.clear()
        return count

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def has_chat(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    # -- reading -------------------------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, mask: Tensor, past: KV | None = None, start: Tensor | int = 0) -> KV:
        """The cache after reading ids (B, N) under mask (B, N), on top of `past` where given; no logits are computed.

        start: rotary position of the first real token, a number or (B,). Tensors on the CPU spare a GPU a wait: what is read is compared there.
        """
        if past is None and not (start.any() if isinstance(start, Tensor) else start):
            return read(
                self, [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)], self._shared
            )
        return self.run(ids, mask, past, start)

    def run(self, ids: Tensor, mask: Tensor, past: KV | None, start: Tensor | int) -> KV:
        """One forward over the ids as they stand: see `prefill`, which does not repeat what it need not."""
        g, ids, mask = self.geometry, ids.to(self.device), mask.to(self.device)
        before = past or KV.empty(
            g.layers,
            ids.shape[0],
            g.kv_heads,
            g.head_dim,
            torch.zeros(0, device=self.device, dtype=self.dtype),
        )
        if ids.shape[1] == 0:
            return before
        positions = positions_of(mask, start.to(self.device) if isinstance(start, Tensor) else start)
        if before.length:  # padding goes to the end, not between what was read and what is read now
            mask, ids, positions = left_to_right(mask, ids, positions)
        full = torch.cat(
            [before.mask, mask], 1
        )  # covers cache + new ids: a mask of the new ids alone is silently wrong
        cache = before.to_cache()
        with hiding(self.model, before.hidden, full, ids.shape[1]):
            self.model.get_decoder()(
                input_ids=ids,
                attention_mask=full,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return KV.from_cache(cache, full, torch.cat([before.positions, positions], 1), before.hidden).flush()

    @contextmanager
    def sharing(self) -> Iterator[Shared]:
        """Within it equal batches are read from an empty cache once: several adapters, methods or controls on the same documents share them.

        Caches are never written in place, so sharing them is safe; they are let go at the end. What is kept ends at a quarter of
        the memory that was free when this model first shared.
        """
        self._shared_limit = self._shared_limit or max(free_bytes(self.device) // 4, LEAST_SHARED)
        outer, self._shared = self._shared, self._shared or Shared(self._shared_limit)
        try:
            yield self._shared
        finally:
            self._shared = outer

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it nothing is shared after all, and all beginnings are read: what is timed must be done."""
        outer, self._shared = self._shared, None
        kept, self.beginnings = self.beginnings, None
        try:
            yield
        finally:
            self._shared, self.beginnings = outer, kept

    def read(self, prompts: Sequence[Prompt], past: KV | None = None, start: Tensor | int = 0) -> State:
        """Prefills all but the last token of each prompt; the last one is left to run on whatever the cache has become."""
        ids, mask = pad_left([list(p.ids) for p in prompts], self.pad_id)
        positions = positions_of(mask, start.to(mask.device) if isinstance(start, Tensor) else start)[
            :, -1:
        ].to(self.device)
        kv = self.prefill(ids[:, :-1], mask[:, :-1], past, start)
        return State(
            self,
            kv,
            ids[:, -1:].to(self.device),
            mask[:, -1:].to(self.device),
            positions,
            list(prompts),
            Message.none(len(prompts)),
        )

    def open(self, state: State) -> Opened:
        """Runs what is left of the prompt: the logits of the first answer token, and the cache to go on from."""
        last = state.positions[:, -1]
        ids, mask, positions = state.ids, state.mask, state.positions
        ends: Tensor | None = None
        if ids.shape[1] > 1 and state.kv.length > 0:  # padding goes to the end, see `run`
            mask, ids, positions = left_to_right(mask, ids, positions)
            ends = mask.sum(1) - 1
        rows = torch.arange(len(ids), device=ids.device)
        logits, cache = self.forward(
            state.kv,
            ids,
            mask,
            positions,
            (rows, ends if ends is not None else torch.full_like(rows, ids.shape[1] - 1)),
        )
        full, at = torch.cat([state.kv.mask, mask], 1), torch.cat([state.kv.positions, positions], 1)
        return Opened(self, logits, last + 1, lambda: KV.from_cache(cache, full, at, state.kv.hidden).flush())

    def forward(
        self, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Any]:
        """Logits (n, V) in fp32 of ids (B, T) at `at` = (rows (n,), columns (n,)) on top of a cache, and the extended transformers cache.

        The rest of the vocabulary's logits, the largest matrix by far, is never computed. Gradients flow where the cache carries them.
        """
        cache = kv.to_cache()
        full = torch.cat([kv.mask, mask], 1)
        head = self.model.get_output_embeddings()
        with hiding(self.model, kv.hidden, full, ids.shape[1]), keeping(head, at):
            out = self.model(
                input_ids=ids,
                attention_mask=full,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0,
            )
        return (out.logits[0] if head is not None else out.logits[at]).float(), cache

    def flops(self, tokens: int) -> float:
        """Floating-point operations to run `tokens` new tokens from an empty cache: 2 a parameter and token, plus attention."""
        return 2.0 * self.matmul_params * tokens + self.attention_flops(tokens, tokens=(tokens + 1) / 2)

    def attention_flops(self, queries: int, past: float = 0.0, tokens: float = 0.0) -> float:
        """Scores and weighted sums of `queries` tokens, each over `past` entries and, on average, `tokens` of their own."""
        config = getattr(self.model.config, "text_config", None) or self.model.config
        return (
            4.0
            * self.geometry.layers
            * config.num_attention_heads
            * self.geometry.head_dim
            * queries
            * (past + tokens)
        )


def sharing(lms: Iterable[CausalLM]) -> AbstractContextManager[None]:
    """`CausalLM.sharing` of several at once: each reads its part of a batch once, however many adapters or methods there are."""
    return within(lm.sharing() for lm in lms)


def apart(lms: Iterable[CausalLM]) -> AbstractContextManager[None]:
    """`CausalLM.apart` of several at once."""
    return within(lm.apart() for lm in lms)


@contextmanager
def within(contexts: Iterable[AbstractContextManager[Any]]) -> Iterator[None]:
    """All of these at once."""
    with ExitStack() as stack:
        for each in contexts:
            stack.enter_context(each)
        yield


@contextmanager
def keeping(head: Any, at: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Within it the output head (None where there is no such module) sees the states at (rows (n,), columns (n,)) alone, as one row (1, n, ·)."""

    def pick(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][at][None], *args[1:])

    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()

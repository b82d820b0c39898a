"""dense: the sharer's cache, translated into the receiver's own (dense alignment)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from lcfbench.adapters.dense import DenseAdapter
from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._fusion import Exchange, Fusion, Segment
from lcfbench.methods._lengths import check_room
from lcfbench.methods._prefix import content, read_on_top
from lcfbench.methods._translate import aligned_tokens, columns_of, entries_at, read_pairs, two_readings
from lcfbench.methods._wire import cache_across, latents_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

LONG, AT_ONCE = 2048, 512  # columns up to which all are translated at once, and how many then


@dataclass
class Dense(Fusion):
    """Dense alignment of caches (arXiv 2606.13594).

    On different contexts the receiver keeps its own first `lead` tokens, the sharer's whole text
    follows translated, then the receiver's own prompt. On shared contexts position meets position.
    context: `aware`, the translation is worked into what the receiver read; `unaware`, it takes its
    place; `auto`, aware, and in training either, as the adapter's `aware_share` says.
    """

    adapter: DenseAdapter
    lead: Annotated[int, Ge(0)] = 2
    context: Literal["auto", "aware", "unaware"] = "auto"

    adapter_kinds: ClassVar[tuple[str, ...]] = ("dense",)
    starts_fitted: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("edit", "prefix", "rotate"),
        "sharer": ("edit", "rotate"),
    }

    def __post_init__(self) -> None:
        if self.lead < 0:
            raise UserError(f"lead={self.lead} tokens.", "Give 0 or more; 2 is the default.")
        super().__post_init__()

    @property
    def by_turn(self) -> bool:
        """Always: translated entries may replace entries that the later template has read."""
        return True

    def check(self, document: Document) -> None:
        layers, whole = len(self.adapter.config.layers), self.receiver.geometry.layers
        if not document.shared and layers not in (0, whole):
            raise UserError(
                f"task {document.task} gives the models different contexts; this adapter translates {layers} "
                f"of {whole} layers, and entries in front of a prompt need them all.",
                "Use an unpruned adapter with soft or open gates.",
            )

    def check_beside(self, other: Method) -> None:
        super().check_beside(other)
        assert isinstance(other, Dense)
        if self.lead != other.lead:
            what = f"the adapters stand behind {self.lead} and {other.lead} tokens of the receiver's own."
            raise UserError(what, f"Give -o lead={self.lead}.")

    @property
    def added(self) -> int:
        return self.lead

    def check_length(self, document: Document, sender: Document) -> None:
        config = self.adapter.config
        if document.shared or not config.layers:
            return super().check_length(document, sender)
        mine, theirs = two_readings(self.receiver, self.sharer, [sender], config)
        check_room(self.sharer, theirs[0], sender, written=0)
        _, [read] = aligned_tokens(mine, theirs, config.token_alignment, self.lead, self.adapter.last)
        shown = prompt(self.receiver, document.receiver, document)
        check_room(self.receiver, shown, document, beside=min(self.lead, len(shown.ids)) + len(read))

    @classmethod
    def ways(cls, shared: bool) -> tuple[Join, ...]:
        return cls.joins if shared else ("row", "free")

    def beside(self, document: Document, sender: Document) -> int:
        config = self.adapter.config
        if document.shared or not config.layers:
            return 0
        mine, theirs = two_readings(self.receiver, self.sharer, [sender], config)
        _, [read] = aligned_tokens(mine, theirs, config.token_alignment, self.lead, self.adapter.last)
        return len(read)

    def respond(self, batch: Batch) -> State:
        if all(d.shared for d in batch.documents):
            return super().respond(batch)
        return self.receive(batch, [self.send(batch)], "row")

    def send(self, batch: Batch) -> Sent:
        if all(d.shared for d in batch.documents):
            return super().send(batch)
        self.check(batch.documents[0])
        adapter, clock = self.adapter, batch.clock
        if not adapter.config.layers:  # every gate is shut: the receiver alone
            return Sent(None, lambda prompts: Message.none(len(prompts)))
        with clock("sharer"):
            mine, theirs = two_readings(self.receiver, self.sharer, batch.message_from, adapter.config)
            sent = self.sharer_cache(theirs)
        with clock("fuse"):
            scheme = adapter.config.token_alignment
            _, read = aligned_tokens(mine, theirs, scheme, self.lead, adapter.last)
            index, mask = columns_of(read, theirs, sent)
            if batch.wire is None:
                keys, values = self.translate(sent, index)
            else:
                entries_of = self.content(sent)
                if self.sends_entries:
                    entries_of = cache_across(batch, entries_of, self.read_layers)
                [codes] = self.across(batch, [(index, mask.bool())], entries_of)
                keys, values = self.decoded(codes)
        counts = [len(row) for row in read]

        def sizes(prompts: list[Prompt]) -> Message:
            message = self.account(theirs, counts)
            # every receiver token attends the entries too
            both = zip(message.adapter_flops or [], prompts, counts, strict=True)
            work = [own + self.receiver.attention_flops(len(p.ids), past=n) for own, p, n in both]
            return batch.counted(replace(message, adapter_flops=work))

        return Sent(content(keys, values, mask.to(keys.device)), sizes)

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        if all(d.shared for d in batch.documents):
            return super().receive(batch, sent, join)
        parts = [each.content for each in sent if each.content is not None]
        with batch.clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            if not parts:
                return self.receiver.read(prompts)
            state = read_on_top(self.receiver, prompts, parts, self.lead, join)
        return replace(state, message=Message.joined([each.account(prompts) for each in sent]))

    def translate(self, sent: KV, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns content keys and values (L, B, H, N, D) for the columns `index` (B, N).

        Of many columns some at a time, unless a gradient is wanted: what the adapter makes of an entry
        on the way is many times as large as the entry.
        """
        return self.decoded(self.codes(self.content(sent), index))

    def content(self, sent: KV) -> KV:
        """Returns the sharer's cache with keys that carry no positions; no gradient goes there."""
        with torch.no_grad():
            return self.sharer.content_keys(sent)

    def codes(self, content_of: KV, index: Tensor) -> Iterator[Tensor]:
        """Yields the codes (L, B, n, r) of the columns `index` (B, N) of a cache without positions."""
        adapter, receiver = self.adapter, self.receiver
        size = index.shape[1] if torch.is_grad_enabled() or index.shape[1] <= LONG else AT_ONCE
        for some in index.split(max(size, 1), 1):
            with torch.no_grad():
                entries = entries_at(content_of, some)
                entries = adapter.window(entries.to(receiver.device, receiver.dtype))
            yield adapter.message(entries).unflatten(1, some.shape)

    def decoded(self, codes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns content keys and values (L, B, H, N, D) of codes (L, B, n, r), stretch by stretch."""
        made = [self.adapter(code) for code in codes]
        keys, values = made[0] if len(made) == 1 else (torch.cat(x, 3) for x in zip(*made, strict=True))
        return keys, values

    @property
    def read_layers(self) -> list[int]:
        """The sharer's layers that the adapter reads."""
        return sorted({s for window in self.adapter.windows for s in window})

    @property
    def sends_entries(self) -> bool:
        """Whether the sharer's entries are fewer numbers a token than their codes."""
        numbers = sum(map(self.adapter.config.sharer_geometry.numbers, self.read_layers))
        return numbers < self.adapter.code * len(self.adapter.config.layers)

    def across(
        self, batch: Batch, parts: Sequence[tuple[Tensor, Tensor]], content_of: KV
    ) -> list[list[Tensor]]:
        """Returns the codes of each part, stretch by stretch, as they are read from bytes.

        parts: columns (B, N) of the cache and which of them are real. content_of: a cache without positions;
        it has crossed already where entries are sent.
        """
        made = [list(self.codes(content_of, index)) for index, _ in parts]
        if self.sends_entries:
            return made
        whole = [torch.cat(codes, 2) for codes in made]
        reals = [real.to(whole[0].device) for _, real in parts]
        sent: list[Tensor | None] = []
        for b in range(len(batch.documents)):
            mine = [x[:, b][:, real[b]] for x, real in zip(whole, reals, strict=True)]
            joined = torch.cat(mine, 1)
            sent.append(joined if joined.shape[1] else None)
        for b, x in enumerate(latents_across(batch, sent)):
            start = 0
            for each, real in zip(whole, reals, strict=True):
                count = int(real[b].sum())
                if x is not None:
                    each[:, b, real[b]] = x[:, start : start + count]
                start += count
        return [list(x.split([c.shape[2] for c in codes], 2)) for x, codes in zip(whole, made, strict=True)]

    def carried(self, exchange: Exchange, parts: Sequence[Segment]) -> dict[tuple[int, ...], Tensor]:
        index, sent = [self.positions(exchange, part) for part in parts], self.content(exchange.theirs)
        if self.sends_entries:
            sent = cache_across(exchange.batch, sent, self.read_layers)
        at = [(i.clamp(min=0).to(sent.keys.device), i >= 0) for i in index]
        found = self.across(exchange.batch, at, sent)
        return {tuple(p.stops): torch.cat(x, 2) for p, x in zip(parts, found, strict=True) if p.width}

    def aware(self, batch: Batch) -> bool:
        """Says whether the receiver's own entries stay in the cache, on shared contexts.

        In training the documents decide by their hash: the same after a resume.
        """
        adapter = self.adapter
        if self.context != "auto" or not (adapter.training and adapter.gate_logit.requires_grad):
            return self.context != "unaware"
        digest = hashlib.sha256("".join(d.hash for d in batch.documents).encode()).digest()
        return digest[0] / 256 < adapter.aware_share

    def fuse(self, exchange: Exchange, kv: KV, part: Segment) -> tuple[KV, list[int]]:
        column, adapter = kv.length - part.width, self.adapter
        index = self.positions(exchange, part)
        carried = exchange.carried.get(tuple(part.stops))
        if carried is None:
            at = index.clamp(min=0).to(exchange.theirs.keys.device)
            keys, values = self.translate(exchange.theirs, at)
        else:
            size = part.width if part.width <= LONG else AT_ONCE
            keys, values = self.decoded(carried.split(size, 2))
        keys = self.receiver.rotate(keys, kv.positions[:, column:], adapter.config.layers)
        layers = torch.tensor(adapter.config.layers, device=kv.keys.device)
        (old_k, own_k), (old_v, own_v) = (
            (x[layers][..., :column, :], x[layers][..., column:, :]) for x in (kv.keys, kv.values)
        )
        if self.aware(exchange.batch):
            keys, values = adapter.blend(own_k, own_v, keys, values)
        edited = (index >= 0)[None, :, None, :, None].to(kv.keys.device)
        keys, values = torch.where(edited, keys, own_k), torch.where(edited, values, own_v)
        kv = kv.with_layers(layers, torch.cat([old_k, keys], 3), torch.cat([old_v, values], 3))
        return kv, (index >= 0).sum(1).tolist()

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Fits the translation to the receiver's cache of the same text (phase I of the paper)."""
        from lcfbench.adapters.dense_fit import reconstruct

        config, models = self.adapter.config, (self.receiver, self.sharer)
        reconstruct(self.adapter, lambda: read_pairs(*models, documents, config, self.lead), say)

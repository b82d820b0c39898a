"""draft_kv: the keys and values of a draft answer are a side memory of the receiver (arXiv 2609.34754).

Only entries of tokens that the sharer wrote cross, never those of its prompt: these would be a second
channel. In a few layers of the receiver's upper half the last token of its prompt and the answer attend
them; the other layers, and the rest of the prompt, do not see them. The paper gates a separate attention
to the memory. Here one softmax goes over [own entries; memory] and log(gate) is added to the memory's
logits, which is equivalent where it matters: a gate at nought hides the memory, and with all gates shut the
receiver reads alone, bit for bit.

A training has three stages, see `DraftKV.loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.config import AdapterConfig
from lcfbench.adapters.draft_kv import DraftKVAdapter, spread
from lcfbench.adapters.lcf import flat
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._prefix import append, content
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, Judge, Method, prompt
from lcfbench.models.answering import answer_loss, supervised_losses, write
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel, Message, State
from lcfbench.models.thinking import think
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, continuation, continuations

CALIBRATION = 64  # documents from whose drafts input statistics are measured
BASE = 16  # documents of whose own entries the receiver's statistics are measured
AT_ONCE = 16  # documents that are drafted together
SMALLEST = 1e-30  # weight of a gate whose logarithm still has a gradient


@dataclass(frozen=True)
class Packet:
    """Drafts of a batch: their entries alone.

    entries: K|V with content keys (l, B, T, s), of the sharer's layers that are read, right-aligned.
    ids: the tokens written. mask: (B, T). asked: the prompts that the sharer read. ran: tokens that it
    read or wrote.
    """

    entries: Tensor
    ids: list[list[int]]
    mask: Tensor
    asked: list[Prompt]
    ran: list[int]

    def rows_at(self, rows: Sequence[int]) -> Packet:
        """Returns the drafts of other rows: a wrong pairing."""
        at = torch.tensor(rows, device=self.entries.device)
        lists = ([some[i] for i in rows] for some in (self.ids, self.asked, self.ran))
        ids, asked, ran = lists
        return Packet(self.entries[:, at], ids, self.mask[at], asked, ran)  # type: ignore[arg-type]


@dataclass
class DraftKV(Method):
    """All settings are the adapter's, see `lcfbench.adapters.draft_kv`."""

    adapter: DraftKVAdapter

    adapter_kinds: ClassVar[tuple[str, ...]] = ("draft_kv",)
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("prefix", "rotate"),
        "sharer": ("edit", "rotate"),
    }

    def __post_init__(self) -> None:
        assert isinstance(self.adapter, DraftKVAdapter), "draft_kv needs a draft_kv adapter"
        self.adapter.config.check_fits(self.receiver.geometry, self.sharer.geometry, "")
        try:
            self.receiver.check_layer_masks()
        except UserError as refused:  # the memory is shown to some layers alone
            raise UserError(refused.what, "Use another receiver, or a method such as dense or lcf.") from None

    @classmethod
    def configure(
        cls, config: AdapterConfig, receiver: LanguageModel, sharer: LanguageModel
    ) -> AdapterConfig:
        """Chooses the receiver's layers that read the memory: `into`, spread over the upper half."""
        into = int(config.options.get("into", 4))
        keep = spread(len(config.layers), min(into, len(config.layers)))
        chosen = {name: tuple(getattr(config, name)[i] for i in keep) for name in ("layers", "layer_map")}
        return config.model_copy(update=chosen)

    def check_length(self, document: Document, sender: Document) -> None:
        """The memory takes no positions of the receiver; the draft takes the sharer's."""
        check_room(self.sharer, self.asked(sender), sender, written=self.adapter.draft)
        check_room(self.receiver, prompt(self.receiver, document.receiver, document), document)

    def asked(self, sender: Document) -> Prompt:
        """Returns what the sharer reads before it writes."""
        return prompt(self.sharer, sender.sharer, replace(sender, steps=()))

    def respond(self, batch: Batch) -> State:
        with batch.clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            if not self.adapter.training and not self.adapter.open_layers():  # the receiver alone
                return self.receiver.read(prompts)
        with batch.clock("sharer"):
            packet = self.empty(batch.message_from) if batch.replays else self.packet(batch.message_from)
        if batch.wire is not None:
            with batch.clock("message"):
                packet = self.across(batch, packet)
        with batch.clock("prefill"):
            state = self.receiver.read(prompts)
        with batch.clock("fuse"):
            state = self.attending(state, packet)
            return replace(state, message=batch.counted(state.message))

    def across(self, batch: Batch, packet: Packet) -> Packet:
        """Returns the packet with entries as they are read from bytes: those of the tokens written."""
        both = zip(packet.entries.unbind(1), packet.mask.bool(), strict=True)
        sent = [x[:, own] if bool(own.any()) else None for x, own in both]
        read = latents_across(batch, sent, packet.entries)
        counts = [0 if x is None else x.shape[1] for x in read]
        layers, rows, _, numbers = packet.entries.shape
        numbers = max([numbers, *(x.shape[2] for x in read if x is not None)])
        entries = packet.entries.new_zeros(layers, rows, max(counts), numbers)
        mask = packet.mask.new_zeros(rows, max(counts))
        for b, (x, n) in enumerate(zip(read, counts, strict=True)):
            if x is not None:
                entries[:, b, max(counts) - n :], mask[b, max(counts) - n :] = x, 1
        ids = packet.ids if not batch.replays else [[0] * n for n in counts]  # ids are not sent
        return replace(packet, entries=entries, mask=mask, ids=ids)

    def empty(self, senders: Sequence[Document]) -> Packet:
        """Returns a packet of drafts without tokens: what it holds was written before, in a replay."""
        receiver, asked = self.receiver, [self.asked(s) for s in senders]
        shape = len(self.adapter.config.layer_map), len(asked), 0, 0
        none = torch.zeros(shape, device=receiver.device, dtype=receiver.dtype)
        mask = torch.zeros(len(asked), 0, device=receiver.device, dtype=torch.long)
        return Packet(none, [[] for _ in asked], mask, asked, [len(p.ids) for p in asked])

    def packet(self, senders: Sequence[Document]) -> Packet:
        """Lets the sharer write drafts, greedily, and returns the entries of what it wrote.

        They are read in one forward behind the prompt. No gradient goes there.
        """
        sharer, most = self.sharer, self.adapter.draft
        asked = [self.asked(s) for s in senders]
        until = tuple(sorted({u for s in senders for u in s.until}))
        with torch.no_grad():
            state, thoughts = think(sharer.read(asked), choices=False)
            ids = sharer.shared.once(
                ("draft", tuple(asked), most, until), lambda: write(sharer.open(state), most, until)
            )
            used = state.used.bool()
            left = [row[keep].tolist() for row, keep in zip(state.ids, used, strict=True)]
            start = state.positions[:, -1] + 1 - used.sum(1)
            kv = sharer.prefill([a + b for a, b in zip(left, ids, strict=True)], state.kv, start)
            self.check_sent(kv)
            longest = max(map(len, ids))
            sources = list(self.adapter.config.layer_map)
            behind = slice(kv.length - longest, kv.length)
            at = torch.tensor(sources, device=kv.keys.device)
            keys = kv.keys[at, :, :, behind]
            if longest:
                keys = sharer.rotate(keys, kv.positions[:, behind], sources, inverse=True)
            entries = torch.cat([flat(keys), flat(kv.values[at, :, :, behind])], -1)
        column = torch.arange(longest)
        mask = torch.stack([(column >= longest - len(row)).long() for row in ids])
        ran = [len(p.ids) + len(row) for p, row in zip(asked, ids, strict=True)]
        if thoughts:
            ran = [n + t.tokens + t.added for n, t in zip(ran, thoughts, strict=True)]
        receiver = self.receiver
        return Packet(entries.to(receiver.device, receiver.dtype), ids, mask.to(receiver.device), asked, ran)

    def attending(self, state: State, packet: Packet) -> State:
        """Returns the state with the packet as a memory of the chosen layers."""
        adapter, lm = self.adapter, self.receiver
        state = replace(state, message=self.account(packet))
        rows, T = packet.mask.shape
        if not T:  # the sharer wrote nothing
            return state
        made = adapter(packet.entries.flatten(1, 2))
        layers = torch.tensor(adapter.config.layers, device=lm.device)
        keys, values = (self.in_place(x.unflatten(2, (rows, T)).transpose(1, 2), layers) for x in made)
        weight = adapter.weights()
        added = torch.where(weight > 0, weight.clamp(min=SMALLEST).log(), -torch.inf).to(lm.device)
        hidden = keys.new_full((len(keys), rows, T), -torch.inf, dtype=torch.float32)
        hidden = hidden.index_copy(0, layers, added.float()[:, None, None].expand(-1, rows, T))
        return append(state, replace(content(keys, values, packet.mask), hidden=hidden))

    def in_place(self, x: Tensor, layers: Tensor) -> Tensor:
        """Returns entries (l, B, H, T, D) of some layers among zeros of the others, (L, B, H, T, D)."""
        every = x.new_zeros(self.receiver.geometry.layers, *x.shape[1:])
        return every.index_copy(0, layers, x)

    def account(self, packet: Packet) -> Message:
        """Returns the sizes of the message: entries of the tokens written, whatever the prompt's length."""
        adapter, size, written = self.adapter, self.receiver.dtype.itemsize, [len(row) for row in packet.ids]
        return Message(
            wire_bytes=[adapter.wire_bytes(n, n, size) for n in written],
            cache_bytes=[adapter.cache_bytes(n, size) for n in written],
            sharer_tokens=packet.ran,
            adapter_flops=[adapter.flops(n) for n in written],
            read=packet.asked,
        )

    # -- training ---------------------------------------------------------------------------------

    def loss(self, batch: Batch, done: float, judge: Judge) -> tuple[Tensor, Tensor, int]:
        """Returns the loss of the stage that a share `done` of the steps has reached.

        1: the receiver reconstructs the sharer's draft from the packet. 2: the answers' objective, and
        reconstruction with weight `replay`. 3: cross-entropy of the options, of documents that have one
        step of them (others keep the answers' objective), and the guard, see `guarded`; its wrong
        packets are those of the next document of the batch, so a document alone has none.
        """
        adapter, documents = self.adapter, batch.documents
        stage, packet = adapter.stage(done), self.packet(batch.message_from)
        alone = self.receiver.read([prompt(self.receiver, d.receiver, d) for d in documents])
        state = self.attending(alone, packet)
        nothing = 0.0 * adapter.base.sum()  # where no draft has a token, there is a gradient all the same
        if stage == 1:
            loss, right, tokens = self.reconstruction(state, packet)
            return loss + nothing, right, tokens
        if stage == 2 or any(len(d.steps) != 1 for d in documents):
            loss, right, tokens = judge(state)
            if stage == 2:
                loss = loss + adapter.replay * self.reconstruction(state, packet)[0]
            return loss + nothing, right, tokens
        per_document, right = options_loss(state, documents)
        loss = per_document.mean() + nothing
        if len(documents) > 1 and adapter.guard:
            rolled = [*range(1, len(documents)), 0]
            wrong, _ = options_loss(self.attending(alone, packet.rows_at(rolled)), documents)
            with torch.no_grad():
                none, _ = options_loss(alone, documents)
            loss = loss + adapter.guard * guarded(wrong, none, adapter.margin)
        return loss, right, len(documents)

    def reconstruction(self, state: State, packet: Packet) -> tuple[Tensor, Tensor, int]:
        """Returns the cross-entropy of the draft in the receiver's tokens, the share right, their number."""
        tokenizer, theirs = self.receiver.tokenizer, self.sharer.tokenizer
        texts = [theirs.decode(ids, skip_special_tokens=True) for ids in packet.ids]
        ids = [continuation(p, t, tokenizer) if t else [] for p, t in zip(state.prompts, texts, strict=True)]
        loss, right = answer_loss(state, ids, [[True] * len(row) for row in ids])
        return loss, right, max(sum(map(len, ids)), 1)

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Measures statistics of drafts, and of the receiver's own entries, where the memory starts."""
        adapter, measured, based = self.adapter, documents[:CALIBRATION], documents[:BASE]
        say(
            f"draft_kv: statistics from the drafts of {len(measured)} documents "
            f"and the receiver's entries of {len(based)}."
        )
        with torch.no_grad():
            packets = [self.packet(measured[i : i + AT_ONCE]) for i in range(0, len(measured), AT_ONCE)]
            real = [p.entries[:, p.mask.bool()] for p in packets]
            if any(x.shape[1] for x in real):
                adapter.calibrate(torch.cat(real, 1))
            kv = self.receiver.read([prompt(self.receiver, d.receiver, d) for d in based]).kv
            adapter.start_base(*self.own_entries(kv))

    def own_entries(self, kv: KV) -> tuple[Tensor, Tensor]:
        """Returns the receiver's content keys and values (l, H, T, D) without those of first tokens.

        Attention of no meaning goes to a text's first token, whose entries are unlike others.
        """
        own = self.receiver.content_keys(kv)
        real = kv.mask.bool() & (kv.mask.cumsum(1) > 1)
        layers = torch.tensor(self.adapter.config.layers, device=kv.keys.device)
        keys, values = (x[layers].transpose(2, 3)[:, real].transpose(1, 2) for x in (own.keys, own.values))
        return keys, values


def options_loss(state: State, documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy (B,) of each right option among its document's, and the share right.

    Each document has one step of options.
    """
    lm, counts = state.lm, [len(d.steps[0].choices) for d in documents]
    ids = [
        continuations(p, d.steps[0].choices, lm.tokenizer)
        for p, d in zip(state.prompts, documents, strict=True)
    ]
    flat_ids = [list(one) for row in ids for one in row]
    index = torch.tensor([b for b, n in enumerate(counts) for _ in range(n)], device=state.ids.device)
    nll, rows, _ = supervised_losses(state.rows_at(index), flat_ids, [[True] * len(one) for one in flat_ids])
    likelihood = -nll.new_zeros(len(flat_ids)).index_add(0, rows, nll)
    losses, hits = [], []
    for scores, d in zip(likelihood.split(counts), documents, strict=True):
        gold = d.steps[0].gold[0]
        losses.append(-scores.log_softmax(0)[gold])
        hits.append(scores.argmax() == gold)
    return torch.stack(losses), torch.stack(hits).float().mean()


def guarded(wrong: Tensor, none: Tensor, margin: float) -> Tensor:
    """Returns the mean over documents (B,) of how much worse than `margin` a wrong packet is than none.

    No gradient goes to `none`: the receiver is never made better or worse on purpose, and a wrong packet
    that does no harm costs nothing.

    >>> float(guarded(torch.tensor([1.5, 0.2]), torch.tensor([1.0, 1.0]), 0.1))
    0.19999998807907104
    """
    return (wrong - none.detach() - margin).clamp(min=0).mean()

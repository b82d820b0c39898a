"""The common part of C2C, LCF, LCF-X and dense: an adapter edits the receiver's cache.

Both models read, the adapter edits the receiver's cache with the sharer's, and the last token of
the prompt runs on the edited cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter, Editor
from lcfbench.alignment.remap import remap_prompt
from lcfbench.alignment.sections import Chat, in_sections, unpadded
from lcfbench.alignment.tokens import aligned_positions, turn_ends
from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.beside import Beside
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV, put
from lcfbench.models.protocol import LanguageModel, Message, State
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, View
from lcfbench.tasks.prompts import Prompt, contents_of, opened_answer

VECTOR = 32  # numbers in the widest vector of a processor (bfloat16 in AVX-512)


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompts that is read, then edited: tokens [start, stop) of each."""

    starts: list[int]
    stops: list[int]

    @classmethod
    def whole(cls, rows: Sequence[Prompt | Chat]) -> Segment:
        """All but the last token, which runs only after the edit."""
        return cls([0] * len(rows), [len(row.ids) - 1 for row in rows])

    @classmethod
    def between(cls, stops: Sequence[Sequence[int]]) -> list[Segment]:
        """The segments that end at each row's `stops`; rows that have fewer begin with empty ones."""
        count = max(map(len, stops))
        padded = [[0] * (count - len(row)) + list(row) for row in stops]
        ends = [[row[k] for row in padded] for k in range(count)]
        return [cls(a, b) for a, b in zip([[0] * len(stops), *ends], ends, strict=False)]

    @property
    def lengths(self) -> list[int]:
        return [stop - start for start, stop in zip(self.starts, self.stops, strict=True)]

    @property
    def width(self) -> int:
        """Columns that hold it, the last ones of the cache; a shorter row stands at their right."""
        return max(self.lengths)


@dataclass(frozen=True)
class Exchange:
    """A batch as both models read it.

    prompts: the receiver's. shared, theirs: the sharer's prompts and its cache over them. carried: the
    messages (L, T, d) as they were read from bytes, by the ends of their segment. chats, sent:
    the documents, and those whose messages are sent, in C2C's sections, where the adapter was trained
    with their padding.
    """

    batch: Batch
    prompts: list[Prompt]
    shared: list[Prompt]
    theirs: KV
    carried: Mapping[tuple[int, ...], Tensor] = field(default_factory=dict)
    chats: Sequence[Chat] | None = None
    sent: Sequence[Chat] | None = None

    @property
    def rows(self) -> Sequence[Prompt | Chat]:
        """The receiver's tokens as they are run."""
        return self.chats or self.prompts


@dataclass
class Fusion(Method):
    """Base of the methods that edit the receiver's cache with an adapter."""

    adapter: Adapter

    joins: ClassVar[tuple[Join, ...]] = ("parallel", "sequential")
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {"receiver": ("edit",), "sharer": ("edit",)}

    def __post_init__(self) -> None:
        assert self.adapter is not None, "a fusion method needs an adapter"
        config = self.adapter.config
        config.check_fits(self.receiver.geometry, self.sharer.geometry, "")
        read, rows = len(self.receiver.tokenizer), self.sharer.vocabulary_size
        if config.token_alignment == "same" and read > rows:
            raise UserError(
                f"this adapter feeds {self.sharer.name} the token ids of {self.receiver.name}, which go to "
                f"{read}; it knows {rows}.",
                "Use an adapter with token alignment span or remap.",
            )
        # at inference, layers whose gates are shut change nothing: they are not even computed
        keep = self.adapter.open_layers()
        self.shortened = not next(self.adapter.parameters()).requires_grad and len(keep) < len(config.layers)
        if self.shortened:
            self.adapter = self.adapter.select(keep)

    @property
    def by_token(self) -> bool:
        """Whether receiver tokens read sharer tokens, so that both models need the same text."""
        return True

    @property
    def by_turn(self) -> bool:
        """Whether each turn is edited before the next one is read, as in C2C's sections.

        The template after a turn then sees it edited.
        """
        return self.adapter.config.token_alignment == "remap"

    def check(self, document: Document) -> None:
        if self.by_token and not document.shared:
            raise UserError(
                f"task {document.task} gives the models different contexts; "
                f"this {self.adapter.config.kind} adapter fuses token by token.",
                "Use an LCF-X adapter (kind lcfx), --mode t2t or --mode kvcomm there.",
            )

    def check_length(self, document: Document, sender: Document) -> None:
        """Padding between the sections of C2C's chats counts."""
        mine, beside = self.prompt(self.receiver, document.receiver, document), 0
        if self.adapter.config.layers and self.padded:
            chat = self.chat(document, mine)
            beside = len(chat.ids) - len(mine.ids)
            if sender is not document:
                self.chat(sender, self.prompt(self.receiver, sender.receiver, sender))
        elif self.adapter.config.layers:
            [sent] = self.sharer_prompts(Batch([document], [sender], Clock()), [mine])
            check_room(self.sharer, sent, sender, written=0)
        check_room(self.receiver, mine, document, beside)

    @property
    def padded(self) -> bool:
        """Whether documents are read in C2C's sections, with padding between them."""
        return self.by_turn and self.adapter.config.remap_padding == "counted"

    def prompt(self, lm: LanguageModel, view: View, document: Document) -> Prompt:
        """Renders a view. In C2C's sections a special token in a text is the token, as in the reference."""
        return prompt(lm, view, document, spelled=not self.padded)

    def check_beside(self, other: Method) -> None:
        """Both must read the receiver's text in the same stretches, with the same padding."""
        assert isinstance(other, Fusion)
        if not (self.adapter.config.layers and other.adapter.config.layers):
            return
        if self.padded or other.padded:
            mine, theirs = self.adapter.config, other.adapter.config
            if self.sharer is not other.sharer or mine.remap_strategy != theirs.remap_strategy:
                what = (
                    "an adapter pads the receiver's text by the tokens of its sharer (remap_padding=counted)"
                )
                raise UserError(
                    f"{what}, and two sharers have other tokens.", "Use adapters without padding."
                )
        if (self.by_turn, self.padded) != (other.by_turn, other.padded):
            what = f"the adapters of {self.sharer.name} and {other.sharer.name} edit turns and whole prompts"
            raise UserError(f"{what}.", "Give adapters of one token alignment.")

    def respond(self, batch: Batch) -> State:
        with batch.clock("prefill"):
            prompts = [self.prompt(self.receiver, d.receiver, d) for d in batch.documents]
            if not self.adapter.config.layers:  # every gate is shut: the receiver alone
                return self.receiver.read(prompts)
        # bytes are waited for, so nothing is read beside
        beside = None if batch.wire else Beside.of(self.sharer, self.receiver, batch.clock)
        with batch.clock("sharer") if beside is None else beside.first("sharer"):
            exchange = self.exchange(batch, prompts, check=beside is None)
        return self.edit(exchange, beside)

    def send(self, batch: Batch) -> Sent:
        """Lets the sharer read; its message is made where the receiver's cache is edited."""
        prompts = [self.prompt(self.receiver, d.receiver, d) for d in batch.documents]
        if not self.adapter.config.layers:
            return Sent(None, lambda prompts: Message.none(len(prompts)))
        with batch.clock("sharer"):
            exchange = self.exchange(batch, prompts)
        return Sent((self, exchange), lambda prompts: Message.none(len(prompts)))

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        """Edits the receiver's cache with every sharer's (C2C's multi-source fusion).

        `sequential`: each edits what those before it have left. `parallel`: each edits the cache as it was
        read, and what they change is added up.
        """
        heard = [each for each in sent if each.content is not None]
        if not heard:
            with batch.clock("prefill"):
                prompts = [self.prompt(self.receiver, d.receiver, d) for d in batch.documents]
                return self.receiver.read(prompts)
        editors, exchanges = zip(*(each.content for each in heard), strict=True)
        state = self.edit_all(exchanges, editors, join)
        if len(heard) == len(sent):
            return state
        told = iter(
            state.message.parts or [state.message]
        )  # nothing comes from a sharer whose gates are shut
        every = [each.account(state.prompts) if each.content is None else next(told) for each in sent]
        return replace(state, message=Message.joined(every))

    def exchange(self, batch: Batch, prompts: list[Prompt], check: bool = True) -> Exchange:
        """Lets the sharer read the documents whose messages are sent.

        check: whether its cache is held against NaN at once, which waits for a GPU.
        """
        if not self.padded:
            shared = self.sharer_prompts(batch, prompts)
            return Exchange(batch, prompts, shared, self.sharer_cache(shared, check))
        chats = [self.chat(d, p) for d, p in zip(batch.documents, prompts, strict=True)]
        sent = chats
        if not all(batch.own):
            sent = [self.chat(d, self.prompt(self.receiver, d.receiver, d)) for d in batch.message_from]
        with torch.no_grad():
            theirs = self.sharer.prefill([c.sharer for c in sent], real=[c.sharer_real for c in sent])
        if check:
            self.check_sent(theirs)
        return Exchange(batch, prompts, [c.prompt for c in sent], theirs, chats=chats, sent=sent)

    def chat(self, document: Document, mine: Prompt) -> Chat:
        """Returns a document in C2C's sections. Raises TooLongError where padding makes it too long."""
        lms, strategy = (self.receiver, self.sharer), self.adapter.config.remap_strategy
        theirs = self.prompt(self.sharer, document.sharer, document)
        tokenizers = (self.receiver.tokenizer, self.sharer.tokenizer)
        if not (document.chat and all(lm.has_chat for lm in lms)):
            return unpadded(mine, theirs, tokenizers, strategy)
        if document.receiver.prefix:
            mine, theirs = (
                replace(p, text=opened_answer(view, t).removesuffix(p.tail))
                for p, view, t in zip(
                    (mine, theirs), (document.receiver, document.sharer), tokenizers, strict=True
                )
            )
        chat = in_sections(mine, theirs, contents_of(document.receiver), tokenizers, strategy)
        for lm in lms:
            check_room(lm, mine, document, beside=len(chat.ids) - len(mine.ids), written=0)
        return chat

    def edit(self, exchange: Exchange, beside: Beside | None = None) -> State:
        """Reads and edits segment after segment; the rest is left to run on the edited cache.

        beside: the sharer's reading, where it has only been queued: the first segment is read beside it.
        """
        return self.edit_all([exchange], [self], "sequential", beside)

    def edit_all(
        self,
        exchanges: Sequence[Exchange],
        editors: Sequence[Fusion],
        join: Join,
        beside: Beside | None = None,
    ) -> State:
        """As `edit` with the exchanges of several sharers, each by its own editor, see `receive`."""
        exchange = exchanges[0]
        prompts, rows, clock, kv = exchange.prompts, exchange.rows, exchange.batch.clock, None
        stops, fused = [0] * len(prompts), [[0] * len(prompts) for _ in exchanges]
        parts = (
            self.parts(prompts)
            if exchange.chats is None
            else Segment.between([c.stops for c in exchange.chats])
        )
        parts = parts or [Segment.whole(rows)]
        if exchange.batch.wire is not None:
            with clock("fuse"):
                exchanges = [
                    replace(each, carried=editor.carried(each, parts))
                    for editor, each in zip(editors, exchanges, strict=True)
                ]
        for part in parts:
            with clock("prefill") if kv is not None or beside is None else beside.second("prefill"):
                kv = self.read(rows, kv, part)
            if part.width:  # a one-token prompt has nothing to fuse
                with clock("fuse"):
                    kv, edited = fused_all(editors, exchanges, kv, part, join)
                both = zip(fused, edited, strict=True)
                fused = [[a + b for a, b in zip(before, new, strict=True)] for before, new in both]
            stops = part.stops
        assert kv is not None
        if beside is not None:  # only now: all that is known without the GPU is queued
            with clock("sharer"):
                self.check_sent(exchange.theirs)
        left = [row.ids[stop:] for row, stop in zip(rows, stops, strict=True)]
        real = None
        if exchange.chats is not None:
            real = [c.real[stop:] for c, stop in zip(exchange.chats, stops, strict=True)]
        state = State.before(self.receiver, kv, left, torch.tensor(stops), prompts, real)
        told = [
            each.batch.counted(editor.account(each.shared, counts))
            for editor, each, counts in zip(editors, exchanges, fused, strict=True)
        ]
        return replace(state, message=Message.joined(told))

    def parts(self, prompts: list[Prompt]) -> list[Segment]:
        """Returns the segments, read and edited in turn, later ones on edited earlier ones."""
        whole = Segment.whole(prompts)
        if not self.by_turn:
            return [whole]
        ends = [sorted({min(e, n) for e in turn_ends(p)}) for p, n in zip(prompts, whole.stops, strict=True)]
        return Segment.between(ends) or [whole]

    def read(self, rows: Sequence[Prompt | Chat], kv: KV | None, part: Segment) -> KV:
        """Returns the receiver's cache after reading a segment too."""
        cuts = list(zip(rows, part.starts, part.stops, strict=True))
        start = torch.tensor(part.starts) if kv is not None else 0
        real = [row.real[a:b] for row, a, b in cuts if isinstance(row, Chat)] or None
        return self.receiver.prefill([row.ids[a:b] for row, a, b in cuts], kv, start, real)

    def sharer_prompts(self, batch: Batch, prompts: list[Prompt]) -> list[Prompt]:
        """Returns the sharer's prompts: its own view of each document whose message is sent.

        On shared text with `remap`, the receiver's tokens are translated one by one inside it; with
        `same`, the sharer reads the receiver's very ids.
        """
        config, documents = self.adapter.config, batch.message_from
        shared = config.token_alignment != "span" and all(d.shared for d in batch.documents)
        mine = prompts
        if shared and not all(batch.own):
            mine = [prompt(self.receiver, s.receiver, s) for s in documents]
        if shared and config.token_alignment == "same":
            return mine
        theirs = [prompt(self.sharer, s.sharer, s) for s in documents]
        if not shared:
            return theirs
        tokenizers, both = (self.receiver.tokenizer, self.sharer.tokenizer), zip(mine, theirs, strict=True)
        return [remap_prompt(m, t, *tokenizers, config.remap_strategy) for m, t in both]

    def fuse(self, exchange: Exchange, kv: KV, part: Segment) -> tuple[KV, list[int]]:
        """Returns the cache with the segment edited, and the number of edited positions a row."""
        index = self.positions(exchange, part)
        # nothing is computed for padding, nor for tokens that are not edited (a chat's template)
        rows, columns = (index >= 0).nonzero(as_tuple=True)
        if not len(rows):
            return kv, [0] * len(index)
        adapter = self.adapter
        assert isinstance(adapter, Editor)

        carried = exchange.carried.get(tuple(part.stops))

        def message(at: slice) -> Tensor:
            if carried is not None:
                return carried[at]
            sent = entries(exchange.theirs, adapter.config.layer_map[at], rows, index[rows, columns])
            return adapter.message(sent.to(kv.keys.device, kv.keys.dtype), at)

        kv = self.edited(kv, message, rows, columns + kv.length - part.width, self.shortened)
        return kv, (index >= 0).sum(1).tolist()

    def carried(self, exchange: Exchange, parts: Sequence[Segment]) -> dict[tuple[int, ...], Tensor]:
        """Returns the messages (L, T, d) of the segments as they are read from bytes, by their ends.

        A document's message is its latents, or the distinct entries that they are made of where these are
        fewer numbers: the receiver knows its own tokens, and which entry each of them reads.
        """
        batch, adapter, receiver = exchange.batch, self.adapter, self.receiver
        assert isinstance(adapter, Editor) and batch.wire is not None
        index = [self.positions(exchange, part) for part in parts]
        places = [(i >= 0).nonzero(as_tuple=True) for i in index]
        columns = [i[at] for i, at in zip(index, places, strict=True)]
        sources = adapter.config.layer_map
        read = [
            entries(exchange.theirs, sources, rows, some).to(receiver.device, receiver.dtype)
            for (rows, _), some in zip(places, columns, strict=True)
        ]
        plain = [self._message(x) for x in read]
        width, layers = plain[0].shape[2], list(dict.fromkeys(sources))
        which = torch.tensor([layers.index(s) for s in sources])
        first = torch.tensor([sources.index(s) for s in layers])
        sent: list[Tensor | None] = []
        unique: dict[int, Tensor] = {}
        for b in range(len(batch.documents)):
            mine = [rows == b for rows, _ in places]
            tokens = torch.cat([some[own] for some, own in zip(columns, mine, strict=True)])
            if not len(tokens):
                sent.append(None)
                continue
            kinds, back = tokens.unique(return_inverse=True)
            if len(layers) * len(kinds) * read[0].shape[2] <= len(sources) * len(tokens) * width:
                every = torch.cat([x[:, own] for x, own in zip(read, mine, strict=True)], 1)[first]
                at = torch.stack([(back == k).nonzero()[0, 0] for k in range(len(kinds))])
                unique[b] = back
                sent.append(every[:, at])
            else:
                sent.append(torch.cat([x[:, own] for x, own in zip(plain, mine, strict=True)], 1))
        found = latents_across(batch, sent)
        for b, x in enumerate(found):  # entries are projected on the receiver's side
            if x is None or b not in unique:
                continue
            whole, start = x[which][:, unique[b]], 0
            for part, (rows, _) in zip(read, places, strict=True):
                count = int((rows == b).sum())
                part[:, rows == b] = whole[:, start : start + count]
                start += count
        out = [self._message(x) for x in read] if unique else plain
        for b, x in enumerate(found):
            if x is None or b in unique:
                continue
            start = 0
            for part, (rows, _) in zip(out, places, strict=True):
                count = int((rows == b).sum())
                part[:, rows == b] = x[:, start : start + count]
                start += count
        return {tuple(part.stops): x for part, x in zip(parts, out, strict=True)}

    def _message(self, sent: Tensor) -> Tensor:
        """Returns the message (L, T, d) of entries (L, T, s), in the stretches in which it is made without
        bytes: the same numbers to the last bit.
        """
        adapter = self.adapter
        assert isinstance(adapter, Editor)
        n = sent.shape[1]
        pieces = adapter.pieces(n + (-n % VECTOR if self.shortened else 0))
        return torch.cat([adapter.message(sent[at], at) for at in pieces])

    def edited(
        self, kv: KV, message: Callable[[slice], Tensor], rows: Tensor, columns: Tensor, whole_vectors: bool
    ) -> KV:
        """Returns the cache with the entries at `rows`, `columns` (T,) edited by a message.

        message: (L, T, d), of a stretch of the adapter's stack; stretches come one after another,
        see `Editor.pieces`. whole_vectors: every layer begins where a processor's vector does, so
        that a layer's bits do not depend on how many layers stand before it.
        """
        adapter = self.adapter
        assert isinstance(adapter, Editor)
        rows, columns = rows.to(kv.keys.device), columns.to(kv.keys.device)
        keys, values = (x.clone(memory_format=torch.contiguous_format) for x in (kv.keys, kv.values))
        n, more = len(rows), -len(rows) % VECTOR if whole_vectors else 0
        at = torch.cat([torch.arange(n), torch.full((more,), n - 1)]).to(rows.device)
        for some in adapter.pieces(len(at)):
            layers = adapter.config.layers[some]
            own, sent = kv.entries_at(layers, rows[at], columns[at]), message(some)
            # the adapter takes them as one row of a batch
            new = adapter((sent[:, at] if more else sent)[:, None], *(x[:, None] for x in own), None, some)
            new_keys, new_values = (x[:, 0, :, :n].transpose(1, 2) for x in new)
            keys = put(keys, layers, rows, columns, new_keys)
            values = put(values, layers, rows, columns, new_values)
        return replace(kv, keys=keys, values=values)

    def positions(self, exchange: Exchange, part: Segment) -> Tensor:
        """Returns (B, part.width): the column of the sharer's cache that each receiver token reads.

        −1 where a token is not edited. Another document's text is read in proportion: token t of N
        reads t·M/N, where this document's own text would be edited.
        """
        scheme, width, rows = self.adapter.config.token_alignment, exchange.theirs.length, []
        both = zip(exchange.rows, exchange.shared, exchange.batch.own, strict=True)
        for i, (mine, theirs, own) in enumerate(both):
            n, m = len(mine.ids), len(theirs.ids)
            if isinstance(mine, Chat):
                assert exchange.sent is not None
                source, m = list(mine.source), len(exchange.sent[i].sharer)
                if not own:
                    source = in_proportion(mine, exchange.sent[i])
            else:
                source = aligned_positions(mine, theirs if own else mine, scheme)
                if not own:
                    source = [-1 if e < 0 else t * m // n for t, e in enumerate(source)]
            source = source[part.starts[i] : part.stops[i]]
            lead = [-1] * (part.width - len(source))
            rows.append(lead + [-1 if p < 0 else p + width - m for p in source])
        return torch.tensor(rows, dtype=torch.long)

    def account(self, shared: list[Prompt], fused: list[int]) -> Message:
        """Returns the sizes of the message of each document; 0 where no position was edited."""
        adapter, size, tokens = self.adapter, self.receiver.dtype.itemsize, [len(p.ids) for p in shared]
        sent = list(zip(tokens, fused, strict=True))
        return Message(
            wire_bytes=[adapter.wire_bytes(m, n, size) if n else 0 for m, n in sent],
            cache_bytes=[adapter.cache_bytes(m, size) if n else 0 for m, n in sent],
            sharer_tokens=tokens,
            adapter_flops=[adapter.flops(n) for n in fused],
            read=shared,
        )


def fused_all(
    editors: Sequence[Fusion], exchanges: Sequence[Exchange], kv: KV, part: Segment, join: Join
) -> tuple[KV, list[list[int]]]:
    """Returns the cache with a segment edited by every sharer's message, and the edited positions of each."""
    if len(editors) == 1:
        kv, edited = editors[0].fuse(exchanges[0], kv, part)
        return kv, [edited]
    read, counts = kv, []
    keys, values = kv.keys, kv.values
    for editor, exchange in zip(editors, exchanges, strict=True):
        new, edited = editor.fuse(exchange, kv if join == "sequential" else read, part)
        counts.append(edited)
        keys, values = keys + (new.keys - read.keys), values + (new.values - read.values)
        kv = new
    return kv if join == "sequential" else replace(read, keys=keys, values=values), counts


def in_proportion(mine: Chat, sent: Chat) -> list[int]:
    """Returns what each token reads of another document: real token t of N its real token t·M/N."""
    theirs = [column for column, real in enumerate(sent.sharer_real) if real]
    before = list(accumulate(mine.real, initial=0))  # real tokens before each, and all of them
    rank = [n * len(theirs) // before[-1] for n in before[:-1]]
    return [-1 if e < 0 else theirs[k] for e, k in zip(mine.source, rank, strict=True)]


def entries(theirs: KV, sources: Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """Returns K|V (L, T, s) of the sharer's layers `sources` at `rows`, `columns` (T,)."""
    device = theirs.keys.device
    both = theirs.entries_at(sources, rows.to(device), columns.to(device))
    return torch.cat([x.transpose(1, 2).flatten(2) for x in both], -1)

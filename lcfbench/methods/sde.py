"""sde: a note whose tokens carry how the sharer's hidden state changed with each of them.

State Delta Encoding, arXiv 2506.19209. Both must be the same model. Nothing is trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._note import cut_bytes
from lcfbench.methods._one_model import check_one_model
from lcfbench.methods._wire import deltas_across
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.t2t import T2T
from lcfbench.models.activations import Edits
from lcfbench.models.capabilities import Capability
from lcfbench.models.finite import NotFiniteError, finite
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import Message, State
from lcfbench.models.thinking import speak_tokens, think
from lcfbench.tasks.document import NOTE, Document
from lcfbench.tasks.prompts import Prompt

DEPTHS = (17 / 32, 20 / 32)  # the authors' layers 17 and 20 of Llama-3.1-8B, which has 32


@dataclass
class SDE(T2T):
    """Text-to-text whose note is read together with the sharer's state deltas.

    The delta of a token is the hidden state behind a layer at this token, less that at the token before
    it; before the first is the last token of the sharer's prompt. While the receiver reads the note, each
    delta is added to its own state behind the same layer, at the same token: the one that ends at the
    same character of the note. Without deltas this is t2t.

    layers: joined by +, counted from 0 as the cache's layers; without any, those at 17/32 and 20/32 of
    the depth, as the authors have for Llama-3.1-8B (they choose layers for each model by its score, how
    for others is open). budget, bytes: of the note, see t2t; deltas of the tokens that stay are sent.
    """

    layers: str = ""

    joins: ClassVar[tuple[Join, ...]] = ()
    sends_text: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("activations",),
        "sharer": ("activations",),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_model("sde", self.receiver, self.sharer)
        self.at = parse_layers(self.layers, self.receiver.geometry.layers)

    @classmethod
    def check_depth(cls, options: Mapping[str, str], depth: Callable[[], int]) -> None:
        if "layers" in options:
            parse_layers(options["layers"], depth())

    def options(self) -> dict[str, Any]:
        """The layers as they are counted here."""
        return super().options() | {"layers": "+".join(map(str, self.at))}

    @property
    def added(self) -> int:
        return super().added + 1

    def check_length(self, document: Document, sender: Document) -> None:
        """As t2t's; of a note the last token is read too, for its state."""
        super().check_length(document, sender)
        asked = prompt(self.sharer, sender.request, replace(sender, steps=()))
        check_room(self.sharer, asked, sender, beside=1, written=self.budget)

    def respond(self, batch: Batch) -> State:
        with batch.clock("sharer"):
            asked = [prompt(self.sharer, s.request, replace(s, steps=())) for s in batch.message_from]
        if batch.replays:
            ids: list[list[int]] = [[] for _ in asked]
            like = torch.zeros(len(self.at), 0, self.sharer.hidden_size, dtype=self.sharer.dtype)
            like = like.to(self.sharer.device)
            sent = deltas_across(batch, [""] * len(ids), ids, [like] * len(ids))
        else:
            ids, sent = self.written(batch, asked)
        with batch.clock("prefill"):
            both = list(zip(batch.documents, (note for note, *_ in sent), strict=True))
            shown = [self.noted(d, text_of(d, note)) for d, note in both]
            starts = [self.start_of(p, *each) for p, each in zip(shown, both, strict=True)]
            out = self.reading(shown, starts, sent)
        message = self.account(asked, ids, sent)
        return replace(out, message=batch.counted(message))

    def written(
        self, batch: Batch, asked: list[Prompt]
    ) -> tuple[list[list[int]], list[tuple[str, list[int], Tensor]]]:
        """Lets the sharer write; returns its tokens, and notes, places and deltas as they are read.

        Raises UserError for a sharer that writes thoughts.
        """
        with batch.clock("sharer"):
            state = self.sharer.read(asked)
        with batch.clock("message"):
            state, thoughts = think(state, choices=False)
            if thoughts is not None:
                what = f"sde sends the states of a note, and {self.sharer.name} writes a thought before it."
                raise UserError(what, "Use --thinking off, or another model.")
            until = sorted({u for s in batch.message_from for u in s.request_until})
            spoken, ids = speak_tokens(self.sharer.open(state), self.budget, until)
            notes = [(note or "").strip() for note in spoken]
            notes = [(cut_bytes(note, self.bytes) if self.bytes else note).strip() for note in notes]
            places = [token_ends(self.sharer.tokenizer, *row) for row in zip(ids, notes, strict=True)]
            deltas = self.deltas(asked, ids, [list(row) for row in places])
            return ids, deltas_across(batch, notes, [list(row.values()) for row in places], deltas)

    def deltas(
        self, asked: Sequence[Prompt], ids: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Returns deltas (l, T, d) of the tokens `kept` of those written. Raises NotFiniteError."""
        rows = [[*p.ids, *row] for p, row in zip(asked, ids, strict=True)]
        states = self.sharer.hidden_states(rows, self.at, [len(row) + 1 for row in ids])
        if not all(map(finite, states)):
            raise NotFiniteError(f"a hidden state of {self.sharer.name} behind the layers {list(self.at)}")
        return [(x[:, 1:] - x[:, :-1])[:, list(some)] for x, some in zip(states, kept, strict=True)]

    def start_of(self, shown: Prompt, document: Document, note: str) -> int:
        """Returns the character of the receiver's prompt at which it has a note; −1 where it has it not."""
        text = text_of(document, note)
        if document.shared and document.chat and self.receiver.has_chat:
            first = next((a for a, b in shown.spans if shown.text[a:b] == text), -1)
        else:
            before = document.noted.user.partition(NOTE)[0].lstrip()
            first = shown.text.find(before + text)
            first += len(before) if first >= 0 else 0
        return first + len(text) - len(note) if first >= 0 else -1

    def reading(
        self, shown: Sequence[Prompt], starts: Sequence[int], sent: Sequence[tuple[str, list[int], Tensor]]
    ) -> State:
        """Returns the state after the receiver's prompts, with the deltas at the notes' tokens."""
        lm, found = self.receiver, []
        for p, start, (_, ends, _) in zip(shown, starts, sent, strict=True):
            by_end = {start + end: i for i, end in enumerate(ends)} if start >= 0 else {}
            # the last token that ends there, as the sharer's; the prompt's last runs later
            mine = {b: n for n, (a, b) in enumerate(p.offsets[:-1]) if b > a and b in by_end}
            found.append([(n, by_end[b]) for b, n in mine.items()])
        width = max(map(len, found), default=0)
        size = len(self.at), len(shown), width, lm.hidden_size
        vectors = torch.zeros(size, device=lm.device, dtype=lm.dtype)
        positions = torch.full((len(shown), width), -1, device=lm.device)
        for b, (pairs, (*_, deltas)) in enumerate(zip(found, sent, strict=True)):
            for place, (token, i) in enumerate(pairs):
                positions[b, place] = token
                vectors[:, b, place] = deltas[:, i].to(lm.device, lm.dtype)
        if not bool(vectors.any()):  # nothing to add
            return lm.read(shown)
        blocks = tuple(lm.decoder_layers(self.at))
        past = KV.empty(lm.layout, len(shown), lm.device, lm.dtype)
        return lm.read(shown, replace(past, edits=Edits(blocks, positions, vectors, "sum")))

    def account(
        self, asked: list[Prompt], ids: Sequence[Sequence[int]], sent: Sequence[tuple[str, list[int], Tensor]]
    ) -> Message:
        """Returns the sizes of notes, of the places of their tokens (4 bytes each), and of deltas.

        The states come with the writing of the note: no work is counted for them.
        """
        size = [len(note.encode()) + 4 * len(ends) + x.nbytes for note, ends, x in sent]
        ran = [len(p.ids) + len(row) for p, row in zip(asked, ids, strict=True)]
        return Message(size, size, ran, [note for note, *_ in sent], read=asked)


def text_of(document: Document, note: str) -> str:
    """Returns what the receiver reads as a note: the words that it was made to begin with are its own."""
    return f"{document.request.prefix} {note}".strip()


def token_ends(tokenizer: Any, ids: Sequence[int], note: str) -> dict[int, int]:
    """Returns of each token written that ends within a note the character of the note after it."""
    whole = tokenizer.decode(list(ids), skip_special_tokens=True)
    first = whole.find(note) if note else -1
    if first < 0:
        return {}
    lengths = (len(tokenizer.decode(list(ids[: n + 1]), skip_special_tokens=True)) for n in range(len(ids)))
    return {n: end - first for n, end in enumerate(lengths) if 0 < end - first <= len(note)}


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Returns the layers that a text names, ascending. Raises UserError.

    >>> parse_layers("", 32), parse_layers("3+1", 4)
    ((17, 20), (1, 3))
    """
    if not text:
        return tuple(sorted({min(round(share * count), count - 1) for share in DEPTHS}))
    parts = re.split(r"\s*[+,]\s*", text.strip())
    if not all(part.isdecimal() and int(part) < count for part in parts):
        raise UserError(f"layers={text[:40]} are no layers of a model with {count}.", "Use layers=1+3, say.")
    return tuple(sorted(set(map(int, parts))))

"""cacheback: the receiver asks, and gets the part of the sharer's cache that its question attends.

CacheBack, arXiv 2609.32046. Both must be the same model; nothing is trained.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge

from lcfbench.errors import UserError
from lcfbench.methods import _cacheback_scores as scored
from lcfbench.methods._lengths import check_room
from lcfbench.methods._one_model import check_one_model
from lcfbench.methods._wire import cache_across
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import NOTE, Document
from lcfbench.tasks.prompts import Prompt, continuation

RATIO = 4.0  # as published: three quarters are dropped


@dataclass
class CacheBack(Method):
    """Sends the entries of some of the sharer's tokens, in a row, in front of the receiver's prompt.

    The request is the receiver's question, as text. The sharer reads it on top of its context's
    cache, and its attention tells which entries are sent. They are moved to positions 0..k−1; the receiver
    starts at k. All entries kept are `kvcomm` with all layers, bit for bit.

    selector: `support` (as published); `snapkv`, the same attention without the weight of single rows;
    `h2o`, attention within the context alone; `streaming`, the first and the last tokens; `random`
    spans; `first` tokens. The last four need no request. `support` and `random` keep spans of 16 tokens.
    ratio: keeps one of so many tokens, 4 where nothing is given. budget: tokens that are kept, instead.
    seed: of `random`.
    """

    selector: Literal["support", "snapkv", "h2o", "streaming", "random", "first"] = "support"
    ratio: Annotated[float, Ge(1)] | None = None
    budget: Annotated[int, Ge(1)] | None = None
    seed: Annotated[int, Ge(0)] = 0

    needs: ClassVar[dict[str, tuple[Capability, ...]]] = {
        "receiver": ("handover",),
        "sharer": ("handover", "rotate"),
    }

    def __post_init__(self) -> None:
        check_one_model("cacheback", self.receiver, self.sharer)
        if self.ratio is not None and self.budget is not None:
            raise UserError(
                f"ratio={self.ratio:g} and budget={self.budget} both say how much is kept.",
                "Give one of them.",
            )
        if self.ratio is not None and not 1 <= self.ratio < math.inf:
            raise UserError(f"ratio={self.ratio:g} keeps nothing.", "Give 1 (all) or more, such as ratio=4.")
        if self.budget is not None and self.budget < 1:
            raise UserError(f"budget={self.budget} keeps nothing.", "Give 1 token or more.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}.", "Give 0 or more.")

    @property
    def asks(self) -> bool:
        """Whether a request is sent."""
        return self.selector in ("support", "snapkv")

    def options(self) -> dict[str, Any]:
        """Only those that change the answer."""
        size = {"ratio": self.ratio or RATIO} if self.budget is None else {"budget": self.budget}
        seed = {"seed": self.seed} if self.selector == "random" else {}
        return {"selector": self.selector, **size, **seed}

    def kept(self, tokens: int) -> int:
        """Returns how many of so many entries are sent; 1 at least."""
        return min(self.budget or max(int(tokens / (self.ratio or RATIO)), 1), tokens)

    def check_length(self, document: Document, sender: Document) -> None:
        sent = prompt(self.sharer, sender.sharer, sender)
        if self.asks:
            asked = self.request(sent, document)
            check_room(self.sharer, sent, sender, beside=len(asked), written=0)
        shown = prompt(self.receiver, document.receiver, document)
        check_room(self.receiver, shown, document, beside=self.kept(len(sent.ids)))

    def request(self, sent: Prompt, document: Document) -> list[int]:
        """Returns the document's question as the sharer's tokens behind its own text."""
        return continuation(sent, f"\n{question_of(document)}", self.sharer.tokenizer)

    def respond(self, batch: Batch) -> State:
        with batch.clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            theirs = self.sharer_cache(shared)
        with batch.clock("message"):
            asked: list[list[int]] = [[] for _ in shared]
            if self.asks:
                asked = [self.request(p, d) for p, d in zip(shared, batch.documents, strict=True)]
            with torch.no_grad():
                places = [self.chosen(theirs, b, p, asked[b]) for b, p in enumerate(shared)]
                sent = cache_across(batch, self.moved(theirs, places))
        with batch.clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            state = self.receiver.read(prompts, past=sent, start=sent.mask.sum(1))
        message = self.account(batch, shared, asked, places, prompts)
        return replace(state, message=batch.counted(message))

    def chosen(self, theirs: KV, row: int, shared: Prompt, asked: Sequence[int]) -> list[int]:
        """Returns which of a document's tokens are sent, in order.

        Each document is scored alone, so that a batch changes no choice.
        """
        n, sharer = len(shared.ids), self.sharer
        k = self.kept(n)
        if k == n or self.selector == "first":
            return list(range(k))
        if self.selector == "streaming":
            return scored.streaming(n, k)
        if self.selector == "h2o":
            return scored.highest(scored.accumulated(sharer, shared.ids), k)
        if self.selector == "random":
            name = f"cacheback-{self.seed}-{list(shared.ids)}"
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
            return scored.spans(torch.rand(n, generator=torch.Generator().manual_seed(seed)), k)
        alone = theirs.rows_at(torch.tensor([row], device=theirs.keys.device)).flush()
        attended = scored.attended(sharer, asked, alone)
        if self.selector == "snapkv":
            return scored.highest(scored.snapkv(attended), k)
        return scored.spans(scored.support(attended), k)

    def moved(self, theirs: KV, places: Sequence[Sequence[int]]) -> KV:
        """Returns the chosen entries of each row at positions 0..k−1; those that stay keep their bits."""
        if all(len(kept) == n for kept, n in zip(places, theirs.mask.sum(1).tolist(), strict=True)):
            return theirs
        rows = []
        for b, kept in enumerate(places):
            one = theirs.rows_at(torch.tensor([b], device=theirs.keys.device)).flush()
            index = torch.tensor(kept, device=theirs.keys.device)
            old = one.positions[:, index]
            new = torch.arange(len(kept), device=index.device)[None]
            keys = one.keys[:, :, :, index]
            if bool((old != new).any()):
                content = self.sharer.rotate(keys, old, inverse=True)
                turned = self.sharer.rotate(content, new)
                keys = torch.where((old == new)[None, :, None, :, None], keys, turned)
            values, mask = one.values[:, :, :, index], one.mask[:, index]
            rows.append(replace(one, keys=keys, values=values, mask=mask, positions=new))
        return stacked(rows)

    def account(
        self,
        batch: Batch,
        shared: list[Prompt],
        asked: Sequence[Sequence[int]],
        places: Sequence[Sequence[int]],
        prompts: Sequence[Prompt],
    ) -> Message:
        """Returns the sizes of entries, of requests, and of the tokens' ids, which would do instead."""
        size = self.sharer.geometry.token_numbers * self.sharer.dtype.itemsize
        tokens, kept = [len(p.ids) for p in shared], list(map(len, places))
        extra = [
            self.receiver.attention_flops(len(p.ids), past=k) for p, k in zip(prompts, kept, strict=True)
        ]
        if self.selector == "h2o":  # the context is read again for its attention
            extra = [x + self.sharer.flops(n) * (k < n) for x, n, k in zip(extra, tokens, kept, strict=True)]
        width = 2 if self.sharer.vocabulary_size <= 1 << 16 else 4
        return Message(
            wire_bytes=[k * size for k in kept],
            cache_bytes=[n * size for n in tokens],
            sharer_tokens=[n + len(ids) for n, ids in zip(tokens, asked, strict=True)],
            adapter_flops=extra,
            read=shared,
            request_bytes=[len(question_of(d).encode()) * self.asks for d in batch.documents],
            token_bytes=[k * width for k in kept],
            kept=[list(each) for each in places],
        )


def question_of(document: Document) -> str:
    """Returns what the receiver asks: the end of its text, behind its own notes.

    These are the last lines that its text has with a note and without; all of its text where it has no
    notes of its own, or where a task says nowhere that it has.
    """
    mine, noted = (text.split("\n") for text in (document.receiver.user, document.noted.user))
    if any(NOTE in line for line in noted):
        noted = noted[max(i for i, line in enumerate(noted) if NOTE in line) + 1 :]
    count = 0
    while count < min(len(mine), len(noted)) and mine[-1 - count] == noted[-1 - count]:
        count += 1
    return "\n".join(mine[len(mine) - count :]).strip() or document.receiver.user.strip()

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

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods import _cacheback_scores as scored
from lcfbench.methods._lengths import check_room
from lcfbench.methods._one_model import check_one_model
from lcfbench.methods._prefix import read_behind
from lcfbench.methods._request import RequestForm, Requests, check_request, least, requests
from lcfbench.methods._wire import cache_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, continuation

RATIO = 4.0  # as published: three quarters are dropped


@dataclass
class CacheBack(Method):
    """Sends the entries of some of the sharer's tokens, in a row, in front of the receiver's prompt.

    The request is text: the receiver's question, or what the receiver writes when it has read its own
    text. The sharer reads it on top of its context's cache, and its attention tells which entries are sent.
    They are moved to positions 0..k−1; the receiver starts at k. All entries kept are `kvcomm` with all
    layers, bit for bit.

    selector: `support` (as published); `snapkv`, the same attention without the weight of single rows;
    `h2o`, attention within the context alone; `streaming`, the first and the last tokens; `random`
    spans; `first` tokens. The last four need no request. `support` and `random` keep spans of 16 tokens.
    ratio: keeps one of so many tokens, 4 where nothing is given. budget: tokens that are kept, instead.
    seed: of `random`. request: `question`, or `written` by the receiver, a turn of its own.
    """

    selector: Literal["support", "snapkv", "h2o", "streaming", "random", "first"] = "support"
    ratio: Annotated[float, Ge(1)] | None = None
    budget: Annotated[int, Ge(1)] | None = None
    seed: Annotated[int, Ge(0)] = 0
    request: RequestForm = "question"

    joins: ClassVar[tuple[Join, ...]] = ("row", "free")
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
        asked = {"request": self.request} if self.asks and self.request != "question" else {}
        return {"selector": self.selector, **size, **seed, **asked}

    def kept(self, tokens: int) -> int:
        """Returns how many of so many entries are sent; 1 at least."""
        return min(self.budget or max(int(tokens / (self.ratio or RATIO)), 1), tokens)

    def check_length(self, document: Document, sender: Document) -> None:
        sent = prompt(self.sharer, sender.sharer, sender)
        if self.asks:
            check_request(self.receiver, document, self.request)
            known, more = least(document, self.request)
            check_room(self.sharer, sent, sender, beside=len(self.behind(sent, known)) + more, written=0)
        shown = prompt(self.receiver, document.receiver, document)
        check_room(self.receiver, shown, document, beside=self.kept(len(sent.ids)))

    def behind(self, sent: Prompt, request: str) -> list[int]:
        """Returns a request as the sharer's tokens behind its own text."""
        return continuation(sent, f"\n{request}", self.sharer.tokenizer)

    def beside(self, document: Document, sender: Document) -> int:
        return self.kept(len(prompt(self.sharer, sender.sharer, sender).ids))

    def send(self, batch: Batch) -> Sent:
        with batch.clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            theirs = self.sharer_cache(shared)
        with batch.clock("message"):
            asked: list[list[int]] = [[] for _ in shared]
            request = None
            if self.asks:
                request = requests(self.receiver, batch.documents, self.request)
                asked = [self.behind(p, text) for p, text in zip(shared, request.texts, strict=True)]
            with torch.no_grad():
                if batch.replays:  # they were chosen before: only their number counts
                    places = [list(range(self.kept(len(p.ids)))) for p in shared]
                else:
                    places = [self.chosen(theirs, b, p, asked[b]) for b, p in enumerate(shared)]
                sent = cache_across(batch, self.moved(theirs, places))
        return Sent(
            sent, lambda prompts: batch.counted(self.account(shared, request, asked, places, prompts))
        )

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        return read_behind(self.receiver, batch, sent, join)

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
        shared: list[Prompt],
        request: Requests | None,
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
        if request:
            extra = [x + self.receiver.flops(n) * (n > 0) for x, n in zip(extra, request.ran, strict=True)]
        width = 2 if self.sharer.vocabulary_size <= 1 << 16 else 4
        return Message(
            wire_bytes=[k * size for k in kept],
            cache_bytes=[n * size for n in tokens],
            sharer_tokens=[n + len(ids) for n, ids in zip(tokens, asked, strict=True)],
            adapter_flops=extra,
            read=shared,
            request_bytes=request.bytes if request else [0] * len(shared),
            token_bytes=[k * width for k in kept],
            kept=[list(each) for each in places],
        )

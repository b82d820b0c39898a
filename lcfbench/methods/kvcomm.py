"""kvcomm: the receiver gets the sharer's cache in front of its own (KVComm, arXiv 2510.03346).

Both must be the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._kvcomm_scores import best, importance, parse_layers, scores
from lcfbench.methods._lengths import check_room
from lcfbench.methods._one_model import check_one_model
from lcfbench.methods._prefix import read_behind
from lcfbench.methods._wire import cache_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

CALIBRATION = 8  # documents of the validation split from which attention importance is measured


@dataclass
class KVComm(Method):
    """Lets the receiver read its prompt on top of the sharer's cache; nothing is trained.

    It is as if the two texts stood in a row: in the chosen layers on all of the cache, in the
    others on the sharer's first token alone. The sharer keeps positions 0..M−1, the receiver starts
    at M.

    layers: how many are chosen, as a share (the paper's 0.3, 0.5, 0.7; 1.0: all), or which: 3,7,12.
    alpha: weight of attention importance against the prior. last: of how many last tokens of the
    receiver's prompt attention is measured (0: of all, as published). prior_mean, prior_width: of
    the Gaussian over depth, as shares of the depth (the published σ is 10 layers of about 30).
    """

    layers: str = "1.0"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    last: Annotated[int, Ge(0)] = 0
    prior_mean: Annotated[float, Ge(-10), Le(10)] = 0.5
    prior_width: Annotated[float, Ge(1e-3), Le(1e3)] = 1 / 3

    joins: ClassVar[tuple[Join, ...]] = ("row", "free")
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("handover",),
        "sharer": ("handover",),
    }

    def __post_init__(self) -> None:
        check_one_model("kvcomm", self.receiver, self.sharer)
        mine = self.receiver
        if not 0 <= self.alpha <= 1 or self.prior_width <= 0 or self.last < 0:
            raise UserError(
                f"alpha={self.alpha}, prior_width={self.prior_width}, last={self.last}.",
                "Give an alpha of 0 to 1, a width above 0 and a number of tokens, 0 for all.",
            )
        self.share, named = parse_layers(self.layers, mine.geometry.layers)
        self.chosen: list[int] | None = named  # None until `calibrate` has ranked them
        if named is None or len(named) < mine.geometry.layers:
            mine.check_layer_masks()

    @classmethod
    def check_depth(cls, options: Mapping[str, str], depth: Callable[[], int]) -> None:
        if "layers" in options:
            parse_layers(options["layers"], depth())

    def options(self) -> dict[str, Any]:
        """Only those that change the answer: none for all layers, no scores for named layers."""
        if self.calibration:
            return super().options()
        return {} if self.share == 1 else {"layers": self.layers}

    @property
    def calibration(self) -> int:
        return CALIBRATION if parse_layers(self.layers, self.receiver.geometry.layers)[1] is None else 0

    def calibrate(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Chooses the layers. Returns them with every layer's importance and score."""
        found = importance(self.receiver, self.sharer, documents, self.last)
        ranked = scores(found, self.alpha, self.prior_mean, self.prior_width)
        self.chosen = best(ranked, self.share)
        importances, totals = ([round(v, 6) for v in x.tolist()] for x in (found, ranked))
        return {"layers": self.chosen, "importance": importances, "scores": totals}

    def recall(self, settled: Mapping[str, Any]) -> None:
        self.chosen = list(settled["layers"])

    def check_length(self, document: Document, sender: Document) -> None:
        sent = prompt(self.sharer, sender.sharer, sender)
        shown = prompt(self.receiver, document.receiver, document)
        check_room(self.receiver, shown, document, beside=len(sent.ids))

    def beside(self, document: Document, sender: Document) -> int:
        return len(prompt(self.sharer, sender.sharer, sender).ids)

    def send(self, batch: Batch) -> Sent:
        if self.chosen is None:
            raise UserError(
                f"kvcomm with layers={self.layers} chooses them on validation documents, and has seen none.",
                "Name the layers.",
            )
        with batch.clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            theirs = self.sharer_cache(shared)
        with batch.clock("message"):
            sent = cache_across(batch, self.select(theirs))
        return Sent(sent, lambda prompts: batch.counted(self.account(shared, prompts)))

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        return read_behind(self.receiver, batch, sent, join)

    def select(self, theirs: KV) -> KV:
        """Returns the cache as sent: layers that are not chosen hide all but the first token."""
        assert self.chosen is not None
        L, real = theirs.keys.shape[0], theirs.mask.bool()
        if len(self.chosen) == L:
            return theirs
        hidden = (real & (theirs.mask.cumsum(1) > 1)).expand(L, -1, -1).clone()
        hidden[self.chosen] = False
        return replace(theirs, hidden=hidden)

    def account(self, shared: list[Prompt], prompts: list[Prompt]) -> Message:
        """Returns the sizes: all entries of the chosen layers, one of each other layer."""
        assert self.chosen is not None
        g, size, tokens = self.sharer.geometry, self.sharer.dtype.itemsize, [len(p.ids) for p in shared]
        entries = [len(self.chosen) * m + (g.layers - len(self.chosen)) for m in tokens]
        whole = sum(map(g.numbers, self.chosen))
        sent = [(whole * m + g.token_numbers - whole) * size for m in tokens]
        # reading on top of the sharer's cache: every receiver token attends its entries too
        both = zip(prompts, entries, strict=True)
        extra = [self.receiver.attention_flops(len(p.ids), past=n / g.layers) for p, n in both]
        return Message(sent, sent, tokens, adapter_flops=extra, read=shared)

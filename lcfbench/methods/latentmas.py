"""latentmas: the sharer thinks without words; its cache stands in front of the receiver's own.

Both must be the same model (LatentMAS, arXiv 2511.20639). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from lcfbench.config import Join
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._one_model import check_one_model
from lcfbench.methods._prefix import read_behind
from lcfbench.methods._wire import cache_across
from lcfbench.methods.base import Batch, Method, Sent, prompt
from lcfbench.models.capabilities import Capability
from lcfbench.models.latent import Thought
from lcfbench.models.protocol import Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

MOST_STEPS = 4096


@dataclass
class LatentMAS(Method):
    """Feeds the sharer's last hidden state back as its next input, some steps behind its prompt.

    The receiver reads its prompt on top of the entries of that prompt, each once, and of the steps.
    Without steps this is kvcomm with all layers.

    steps: latent steps. ridge: the λ with which the map from hidden states to input embeddings is
    solved, see `lcfbench.models.latent`.
    """

    steps: Annotated[int, Ge(0), Le(MOST_STEPS)] = 10
    ridge: Annotated[float, Ge(1e-12), Le(1e6)] = 1e-5

    joins: ClassVar[tuple[Join, ...]] = ("row", "free")
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("handover",),
        "sharer": ("handover", "latent"),
    }

    def __post_init__(self) -> None:
        check_one_model("latentmas", self.receiver, self.sharer)
        if not 0 <= self.steps <= MOST_STEPS or not 1e-12 <= self.ridge <= 1e6:
            raise UserError(
                f"steps={self.steps}, ridge={self.ridge}.",
                f"Give 0 to {MOST_STEPS} steps and a ridge of 1e-12 to 1e6.",
            )

    def options(self) -> dict[str, Any]:
        """Without steps no ridge is used."""
        return super().options() if self.steps else {"steps": 0}

    @property
    def added(self) -> int:
        return self.steps

    def check_length(self, document: Document, sender: Document) -> None:
        sent = prompt(self.sharer, sender.sharer, sender)
        shown = prompt(self.receiver, document.receiver, document)
        check_room(self.receiver, shown, document, beside=len(sent.ids) + self.steps)

    def beside(self, document: Document, sender: Document) -> int:
        return len(prompt(self.sharer, sender.sharer, sender).ids) + self.steps

    def send(self, batch: Batch) -> Sent:
        with batch.clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            if self.steps:
                theirs = self.sharer.prefill_latent([p.ids for p in shared], Thought(self.steps, self.ridge))
                self.check_sent(theirs)
            else:
                theirs = self.sharer_cache(shared)
        with batch.clock("message"):
            sent = cache_across(batch, theirs)
        return Sent(sent, lambda prompts: batch.counted(self.account(shared, prompts)))

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        return read_behind(self.receiver, batch, sent, join)

    def account(self, shared: list[Prompt], prompts: list[Prompt]) -> Message:
        """Returns the sizes: every entry of the prompt and of the steps, in all layers."""
        lm, size = self.sharer, self.sharer.dtype.itemsize
        tokens = [len(p.ids) + self.steps for p in shared]
        sent = [lm.geometry.token_numbers * n * size for n in tokens]
        extra = []
        for p, n in zip(prompts, tokens, strict=True):
            # reading on top of the sharer's cache: every receiver token attends its entries too
            work = self.receiver.attention_flops(len(p.ids), past=n)
            if self.steps:  # the last token runs twice, and each step is mapped from width to width
                again = 2.0 * lm.matmul_params + lm.attention_flops(1, past=n - self.steps)
                work += again + 2.0 * self.steps * lm.hidden_size**2
            extra.append(work)
        return Message(sent, sent, tokens, adapter_flops=extra, read=shared)

"""Measures many variants of one adapter: each model reads each batch of documents once for all.

>>> variants = {"whole": lambda: adapter, "without 3": lambda: adapter.select([0, 1, 2, 4])}
>>> bench.measure(variants)["without 3", "matched"]["score"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lcfbench.adapters.base import Adapter, own_method
from lcfbench.controls.base import load_control
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer, target
from lcfbench.evaluation.batching import batches
from lcfbench.methods.base import Batch, Method
from lcfbench.methods.create import create, method_class
from lcfbench.models.answering import answer_loss
from lcfbench.models.causal_lm import CausalLM, sharing
from lcfbench.models.timing import Clock
from lcfbench.progress import PruneProgress
from lcfbench.registry import method_names
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task

Found = dict[tuple[str, str], dict[str, float]]  # (variant, control) → mean score and log-likelihood


@dataclass
class Tally:
    """Sums over documents: the score, and the mean log-likelihood of a gold token."""

    score: float = 0.0
    loglik: float = 0.0
    documents: int = 0

    def means(self) -> dict[str, float]:
        return {"score": self.score / self.documents, "loglik": self.loglik / self.documents}


@dataclass
class Bench:
    """The dev documents, and all that is needed to measure an adapter on them."""

    receiver: CausalLM
    sharer: CausalLM
    mode: str
    options: dict[str, str]
    task: Task
    documents: Sequence[Document]
    batch_size: int
    seed: int
    progress: PruneProgress

    def method(self, adapter: Adapter) -> Method:
        return create(self.mode, self.receiver, self.sharer, adapter, self.options)

    def check(self, adapter: Adapter) -> None:
        """Raises UserError where the adapter, or one with a layer less, cannot serve."""
        self.method(adapter).check(self.documents[0])
        layers = len(adapter.config.layers)
        if layers < 2:
            raise UserError("this adapter has 1 layer; there is nothing to prune.", "Prune one with more.")
        try:
            self.method(adapter.select(list(range(1, layers)))).check(self.documents[0])
        except UserError as error:
            raise UserError(
                f"{adapter.config.kind} adapters cannot be pruned here: {error.what}", error.next_step
            ) from error

    def measure(self, adapters: Mapping[str, Callable[[], Adapter]], deranged: Sequence[str] = ()) -> Found:
        """Returns the means of every adapter with matched messages.

        deranged: adapters that are measured with messages of other documents too, where the method
        sends any. adapters: made on demand, so that one is in memory at a time.
        """
        senders = {
            c: load_control(c).message_from(self.documents, self.seed) for c in ("matched", "deranged")
        }
        sums = {(name, "matched"): Tally() for name in adapters}
        if method_class(self.mode).sends:
            sums |= {(name, "deranged"): Tally() for name in deranged}
        groups = batches(self.documents, self.batch_size)
        for number, group in enumerate(groups):
            with sharing((self.receiver, self.sharer)):
                for done, ((name, control), tally) in enumerate(sums.items()):
                    batch = Batch(group, [senders[control][d.hash] for d in group], Clock())
                    self.add(self.method(adapters[name]()), batch, tally)
                    self.progress.update(number * len(sums) + done + 1, len(groups) * len(sums))
        return {key: tally.means() for key, tally in sums.items()}

    def add(self, method: Method, batch: Batch, tally: Tally) -> None:
        """Answers a batch and adds it to the tally."""
        state, tokenizer, documents = method.respond(batch), method.receiver.tokenizer, batch.documents
        outcomes, _ = answer(state, batch)
        tally.score += sum(self.task.score(d, o)["score"] for d, o in zip(documents, outcomes, strict=True))
        eos = tokenizer.eos_token_id
        gold = [target(d, p, tokenizer, eos) for d, p in zip(documents, state.prompts, strict=True)]
        loss, _ = answer_loss(state, [ids for ids, _ in gold], [flags for _, flags in gold])
        tally.loglik -= float(loss) * len(documents)
        tally.documents += len(documents)


def method_for(kind: str, trained_as: str | None = None) -> str:
    """Returns the method that runs a kind: the one it was trained under, else its own."""
    able = [name for name in method_names() if kind in method_class(name).adapter_kinds]
    if not able:
        raise UserError(f"no method of this version runs {kind} adapters.", "Upgrade lcfbench.")
    return next((name for name in (trained_as, own_method(kind)) if name in able), able[0])

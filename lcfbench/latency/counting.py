"""One answer watched instead of timed: which forwards ran in which phase, how long they were, and what the adapter did.

Hooks on the models' own modules and on the adapter, so that a method is counted by what it runs: nothing here knows methods.

>>> seen = watch(method, document); seen.work, seen.tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lcfbench.evaluation.answer import answer
from lcfbench.latency.documents import models_of, unstopped
from lcfbench.latency.floors import Work, forward, fusion
from lcfbench.methods.base import Batch, Method
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document


@dataclass
class Watched:
    """forwards: in the order they ran; work: they and the fusion. tokens: what was really read and written, for the rows."""

    forwards: list[Forward]
    work: list[Work]
    tokens: dict[str, int]


@dataclass
class Forward:
    """One call of a model's decoder, and how many of its tokens got logits."""

    lm: CausalLM
    phase: str
    new: int
    past: int
    by_first: bool
    logits: int = 0

    @property
    def work(self) -> Work:
        return forward(self.lm, self.phase, self.new, self.past, self.logits, self.by_first)


class PhaseClock(Clock):
    """A clock that tells which phase it is in, and whether the first answer token is still to come."""

    phase = ""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        with super().__call__(phase):
            yield
        self.phase = before


@dataclass
class Ledger:
    """What the hooks write down."""

    clock: PhaseClock
    forwards: list[Forward] = field(default_factory=list)
    adapter_flops: float = 0.0
    edited_bytes: int = 0

    def follow(self, lm: CausalLM, stack: ExitStack) -> None:
        """Notes every forward of a model: decoder calls, and the tokens its output head sees."""

        def decoder(module: Any, args: Any, given: dict[str, Any]) -> None:
            new = given["input_ids"].shape[1]
            self.forwards.append(
                Forward(lm, self.clock.phase, new, read_before(given, new), self.clock.ttft_ms is None)
            )

        def head(module: Any, args: Any, logits: Tensor) -> None:
            self.forwards[-1].logits += logits.shape[-2]

        stack.enter_context(lm.observed(decoder, head))

    def follow_adapter(self, adapter: Any, stack: ExitStack) -> None:
        """Notes the work an adapter accounts for, and the receiver's entries that go in and come out."""
        plain = adapter.flops

        def flops(positions: int) -> float:
            self.adapter_flops += plain(positions)
            return float(plain(positions))

        def edited(module: Any, args: tuple[Any, ...], made: tuple[Tensor, ...]) -> None:
            # a message has fewer dimensions than a cache: only entries count
            entries = [x for x in (*args, *made) if isinstance(x, Tensor) and x.dim() == 5]
            self.edited_bytes += sum(x.nbytes for x in entries)

        vars(adapter)["flops"] = flops
        stack.callback(vars(adapter).pop, "flops", None)
        stack.callback(adapter.register_forward_hook(edited).remove)


def read_before(given: dict[str, Any], new: int) -> int:
    """Cache entries that stand before the `new` tokens of a decoder call: by its mask where that has a row a document, else by its cache."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return int(mask.sum(1).max()) - new
    cache = given.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None else 0


def watch(method: Method, document: Document) -> Watched:
    """Answers one document and counts. Raises UserError where the method cannot serve it."""
    clock = PhaseClock(method.receiver.device)
    ledger, batch = Ledger(clock), Batch([document], [document], clock)
    with ExitStack() as stack:
        for lm in models_of(method):
            ledger.follow(lm, stack)
        if method.adapter is not None:
            ledger.follow_adapter(method.adapter, stack)
        stack.enter_context(unstopped(method))
        state = method.respond(batch)
        written = answer(state, batch)[1][0]
    work, message = [f.work for f in ledger.forwards], state.message
    if method.adapter is not None and (ledger.adapter_flops or ledger.edited_bytes):
        work.append(fusion(method.adapter, message.cache_bytes[0], ledger.edited_bytes, ledger.adapter_flops))
    tokens = {
        "answering": len(state.prompts[0].ids),  # what the model that answers was shown
        "sharer": message.sharer_tokens[0],  # what the sharer read and wrote
        "note": sum(f.new for f in ledger.forwards if f.phase == "message"),
        "answer": written,
    }
    return Watched(ledger.forwards, work, tokens)

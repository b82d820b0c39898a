"""The one seam of the house: `Batch → Method.respond → State`.

A communication method is one file of this folder with one class, found by the file's name. It does everything up to "the receiver may now answer";
scoring, generating and the training loss start from the `State` it returns and know nothing of it. Options are dataclass fields.

>>> method = create("t2t", receiver, sharer, options={"budget": "100"})
>>> state = method.respond(Batch(documents, documents, Clock()))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig
from lcfbench.errors import UserError
from lcfbench.methods.ask import Answer, ask
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.state import State
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, View
from lcfbench.tasks.prompts import Prompt, render


@dataclass
class Batch:
    """Documents to answer together.

    message_from: for each document the one whose message it gets: itself, or another.
    clock: phases are timed where they happen.
    """

    documents: Sequence[Document]
    message_from: Sequence[Document]
    clock: Clock

    @property
    def own(self) -> list[bool]:
        """Whether each document gets its own message: only then may tokens be aligned by their text."""
        return [d is s for d, s in zip(self.documents, self.message_from, strict=True)]


@dataclass
class Method:
    """Base of all methods.

    sends: whether anything crosses between the models: only then has a control on the message a meaning. uses_sharer_cache: whether what crosses is made from
    the cache of `self.sharer`, read by its `prefill` or `read`: only then has a control on that cache. seeded: whether the run's seed changes the
    answers where documents and messages stay the same.
    roles: which of the two models must be loaded. adapter_kinds: kinds of adapter it runs; empty for training-free methods.
    """

    receiver: CausalLM
    sharer: CausalLM
    adapter: Adapter | None = None

    sends: ClassVar[bool] = True
    uses_sharer_cache: ClassVar[bool] = True
    seeded: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver", "sharer")
    adapter_kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raises UserError for options that make no sense or a pair the method cannot serve."""

    def check(self, document: Document) -> None:
        """Raises UserError when the method cannot serve this kind of document."""

    def respond(self, batch: Batch) -> State:
        """Everything up to the first answer token. See the module's docstring."""
        raise NotImplementedError

    def ask(
        self,
        question: str,
        *,
        receiver_notes: str = "",
        sharer_notes: str = "",
        begin: str = "",
        max_new_tokens: int = 32,
    ) -> Answer:
        """Answers one question and shows the message: see `lcfbench.methods.ask.ask`."""
        return ask(self, question, receiver_notes, sharer_notes, begin, max_new_tokens)

    @classmethod
    def configure(cls, config: AdapterConfig, receiver: CausalLM, sharer: CausalLM) -> AdapterConfig:
        """The config of a fresh adapter, completed with what only the loaded models tell. Called once, before training."""
        return config

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """What an untrained adapter needs before the first step: input statistics, a closed-form start. `say` tells whoever waits."""

    @property
    def calibration(self) -> int:
        """How many documents of the task's validation split `calibrate` must see before the first `respond`; mostly none."""
        return 0

    def calibrate(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Settles, before a run, what a training-free method takes from validation documents. Returns what the run's manifest records."""
        return {}

    def options(self) -> dict[str, Any]:
        """The method's own settings, as they go into a run's identity."""
        return {f.name: getattr(self, f.name) for f in option_fields(type(self))}


def prompt(lm: CausalLM, view: View, document: Document, history: Sequence[tuple[str, str]] = ()) -> Prompt:
    """How `CausalLM` is shown a view of a document: its chat template where it has one and the task wants one."""
    chat = document.chat and lm.has_chat
    shown = render(view, lm.tokenizer, chat=chat, choices=bool(document.steps), history=history)
    limit = getattr(lm.model.config, "max_position_embeddings", None)
    if limit and len(shown.ids) > limit:
        raise UserError(
            f"document {document.doc_id} has {len(shown.ids)} tokens; {lm.name} reads {limit}.",
            "Use a model with a longer context.",
        )
    return shown


def plain(lm: CausalLM, views: Sequence[View], batch: Batch) -> State:
    """One model reading its views, nothing else."""
    with batch.clock("prefill"):
        return lm.read([prompt(lm, v, d) for v, d in zip(views, batch.documents, strict=True)])


# -- from a name to a method ----------------------------------------------------------------------------------------------------------


def option_fields(kind: type[Method]) -> list[dataclasses.Field[Any]]:
    """Dataclass fields that are the method's options."""
    return [f for f in dataclasses.fields(kind) if f.name not in {"receiver", "sharer", "adapter"}]

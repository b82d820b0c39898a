"""The one interface of a communication method: `Batch` → `Method.respond` → `State`.

A method is one file of this folder with one class, found by the file's name. It does everything up
to the moment in which the receiver may answer. Scoring, generation and the training loss start from
the `State` it returns and know nothing of the method. Its options are dataclass fields.

>>> method = create("t2t", receiver, sharer, options={"budget": "100"})
>>> state = method.respond(Batch(documents, documents, Clock()))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig
from lcfbench.config import Join, WireForm
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods.ask import Answer, answer_of, document_of
from lcfbench.models.capabilities import CACHE, Capability
from lcfbench.models.finite import check_cache
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel, Message, State
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, View
from lcfbench.tasks.prompts import Prompt, render

# the training's own objective on a state: loss, share of right tokens, supervised tokens
Judge = Callable[[State], tuple[Tensor, Tensor, int]]


@dataclass
class Batch:
    """Documents that are answered together.

    message_from: for each document the one whose message it gets: itself, or another one under a
    control. clock: times each phase where it happens. wire: the form in which messages cross as bytes;
    None where they are handed over as they are, as in training. packets: the bytes that crossed, by row.
    stored: bytes that crossed before, by row, which are read in the place of new ones: a replay, in which
    the sharer computes nothing; those of a second sharer have the rows behind the first one's.
    """

    documents: Sequence[Document]
    message_from: Sequence[Document]
    clock: Clock
    wire: WireForm | None = None
    packets: dict[int, bytes] = field(default_factory=dict)
    stored: Mapping[int, bytes] | None = None

    @property
    def replays(self) -> bool:
        """Whether messages are read that crossed before, so that none need be made."""
        return self.stored is not None

    @property
    def own(self) -> list[bool]:
        """Whether each document gets its own message; only then tokens align by text."""
        return [d is s for d, s in zip(self.documents, self.message_from, strict=True)]

    def counted(self, message: Message) -> Message:
        """Returns a message with the sizes of the bytes that crossed, where any did as bytes."""
        if self.wire is None:
            return message
        packets = [self.packets.get(row, b"") for row in range(len(self.documents))]
        return replace(message, wire_bytes=[len(data) for data in packets], packets=packets)


@dataclass(frozen=True)
class Sent:
    """One sharer's message of a batch as the receiver's side has it, before the receiver takes it in.

    content: texts or entries, as the method's `receive` knows them. account: from the receiver's prompts to
    the message's sizes.
    """

    content: Any
    account: Callable[[list[Prompt]], Message]


@dataclass
class Method:
    """Base of all methods: two models, perhaps an adapter, and the options as further fields.

    sends: whether a message crosses between the models; a control on the message needs one.
    sends_text: whether that message is text: UTF-8 is the one form in which it crosses.
    uses_sharer_cache: whether the message is made from the cache of `self.sharer`, as its `prefill`
    or `read` returns it; a control that replaces this cache needs that.
    seeded: whether the run's seed changes the answers to the same documents and messages.
    roles: which of the two models the method runs; the other one is not loaded.
    adapter_kinds: kinds of adapter that it runs; empty for methods that need no training.
    adapter_optional: whether it runs without an adapter too; one is used where it is given.
    starts_fitted: whether `prepare` alone gives an adapter that can be used, so that a training may have no
    steps.
    joins: ways in which the messages of several sharers are joined, the default first; () for methods that
    take the message of one, and define `respond` instead of `send` and `receive`.
    needs: the capabilities that a model must have in each role, beside reading and writing text. None
    means nothing more for a method without adapter, and all of the cache's for one with an adapter.
    """

    receiver: LanguageModel
    sharer: LanguageModel
    adapter: Adapter | None = None

    sends: ClassVar[bool] = True
    sends_text: ClassVar[bool] = False
    uses_sharer_cache: ClassVar[bool] = True
    seeded: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver", "sharer")
    adapter_kinds: ClassVar[tuple[str, ...]] = ()
    adapter_optional: ClassVar[bool] = False
    starts_fitted: ClassVar[bool] = False
    joins: ClassVar[tuple[Join, ...]] = ()
    needs: ClassVar[Mapping[str, tuple[Capability, ...]] | None] = None

    def __post_init__(self) -> None:
        """Raises UserError for options or a pair that the method cannot serve."""

    @classmethod
    def check_depth(cls, options: Mapping[str, str], depth: Callable[[], int]) -> None:
        """Raises UserError, before a model is loaded, for options that name layers which it lacks.

        depth: returns the number of the receiver's layers.
        """

    @classmethod
    def needs_with(cls, config: AdapterConfig | None) -> Mapping[str, tuple[Capability, ...]]:
        """Returns `needs` with an adapter of this config; None: with any adapter."""
        if cls.needs is not None:
            return cls.needs
        return dict.fromkeys(cls.roles, CACHE if cls.adapter_kinds else ())

    def check(self, document: Document) -> None:
        """Raises UserError when the method cannot serve this kind of document."""

    @property
    def added(self) -> int:
        """Positions that a model may need beside the texts of a document and the message's."""
        return 0

    def check_length(self, document: Document, sender: Document) -> None:
        """Raises TooLongError where a model has too few positions for what it reads and writes.

        sender: the document whose message the document gets. Nothing is read.
        """
        check_room(self.receiver, prompt(self.receiver, document.receiver, document), document)
        if self.sends and self.sharer is not self.receiver:
            prompt(self.sharer, sender.sharer, sender)

    @classmethod
    def ways(cls, shared: bool) -> tuple[Join, ...]:
        """Returns `joins` on shared or on different contexts."""
        return cls.joins

    @property
    def sharers(self) -> Sequence[LanguageModel]:
        """The models that make the message, in their order; mostly one."""
        return [self.sharer]

    def beside(self, document: Document, sender: Document) -> int:
        """Returns the positions that a message takes in the receiver at most, beside the prompt's own."""
        return 0

    def check_beside(self, other: Method) -> None:
        """Raises UserError where a second sharer's message cannot be joined with this one's.

        other: the same method between the receiver and that sharer.
        """

    def respond(self, batch: Batch) -> State:
        """Does everything up to the first answer token, see the module's docstring."""
        return self.receive(batch, [self.send(batch)], "row")

    def send(self, batch: Batch) -> Sent:
        """Makes the message of `self.sharer` for each document; the receiver reads nothing yet."""
        raise NotImplementedError

    def receive(self, batch: Batch, sent: Sequence[Sent], join: Join) -> State:
        """Lets the receiver read its prompts with the messages of all sharers, joined in one of `joins`."""
        raise NotImplementedError

    def words(self, batch: Batch) -> list[str] | None:
        """Returns, for each document, the part of the sharer's text that its message is made of.

        None where that is the whole of it, as for most methods.
        """
        return None

    def ask(
        self,
        question: str,
        *,
        receiver_notes: str = "",
        sharer_notes: str = "",
        begin: str = "",
        max_new_tokens: int = 32,
    ) -> Answer:
        """Answers one question and shows the message.

        Without notes both models read the question. With notes each model reads its own only. begin:
        the first words of the answer. Raises UserError where the method cannot serve such a question.
        """
        document = document_of(question, receiver_notes, sharer_notes, begin, max_new_tokens)
        self.check(document)
        self.check_length(document, document)
        batch = Batch([document], [document], Clock(self.receiver.device))
        with torch.inference_mode():
            return answer_of(self.respond(batch), batch.clock, document)

    def sharer_cache(self, prompts: Sequence[Prompt], check: bool = True) -> KV:
        """Returns the sharer's cache over whole prompts, left-padded; no gradient goes there.

        check: whether `check_sent` is called here.
        """
        with torch.no_grad():
            kv = self.sharer.prefill([p.ids for p in prompts])
        if check:
            self.check_sent(kv)
        return kv

    def check_sent(self, kv: KV) -> None:
        """Raises NotFiniteError for an entry of the sharer's cache that is NaN or infinite."""
        check_cache(kv, f"the cache of the sharer {self.sharer.name}")

    @classmethod
    def configure(
        cls, config: AdapterConfig, receiver: LanguageModel, sharer: LanguageModel
    ) -> AdapterConfig:
        """Completes the config of a new adapter with facts that only loaded models tell.

        Called once, before training.
        """
        return config

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Gives an untrained adapter its input statistics or a closed-form start. `say` reports."""

    def loss(self, batch: Batch, done: float, judge: Judge) -> tuple[Tensor, Tensor, int]:
        """Returns what training lessens, the share of right tokens, and the number of supervised ones.

        done: the share of the training's steps that has been taken, 0 to 1. judge: the cross-entropy of
        the documents' answers. A method whose training has stages of its own has its own.
        """
        return judge(self.respond(batch))

    def finished(self, say: Callable[[str], None]) -> None:
        """Is called once when a training has ended and the adapter is saved with its best weights."""

    @property
    def calibration(self) -> int:
        """Validation documents that `calibrate` needs before the first `respond`; mostly 0."""
        return 0

    def calibrate(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Settles what a method takes from validation documents; returns it for the manifest."""
        return {}

    def recall(self, settled: Mapping[str, Any]) -> None:
        """Settles the method as `calibrate` did, from what that returned: nothing is computed."""

    def options(self) -> dict[str, Any]:
        """Returns the method's own settings, as they go into a run's identity."""
        return {f.name: getattr(self, f.name) for f in option_fields(type(self))}


def option_fields(kind: type[Method]) -> list[dataclasses.Field[Any]]:
    """Returns the dataclass fields that are the method's options."""
    return [f for f in dataclasses.fields(kind) if f.name not in {"receiver", "sharer", "adapter"}]


def prompt(
    lm: LanguageModel,
    view: View,
    document: Document,
    history: Sequence[tuple[str, str]] = (),
    spelled: bool = True,
) -> Prompt:
    """Renders a view of a document for a model: in its chat template where model and task have one.

    spelled: whether special tokens in its text are read as their characters.

    Raises TooLongError where the prompt is longer than the model can read, UserError for a token that
    the model does not have.
    """
    chat = document.chat and lm.has_chat
    choices = bool(document.steps)
    shown = lm.shared.once(
        (view, chat, choices, tuple(history), spelled),
        lambda: render(view, lm.tokenizer, chat=chat, choices=choices, history=history, spelled=spelled),
    )
    if (most := max(shown.ids, default=0)) >= lm.vocabulary_size:
        token, rows = lm.tokenizer.convert_ids_to_tokens(most), lm.vocabulary_size
        what = f"the tokenizer of {lm.name} writes {token!r} as token {most:,}; the model has {rows:,}."
        raise UserError(what, "Use the tokenizer that the model was made with.")
    check_room(lm, shown, document, written=0)
    return shown


def read_alone(lm: LanguageModel, views: Sequence[View], batch: Batch) -> State:
    """Lets one model read its views; no message reaches it."""
    with batch.clock("prefill"):
        return lm.read([prompt(lm, v, d) for v, d in zip(views, batch.documents, strict=True)])

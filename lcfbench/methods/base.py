"""The one seam of the house: `Batch → Method.respond → State`.

A communication method is one file of this folder with one class, found by the file's name. It does everything up to "the receiver may now answer";
scoring, generating and the training loss start from the `State` it returns and know nothing of it. Options are dataclass fields.

>>> method = create("t2t", receiver, sharer, options={"budget": "100"})
>>> state = method.respond(Batch(documents, documents, Clock()))
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig
from lcfbench.catalogue import method_names
from lcfbench.document import Document, View
from lcfbench.endpoint import Endpoint
from lcfbench.errors import UserError, unknown
from lcfbench.prompts import Prompt, render
from lcfbench.state import State
from lcfbench.timing import Clock


@dataclass
class Batch:
    """Documents to answer together.

    senders: for each document the one whose message it gets: itself, or another.
    clock: phases are timed where they happen.
    """

    documents: Sequence[Document]
    senders: Sequence[Document]
    clock: Clock

    @property
    def own(self) -> list[bool]:
        """Whether each document gets its own message: only then may tokens be aligned by their text."""
        return [d is s for d, s in zip(self.documents, self.senders, strict=True)]


@dataclass
class Method:
    """Base of all methods.

    sends: whether anything crosses between the models: only then has a control on the message a meaning. cached: whether what crosses is made from
    the cache of `self.sharer`, read by its `prefill` or `read`: only then has a control on that cache. random: whether the run's seed changes the
    answers where documents and messages stay the same.
    uses: which of the two models must be loaded. adapter_kinds: kinds of adapter it runs; empty for training-free methods.
    """

    receiver: Endpoint
    sharer: Endpoint
    adapter: Adapter | None = None

    sends: ClassVar[bool] = True
    cached: ClassVar[bool] = True
    random: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ("receiver", "sharer")
    adapter_kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raises UserError for options that make no sense or a pair the method cannot serve."""

    def check(self, document: Document) -> None:
        """Raises UserError when the method cannot serve this kind of document."""

    def respond(self, batch: Batch) -> State:
        """Everything up to the first answer token. See the module's docstring."""
        raise NotImplementedError

    @classmethod
    def configure(cls, config: AdapterConfig, receiver: Endpoint, sharer: Endpoint) -> AdapterConfig:
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


def prompt(endpoint: Endpoint, view: View, document: Document, history: Sequence[tuple[str, str]] = ()) -> Prompt:
    """How `endpoint` is shown a view of a document: its chat template where it has one and the task wants one."""
    chat = document.chat and endpoint.has_chat
    shown = render(view, endpoint.tokenizer, chat=chat, choices=bool(document.steps), history=history)
    limit = getattr(endpoint.model.config, "max_position_embeddings", None)
    if limit and len(shown.ids) > limit:
        raise UserError(
            f"document {document.doc_id} has {len(shown.ids)} tokens; {endpoint.name} reads {limit}.",
            "Use a model with a longer context.",
        )
    return shown


def plain(endpoint: Endpoint, views: Sequence[View], batch: Batch) -> State:
    """One model reading its views, nothing else."""
    with batch.clock("prefill"):
        return endpoint.read([prompt(endpoint, v, d) for v, d in zip(views, batch.documents, strict=True)])


# -- from a name to a method ----------------------------------------------------------------------------------------------------------


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises UserError with the nearest names when there is none."""
    if name not in method_names():
        raise unknown("method", name, method_names(), "lcfbench ls methods")
    module = importlib.import_module(f"lcfbench.methods.{name}")
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__]
    assert len(found) == 1, f"methods/{name}.py must define exactly one Method, found {found}"
    return found[0]


def sides(kind: type[Method], first: str, second: str) -> tuple[str, str]:
    """Which of a pair's models stand on both sides: one alone stands on both, and on the side it is not used it is never called."""
    alone: dict[tuple[str, ...], tuple[str, str]] = {("receiver",): (first, first), ("sharer",): (second, second)}
    return alone.get(kind.uses, (first, second))


def check_options(kinds: Mapping[str, type[Method]], given: Iterable[str]) -> None:
    """Raises UserError for an option that none of these methods has."""
    known = {f.name for kind in kinds.values() for f in option_fields(kind)}
    for key in given:
        if key not in known:
            raise unknown(f"option of {', '.join(kinds)}", key, known, "lcfbench ls methods")


def option_fields(kind: type[Method]) -> list[dataclasses.Field[Any]]:
    """Dataclass fields that are the method's options."""
    return [f for f in dataclasses.fields(kind) if f.name not in {"receiver", "sharer", "adapter"}]


def parse_options(kind: type[Method], name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Option texts from the command line, converted to the fields' types. UserError for unknown names and unfit values."""
    fields, hints = {f.name: f for f in option_fields(kind)}, get_type_hints(kind)
    out: dict[str, Any] = {}
    for key, text in given.items():
        if key not in fields:
            raise unknown(f"option of {name}", key, fields, f"lcfbench ls methods  ({name} takes {', '.join(fields) or 'no options'})")
        try:
            out[key] = hints[key](text)
        except ValueError as error:
            raise UserError(
                f"option {key}={text} of {name} must be of type {hints[key].__name__}.", f"Default: {fields[key].default}."
            ) from error
    return out


def create(
    name: str, receiver: Endpoint, sharer: Endpoint, adapter: Adapter | None = None, options: Mapping[str, str] | None = None
) -> Method:
    """A method ready to respond."""
    kind = method_class(name)
    if kind.adapter_kinds and adapter is None:
        raise UserError(
            f"method {name} needs an adapter and none ships for {receiver.name}:{sharer.name}.",
            "Pass --adapter FOLDER, or make one with `lcfbench train`.",
        )
    if adapter is not None and kind.adapter_kinds and adapter.config.kind not in kind.adapter_kinds:
        raise UserError(
            f"method {name} runs adapters of kind {', '.join(kind.adapter_kinds)}, not {adapter.config.kind}.",
            f"Use --mode {adapter.config.own_method}.",
        )
    chosen = parse_options(kind, name, options or {})
    if adapter is not None and kind.adapter_kinds:  # what it was trained under holds where nothing else is asked for
        trained = adapter.config.training.get("method_options") or {}
        chosen = {f.name: trained[f.name] for f in option_fields(kind) if f.name in trained} | chosen
    return kind(receiver, sharer, adapter if kind.adapter_kinds else None, **chosen)

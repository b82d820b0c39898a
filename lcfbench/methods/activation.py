"""activation: one hidden state of the sharer enters the receiver's own at its prompt's last token.

AC, arXiv 2501.14082, where nothing is trained. Between two models a linear map is fitted: by the run, or once
by `lcfbench train`, which saves it as an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lcfbench.adapters.activation import DOCUMENTS, ActivationAdapter, Layer, StateMap
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig
from lcfbench.errors import UserError
from lcfbench.methods._state_map import aligned_states, fit_map
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.activations import Combine, Edits
from lcfbench.models.capabilities import Capability
from lcfbench.models.finite import NotFiniteError, finite
from lcfbench.models.protocol import LanguageModel, Message, State
from lcfbench.provenance import digest
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

DEPTH = 26 / 32  # the paper's layer 26 of models of 32 layers, on both sides


@dataclass
class Activation(Method):
    """Lets the sharer's hidden state behind a layer act at the receiver's last token, behind another layer.

    All later layers, and so the answer, read what comes of it; the receiver's other tokens stay as they
    are. The message is one vector a document.

    sharer_layer, receiver_layer: counted from 0 as the cache's layers; without a number the one that
    ends the first 26/32 of them, as the paper's layer 26 of 32 does (whether it counts from 0 is open).
    combine: the state takes the receiver's place (`replace`, the paper's best), is added to it (`sum`),
    or the mean of both does (`mean`). bridge: `ridge` maps the sharer's states by least squares, fitted
    to the receiver's states of the same text on 64 validation documents of the task; `none` sends them as
    they are, as the paper does with models of one width; `auto` is ridge between two models and none
    within one. An adapter brings its own map and layers: nothing is fitted then.
    """

    sharer_layer: Layer = None
    receiver_layer: Layer = None
    combine: Combine = "replace"
    bridge: Literal["auto", "ridge", "none"] = "auto"

    adapter_kinds: ClassVar[tuple[str, ...]] = ("activation",)
    adapter_optional: ClassVar[bool] = True
    starts_fitted: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("activations",),
        "sharer": ("activations",),
    }

    def __post_init__(self) -> None:
        mine, theirs = self.receiver, self.sharer
        self.foreign = mine.geometry != theirs.geometry or mine.revision != theirs.revision
        self._map: StateMap | None = None  # until `calibrate` has fitted it; an adapter brings its own
        into, source = self.receiver_layer, self.sharer_layer
        if self.adapter is not None:
            self.check_adapter(self.adapter)
            into, source = self.adapter.config.layers[0], self.adapter.config.layer_map[0]
        self.into = layer_of("receiver_layer", into, mine)
        self.source = layer_of("sharer_layer", source, theirs)
        if self.bridge == "none" and mine.hidden_size != theirs.hidden_size:
            widths = f"{theirs.hidden_size:,} numbers, those of {mine.name} {mine.hidden_size:,}"
            what = f"hidden states of {theirs.name} have {widths}: without a map they do not fit."
            raise UserError(what, "Leave out -o bridge=none.")

    @classmethod
    def check_depth(cls, options: Mapping[str, str], depth: Callable[[], int]) -> None:
        given = options.get("receiver_layer", "")
        if given.isdecimal() and int(given) >= depth():
            raise beyond("receiver_layer", int(given), depth(), "the receiver")

    @classmethod
    def configure(
        cls, config: AdapterConfig, receiver: LanguageModel, sharer: LanguageModel
    ) -> AdapterConfig:
        """Settles the layers, and adds the widths of both models' hidden states."""
        into = layer_of("receiver_layer", config.options.get("receiver_layer"), receiver)
        source = layer_of("sharer_layer", config.options.get("sharer_layer"), sharer)
        found = {"receiver_layer": into, "sharer_layer": source}
        sizes = {"sharer_size": sharer.hidden_size, "receiver_size": receiver.hidden_size}
        options = config.options | found | sizes
        return config.model_copy(update={"layers": (into,), "layer_map": (source,), "options": options})

    def check_adapter(self, adapter: Adapter) -> None:
        """Raises UserError for an adapter of other models, and for options that say otherwise than it."""
        assert isinstance(adapter, ActivationAdapter), "activation takes an activation adapter"
        config = adapter.config
        config.check_fits(self.receiver.geometry, self.sharer.geometry, "")
        for role, lm, size in zip(
            ("sharer", "receiver"), (self.sharer, self.receiver), adapter.sizes, strict=True
        ):
            if lm.hidden_size != size:
                raise UserError(
                    f"this adapter maps states of {':'.join(config.pair)}, where the {role}'s have {size:,} "
                    f"numbers; those of {lm.name} have {lm.hidden_size:,}.",
                    "Train one for this pair: lcfbench train --mode activation",
                )
        of_adapter = {"receiver_layer": config.layers[0], "sharer_layer": config.layer_map[0]}
        for option, layer in of_adapter.items():
            if (given := getattr(self, option)) not in (None, layer):
                raise UserError(
                    f"{option}={given}: the adapter's map is fitted for {option} {layer}.",
                    "Leave the option out, or train an adapter for that layer.",
                )
        if self.bridge == "none":
            raise UserError("bridge=none leaves the adapter no use.", "Leave out one of them.")

    @property
    def map(self) -> StateMap | None:
        """The map as it is now: the adapter's, or the one that was fitted; None where there is none yet."""
        if self.adapter is None:
            return self._map
        assert isinstance(self.adapter, ActivationAdapter)
        return self.adapter.map

    @property
    def mapped(self) -> bool:
        if self.adapter is not None:
            return True
        return self.bridge == "ridge" or (self.bridge == "auto" and self.foreign)

    def options(self) -> dict[str, Any]:
        """The layers as they are counted here; no bridge within one model."""
        found = {"sharer_layer": self.source, "receiver_layer": self.into, "combine": self.combine}
        return found | ({"bridge": "ridge" if self.mapped else "none"} if self.foreign or self.mapped else {})

    @property
    def calibration(self) -> int:
        return DOCUMENTS if self.mapped and self.adapter is None else 0

    def calibrate(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Fits the map. Returns its tokens, its held-out R², and a digest of its numbers."""
        self._map, facts = self.fitted(documents)
        return facts

    def fitted(self, documents: Sequence[Document]) -> tuple[StateMap, dict[str, Any]]:
        """Returns the map by ridge regression on texts of these documents, and facts of it."""

        def pairs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            models = (self.sharer, [self.source]), (self.receiver, [self.into])
            for x, y, held in aligned_states(*models, documents):
                yield x[0], y[0], held

        return fit_map(pairs())

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Starts the adapter in closed form, and notes in its config what it was fitted on."""
        adapter = self.adapter
        assert isinstance(adapter, ActivationAdapter)
        some = documents[: adapter.documents]
        with torch.no_grad():
            made, facts = self.fitted(some)
        adapter.take(made)
        hashes = digest([d.hash for d in some])
        fit = {"documents": len(some), **facts, "documents_sha256": hashes}
        training = adapter.config.training | {"fit": fit}
        adapter.config = adapter.config.model_copy(update={"training": training})
        judged = f", held-out R² {facts['r2']:.3f}" if "r2" in facts else ""
        fewer = f" ({adapter.documents:,} are asked for: --train-documents)" * (len(some) < adapter.documents)
        say(f"activation: map fitted on {facts['tokens']:,} tokens of {len(some)} documents{fewer}{judged}.")

    def respond(self, batch: Batch) -> State:
        with batch.clock("sharer"):
            shared = [prompt(self.sharer, s.sharer, s) for s in batch.message_from]
            sent = self.states(shared)
        with batch.clock("message"):
            read = [x for x in latents_across(batch, sent) if x is not None]
        with batch.clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            state = self.receiver.read(prompts)
        with batch.clock("fuse"):
            vectors = self.bridged(torch.cat(read, 1)).to(state.ids.device)  # (1, B, d)
            blocks = tuple(self.receiver.decoder_layers([self.into]))
            edits = Edits(blocks, state.positions[:, -1:], vectors[:, :, None], self.combine)
            state = replace(state, kv=replace(state.kv, edits=edits))
        return replace(state, message=batch.counted(self.account(shared)))

    def states(self, shared: Sequence[Prompt]) -> list[Tensor]:
        """Returns the state (1, 1, d) of each prompt's last token. Raises NotFiniteError."""
        own = self.foreign and self.sharer is self.receiver  # under the control `self`
        rows, layer = [p.ids for p in shared], self.into if own else self.source
        found = self.sharer.hidden_states(rows, [layer], [1] * len(rows))
        if not all(map(finite, found)):
            raise NotFiniteError(f"the hidden state of {self.sharer.name} behind layer {layer}")
        return found

    def bridged(self, states: Tensor) -> Tensor:
        """Returns the sharer's states (1, B, d) as states of the receiver."""
        if not self.mapped or (self.foreign and self.sharer is self.receiver):
            return states
        if (found := self.map) is None:
            raise UserError(
                "activation fits its map on validation documents of a task, and has seen none.",
                "Use `lcfbench run`, one model twice, or an adapter: lcfbench train --mode activation",
            )
        return found(states)

    def account(self, shared: list[Prompt]) -> Message:
        """Returns the sizes: one vector a document, and the map's work."""
        lm, n = self.sharer, len(shared)
        size = [lm.hidden_size * lm.dtype.itemsize] * n
        work = 2.0 * lm.hidden_size * self.receiver.hidden_size * self.mapped
        return Message(size, size, [len(p.ids) for p in shared], adapter_flops=[work] * n, read=shared)


def layer_of(option: str, given: int | None, lm: LanguageModel) -> int:
    """Returns a layer of the cache; without a number the one that ends the first 26/32 of them.

    Raises UserError for one that the model does not have.
    """
    count = lm.geometry.layers
    if given is None:
        return max(round(DEPTH * count) - 1, 0)
    if not 0 <= given < count:
        raise beyond(option, given, count, lm.name)
    return given


def beyond(option: str, given: int, count: int, whose: str) -> UserError:
    return UserError(f"{option}={given} of {whose}, which has {count}.", f"Give 0 to {count - 1}.")

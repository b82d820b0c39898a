"""One method between two models under one control, as one model that answers documents.

>>> pair = AnsweringPair({"pair": "smollm2-135m:gemma3-270m", "mode": "t2t", "budget": 16})
>>> found = pair.answers(documents)                                                 # doctest: +SKIP
>>> found[documents[0].hash].message["text"]                                        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.config import read_config, weights_sha256
from lcfbench.adapters.files import check_saved
from lcfbench.adapters.select import find_adapter, serves, shipped
from lcfbench.config import WireForm
from lcfbench.controls.base import LACKS, load_control
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.identity import BEHAVIOUR
from lcfbench.evaluation.plan import forms_of, options_of
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.variants import Variant
from lcfbench.methods._lengths import too_long
from lcfbench.methods.base import Batch, Method, option_fields
from lcfbench.methods.create import create, method_class, sides
from lcfbench.methods.load_pair import CONDITIONS, load_adapter, load_pair, places_of
from lcfbench.models.causal_lm import CausalLM, sharing
from lcfbench.models.dtypes import pick_device, pick_dtype
from lcfbench.models.layout import geometry_named
from lcfbench.models.memory import device_named
from lcfbench.models.protocol import State
from lcfbench.models.timing import Clock
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.progress import quiet_libraries
from lcfbench.sources.models import find_tokenizer, labels, split_pair
from lcfbench.tasks.chat_template import check_thinking
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import check_ranked
from lcfbench.tasks.task import Outcome

ARGUMENTS = (
    *("pair", "mode", "control", "adapter", "seed", "batch_size", "thinking", "wire"),
    *sorted(CONDITIONS),
)
LISTING = "lcfbench lm-eval --help"
SEVERAL = "`lcfbench run` compares several; here each is an evaluation of its own."


@dataclass(frozen=True)
class Answered:
    """An answer to one document. message: what crossed, and what both models read, for a log."""

    outcome: Outcome
    message: dict[str, Any]
    prompt_tokens: int
    answer_tokens: int


class AnsweringPair:
    """Checks the arguments of a pair at once; reads tokenizers and weights when they are needed.

    given: `ARGUMENTS` (fields of a recipe, one value each) and the options of the method by their
    names. Raises UserError.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        quiet_libraries()
        self.recipe, self.variant = _read(given)
        (self.control,) = self.recipe.control
        self.kind = method_class(self.variant.mode)
        self.names = sides(self.kind, *split_pair(self.recipe.pair))
        self._check()

    def _check(self) -> None:
        """Raises UserError for a control, a device or an adapter that cannot be used; loads no model."""
        recipe, mode = self.recipe, self.variant.mode
        if what := load_control(self.control).lacks(self.kind):
            sentence = f"{mode} {LACKS.get(what, what)} that control {self.control} could change."
            raise UserError(sentence, "Give control=matched.")
        if load_control(self.control).asks_otherwise:
            what = (
                f"control {self.control} asks other texts than the harness, which builds and scores its own."
            )
            raise UserError(what, f"Use `lcfbench run --control {self.control}`, which says who won.")
        places = recipe.model_dump(include={"device", "receiver_device", "sharer_device", "device_map"})
        for place in places_of(**places):
            if recipe.dtype != "auto":
                pick_dtype(recipe.dtype, pick_device(str(place["device"])))
        if (folder := self.variant.adapter) is None:
            return
        config = read_config(folder)
        check_saved(folder)
        if config.kind not in self.kind.adapter_kinds or not serves(config, mode):
            what = f"{folder} is an adapter of kind {config.kind}, which {mode} does not run"
            raise UserError(f"{what}.", "`lcfbench ls adapters` lists adapters and their kinds.")
        if not recipe.trust_remote_code:  # code of the models' own folders is not asked
            first, second = (geometry_named(n, offline=recipe.offline, by_code=True) for n in self.names)
            config.check_fits(first, second, str(folder))

    @cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """The tokenizers of who answers and of who sends, without weights."""
        recipe = self.recipe
        receiver, sharer = (
            load_tokenizer(
                find_tokenizer(n, offline=recipe.offline), recipe.trust_remote_code, recipe.thinking
            )
            for n in self.names
        )
        return receiver, sharer

    @cached_property
    def _opened(self) -> tuple[Method, tuple[CausalLM, CausalLM]]:
        recipe, mode = self.recipe, self.variant.mode
        how = {**recipe.model_dump(include=CONDITIONS), "thinking": recipe.thinking}
        pair = load_pair(recipe.pair, roles=self.kind.roles, **how)
        models = pair.models_for(self.kind.roles)
        adapter = load_adapter(self.variant.adapter, pair, mode) if self.variant.adapter else None
        return create(mode, *models, adapter, dict(self.variant.options)), models

    @property
    def method(self) -> Method:
        """The method between the models, which are loaded at the first time."""
        return self._opened[0]

    @property
    def label(self) -> str:
        """The pair by name, as runs are labelled."""
        return ":".join(labels(split_pair(self.recipe.pair)))

    def facts(self) -> dict[str, Any]:
        """What decides the answers, for a log."""
        folder, (method, models) = self.variant.adapter, self._opened
        return {
            "pair": self.label,
            "mode": self.variant.mode,
            "control": self.control,
            "options": method.options(),
            "adapter": folder.name if folder else None,
            "adapter_sha256": weights_sha256(folder) if folder else None,
            "models": [lm.name for lm in models],
            "revisions": [lm.revision for lm in models],
            "dtypes": [str(lm.dtype).removeprefix("torch.") for lm in models],
            "attention": [lm.attention for lm in models],
            "devices": ["+".join(map(str, lm.devices)) for lm in models],
            **({"wire": self.variant.wire} if self.variant.wire else {}),
            "seed": self.recipe.seed,
            "pair_batch_size": self.recipe.batch_size,
            "thinking": self.recipe.thinking,
            "behaviour": BEHAVIOUR,
        }

    # -- answering --------------------------------------------------------------------------------

    def senders(self, documents: Sequence[Document]) -> dict[str, Document]:
        """The document whose message each document (by hash) gets. Raises UserError."""
        return load_control(self.control).message_from(documents, self.recipe.seed)

    def answers(
        self,
        documents: Sequence[Document],
        message_from: Mapping[str, Document] | None = None,
        validation: Callable[[int], Sequence[Document]] | None = None,
    ) -> dict[str, Answered]:
        """Answers documents of one task in batches, by hash, as a run does.

        message_from: None asks `senders`. validation: gives the documents that a method is calibrated on.
        Raises UserError where a document cannot be answered; nothing is answered then.
        """
        message_from = message_from or self.senders(documents)
        check_thinking(self.tokenizers, {d.task: d.chat for d in documents})
        method = self.method
        for document in documents:
            method.check(document)
        if wanted := method.calibration:
            if validation is None:
                what = f"{self.variant.mode} with these options is calibrated on validation documents"
                step = "Choose options that need none (`lcfbench ls methods`)."
                raise UserError(f"{what}, which {documents[0].task} cannot give here.", step)
            with torch.inference_mode(), device_named():
                method.calibrate(validation(wanted))
        if any(d.steps for d in documents):
            for lm in (method.receiver, method.sharer):
                check_ranked(lm.tokenizer)
        control = load_control(self.control)
        if refused := control.refuses(method, documents):
            raise UserError(f"control {self.control}: {refused[0]}.", refused[1])
        if found := too_long(control.reading(method), documents, message_from):
            first = next(d for d in documents if d.hash in found)
            what = f"document {first.doc_id} of {first.task}: {found[first.hash]}"
            raise UserError(f"{len(found):,} of {len(documents):,} documents have no room; {what}")
        answering = control.wrap(method, self.recipe.seed)
        answered: dict[str, Answered] = {}
        with torch.inference_mode(), device_named():
            for group in batches(documents, self.recipe.batch_size):
                senders, clock = [message_from[d.hash] for d in group], Clock(method.receiver.device)
                batch = Batch(group, senders, clock, self.variant.wire)
                with sharing((method.receiver, method.sharer)):
                    state = answering.respond(batch)
                    outcomes, tokens = answer(state, batch)
                for i, (d, outcome) in enumerate(zip(group, outcomes, strict=True)):
                    message = self._message(state, outcome, batch, i, answering.sends)
                    prompt = len(state.prompts[i].ids) + state.message.sharer_tokens[i]
                    answered[d.hash] = Answered(outcome, message, prompt, tokens[i])
        return answered

    def _message(self, state: State, outcome: Outcome, batch: Batch, i: int, sends: bool) -> dict[str, Any]:
        """What crossed to document `i` of a batch, and what was read."""
        sent, shown = state.message, state.prompts[i]
        found: dict[str, Any] = {
            "mode": self.variant.mode,
            "control": self.control,
            "message_from": batch.message_from[i].doc_id if sends else None,
            "message_text": sent.texts[i] if sent.texts else None,
            "message_bytes": sent.wire_bytes[i],
            "sharer_tokens": sent.sharer_tokens[i],
            "sharer_prompt": sent.read[i].text + sent.read[i].tail if sent.read else None,
            "receiver_prompt": shown.text + shown.tail,
        }
        if sends and batch.wire is not None:
            found |= {"wire": batch.wire}
        if len(outcome.picks) > 1:
            steps = zip(batch.documents[i].steps, outcome.picks, strict=True)
            found |= {"picked": [step.choices[pick].strip() for step, pick in steps]}
        if outcome.thought is not None:
            found |= {"thought": outcome.thought}
        return found if outcome.parsed else {**found, "unfinished_thought": True}


def _read(given: Mapping[str, Any]) -> tuple[Recipe, Variant]:
    """The recipe and the one variant that arguments ask for. Raises UserError."""
    for name in ("pair", "mode"):
        if given.get(name) in (None, ""):
            step = "For example pair=smollm2-135m:gemma3-270m,mode=t2t."
            raise UserError(f"the model lcfbench needs {name}=.", step)
    for name in ("pair", "mode", "control", "adapter", "wire"):
        if isinstance(value := given.get(name, ""), list | tuple | dict):
            raise UserError(f"the model lcfbench takes one {name}, not {value!r}.", SEVERAL)
    fields = {"control": "matched", **{k: _plain(k, v) for k, v in given.items() if k in ARGUMENTS}}
    adapter = fields.pop("adapter", None)
    options = {name: value for name, value in given.items() if name not in ARGUMENTS}
    recipe = Recipe.merge(None, {**fields, "adapter": [Path(adapter)] if adapter else []})
    recipe.check_names()
    for name, values in (("mode", recipe.mode), ("control", recipe.control)):
        if len(values) != 1:
            raise UserError(f"the model lcfbench takes one {name}, not {', '.join(values)}.", SEVERAL)
    kind = method_class(recipe.methods[0])
    known = [f.name for f in option_fields(kind)]
    for name in options:
        if name not in known:
            raise unknown(
                f"argument of the model lcfbench with mode {recipe.methods[0]}",
                name,
                [*ARGUMENTS, *known],
                LISTING,
            )
    recipe = recipe.merge(None, {**recipe.model_dump(exclude_unset=True), "options": options})
    found = options_of(recipe.mode, recipe.options)
    if len(found) != 1:
        what = ", ".join(" ".join(f"{k}={v}" for k, v in each.options) for each, _ in found)
        raise UserError(f"the model lcfbench takes one value of each option, not {what}.", "Give one.")
    ((variant, own),) = found
    variant = replace(variant, wire=_form(recipe, variant.mode))
    named = [row[0] for row in own] or [find_adapter(place) for place in recipe.adapter]
    return recipe, _with_adapter(variant, named)


def _form(recipe: Recipe, mode: str) -> WireForm | None:
    """The one form in which messages cross as bytes. Raises UserError for several, and where none is sent."""
    if len(recipe.wire) > 1:
        raise UserError(f"the model lcfbench takes one wire, not {', '.join(recipe.wire)}.", SEVERAL)
    if recipe.wire and not method_class(mode).sends:
        raise UserError(f"{mode} sends no message, so wire={recipe.wire[0]} has no use.", "Leave it out.")
    return forms_of(recipe, mode)[0]


def _with_adapter(variant: Variant, folders: Sequence[Path]) -> Variant:
    """The variant with its adapter. Raises UserError where one is missing, or has no use."""
    kind, mode = method_class(variant.mode), variant.mode
    if not kind.adapter_kinds and folders:
        raise UserError(f"{mode} runs no adapter, so adapter={folders[0]} has no use.", "Leave it out.")
    if kind.adapter_kinds and len(folders) != 1 and not (kind.adapter_optional and not folders):
        names = ", ".join(f.name for f in shipped())
        step = f"Give adapter=FOLDER or a name; these ship: {names}."
        raise UserError(f"{mode} needs {'an' if not folders else 'one'} adapter.", step)
    return replace(variant, adapter=folders[0]) if folders else variant


def _plain(name: str, value: Any) -> Any:
    """A value as a recipe takes it: harnesses read `0` as a number and `none` as nothing."""
    if name == "thinking" and isinstance(value, bool):
        return "on" if value else "off"
    if name in ("seed", "batch_size") and isinstance(value, str) and value.isdecimal():
        return int(value)
    if name in ("pair", "mode", "control", "dtype", "device") and not isinstance(value, list):
        return str(value)
    return value

"""One run: a method on a task under a control and a seed, from what is asked to what is recorded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lcfbench.adapters.config import WEIGHTS, config_sha256, weights_sha256
from lcfbench.adapters.select import JOINT, named, told
from lcfbench.controls.assignment import senders_sha256
from lcfbench.controls.base import LACKS, load_control
from lcfbench.controls.wrappers import without_sharer
from lcfbench.errors import StopRunError, UserError
from lcfbench.evaluation.answer import answer, answer_texts
from lcfbench.evaluation.identity import BEHAVIOUR, chat_facts, key_of, plugins_of, prompt_facts, versions
from lcfbench.evaluation.own_files import used
from lcfbench.evaluation.parts import batch_of, row_places, together
from lcfbench.evaluation.record import Asked, Tally
from lcfbench.evaluation.rows import MESSAGE, Rows
from lcfbench.evaluation.session import Session
from lcfbench.evaluation.variants import Variant
from lcfbench.methods._lengths import too_long
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods.base import Batch, Method
from lcfbench.methods.create import method_class
from lcfbench.methods.load_pair import ROLES
from lcfbench.models.causal_lm import CausalLM, apart
from lcfbench.models.finite import NotFiniteError, first_place
from lcfbench.models.memory import device_named, peak_memory_bytes, reset_peak_memory
from lcfbench.models.protocol import State
from lcfbench.models.timing import PHASES, Clock
from lcfbench.results.messages import KeptMessage
from lcfbench.tasks.document import Document
from lcfbench.tasks.stock import StockTask
from lcfbench.tasks.task import Outcome, Task

# A document that fails costs its own row and no more. Errors of the writer are raised outside.
FAILURES = Exception
Row = dict[str, Any]
Answered = tuple[State, list[Outcome], list[int], Clock]


class Run:
    """Looks up all that a run needs; then `calibrate`, and `answer` its batches.

    documents: in the task's order. message_from: the document whose message each document gets, by
    hash. identity: everything that changes an answer. facts: for the manifest, beside the identity.
    draws: whether another seed would be another run. tally: counts since they were last taken. Raises
    UserError where it cannot be run. It writes nothing: `Record` does.
    """

    def __init__(self, session: Session, task: Task, variant: Variant, control: str) -> None:
        recipe = session.recipe
        self.session, self.task, self.control = session, task, control
        self.variant, self.mode = variant, variant.mode
        self.method = session.method(variant, task)
        self.models = session.models(variant)
        self.documents = session.documents(task, self.models[0].has_chat, control)
        self.calibration_documents = session.calibration_documents(self.mode, task, self.method)
        self.folders, self.adapters = variant.adapters, session.adapters(variant, task)
        self.by_hash = session.by_hash(self.documents)
        self.message_from: Mapping[str, Document] = load_control(control).message_from(
            self.documents, task.seed
        )
        if all(self.message_from[d.hash] is d for d in self.documents):
            self.message_from = self.by_hash
        self.draws = (
            bool(self.calibration_documents)
            or load_control(control).seeded
            or self.method.seeded
            or task.drawn(recipe.limit)
        )
        seed = [f"seed {task.seed}"] if recipe.seeds else []
        self.title = " · ".join(
            [task.name, variant.label, *([control] if control != "matched" else []), *seed]
        )
        self.too_long = self._too_long()
        self.identity, self.facts = self._identity(), self._facts()
        for folder in self.folders if self.method.sends else ():
            session.check_proof(folder, self.identity)
        self.timed = {d.hash for d in self.documents[: recipe.latency_documents]}
        self.unable = ""  # why no document can be answered
        self._stored: Mapping[str, Sequence[bytes]] | None = None  # messages of an earlier run, in a replay
        self._written: dict[tuple[str, ...], tuple[Answered, float, int]] = {}
        self.tally = Tally()

    @property
    def asked(self) -> Asked:
        """What the run asks, for the process that records it."""
        documents = tuple(d.hash for d in self.documents)
        sums = isinstance(self.task, StockTask)
        return Asked(self.title, self.identity, self.facts, documents, self.too_long, sums)

    @property
    def key(self) -> str:
        """Names the run on every kind of device."""
        return key_of(self.identity, self.session.recipe.dtype, self.session.recipe.attention)

    def _too_long(self) -> dict[str, str]:
        """Why documents have no room in a model, by hash. Raises UserError where none has."""
        read = load_control(self.control).reading(self.method)
        found = too_long(read, self.documents, self.message_from)
        if len(found) == len(self.documents):
            count = f"all {len(found):,} documents are" if len(found) > 1 else "the document is"
            first = next(iter(found.values()))
            raise UserError(f"{self.title}: {count} longer than a model reads. The first: {first}")
        return found

    def _identity(self) -> dict[str, Any]:
        """Everything that changes an answer."""
        session, recipe, task, folders = self.session, self.session.recipe, self.task, self.folders
        receiver, sharer = session.labels()
        data, split_manifest = session.digests(task)
        found: dict[str, Any] = {
            "pair": f"{receiver}:{sharer}",
            "receiver": receiver,
            "sharer": sharer,
            "revisions": [lm.revision for lm in self.models],
            "mode": self.mode,
            "options": self.method.options(),
            "adapter_sha256": JOINT.join(map(weights_sha256, folders)) or None,
            "adapter_config": JOINT.join(map(config_sha256, folders)) or None,
            "task": task.name,
            "task_options": task.options,
            "task_sha256": task.yaml_sha256,
            "data_sha256": data,
            "split_manifest_sha256": split_manifest,
            "prompts_sha256": session.prompts_sha256(self.documents, self.models),
            "scoring": self.documents[0].scoring,
            "control": self.control,
            "seed": task.seed,
            "limit": recipe.limit,
            "dtype": both(str(lm.dtype).removeprefix("torch.") for lm in self.models),
            "device": both("+".join(dict.fromkeys(d.type for d in lm.devices)) for lm in self.models),
            "attention": both(lm.attention for lm in self.models),
            "batch_size": recipe.batch_size,
            "versions": versions(task.libraries),
            "behaviour": BEHAVIOUR,
        }
        if task.shots:
            found["shots"] = task.shots
        if (examples := task.examples_sha256) is not None:
            found["examples_sha256"] = examples
        if task.prompt is not None:
            found["prompt_sha256"] = task.prompt.sha256
        if self.variant.wire is not None:
            found["wire"] = self.variant.wire
        if self.variant.join is not None:
            found["join"] = self.variant.join
        if recipe.trust_remote_code:
            found["trust_remote_code"] = True
        if any(quantised := [lm.facts.get("quantisation", "") for lm in self.models]):
            found["quantisation"] = quantised
        found |= chat_facts(self.documents, self.models)
        if plugins := plugins_of(self._names()):
            found["plugins"] = plugins
        if seen := self.calibration_documents:
            found["calibration_sha256"] = hashlib.sha256("".join(d.hash for d in seen).encode()).hexdigest()
        return found

    def _names(self) -> list[tuple[str, str]]:
        """The groups and names of what may come from a plugin."""
        kinds = dict.fromkeys(("adapters", adapter.config.kind) for adapter in self.adapters)
        return [("methods", self.mode), ("tasks", self.task.name), ("controls", self.control), *kinds]

    def _facts(self) -> dict[str, Any]:
        """The manifest beside the identity."""
        chances = [len(s[-1].gold) / len(s[-1].choices) for d in self.documents if (s := d.steps)]
        alone = self.adapters[0] if len(self.adapters) == 1 else None
        gates = alone.gates_applied() if alone is not None else None
        roles = [*ROLES, *(f"sharer {k}" for k in range(2, len(self.models)))]
        moved = any(sender.hash != to for to, sender in self.message_from.items())
        return {
            "recipe": self.session.recipe.model_dump(mode="json"),
            "environment": self.session.environment,
            "dropped": self.task.dropped,
            **({"prompt": self.task.prompt.text} if self.task.prompt is not None else {}),
            "chance": sum(chances) / len(chances) if chances else None,
            "adapter": told(self.folders) or None,
            **({"adapter_folder": JOINT.join(map(named, self.folders))} if self.folders else {}),
            **({"files": files} if (files := used(self._names())) else {}),
            **({"adapter_facts": alone.config.facts} if alone is not None else {}),
            **({"adapters": self._each_adapter()} if len(self.adapters) > 1 else {}),
            "sources": {role: lm.source for role, lm in zip(roles, self.models, strict=True)},
            "models": {role: about(lm) for role, lm in zip(roles, self.models, strict=True)},
            **({"message_from_sha256": senders_sha256(self.message_from)} if moved else {}),
            **({"controls_left_out": left_out} if (left_out := self._controls_left_out()) else {}),
            **({"gates": gates} if gates is not None else {}),
            **prompt_facts(self.documents, (self.models[0], self.models[1])),
        }

    def _each_adapter(self) -> list[dict[str, Any]]:
        """What the adapter of each sharer is, for the manifest."""
        return [
            {
                "name": folder.name,
                "sharer": lm.name,
                "sha256": weights_sha256(folder),
                "facts": adapter.config.facts,
            }
            for folder, lm, adapter in zip(self.folders, self.models[1:], self.adapters, strict=True)
        ]

    def _controls_left_out(self) -> dict[str, str]:
        """Why further controls that are asked for cannot be run; of a matched run that sends something."""
        found: dict[str, str] = {}
        if self.control != "matched" or not self.method.sends:
            return found
        for name in self.session.recipe.control:
            control = load_control(name)
            if lack := control.lacks(method_class(self.mode)):
                found[name] = f"{self.mode} {LACKS[lack]}"
            elif why := control.refuses(self.method, self.documents):
                found[name] = why[0]
        return found

    # -- answering --------------------------------------------------------------------------------

    def calibrate(self) -> dict[str, Any]:
        """Settles the method on validation documents where it needs any, then puts it under its control.

        Returns facts for the manifest. Where numbers that are not finite forbid that, every document will
        fail.
        """
        facts: dict[str, Any] = {}
        if self.calibration_documents:
            try:
                with device_named():
                    facts["calibration"] = self.session.calibrate(self.method, self.calibration_documents)
            except NotFiniteError as error:
                self.unable = f"cannot be calibrated: {error}"
        self.answering: Method = load_control(self.control).wrap(self.method, self.task.seed)
        params = sum(adapter.params for adapter in self.adapters)
        size = sum((folder / WEIGHTS).stat().st_size for folder in self.folders)
        self.rows = Rows(self.task, self.answering, params, size)
        return facts | {"sends": self.answering.sends}

    def replay(self, stored: Mapping[str, Sequence[bytes]], settled: Mapping[str, Any] | None) -> None:
        """Puts the method in place to answer from messages that crossed before; the sharer is never run.

        stored: the messages of the documents that will be asked, by hash. settled: what its calibration
        returned; None where that does not settle it: it is calibrated again, with both models.
        """
        if self.calibration_documents and settled is not None:
            self.method.recall(settled)
        elif self.calibration_documents:
            with torch.inference_mode():
                self.session.calibrate(self.method, self.calibration_documents)
        wrapped = load_control(self.control).wrap(self.method, self.task.seed)
        self.answering = without_sharer(wrapped)
        self.rows = Rows(self.task, self.answering)
        self._stored, self.timed = stored, set()

    def warm_up(self) -> None:
        """Answers a document and forgets it: no batch and no timing pays for what happens once."""
        try:
            self._respond([next(d for d in self.documents if d.hash not in self.too_long)])
        except StopRunError:
            raise
        except FAILURES:  # its error row is written when its turn comes
            pass

    def summary(self, recorded: Sequence[Row | None]) -> dict[str, Any]:
        """What all scores give together, for the manifest: lm-eval's aggregates of its own tasks.

        recorded: the scores of every document, None for one that failed.
        """
        rows = [row for row in recorded if row is not None]
        if isinstance(self.task, StockTask) and rows and len(rows) == len(recorded):
            return {"lm_eval": self.task.summary(rows)}  # lm-eval knows no document that failed
        return {}

    def take_tally(self) -> Tally:
        """Returns the counts since they were last taken."""
        taken, self.tally = self.tally, Tally()
        return taken

    def write_ahead(self, every: Sequence[Sequence[Document]]) -> None:
        """Writes the answers to several batches side by side; `answer` then takes them.

        Where that fails, `answer` does it batch by batch and finds out why.
        """
        began, device = time.perf_counter(), self.answering.receiver.device
        asked = [[d for d in documents if d.hash not in self.too_long] for documents in every]
        asked = [documents for documents in asked if documents]
        self._written.clear()
        if self.unable or len(asked) < 2:
            return
        reset_peak_memory(device)
        readings = {lm.shared for lm in (self.answering.receiver, *self.answering.sharers)}
        for each in readings:
            each.start_accounting()
        try:
            with device_named():
                batches = [self._batch(documents, Clock(device)) for documents in asked]
                states = [self.answering.respond(batch) for batch in batches]
                if any(p.closing is not None for state in states for p in state.prompts):
                    return  # thoughts are written batch by batch
                answers = answer_texts(list(zip(states, batches, strict=True)))
        except StopRunError:
            raise
        except FAILURES:  # the batch in which it happens fails again, and says so
            self.tally.seconds += time.perf_counter() - began
            for each in readings:
                each.release()
            return
        spent = time.perf_counter() - began + sum(each.saved_seconds for each in readings)
        seconds, peak = spent / len(asked), peak_memory_bytes(device)
        for documents, state, batch, (outcomes, tokens) in zip(asked, states, batches, answers, strict=True):
            found = state, *together(documents, outcomes, tokens), batch.clock
            self._written[tuple(d.hash for d in documents)] = found, seconds, peak

    def answer(self, documents: Sequence[Document], todo: Collection[str]) -> Iterator[Row]:
        """Answers a batch and yields the rows of `todo` (hashes); where it fails, each is tried alone.

        The whole batch runs again after a kill in its middle, so that the rest of its rows come out as
        they would have.
        """
        if not any(d.hash in todo for d in documents):
            return
        for document in documents:
            if (reason := self.too_long.get(document.hash)) and document.hash in todo:
                self.tally.failures.append(reason)
                yield self._whole(document, {"error": reason, "score": 0.0})
        if not (documents := [d for d in documents if d.hash not in self.too_long]):
            return
        readings = {lm.shared for lm in (self.answering.receiver, *self.answering.sharers)}
        for each in readings:
            each.start_accounting()
        began, device = time.perf_counter(), self.answering.receiver.device
        reset_peak_memory(device)
        written, ahead, peak = self._written.pop(tuple(d.hash for d in documents), (None, 0.0, 0))
        began -= ahead
        try:
            state, outcomes, tokens, _ = written or self._respond(documents)
            places = row_places(documents)
            rows = [
                self.rows.row(d, state, outcomes[i], tokens[i], places[i]) for i, d in enumerate(documents)
            ]
            for row, d, outcome in zip(rows, documents, outcomes, strict=True):
                row |= self.rows.conflict(d, outcome)
            if self.session.recipe.keep_messages:
                for row, d, at in zip(rows, documents, places, strict=True):
                    row[MESSAGE] = self._kept(d, state, at)
            self.tally.ties += sum(
                d.hash in todo and tied(o) for d, o in zip(documents, outcomes, strict=True)
            )
        except StopRunError:
            raise
        except FAILURES as error:
            reason = reason_of(error)
            if len(documents) > 1:
                self.tally.seconds += time.perf_counter() - began
                freed = sum(
                    each.release() for each in readings
                )  # caches that other runs of this batch would share
                if isinstance(error, (torch.OutOfMemoryError, MemoryError)) and freed:
                    yield from self.answer(documents, todo)
                    return
                self.tally.retried.append(reason)
                for document in documents:
                    yield from self.answer([document], todo)
                return
            if isinstance(error, NotFiniteError) and not self.unable:
                reason = self._traced(documents[0], error)
            self.tally.failures.append(reason)
            rows = [{"error": reason, "score": 0.0}]
        seconds = time.perf_counter() - began + sum(each.saved_seconds for each in readings)
        self.tally.seconds += seconds
        measured = {
            "amortized_ms": seconds * 1e3 / len(documents),
            "batch_size": len(documents),
            "peak_memory_bytes": max(peak, peak_memory_bytes(device)),
        }
        new = [(d, row | measured) for d, row in zip(documents, rows, strict=True) if d.hash in todo]
        for document, row in sorted(new, key=lambda pair: pair[0].hash in self.timed):  # the untimed first
            timed = self.latency(document) if document.hash in self.timed else {}
            yield self._whole(document, row | timed)

    def _kept(self, document: Document, state: State, at: range) -> KeptMessage | None:
        found = self.rows.kept(document, self.message_from[document.hash], state, at)
        if found is None:
            return None
        own = {name: self.identity[name] for name in ("mode", "task", "control", "seed", "wire")}
        if isinstance(self.answering, SeveralSharers) and found.sharers > 1:
            senders = self.answering.senders(document, self.message_from[document.hash])
            own["each_message_from"] = [d.hash for d in senders]
        return replace(found, about={**own, **found.about})

    def _batch(self, documents: Sequence[Document], clock: Clock) -> Batch:
        senders, stored = [self.message_from[d.hash] for d in documents], None
        if self._stored is not None:
            count = len(self.answering.methods) if isinstance(self.answering, SeveralSharers) else 1
            stored = crossed([self._stored[d.hash] for d in documents], count)
        return batch_of(documents, senders, clock, self.variant.wire, stored)

    def _respond(self, documents: Sequence[Document]) -> Answered:
        if self.unable:
            raise NotFiniteError(self.unable)
        clock = Clock(self.answering.receiver.device)
        batch = self._batch(documents, clock)
        with device_named():
            state = self.answering.respond(batch)
            outcomes, tokens = together(documents, *answer(state, batch))
        return state, outcomes, tokens, clock

    def _traced(self, document: Document, error: NotFiniteError) -> str:
        """The reason why a document has no answer, with the first place that is not finite."""
        roles = [role for role in ("sharer", "receiver") if role in self.answering.roles]
        models = {f"the {role}": getattr(self.answering, role) for role in roles}
        with apart(models.values()), first_place(models):
            try:
                self._respond([document])
            except NotFiniteError as first:
                if first.what != error.what:
                    return reason_of(UserError(f"{error.what} First, {first.what}", error.next_step))
        return reason_of(error)

    def latency(self, document: Document) -> dict[str, float]:
        """Warm timings of one document alone, in ms; nothing that it needs is at hand already.

        Empty where the document fails.
        """
        with apart((self.answering.receiver, *self.answering.sharers)):
            try:
                clock = self._respond([document])[3]
            except StopRunError:
                raise
            except FAILURES as error:
                self.tally.untimed.append(reason_of(error))
                return {}
            total = clock.total_ms()
        return {f"{p}_ms": clock.ms[p] for p in PHASES} | {"ttft_ms": clock.ttft_ms or 0.0, "ttea_ms": total}

    def _whole(self, document: Document, row: Row) -> Row:
        """A row with the columns that the document decides."""
        sender = self.message_from[document.hash]
        fixed = {
            "doc_id": document.doc_id,
            "doc_hash": document.hash,
            "doc_index": self.by_hash.places[document.hash],
            "subject": document.subject,
            "gold": document.gold,
            "metric": self.task.metric(document.scoring),
            "message_from": sender.hash if self.answering.sends else None,
        }
        if isinstance(self.answering, SeveralSharers):
            fixed["each_message_from"] = [d.hash for d in self.answering.senders(document, sender)]
        return fixed | row


def crossed(packets: Sequence[Sequence[bytes]], sharers: int) -> dict[int, bytes]:
    """Returns what crossed by the rows of a batch: all rows of the first sharer, then those of the second.

    packets: of each document, those of the first sharer before those of the second.
    """
    sizes = [len(each) // sharers for each in packets]
    every = (
        data
        for k in range(sharers)
        for each, size in zip(packets, sizes, strict=True)
        for data in each[k * size : (k + 1) * size]
    )
    return dict(enumerate(every))


def reason_of(error: Exception) -> str:
    """The reason of a failure as a row holds it: one line, with the exception's name where it is a bug."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def tied(outcome: Outcome) -> bool:
    """Says whether in some step two choices share the highest log-likelihood."""
    rows = ([ll for ll, _ in step] for step in outcome.loglikelihoods)
    return any(row.count(max(row)) > 1 for row in rows)


def both(facts: Iterable[str]) -> str:
    """A fact of both models: once where it is the same, else that of the receiver first, with a colon."""
    return ":".join(dict.fromkeys(facts))


def about(lm: CausalLM) -> dict[str, Any]:
    """How a model was loaded, for the manifest."""
    number = str(lm.dtype).removeprefix("torch.")
    made = {"devices": [str(d) for d in lm.devices], "dtype": number, "attention": lm.attention}
    return made | dict(lm.facts)

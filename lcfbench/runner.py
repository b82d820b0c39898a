"""The loop: documents → batches → `Method.respond` → outcomes → one flushed row a document.

A run is one (method, task, control). Several share one load of the models. What is recorded stays: a killed run goes on where it was.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32)): ...
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from lcfbench import __version__
from lcfbench.adapters.base import Adapter, weights_sha256
from lcfbench.adapters.base import load as load_adapter
from lcfbench.assets import find_model, split_pair
from lcfbench.catalogue import method_names
from lcfbench.controls import check_control, sender_of
from lcfbench.document import Document
from lcfbench.endpoint import Endpoint, State
from lcfbench.errors import UserError, unknown
from lcfbench.harness import Outcome, Task, load_task, task_names
from lcfbench.methods.base import Batch, Method, create, method_class, option_fields, prompt
from lcfbench.provenance import environment
from lcfbench.recipe import Recipe
from lcfbench.scoring import answer
from lcfbench.shipped import pick_adapter
from lcfbench.store import RunWriter
from lcfbench.timing import PHASES, Clock


class Progress(Protocol):
    """What the loop tells whoever watches."""

    def say(self, text: str) -> None: ...

    def begin(self, title: str, total: int, done: int) -> None: ...

    def update(self, right: float, documents: int, ms: float) -> None: ...

    def end(self) -> None: ...


@dataclass
class Pair:
    """The two endpoints of a run, loaded when first asked for; one object where both sides name the same model."""

    recipe: Recipe
    _loaded: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, str]:
        return split_pair(self.recipe.pair)

    def endpoint(self, name: str) -> Endpoint:
        if name not in self._loaded:
            r = self.recipe
            found = find_model(name, offline=r.offline)
            self._loaded[name] = Endpoint.load(found, dtype=r.dtype, device=r.device, attention=r.attention)
        return self._loaded[name]


def check_names(recipe: Recipe) -> None:
    """Every name is checked before anything heavy is loaded. Raises UserError."""
    split_pair(recipe.pair)
    for name in recipe.mode:
        method_class(name)
    for name in recipe.task:
        if name not in task_names():
            raise unknown("task", name, task_names(), "lcfbench ls tasks")
    for control in recipe.control:
        check_control(control)
    if not (recipe.mode and recipe.task and recipe.control):
        raise UserError("nothing to run.", f"Give --mode ({', '.join(method_names())}), --task and --control.")
    known = {f.name for name in recipe.mode for f in option_fields(method_class(name))}
    for key in recipe.options:
        if key not in known:
            raise unknown(f"option of {', '.join(recipe.mode)}", key, known, "lcfbench ls methods")


def run(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """Runs everything the recipe asks for; yields each run's id when it is complete. KeyboardInterrupt passes after rows are sealed."""
    check_names(recipe)
    pair = Pair(recipe)
    tasks = {name: load_task(name, seed=recipe.seed, offline=recipe.offline, options=recipe.task_options) for name in recipe.task}
    for task in tasks.values():
        for mode in recipe.mode:
            kind = method_class(mode)
            for control in recipe.control:
                if control != "matched" and not kind.sends:
                    progress.say(f"{mode} sends no message: control {control} is skipped for it.")
                    continue
                yield from _one(recipe, pair, task, mode, control, progress)


def _one(recipe: Recipe, pair: Pair, task: Task, mode: str, control: str, progress: Progress) -> Iterator[str]:
    """One method on one task under one control."""
    kind = method_class(mode)
    receiver, sharer = _endpoints(pair, kind)
    documents = task.documents(scoring=recipe.scoring, limit=recipe.limit, receiver_chat=receiver.has_chat)
    if not documents:
        raise UserError(f"task {task.name} has no documents left.", "Check its data with `lcfbench doctor`.")
    folder = pick_adapter(recipe.adapter, kind.adapter_kinds, pair.names, shared=documents[0].shared, mode=mode, task=task.name)
    adapter: Adapter | None = None
    if folder is not None:
        adapter = load_adapter(folder, receiver.device, receiver.dtype)
        adapter.config.check_fits(receiver.geometry, sharer.geometry, str(folder))
        if folder not in recipe.adapter:
            progress.say(f"{mode} on {task.name} uses the shipped adapter {folder.name} ({adapter.params / 1e6:.1f} M parameters).")
    fields = {f.name for f in option_fields(kind)}
    method = create(mode, receiver, sharer, adapter, {k: v for k, v in recipe.options.items() if k in fields})
    for document in documents:
        method.check(document)
    identity = _identity(recipe, pair.names, (receiver, sharer), task, documents[0].scoring, method, mode, control, folder)
    chance = [len(s.gold) / len(s.choices) for d in documents for s in d.steps[-1:]]
    manifest = {
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment(),
        "documents_planned": len(documents),
        "dropped": task.dropped,
        "chance": sum(chance) / len(chance) if chance else None,
        "adapter": str(folder.name) if folder else None,
        "sources": {"receiver": receiver.source, "sharer": sharer.source},
    }
    writer = RunWriter.open(recipe.out, identity, manifest, fresh=recipe.fresh)
    if writer.complete:
        progress.say(f"{writer.run_id}: complete already, nothing to do (--fresh runs it again).")
        yield writer.run_id
        return
    loop = _Loop(
        recipe,
        task,
        method,
        writer,
        sender_of(documents, control, recipe.seed),
        {d.hash: i for i, d in enumerate(documents)},
        folder,
    )
    todo = [d for d in documents if d.hash not in writer.done]
    progress.begin(f"{task.name} · {mode}" + ("" if control == "matched" else f" · {control}"), len(documents), len(documents) - len(todo))
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            loop.measure_latency([d for d in documents[: recipe.latency_documents] if d.hash not in writer.done])
            for batch in batches(todo, recipe.batch_size):
                loop.batch(batch, progress)
    except BaseException:
        writer.interrupt()  # the rows so far, sealed; the same command goes on from here
        raise
    finally:
        progress.end()
    seconds = time.perf_counter() - began
    writer.finish({"documents_per_second": len(todo) / seconds if todo else None, "seconds": seconds})
    yield writer.run_id


def _endpoints(pair: Pair, kind: type[Method]) -> tuple[Endpoint, Endpoint]:
    """Both ends; a model the method does not use is not loaded, the other one stands in its place and is never called."""
    first, second = pair.names
    if kind.uses == ("receiver",):
        return pair.endpoint(first), pair.endpoint(first)
    if kind.uses == ("sharer",):
        return pair.endpoint(second), pair.endpoint(second)
    return pair.endpoint(first), pair.endpoint(second)


def _identity(
    recipe: Recipe,
    names: tuple[str, str],
    ends: tuple[Endpoint, Endpoint],
    task: Task,
    scoring: str,
    method: Method,
    mode: str,
    control: str,
    folder: Path | None,
) -> dict[str, Any]:
    """Everything that changes the answer, and nothing else: the run's name is its digest."""
    return {
        "pair": ":".join(names),
        "receiver": names[0],
        "sharer": names[1],
        "revisions": [e.revision for e in ends],
        "mode": mode,
        "options": method.options(),
        "adapter_sha256": weights_sha256(folder) if folder else None,
        "adapter_config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest() if folder else None,
        "task": task.name,
        "task_options": recipe.task_options,
        "task_sha256": task.yaml_sha256,
        "data_sha256": task.data_sha256,
        "split_manifest_sha256": task.split_manifest_sha256,
        "scoring": scoring,
        "control": control,
        "seed": recipe.seed,
        "limit": recipe.limit,
        "dtype": str(ends[0].dtype).removeprefix("torch."),
        "device": ends[0].device.type,
        "attention": recipe.attention,
        "batch_size": recipe.batch_size,
        "version": __version__,
    }


def batches(documents: Sequence[Document], size: int) -> list[list[Document]]:
    """Documents of near length together, longest first: memory peaks at once, padding is small, and the order is the same every time."""
    order = sorted(documents, key=lambda d: (-len(d.receiver.user) - len(d.sharer.user), d.hash))
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for d in order:  # what is scored differently cannot share a forward
        groups.setdefault((len(d.steps), d.until, d.max_new_tokens), []).append(d)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


@dataclass
class _Loop:
    """One run's batches and rows."""

    recipe: Recipe
    task: Task
    method: Method
    writer: RunWriter
    senders: dict[str, Document]
    index: dict[str, int]
    folder: Path | None
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    right: float = 0.0
    count: int = 0

    def _respond(self, documents: Sequence[Document]) -> tuple[State, list[Outcome], list[int], Clock]:
        clock = Clock(self.method.receiver.device)
        batch = Batch(documents, [self.senders[d.hash] for d in documents], clock)
        state = self.method.respond(batch)
        outcomes, tokens = answer(state, batch)
        return state, outcomes, tokens, clock

    def measure_latency(self, documents: Sequence[Document]) -> None:
        """Batch-1, warm timings of a few documents, apart from the batched pass: the two are never mixed."""
        for number, document in enumerate([*documents[:1], *documents]):
            try:
                clock = self._respond([document])[3]
            except (UserError, RuntimeError):
                continue  # its error row is written by the batched pass
            if number:  # the first was the warm-up
                self.latency[document.hash] = {f"{p}_ms": clock.ms[p] for p in PHASES} | {
                    "ttft_ms": clock.ttft_ms or 0.0,
                    "ttea_ms": clock.total_ms(),
                }

    def batch(self, documents: list[Document], progress: Progress) -> None:
        """Answers a batch; where it fails, its documents are tried alone, and those that fail become error rows."""
        began = time.perf_counter()
        try:
            state, outcomes, tokens, _ = self._respond(documents)
        except (UserError, RuntimeError, ValueError, KeyError, IndexError) as error:
            if len(documents) > 1:
                for document in documents:
                    self.batch([document], progress)
                return
            self._write(
                documents[0],
                {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "score": 0.0, "batch_size": 1},
            )
            progress.update(self.right, self.count, 0.0)
            return
        ms = (time.perf_counter() - began) * 1e3 / len(documents)
        for i, document in enumerate(documents):
            self._write(
                document,
                self._row(document, state, outcomes[i], tokens[i], i) | {"amortized_ms": ms, "batch_size": len(documents)},
            )
        progress.update(self.right, self.count, ms)

    def _row(self, document: Document, state: State, outcome: Outcome, answer_tokens: int, i: int) -> dict[str, Any]:
        metrics = self.task.score(document, outcome)
        name, message, shown = self.task.metric(document.scoring), state.message, state.prompts[i]
        picked = [s.choices[p].strip() for s, p in zip(document.steps, outcome.picks, strict=False)]
        alone = self.method.sends is False
        flops = state.endpoint.flops(len(shown.ids) + answer_tokens)
        if not alone:
            flops += self.method.sharer.flops(message.sharer_tokens[i]) + (message.adapter_flops[i] if message.adapter_flops else 0.0)
        adapter = self.method.adapter
        return {
            "metric": name,
            "score": metrics[name],
            "metrics": metrics,
            "prediction": outcome.text if outcome.text is not None else " → ".join(picked),
            "choices_loglikelihood": [[ll for ll, _ in step] for step in outcome.loglikelihoods] or None,
            "message_text": message.texts[i] if message.texts else None,
            "receiver_prompt_sha256": _sha(shown.text + shown.tail),
            "sharer_prompt_sha256": None if alone else _sha(prompt(self.method.sharer, self.senders[document.hash].sharer, document).text),
            "message_bytes": message.wire_bytes[i],
            "message_cache_bytes": message.cache_bytes[i],
            "sharer_tokens": message.sharer_tokens[i],
            "receiver_tokens": len(shown.ids),
            "answer_tokens": answer_tokens,
            "flops": flops,
            "adapter_params": adapter.params if adapter is not None else 0,
            "adapter_bytes": (self.folder / "adapter.safetensors").stat().st_size if self.folder else 0,
            **self.latency.get(document.hash, {}),
        }

    def _write(self, document: Document, row: dict[str, Any]) -> None:
        self.right += float(row["score"])
        self.count += 1
        sender = self.senders[document.hash]
        self.writer.append(
            {
                "doc_id": document.doc_id,
                "doc_hash": document.hash,
                "doc_index": self.index[document.hash],
                "subject": document.subject,
                "gold": document.gold,
                "metric": self.task.metric(document.scoring),
                "message_from": sender.hash if self.method.sends else None,
                "peak_memory_bytes": peak_memory_bytes(self.method.receiver.device),
                **row,
            }
        )


def peak_memory_bytes(device: torch.device) -> int:
    """High-water mark: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

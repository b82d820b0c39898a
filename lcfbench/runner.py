"""The loop: documents → batches → `Method.respond` → outcomes → one flushed row a document.

A run is one (method, task, control). Several share one load of the models. What is recorded stays: a killed run goes on where it was.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32)): ...
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lcfbench import __version__
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import weights_sha256
from lcfbench.adapters.files import load as load_adapter
from lcfbench.assets import find_model, split_pair
from lcfbench.catalogue import method_names
from lcfbench.controls import check_control, sender_of
from lcfbench.endpoint import Endpoint
from lcfbench.errors import UserError, unknown
from lcfbench.harness import Task, load_task, task_names
from lcfbench.loop import Loop, Progress, batches
from lcfbench.methods.base import Method, create, method_class, option_fields
from lcfbench.provenance import environment
from lcfbench.recipe import Recipe
from lcfbench.shipped import pick_adapter
from lcfbench.store import RunWriter


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
    loop = Loop(
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

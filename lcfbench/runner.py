"""The loop: documents → batches → `Method.respond` → outcomes → one flushed row a document.

A run is one (method, task, control, seed). Several share one load of the models. What is recorded stays: a killed run goes on where it was.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32), progress): ...
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.files import load as load_adapter
from lcfbench.assets import find_model, split_pair
from lcfbench.controls import SEEDED, lacks, sender_of, under
from lcfbench.document import Document, Scoring
from lcfbench.endpoint import Endpoint
from lcfbench.errors import UserError, unknown
from lcfbench.harness import Task, load_task
from lcfbench.identity import identity, manifest, other_revisions
from lcfbench.loop import Loop, Progress, batches
from lcfbench.methods.base import Method, create, method_class, option_fields
from lcfbench.provenance import environment
from lcfbench.recipe import Recipe
from lcfbench.records import recorded
from lcfbench.shipped import pick_adapter
from lcfbench.store import RunWriter
from lcfbench.task_files import options_for


@dataclass
class Session:
    """What the runs of one recipe share: the two endpoints, each loaded when first asked for, the tasks and the digests of their data."""

    recipe: Recipe
    told: set[tuple[str, str]] = field(default_factory=set)  # (mode, task) whose adapter has been spoken of
    _loaded: dict[str, Endpoint] = field(default_factory=dict)
    _data: dict[tuple[str, int], tuple[str, str | None]] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, str]:
        return split_pair(self.recipe.pair)

    @cached_property
    def tasks(self) -> list[Task]:
        r = self.recipe
        given = options_for(r.task, r.task_options)
        return [load_task(name, seed=r.every_seed[0], offline=r.offline, options=given[name]) for name in r.task]

    @cached_property
    def environment(self) -> dict[str, Any]:
        device = next(iter(self._loaded.values())).device if self._loaded else torch.device("cpu")
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        return environment(str(device), torch.get_num_threads(), gpu)

    def endpoint(self, name: str) -> Endpoint:
        if name not in self._loaded:
            r = self.recipe
            found = find_model(name, offline=r.offline)
            self._loaded[name] = Endpoint.load(found, dtype=r.dtype, device=r.device, attention=r.attention)
        return self._loaded[name]

    def endpoints(self, kind: type[Method]) -> tuple[Endpoint, Endpoint]:
        """Both ends; a model the method does not use is not loaded, the other one stands in its place and is never called."""
        first, second = self.names
        if kind.uses == ("receiver",):
            return self.endpoint(first), self.endpoint(first)
        if kind.uses == ("sharer",):
            return self.endpoint(second), self.endpoint(second)
        return self.endpoint(first), self.endpoint(second)

    def digests(self, task: Task) -> tuple[str, str | None]:
        """Digests of a task's data and of its split manifest, computed once; what is generated is other data under another seed."""
        key = task.name, task.seed if task.generated else 0
        if key not in self._data:
            self._data[key] = task.data_sha256, task.split_manifest_sha256
        return self._data[key]

    def adapter(self, mode: str, task: Task) -> Path | None:
        kind, (first, second) = method_class(mode), self.names
        pair = (first, first if kind.uses == ("receiver",) else second)  # one model alone: adapters that name it on both sides
        return pick_adapter(self.recipe.adapter, kind.adapter_kinds, pair, shared=task.shared, mode=mode, task=task.name)


def run(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """Runs everything the recipe asks for; yields each run's id when it is complete. KeyboardInterrupt passes after rows are sealed.

    Raises UserError: names, options, data and adapters are all looked up before a model is loaded.
    """
    recipe.check_names()
    known = {f.name for name in recipe.mode for f in option_fields(method_class(name))}
    for key in recipe.options:
        if key not in known:
            raise unknown(f"option of {', '.join(recipe.mode)}", key, known, "lcfbench ls methods")
    session = Session(recipe)
    for task in session.tasks:
        task.metric(recipe.scoring)
        session.digests(task)
        for mode in recipe.mode:
            session.adapter(mode, task)
    plan = _plan(recipe, progress)
    seeds = recipe.every_seed
    for first in session.tasks:
        tasks, once = [first, *(first.reseeded(seed) for seed in seeds[1:])], []
        for mode, control in plan:
            for task in tasks:
                run_id, drew = _one(session, task, mode, control, progress)
                yield run_id
                if not (drew or control in SEEDED or method_class(mode).random or first.drawn(recipe.limit)):
                    once.append(mode if control == "matched" else f"{mode} ({control})")
                    break
        if once and len(seeds) > 1:
            progress.say(
                f"{first.name}: {', '.join(once)} draws nothing (every document is asked), so it is run once, with seed {seeds[0]}."
            )


def _plan(recipe: Recipe, progress: Progress) -> list[tuple[str, str]]:
    """Every method under every control that means something for it; what is left out is said. Raises UserError where nothing is left."""
    asked = [(mode, control, lacks(control, method_class(mode))) for mode in recipe.mode for control in recipe.control]
    plan, left = [(mode, control) for mode, control, what in asked if not what], []
    for what in ("message", "cache"):
        if without := [each for each in asked if each[2] == what]:
            modes, controls = (list(dict.fromkeys(names)) for names in list(zip(*without, strict=True))[:2])
            left.append((", ".join(modes), what, " or ".join(controls)))
    if not plan:
        reasons = "; ".join(f"{names} sends no {what} that {others} could change" for names, what, others in left)
        raise UserError(f"nothing to run: {reasons}.", "Add --control matched, or a method that sends one.")
    for names, what, others in left:
        progress.say(f"{names}: sends no {what}, so there is no {others} run of it.")
    return plan


def _one(session: Session, task: Task, mode: str, control: str, progress: Progress) -> tuple[str, bool]:
    """One method on one task, under its seed, and one control. Returns the run's id, and whether the method drew anything by the seed."""
    recipe, kind = session.recipe, method_class(mode)
    receiver, sharer = session.endpoints(kind)
    documents = task.documents(scoring=recipe.scoring, limit=recipe.limit, receiver_chat=receiver.has_chat)
    if not documents:
        raise UserError(f"task {task.name} has no documents left.", "Check its data with `lcfbench doctor`.")
    folder = session.adapter(mode, task)
    adapter: Adapter | None = None
    if folder is not None:
        adapter = load_adapter(folder, receiver.device, receiver.dtype)
        adapter.config.check_fits(receiver.geometry, sharer.geometry, str(folder))
        if (mode, task.name) not in session.told:
            session.told.add((mode, task.name))
            if folder not in recipe.adapter:
                progress.say(f"{mode} on {task.name} uses the shipped adapter {folder.name} ({adapter.params / 1e6:.1f} M parameters).")
            if other := other_revisions(adapter, receiver, sharer):
                progress.warn(f"adapter {folder.name} was trained on other weights: {other}. Expect it to do worse.")
    fields = {f.name for f in option_fields(kind)}
    method = create(mode, receiver, sharer, adapter, {k: v for k, v in recipe.options.items() if k in fields})
    for document in documents:
        method.check(document)
    senders = sender_of(documents, control, task.seed)
    scoring, ends = documents[0].scoring, (receiver, sharer)
    named = identity(recipe, session.names, ends, task, session.digests(task), scoring, method, mode, control, folder)
    if calibration := _calibration(task, method, mode, scoring, receiver.has_chat):
        named["calibration_sha256"] = hashlib.sha256("".join(d.hash for d in calibration).encode()).hexdigest()
    about = manifest(recipe, session.environment, task, documents, senders, ends, adapter, folder)
    writer = RunWriter.open(recipe.out, named, about, fresh=recipe.fresh)
    if writer.complete:
        progress.say(f"{writer.run_id}: complete already, nothing to do (--fresh runs it again).")
        return writer.run_id, bool(calibration)
    before = [row["score"] for row in recorded(writer.folder).values() if row.get("error") is None]
    loop = Loop(task, method, writer, senders, {d.hash: i for i, d in enumerate(documents)}, folder)
    loop.params, loop.right, loop.count = adapter.params if adapter is not None else 0, sum(before), len(before)
    todo = {d.hash for d in documents} - writer.done
    title = [task.name, mode, *([control] if control != "matched" else []), *([f"seed {task.seed}"] if recipe.seeds else [])]
    progress.begin(" · ".join(title), len(documents), len(before), loop.right)
    try:
        with torch.inference_mode():
            if calibration:
                writer.manifest["calibration"] = {"documents": len(calibration), **method.calibrate(calibration)}
            loop.method = under(control, method, task.seed)  # only now: calibration is that of the method as it is
            writer.manifest["sends"] = loop.method.sends
            loop.measure_latency(documents[0], [d for d in documents[: recipe.latency_documents] if d.hash in todo])
            progress.rolling()
            began = time.perf_counter()
            for batch in batches(documents, recipe.batch_size):
                if any(d.hash in todo for d in batch):
                    loop.batch(batch, todo, progress)
    except BaseException:
        writer.interrupt()  # the rows so far, sealed; the same command goes on from here
        raise
    finally:
        progress.end()
    seconds = time.perf_counter() - began
    if loop.failures:
        progress.warn(f"{len(loop.failures)} of {len(documents)} documents failed and count as wrong; the first: {loop.failures[0]}")
    writer.finish({"documents_per_second": len(todo) / seconds if todo else None, "seconds": seconds})
    return writer.run_id, bool(calibration)


def _calibration(task: Task, method: Method, mode: str, scoring: Scoring, receiver_chat: bool) -> list[Document]:
    """The validation documents a method wants to see before it responds, never test documents; mostly none."""
    if not method.calibration:
        return []
    try:
        return task.documents(scoring=scoring, limit=method.calibration, split="validation", receiver_chat=receiver_chat)
    except UserError as error:
        raise UserError(
            f"{mode} with these options is calibrated on validation documents, which {task.name} cannot give: {error.what}",
            "Choose options that need none (`lcfbench ls methods`), or a task with a validation split.",
        ) from error

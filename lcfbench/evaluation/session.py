"""What the runs of one recipe share: models, tasks, digests of their data, methods.

>>> session = Session(Recipe(mode=["lcf"])); session.lm("smollm2-135m")        # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.files import load as load_adapter
from lcfbench.adapters.select import pick_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation.identity import other_revisions
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import create, method_class, sides
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.dtypes import choose
from lcfbench.progress import Progress
from lcfbench.provenance import environment
from lcfbench.sources.models import find_model, split_pair
from lcfbench.tasks.document import Document, Scoring
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for


@dataclass
class Session:
    """What the runs of one recipe share: the two models, each loaded when first asked for, the tasks and the digests of their data."""

    recipe: Recipe
    told: set[tuple[str, str]] = field(default_factory=set)  # (mode, task) whose adapter has been spoken of
    _loaded: dict[str, CausalLM] = field(default_factory=dict)
    _data: dict[tuple[str, int], tuple[str, str | None]] = field(default_factory=dict)
    _methods: dict[tuple[str, str, int], Asked] = field(default_factory=dict)
    _documents: dict[tuple[str, bool, tuple[str, ...]], dict[str, Document]] = field(default_factory=dict)
    _adapters: dict[tuple[Path, torch.device, torch.dtype], Adapter] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, str]:
        return split_pair(self.recipe.pair)

    @cached_property
    def tasks(self) -> list[Task]:
        r = self.recipe
        given = options_for(r.task, r.task_options)
        return [
            load_task(name, seed=r.every_seed[0], offline=r.offline, options=given[name]) for name in r.task
        ]

    @cached_property
    def environment(self) -> dict[str, Any]:
        device = next(iter(self._loaded.values())).device if self._loaded else torch.device("cpu")
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        why = choose(device)[1] if self.recipe.dtype == "auto" else None
        return environment(str(device), torch.get_num_threads(), gpu, dtype=why)

    def lm(self, name: str) -> CausalLM:
        if name not in self._loaded:
            r = self.recipe
            found = find_model(name, offline=r.offline)
            self._loaded[name] = CausalLM.load(found, dtype=r.dtype, device=r.device, attention=r.attention)
        return self._loaded[name]

    def lms(self, kind: type[Method]) -> tuple[CausalLM, CausalLM]:
        """Both ends; a model the method does not use is not loaded, the other one stands in its place and is never called."""
        first, second = sides(kind, *self.names)
        return self.lm(first), self.lm(second)

    def digests(self, task: Task) -> tuple[str, str | None]:
        """Digests of a task's data and of its split manifest, computed once; what is generated is other data under another seed."""
        key = task.name, task.seed if task.generated else 0
        if key not in self._data:
            self._data[key] = task.data_sha256, task.split_manifest_sha256
        return self._data[key]

    def adapter(self, mode: str, task: Task) -> Path | None:
        kind = method_class(mode)
        return pick_adapter(
            self.recipe.adapter,
            kind.adapter_kinds,
            sides(kind, *self.names),
            shared=task.shared,
            mode=mode,
            task=task.name,
        )

    def method(self, mode: str, task: Task, progress: Progress) -> Asked:
        """A method on a task, made once for all controls. Says which adapter it uses, and warns where that knew other weights."""
        key = mode, task.name, task.seed
        if key not in self._methods:
            self._methods[key] = self._method(mode, task, progress)
        return self._methods[key]

    def _method(self, mode: str, task: Task, progress: Progress) -> Asked:
        recipe, kind = self.recipe, method_class(mode)
        receiver, sharer = self.lms(kind)
        folder = self.adapter(mode, task)
        adapter: Adapter | None = None
        if folder is not None:
            adapter = self.weights(folder, receiver)
            adapter.config.check_fits(receiver.geometry, sharer.geometry, str(folder))
            if (mode, task.name) not in self.told:
                self.told.add((mode, task.name))
                if folder not in recipe.adapter:
                    progress.say(
                        f"{mode} on {task.name} uses the shipped adapter {folder.name} ({adapter.params / 1e6:.1f} M parameters)."
                    )
                if other := other_revisions(adapter, receiver, sharer):
                    progress.warn(
                        f"adapter {folder.name} was trained on other weights: {other}. Expect it to do worse."
                    )
        fields = {f.name for f in option_fields(kind)}
        method = create(
            mode, receiver, sharer, adapter, {k: v for k, v in recipe.options.items() if k in fields}
        )
        documents = self.documents(task, receiver.has_chat)
        for document in documents:
            method.check(document)
        calibration = calibration_of(task, method, mode, documents[0].scoring, receiver.has_chat)
        return Asked(mode, task, method, (receiver, sharer), adapter, folder, documents, calibration)

    def documents(self, task: Task, receiver_chat: bool) -> list[Document]:
        """The documents that are asked, in this task's order; the very same objects for all methods and seeds that ask the same ones.

        Raises UserError where there are none.
        """
        documents = task.documents(
            scoring=self.recipe.scoring, limit=self.recipe.limit, receiver_chat=receiver_chat
        )
        if not documents:
            raise UserError(
                f"task {task.name} has no documents left.", "Check its data with `lcfbench doctor`."
            )
        key = task.name, receiver_chat, tuple(sorted(d.hash for d in documents))
        known = self._documents.setdefault(key, {d.hash: d for d in documents})
        return [known[d.hash] for d in documents]

    def release(self) -> None:
        """Lets go of a task's methods, adapters and documents; the models stay."""
        for kept in (self._methods, self._adapters, self._documents):
            kept.clear()  # type: ignore[attr-defined]

    def weights(self, folder: Path, receiver: CausalLM) -> Adapter:
        """An adapter, read once; methods never write to it."""
        key = folder, receiver.device, receiver.dtype
        if key not in self._adapters:
            self._adapters[key] = load_adapter(folder, receiver.device, receiver.dtype)
        return self._adapters[key]


@dataclass
class Asked:
    """A method on a task: what all its controls have in common.

    ends: receiver and sharer. adapter, folder: as loaded and where from. calibration: the validation documents it wants to see first.
    """

    mode: str
    task: Task
    method: Method
    ends: tuple[CausalLM, CausalLM]
    adapter: Adapter | None
    folder: Path | None
    documents: list[Document]
    calibration: list[Document]

    @cached_property
    def calibrated(self) -> dict[str, Any]:
        """Calibrates the method, once; what a manifest records of it."""
        return {"documents": len(self.calibration), **self.method.calibrate(self.calibration)}


def calibration_of(
    task: Task, method: Method, mode: str, scoring: Scoring, receiver_chat: bool
) -> list[Document]:
    """The validation documents a method wants to see before it responds, never test documents; mostly none."""
    if not method.calibration:
        return []
    try:
        return task.documents(
            scoring=scoring, limit=method.calibration, split="validation", receiver_chat=receiver_chat
        )
    except UserError as error:
        raise UserError(
            f"{mode} with these options is calibrated on validation documents, which {task.name} cannot give: {error.what}",
            "Choose options that need none (`lcfbench ls methods`), or a task with a validation split.",
        ) from error

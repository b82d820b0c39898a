"""Shares one load of the models, the data and the methods between the runs of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.select import check_used, find_adapter, pick_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation.identity import prompts_sha256
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import check_options, create, method_class, sides
from lcfbench.methods.load_pair import CONDITIONS, Pair, load_adapter, load_pair, other_revisions, roles_of
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.dtypes import choose, pick_device, pick_dtype
from lcfbench.progress import Progress
from lcfbench.provenance import environment
from lcfbench.sources.models import split_pair
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task, load_task
from lcfbench.tasks.yaml_files import options_for


def look_up(recipe: Recipe) -> list[Task]:
    """Checks names, options, numbers and the device of a recipe; returns its tasks.

    No model is loaded. Raises UserError.
    """
    recipe.check_names()
    check_options({name: method_class(name) for name in recipe.mode}, recipe.options)
    if recipe.dtype != "auto":
        pick_dtype(recipe.dtype, pick_device(recipe.device))
    pick_device(recipe.device)
    if recipe.out.exists() and not recipe.out.is_dir():
        raise UserError(f"--out {recipe.out}: Not a directory.", "Name a folder for the runs.")
    given, seed = options_for(recipe.task, recipe.task_options), recipe.every_seed[0]
    tasks = [load_task(n, seed=seed, offline=recipe.offline, options=given[n]) for n in recipe.task]
    for task in tasks:
        task.metric(recipe.scoring)
    return tasks


def adapters_for(recipe: Recipe, tasks: Sequence[Task]) -> dict[tuple[str, str], Path | None]:
    """The adapter folder of each method and task; None for a method without adapters.

    Raises UserError where one is missing, or where one that is given has no use.
    """
    given = [find_adapter(place) for place in recipe.adapter]
    found = {}
    for task in tasks:
        for mode in recipe.mode:
            kind = method_class(mode)
            found[mode, task.name] = pick_adapter(
                given,
                kind.adapter_kinds,
                sides(kind, *split_pair(recipe.pair)),
                shared=task.shared,
                mode=mode,
                task=task.name,
            )
    check_used(given, found.values(), recipe.mode)
    return found


class Session:
    """Opens what a recipe needs: names, data and adapters first, then the models.

    Raises UserError for anything that is not there.
    """

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        self.recipe, self.progress, self.names = recipe, progress, split_pair(recipe.pair)
        self._digests: dict[tuple[str, int], tuple[str, str | None]] = {}
        self._methods: dict[tuple[str, str, int], Method] = {}
        self._adapters: dict[tuple[Path, CausalLM], Adapter] = {}
        self._announced: set[tuple[str, str]] = set()  # (method, task) whose adapter was named
        self._seen: dict[int, list[Document]] = {}  # validation documents of each method that wants any
        self._asked: dict[tuple[str, int, bool], list[Document]] = {}
        self._documents: dict[tuple[Any, ...], dict[str, Document]] = {}
        self._prompts: dict[tuple[Any, ...], str] = {}
        self._calibrations: dict[int, dict[str, Any]] = {}
        self.tasks = look_up(recipe)
        self._folders = adapters_for(recipe, self.tasks)
        for task in self.tasks:  # the data are fetched and read only where the rest is right
            self.digests(task)
        self.pair: Pair = load_pair(
            recipe.pair, roles=roles_of(recipe.mode), **recipe.model_dump(include=CONDITIONS)
        )
        device = self.pair.receiver.device
        self.environment = environment(
            str(device),
            torch.get_num_threads(),
            torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            dtype=choose(device)[1] if recipe.dtype == "auto" else None,
        )

    def digests(self, task: Task) -> tuple[str, str | None]:
        """Digests of a task's data and of its split manifest. Generated data differ between seeds."""
        key = task.name, task.seed if task.generated else 0
        if key not in self._digests:
            self._digests[key] = task.data_sha256, task.split_manifest_sha256
        return self._digests[key]

    def adapter(self, mode: str, task: Task) -> tuple[Path, Adapter] | None:
        """The adapter that a method uses on a task, read once; None for a method without one.

        The first call for a method and task names a shipped adapter, and warns where the adapter was
        trained on other weights.
        """
        folder = self._folders[mode, task.name]
        if folder is None:
            return None
        receiver, sharer = self.pair.models_for(method_class(mode).roles)
        if (folder, receiver) not in self._adapters:
            self._adapters[folder, receiver] = load_adapter(folder, self.pair, mode)
        adapter, new = self._adapters[folder, receiver], (mode, task.name) not in self._announced
        if new:
            self._announced.add((mode, task.name))
            adapter.config.check_fits(receiver.geometry, sharer.geometry, str(folder))
        if new and not self.recipe.adapter:
            size = f"{adapter.params / 1e6:.1f} M parameters"
            self.progress.say(f"{mode} on {task.name} uses the shipped adapter {folder.name} ({size}).")
        if new and (other := other_revisions(adapter.config, receiver, sharer)):
            what = f"adapter {folder.name} was trained on other weights: {other}."
            self.progress.warn(f"{what} Expect it to do worse.")
        return folder, adapter

    def method(self, mode: str, task: Task) -> Method:
        """A method on a task, made once for all controls. Raises UserError where it cannot serve it."""
        key = mode, task.name, task.seed
        if key not in self._methods:
            kind, found = method_class(mode), self.adapter(mode, task)
            fields = {f.name for f in option_fields(kind)}
            options = {k: v for k, v in self.recipe.options.items() if k in fields}
            models = self.pair.models_for(kind.roles)
            made = create(mode, *models, found[1] if found else None, options)
            for document in self.documents(task, models[0].has_chat):
                made.check(document)
            self._methods[key] = made
        return self._methods[key]

    def documents(self, task: Task, receiver_chat: bool) -> list[Document]:
        """The documents that are asked, in this task's order.

        All methods and seeds that ask the same documents get the very same objects. Raises UserError
        where there are none.
        """
        recipe, asked = self.recipe, (task.name, task.seed, receiver_chat)
        if asked not in self._asked:
            found = task.documents(scoring=recipe.scoring, limit=recipe.limit, receiver_chat=receiver_chat)
            if not found:
                what = f"task {task.name} has no documents left."
                raise UserError(what, "Check its data with `lcfbench doctor`.")
            same = task.name, receiver_chat, tuple(sorted(d.hash for d in found))
            known = self._documents.setdefault(same, {d.hash: d for d in found})
            self._asked[asked] = [known[d.hash] for d in found]
        return self._asked[asked]

    def prompts_sha256(self, documents: list[Document], models: tuple[CausalLM, CausalLM]) -> str:
        """Digest of all prompts, computed once for the methods that share models and documents."""
        key = *models, tuple(sorted(map(id, documents)))
        if key not in self._prompts:
            self._prompts[key] = prompts_sha256(sorted(documents, key=lambda d: d.hash), *models)
        return self._prompts[key]

    def calibration_documents(self, mode: str, task: Task, method: Method) -> list[Document]:
        """The validation documents that a method must see before it responds; mostly none.

        Raises UserError where the task has no validation split.
        """
        if not method.calibration or id(method) in self._seen:
            return self._seen.get(id(method), [])
        chat = method.receiver.has_chat
        try:
            self._seen[id(method)] = task.documents(
                scoring=self.recipe.scoring, limit=method.calibration, split="validation", receiver_chat=chat
            )
        except UserError as error:
            raise UserError(
                f"{mode} with these options is calibrated on validation documents, which {task.name} "
                f"cannot give: {error.what}",
                "Choose options that need none (`lcfbench ls methods`), or a task with a validation split.",
            ) from error
        return self._seen[id(method)]

    def calibrate(self, method: Method, documents: list[Document]) -> dict[str, Any]:
        """Calibrates a method, once for all controls. Returns the facts that a manifest records."""
        if id(method) not in self._calibrations:
            self._calibrations[id(method)] = {"documents": len(documents), **method.calibrate(documents)}
        return self._calibrations[id(method)]

    def release(self) -> None:
        """Forgets a task's methods, adapters and documents; the models stay."""
        for kept in (
            self._methods,
            self._adapters,
            self._asked,
            self._documents,
            self._prompts,
            self._calibrations,
            self._seen,
        ):
            kept.clear()

"""Shares one load of the models, the data and the methods between the runs of a recipe."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import WEIGHTS, read_config
from lcfbench.adapters.files import stored_dtype
from lcfbench.adapters.proof import COVERED, lacking
from lcfbench.controls.base import load_control
from lcfbench.errors import UserError
from lcfbench.evaluation.identity import prompts_sha256
from lcfbench.evaluation.plan import check_proven, look_up, proofs_of, variants_of
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.variants import Variant
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods.base import Method
from lcfbench.methods.create import create, method_class, sides
from lcfbench.methods.load_pair import (
    CONDITIONS,
    ROLES,
    Pair,
    load_adapter,
    load_pair,
    other_revisions,
    roles_of,
)
from lcfbench.methods.needs import check_needs
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.dtypes import choose
from lcfbench.models.layout import geometry_named
from lcfbench.models.memory import free_bytes
from lcfbench.models.tokenizers import load_tokenizer
from lcfbench.progress import Progress
from lcfbench.provenance import environment
from lcfbench.results.validation import documents_sha256
from lcfbench.sources.models import find_tokenizer, first_pair, labels, split_sharers
from lcfbench.tasks.chat_template import check_thinking
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import check_ranked
from lcfbench.tasks.task import Task

Variants = Mapping[str, Collection[Variant]]


class ByHash(Mapping[str, Document]):
    """Documents by their hashes. places: of each the place in their order, from 0."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = documents
        self.places = {document.hash: i for i, document in enumerate(documents)}

    def __getitem__(self, name: str) -> Document:
        return self._documents[self.places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Session:
    """Opens what a recipe needs: names, data and adapters first, then the models.

    variants: those to be run, by the names of their tasks; none: all. weights: the roles whose
    weights are loaded; with `Outline`s on both sides runs are planned and not made. Raises UserError
    for anything that is not there.
    """

    def __init__(
        self,
        recipe: Recipe,
        progress: Progress,
        variants: Variants | None = None,
        weights: Collection[str] = ROLES,
    ) -> None:
        self.recipe, self.progress, self.names = recipe, progress, first_pair(recipe.pair)
        self.sharers = split_sharers(recipe.pair)[1]
        self._digests: dict[tuple[str, int], tuple[str, str | None]] = {}
        self._methods: dict[tuple[Variant, str, int], Method] = {}
        self._adapters: dict[tuple[Path, CausalLM], Adapter] = {}
        # adapters that were named: method, task
        self._announced: set[tuple[tuple[Path, ...], str, str]] = set()
        self._seen: dict[int, list[Document]] = {}  # validation documents of each method that wants any
        self._asked: dict[tuple[str, int, bool], list[Document]] = {}
        self._documents: dict[tuple[str, bool, str], list[Document]] = {}
        self._otherwise: dict[tuple[str, tuple[int, ...]], list[Document]] = {}
        self._by_hash: dict[int, ByHash] = {}  # by id; `_asked` and `_otherwise` hold the lists
        self._prompts: dict[tuple[Any, ...], str] = {}
        self._calibrations: dict[int, dict[str, Any]] = {}
        self.tasks = look_up(recipe)
        self.variants = variants_of(recipe, self.tasks)
        if variants is not None:
            self.variants = {
                name: [each for each in every if each in variants.get(name, ())]
                for name, every in self.variants.items()
            }
            self.tasks = [task for task in self.tasks if self.variants[task.name]]
        self._proofs = proofs_of(recipe, self.tasks, self.variants)
        self._unproven: set[Path] = set()  # adapters that were said to have no proof
        for task in self.tasks:  # the data are fetched and read only where the rest is right
            self.digests(task)
        if recipe.thinking != "off":  # tokenizers alone: no model is loaded in vain
            roles = roles_of(self.modes)
            trusted, offline = recipe.trust_remote_code, recipe.offline
            check_thinking(
                [
                    load_tokenizer(find_tokenizer(name, offline=offline), trusted, recipe.thinking)
                    for role, names in zip(ROLES, (self.names[:1], self.sharers), strict=True)
                    for name in (names if role in roles else ())
                ],
                {task.name: task.chat for task in self.tasks},
            )
            if plain := [task.name for task in self.tasks if not task.chat]:
                progress.say(f"{', '.join(plain)}: no chat template is used, so no thought is written.")
        self._check_shapes()
        self.pair: Pair = load_pair(
            recipe.pair,
            roles=roles_of(self.modes),
            thinking=recipe.thinking,
            weights=weights,
            several=True,
            **recipe.model_dump(include=CONDITIONS),
        )
        self._check_variants()
        device = self.pair.receiver.device
        self.environment = environment(
            str(device),
            torch.get_num_threads(),
            torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            dtype=choose(device)[1] if recipe.dtype == "auto" else None,
        )

    @property
    def modes(self) -> list[str]:
        """The names of the methods that are run, each once."""
        return list(dict.fromkeys(each.mode for task in self.tasks for each in self.variants[task.name]))

    def digests(self, task: Task) -> tuple[str, str | None]:
        """Digests of a task's data and of its split manifest. Generated data differ between seeds."""
        key = task.name, task.seed if task.generated else 0
        if key not in self._digests:
            self._digests[key] = task.data_sha256, task.split_manifest_sha256
        return self._digests[key]

    def _check_shapes(self) -> None:
        """Raises UserError, before a model is loaded, for the first adapter of models of other shapes.

        A config may say other shapes than its model has: where it disagrees, the model's code decides. Code
        of the models' own folders is not asked.
        """
        offline = self.recipe.offline
        for variants in self.variants.values() if not self.recipe.trust_remote_code else ():
            for variant in variants:
                for folder, sharer in zip(variant.adapters, self.sharers, strict=False):
                    names = sides(method_class(variant.mode), self.names[0], sharer)
                    config = read_config(folder)
                    first, second = (geometry_named(name, offline=offline) for name in names)
                    try:
                        config.check_fits(first, second, str(folder))
                    except UserError:
                        known = {"offline": offline, "by_code": True}
                        first, second = (geometry_named(name, **known) for name in names)
                        config.check_fits(first, second, str(folder))

    def _check_variants(self) -> None:
        """Raises UserError for the first method or adapter that these models do not allow."""
        for variants in self.variants.values():
            for variant in variants:
                rivals = self.pair.rivals_for(method_class(variant.mode).roles)
                folders = variant.adapters or (None,)
                for k, (receiver, sharer) in enumerate(rivals):
                    config = None
                    if (folder := folders[k if len(folders) > 1 else 0]) is not None:
                        config = read_config(folder)
                        config.check_fits(receiver.geometry, sharer.geometry, str(folder))
                    check_needs(variant.mode, receiver, sharer, config)

    def portions(self, task: Task, share: int = 1) -> list[list[Variant]]:
        """The variants of a task in portions whose adapters fit into half of the free memory together.

        Mostly there is one. share: processes that share the memory. Raises UserError for an adapter that
        does not fit alone.
        """
        out: list[list[Variant]] = [[]]
        free, loaded = free_bytes(self.pair.receiver.device) // share, dict[Path, int]()
        for variant in self.variants[task.name]:
            itemsize, new = self.pair.receiver.dtype.itemsize, dict[Path, int]()
            for folder in dict.fromkeys(variant.adapters):
                if folder not in loaded:
                    new[folder] = (
                        (folder / WEIGHTS).stat().st_size * itemsize // stored_dtype(folder).itemsize
                    )
            if (size := sum(new.values())) > free:
                names = ", ".join(map(str, new))
                what = f"adapter {names} takes {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
                raise UserError(f"{what}.", "Free some memory, or prune the adapter.")
            if new and loaded and sum(loaded.values()) + size > free // 2:
                out.append([])
                loaded.clear()
            loaded |= new
            out[-1].append(variant)
        if len(out) > 1:
            what = f"{task.name}: not all adapters fit into memory ({free / 1e9:.1f} GB are free)"
            self.progress.say(f"{what}, so the runs are made in {len(out)} portions.")
        return out

    def adapters(self, variant: Variant, task: Task) -> list[Adapter]:
        """The adapters of a variant, read once: one for all sharers, or one for each; none without any.

        The first call for a method, its adapters and a task names those that were not given, and warns where
        one was trained on other weights.
        """
        mode, found = variant.mode, list[Adapter]()
        rivals = self.pair.rivals_for(method_class(mode).roles)
        for k, folder in enumerate(variant.adapters):
            receiver = rivals[k][0]
            if (folder, receiver) not in self._adapters:
                self._adapters[folder, receiver] = load_adapter(folder, self.pair.alone(k), mode)
            found.append(self._adapters[folder, receiver])
        if not found or (variant.adapters, mode, task.name) in self._announced:
            return found
        self._announced.add((variant.adapters, mode, task.name))
        if variant.why:
            size = f"{sum(adapter.params for adapter in found) / 1e6:.1f} M parameters"
            self.progress.say(f"{mode} on {task.name} uses {variant.why}: {size}.")
        for folder, adapter, ends in zip(variant.adapters, found, rivals, strict=False):
            if other := other_revisions(adapter.config, *ends):
                what = f"adapter {folder.name} was trained on other weights: {other}."
                self.progress.warn(f"{what} Expect it to do worse.")
        return found

    def check_proof(self, folder: Path, identity: dict[str, Any]) -> None:
        """Says once that an adapter has no proof for a run; under --require-proof raises UserError.

        No proof at all is a warning.
        """
        proofs, asked = self._proofs[folder], {name: identity.get(name) for name in COVERED}
        if self.recipe.require_proof:
            check_proven(folder, proofs, asked)
        elif folder not in self._unproven and (why := lacking(folder.name, proofs, asked)):
            self._unproven.add(folder)
            how = f"lcfbench adapter prove {folder} --runs {self.recipe.out}"
            tell = self.progress.say if proofs else self.progress.warn
            tell(f"{why}; runs under matched and deranged make one: {how}")

    def method(self, variant: Variant, task: Task) -> Method:
        """A variant on a task, made once for all controls. Raises UserError where it cannot serve it."""
        key = variant, task.name, task.seed
        if key not in self._methods:
            models, found = self.models(variant), self.adapters(variant, task)
            receiver, *sharers = models
            adapters = found if len(found) > 1 else [*found, None][:1] * len(sharers)
            options, both = dict(variant.options), zip(sharers, adapters, strict=True)
            each = [create(variant.mode, receiver, lm, adapter, options) for lm, adapter in both]
            made = each[0] if variant.join is None else SeveralSharers(each, variant.join)
            documents = self.documents(task, models[0].has_chat)
            for document in documents:
                made.check(document)
            for lm in models if any(d.steps for d in documents) else ():
                check_ranked(lm.tokenizer)
            self._methods[key] = made
        return self._methods[key]

    def labels(self) -> tuple[str, str]:
        """The names of both sides in runs; of several sharers all, with commas between them."""
        every = [labels((self.names[0], name)) for name in self.sharers]
        receivers, sharers = zip(*every, strict=True)
        return max(receivers, key=len), ",".join(sharers)

    def models(self, variant: Variant) -> tuple[CausalLM, ...]:
        """The receiver and the sharer of a variant, or all sharers where it takes several."""
        roles = method_class(variant.mode).roles
        pairs = self.pair.rivals_for(roles)
        if variant.join is None:
            return pairs[0]
        if "sharer" not in roles:  # the receiver's model stands for every sharer
            pairs = pairs[:1] * len(self.sharers)
        return (pairs[0][0], *(sharer for _, sharer in pairs))

    def documents(self, task: Task, receiver_chat: bool, control: str = "matched") -> list[Document]:
        """The documents that are asked under a control: the task's, or those in their place.

        The very same objects each time. Raises UserError where a control has none.
        """
        found, how = self._task_documents(task, receiver_chat), load_control(control)
        if not how.asks_otherwise:
            return found
        asked = control, tuple(map(id, found))
        if asked not in self._otherwise:
            self._otherwise[asked] = how.documents(found)
        return self._otherwise[asked]

    def by_hash(self, documents: list[Document]) -> ByHash:
        """What `documents` returned by hash; one table for all runs that ask the very same list."""
        if id(documents) not in self._by_hash:
            self._by_hash[id(documents)] = ByHash(documents)
        return self._by_hash[id(documents)]

    def _task_documents(self, task: Task, receiver_chat: bool) -> list[Document]:
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
            same = task.name, receiver_chat, documents_sha256(d.hash for d in found)
            known = {d.hash: d for d in self._documents.setdefault(same, found)}
            self._asked[asked] = [known[d.hash] for d in found]
        return self._asked[asked]

    def prompts_sha256(self, documents: list[Document], models: tuple[CausalLM, ...]) -> str:
        """Digest of all prompts, computed once for the methods that share models and documents."""
        same = array("q", sorted(map(id, documents))).tobytes()
        key = *models, hashlib.sha256(same).digest()
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
            self._otherwise,
            self._by_hash,
            self._prompts,
            self._calibrations,
            self._seen,
        ):
            kept.clear()

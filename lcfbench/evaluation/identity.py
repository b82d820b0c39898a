"""What names a run, and what its manifest says beside that.

run_id = run_id_of(identity(...))          # everything that changes the answer, and nothing else
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcfbench import __version__
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import CONFIG, weights_sha256
from lcfbench.controls.assignment import senders_sha256
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Method
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import ALIASES, label
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task


def identity(
    recipe: Recipe,
    names: tuple[str, str],
    ends: tuple[CausalLM, CausalLM],
    task: Task,
    digests: tuple[str, str | None],
    scoring: str,
    method: Method,
    mode: str,
    control: str,
    folder: Path | None,
) -> dict[str, Any]:
    """Everything that changes the answer: the run's name is its digest. names: of the pair; digests: of the task's data and of its split manifest;
    folder: the adapter's. The seed is the task's.
    """
    data, split_manifest = digests
    receiver, sharer = (label(name) for name in names)
    return {
        "pair": f"{receiver}:{sharer}",
        "receiver": receiver,
        "sharer": sharer,
        "revisions": [e.revision for e in ends],
        "mode": mode,
        "options": method.options(),
        "adapter_sha256": weights_sha256(folder) if folder else None,
        "adapter_config": hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest() if folder else None,
        "task": task.name,
        "task_options": task.options,
        "task_sha256": task.yaml_sha256,
        "data_sha256": data,
        "split_manifest_sha256": split_manifest,
        "scoring": scoring,
        "control": control,
        "seed": task.seed,
        "limit": recipe.limit,
        "dtype": str(ends[0].dtype).removeprefix("torch."),
        "device": ends[0].device.type,
        "attention": recipe.attention,
        "batch_size": recipe.batch_size,
        "version": __version__,
    }


def manifest(
    recipe: Recipe,
    environment: dict[str, Any],
    task: Task,
    documents: Sequence[Document],
    senders: Mapping[str, Document],
    ends: tuple[CausalLM, CausalLM],
    adapter: Adapter | None,
    folder: Path | None,
) -> dict[str, Any]:
    """What a reader of the run may want to know beyond its identity.

    senders_sha256: of who got whose message, where that was not everyone's own. gates: of the adapter as it was saved, as they act at inference.
    """
    chance = [len(s.gold) / len(s.choices) for d in documents for s in d.steps[-1:]]
    gates = adapter.gates_applied() if adapter is not None else None
    moved = any(sender.hash != to for to, sender in senders.items())
    return {
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment,
        "documents_planned": len(documents),
        "dropped": task.dropped,
        "chance": sum(chance) / len(chance) if chance else None,
        "adapter": folder.name if folder else None,
        "sources": {role: end.source for role, end in zip(("receiver", "sharer"), ends, strict=True)},
        **({"message_from_sha256": senders_sha256(senders)} if moved else {}),
        **({"gates": gates} if gates is not None else {}),
    }


def other_revisions(adapter: Adapter, receiver: CausalLM, sharer: CausalLM) -> str:
    """Which of the two models is not the one the adapter was trained on, in words; empty where both are.

    Revisions decide where they are recorded (every adapter trained here); else names do, so that a fuser for another model of
    the same cache shape is noticed.
    """
    trained = adapter.config.training.get("revisions") or {}
    made_for = {"receiver": adapter.config.receiver, "sharer": adapter.config.sharer}
    other = []
    for role, end in (("receiver", receiver), ("sharer", sharer)):
        if trained.get(role) not in (None, end.revision):
            other.append(
                f"{role} {end.name} was {trained[role]}, here it is {end.revision} ({end.source or 'local'})"
            )
        elif (
            role not in trained and end.source != "path" and repo_of(made_for[role]) != repo_of(end.name)
        ):  # a folder may be any model
            other.append(f"{role} was {made_for[role]}, here it is {end.name}")
    return ", ".join(other)


def repo_of(name: str) -> str:
    """A model's Hub id in lower case: two names of one model compare equal."""
    return ALIASES.get(name.lower(), name).lower()

"""Answers a recorded run's documents again from the messages that it kept, without the sharer.

The receiving side is the method's own, under the run's control, in the batches of the run. What the sharer
did is not repeated: it is replaced by a model without weights that is never run, and the stored bytes are
read.

>>> for each in replay(Path("results/t2t-splitfacts-matched-0123456789"), Silent()): ...   # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcfbench.adapters.config import WEIGHTS, weights_sha256
from lcfbench.adapters.select import JOINT, find_adapters
from lcfbench.errors import UserError
from lcfbench.evaluation.identity import OF_THE_MACHINE
from lcfbench.evaluation.own_files import register
from lcfbench.evaluation.plan import told_whole
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.record import Asked
from lcfbench.evaluation.run import Run
from lcfbench.evaluation.variants import ADAPTER, entry_of, read_entry
from lcfbench.evaluation.worker import Worker
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods.base import Method, option_fields
from lcfbench.methods.create import method_class
from lcfbench.models.dtypes import pick_device
from lcfbench.progress import Progress, Silent
from lcfbench.results.manifest import Manifest
from lcfbench.results.messages import DamagedMessageError, kept_names, read_message
from lcfbench.results.recorded_run import UNKEPT, RecordedRun

LIKE = 1e-3  # nats by which two log-likelihoods of one answer may differ, as between machines
# parts of an identity that may differ: the answers are compared, and say whether it matters
MAY_DIFFER = (OF_THE_MACHINE - {"prompts_sha256"}) | {"behaviour", "version", "plugins"}
SAME = (  # settings of a recipe that a replay takes over
    *"pair scoring limit shots prompt task_options batch_size dtype device receiver_device".split(),
    *"sharer_device device_map attention trust_remote_code thinking offline".split(),
)


class _Mute(Silent):
    """Drops warnings too: the run has said them."""

    def warn(self, text: str) -> None: ...


@dataclass(frozen=True)
class Replayed:
    """A document's answer as it was recorded and as it is from the stored message.

    difference: the largest one of its choices' log-likelihoods, nats; None where none are ranked.
    error: why there is no answer now; empty where there is one.
    """

    number: int
    doc_hash: str
    recorded: str | None
    replayed: str | None
    recorded_score: float
    replayed_score: float
    same_metrics: bool = False
    difference: float | None = None
    error: str = ""

    @property
    def equal(self) -> bool:
        """Whether answer and scores are the row's."""
        same = self.recorded == self.replayed and self.recorded_score == self.replayed_score
        return same and self.same_metrics and not self.error and (self.difference or 0.0) <= LIKE


def replay(
    folder: Path,
    progress: Progress,
    documents: Sequence[str] = (),
    adapter: Path | None = None,
    files: Sequence[Path] = (),
) -> list[Replayed]:
    """Returns what becomes of a run's documents, in the run's order.

    documents: hashes, their beginnings or numbers; none: all whose messages are kept. adapter: where the
    run's adapter is now. files: of methods, tasks and controls, where they are now. Raises UserError where
    there is no such run or document, where it keeps no messages, and where models, adapter, task or prompts
    are not those of the run.
    """
    recorded = RecordedRun.open(folder)
    chosen = recorded.chosen(documents)
    kept = kept_names(folder)
    rows = {row["doc_hash"]: row for row in recorded.rows if row["error"] is None and row["doc_hash"] in kept}
    if not kept:
        raise UserError(f"{folder} keeps no messages.", UNKEPT)
    if documents and (without := [name for name in chosen if name not in rows]):
        what = f"document {without[0][:12]} of {folder} has no message: it failed, or none was kept."
        raise UserError(what, "Leave it out.")
    wanted = [name for name in chosen if name in rows]
    if count := len(chosen) - len(wanted):
        progress.warn(
            f"{count:,} of {len(chosen):,} documents have no message: they failed, or none was kept."
        )
    register(recorded.manifest, files)
    run, asked = opened(recorded.manifest, folder, progress, adapter)
    found: dict[str, Replayed] = {}
    messages: dict[str, tuple[bytes, ...]] = {}
    groups = [group for group in _groups(run, asked, rows) if not set(wanted).isdisjoint(group)]
    for name in (name for group in groups for name in group):
        try:
            messages[name] = read_message(folder, name).packets
        except DamagedMessageError as error:
            found[name] = _failed(rows[name], error.what)
    try:
        run.replay(messages, settled_of(recorded.manifest, run))
    except (LookupError, TypeError, ValueError) as error:
        what = f"the manifest of {folder} does not say how {run.mode} was calibrated"
        raise UserError(f"{what}.", "Run it again with --fresh --keep-messages.") from error
    documents_of = {d.hash: d for d in run.documents}
    for group in groups:
        asking = [documents_of[name] for name in group if name in messages]
        todo = {name for name in group if name in messages and name in wanted}
        with torch.inference_mode():
            for row in run.answer(asking, todo):
                found[row["doc_hash"]] = _compared(rows[row["doc_hash"]], row)
    gone = "it is not asked any more: it is longer than a model reads, or no document of the task"
    return [found.get(name) or _failed(rows[name], gone) for name in wanted]


def _groups(run: Run, asked: Asked, rows: Mapping[str, Any]) -> list[list[str]]:
    """The documents that were answered together, as their rows tell, by hash."""
    groups: list[list[str]] = []
    for batch in asked.batches:
        mine = [name for name in batch if name in rows and name not in run.too_long]
        if any(rows[name]["batch_size"] == 1 for name in mine):  # the batch failed: each was asked alone
            groups += [[name] for name in mine]
        else:
            groups.append(mine)
    return [group for group in groups if group]


def _compared(row: Mapping[str, Any], again: Mapping[str, Any]) -> Replayed:
    if again.get("error") is not None:
        return _failed(row, str(again["error"]))
    before = json.loads(row["choices_loglikelihood"] or "[]")
    now = again["choices_loglikelihood"] or []
    pairs = [(a, b) for x, y in zip(before, now, strict=False) for a, b in zip(x, y, strict=False)]
    alike = [len(x) for x in before] == [len(x) for x in now]
    gap = max((abs(a - b) for a, b in pairs), default=None)
    return Replayed(
        int(row["doc_index"]),
        str(row["doc_hash"]),
        row["prediction"],
        again["prediction"],
        float(row["score"]),
        float(again["score"]),
        json.loads(row["metrics"]) == json.loads(json.dumps(again["metrics"])) and alike,
        gap,
    )


def _failed(row: Mapping[str, Any], why: str) -> Replayed:
    number, name = int(row["doc_index"]), str(row["doc_hash"])
    return Replayed(number, name, row["prediction"], None, float(row["score"]), 0.0, error=why)


def opened(
    manifest: Manifest, folder: Path, progress: Progress, adapter: Path | None = None
) -> tuple[Run, Asked]:
    """Returns a recorded run, ready to be answered again, and what it asked.

    Raises UserError where it would be another one: other models, adapter, task, data or prompts.
    """
    recipe = recipe_of(manifest, folder, adapter)
    run, asked = _nearest(manifest, folder, Worker(recipe, _Mute(), weights=("receiver",)))
    if run.calibration_documents and settled_of(manifest, run) is None:
        del run, asked  # one receiver at a time
        run, asked = _nearest(manifest, folder, Worker(recipe, _Mute()))
        what = "its run does not keep what was settled, so both models are loaded"
        progress.warn(f"{run.mode} is calibrated again: {what}.")
    recorded = json.loads(json.dumps(manifest.identity))
    differing = _differing(recorded, run.identity)
    if others := [name for name in differing if name not in MAY_DIFFER]:
        what = f"{folder.name} was made with another {others[0]}: {recorded.get(others[0])!s:.60}, here "
        what += f"{run.identity.get(others[0])!s:.60}."
        step = "Give the adapter of the run with --adapter." if "adapter" in others[0] else "Run it again."
        raise UserError(what, step)
    for name in differing:
        progress.warn(f"{name} differ from those of the run, so answers may too.")
    return run, asked


def settled_of(manifest: Manifest, run: Run) -> dict[str, Any] | None:
    """What settles the method of a recorded run without computing anything; None where nothing does."""
    first = run.method.methods[0] if isinstance(run.method, SeveralSharers) else run.method
    settled, recalls = manifest.calibration, type(first).recall is not Method.recall
    return settled.model_dump(exclude_none=True) if settled is not None and recalls else None


def _nearest(manifest: Manifest, folder: Path, worker: Worker) -> tuple[Run, Asked]:
    """The run of a worker that is most like a recorded one, and what it asks. Raises UserError."""
    recorded = json.loads(json.dumps(manifest.identity))
    nearest: tuple[int, str, Any] | None = None
    for group in worker.groups:
        for asked in worker.open(group):
            count = len(_differing(recorded, worker.runs[asked.run_id].identity))
            if nearest is None or count < nearest[0]:
                nearest = count, asked.run_id, group
    if nearest is None:
        raise UserError(f"{folder} cannot be asked again here.", "Run it again.")
    _, run_id, group = nearest
    [asked] = [each for each in worker.open(group) if each.run_id == run_id]
    return worker.runs[run_id], asked


def _differing(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    here = json.loads(json.dumps(identity, default=str))
    return [name for name in {**recorded, **here} if recorded.get(name) != here.get(name)]


def recipe_of(manifest: Manifest, folder: Path, adapter: Path | None = None) -> Recipe:
    """Returns the recipe of a recorded run alone, as its manifest tells.

    Raises UserError where that is not recorded, and where its adapter is not there as it was.
    """
    identity, given = manifest.identity, manifest.recipe or {}
    try:
        mode = str(identity["mode"])
        read = [own for name, own in map(read_entry, given["mode"]) if name == mode]
        adapters = [place for own in read for text in own.pop(ADAPTER, []) for place in text.split(",")]
        names = {f.name for f in option_fields(method_class(mode))}
        options = {key: value for key, value in (given.get("options") or {}).items() if key in names}
        named = adapters or given.get("adapter") or []
        fields = {name: given.get(name) for name in SAME} | _here(identity, given)
        fields |= {
            "mode": [entry_of(mode, own) for own in read],
            "task": [identity["task"]],
            "control": [identity["control"]],
            "seed": identity["seed"],
            "options": options,
            "wire": [identity["wire"]] if identity.get("wire") else [],
            "join": [identity["join"]] if identity.get("join") else [],
            "latency_documents": 0,
            "processes": 1,
            "out": folder.parent,
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the manifest of {folder} does not say how it was made.", "Run it again.") from error
    fields["adapter"] = _adapter_of(manifest, [Path(str(place).strip()) for place in named], adapter)
    recipe: Recipe = Recipe.merge(None, fields)
    recipe.check_names()
    return recipe


def _here(identity: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Where models are put and in which numbers they compute: as in the run, where that is possible here."""
    found = {}
    for name in ("device", "receiver_device", "sharer_device"):
        try:
            pick_device(str(given.get(name) or "auto"))
        except UserError:  # answers are compared, and a warning says that it is another one
            found[name] = "auto"
    number = str(identity.get("dtype"))
    if given.get("dtype") in ("auto", None) and ":" not in number and not identity.get("quantisation"):
        found["dtype"] = number  # "auto" may be another one here
    return found


def _adapter_of(manifest: Manifest, named: Sequence[Path], given: Path | None) -> list[Path]:
    """The adapter of a run: as it is given, or where the run found it; none where a run looks for it."""
    wanted = manifest.identity.get("adapter_sha256")
    if wanted is None:
        if given is not None:
            what = f"{manifest.identity['mode']} ran no adapter, so --adapter {given} has no use."
            raise UserError(what, "Leave it out.")
        return []
    found = [Path(manifest.adapter_folder)] if manifest.adapter_folder else []
    same = [place for name in ([given] if given else [*named, *found]) for place in _same(name, wanted)]
    if not same and (given or named):
        places = ", ".join(map(str, [given] if given else named))
        what = f"the adapter of this run ({wanted!s:.12}) is not at {places}"
        raise UserError(f"{what}: other weights are, or none.", "Name the folder where it is with --adapter.")
    return same[:1]


def _same(name: Path, wanted: str) -> list[Path]:
    """The adapter of a folder or name, where its weights have this digest; of several sharers `A+B`."""
    try:
        row = find_adapters(name, str(wanted).count(JOINT) + 1)
    except UserError:  # neither a folder nor one that ships
        return []
    here = all((place / WEIGHTS).is_file() for place in row)
    return [told_whole(row)] if here and JOINT.join(map(weights_sha256, row)) == wanted else []

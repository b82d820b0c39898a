"""What a recipe would run: its runs by number, id and key, what is recorded of each, what is left.

>>> for each in plan(Recipe(mode=["receiver"], limit=32), progress).runs: ...      # doctest: +SKIP

Runs are looked up with models that have no weights (`Outline`), which have the ids of those that are
run. A GPU that is not here is presumed to compute in bfloat16; keys hold on any device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from lcfbench.controls.base import LACKS, load_control
from lcfbench.errors import UserError, unknown
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.estimates import Estimates, Pace
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.run import Run
from lcfbench.evaluation.session import Session
from lcfbench.evaluation.variants import Variant
from lcfbench.methods.create import method_class
from lcfbench.models.dtypes import gpus_presumed
from lcfbench.progress import Progress
from lcfbench.provenance import digest
from lcfbench.results.shards import Shard
from lcfbench.results.state import RunState, states_of
from lcfbench.results.writer import run_id_of
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task

LISTING = "lcfbench plan"


@dataclass(frozen=True)
class Planned:
    """One run of a plan.

    number: its place in the whole plan, from 1. id: its folder's name on this machine, or on a GPU
    where one is planned for. key: its name on every kind of device. state: new, running, partial,
    complete, failed, or damaged. documents: that are asked. done: those that have an answer. minutes:
    that the others are expected to take, without loading models; memory_bytes: at the most; None where
    nothing like it is recorded. estimated_from: the run whose rows say so.
    """

    number: int
    id: str
    key: str
    mode: str
    label: str
    task: str
    control: str
    seed: int
    documents: int
    done: int = 0
    state: str = "new"
    minutes: float | None = None
    memory_bytes: int | None = None
    estimated_from: str | None = None


@dataclass(frozen=True)
class Plan:
    """The runs of a recipe. remarks: sentences on what the plan cannot know."""

    runs: list[Planned]
    out: Path
    remarks: list[str]

    @property
    def minutes(self) -> float:
        """The sum of the minutes that are known."""
        return sum(each.minutes or 0.0 for each in self.runs)

    @property
    def unknown(self) -> int:
        """How many runs have documents left and no estimate."""
        return sum(each.minutes is None for each in self.runs)


@dataclass(frozen=True)
class Chosen:
    """The runs that `only` names: their keys, and their variants by the names of their tasks."""

    keys: frozenset[str]
    variants: Mapping[str, frozenset[Variant]]


class _Quiet:
    """Drops every message: the session that runs says them."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def begin(self, title: str, total: int, done: int, right: float) -> None: ...

    def update(self, title: str, right: float, done: int) -> None: ...

    def end(self, title: str) -> None: ...


def plan(recipe: Recipe, progress: Progress) -> Plan:
    """Lists the runs of a recipe; those that `only` names where it does.

    Loads no weights where the runs' ids can be told without. Raises UserError as `run` does before it
    begins.
    """
    found: list[Planned] = []
    shard = Shard.parse(recipe.shard) if recipe.shard else None
    asked: dict[Path, frozenset[str]] = {}
    estimates = Estimates(recipe.out)
    paces: list[Pace | None] = []
    with gpus_presumed():
        for number, run in enumerate(looked_up(recipe, progress), 1):
            run_id = run_id_of(run.identity)
            documents = frozenset(d.hash for d in _part(run.documents, recipe.batch_size, shard))
            asked[recipe.out / run_id] = documents
            paces.append(estimates.of(run))
            found.append(
                Planned(
                    number=number,
                    id=run_id,
                    key=run.key,
                    mode=run.mode,
                    label=run.variant.label,
                    task=run.task.name,
                    control=run.control,
                    seed=run.task.seed,
                    documents=len(documents),
                )
            )
    states = states_of(asked, shard)
    found = [_told(each, states[recipe.out / each.id], pace) for each, pace in zip(found, paces, strict=True)]
    if recipe.only:
        places = named(recipe.only, [(each.id, each.key) for each in found])
        found = [each for i, each in enumerate(found) if i in places]
    return Plan(found, recipe.out, _remarks(recipe))


def _part(documents: Sequence[Document], size: int, shard: Shard | None) -> list[Document]:
    """The documents of a shard, or all."""
    return [d for batch in shard.of(batches(documents, size)) for d in batch] if shard else list(documents)


def _told(run: Planned, state: RunState, pace: Pace | None) -> Planned:
    """A run of a plan with its state and its estimates."""
    left = run.documents - state.done
    seconds = 0.0 if not left else pace.seconds * left if pace else None
    return replace(
        run,
        state=state.name,
        done=state.done,
        minutes=None if seconds is None else seconds / 60,
        memory_bytes=pace.memory_bytes if pace else None,
        estimated_from=pace.run_id if pace else None,
    )


def _remarks(recipe: Recipe) -> list[str]:
    places = (recipe.device, recipe.receiver_device, recipe.sharer_device)
    if torch.cuda.is_available() or not any(place and place.startswith("cuda") for place in places):
        return []
    return [
        "No GPU is here: the ids are those on a GPU that computes in bfloat16. The keys hold on any device."
    ]


def looked_up(recipe: Recipe, progress: Progress) -> Iterator[Run]:
    """Yields the runs of a recipe in their order, as they would be; they cannot be opened."""
    session = Session(recipe, progress, weights=())
    pairs = pairings(recipe, progress, session.modes)
    for task in session.tasks:
        yield from runs_of(session, task, session.variants[task.name], pairs)
        session.release()


def choose(recipe: Recipe) -> Chosen | None:
    """Looks up the runs that `only` names; None where it names none. Raises UserError."""
    if not recipe.only:
        return None
    found = [
        (run_id_of(run.identity), run.key, run.task.name, run.variant) for run in looked_up(recipe, _Quiet())
    ]
    places = named(recipe.only, [(run_id, key) for run_id, key, *_ in found])
    variants: dict[str, set[Variant]] = {}
    for i in places:
        variants.setdefault(found[i][2], set()).add(found[i][3])
    return Chosen(
        frozenset(found[i][1] for i in places), {task: frozenset(some) for task, some in variants.items()}
    )


def named(names: Sequence[str], runs: Sequence[tuple[str, str]]) -> frozenset[int]:
    """The places, from 0, of the runs with these ids, keys or numbers. Raises UserError for another name.

    runs: the id and the key of each.
    """
    places: set[int] = set()
    for name in names:
        found = {i for i, (run_id, key) in enumerate(runs) if name in (run_id, key, str(i + 1))}
        if not found and name.isdecimal():
            count = f"has {len(runs)} runs" if len(runs) > 1 else "is one run"
            raise UserError(f"there is no run {name}: this recipe {count}.", f"See `{LISTING}`.")
        begun = [run_id for run_id, _ in runs if run_id.startswith(name)]
        if not found and len(begun) > 1:
            few = ", ".join(begun[:3]) + (", …" if len(begun) > 3 else "")
            what = f"--only {name} may be any of {len(begun)} runs: {few}."
            raise UserError(what, f"Give a whole id, a key or a number of `{LISTING}`.")
        if not found:
            raise unknown("run", name, [text for each in runs for text in each], LISTING)
        places |= found
    return frozenset(places)


def pairings(recipe: Recipe, progress: Progress, modes: Sequence[str]) -> list[tuple[str, str]]:
    """Every method under every control that means something for it; the others are named.

    Raises UserError where nothing is left.
    """
    every = [(m, c, load_control(c).lacks(method_class(m))) for m in modes for c in recipe.control]
    plan, left = [(mode, control) for mode, control, what in every if not what], []
    for what in LACKS:
        if without := [each for each in every if each[2] == what]:
            modes, controls = (list(dict.fromkeys(names)) for names in list(zip(*without, strict=True))[:2])
            left.append((", ".join(modes), what, " or ".join(controls)))
    if not plan:
        reasons = "; ".join(
            f"{names} {LACKS[what]} that {others} could change" for names, what, others in left
        )
        raise UserError(f"nothing to run: {reasons}.", "Add --control matched, or a method that sends one.")
    for names, what, others in left if "control" in recipe.model_fields_set else []:
        progress.say(f"{names}: {LACKS[what]}, so there is no {others} run of it.")
    return plan


def refusal(session: Session, task: Task, variant: Variant, control: str) -> tuple[str, str] | None:
    """Why a variant has no run under a control on a task, and the next step; None where it has one."""
    method = session.method(variant, task)
    documents = session.documents(task, method.receiver.has_chat)
    return load_control(control).refuses(method, documents)


def runs_of(
    session: Session, first: Task, variants: Sequence[Variant], pairs: Sequence[tuple[str, str]]
) -> list[Run]:
    """The runs of variants on a task under all seeds; where nothing is random there is one."""
    seeds = session.recipe.every_seed
    tasks, once, refused = [first, *(first.reseeded(seed) for seed in seeds[1:])], [], {}
    runs: dict[str, Run] = {}
    twice: dict[str, None] = {}
    for variant, control in product(variants, session.recipe.control):
        if (variant.mode, control) not in pairs:
            continue
        if why := refusal(session, first, variant, control):
            refused[f"{first.name}: no {control} run of {variant.label}: {why[0]}."] = why[1]
            continue
        for task in tasks:
            run = Run(session, task, variant, control)
            known = runs.setdefault(digest(run.identity), run)
            if known is not run:
                label = known.variant.label
                same = "is asked twice" if label == variant.label else f"is the same as {label}"
                twice[f"{first.name}: {variant.label} {same}, so it is run once."] = None
            elif not run.draws:
                once.append(variant.label if control == "matched" else f"{variant.label} ({control})")
            if not run.draws:
                break
    if refused and not runs:
        text, step = next(iter(refused.items()))
        raise UserError(text, step)
    for text in [*refused, *twice]:
        session.progress.say(text)
    if once and len(seeds) > 1:
        what = f"{first.name}: {', '.join(once)} draws nothing (every document is asked)"
        session.progress.say(f"{what}, so it is run once, with seed {seeds[0]}.")
    return list(runs.values())

"""From a recipe to runs: what is asked for is looked up and opened here, `sitting` answers it.

A run is one (method, task, control, seed). Several share one load of the models, and what the models read of each batch.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32), progress): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from lcfbench.controls.assignment import sender_of
from lcfbench.controls.names import SEEDED
from lcfbench.controls.wrappers import lacks
from lcfbench.errors import UserError
from lcfbench.evaluation.identity import identity, manifest
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.run import Loop
from lcfbench.evaluation.session import Asked, Session
from lcfbench.evaluation.together import Sitting, sit
from lcfbench.methods.create import check_options, method_class
from lcfbench.progress import Progress
from lcfbench.results.writer import RunWriter
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Task


def run(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """Runs everything the recipe asks for; yields each run's id when it is complete. KeyboardInterrupt passes after rows are sealed.

    Raises UserError: names, options, data and adapters are all looked up before a model is loaded.
    """
    recipe.check_names()
    check_options({name: method_class(name) for name in recipe.mode}, recipe.options)
    session = Session(recipe)
    for task in session.tasks:
        task.metric(recipe.scoring)
        session.digests(task)
        for mode in recipe.mode:
            session.adapter(mode, task)
    plan = _plan(recipe, progress)
    for task in session.tasks:
        wanted = _of_task(
            session, task, plan, progress
        )  # whatever cannot be run is said before anything is touched
        with ExitStack() as opened:
            sittings = []
            for each in wanted:
                sitting = _open(session, each, progress)
                opened.callback(sitting.loop.writer.interrupt)  # does nothing to a run that was finished
                sittings.append(sitting)
            sit(
                [each for each in sittings if not each.loop.writer.complete],
                recipe.batch_size,
                recipe.latency_documents,
                progress,
            )
        session.release()
        yield from (each.loop.writer.run_id for each in sittings)


class Wanted(NamedTuple):
    """One (method, task, control, seed), looked up. identity, manifest: as they will be recorded. drew: whether another seed would be another run."""

    asked: Asked
    control: str
    senders: dict[str, Document]
    identity: dict[str, Any]
    manifest: dict[str, Any]
    drew: bool


def _of_task(session: Session, first: Task, plan: list[tuple[str, str]], progress: Progress) -> list[Wanted]:
    """The runs of a task under all seeds; what draws nothing is one run."""
    seeds = session.recipe.every_seed
    tasks, once, runs = [first, *(first.reseeded(seed) for seed in seeds[1:])], [], []
    for mode, control in plan:
        for task in tasks:
            runs.append(_look_up(session, task, mode, control, progress))
            if not runs[-1].drew:
                once.append(mode if control == "matched" else f"{mode} ({control})")
                break
    if once and len(seeds) > 1:
        progress.say(
            f"{first.name}: {', '.join(once)} draws nothing (every document is asked), so it is run once, with seed {seeds[0]}."
        )
    return runs


def _plan(recipe: Recipe, progress: Progress) -> list[tuple[str, str]]:
    """Every method under every control that means something for it; what is left out is said. Raises UserError where nothing is left."""
    asked = [
        (mode, control, lacks(control, method_class(mode)))
        for mode in recipe.mode
        for control in recipe.control
    ]
    plan, left = [(mode, control) for mode, control, what in asked if not what], []
    for what in ("message", "cache"):
        if without := [each for each in asked if each[2] == what]:
            modes, controls = (list(dict.fromkeys(names)) for names in list(zip(*without, strict=True))[:2])
            left.append((", ".join(modes), what, " or ".join(controls)))
    if not plan:
        reasons = "; ".join(
            f"{names} sends no {what} that {others} could change" for names, what, others in left
        )
        raise UserError(f"nothing to run: {reasons}.", "Add --control matched, or a method that sends one.")
    for names, what, others in left:
        progress.say(f"{names}: sends no {what}, so there is no {others} run of it.")
    return plan


def _look_up(session: Session, task: Task, mode: str, control: str, progress: Progress) -> Wanted:
    """Everything a run needs. Raises UserError for what cannot be run."""
    recipe, asked = session.recipe, session.method(mode, task, progress)
    method, documents, ends, folder = asked.method, asked.documents, asked.ends, asked.folder
    senders = sender_of(documents, control, task.seed)
    named = identity(
        recipe,
        session.names,
        ends,
        task,
        session.digests(task),
        documents[0].scoring,
        method,
        mode,
        control,
        folder,
    )
    if asked.calibration:
        named["calibration_sha256"] = hashlib.sha256(
            "".join(d.hash for d in asked.calibration).encode()
        ).hexdigest()
    about = manifest(recipe, session.environment, task, documents, senders, ends, asked.adapter, folder)
    drew = bool(asked.calibration) or control in SEEDED or method.seeded or task.drawn(recipe.limit)
    return Wanted(asked, control, senders, named, about, drew)


def _open(session: Session, wanted: Wanted, progress: Progress) -> Sitting:
    """A run's folder, begun or to go on from."""
    recipe, asked, control = session.recipe, wanted.asked, wanted.control
    writer = RunWriter.open(recipe.out, wanted.identity, wanted.manifest, fresh=recipe.fresh)
    if writer.complete:
        progress.say(f"{writer.run_id}: complete already, nothing to do (--fresh runs it again).")
    loop = Loop(
        asked.task,
        asked.method,
        writer,
        wanted.senders,
        {d.hash: i for i, d in enumerate(asked.documents)},
        asked.folder,
    )
    loop.params = asked.adapter.params if asked.adapter is not None else 0
    seed = [f"seed {asked.task.seed}"] if recipe.seeds else []
    title = " · ".join([asked.task.name, asked.mode, *([control] if control != "matched" else []), *seed])
    return Sitting(title, asked, control, loop)

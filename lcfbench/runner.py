"""From a recipe to runs: what is asked for is looked up and opened here, `sitting` answers it.

A run is one (method, task, control, seed). Several share one load of the models, and what the models read of each batch.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32), progress): ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from lcfbench.controls import SEEDED, lacks, sender_of
from lcfbench.errors import UserError, unknown
from lcfbench.harness import Task
from lcfbench.identity import identity, manifest
from lcfbench.loop import Loop, Progress
from lcfbench.methods.base import method_class, option_fields
from lcfbench.recipe import Recipe
from lcfbench.session import Session
from lcfbench.sitting import Sitting, sit
from lcfbench.store import RunWriter


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
    for task in session.tasks:
        runs = _of_task(session, task, plan, progress)
        sit([each.sitting for each in runs if each.sitting is not None], recipe.batch_size, recipe.latency_documents, progress)
        yield from (each.run_id for each in runs)


class Run(NamedTuple):
    """One (method, task, control, seed). drew: whether another seed would be another run. sitting: None where it is complete already."""

    run_id: str
    drew: bool
    sitting: Sitting | None


def _of_task(session: Session, first: Task, plan: list[tuple[str, str]], progress: Progress) -> list[Run]:
    """The runs of a task under all seeds, open; what draws nothing is one run. Where one cannot be opened, those before it are let go again."""
    seeds = session.recipe.every_seed
    tasks, once, runs = [first, *(first.reseeded(seed) for seed in seeds[1:])], [], []
    with ExitStack() as opened:
        for mode, control in plan:
            for task in tasks:
                runs.append(run := _open(session, task, mode, control, progress))
                if run.sitting is not None:
                    opened.callback(run.sitting.loop.writer.interrupt)
                if not run.drew:
                    once.append(mode if control == "matched" else f"{mode} ({control})")
                    break
        opened.pop_all()
    if once and len(seeds) > 1:
        progress.say(f"{first.name}: {', '.join(once)} draws nothing (every document is asked), so it is run once, with seed {seeds[0]}.")
    return runs


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


def _open(session: Session, task: Task, mode: str, control: str, progress: Progress) -> Run:
    """One method on one task, under its seed, and one control, ready to go on from what is recorded of it."""
    recipe, asked = session.recipe, session.method(mode, task, progress)
    method, documents, folder, ends = asked.method, asked.documents, asked.folder, asked.ends
    drew = bool(asked.calibration) or control in SEEDED or method.random or task.drawn(recipe.limit)
    senders = sender_of(documents, control, task.seed)
    named = identity(recipe, session.names, ends, task, session.digests(task), documents[0].scoring, method, mode, control, folder)
    if asked.calibration:
        named["calibration_sha256"] = hashlib.sha256("".join(d.hash for d in asked.calibration).encode()).hexdigest()
    about = manifest(recipe, session.environment, task, documents, senders, ends, asked.adapter, folder)
    writer = RunWriter.open(recipe.out, named, about, fresh=recipe.fresh)
    if writer.complete:
        progress.say(f"{writer.run_id}: complete already, nothing to do (--fresh runs it again).")
        return Run(writer.run_id, drew, None)
    loop = Loop(task, method, writer, senders, {d.hash: i for i, d in enumerate(documents)}, folder)
    loop.params = asked.adapter.params if asked.adapter is not None else 0
    title = " · ".join([task.name, mode, *([control] if control != "matched" else []), *([f"seed {task.seed}"] if recipe.seeds else [])])
    return Run(writer.run_id, drew, Sitting(title, asked, control, loop))

"""From a recipe to recorded runs.

A run is one method on one task under one control and seed. Runs on the same documents are answered
together, batch by batch, over prefills that the models compute once; each run's rows are bit for bit
those it would have alone. The time that a shared prefill saved is added to each batch's time. Memory
is the process's: manifests record how many runs were answered together.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32), progress): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import product

import torch

from lcfbench.controls.base import load_control
from lcfbench.errors import UserError
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.run import Run
from lcfbench.evaluation.session import Session
from lcfbench.evaluation.variants import Variant
from lcfbench.methods.create import method_class
from lcfbench.models.causal_lm import sharing
from lcfbench.progress import Progress
from lcfbench.provenance import digest
from lcfbench.tasks.task import Task


def run(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """Runs all that the recipe asks for; yields each run's id when it is complete.

    On KeyboardInterrupt recorded rows are sealed first. Raises UserError: names, options, data and
    adapters are looked up before a model is loaded, all runs of a task before its first is opened.
    """
    session = Session(recipe, progress)
    plan = _plan(recipe, progress)
    portions = [(task, session.portions(task)) for task in session.tasks]
    for task, variants in ((task, some) for task, every in portions for some in every):
        runs = _runs_of(session, task, variants, plan)
        with ExitStack() as opened:
            for each in runs:
                each.open()
                opened.callback(each.writer.interrupt)  # does nothing to a run that was finished
            _answer([each for each in runs if not each.writer.complete], recipe.batch_size, progress)
        session.release()
        yield from (each.writer.run_id for each in runs)


def _plan(recipe: Recipe, progress: Progress) -> list[tuple[str, str]]:
    """Every method under every control that means something for it; the others are named.

    Raises UserError where nothing is left.
    """
    every = [(m, c, load_control(c).lacks(method_class(m))) for m in recipe.methods for c in recipe.control]
    plan, left = [(mode, control) for mode, control, what in every if not what], []
    for what in ("message", "cache"):
        if without := [each for each in every if each[2] == what]:
            modes, controls = (list(dict.fromkeys(names)) for names in list(zip(*without, strict=True))[:2])
            left.append((", ".join(modes), what, " or ".join(controls)))
    if not plan:
        reasons = "; ".join(
            f"{names} sends no {what} that {others} could change" for names, what, others in left
        )
        raise UserError(f"nothing to run: {reasons}.", "Add --control matched, or a method that sends one.")
    for names, what, others in left if "control" in recipe.model_fields_set else []:
        progress.say(f"{names}: sends no {what}, so there is no {others} run of it.")
    return plan


def _runs_of(
    session: Session, first: Task, variants: Sequence[Variant], plan: Sequence[tuple[str, str]]
) -> list[Run]:
    """The runs of variants on a task under all seeds; where nothing is random there is one."""
    seeds = session.recipe.every_seed
    tasks, once = [first, *(first.reseeded(seed) for seed in seeds[1:])], []
    runs: dict[str, Run] = {}
    twice: dict[str, None] = {}
    for variant, control in product(variants, session.recipe.control):
        for task in tasks if (variant.mode, control) in plan else ():
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
    for text in twice:
        session.progress.say(text)
    if once and len(seeds) > 1:
        what = f"{first.name}: {', '.join(once)} draws nothing (every document is asked)"
        session.progress.say(f"{what}, so it is run once, with seed {seeds[0]}.")
    return list(runs.values())


def _answer(runs: Sequence[Run], batch_size: int, progress: Progress) -> None:
    """Answers all that is left of these runs, and finishes them."""
    with torch.inference_mode():
        for together in _alike(runs):
            begun: list[str] = []
            try:
                for each in together:
                    each.writer.record(together=len(together))
                    begun.append(each.title)
                    progress.begin(each.title, len(each.documents), each.count, each.score)
                    each.calibrate()
                    each.warm_up()
                for batch in batches(together[0].documents, batch_size):
                    with sharing(lm for each in together for lm in each.models):
                        for each in together:
                            before = each.count
                            each.answer(batch)
                            if each.count > before:
                                progress.update(each.title, each.score, each.count)
                for each in together:
                    each.finish()
            finally:
                for title in begun:
                    progress.end(title)


def _alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs in groups that ask the very same documents, in the order given."""
    groups: dict[tuple[int, ...], list[Run]] = {}
    for each in runs:
        groups.setdefault(tuple(sorted(map(id, each.documents))), []).append(each)
    return list(groups.values())

"""From a pair, a task and some minutes to one page: is a cache channel worth it here?

>>> found = probe(ProbeRecipe(task="splitfacts", minutes=10), progress)       # doctest: +SKIP
>>> print(found.page.sentence)                                                # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.methods.load_pair import CONDITIONS, load_pair
from lcfbench.methods.needs import check_needs
from lcfbench.probing import stages
from lcfbench.probing.gain import outcome, stops
from lcfbench.probing.page import Page, page_of
from lcfbench.probing.progress import ProbeProgress
from lcfbench.probing.recipe import ProbeRecipe
from lcfbench.probing.record import Record, TimeUp
from lcfbench.tasks.task import load_task


@dataclass(frozen=True)
class Probe:
    """A probe's folder, what it found part by part, and its page."""

    folder: Path
    parts: dict[str, dict[str, Any]]
    page: Page

    @property
    def broken(self) -> bool:
        """Whether a model does not compute here what it should."""
        return bool(stages.broken(self.parts["models"]))

    @property
    def runs(self) -> Path:
        """The folder of its runs, for `show`, `verdict` and `report`."""
        return self.folder / "runs"


def probe(recipe: ProbeRecipe, progress: ProbeProgress) -> Probe:
    """Fills the page part by part within the minutes; goes on where an earlier call stopped.

    Raises UserError: names and data before a model is loaded, then what loading, runs and training
    raise. KeyboardInterrupt keeps all that is recorded.
    """
    recipe.check()
    recipe = recipe.holding_out()
    record = Record.open(recipe)
    parts = record.parts
    with record.alone():
        if "verdict" not in parts:
            _fill(record, progress)
        shown = parts if "alone" in parts else parts | stages.so_far(record)
        page = page_of(recipe, record.folder, shown, record.seconds)
        record.save_page(page.markdown())
    return Probe(record.folder, parts, page)


def _fill(record: Record, progress: ProbeProgress) -> None:
    recipe, parts = record.recipe, record.parts
    task = load_task(recipe.task_name, seed=recipe.seed, offline=recipe.offline, options=recipe.task_options)
    mode = stages.mode_for(recipe, task)

    def part(name: str, title: str, fill: Callable[[dict[str, Any]], None]) -> bool:
        """Fills a part that is not done; False where the time was over before its end."""
        if name in parts:
            return True
        progress.say(f"{title} …")
        try:
            with record.part(name) as found:
                fill(found)
        except TimeUp:
            progress.warn(f"the time was over: {title} is not finished; the same command goes on with it.")
            return False
        return True

    if "plan" not in parts:
        _look(record, task, mode, part, progress)
    if reason := _early(parts):
        _end(record, reason)
        return
    if not part("alone", "runs without training", lambda f: stages.baselines(record, task, f, progress)):
        return
    part("gain", "what could be gained", lambda f: stages.gained(record, task, f, progress))
    reasons = stops(parts["gain"], parts["task"]["chance"])
    stages.replanned(record)
    trained = parts["plan"]["plan"]["steps"] > 0 and not (reasons and not recipe.train_anyway)
    if trained:
        part("training", "training", lambda f: stages.training(record, task, f, progress))
        if parts["training"]["saved"] and not part(
            "trained", "runs of the trained method", lambda f: stages.measured(record, task, f, progress)
        ):
            return
    _end(record, "nothing to gain" if reasons else "", reasons)


def _look(record: Record, task: Any, mode: str, part: Callable[..., bool], progress: ProbeProgress) -> None:
    """The parts that need both models at hand: what they are, what the task is, how fast all is."""
    recipe = record.recipe
    documents = task.documents(scoring=recipe.scoring, limit=stages.COUNTED)
    began = time.monotonic()
    progress.say("loading both models …")
    pair = load_pair(recipe.pair, **recipe.model_dump(include=CONDITIONS))
    check_needs(mode, pair.receiver, pair.sharer)
    loading = time.monotonic() - began
    if len(documents) < 4:
        raise UserError(
            f"task {task.name} has {len(documents)} documents.", "Four are the fewest that say anything."
        )
    opened = stages.Opened(recipe, task, mode, documents, pair)
    part("models", "models", lambda f: stages.models(opened, f, loading))
    if not stages.broken(record.parts["models"]):
        part("task", "task", lambda f: stages.task_facts(opened, f))
        part("plan", "speeds", lambda f: stages.speeds(opened, f, record, progress))
    stages.let_go(opened)


def _early(parts: dict[str, dict[str, Any]]) -> str:
    """Why nothing is run at all; empty where something is."""
    return "models" if stages.broken(parts["models"]) else ""


def _end(record: Record, reason: str, reasons: list[str] | None = None) -> None:
    """Closes the page with what all runs say together."""
    with record.part("verdict") as found:
        found |= {"reason": reason, "reasons": reasons or []}
        if "alone" in record.parts:
            found |= outcome(record.folder / "runs", record.parts["task"]["mode"])

"""A worker as another process sees it: plain values go in and come out."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.record import Asked, Tally
from lcfbench.registry import adopt_paths, given_paths


@dataclass(frozen=True)
class Order:
    """What a worker needs to begin. share: number of workers that share the machine's memory.

    given: files that were named by path. timing_threads: see `Workers`.
    """

    recipe: Recipe
    given: Mapping[Path, tuple[str, str]]
    share: int
    timing_threads: int

    @classmethod
    def of(cls, recipe: Recipe, share: int, timing_threads: int) -> Order:
        return cls(recipe, given_paths(), share, timing_threads)


@dataclass(frozen=True)
class Answered:
    """What came of a batch. rows: run id and row, in the order to be written.

    facts: for manifests, of runs that this worker had not begun. tallies: counts. Both by run id.
    """

    rows: list[tuple[str, dict[str, Any]]]
    facts: dict[str, dict[str, Any]]
    tallies: dict[str, Tally]


@dataclass(frozen=True)
class Timed:
    """Latency columns of documents, by hash, and the counts of those that could not be timed."""

    latency: dict[str, dict[str, float]]
    tally: Tally


@dataclass
class Reply:
    """The answer to a call. said: messages for the user, `say` or `warn` and the text.

    error: what was raised, in place of a value. lost: the worker cannot go on.
    """

    value: Any = None
    error: UserError | None = None
    bug: str = ""
    lost: bool = False
    said: list[tuple[str, str]] = field(default_factory=list)


class Said:
    """A Progress that keeps messages for the process that shows them."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def say(self, text: str) -> None:
        self.texts.append(("say", text))

    def warn(self, text: str) -> None:
        self.texts.append(("warn", text))

    def begin(self, title: str, total: int, done: int, right: float) -> None: ...

    def update(self, title: str, right: float, done: int) -> None: ...

    def end(self, title: str) -> None: ...

    def take(self) -> list[tuple[str, str]]:
        """Returns the messages since they were last taken."""
        taken, self.texts = self.texts, []
        return taken


class Service:
    """Answers calls by name: `load`, `open`, `answer`, `time`, `summary`."""

    def __init__(self, order: bytes) -> None:
        self.order, self.progress = order, Said()

    def call(self, name: str, *args: Any) -> Reply:
        """Makes one call; an error of it is in the reply."""
        from lcfbench.models.memory import DeviceError

        reply = Reply()
        try:
            reply.value = getattr(self, name)(*args)
        except UserError as error:
            reply.error, reply.lost = error, isinstance(error, DeviceError)
        except Exception:
            reply.bug = traceback.format_exc()
        reply.said = self.progress.take()
        return reply

    def load(self) -> tuple[list[Any], dict[str, Any]]:
        """Loads the models. Returns the groups of runs, and where this worker is."""
        from lcfbench.evaluation.worker import Worker
        from lcfbench.progress import quiet_libraries

        quiet_libraries()
        self.settings: Order = pickle.loads(self.order)
        adopt_paths(self.settings.given)
        recipe, threads = self.settings.recipe, self.settings.timing_threads
        if threads:
            recipe = recipe.model_copy(update={"latency_documents": 0})
        self.worker = Worker(recipe, self.progress, share=self.settings.share)
        self.begun: set[str] = set()
        environment = self.worker.session.environment
        kept = {name: environment.get(name) for name in ("device", "gpu", "threads")}
        return self.worker.groups, {"host": socket.gethostname(), "pid": os.getpid(), **kept}

    def open(self, group: Any) -> list[Asked]:
        """Looks up the runs of a group."""
        self.begun.clear()
        found = self.worker.open(group)
        if threads := self.settings.timing_threads:
            for each in found:
                each.facts["recipe"] = self.settings.recipe.model_dump(mode="json")
                each.facts["environment"] = each.facts["environment"] | {"threads": threads}
        return found

    def answer(
        self, group: Any, batch: tuple[str, ...], todo: Mapping[str, set[str]], identities: Mapping[str, Any]
    ) -> Answered:
        """Answers a batch for some runs. Raises UserError where they would be other runs here."""
        if group != self.worker.opened:
            self.open(group)
        check_same(identities, {name: run.identity for name, run in self.worker.runs.items()})
        facts = {name: self.worker.begin(name) for name in todo if name not in self.begun}
        self.begun.update(facts)
        rows: list[tuple[str, dict[str, Any]]] = []
        self.worker.answer(batch, todo, lambda name, row: rows.append((name, row)))
        return Answered(rows, facts, {name: self.worker.runs[name].take_tally() for name in todo})

    def time(self, group: Any, run_id: str, hashes: Sequence[str]) -> Timed:
        """Times documents one by one, with the threads that one process alone would have."""
        import torch

        if group != self.worker.opened:
            self.open(group)
        if run_id not in self.begun:
            self.worker.begin(run_id)
            self.begun.add(run_id)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(self.settings.timing_threads)
            latency = self.worker.latency(run_id, hashes)
        finally:
            torch.set_num_threads(threads)
        return Timed(latency, self.worker.runs[run_id].take_tally())

    def summary(self, group: Any, run_id: str, recorded: list[Any]) -> dict[str, Any]:
        """What all scores of a run give together, for its manifest."""
        if group != self.worker.opened:
            self.open(group)
        return self.worker.runs[run_id].summary(recorded)


def check_same(asked: Mapping[str, Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where runs that are asked would be other runs on this machine."""
    for name, identity in asked.items():
        if name in here:
            continue
        nearest = min(here.values(), key=lambda own: len(_other(identity, own)))
        other = ", ".join(_other(identity, nearest))
        what = f"the worker on {socket.gethostname()} would make another run than {name} ({other} differ)."
        raise UserError(what, "Give all workers the same versions, files and kind of device.")


def _other(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    return [key for key in {**one, **two} if one.get(key) != two.get(key)]

"""Answers batches of a recipe's runs, with models that stay loaded.

>>> worker = Worker(recipe, progress)                                         # doctest: +SKIP
>>> for group in worker.groups: runs = worker.open(group)                     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.batching import batches, length
from lcfbench.evaluation.planning import choose, pairings, runs_of
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.record import Asked
from lcfbench.evaluation.run import Row, Run
from lcfbench.evaluation.session import ByHash, Session
from lcfbench.methods.load_pair import ROLES
from lcfbench.models.causal_lm import sharing
from lcfbench.models.memory import free_bytes
from lcfbench.progress import Progress
from lcfbench.results.shards import Shard
from lcfbench.tasks.document import Document

SIDE_BY_SIDE = 64  # rows whose answers are written at once
CHARACTERS = 2  # of a token, at the least


@dataclass(frozen=True)
class Group:
    """Runs that are opened together: a task, and the labels of variants whose adapters fit into memory."""

    task: str
    labels: tuple[str, ...]


class Worker:
    """Opens a recipe's models once; then `open` a group of runs, `begin` some of them, `answer` batches.

    share: number of workers among which the memory is divided. weights: see `Session`. groups: all that
    the recipe asks, in its order. opened: the group whose `runs` (by id) can be answered. Raises UserError:
    names, options, data and adapters are looked up before a model is loaded.
    """

    def __init__(
        self, recipe: Recipe, progress: Progress, share: int = 1, weights: Collection[str] = ROLES
    ) -> None:
        self.recipe, self.progress = recipe, progress
        self.chosen = choose(recipe)
        self.session = Session(recipe, progress, self.chosen.variants if self.chosen else None, weights)
        self.plan = pairings(recipe, progress, self.session.modes)
        portions = [(t, part) for t in self.session.tasks for part in self.session.portions(t, share)]
        self.groups = [Group(t.name, tuple(v.label for v in part)) for t, part in portions]
        self.opened: Group | None = None
        self.runs: dict[str, Run] = {}
        self._warm: set[int] = set()
        self._known: list[ByHash] = []

    def open(self, group: Group) -> list[Asked]:
        """Looks up the runs of a group; the one before is forgotten. Raises UserError."""
        if group != self.opened:
            self.release()
            [task] = [task for task in self.session.tasks if task.name == group.task]
            known = {variant.label: variant for variant in self.session.variants[group.task]}
            if lacking := [label for label in group.labels if label not in known]:
                raise UserError(f"{', '.join(lacking)} on {group.task} is not known here.", "Restart it.")
            made = runs_of(self.session, task, [known[label] for label in group.labels], self.plan)
            if self.chosen:
                made = [run for run in made if run.key in self.chosen.keys]
            self.runs = {run.asked.run_id: run for run in made}
            self.opened = group
            self._known = list({id(run.by_hash): run.by_hash for run in made}.values())
        found = []
        for number, lane in enumerate(_alike(self.runs.values())):
            cut = batches(lane[0].documents, self.recipe.batch_size)
            hashes = tuple(tuple(d.hash for d in batch) for batch in cut)
            whole = [replace(run.asked, lane=number, batches=hashes) for run in lane]
            shard = Shard.parse(self.recipe.shard) if self.recipe.shard else None
            found += [asked.part(shard) for asked in whole] if shard else whole
        order = list(self.runs)
        return sorted(found, key=lambda asked: order.index(asked.run_id))

    def begin(self, run_id: str) -> dict[str, Any]:
        """Calibrates a run and warms it up, once. Returns facts for its manifest."""
        run = self.runs[run_id]
        with torch.inference_mode():
            facts = run.calibrate()
            if id(run.method) not in self._warm:  # a control changes messages, not what is computed
                run.warm_up()
        self._warm.add(id(run.method))
        return facts

    def answer(
        self, batch: Sequence[str], todo: Mapping[str, Collection[str]], take: Callable[[str, Row], None]
    ) -> None:
        """Lets runs answer a batch together; `take` gets each row of a run as it is made.

        batch: hashes of its documents. todo: for each run, by id, the hashes whose rows are wanted.
        """
        documents = [self._document(name) for name in batch]
        runs = [(self.runs[run_id], wanted) for run_id, wanted in todo.items()]
        with torch.inference_mode(), sharing(lm for run, _ in runs for lm in run.models):
            for run_id, (run, wanted) in zip(todo, runs, strict=True):
                for row in run.answer(documents, wanted):
                    take(run_id, row)

    def side_by_side(self, every: Sequence[Sequence[str]]) -> int:
        """Returns how many of the next batches (hashes) are written side by side; 1 where that saves nothing.

        A forward of a few tokens reads all weights: with more rows it takes little longer. The rows are
        `SIDE_BY_SIDE` at most, and so few that their caches take an eighth of the free memory.
        """
        rows, tokens, count, lm = 0, 0, 0, self.session.pair.receiver
        with torch.inference_mode():
            if not lm.joins:
                return 1
        each = lm.geometry.token_numbers * lm.dtype.itemsize
        most = free_bytes(lm.device) // 8
        for batch in every:
            documents = [self._document(name) for name in batch]
            rows += len(batch)
            if rows > SIDE_BY_SIDE or any(d.steps or d.parts for d in documents):
                break
            tokens += sum(length(d) // CHARACTERS + d.max_new_tokens for d in documents)
            if tokens * each > most:
                break
            count += 1
        return max(count, 1)

    def write_ahead(self, every: Sequence[Sequence[str]], todo: Mapping[str, Set[str]]) -> None:
        """Lets each run write the answers to several batches side by side; `answer` then gives its rows.

        todo: as in `answer`.
        """
        with torch.inference_mode(), sharing(lm for name in todo for lm in self.runs[name].models):
            for run_id, wanted in todo.items():
                left = [batch for batch in every if not wanted.isdisjoint(batch)]
                self.runs[run_id].write_ahead([[self._document(name) for name in batch] for batch in left])

    def latency(self, run_id: str, hashes: Sequence[str]) -> dict[str, dict[str, float]]:
        """Times documents alone and warm; returns the latency columns of each, by hash."""
        run = self.runs[run_id]
        with torch.inference_mode():
            run.warm_up()
            return {name: run.latency(self._document(name)) for name in hashes}

    def _document(self, name: str) -> Document:
        """A document of the opened group, by hash."""
        return next(known[name] for known in self._known if name in known)

    def release(self) -> None:
        """Forgets the opened group; the models stay."""
        self.opened = None
        self.runs, self._warm, self._known = {}, set(), []
        self.session.release()


def _alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs in groups that ask the very same documents, in the order given."""
    groups: dict[tuple[int, ...], list[Run]] = {}
    for each in runs:
        groups.setdefault(tuple(sorted(map(id, each.documents))), []).append(each)
    return list(groups.values())

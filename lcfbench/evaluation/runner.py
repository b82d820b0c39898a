"""From a recipe to recorded runs.

A run is one method on one task under one control and seed. Runs on the same documents are answered
together, batch by batch, over prefills that the models compute once; each run's rows are bit for bit
those it would have alone. The time that a shared prefill saved is added to each batch's time. Memory
is the process's: manifests record how many runs were answered together.

>>> for run_id in run(Recipe(mode=["receiver"], task=["splitfacts"], limit=32), progress): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain

import torch

from lcfbench.evaluation.plan import look_up, variants_of
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.record import Record, in_order
from lcfbench.evaluation.worker import Worker
from lcfbench.methods.load_pair import ROLES, roles_of
from lcfbench.models.dtypes import choose, pick_device
from lcfbench.models.memory import free_bytes
from lcfbench.progress import Progress
from lcfbench.provenance import usable_cpus
from lcfbench.sources.models import find_model, split_sharers

ROWS_THAT_PAY = 2000  # below, the start of a second process saves little
UNLIMITED = 500  # documents of a task, about, where no limit is given
AS_LOADED = 3  # times its files' size that a model takes at most, with its caches


def run(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """Runs all that the recipe asks for; yields each run's id when it is complete.

    On KeyboardInterrupt recorded rows are sealed first. Raises UserError: names, options, data and
    adapters are looked up before a model is loaded, all runs of a group before its first is opened.
    """
    if recipe.on or (recipe.processes or processes_that_pay(recipe)) > 1:
        yield from run_pooled(recipe, progress)
        return
    worker = Worker(recipe, progress)
    for group in worker.groups:
        records = [Record(asked, recipe, progress) for asked in worker.open(group)]
        with ExitStack() as opened:
            for each in in_order(records, recipe):
                each.open()
                opened.callback(each.writer.interrupt)  # does nothing to a run that was finished
            left = [each for each in records if not each.writer.complete]
            for lane in dict.fromkeys(each.asked.lane for each in left):
                _answer(worker, [each for each in left if each.asked.lane == lane], progress)
        worker.release()
        yield from (each.writer.run_id for each in records)


def processes_that_pay(recipe: Recipe) -> int:
    """Returns how many processes answer a recipe fastest that does not say: 1, or 2 on a CPU.

    Two of one thread beat one of two (`benchmarks/processes.py`), once the work is much longer than their
    start, where both find room.
    """
    rows = len(recipe.mode) * len(recipe.task) * len(recipe.control) * (recipe.limit or UNLIMITED)
    if rows < ROWS_THAT_PAY or usable_cpus() < 2 or on_gpu(recipe):
        return 1
    recipe.check_names()
    receiver, sharers = split_sharers(recipe.pair)
    folders = {find_model(name, offline=recipe.offline).path for name in (receiver, *sharers)}
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return 2 if 2 * AS_LOADED * size < free_bytes(torch.device("cpu")) else 1


def on_gpu(recipe: Recipe) -> bool:
    """Says whether models run on a GPU, where workers do not disturb each other's timings."""
    places = (recipe.device, recipe.receiver_device, recipe.sharer_device)
    kinds = {pick_device(place).type for place in places if place}
    return recipe.device_map is not None or kinds != {"cpu"}


def run_pooled(recipe: Recipe, progress: Progress) -> Iterator[str]:
    """As `run`, by several workers. The recipe is looked up here first: a mistake starts none of them."""
    from lcfbench.evaluation.pool import Pool, Workers
    from lcfbench.evaluation.processes import Processes
    from lcfbench.evaluation.ray_workers import RayWorkers

    variants_of(recipe, look_up(recipe))
    gpu = on_gpu(recipe)
    if recipe.dtype == "auto" and not gpu:
        choose(torch.device("cpu"))  # measured once, not by every worker beside the others
    with ExitStack() as stack:
        workers: Workers
        if recipe.on:
            gpus = 0.0 if recipe.device == "cpu" else recipe.gpus_per_worker
            workers = RayWorkers(recipe.on, recipe.processes, gpus)
        else:
            receiver, sharers = split_sharers(recipe.pair)
            for role, names in zip(ROLES, ([receiver], sharers), strict=True):
                for name in names if role in roles_of(recipe.methods) else ():
                    find_model(name, offline=recipe.offline)  # fetched once
            workers = Processes(recipe.processes or 2, on_cpu=not gpu)
        stack.callback(workers.stop)
        yield from Pool(recipe, progress, workers, stack).run()


def _answer(worker: Worker, records: Sequence[Record], progress: Progress) -> None:
    """Answers all that is left of runs that ask the same documents, and finishes them."""
    by_id, begun = {each.asked.run_id: each for each in records}, list[str]()
    try:
        for run_id, each in by_id.items():
            each.writer.record(together=len(records))
            begun.append(each.title)
            each.begin()
            each.writer.record(**worker.begin(run_id))
        batches, ahead = records[0].asked.batches, 0
        for number, batch in enumerate(batches):
            if number == ahead:
                ahead += worker.side_by_side(batches[number:])
                if ahead > number + 1:
                    some = batches[number:ahead]
                    worker.write_ahead(some, {i: each.left(chain(*some)) for i, each in by_id.items()})
            counts = [each.count for each in records]
            todo = {run_id: each.left(batch) for run_id, each in by_id.items()}
            worker.answer(batch, todo, lambda run_id, row: by_id[run_id].append(row))
            for each, before in zip(records, counts, strict=True):
                if each.count > before:
                    each.show()
        for run_id, each in by_id.items():
            each.tally.add(worker.runs[run_id].take_tally())
            each.finish(worker.runs[run_id].summary(each.writer.metrics()) if each.asked.sums else {})
    finally:
        for title in begun:
            progress.end(title)

"""Runs on the same documents, answered together: batch by batch, every method under every control, over what the models have read once.

Each run's answers are those it would have alone, bit for bit: a batch is read in one order, whoever gets whose message. To its batches' times is added
what the prefills it found done would have taken. Memory is the process's, with all that the runs made together hold: manifests say how many they are.

>>> sit(sittings, batch_size=16, latency_documents=5, progress=progress)        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from lcfbench.controls.wrappers import under
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.run import Loop
from lcfbench.evaluation.session import Asked
from lcfbench.models.causal_lm import CausalLM, sharing
from lcfbench.progress import Progress
from lcfbench.tasks.document import Document


@dataclass
class Sitting:
    """One run that is not complete. todo: hashes of the documents it still lacks."""

    title: str
    asked: Asked
    control: str
    loop: Loop
    todo: set[str] = field(default_factory=set)

    @property
    def ends(self) -> tuple[CausalLM, CausalLM]:
        return self.asked.ends

    def begin(self, latency_documents: int, progress: Progress) -> None:
        """Finds what is left to do and settles the method."""
        loop, documents = self.loop, self.asked.documents
        loop.right, loop.count = sum(loop.writer.before), len(loop.writer.before)
        self.todo = {d.hash for d in documents} - loop.writer.done
        progress.begin(self.title, len(documents), loop.count, loop.right)
        if self.asked.calibration:
            loop.writer.record(calibration=self.asked.calibrated)
        # only now: calibration is that of the method as it is
        loop.method = under(self.control, self.asked.method, self.asked.task.seed)
        loop.writer.record(sends=loop.method.sends)
        loop.warm_up(documents[0])
        loop.timed = self.todo & {d.hash for d in documents[:latency_documents]}

    def batch(self, documents: Sequence[Document], progress: Progress) -> None:
        """Answers a batch, unless all of it is recorded."""
        if any(d.hash in self.todo for d in documents):
            self.loop.batch(documents, self.todo)
            progress.update(self.title, self.loop.right, self.loop.count)

    def finish(self, progress: Progress) -> None:
        """Closes the run; what failed is said."""
        loop, documents, seconds = self.loop, self.asked.documents, self.loop.seconds
        if loop.retried and not loop.failures:  # else a document that fails explains it
            progress.warn(
                f"{self.title}: {len(loop.retried)} batches failed and were answered document by document; the first: {loop.retried[0]}"
            )
        if loop.failures:
            progress.warn(
                f"{len(loop.failures)} of {len(documents)} documents failed and count as wrong; the first: {loop.failures[0]}"
            )
        loop.writer.finish(
            {"documents_per_second": len(self.todo) / seconds if self.todo else None, "seconds": seconds}
        )


def sit(sittings: Sequence[Sitting], batch_size: int, latency_documents: int, progress: Progress) -> None:
    """Answers everything that is left of these runs, and finishes them."""
    with torch.inference_mode():
        for together in alike(sittings):
            begun: list[str] = []
            try:
                for each in together:
                    each.loop.writer.record(together=len(together))
                    begun.append(each.title)
                    each.begin(latency_documents, progress)
                for batch in batches(together[0].asked.documents, batch_size):
                    with sharing(e for each in together for e in each.ends):
                        for each in together:
                            each.batch(batch, progress)
                for each in together:
                    each.finish(progress)
            finally:
                for title in begun:
                    progress.end(title)


def alike(sittings: Iterable[Sitting]) -> list[list[Sitting]]:
    """Runs on the very same documents side by side, in the order given."""
    groups: dict[tuple[int, ...], list[Sitting]] = {}
    for each in sittings:
        groups.setdefault(tuple(sorted(map(id, each.asked.documents))), []).append(each)
    return list(groups.values())

"""One run's loop: batches, the rows they become, and the few documents that are timed alone."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer, predicted
from lcfbench.methods.base import Batch, Method
from lcfbench.models.causal_lm import apart
from lcfbench.models.memory import peak_memory_bytes, reset_peak_memory
from lcfbench.models.state import State
from lcfbench.models.timing import PHASES, Clock
from lcfbench.results.writer import RunWriter
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Outcome, Task

FAILURES = Exception  # a document that fails costs its own row and no more; what the store raises is outside, Ctrl-C is none


@dataclass
class Loop:
    """One run's batches and rows.

    params: of the adapter as saved, shut layers included. timed: hashes of the documents that are also timed alone.
    right, count: sum of scores and number of documents recorded, also in earlier sittings. seconds: what its batches took, or would have taken
    alone. failures: what went wrong in this one. retried: why batches were answered document by document.
    """

    task: Task
    method: Method
    writer: RunWriter
    senders: dict[str, Document]
    index: dict[str, int]
    folder: Path | None
    params: int = 0
    timed: AbstractSet[str] = frozenset()
    right: float = 0.0
    count: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)

    def _respond(self, documents: Sequence[Document]) -> tuple[State, list[Outcome], list[int], Clock]:
        clock = Clock(self.method.receiver.device)
        batch = Batch(documents, [self.senders[d.hash] for d in documents], clock)
        state = self.method.respond(batch)
        outcomes, tokens = answer(state, batch)
        return state, outcomes, tokens, clock

    def warm_up(self, document: Document) -> None:
        """Answers a document and forgets it: neither the first batch nor what is timed alone pays for what happens once."""
        with contextlib.suppress(FAILURES):  # its error row is written when it is its turn
            self._respond([document])

    def measure_latency(self, document: Document) -> dict[str, float]:
        """Batch-1, warm timings of a document, apart from the batched pass (the two are never mixed): nothing it needs is at hand already.

        Empty where the document fails.
        """
        with apart((self.method.receiver, self.method.sharer)):
            try:
                clock = self._respond([document])[3]
            except FAILURES:
                return {}  # its error row is written by the batched pass
            total = clock.total_ms()
        return {f"{p}_ms": clock.ms[p] for p in PHASES} | {"ttft_ms": clock.ttft_ms or 0.0, "ttea_ms": total}

    def batch(self, documents: Sequence[Document], todo: AbstractSet[str]) -> None:
        """Answers a batch and records those of its documents that are in `todo`; where it fails, they are tried alone.

        The whole batch runs again after a kill in its middle, so that the rest of its rows come out as they would have.
        """
        ends = {getattr(e, "real", e) for e in (self.method.receiver, self.method.sharer)}
        for end in ends:
            end.start_accounting()
        began = time.perf_counter()
        reset_peak_memory(self.method.receiver.device)
        try:
            state, outcomes, tokens, _ = self._respond(documents)
            rows = [self._row(d, state, outcomes[i], tokens[i], i) for i, d in enumerate(documents)]
        except FAILURES as error:
            reason = " ".join(str(error).split())[:500]
            reason = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
            if len(documents) > 1:
                self.seconds += time.perf_counter() - began
                kept = sum(end.release() for end in ends)  # what other runs of this batch have read
                if isinstance(error, (torch.OutOfMemoryError, MemoryError)) and kept:
                    self.batch(documents, todo)
                    return
                self.retried.append(reason)
                for document in documents:
                    if document.hash in todo:
                        self.batch([document], todo)
                return
            self.failures.append(reason)
            rows = [{"error": reason, "score": 0.0}]
        seconds = time.perf_counter() - began + sum(end.saved_seconds for end in ends)
        self.seconds += seconds
        measured = {
            "amortized_ms": seconds * 1e3 / len(documents),
            "batch_size": len(documents),
            "peak_memory_bytes": peak_memory_bytes(self.method.receiver.device),
        }
        wanted = [(d, row | measured) for d, row in zip(documents, rows, strict=True) if d.hash in todo]
        for document, row in sorted(
            wanted, key=lambda each: each[0].hash in self.timed
        ):  # what need not be timed first
            self._write(
                document, row | (self.measure_latency(document) if document.hash in self.timed else {})
            )

    def _row(
        self, document: Document, state: State, outcome: Outcome, answer_tokens: int, i: int
    ) -> dict[str, Any]:
        metrics = self.task.score(document, outcome)
        name, message, shown = self.task.metric(document.scoring), state.message, state.prompts[i]
        # who answered: the sharer's own tokens stand in the sharer's columns
        who = "sharer" if self.method.roles == ("sharer",) else "receiver"
        flops = state.lm.flops(len(shown.ids) + answer_tokens)
        flops += (
            message.adapter_flops[i] if message.adapter_flops else 0.0
        )  # one that edits its own cache works without sending
        if self.method.sends:
            flops += self.method.sharer.flops(message.sharer_tokens[i])
        read = message.read[i].text + message.read[i].tail if message.read else None
        return {
            "metric": name,
            "score": metrics[name],
            "metrics": metrics,
            "prediction": outcome.text if outcome.text is not None else predicted(document, outcome, name),
            "choices_loglikelihood": [[ll for ll, _ in step] for step in outcome.loglikelihoods] or None,
            "message_text": message.texts[i] if message.texts else None,
            "sharer_prompt": read,
            "sharer_prompt_sha256": _sha(read),
            "message_bytes": message.wire_bytes[i],
            "message_cache_bytes": message.cache_bytes[i],
            "sharer_tokens": message.sharer_tokens[i],
            f"{who}_prompt": shown.text + shown.tail,
            f"{who}_prompt_sha256": _sha(shown.text + shown.tail),
            f"{who}_tokens": len(shown.ids),
            "answer_tokens": answer_tokens,
            "flops": flops,
            "adapter_params": self.params,
            "adapter_bytes": (self.folder / "adapter.safetensors").stat().st_size if self.folder else 0,
        }

    def _write(self, document: Document, row: dict[str, Any]) -> None:
        self.right += float(row["score"])
        self.count += 1
        sender = self.senders[document.hash]
        self.writer.append(
            {
                "doc_id": document.doc_id,
                "doc_hash": document.hash,
                "doc_index": self.index[document.hash],
                "subject": document.subject,
                "gold": document.gold,
                "metric": self.task.metric(document.scoring),
                "message_from": sender.hash if self.method.sends else None,
                **row,
            }
        )


def _sha(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text is not None else None

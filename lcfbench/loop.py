"""One run's loop: batches, the rows they become, and the few documents that are timed alone."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from lcfbench.document import Document
from lcfbench.errors import UserError
from lcfbench.harness import Outcome, Task
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.scoring import answer
from lcfbench.state import State
from lcfbench.store import RunWriter
from lcfbench.timing import PHASES, Clock


class Progress(Protocol):
    """What the loop tells whoever watches."""

    def say(self, text: str) -> None: ...

    def begin(self, title: str, total: int, done: int) -> None: ...

    def update(self, right: float, documents: int, ms: float) -> None: ...

    def end(self) -> None: ...


def batches(documents: Sequence[Document], size: int) -> list[list[Document]]:
    """Documents of near length together, longest first: memory peaks at once, padding is small, and the order is the same every time."""
    order = sorted(documents, key=lambda d: (-len(d.receiver.user) - len(d.sharer.user), d.hash))
    groups: dict[tuple[Any, ...], list[Document]] = {}
    for d in order:  # what is scored differently cannot share a forward
        groups.setdefault((len(d.steps), d.until, d.max_new_tokens), []).append(d)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


@dataclass
class Loop:
    """One run's batches and rows."""

    task: Task
    method: Method
    writer: RunWriter
    senders: dict[str, Document]
    index: dict[str, int]
    folder: Path | None
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    right: float = 0.0
    count: int = 0

    def _respond(self, documents: Sequence[Document]) -> tuple[State, list[Outcome], list[int], Clock]:
        clock = Clock(self.method.receiver.device)
        batch = Batch(documents, [self.senders[d.hash] for d in documents], clock)
        state = self.method.respond(batch)
        outcomes, tokens = answer(state, batch)
        return state, outcomes, tokens, clock

    def measure_latency(self, documents: Sequence[Document]) -> None:
        """Batch-1, warm timings of a few documents, apart from the batched pass: the two are never mixed."""
        for number, document in enumerate([*documents[:1], *documents]):
            try:
                clock = self._respond([document])[3]
            except (UserError, RuntimeError):
                continue  # its error row is written by the batched pass
            if number:  # the first was the warm-up
                self.latency[document.hash] = {f"{p}_ms": clock.ms[p] for p in PHASES} | {
                    "ttft_ms": clock.ttft_ms or 0.0,
                    "ttea_ms": clock.total_ms(),
                }

    def batch(self, documents: list[Document], progress: Progress) -> None:
        """Answers a batch; where it fails, its documents are tried alone, and those that fail become error rows."""
        began = time.perf_counter()
        try:
            state, outcomes, tokens, _ = self._respond(documents)
        except (UserError, RuntimeError, ValueError, KeyError, IndexError) as error:
            if len(documents) > 1:
                for document in documents:
                    self.batch([document], progress)
                return
            self._write(
                documents[0],
                {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", "score": 0.0, "batch_size": 1},
            )
            progress.update(self.right, self.count, 0.0)
            return
        ms = (time.perf_counter() - began) * 1e3 / len(documents)
        for i, document in enumerate(documents):
            self._write(
                document,
                self._row(document, state, outcomes[i], tokens[i], i) | {"amortized_ms": ms, "batch_size": len(documents)},
            )
        progress.update(self.right, self.count, ms)

    def _row(self, document: Document, state: State, outcome: Outcome, answer_tokens: int, i: int) -> dict[str, Any]:
        metrics = self.task.score(document, outcome)
        name, message, shown = self.task.metric(document.scoring), state.message, state.prompts[i]
        picked = [s.choices[p].strip() for s, p in zip(document.steps, outcome.picks, strict=False)]
        alone = self.method.sends is False
        flops = state.endpoint.flops(len(shown.ids) + answer_tokens)
        if not alone:
            flops += self.method.sharer.flops(message.sharer_tokens[i]) + (message.adapter_flops[i] if message.adapter_flops else 0.0)
        adapter = self.method.adapter
        return {
            "metric": name,
            "score": metrics[name],
            "metrics": metrics,
            "prediction": outcome.text if outcome.text is not None else " → ".join(picked),
            "choices_loglikelihood": [[ll for ll, _ in step] for step in outcome.loglikelihoods] or None,
            "message_text": message.texts[i] if message.texts else None,
            "receiver_prompt_sha256": _sha(shown.text + shown.tail),
            "sharer_prompt_sha256": None if alone else _sha(prompt(self.method.sharer, self.senders[document.hash].sharer, document).text),
            "message_bytes": message.wire_bytes[i],
            "message_cache_bytes": message.cache_bytes[i],
            "sharer_tokens": message.sharer_tokens[i],
            "receiver_tokens": len(shown.ids),
            "answer_tokens": answer_tokens,
            "flops": flops,
            "adapter_params": adapter.params if adapter is not None else 0,
            "adapter_bytes": (self.folder / "adapter.safetensors").stat().st_size if self.folder else 0,
            **self.latency.get(document.hash, {}),
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
                "peak_memory_bytes": peak_memory_bytes(self.method.receiver.device),
                **row,
            }
        )


def peak_memory_bytes(device: torch.device) -> int:
    """High-water mark: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""Turns one answered document into the columns of its row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from lcfbench.methods.base import Method
from lcfbench.models.protocol import State
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Outcome, Task


@dataclass(frozen=True)
class Rows:
    """Makes the rows of one run.

    adapter_params: of the adapter as saved, layers with shut gates included. adapter_bytes: of its
    weights file.
    """

    task: Task
    method: Method
    adapter_params: int = 0
    adapter_bytes: int = 0

    def row(
        self, document: Document, state: State, outcome: Outcome, answer_tokens: int, i: int
    ) -> dict[str, Any]:
        """The columns that the answer to document `i` of a batch decides."""
        metrics, metric = self.task.score(document, outcome), self.task.metric(document.scoring)
        message, shown = state.message, state.prompts[i]
        # the sharer alone answers: its own tokens belong to the sharer's columns
        who = "sharer" if self.method.roles == ("sharer",) else "receiver"
        flops = state.lm.flops(len(shown.ids) + answer_tokens)
        flops += message.adapter_flops[i] if message.adapter_flops else 0.0  # also where nothing is sent
        if self.method.sends:
            flops += self.method.sharer.flops(message.sharer_tokens[i])
        sharer_prompt = message.read[i].text + message.read[i].tail if message.read else None
        return {
            "metric": metric,
            "score": metrics[metric],
            "metrics": metrics,
            "prediction": predicted(document, outcome, metric),
            "choices_loglikelihood": [[ll for ll, _ in step] for step in outcome.loglikelihoods] or None,
            "message_text": message.texts[i] if message.texts else None,
            "sharer_prompt": sharer_prompt,
            "sharer_prompt_sha256": _sha256(sharer_prompt),
            "message_bytes": message.wire_bytes[i],
            "message_cache_bytes": message.cache_bytes[i],
            "sharer_tokens": message.sharer_tokens[i],
            f"{who}_prompt": shown.text + shown.tail,
            f"{who}_prompt_sha256": _sha256(shown.text + shown.tail),
            f"{who}_tokens": len(shown.ids),
            "answer_tokens": answer_tokens,
            "thought": outcome.thought,
            "thought_tokens": outcome.thought_tokens,
            "flops": flops,
            "adapter_params": self.adapter_params,
            "adapter_bytes": self.adapter_bytes,
        }


def predicted(document: Document, outcome: Outcome, metric: str) -> str | None:
    """The answer as text: what was written, or the choices that the metric picks, step by step.

    None where there is no answer behind a thought.
    """
    if not outcome.parsed:
        return None
    if outcome.text is not None:
        return outcome.text
    picks = list(outcome.picks)
    if metric == "acc_norm":  # lm-eval divides by the characters of the choice, its delimiter left out
        choices, ranked = document.steps[-1].choices, outcome.loglikelihoods[-1]
        worth = [ll / max(len(c.removeprefix(" ")), 1) for c, (ll, _) in zip(choices, ranked, strict=True)]
        picks[-1] = worth.index(max(worth))
    return " → ".join(s.choices[p].strip() for s, p in zip(document.steps, picks, strict=True))


def _sha256(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text is not None else None

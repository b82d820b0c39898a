"""Turns one answered document into the columns of its row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcfbench.errors import StopRunError
from lcfbench.methods.base import Method
from lcfbench.models.protocol import Message, State
from lcfbench.results.messages import KeptMessage, spans_of
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt
from lcfbench.tasks.task import Outcome, Task

MESSAGE = "kept_message"  # beside the columns of a row, a `KeptMessage` on its way to the run's folder


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

    def conflict(self, document: Document, outcome: Outcome) -> dict[str, Any]:
        """Who won where the receiver's own text contradicts the message; nothing on other documents."""
        if document.rival is None:
            return {}
        metric = self.task.metric(document.scoring)
        both = (("message", document), ("text", document.rival))
        won = [who for who, asked in both if self.task.score(asked, outcome)[metric] > 0]
        return {"conflict_winner": won[0] if len(won) == 1 else "neither"}

    def kept(self, document: Document, sender: Document, state: State, at: range) -> KeptMessage | None:
        """A document's message as it is stored; None where nothing was sent.

        Raises StopRunError where it is sent and not as bytes.
        """
        parts = state.message.parts or [state.message]
        if all(part.packets is None and not any(part.wire_bytes[k] for k in at) for part in parts):
            return None
        if any(part.packets is None and any(part.wire_bytes[k] for k in at) for part in parts):
            what = f"method {type(self.method).__name__} hands its message over and makes no bytes of it"
            raise StopRunError(f"{what}, so --keep-messages has none to store.", "Leave it out.")
        about: dict[str, Any] = {
            "doc_id": document.doc_id,
            "doc_hash": document.hash,
            "message_from": sender.hash,
            "text": all(is_text(part, at) for part in parts),
        }
        if len(parts) > 1:
            about["sharers"] = len(parts)
        if all(part.kept is not None and part.read is not None for part in parts):
            tokenizers = [lm.tokenizer for lm in self.method.sharers[: len(parts)]]
            about["spans"] = [
                spans_in(tokenizer, part.read[k], part.kept[k])
                for tokenizer, part in zip(tokenizers, parts, strict=True)
                for k in at
                if part.read is not None and part.kept is not None
            ]
        packets = (b"" if part.packets is None else part.packets[k] for part in parts for k in at)
        return KeptMessage(tuple(packets), about)

    def row(
        self, document: Document, state: State, outcome: Outcome, answer_tokens: int, at: range
    ) -> dict[str, Any]:
        """The columns that the answer to a document decides.

        at: its rows of the batch. Where it has several, texts are those of the first; counts are sums.
        """
        i = at[0]
        metrics, metric = dict(self.task.score(document, outcome)), self.task.metric(document.scoring)
        rule = metrics.pop("parsed_by", None)
        message, shown = state.message, state.prompts[i]
        # the sharer alone answers: its own tokens belong to the sharer's columns
        who = "sharer" if self.method.roles == ("sharer",) else "receiver"
        read = [len(state.prompts[k].ids) for k in at]
        flops = state.lm.flops(read[0] + answer_tokens) + sum(map(state.lm.flops, read[1:]))
        flops += sum(message.adapter_flops[k] for k in at) if message.adapter_flops else 0.0
        if self.method.sends:  # an adapter's count also where nothing is sent
            each = list(zip(self.method.sharers, message.parts or [message], strict=True))
            flops += sum(lm.flops(part.sharer_tokens[k]) for lm, part in each for k in at)
        read_by = [part.read[i] for part in message.parts or [message] if part.read]
        sharer_prompt = "\n\n".join(p.text + p.tail for p in read_by) if read_by else None
        return {
            "metric": metric,
            "score": metrics[metric],
            "metrics": metrics,
            "prediction": predicted(document, outcome, metric),
            "parsed": parsed(outcome, metrics),
            "parsed_by": rule if outcome.parsed else "unfinished",
            "choices_loglikelihood": [[ll for ll, _ in step] for step in outcome.loglikelihoods] or None,
            "message_text": message.texts[i] if message.texts else None,
            "sharer_prompt": sharer_prompt,
            "sharer_prompt_sha256": _sha256(sharer_prompt),
            "message_bytes": sum(message.wire_bytes[k] for k in at),
            "message_cache_bytes": sum(message.cache_bytes[k] for k in at),
            "request_bytes": _sum(message.request_bytes, at),
            "message_token_bytes": _sum(message.token_bytes, at),
            "each_message_bytes": _each(message, "wire_bytes", at),
            "each_sharer_tokens": _each(message, "sharer_tokens", at),
            "sharer_tokens": sum(message.sharer_tokens[k] for k in at),
            f"{who}_prompt": shown.text + shown.tail,
            f"{who}_prompt_sha256": _sha256(shown.text + shown.tail),
            f"{who}_tokens": sum(read),
            "answer_tokens": answer_tokens,
            "thought": outcome.thought,
            "thought_tokens": outcome.thought_tokens,
            "flops": flops,
            "adapter_params": self.adapter_params,
            "adapter_bytes": self.adapter_bytes,
        }


def is_text(message: Message, at: range) -> bool:
    """Whether the bytes that crossed are a message's text in UTF-8."""
    if message.texts is None or message.packets is None:
        return False
    return all(message.packets[k] == message.texts[k].encode("utf-8", "replace") for k in at)


def spans_in(tokenizer: Any, read: Prompt, kept: Sequence[int]) -> list[dict[str, Any]]:
    """The spans of a sharer's prompt whose entries are sent, as places of tokens and as text."""
    return [{"start": a, "stop": b, "text": tokenizer.decode(list(read.ids[a:b]))} for a, b in spans_of(kept)]


def parsed(outcome: Outcome, metrics: Mapping[str, Any]) -> bool | None:
    """Whether the answer was read; None where the task's scores do not say `parsed`."""
    if not outcome.parsed:
        return False
    return bool(metrics["parsed"]) if "parsed" in metrics else None


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


def _each(message: Message, name: str, at: range) -> list[int] | None:
    """The sum over a document's rows of the batch for each of several sharers; None with one."""
    return [sum(getattr(part, name)[k] for k in at) for part in message.parts] if message.parts else None


def _sum(sizes: Sequence[int] | None, at: range) -> int | None:
    """The sum over a document's rows of the batch; None where nothing is counted."""
    return sum(sizes[k] for k in at) if sizes else None


def _sha256(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text is not None else None

"""The prompts of both models and their lengths, without any weights: `lcfbench run --dry-run`.

>>> next(preview(documents, receiver_tokenizer, sharer_tokenizer))["receiver"]["tokens"]  # doctest: +SKIP
64
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lcfbench.tasks.document import Document, View
from lcfbench.tasks.prompts import behind_thought, continuations, extend, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def preview(
    documents: Iterable[Document],
    receiver_tokenizer: PreTrainedTokenizerBase,
    *sharer_tokenizers: PreTrainedTokenizerBase,
) -> Iterator[dict[str, Any]]:
    """Yields one JSON-ready row a document. sharer_tokenizers: one for each sharer.

    receiver, full, noted (read by the receiver), sharer, request (read by the sharer): {prompt, tokens},
    and, where there is any, `tail`, whitespace that is scored with each choice (lm-eval's rule),
    `behind_thought`, the text behind the thought that the model writes first, `special_text`, the special
    tokens that stand in it as text, `adapted`, how it was changed for the chat template.
    With several sharers `sharer` and `request` are lists, an entry for each.
    steps: {lead, choices: [{text, tokens}], gold}; leads are filled in with the right choices of
    the steps before.
    """
    for document in documents:
        steps, picked = [], list[str]()
        choices = bool(document.steps)
        prompt = render(document.receiver, receiver_tokenizer, chat=document.chat, choices=choices)
        if prompt.closing is not None:  # choices follow a thought, which is not written yet
            prompt = behind_thought(prompt, "", receiver_tokenizer, choices=choices)
        for step in document.steps:
            lead = step.led(picked)
            prompt = extend(prompt, lead, receiver_tokenizer) if lead else prompt
            lengths = [len(ids) for ids in continuations(prompt, step.choices, receiver_tokenizer)]
            ranked = [{"text": t, "tokens": n} for t, n in zip(step.choices, lengths, strict=True)]
            steps.append({"lead": lead, "choices": ranked, "gold": list(step.gold)})
            picked.append(step.choices[step.gold[0]])
        parts = document.met_by(len(sharer_tokenizers))
        yield {
            "task": document.task,
            "doc_id": document.doc_id,
            "hash": document.hash,
            "scoring": document.scoring,
            "gold": document.gold,
            "receiver": _seen(document, document.receiver, receiver_tokenizer),
            "sharer": _each(parts, "sharer", sharer_tokenizers),
            "full": _seen(document, document.full, receiver_tokenizer),
            "request": _each(parts, "request", sharer_tokenizers, writes=True),
            "noted": _seen(document, document.noted, receiver_tokenizer),
            "steps": steps,
            "until": list(document.until),
            "max_new_tokens": document.max_new_tokens,
        }


def _each(
    parts: Sequence[Document], role: str, tokenizers: Sequence[PreTrainedTokenizerBase], writes: bool = False
) -> Any:
    seen = [
        _seen(part, getattr(part, role), tokenizer, writes)
        for part, tokenizer in zip(parts, tokenizers, strict=True)
    ]
    return seen if len(seen) > 1 else seen[0]


def _seen(
    document: Document, view: View, tokenizer: PreTrainedTokenizerBase, writes: bool = False
) -> dict[str, Any]:
    prompt = render(view, tokenizer, chat=document.chat, choices=bool(document.steps) and not writes)
    seen = {"prompt": prompt.text, "tokens": len(prompt.ids), "tail": prompt.tail}
    if prompt.closing is not None:
        seen["behind_thought"] = prompt.closing + prompt.begin
    seen |= {"special_text": prompt.special, "adapted": prompt.adapted}
    return {name: value for name, value in seen.items() if value or name in ("prompt", "tokens")}

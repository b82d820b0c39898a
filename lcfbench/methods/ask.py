"""Asks a method one question and shows the message that crossed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lcfbench.models.answering import decode
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import NOTE, Document, View

if TYPE_CHECKING:
    from lcfbench.methods.base import Method

BACKGROUND = (
    "In one sentence, state the background knowledge that helps most to answer this question. "
    "Do not answer it.\nQuestion: {}\n"
)


@dataclass(frozen=True)
class Answer:
    """An answer and its message.

    message: the text that crossed, None where it was a cache or latents. message_bytes: its size;
    0 where nothing was sent. first_token_ms: from the question to the first answer token.
    """

    text: str
    message: str | None
    message_bytes: int
    receiver_prompt: str
    sharer_prompt: str | None
    first_token_ms: float

    def __str__(self) -> str:
        return self.text


def document_of(
    question: str, receiver_notes: str, sharer_notes: str, begin: str, max_new_tokens: int
) -> Document:
    """A question as a document: plain, or with notes that each model reads alone."""
    shared = not (receiver_notes or sharer_notes)
    if shared:
        view = View(question, begin)
        request = View(BACKGROUND.format(question), "Background knowledge: It is known that")
        receiver, sharer, full, noted = view, view, view, View(f"{NOTE}\n\n{question}", begin)
    else:
        receiver, sharer, full, noted = (
            View(
                f"{f'Notes: {text.strip()}' if text.strip() else ''}\nQuestion: {question}\nAnswer:".strip(),
                begin,
            )
            for text in (
                receiver_notes,
                sharer_notes,
                f"{sharer_notes} {receiver_notes}",
                f"{NOTE} {receiver_notes}",
            )
        )
        request = sharer
    return Document(
        "question",
        "0",
        receiver,
        sharer,
        full,
        request,
        noted,
        "generate",
        "",
        shared=shared,
        chat=shared,
        until=("\n",),
        request_until=("\n",),
        max_new_tokens=max_new_tokens,
    )


@torch.inference_mode()
def ask(
    method: Method,
    question: str,
    receiver_notes: str = "",
    sharer_notes: str = "",
    begin: str = "",
    max_new_tokens: int = 32,
) -> Answer:
    """Lets a method answer one question.

    Without notes both models read the question. With notes each model reads its own only. begin: the
    first words of the answer. Raises UserError where the method cannot serve such a question.
    """
    from lcfbench.methods.base import Batch

    document = document_of(question, receiver_notes, sharer_notes, begin, max_new_tokens)
    method.check(document)
    clock = Clock(method.receiver.device)
    state = method.respond(Batch([document], [document], clock))
    opened = state.lm.open(state)
    clock.first_token()
    texts, _ = decode(opened, max_new_tokens, document.until)
    message, shown = state.message, state.prompts[0]
    return Answer(
        texts[0].strip(),
        message.texts[0] if message.texts else None,
        message.wire_bytes[0],
        shown.text + shown.tail,
        message.read[0].text + message.read[0].tail if message.read else None,
        clock.ttft_ms or 0.0,
    )

"""One question as a document, and its answer with the message that crossed."""

from __future__ import annotations

from dataclasses import dataclass

from lcfbench.methods._lengths import check_state
from lcfbench.models.finite import check_cache
from lcfbench.models.protocol import State
from lcfbench.models.thinking import speak, think
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import NOTE, Document, View, background_request


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
    if shared := not (receiver_notes or sharer_notes):
        receiver = sharer = full = View(question, begin)
        noted = View(f"{NOTE}\n\n{question}", begin)
        request = background_request(question)
    else:
        receiver, sharer = _view(receiver_notes, question, begin), _view(sharer_notes, question, begin)
        full = _view(f"{sharer_notes} {receiver_notes}", question, begin)
        noted, request = _view(f"{NOTE} {receiver_notes}", question, begin), sharer
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


def _view(notes: str, question: str, begin: str) -> View:
    """A question behind the notes that one model reads, if any."""
    before = f"Notes: {notes.strip()}\n" if notes.strip() else ""
    return View(f"{before}Question: {question}\nAnswer:", begin)


def answer_of(state: State, clock: Clock, document: Document) -> Answer:
    """Writes the answer from the state that a method leaves for one document.

    Raises NotFiniteError and TooLongError.
    """
    check_cache(state.kv, f"the cache from which {state.lm.name} answers")
    message, shown = state.message, state.prompts[0]
    state, thoughts = think(state, choices=False)
    check_state(state, [document.max_new_tokens])
    opened = state.lm.open(state)
    clock.first_token()
    texts, _ = speak(opened, document.max_new_tokens, document.until)
    text = "" if thoughts and not thoughts[0].closed else texts[0] or ""
    return Answer(
        text.strip(),
        message.texts[0] if message.texts else None,
        message.wire_bytes[0],
        shown.text + shown.tail,
        message.read[0].text + message.read[0].tail if message.read else None,
        clock.ttft_ms or 0.0,
    )

"""Whether a prompt, what stands beside it and the answer have room in a model, before anything is read.

>>> check_room(receiver, shown, document, beside=len(sent.ids))   # raises TooLongError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.models.protocol import LanguageModel, State
from lcfbench.tasks.chat_template import budget_of, thinking_of
from lcfbench.tasks.document import Document, View
from lcfbench.tasks.prompts import Prompt, continuations, extend, rendered

if TYPE_CHECKING:
    from lcfbench.methods.base import Method

STEP = "Use a model with a longer context."


class TooLongError(UserError):
    """A text and its answer need more positions than a model has."""


def check_room(
    lm: LanguageModel, shown: Prompt, document: Document, beside: int = 0, written: int | None = None
) -> None:
    """Raises TooLongError where a model has too few positions for a prompt and the answer to it.

    beside: further positions, of entries in front or of padding. written: tokens that are written at
    most; without it the document's answer: its `max_new_tokens`, or the longest choices. The last
    token of an answer is never read.
    """
    limit = lm.max_positions
    if limit is None:
        return
    if shown.closing is not None:  # a thought without a budget takes the room that there is
        beside += (budget_of(thinking_of(lm.tokenizer)) or 0) + len((shown.closing + shown.begin).encode())
    read = len(shown.ids) + beside
    more = answer_length(document, shown, lm.tokenizer, limit - read) if written is None else written
    if (needed := read + max(more - 1, 0)) > limit:
        parts = [f"a prompt of {len(shown.ids):,} tokens"]
        parts += [f"{beside:,} positions beside it"] if beside else []
        parts += [f"a text of up to {more:,} tokens behind it"] if more > 1 else []
        what = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
        verb = "need" if parts[1:] else "needs"
        raise TooLongError(f"{what} {verb} {needed:,} positions; {lm.name} has {limit:,}.", STEP)


def too_long(
    method: Method, documents: Sequence[Document], message_from: Mapping[str, Document]
) -> dict[str, str]:
    """Returns why documents have no room in a method's models, by hash.

    message_from: the document whose message each gets. Tokens are counted only where the bytes of the
    texts are too many.
    """
    lms = (method.receiver, *method.sharers)
    limits = [lm.max_positions for lm in lms if lm.max_positions is not None]
    if not limits:
        return {}
    senders = [message_from[d.hash] for d in documents]
    frames = {chat: frame_bytes(chat, lms) for chat in {d.chat for d in chain(documents, senders)}}
    thought = max(budget_of(thinking_of(lm.tokenizer)) or 0 for lm in lms)
    moved = (s for d, s in zip(documents, senders, strict=True) if s is not d)
    other = {s.hash: text_bytes(s, frames[s.chat])[1] for s in moved}
    found = {}
    for d, sender in zip(documents, senders, strict=True):
        mine, theirs = text_bytes(d, frames[d.chat])
        sent = theirs if sender is d else other[sender.hash]
        if mine + len(method.sharers) * max(theirs, sent) + method.added + thought > min(limits):
            try:
                method.check_length(d, sender)
            except TooLongError as error:
                found[d.hash] = str(error)
    return found


def check_state(state: State, written: Sequence[int]) -> None:
    """Raises TooLongError where a model has too few positions to write `written` tokens a row."""
    limit = state.lm.max_positions
    if limit is None:
        return
    for last, more in zip(state.positions[:, -1].tolist(), written, strict=True):
        if (needed := last + max(more, 1)) > limit:
            what = f"an answer of up to {more:,} tokens behind position {last:,} needs {needed:,} positions"
            raise TooLongError(f"{what}; {state.lm.name} has {limit:,}.", STEP)


def answer_length(document: Document, shown: Prompt, tokenizer: Any, room: int) -> int:
    """Returns the tokens from a prompt's end to the end of the longest answer.

    Choices and leads are cut into tokens only where their bytes are more than `room`: no token is
    shorter than a byte.
    """
    if not document.steps:
        return document.max_new_tokens
    if (most := answer_bytes(document)) <= room:
        return most
    longest, picked, prompt = 0, list[str](), shown
    for number, step in enumerate(document.steps):
        if number:
            prompt = extend(prompt, step.led(picked), tokenizer)
        sizes = [len(ids) for ids in continuations(prompt, step.choices, tokenizer)]
        longest = max(longest, len(prompt.ids) - len(shown.ids) + max(sizes))
        picked.append(step.choices[sizes.index(max(sizes))])
    return longest


def answer_bytes(document: Document) -> int:
    """Returns the bytes of the longest answer with the texts between its steps; at least its tokens."""
    picked, total, last = list[str](), 0, document.max_new_tokens
    for number, step in enumerate(document.steps):
        total += len(step.led(picked).encode()) if number else 0
        picked.append(max(step.choices, key=lambda c: len(c.encode())))
        last = len(picked[-1].encode())
    return total + last


def text_bytes(document: Document, frame: int) -> tuple[int, int]:
    """Returns more than the tokens that a receiver reads and writes, and that a sharer does.

    Both of the longest view, with its template. frame: see `frame_bytes`.
    """

    def longest(*views: View) -> int:
        turns = [[*(text for _, text in view.history), view.user, view.prefix] for view in views]
        return max(sum(len(text.encode()) for text in each) + (len(each) + 2) * frame for each in turns)

    d = document
    mine = longest(d.receiver, d.full, d.noted) + len(d.request.user.encode()) + frame  # t2t's earlier turn
    return mine + answer_bytes(d), longest(d.sharer, d.request, d.receiver) + answer_bytes(d)


def frame_bytes(chat: bool, lms: Sequence[LanguageModel]) -> int:
    """Returns the bytes of the longest of the models' templates round one turn."""
    return max(len(rendered(View("a"), lm.tokenizer, chat and lm.has_chat).encode()) for lm in lms)

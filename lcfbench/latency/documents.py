"""Documents of exact length from a task's real text, and answers of exact length.

>>> document = of_length(load_task("openbookqa"), 256, receiver)
>>> with unstopped(method): ...   # no end-of-text token ends an answer or a note early
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from lcfbench.errors import UserError
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods.base import Method
from lcfbench.models.causal_lm import CausalLM
from lcfbench.tasks.document import NOTE, Document, View
from lcfbench.tasks.prompts import render
from lcfbench.tasks.splitfacts import vocabulary

SOURCE = 16  # documents whose text is used, one after the other and then again
BACK = 64  # words that may be taken away in search of a text of exact length
FILLERS = (" a", " the", " 1", ".", " I", ",")
SHORTEST = FILLERS[0].strip()


class Texts(Protocol):
    """Where the text of documents comes from: a task, or `Words`."""

    @property
    def name(self) -> str: ...

    @property
    def shared(self) -> bool: ...

    def documents(
        self, *, limit: int | None = None, split: str = "test", receiver_chat: bool = True
    ) -> list[Document]: ...


@dataclass(frozen=True)
class Words:
    """Words of this package in place of a task's text: they are on every machine.

    shared: whether both models read the same. What is written costs no more or less than a task's text.
    """

    shared: bool

    @property
    def name(self) -> str:
        return "words" if self.shared else "words-apart"

    def documents(
        self, *, limit: int | None = None, split: str = "test", receiver_chat: bool = True
    ) -> list[Document]:
        """One document of all words, for any question."""
        words = " ".join(vocabulary("trained"))
        view, note = View(words), View(f"{NOTE}\n\n{words}")
        return [Document(self.name, "0", view, view, view, view, note, "generate", "", shared=self.shared)]


def of_length(
    task: Texts, tokens: int, receiver: CausalLM, answer_tokens: int = 1, sharers: int = 1
) -> Document:
    """Makes a document whose prompt, template included, has exactly `tokens` receiver tokens.

    The sharer's own text and its request for a note are as long, by the receiver's tokenizer; on
    different contexts the full view, which is both texts, is twice as long. A view may be longer
    where its template is. The answer is free text of at most `answer_tokens`. On different contexts each of
    several sharers has a text of that length of its own.
    Raises UserError where the template alone is longer.
    """
    source = task.documents(limit=SOURCE, receiver_chat=receiver.has_chat)
    first = source[0]
    chat = first.chat and receiver.has_chat

    def length(view: View) -> int:
        return len(render(view, receiver.tokenizer, chat=chat, choices=False).ids)

    def view(role: str, count: int, number: int = 0) -> View:
        prefix = getattr(first, role).prefix
        words = [w for d in source for w in re.findall(r"\S+\s*", getattr(d, role).user + "\n")]
        begin = number * len(words) // sharers
        words = words[begin:] + words[:begin]
        return View(exactly(words, count, lambda user: length(View(user, prefix))), prefix)

    least = length(View(SHORTEST, first.receiver.prefix))
    if tokens < least:
        taken = f"the template of {task.name} and one word take {receiver.name} {least} already"
        raise UserError(f"{tokens} prompt tokens: {taken}.", f"Give --prompt-tokens {least} or more.")
    mine = view("receiver", tokens)
    theirs, full = (mine, mine) if task.shared else (view("sharer", tokens), view("full", 2 * tokens))
    dealt = range(sharers) if sharers > 1 and not task.shared else ()
    return replace(
        first,
        sharers=tuple(view("sharer", tokens, k) for k in dealt),
        requests=tuple(view("request", tokens, k) for k in dealt),
        doc_id=f"bench-{tokens}",
        receiver=mine,
        sharer=theirs,
        full=full,
        request=view("request", tokens),
        noted=View(f"{NOTE}\n\n{mine.user}", mine.prefix),
        scoring="generate",
        gold="",
        steps=(),
        until=(),
        request_until=(),
        max_new_tokens=answer_tokens,
    )


def exactly(words: Sequence[str], tokens: int, count: Callable[[str], int]) -> str:
    """Makes a text with `count(text) == tokens` of the first words, repeated where they are few.

    Short words fill the last gap. One word where that already has more tokens.
    Raises UserError where no text of that length is found.
    """

    def text(n: int) -> str:
        return "".join(words[i % len(words)] for i in range(n)).rstrip()

    low, high = 0, tokens
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text(middle)) <= tokens else (low, middle - 1)
    if low == 0 and count(SHORTEST) >= tokens:
        return SHORTEST
    for n in range(low, max(low - BACK, -1), -1):
        gap = tokens - count(text(n))
        for filler in FILLERS:
            if gap >= 0 and count(filled := (text(n) + filler * gap).lstrip()) == tokens:
                return filled
    raise UserError(
        f"no text of exactly {tokens} tokens could be made from the task's words.",
        "Try one token more or less.",
    )


def models_of(method: Method) -> list[CausalLM]:
    """The models that a method holds, each once."""
    held = (e for each in methods_of(method) for e in vars(each).values() if isinstance(e, CausalLM))
    return list({id(e): e for e in held}.values())


def methods_of(method: Method) -> list[Method]:
    """The method of each sharer; mostly it alone."""
    return method.methods if isinstance(method, SeveralSharers) else [method]


@contextmanager
def unstopped(method: Method) -> Iterator[None]:
    """Lets no token end the texts that a method's models write: notes and answers get their full length."""
    models = models_of(method)
    for model in models:
        vars(model)["stop_ids"] = set  # the instance's own, called like the method: an empty set
    try:
        yield
    finally:
        for model in models:
            vars(model).pop("stop_ids", None)

"""Documents of exact length from a task's real text, and the means to get answers of exact length.

>>> document = of_length(load_task("openbookqa"), 256, receiver)
>>> with unstopped(method): ...   # no end-of-text token ends an answer or a note early
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lcfbench.errors import UserError
from lcfbench.methods.base import Method
from lcfbench.models.causal_lm import CausalLM
from lcfbench.tasks.document import NOTE, Document, View
from lcfbench.tasks.prompts import render
from lcfbench.tasks.task import Task

SOURCE = 16  # documents whose text is used, one after the other and then again
BACK = 64  # words that may be taken away in search of a text that comes out exactly
FILLERS = (" a", " the", " 1", ".", " I", ",")


def of_length(task: Task, tokens: int, receiver: CausalLM, answer_tokens: int = 1) -> Document:
    """A document whose prompt, template and all, takes the receiver exactly `tokens` tokens, answered freely in `answer_tokens` at most.

    The sharer's own text, what it is asked for a note, and (on different contexts, where it is both texts: twice) the full view are as
    long by the receiver's tokenizer, or as short as their templates allow. Raises UserError where the template alone is longer.
    """
    source = task.documents(limit=SOURCE, receiver_chat=receiver.has_chat)
    first = source[0]
    chat = first.chat and receiver.has_chat

    def view(role: str, wanted: int) -> View:
        prefix = getattr(first, role).prefix
        words = [w for d in source for w in re.findall(r"\S+\s*", getattr(d, role).user + "\n")]
        count = lambda user: len(render(View(user, prefix), receiver.tokenizer, chat=chat, choices=False).ids)  # noqa: E731
        return View(exactly(words, wanted, count), prefix)

    least = len(
        render(
            View(FILLERS[0].strip(), first.receiver.prefix), receiver.tokenizer, chat=chat, choices=False
        ).ids
    )
    if tokens < least:
        raise UserError(
            f"{tokens} prompt tokens: the template of {task.name} and one word take {receiver.name} {least} already.",
            f"Give --prompt-tokens {least} or more.",
        )
    mine = view("receiver", tokens)
    theirs, full = (mine, mine) if task.shared else (view("sharer", tokens), view("full", 2 * tokens))
    return replace(
        first,
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


def exactly(words: Sequence[str], wanted: int, count: Callable[[str], int]) -> str:
    """The first of the words, over and over where they are few, so that the `count` of the text is `wanted`; the last gap is filled with short ones.

    As little as one word where that already counts more. Raises UserError where no text of that length is found.
    """
    text = lambda n: "".join(words[i % len(words)] for i in range(n)).rstrip()  # noqa: E731
    low, high = 0, wanted
    while low < high:  # the most words that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text(middle)) <= wanted else (low, middle - 1)
    if low == 0 and count(FILLERS[0].strip()) >= wanted:
        return FILLERS[0].strip()
    for n in range(low, max(low - BACK, -1), -1):
        gap = wanted - count(text(n))
        for filler in FILLERS:
            if gap >= 0 and count(filled := (text(n) + filler * gap).lstrip()) == wanted:
                return filled
    raise UserError(
        f"no text of exactly {wanted} tokens could be made from the task's words.",
        "Try one token more or less.",
    )


def models_of(method: Method) -> list[CausalLM]:
    """Every model the method holds, each once."""
    return list({id(e): e for e in vars(method).values() if isinstance(e, CausalLM)}.values())


@contextmanager
def unstopped(method: Method) -> Iterator[None]:
    """Within it no token ends what the method's models write: notes and answers are as long as they may be."""
    models = models_of(method)
    for model in models:
        vars(model)["stop_ids"] = set  # the instance's own, called like the method: an empty set
    try:
        yield
    finally:
        for model in models:
            vars(model).pop("stop_ids", None)

"""Thoughts of thinking models: written before an answer, closed, and told apart from it.

>>> state, thoughts = think(method.respond(batch), choices=True)                  # doctest: +SKIP
>>> thoughts[0].text, thoughts[0].tokens, thoughts[0].closed                      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lcfbench.errors import UserError
from lcfbench.models.answering import cut, write, write_together
from lcfbench.models.protocol import Opened, State
from lcfbench.tasks.chat_template import Thought, budget_of, chat_of, thinking_of
from lcfbench.tasks.prompts import behind_thought

LONGEST = 4096  # tokens of a thought without a budget
RESERVE = 64  # positions kept for what follows a thought
PLAIN = Thought("<think>", "</think>")  # looked for behind every prompt


@dataclass(frozen=True)
class Written:
    """A thought: its text, its tokens as written, and whether it ended before the answer began.

    added: tokens that closed it and began the answer; they were given, not written.
    """

    text: str
    tokens: int
    closed: bool
    added: int


def think(state: State, *, choices: bool) -> tuple[State, list[Written] | None]:
    """Lets the model write its thoughts, where its prompts end in open ones.

    Returns the state in which the answers begin, behind closed thoughts; None for prompts without
    thoughts. A thought ends with the template's own marker. One that reaches its budget is cut and
    closed by that marker; without a budget, one that has no end after `LONGEST` tokens, or where the
    model's positions end, is unfinished, and what follows it is no answer. choices: continuations will
    be scored. Raises UserError where a budget does not fit into the model's positions.
    """
    lm, prompts = state.lm, state.prompts
    if all(p.closing is None for p in prompts):
        return state, None
    tokenizer = lm.tokenizer
    chat = chat_of(tokenizer)
    assert chat is not None and chat.thought is not None
    thought, budget = chat.thought, budget_of(thinking_of(tokenizer))
    opened = lm.open(state)
    limits = [budget or LONGEST] * len(prompts)
    if lm.max_positions:
        rooms = [lm.max_positions - last - RESERVE for last in state.positions[:, -1].tolist()]
        if min(rooms) < max(budget or 0, 1):
            what = f"a thought of {limits[0]} tokens does not fit behind the prompt; {lm.name} reads"
            raise UserError(f"{what} {lm.max_positions}.", "Use a smaller --thinking budget.")
        limits = [min(pair) for pair in zip(limits, rooms, strict=True)]
    written = _written(opened, limits, thought.closes)
    rows, after, found = [], [], []
    for prompt, ids in zip(prompts, written, strict=True):
        kept, rest, closed = _split(tokenizer, ids, thought.closes)
        text = tokenizer.decode(ids, skip_special_tokens=False).partition(thought.closes)[0]
        lead = thought.lead if not closed and not text.endswith("\n") else ""
        more = behind_thought(prompt, rest + lead, tokenizer, choices=choices)
        rows.append([*kept, *more.ids])
        after.append(more)
        found.append(Written(text.strip(), len(ids), closed or budget is not None, len(more.ids)))
    return opened.then(rows, after), found


def _written(opened: Opened, limits: Sequence[int], marker: str) -> list[list[int]]:
    """Returns the tokens of each row up to its own limit; rows of one limit are written together."""
    if len(set(limits)) == 1:
        return write(opened, limits[0], (marker,))
    found: dict[int, list[int]] = {}
    for limit in sorted(set(limits)):
        rows = [i for i, own in enumerate(limits) if own == limit]
        index = torch.tensor(rows, device=opened.logits.device)
        found |= zip(rows, write(opened.rows_at(index), limit, (marker,)), strict=True)
    return [found[i] for i in range(len(limits))]


def _split(tokenizer: Any, ids: list[int], marker: str) -> tuple[list[int], str, bool]:
    """Returns the tokens before a marker, the text between them and it, and whether it is there."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    before, found, _ = text.partition(marker)
    if not found:
        return ids, "", False
    for count in range(len(ids), -1, -1):
        start = tokenizer.decode(ids[:count], skip_special_tokens=False)
        if before.startswith(start):
            return ids[:count], before[len(start) :], True
    return [], before, True


Spoken = tuple[list[str | None], list[int]]


def speak(opened: Opened, max_new_tokens: int, until: Sequence[str] = ()) -> Spoken:
    """Writes answers greedily, as `decode`; see `spoken` for what a thought does to them."""
    return speak_together([(opened, max_new_tokens, until)])[0]


def speak_tokens(
    opened: Opened, max_new_tokens: int, until: Sequence[str] = ()
) -> tuple[list[str | None], list[list[int]]]:
    """Returns what `speak` does, with the tokens written in the place of their number."""
    tokenizer = opened.lm.tokenizer
    chat = chat_of(tokenizer)
    ends = chat.thought.ends if chat and chat.thought else ()
    written = write(opened, max_new_tokens, (*until, *ends))
    return [spoken(tokenizer, ids, until) for ids in written], written


def speak_together(asked: Sequence[tuple[Opened, int, Sequence[str]]]) -> list[Spoken]:
    """Returns what `speak` does for each of several batches of one model, which write side by side."""
    tokenizer = asked[0][0].lm.tokenizer
    chat = chat_of(tokenizer)
    ends = chat.thought.ends if chat and chat.thought else ()
    every = write_together([(opened, most, (*until, *ends)) for opened, most, until in asked])
    return [
        ([spoken(tokenizer, ids, until) for ids in written], [len(ids) for ids in written])
        for written, (_, _, until) in zip(every, asked, strict=True)
    ]


def spoken(tokenizer: Any, ids: Sequence[int], until: Sequence[str]) -> str | None:
    """Returns the answer that a model wrote: without a thought before it; None where it has none.

    A thought that the model opened by itself ends with its marker, and in formats with channels only
    the last one's text is the answer. A thought that never ends has no answer behind it.
    """
    whole = tokenizer.decode(list(ids), skip_special_tokens=False)
    chat = chat_of(tokenizer)
    for thought in dict.fromkeys([*([chat.thought] if chat and chat.thought else []), PLAIN]):
        begins = whole.lstrip()
        if not begins.startswith(thought.marker):
            continue
        marker = thought.direct or thought.closes
        if marker not in begins:
            return None
        parts = (tokenizer.decode(list(ids[:n]), skip_special_tokens=False) for n in range(len(ids) + 1))
        kept = next(n for n, part in enumerate(parts) if marker in part)
        return cut(tokenizer.decode(list(ids[kept:]), skip_special_tokens=True).lstrip(), until)
    return cut(tokenizer.decode(list(ids), skip_special_tokens=True), until)

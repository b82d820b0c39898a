"""From a `State` to outcomes: letters, full-text choices and generation, for all methods.

>>> outcomes = answer(method.respond(batch), batch)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lcfbench.methods._lengths import check_state
from lcfbench.methods.base import Batch
from lcfbench.models.answering import rank
from lcfbench.models.choice_tree import branch, can_branch
from lcfbench.models.finite import check_cache
from lcfbench.models.protocol import LanguageModel, State
from lcfbench.models.thinking import Written, speak, speak_together, think
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, continuation, continuations, extend
from lcfbench.tasks.task import Outcome


def answer(state: State, batch: Batch) -> tuple[list[Outcome], list[int]]:
    """Returns each document's outcome and the number of its answer tokens.

    Answer tokens are those written, or those run to rank the choices, texts between steps included.
    Of equal log-likelihoods the first one is picked, as lm-eval does. Raises NotFiniteError where a number
    that decides is NaN or infinite, or where all logits are equal, TooLongError where the model has too few
    positions.
    """
    documents, lm = list(batch.documents), state.lm
    first = documents[0]
    with batch.clock("decode"):
        check_cache(state.kv, f"the cache from which {lm.name} answers")
        state, thoughts = think(state, choices=bool(first.steps))
        if not first.steps:
            most = max(d.max_new_tokens for d in documents)
            check_state(state, [most] * len(documents))
            opened = lm.open(state)
            batch.clock.first_token()
            texts, written = speak(opened, most, first.until)
            outcomes = [Outcome(text=text, parsed=text is not None) for text in texts]
            return behind(outcomes, written, thoughts)
        prompts = list(state.prompts)
        scores: list[list[tuple[tuple[float, bool], ...]]] = [[] for _ in documents]
        picks: list[list[int]] = [[] for _ in documents]
        tokens = [0] * len(documents)
        for number in range(len(first.steps)):
            if number:
                leads = [
                    d.steps[number].led([s.choices[p] for s, p in zip(d.steps, row, strict=False)])
                    for d, row in zip(documents, picks, strict=True)
                ]
                longer = [extend(p, text, lm.tokenizer) for p, text in zip(prompts, leads, strict=True)]
                ids = [list(new.ids[len(old.ids) :]) for new, old in zip(longer, prompts, strict=True)]
                prompts = longer
                state = opened.then(ids, prompts)
                tokens = [n + len(new) for n, new in zip(tokens, ids, strict=True)]
            choices = [
                ranked_ids(lm, p, d.steps[number].choices) for d, p in zip(documents, prompts, strict=True)
            ]
            check_state(state, [max(map(len, row)) for row in choices])
            if len(documents) > 1 and can_branch(state):
                ranked, opened = branch(state, choices)
                batch.clock.first_token()
            else:  # of a document alone the moment of its first token is wanted for itself
                opened = lm.open(state)
                batch.clock.first_token()
                ranked = rank(opened, choices)
            for b, row in enumerate(ranked):
                scores[b].append(tuple(row))
                picks[b].append(max(range(len(row)), key=lambda c, row=row: row[c][0]))  # type: ignore[misc]
                tokens[b] += sum(len(ids) - 1 for ids in choices[b])
    both = zip(scores, picks, strict=True)
    return behind([Outcome(tuple(s), None, tuple(p)) for s, p in both], tokens, thoughts)


def ranked_ids(lm: LanguageModel, prompt: Prompt, choices: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of each choice behind a prompt."""
    return lm.shared.once((prompt, choices), lambda: continuations(prompt, choices, lm.tokenizer))


def answer_texts(asked: Sequence[tuple[State, Batch]]) -> list[tuple[list[Outcome], list[int]]]:
    """Returns what `answer` does for each of several batches whose answers are written, without thoughts.

    They are written side by side: a model's weights are read once a token for all of them.
    """
    opened = []
    for state, batch in asked:
        with batch.clock("decode"):
            check_cache(state.kv, f"the cache from which {state.lm.name} answers")
            most = max(d.max_new_tokens for d in batch.documents)
            check_state(state, [most] * len(batch.documents))
            opened.append((state.lm.open(state), most, batch.documents[0].until))
    every = speak_together(opened)
    return [([Outcome(text=t, parsed=t is not None) for t in texts], written) for texts, written in every]


def behind(
    outcomes: list[Outcome], tokens: list[int], thoughts: list[Written] | None
) -> tuple[list[Outcome], list[int]]:
    """Returns answers with the thoughts before them; one behind a thought without end is none."""
    if thoughts is None:
        return outcomes, tokens
    found = []
    for outcome, t in zip(outcomes, thoughts, strict=True):
        own = outcome if t.closed else Outcome(parsed=False)
        found.append(replace(own, thought=t.text, thought_tokens=t.tokens))
    return found, [n + t.tokens + t.added for n, t in zip(tokens, thoughts, strict=True)]


def target(
    document: Document, prompt: Prompt, tokenizer: Any, eos: int | None, supervise: str = "all"
) -> tuple[list[int], list[bool]]:
    """Returns the right answer as token ids, and a flag for each that is supervised in training.

    With closed steps the choices are supervised (of `all` steps, of the `first` or of the `last`), the
    texts between them are given; a free answer is supervised with its EOS.
    """
    if not document.steps:
        text = document.gold if not document.receiver.prefix else " " + document.gold
        ids = continuation(prompt, text, tokenizer) + ([] if eos is None else [eos])
        return ids, [True] * len(ids)
    golds = [s.choices[s.gold[0]] for s in document.steps]
    out: list[int] = []
    supervised: list[bool] = []
    for number, step in enumerate(document.steps):
        # the pick of the step before stands in the text already; its lead begins with it
        given = step.led(golds[:number])
        wanted = supervise == "all" or number == {"first": 0, "last": len(golds) - 1}[supervise]
        assert not number or given.startswith(golds[number - 1]), (
            f"lead {given!r} must begin with the pick {golds[number - 1]!r}"
        )
        for text, counts in (
            (given.removeprefix(golds[number - 1]) if number else "", False),
            (golds[number], wanted),
        ):
            if text:
                ids = continuation(prompt, text, tokenizer)
                prompt = extend(prompt, text, tokenizer)
                out, supervised = out + ids, supervised + [counts] * len(ids)
    return out, supervised

"""A linear map from one model's hidden states to another's, fitted on texts that both read.

>>> found, facts = fit_map((x[0], y[0], held) for x, y, held in aligned_states(theirs, mine, documents))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lcfbench.adapters.activation import StateMap
from lcfbench.adapters.ridge import Held, Ridge, Scale
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._translate import aligned_tokens
from lcfbench.methods.base import prompt
from lcfbench.models.finite import NotFiniteError, finite
from lcfbench.models.protocol import LanguageModel
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import render

HELD_OUT = 10  # every tenth document judges the map
AT_ONCE = 16  # documents that are read together

Side = tuple[LanguageModel, Sequence[int]]  # a model, and layers of its cache


def aligned_states(
    theirs: Side, mine: Side, documents: Sequence[Document]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields states of both models on the sharer's views, some documents at a time.

    The sharer's (l, T, s) and the receiver's (m, T, d), behind their layers; T tokens of the receiver that
    end where the sharer has read as far. held (T,): whether a token's document judges the map. Raises
    TooLongError for a text that a model cannot read.
    """
    (sharer, sources), (receiver, into) = theirs, mine
    for start in range(0, len(documents), AT_ONCE):
        group = documents[start : start + AT_ONCE]
        own = [render(d.sharer, receiver.tokenizer, chat=False, choices=bool(d.steps)) for d in group]
        sent = [prompt(sharer, d.sharer, d) for d in group]
        for shown, d in zip(own, group, strict=True):
            check_room(receiver, shown, d, written=0)
        tokens, read = aligned_tokens(own, sent, "span", lead=0)
        both = []
        for lm, layers, prompts, places in ((sharer, sources, sent, read), (receiver, into, own, tokens)):
            rows = [p.ids for p in prompts]
            found = lm.hidden_states(rows, layers, list(map(len, rows)))
            some = [x[:, at].float() for x, at in zip(found, places, strict=True)]
            both.append(torch.cat(some, 1).to(receiver.device))
        held = [(start + i) % HELD_OUT == HELD_OUT - 1 for i, at in enumerate(tokens) for _ in at]
        yield both[0], both[1], torch.tensor(held, device=receiver.device)


def fit_map(pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[StateMap, dict[str, Any]]:
    """Returns the map by ridge regression, and its tokens, held-out R² and digest.

    pairs: states (T, s) and (T, d), and which tokens (T,) are held out. Raises UserError where the texts
    share no token, NotFiniteError for states that are not finite.
    """
    every = list(pairs)
    fitted = [(x[~held], y[~held]) for x, y, held in every]
    if sum(len(x) for x, _ in fitted) < 2:
        raise UserError(
            "the documents give both models no text to compare.", "Use a task whose sharer's view has a text."
        )
    if not all(finite(x) and finite(y) for x, y, _ in every):
        raise NotFiniteError("a hidden state on which the map is fitted")
    scale = Scale.of([x for x, _ in fitted])
    ridge = Ridge(fitted[0][0].shape[1], fitted[0][1].shape[1], fitted[0][0].device)
    for x, y in fitted:
        ridge.add(scale(x), y)
    made = StateMap(scale, ridge.solve())
    judged = Held(len(made.linear.bias), made.linear.bias.device)
    for x, y, held in every:
        if bool(held.any()):
            judged.add(made(x[held]), y[held])
    facts: dict[str, Any] = {"tokens": ridge.tokens, "map_sha256": made.sha256}
    return made, facts | ({"r2": round(float(judged.r2()), 4)} if judged.tokens else {})

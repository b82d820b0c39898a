"""All choices of a batch in one forward: what is left of each prompt, then every choice behind it, none of which sees another.

Ranking one choice a row would run a forward for the prompt's end and several for the choices, with a copy of the cache for each of them. The few
tokens at stake cost less than those forwards: a model's weights are read once here.

>>> ranked, opened = branch(lm, state, choices)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lcfbench.models.answering import scored
from lcfbench.models.grouping import forward_tokens, groups
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.layer_masks import maskable, masking, windows
from lcfbench.models.padding import pad_right
from lcfbench.models.state import Opened, State

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

Choices = list[list[list[int]]]
Ranked = list[list[tuple[float, bool]]]
ROOT, PADDING = -1, -2  # what is left of the prompt; what is nothing. Choices are numbered from 0


@dataclass
class Branches:
    """One row of a batch. root: tokens left of the prompt. ids: they, then each choice but its last token. path: the choice each token belongs to.

    depth: tokens before it on its way.
    """

    root: int
    ids: list[int]
    path: list[int]
    depth: list[int]

    @classmethod
    def of(cls, root: list[int], choices: Sequence[Sequence[int]]) -> Branches:
        tails = [(c, n, token) for c, ids in enumerate(choices) for n, token in enumerate(ids[:-1])]
        return cls(
            len(root),
            root + [token for *_, token in tails],
            [ROOT] * len(root) + [c for c, *_ in tails],
            [*range(len(root)), *(len(root) + n for _, n, _ in tails)],
        )


def can_branch(state: State) -> bool:
    """Whether the model takes a mask a layer, and nothing is hidden from a layer already."""
    return state.kv.hidden is None and maskable(state.lm.model)


def branch(lm: CausalLM, state: State, choices: Choices) -> tuple[Ranked, Opened]:
    """What `rank(open(state), choices)` gives, and what `open(state)` does; rows of near length go together."""
    roots = [row[keep].tolist() for row, keep in zip(state.ids, state.mask.bool(), strict=True)]
    rows = [Branches.of(root, some) for root, some in zip(roots, choices, strict=True)]
    order = sorted(range(len(rows)), key=lambda b: len(rows[b].ids))
    ranked: list[list[tuple[float, bool]]] = [[] for _ in rows]
    logits, caches = [], []
    for begin, end in groups([len(rows[b].ids) for b in order], forward_tokens(lm.device)):
        some = order[begin:end]
        at = torch.tensor(some, device=lm.device)
        kv = state.kv if some == list(range(len(rows))) else state.kv.rows_at(at)
        firsts, scores, grown = run(
            lm, kv, state.positions[at, -1], [rows[b] for b in some], [choices[b] for b in some]
        )
        for b, row in zip(some, scores, strict=True):
            ranked[b] = row
        logits.append(firsts)
        caches.append(grown)
    back = torch.tensor([order.index(b) for b in range(len(rows))], device=lm.device)

    def extended() -> KV:
        return stacked([cut() for cut in caches]).rows_at(back)

    return ranked, Opened(lm, torch.cat(logits)[back], state.positions[:, -1] + 1, extended)


def run(
    lm: CausalLM, kv: KV, last: Tensor, rows: list[Branches], choices: Choices
) -> tuple[Tensor, Ranked, Callable[[], KV]]:
    """One forward of some rows: logits (B, V) after the roots, the choices' scores, and how to get the cache of prompts and roots.

    last: (B,), rotary positions of the roots' last tokens.
    """
    device = lm.device
    ids, mask = (x.to(device) for x in pad_right([row.ids for row in rows], lm.pad_id))
    depth = pad_right([row.depth for row in rows], 0)[0].to(device)
    path = pad_right([row.path for row in rows], PADDING)[0].to(device)
    lengths = torch.tensor([row.root for row in rows], device=device)
    positions = (last + 1 - lengths)[:, None] + depth
    # where logits are wanted: after each root, then after every token of the choices
    wanted = [(b, n) for b, row in enumerate(rows) for n in range(row.root - 1, len(row.ids))]
    at = torch.tensor(wanted, device=device).unbind(1)
    with masking(lm.model, windows(lm.model), lambda window: visible(kv.mask, path, depth, window)):
        logits, cache = lm.forward(kv, ids, mask, positions, (at[0], at[1]))
    where = {place: i for i, place in enumerate(wanted)}
    read, gold, counts = [], [], []
    for b, (row, some) in enumerate(zip(rows, choices, strict=True)):
        n = row.root
        for choice in some:
            read += [where[b, row.root - 1], *(where[b, n + k] for k in range(len(choice) - 1))]
            gold += choice
            counts.append(len(choice))
            n += len(choice) - 1
    targets = torch.tensor(gold, device=device)
    nll, best = scored(logits, targets, torch.tensor(read, device=device))
    flat = iter(
        (-float(a.sum()), bool(hit.all()))
        for a, hit in zip(nll.split(counts), (best == targets).split(counts), strict=True)
    )
    scores = [[next(flat) for _ in some] for some in choices]
    firsts = logits[torch.tensor([where[b, row.root - 1] for b, row in enumerate(rows)], device=device)]

    def grown() -> KV:
        """The cache without the choices, which stand behind the roots."""
        whole = KV.from_cache(cache, torch.cat([kv.mask, mask], 1), torch.cat([kv.positions, positions], 1))
        return replace(whole, mask=torch.cat([kv.mask, (path == ROOT).long()], 1)).flush()

    return firsts, scores, grown


def visible(mask: Tensor, path: Tensor, depth: Tensor, window: int | None) -> Tensor:
    """(B, 1, T, N + T) bool: what each new token attends: the cache, its root, and what comes before it on its own path.

    mask: (B, N), real entries of the cache. path, depth: (B, T). window: of a sliding layer, counted in columns as transformers does, as if each
    path stood alone behind the cache. Every token sees itself, so that padding attends something.
    """
    N, T = mask.shape[1], path.shape[1]
    column = N + depth  # (B, T)
    cached = mask.bool()[:, None].expand(-1, T, -1)
    own = (path[:, None, :] == ROOT) | ((path[:, None, :] == path[:, :, None]) & (path[:, None, :] >= 0))
    own = own & (depth[:, None, :] <= depth[:, :, None])
    if window is not None:
        cached = cached & (torch.arange(N, device=mask.device) > column[:, :, None] - window)
        own = own & (depth[:, None, :] > depth[:, :, None] - window)
    own = own | torch.eye(T, dtype=torch.bool, device=mask.device)
    return torch.cat([cached, own], 2)[:, None]

"""Ranks all choices of a batch in one forward: the end of each prompt, then every choice behind it.

No choice sees another. Ranking one choice a row runs a forward for the prompt's end and several for
the choices, with a copy of the cache for each; the few tokens at stake cost less than those
forwards, because a model's weights are read once here: `benchmarks/receiver_vs_lm_eval.py` measures
full-text choices at 3.8 times lm-eval's documents a second. Where the model takes no mask for each
layer (`can_branch`), `rank(lm.open(state), choices)` gives the same scores.

>>> ranked, opened = branch(state, choices)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lcfbench.models.answering import Choices, Ranked, checked, judged
from lcfbench.models.grouping import forward_tokens, groups
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.padding import pad_right
from lcfbench.models.protocol import LanguageModel, Opened, State

ROOT, PADDING = -1, -2  # paths of the prompt's end and of padding; choices are numbered from 0


@dataclass
class Branches:
    """One row of a batch: the prompt's `root` last tokens, then each choice but its last token.

    path: the choice that each token belongs to. depth: tokens before it on its path.
    """

    root: int
    ids: list[int]
    path: list[int]
    depth: list[int]

    @classmethod
    def of(cls, root: list[int], choices: Sequence[Sequence[int]]) -> Branches:
        n, tails = (
            len(root),
            [(c, i, token) for c, ids in enumerate(choices) for i, token in enumerate(ids[:-1])],
        )
        return cls(
            n,
            root + [token for *_, token in tails],
            [ROOT] * n + [c for c, *_ in tails],
            [*range(n), *(n + i for _, i, _ in tails)],
        )


def can_branch(state: State) -> bool:
    """Says whether the model takes a mask a layer, nothing is hidden from a layer, no prompt ends in pads."""
    return state.kv.hidden is None and state.silent is None and state.lm.takes_layer_masks


def branch(state: State, choices: Choices) -> tuple[Ranked, Opened]:
    """Returns what `rank(open(state), choices)` and `open(state)` do; near lengths go together."""
    lm = state.lm
    roots = [row[keep].tolist() for row, keep in zip(state.ids, state.mask.bool(), strict=True)]
    rows = [Branches.of(root, some) for root, some in zip(roots, choices, strict=True)]
    order = sorted(range(len(rows)), key=lambda b: len(rows[b].ids))
    ranked: Ranked = [[] for _ in rows]
    logits, caches = [], []
    for begin, end in groups([len(rows[b].ids) for b in order], forward_tokens(lm.device)):
        some = order[begin:end]
        at = torch.tensor(some, device=lm.device)
        kv = state.kv if some == list(range(len(rows))) else state.kv.rows_at(at)
        last = state.positions[at, -1]
        firsts, scores, grown = run(lm, kv, last, [rows[b] for b in some], [choices[b] for b in some])
        for b, row in zip(some, scores, strict=True):
            ranked[b] = row
        logits.append(firsts)
        caches.append(grown)
    back = torch.tensor([order.index(b) for b in range(len(rows))], device=lm.device)

    def extended() -> KV:
        return stacked([cut() for cut in caches]).rows_at(back)

    return checked(ranked, lm.name), Opened(lm, torch.cat(logits)[back], state.positions[:, -1] + 1, extended)


def run(
    lm: LanguageModel, kv: KV, last: Tensor, rows: list[Branches], choices: Choices
) -> tuple[Tensor, Ranked, Callable[[], KV]]:
    """Runs some rows once. Returns logits (B, V) after the roots, scores, and the cache's maker.

    last: (B,), rotary positions of the roots' last tokens.
    """
    device = lm.device
    ids, mask = pad_right([row.ids for row in rows], lm.pad_id, device)
    depth, _ = pad_right([row.depth for row in rows], 0, device)
    path, _ = pad_right([row.path for row in rows], PADDING, device)
    lengths = torch.tensor([row.root for row in rows], device=device)
    positions = (last + 1 - lengths)[:, None] + depth
    # logits are needed after each root, then after every token of the choices
    needed = [(b, n) for b, row in enumerate(rows) for n in range(row.root - 1, len(row.ids))]
    at = torch.tensor(needed, device=device).unbind(1)
    with lm.masking(lambda window: visible(kv.mask, path, depth, window)):
        logits, longer = lm.forward(kv, ids, mask, positions, (at[0], at[1]))
    where = {place: i for i, place in enumerate(needed)}
    read: list[int] = []
    gold: list[int] = []
    counts: list[int] = []
    for b, (row, some) in enumerate(zip(rows, choices, strict=True)):
        n = row.root
        for choice in some:
            read += [where[b, row.root - 1], *(where[b, n + k] for k in range(len(choice) - 1))]
            gold += choice
            counts.append(len(choice))
            n += len(choice) - 1
    at_gold, at_row = (torch.tensor(each, device=device) for each in (gold, read))
    flat = iter(judged(logits, at_gold, at_row, counts, lm.name))
    scores = [[next(flat) for _ in some] for some in choices]
    firsts = logits[torch.tensor([where[b, row.root - 1] for b, row in enumerate(rows)], device=device)]

    def grown() -> KV:
        """Returns the cache without the choices, which stand behind the roots."""
        return replace(longer(), mask=torch.cat([kv.mask, (path == ROOT).long()], 1)).flush()

    return firsts, scores, grown


def visible(mask: Tensor, path: Tensor, depth: Tensor, window: int | None) -> Tensor:
    """Returns (B, 1, T, N + T) bool: a new token attends the cache, its root and its own path.

    mask: (B, N), real entries of the cache. path, depth: (B, T). window: of a sliding layer,
    counted in columns as transformers does, as if each path stood alone behind the cache. Every
    token sees itself, so that padding attends something.
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

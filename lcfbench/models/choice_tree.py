"""Ranks all choices of a batch in one forward: the end of each prompt, then every choice behind it.

No choice sees another. Ranking one choice a row runs a forward for the prompt's end and several for
the choices, with a copy of the cache for each; the few tokens at stake cost less than those
forwards, because a model's weights are read once here: `benchmarks/receiver_vs_lm_eval.py` measures
full-text choices at 3.8 times lm-eval's documents a second. Where the model takes no mask for each
layer (`can_branch`), `rank(lm.open(state), choices)` gives the same scores.

>>> ranked, opened = branch(state, choices)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from lcfbench.models.answering import Choices, Ranked, checked, judged
from lcfbench.models.grouping import forward_tokens, groups
from lcfbench.models.kv_cache import KV, stacked
from lcfbench.models.padding import pad_right
from lcfbench.models.protocol import LanguageModel, Opened, State
from lcfbench.models.ragged import Piece

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
    cuts = groups([len(rows[b].ids) for b in order], forward_tokens(lm.device))
    some = [order[begin:end] for begin, end in cuts]
    pieces, places = [], []
    for at in some:
        index = torch.tensor(at, device=lm.device)
        kv = state.kv if at == list(range(len(rows))) else state.kv.rows_at(index)
        pieces.append(Tree.of(lm, kv, state.positions[index, -1], [rows[b] for b in at]))
        places.append(pieces[-1].needed)
    ran = lm.forward_pieces([tree.piece for tree in pieces], places)
    ranked: Ranked = [[] for _ in rows]
    for at, tree, (logits, _) in zip(some, pieces, ran, strict=True):
        for b, row in zip(at, tree.scores(logits, [choices[b] for b in at], lm.name), strict=True):
            ranked[b] = row
    firsts = [
        logits.index_select(0, tree.ends).float() for tree, (logits, _) in zip(pieces, ran, strict=True)
    ]
    back = torch.tensor([order.index(b) for b in range(len(rows))], device=lm.device)

    def extended() -> KV:
        both = zip(pieces, ran, strict=True)
        return stacked([tree.without_choices(longer()) for tree, (_, longer) in both]).rows_at(back)

    return checked(ranked, lm.name), Opened(
        lm, torch.cat(firsts).index_select(0, back), state.positions[:, -1] + 1, extended
    )


@dataclass
class Tree:
    """Some rows as they run together.

    path: (B, T), the choice of each token. needed: rows and columns whose logits are needed: of each root's
    end, then of every token of the choices. ends: (B,), which of those are the roots' ends.
    """

    rows: list[Branches]
    piece: Piece
    path: Tensor
    needed: tuple[Tensor, Tensor]
    ends: Tensor

    @classmethod
    def of(cls, lm: LanguageModel, kv: KV, last: Tensor, rows: list[Branches]) -> Tree:
        """last: (B,), rotary positions of the roots' last tokens."""
        device = lm.device
        ids, mask = pad_right([row.ids for row in rows], lm.pad_id, device)
        depth, _ = pad_right([row.depth for row in rows], 0, device)
        path, _ = pad_right([row.path for row in rows], PADDING, device)
        lengths = torch.tensor([row.root for row in rows], device=device)
        positions = (last + 1 - lengths)[:, None] + depth
        needed = [(b, n) for b, row in enumerate(rows) for n in range(row.root - 1, len(row.ids))]
        at = torch.tensor(needed, device=device).unbind(1)
        counts = [len(row.ids) - row.root + 1 for row in rows]
        ends = torch.tensor([0, *accumulate(counts[:-1])], device=device)
        piece = Piece(kv, ids, mask, positions, partial(visible, kv.mask, path, depth))
        return cls(rows, piece, path, (at[0], at[1]), ends)

    def scores(self, logits: Tensor, choices: Choices, name: str) -> Ranked:
        """Returns the scores of each row's choices. logits: (n, V), of the needed tokens, of any dtype."""
        read: list[int] = []
        gold: list[int] = []
        counts: list[int] = []
        for end, some in zip(self.ends.tolist(), choices, strict=True):
            n = end + 1
            for choice in some:
                read += [end, *range(n, n + len(choice) - 1)]
                gold += choice
                counts.append(len(choice))
                n += len(choice) - 1
        at_gold, at_row = (torch.tensor(each, device=logits.device) for each in (gold, read))
        flat = iter(judged(logits, at_gold, at_row, counts, name))
        return [[next(flat) for _ in some] for some in choices]

    def without_choices(self, longer: KV) -> KV:
        """Returns the longer cache without the choices, which stand behind the roots."""
        kv = self.piece.kv
        assert kv is not None
        return replace(longer, mask=torch.cat([kv.mask, (self.path == ROOT).long()], 1)).flush()


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

"""What a model does once it may answer: rank choices, write, or be taught; all batched, all from an opened state.

>>> ranked = lm.rank(lm.open(state), [[ids_of_a, ids_of_b]])
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.models.grouping import forward_tokens, groups
from lcfbench.models.kv_cache import KV, growing
from lcfbench.models.layer_masks import hiding
from lcfbench.models.padding import pad_right

if TYPE_CHECKING:
    from lcfbench.models.state import Opened, State

LOGITS_BYTES = 256 << 20  # of fp32 logits at once while ranking: a vocabulary of 262,144 takes 1 MB a token
TAIL = 16  # tokens that are decoded to look for a stop string


class Answering:
    """The half of `CausalLM` that answers."""

    model: Any
    tokenizer: Any
    pad_id: int

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def forward(
        self, kv: KV, ids: Tensor, mask: Tensor, positions: Tensor, at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Any]:
        """See `CausalLM.forward`."""

    def rank(self, opened: Opened, choices: list[list[list[int]]]) -> list[list[tuple[float, bool]]]:
        """Log-likelihood of every choice (token ids) of every document, and whether greedy decoding would write it.

        First tokens come from the logits at hand; only longer choices are run, on the prompt's cache, those of near length together.
        """
        firsts = [[ids[0] for ids in row] for row in choices]
        rows = torch.tensor([b for b, row in enumerate(firsts) for _ in row], device=self.device)
        gold = torch.tensor([i for row in firsts for i in row], device=self.device)
        nll, best = scored(opened.logits, gold, rows)
        flat = iter(zip((-nll).tolist(), (best == gold).tolist(), strict=True))
        out = [[next(flat) for _ in row] for row in choices]
        longer = sorted(
            ((b, c) for b, row in enumerate(choices) for c, ids in enumerate(row) if len(ids) > 1),
            key=lambda at: len(choices[at[0]][at[1]]),
        )
        cost = forward_tokens(self.device)
        for begin, end in groups([len(choices[b][c]) - 1 for b, c in longer], cost):
            some = longer[begin:end]
            for (b, c), (ll, greedy) in zip(
                some, self.tails(opened, [b for b, _ in some], [choices[b][c] for b, c in some]), strict=True
            ):
                out[b][c] = out[b][c][0] + ll, out[b][c][1] and greedy
        return out

    def tails(self, opened: Opened, rows: list[int], choices: list[list[int]]) -> list[tuple[float, bool]]:
        """What the tokens after the first add, for choices of documents `rows`: log-likelihood, and whether all are greedy ones."""
        ids, mask = (x.to(self.device) for x in pad_right([c[:-1] for c in choices], self.pad_id))
        row = torch.tensor(rows, device=self.device)
        positions = opened.next_position[row][:, None] + torch.arange(ids.shape[1], device=self.device)
        # logits of real tokens only: padding has none to give, and a vocabulary is wide
        counts = [len(c) - 1 for c in choices]
        row_at, column = mask.nonzero(as_tuple=True)
        logits, _ = self.forward(opened.kv.rows_at(row), ids, mask, positions, (row_at, column))
        gold = torch.tensor([i for c in choices for i in c[1:]], device=self.device)
        nll, best = scored(logits, gold)
        return [
            (-float(a.sum()), bool(hit.all()))
            for a, hit in zip(nll.split(counts), (best == gold).split(counts), strict=True)
        ]

    def decode(
        self, opened: Opened, max_new_tokens: int, until: Sequence[str] = ()
    ) -> tuple[list[str], list[int]]:
        """Greedy continuation of each row, cut before the first `until` string; and the number of tokens written, per row.

        Rows that have ended are left out once they are half of what is run.
        """
        stops = self.stop_ids()
        written: list[list[int]] = [[] for _ in range(opened.logits.shape[0])]
        rows = list(range(len(written)))  # those still run
        alive = set(rows)
        kv, position, logits = opened.kv, opened.next_position, opened.logits
        cache, mask, hidden = growing(kv), kv.mask, kv.hidden
        for step in range(max_new_tokens):
            ids = logits.argmax(-1)
            for b, token in zip(rows, ids.tolist(), strict=True):
                if b not in alive:
                    continue
                if token in stops:
                    alive.discard(b)
                    continue
                written[b].append(token)
                # decoding the tail alone is enough to see a stop string, and keeps the loop linear
                if until and any(
                    u in self.tokenizer.decode(written[b][-TAIL:], skip_special_tokens=False) for u in until
                ):
                    alive.discard(b)
            if not alive or step == max_new_tokens - 1:
                break
            if 2 * len(alive) <= len(rows):
                keep = [i for i, b in enumerate(rows) if b in alive]
                index = torch.tensor(keep, device=self.device)
                rows, ids, position, mask = [rows[i] for i in keep], ids[index], position[index], mask[index]
                hidden = hidden[:, index] if hidden is not None else None
                cache.batch_select_indices(index)
            mask = F.pad(mask, (0, 1), value=1)
            with hiding(self.model, hidden, mask, 1):
                out = self.model(
                    input_ids=ids[:, None],
                    attention_mask=mask,
                    position_ids=position[:, None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            logits, position = out.logits[:, -1].float(), position + 1
        texts = [cut(self.tokenizer.decode(ids, skip_special_tokens=True), until) for ids in written]
        return texts, [len(ids) for ids in written]

    def loss(
        self, state: State, targets: list[list[int]], supervised: list[list[bool]], mean: str = "document"
    ) -> tuple[Tensor, Tensor]:
        """Next-token cross-entropy of the supervised target tokens, and the share of them that greedy decoding would have got right.

        mean: `document`, over supervised tokens within a document, then over documents: a long answer weighs no more than a short one; `token`,
            over all supervised tokens.
        """
        left = [row[keep.bool()].tolist() for row, keep in zip(state.ids, state.mask, strict=True)]
        ids, mask = (
            x.to(self.device)
            for x in pad_right([r + t[:-1] for r, t in zip(left, targets, strict=True)], self.pad_id)
        )
        begin = state.positions[:, -1:] + 1 - state.mask.sum(1, keepdim=True)
        positions = begin + torch.arange(ids.shape[1], device=self.device)
        # only what is supervised is predicted: its row, where it is predicted, and the right token
        wanted = [
            (b, len(left[b]) - 1 + t, i)
            for b, row in enumerate(targets)
            for t, i in enumerate(row)
            if supervised[b][t]
        ]
        rows, columns, gold = torch.tensor(wanted, dtype=torch.long, device=self.device).view(-1, 3).unbind(1)
        logits, _ = self.forward(state.kv, ids, mask, positions, (rows, columns))
        nll = F.cross_entropy(logits, gold, reduction="none")
        count = torch.tensor([max(sum(row), 1) for row in supervised], device=self.device)
        right = (logits.argmax(-1) == gold).sum() / max(len(wanted), 1)
        if mean == "token":
            return nll.sum() / max(len(wanted), 1), right
        return (nll / count[rows]).sum() / len(targets), right

    def stop_ids(self) -> set[int]:
        """Ids that end an answer: the tokenizer's EOS and those of the checkpoint's generation config."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}


def scored(logits: Tensor, gold: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (n,) of `gold` (n,) and the greedy tokens (n,), from logits (m, V) of which token i reads row `rows[i]`, or the i-th.

    A part of the rows at a time: a copy of all logits is never made.
    """
    step = max(LOGITS_BYTES // (4 * logits.shape[-1]), 1)
    norm = torch.cat([part.logsumexp(-1) for part in logits.split(step)])
    best = logits.argmax(-1)
    rows = torch.arange(len(gold), device=logits.device) if rows is None else rows
    return norm[rows] - logits[rows, gold], best[rows]


def cut(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text

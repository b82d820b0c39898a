"""Checks that a loaded model computes here what transformers computes with it, in seconds.

    from lcfbench.models.conformance import conformance
    [check.name for check in conformance(lm) if not check.ok]

Everything above reads in padded batches, continues caches and turns keys back to their content. A
model whose position embedding, mask or cache does not allow that would give wrong numbers silently.
The reference of each check is the plainest use of the model: one row, no padding, no cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.padding import pad_left
from lcfbench.models.protocol import State

TEXT = (
    "The river runs past the old mill, and in spring the water comes up to the garden wall. A boat lies "
    "on the bank; its owner, a painter from the next town, repairs it every year before the first of May. "
)
LENGTHS = (3, 11, 23)  # tokens of the rows that are read
LONGEST = 256  # one more row goes beyond the shortest sliding window, where that is no longer than this
# root mean square of the difference, as a share of the spread of the values
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.08}


@dataclass(frozen=True)
class Check:
    """One check. difference: of the two sides, as `TOLERANCE` counts it; None where nothing is compared."""

    name: str
    ok: bool
    difference: float | None
    detail: str = ""

    def record(self) -> dict[str, Any]:
        """The check as JSON values."""
        return asdict(self)


def conformance(lm: CausalLM, rows: Sequence[Sequence[int]] | None = None) -> list[Check]:
    """Runs every check on a model. rows: token ids to read, of several lengths; without it, a text's.

    A check that raises has failed, and its `detail` is the error.
    """
    read = [list(row) for row in rows] if rows is not None else sample_rows(lm)
    found: list[Check] = []
    with torch.inference_mode():
        alone = torch.cat([plain(lm, row) for row in read])
        found.append(finite(alone))
        checks: list[tuple[str, Callable[[], tuple[Tensor, Tensor]]]] = [
            ("a padded batch = each row alone", lambda: (batched(lm, read), alone)),
            ("a beginning, then the rest = the whole", lambda: (continued(lm, read), alone)),
            ("attention here = eager attention", lambda: (alone, eager(lm, read))),
            ("keys un-rotated and rotated again", lambda: turned(lm, read)),
            ("keys un-rotated do not know their place", lambda: placeless(lm, read)),
        ]
        for name, check in checks:
            found.append(compared(lm, name, check))
    return found


def sample_rows(lm: CausalLM, longest: int = LONGEST) -> list[list[int]]:
    """Token ids of a fixed text, cut to several lengths of at most `longest`."""
    windows = [w for w in lm.windows if w]
    more = [min(windows) + 9] if windows and min(windows) + 9 <= longest else []
    lengths = [n for n in (*LENGTHS, *more) if n <= (lm.max_positions or n)]
    ids: list[int] = lm.tokenizer(TEXT * (1 + max(lengths) // 20)).input_ids
    return [ids[:n] for n in lengths]


def plain(lm: CausalLM, row: Sequence[int]) -> Tensor:
    """Returns fp32 logits (1, V) after a row that is read alone, without padding and cache."""
    out = lm.model(input_ids=torch.tensor([row], device=lm.device), use_cache=False, logits_to_keep=1)
    return out.logits[:, -1].float()


def batched(lm: CausalLM, rows: Sequence[Sequence[int]]) -> Tensor:
    """Returns logits (B, V) after rows read as one left-padded batch, the last token on the cache."""
    kv = lm.run(*pad_left([row[:-1] for row in rows], lm.pad_id), None, 0)
    return _last(lm, kv, rows)


def continued(lm: CausalLM, rows: Sequence[Sequence[int]]) -> Tensor:
    """Returns logits (B, V) after rows whose first half was read before the rest."""
    cut = [len(row) // 2 for row in rows]
    kv = lm.prefill([row[:n] for row, n in zip(rows, cut, strict=True)])
    rest = [row[n:-1] for row, n in zip(rows, cut, strict=True)]
    return _last(lm, lm.prefill(rest, kv, torch.tensor(cut)), rows)


def eager(lm: CausalLM, rows: Sequence[Sequence[int]]) -> Tensor:
    """Returns logits (B, V) of rows read alone under transformers' own plain attention."""
    chosen = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    try:
        return torch.cat([plain(lm, row) for row in rows])
    finally:
        lm.model.set_attn_implementation(chosen)


def turned(lm: CausalLM, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Returns a cache's keys, un-rotated and rotated again, and the keys as they were."""
    kv = lm.prefill([rows[-1]])
    keys = kv.keys.float()
    return lm.rotate(lm.rotate(keys, kv.positions, inverse=True), kv.positions), keys


def placeless(lm: CausalLM, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Returns first-layer content keys of one token at several places, and that at the first place.

    The first layer's keys depend on the token alone; what is left of its place is a wrong rotation.
    """
    token = rows[-1][-1]
    kv = lm.prefill([[token] * 12])
    content = lm.rotate(kv.keys.float(), kv.positions, inverse=True)[0]  # (B, H, N, D)
    return content, content[:, :, :1].expand_as(content)


def finite(logits: Tensor) -> Check:
    """Checks that every logit is a finite number."""
    bad = int((~torch.isfinite(logits)).sum())
    return Check(
        "finite logits", not bad, None, f"{bad:,} of {logits.numel():,} are not finite" if bad else ""
    )


def compared(lm: CausalLM, name: str, check: Callable[[], tuple[Tensor, Tensor]]) -> Check:
    """Compares what a check computes with its reference."""
    try:
        got, reference = check()
    except Exception as error:  # third-party models raise anything; which one is told
        why = " ".join(str(error).split())[:160]
        return Check(name, False, None, f"{type(error).__name__}: {why}")
    spread = float(reference.std()) or 1.0
    difference = float((got - reference).square().mean().sqrt()) / spread
    if not math.isfinite(difference):
        return Check(name, False, None, "not finite")
    return Check(name, difference <= TOLERANCE[lm.dtype], difference)


def _last(lm: CausalLM, kv: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    start = torch.tensor([len(row) - 1 for row in rows])
    return lm.open(State.before(lm, kv, [row[-1:] for row in rows], start, [])).logits

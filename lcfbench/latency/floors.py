"""The least a piece of work must move and compute, and the time this machine needs for that.

Counted for one document. What is left out makes the floor lower, never higher: activations, softmax, norms, tokenizing, Python. Weights count once a
forward, as if no cache of the processor held them: a model smaller than those caches may beat its floor.

>>> work = forward(receiver, "prefill", new=256, past=0, logits=0); work.floor_ms(limits)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lcfbench.adapters.base import Adapter
    from lcfbench.latency.machine import Limits
    from lcfbench.models.causal_lm import CausalLM


@dataclass(frozen=True)
class Work:
    """One piece of work that cannot overlap the next: bytes to move, floating-point operations to do. by_first: needed for the first answer token."""

    phase: str
    bytes: float
    flops: float
    by_first: bool = True

    def floor_ms(self, limits: Limits) -> float:
        """max(bytes / bandwidth, operations / rate): at best memory and arithmetic overlap entirely."""
        return 1e3 * max(self.bytes / limits.bytes_per_s, self.flops / limits.flops_per_s)


def head_params(lm: CausalLM) -> int:
    """Parameters of the output head: vocabulary × hidden, whether tied to the embedding table or not."""
    return lm.vocabulary_size * lm.hidden_size


def pairs(new: int, past: int, window: int | None = None) -> int:
    """Query–key pairs of causal attention: token `t` of `new` sees the `past`, itself and those before it, at most `window` of them.

    Without a window: new·past + new·(new + 1)/2.
    """
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(min(window - past, new), 0)
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def forward(lm: CausalLM, phase: str, new: int, past: int, logits: int, by_first: bool = True) -> Work:
    """One forward of `new` tokens on `past` cache entries, with the logits of `logits` of them.

    flops = 2·body·new + 2·head·logits + 4·heads·head_dim·Σ_layers pairs, where head = vocabulary × hidden and body = all other parameters that
        tokens are multiplied with (`CausalLM.matmul_params` − head); the last term is `CausalLM.attention_flops`.
    bytes = itemsize · (body + [logits > 0]·head + new·hidden + 2·kv_width·(Σ_layers entries read + layers·new) + logits·vocabulary): weights
        once, rows of the embedding table, the cache read and written (K and V), logits written. A layer with a window reads no more of the cache.
    """
    g, head = lm.geometry, head_params(lm)
    vocabulary, hidden = lm.vocabulary_size, lm.hidden_size
    body, spans = lm.matmul_params - head, lm.windows
    seen = sum(pairs(new, past, w) for w in spans) / len(spans)  # a layer, on average
    read = sum(past if w is None else min(past, max(w - 1, 0)) for w in spans)
    numbers = (
        body
        + (head if logits else 0)
        + new * hidden
        + 2 * g.kv_width * (read + g.layers * new)
        + logits * vocabulary
    )
    flops = 2.0 * body * new + 2.0 * head * logits + lm.attention_flops(1, past=seen)
    return Work(phase, float(numbers * lm.dtype.itemsize), flops, by_first)


def fusion(adapter: Adapter, sharer_bytes: int, edited_bytes: int, flops: float) -> Work:
    """What an adapter does to one document.

    flops: as the adapter itself counts (`Adapter.flops`, 2 a parameter and position). bytes = its weights and buffers once + the sharer's
    entries read (`Message.cache_bytes`) + the receiver's entries handed to it and those handed back.
    """
    weights = sum(t.nbytes for t in adapter.state_dict().values())
    return Work("fuse", float(weights + sharer_bytes + edited_bytes), flops)


def figures(x: float) -> float:
    """Five of them: more than any time is known to."""
    return float(f"{x:.5g}")


def floors(work: Sequence[Work], limits: Limits) -> dict[str, dict[str, float | str]]:
    """For each phase with counted work, and for `ttft` and `ttea`: bytes, flops, ms (the sum over its pieces) and what bounds it."""
    parts = {phase: [w for w in work if w.phase == phase] for phase in dict.fromkeys(w.phase for w in work)}
    parts |= {"ttft": [w for w in work if w.by_first], "ttea": list(work)}
    out: dict[str, dict[str, float | str]] = {}
    for name, pieces in parts.items():
        moved, done = sum(w.bytes for w in pieces), sum(w.flops for w in pieces)
        bound = "memory" if moved / limits.bytes_per_s > done / limits.flops_per_s else "compute"
        out[name] = {
            "bytes": moved,
            "flops": done,
            "ms": figures(sum(w.floor_ms(limits) for w in pieces)),
            "bound": bound,
        }
    return out

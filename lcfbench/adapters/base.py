"""What every trainable adapter shares: stacked weights, gates, pruning to fewer layers.

Weights have a leading layer dimension; entry `i` of the stack edits receiver layer `config.layers[i]` from sharer layer
`config.layer_map[i]`. One kind of adapter is one file of this folder with one subclass of `Adapter`.

>>> adapter = build(config)
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lcfbench import registry
from lcfbench.adapters._layers import WHOLE
from lcfbench.adapters.config import AdapterConfig
from lcfbench.errors import UserError
from lcfbench.registry import kinds

GateMode = Literal["gumbel", "soft", "hard"]
AT_ONCE = (
    1 << 21
)  # numbers in the widest tensor of one stretch of layers: so many stay in a processor's cache


class Adapter(nn.Module):
    """Base of all kinds. Parameters and buffers that belong to layers have the layer as their first dimension.

    Every kind has `gate_logit` (L, 2), one for K and one for V: `g = 1[logit > 0]` at inference; in training as `gate` says:
    "gumbel" sigmoid((logit + G)/τ) (C2C), "soft" sigmoid(logit), "hard" as at inference. `gate="soft"` holds at inference too.
    """

    default_gate_init: ClassVar[float] = 0.0
    own_cache: ClassVar[bool] = (
        False  # the message is a term beside the receiver's own: without one the rest is still an edit of its cache
    )

    def __init__(
        self, config: AdapterConfig, gate: GateMode = "gumbel", gate_init: float | None = None
    ) -> None:
        super().__init__()
        self.config, self.gate_mode = config, gate
        init = self.default_gate_init if gate_init is None else gate_init
        self.gate_logit = nn.Parameter(torch.full((len(config.layers), 2), float(init)))
        self.temperature = 1.0

    def anneal(self, step: int, steps: int = 1929, first: float = 1.0, last: float = 0.001) -> None:
        """Gumbel temperature at a training step: `first · (last/first)^(min(step/steps, 1))` (C2C's schedule)."""
        self.temperature = first * (last / first) ** min(step / steps, 1.0)

    def gates(
        self, shape: tuple[int, ...], noise: tuple[Tensor, Tensor] | None = None, at: slice = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """Gate of K and of V of the layers `at`, broadcastable to `(L,) + shape`; `noise` are the uniform draws of that shape, for tests."""
        logits = self.gate_logit[at]
        layers = logits.shape[0]
        flat = (layers,) + (1,) * len(shape)
        out = []
        for i in (0, 1):
            logit = logits[:, i].view(flat)
            if self.gate_mode == "soft":
                gate = torch.sigmoid(logit)
            elif self.training and self.gate_mode == "gumbel":
                uniform = noise[i] if noise is not None else torch.rand((layers, *shape), device=logit.device)
                gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
                gate = torch.sigmoid((logit + gumbel) / self.temperature)
            else:
                gate = (logit > 0).to(logit.dtype)
            out.append(gate)
        return out[0], out[1]

    def open_layers(self) -> list[int]:
        """Stack indices whose K or V gate is open: the others cannot change anything at inference."""
        if self.gate_mode == "soft":
            return list(range(len(self.config.layers)))
        return (self.gate_logit > 0).any(1).nonzero()[:, 0].tolist()

    def gates_applied(self) -> dict[str, list[float]] | None:
        """The gates as they act at inference, 0..1: `layers` (the receiver's), `key`, `value`. None where they are open for good, no parameters."""
        if not isinstance(self.gate_logit, nn.Parameter):
            return None
        logit = self.gate_logit.detach().float()
        gate = torch.sigmoid(logit) if self.gate_mode == "soft" else (logit > 0).float()
        return {"layers": list(self.config.layers), "key": gate[:, 0].tolist(), "value": gate[:, 1].tolist()}

    def select(self, keep: list[int]) -> Adapter:
        """A copy that holds only the stack entries `keep`: a pruned adapter is a shorter stack and its layer list."""
        config = self.config.model_copy(
            update={
                "layers": tuple(self.config.layers[i] for i in keep),
                "layer_map": tuple(self.config.layer_map[i] for i in keep),
            }
        )
        with torch.device("meta"):
            shorter = build(config)
        index = torch.tensor(keep, dtype=torch.long, device=self.gate_logit.device)
        # assigned, not copied: every tensor keeps its dtype
        shorter.load_state_dict(
            {name: t.index_select(0, index) for name, t in self.state_dict().items()}, assign=True
        )
        for mine, whole in zip(shorter.parameters(), self.parameters(), strict=True):
            mine.requires_grad_(whole.requires_grad)
        shorter.temperature = self.temperature
        return shorter.train(self.training)

    def message(self, sharer: Tensor) -> Tensor:
        """What crosses the wire: (L, T, ·) from the sharer's entries (L, T, s), K and V flattened."""
        raise NotImplementedError

    @property
    def params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops(self, positions: int) -> float:
        """Floating-point operations to edit so many positions of one document."""
        return 2.0 * self.params * positions

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Bytes of the smallest tensor the receiver's side needs for one document (see protocol.md)."""
        return self.cache_bytes(sharer_tokens, itemsize)

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        """Bytes of the sharer's cache entries this adapter reads: K and V of the distinct sharer layers."""
        return (
            len(set(self.config.layer_map))
            * 2
            * self.config.sharer_geometry.kv_width
            * sharer_tokens
            * itemsize
        )


class Editor(Adapter):
    """Base of the kinds that edit the receiver's cache entry by entry. Any stretch `at` of the stack can be computed by itself."""

    def message(self, sharer: Tensor, at: slice = WHOLE) -> Tensor:
        """What crosses the wire: (L, T, ·) from the sharer's entries (L, T, s), K and V flattened, of the stack entries `at`."""
        raise NotImplementedError

    @property
    def can_shut(self) -> bool:
        """Whether a gate can be zero: soft ones are always open, if ever so little."""
        return self.gate_mode != "soft"

    @property
    def widest(self) -> int:
        """Numbers a token and layer in the widest tensor that `message` and `forward` make."""
        return 2 * max(self.config.receiver_geometry.kv_width, self.config.sharer_geometry.kv_width)

    def pieces(self, tokens: int) -> list[slice]:
        """Stretches of the stack to be computed one after another, for so many tokens.

        On a CPU without gradients a few layers at a time: what one step writes is in the cache when the next reads it, and no large buffer is
        asked of the system, zeroed and given back. Else all at once.
        """
        layers = len(self.config.layers)
        if torch.is_grad_enabled() or self.gate_logit.device.type != "cpu":
            return [slice(0, layers)]
        size = max(1, AT_ONCE // max(tokens * self.widest, 1))
        return [slice(start, min(start + size, layers)) for start in range(0, layers, size)]


def adapter_class(kind: str) -> type[Adapter]:
    """The class of a kind of adapter. Raises UserError for a kind this version does not know."""
    if kind not in kinds():
        raise UserError(f"adapter of unknown kind {kind!r}.", f"This version knows {', '.join(kinds())}.")
    return registry.load("adapters", kind)


def build(config: AdapterConfig) -> Adapter:
    """An untrained adapter; under `torch.device("meta")` it costs nothing and still counts its parameters."""
    kind = adapter_class(config.kind)
    try:
        return kind(config, **config.options)
    except TypeError as error:  # an option this version does not know
        raise UserError(
            f"the options of this {config.kind} adapter do not fit: {error}.",
            "Upgrade lcfbench, or mend its config.json.",
        ) from error

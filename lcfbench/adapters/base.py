"""What all kinds of adapter share: stacked weights, gates, selection of layers.

An adapter is the trained part between two frozen models. Weights have a leading layer dimension:
entry `i` of the stack edits receiver layer `config.layers[i]` and reads sharer layer
`config.layer_map[i]`. A kind of adapter is a file of this folder with one subclass of `Adapter`.

>>> adapter = build(config)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn

from lcfbench import registry
from lcfbench.adapters._layers import WHOLE, part
from lcfbench.adapters.config import AdapterConfig, reason
from lcfbench.errors import UserError
from lcfbench.registry import kinds

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
GateMode = Literal["gumbel", "soft", "hard"]
CACHED_NUMBERS = 1 << 21  # of the widest tensor of a group of layers: they fit into a processor's cache


class Adapter(nn.Module):
    """Base of all kinds. The first dimension of per-layer parameters and buffers is the layer.

    Every kind has `gate_logit` (L, 2), one for K and one for V. At inference the gate is
    `g = 1[logit > 0]`; in training `gate` decides: "gumbel" is sigmoid((logit + G)/τ) (C2C, arXiv
    2510.03215), "soft" is sigmoid(logit), at inference too, "hard" is as at inference.
    """

    title: ClassVar[str] = ""
    """Name of the kind in a card; empty means the kind itself."""
    own_method: ClassVar[str] = ""
    """Method that runs this kind by default; empty means the method called like the kind."""
    contexts: ClassVar[tuple[str, ...]] = ("shared", "different")
    """Tasks that the kind serves: both models read the same context ("shared"), or each its own."""
    small_scale: ClassVar[Mapping[str, Any]] = {}
    """Options with which a training of minutes on a CPU converges."""
    default_gate_init: ClassVar[float] = 0.0
    own_cache: ClassVar[bool] = False
    """Whether the message is a separate term: without it the rest still edits the cache."""
    full_precision: ClassVar[bool] = False
    """Whether the weights are stored and used in fp32, and not in the models' dtype."""

    def __init__(
        self, config: AdapterConfig, gate: GateMode = "gumbel", gate_init: float | None = None
    ) -> None:
        super().__init__()
        self.config, self.gate_mode = config, gate
        init = self.default_gate_init if gate_init is None else gate_init
        self.gate_logit = nn.Parameter(torch.full((len(config.layers), 2), float(init)))
        self.temperature = 1.0

    def anneal(self, step: int, steps: int = 1929, first: float = 1.0, last: float = 0.001) -> None:
        """Sets the Gumbel temperature: `first · (last/first)^(min(step/steps, 1))` (C2C)."""
        self.temperature = first * (last / first) ** min(step / steps, 1.0)

    def gates(
        self, shape: tuple[int, ...], noise: tuple[Tensor, Tensor] | None = None, at: slice = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """Returns the gates of K and of V of the layers `at`, broadcastable to `(L,) + shape`.

        noise: the uniform draws of that shape, for tests.
        """
        logits = part(self.gate_logit, at)
        layers = logits.shape[0]
        out = []
        for i in (0, 1):
            logit = logits[:, i].view((layers,) + (1,) * len(shape))
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
        """Returns the stack indices whose K or V gate is open; the others change nothing."""
        if self.gate_mode == "soft":
            return list(range(len(self.config.layers)))
        return (self.gate_logit > 0).any(1).nonzero()[:, 0].tolist()

    def gates_applied(self) -> dict[str, list[float]] | None:
        """Returns the gates at inference, 0 to 1: `layers` (the receiver's), `key`, `value`.

        None where gates are no parameters and always open.
        """
        if not isinstance(self.gate_logit, nn.Parameter):
            return None
        logit = self.gate_logit.detach().float()
        gate = torch.sigmoid(logit) if self.gate_mode == "soft" else (logit > 0).float()
        return {"layers": list(self.config.layers), "key": gate[:, 0].tolist(), "value": gate[:, 1].tolist()}

    def select(self, keep: list[int]) -> Adapter:
        """Returns a copy that holds only the stack entries `keep`: a pruned adapter."""
        chosen = {
            "layers": tuple(self.config.layers[i] for i in keep),
            "layer_map": tuple(self.config.layer_map[i] for i in keep),
        }
        with torch.device("meta"):
            shorter = build(self.config.model_copy(update=chosen))
        index = torch.tensor(keep, dtype=torch.long, device=self.gate_logit.device)
        # assigned, not copied: every tensor keeps its dtype
        state = {name: t.index_select(0, index) for name, t in self.state_dict().items()}
        shorter.load_state_dict(state, assign=True)
        for mine, whole in zip(shorter.parameters(), self.parameters(), strict=True):
            mine.requires_grad_(whole.requires_grad)
        shorter.temperature = self.temperature
        return shorter.train(self.training)

    def message(self, sharer: Tensor) -> Tensor:
        """Returns the message (L, T, ·) of the sharer's entries (L, T, s), K and V flattened."""
        raise NotImplementedError

    @property
    def ranks(self) -> tuple[int, int] | None:
        """Bottleneck widths from which a layer's edits of K and V are made; None where there is none."""
        return None

    @property
    def params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def flops(self, positions: int) -> float:
        """Returns the floating-point operations that edit so many positions of one document."""
        return 2.0 * self.params * positions

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the bytes of the smallest tensor that the receiver needs for a document."""
        return self.cache_bytes(sharer_tokens, itemsize)

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        """Returns the bytes of the sharer's cache that is read: K and V of its distinct layers."""
        numbers = sum(map(self.config.sharer_geometry.numbers, set(self.config.layer_map)))
        return numbers * sharer_tokens * itemsize


class Editor(Adapter):
    """Base of the kinds that edit the receiver's cache entry by entry.

    Any slice `at` of the stack can be computed by itself.
    """

    def message(self, sharer: Tensor, at: slice = WHOLE) -> Tensor:
        """Returns the message (L, T, ·) of the stack entries `at`, from the sharer's (L, T, s)."""
        raise NotImplementedError

    @property
    def can_shut(self) -> bool:
        """Whether a gate can be zero: a soft one never is."""
        return self.gate_mode != "soft"

    @property
    def widest(self) -> int:
        """Numbers a token and layer in the widest tensor that `message` and `forward` make."""
        return 2 * max(self.config.receiver_geometry.kv_width, self.config.sharer_geometry.kv_width)

    def pieces(self, tokens: int) -> list[slice]:
        """Returns the slices of the stack to be computed one after another, for so many tokens.

        On a CPU without gradients a few layers at a time, so that each result is still in the
        processor's cache when the next step reads it. Else all at once.
        """
        layers = len(self.config.layers)
        if torch.is_grad_enabled() or self.gate_logit.device.type != "cpu":
            return [slice(0, layers)]
        size = max(1, CACHED_NUMBERS // max(tokens * self.widest, 1))
        return [slice(start, min(start + size, layers)) for start in range(0, layers, size)]


def adapter_class(kind: str) -> type[Adapter]:
    """Returns the class of a kind of adapter. Raises UserError for an unknown kind."""
    if kind not in kinds():
        raise UserError(f"adapter of unknown kind {kind!r}.", f"This version knows {', '.join(kinds())}.")
    return registry.load("adapters", kind)


def option_parameters(kind: str) -> dict[str, inspect.Parameter]:
    """Returns the options of a kind, with types and defaults: its constructor's parameters."""
    found = inspect.signature(adapter_class(kind).__init__, eval_str=True).parameters
    return {name: p for name, p in found.items() if name not in ("self", "config")}


def own_method(kind: str) -> str:
    """Returns the method that runs adapters of a kind by default."""
    return adapter_class(kind).own_method or kind


def method_of(config: AdapterConfig) -> str:
    """Returns the method that an adapter was trained under; without a record, its kind's own."""
    return str(config.training.get("method") or own_method(config.kind))


def build(config: AdapterConfig) -> Adapter:
    """Returns an untrained adapter; under `torch.device("meta")` it takes no memory.

    Raises UserError for options that the kind does not have, and for values of another type.
    """
    kind, parameters = adapter_class(config.kind), option_parameters(config.kind)
    try:
        for name, value in config.options.items():
            if name in parameters:  # the constructor names the unknown ones
                TypeAdapter(parameters[name].annotation, config=STRICT).validate_python(value)
        return kind(config, **config.options)
    except ValidationError as error:
        raise UserError(
            f"option {name}={str(value)[:40]} of this {config.kind} adapter makes no sense: {reason(error)}.",
            "Fetch or train it again, or mend its config.json.",
        ) from error
    except TypeError as error:
        raise UserError(
            f"the options of this {config.kind} adapter do not fit: {error}.",
            "Upgrade lcfbench, or mend its config.json.",
        ) from error

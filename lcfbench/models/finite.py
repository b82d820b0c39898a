"""Numbers that are not finite: an error wherever they would decide an answer, and the first place of them.

The checks cost one pass over logits and caches; `first_place` is for an answer that has failed already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from lcfbench.errors import UserError
from lcfbench.models.kv_cache import KV
from lcfbench.models.layout import blocks_of
from lcfbench.models.protocol import LanguageModel

NEXT_STEP = "Try --dtype float32; if it stays, the weights of the model or of the adapter are at fault."
LARGEST = 1.8e19  # its square overflows float32, in which models normalise: all that follows is zero
FLAT = 1e-4  # logits that differ by less are equal
LARGEST_LOGIT = (
    1e5  # beyond, float32 rounds by more than a hundredth of a nat; of real models it is below 1e3
)


class NotFiniteError(UserError):
    """A number that decides an answer is NaN or infinite, or has overflowed on its way."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}.", NEXT_STEP)


def finite(x: Tensor) -> bool:
    """Says whether all numbers of a tensor are finite; one pass, no copy."""
    return not x.numel() or all(math.isfinite(end) for end in torch.stack(x.detach().aminmax()).tolist())


def check_cache(kv: KV, whose: str) -> None:
    """Raises NotFiniteError for an entry or a recurrent state that is not finite, and names the first.

    Left padding does not count; padding inside a prompt does: written tokens attend it.
    """
    if not (finite(kv.keys) and finite(kv.values)):
        at = kv.layout.at if kv.layout is not None and len(kv.keys) else range(len(kv.keys))
        for place, layer in enumerate(at):
            for name, x in (("keys", kv.keys[place]), ("values", kv.values[place])):
                bad = ~x.isfinite().all(3).all(1) & kv.present.bool()  # (B, N)
                if bool(bad.any()):
                    row, column = bad.nonzero()[0].tolist()
                    value = next(v for v in x[row, :, column].flatten().tolist() if not math.isfinite(v))
                    entry = int(kv.present[row, :column].sum())
                    raise NotFiniteError(f"{whose}: {name} of layer {layer} are {value} at entry {entry}")
    for (layer, name, _), x in sorted((kv.states or {}).items(), key=lambda state: state[0]):
        if not finite(x):
            value = next(v for v in x.flatten().tolist() if not math.isfinite(v))
            raise NotFiniteError(f"{whose}: the {name} state of layer {layer} is {value}")


def check_decided(low: Tensor, top: Tensor, name: str) -> None:
    """Raises NotFiniteError for logits that rank nothing: all equal, or too large to differ after rounding.

    Both happen after an overflow, and all choices would tie. low, top: (n,), the smallest and the
    largest of each row. Those that are not finite show in what is computed from them.
    """
    if bool((top - low < FLAT).any()):
        raise NotFiniteError(f"all of {name}'s logits are equal, so no answer is likelier than another")
    if bool((top.abs() > LARGEST_LOGIT).any()):
        raise NotFiniteError(
            f"{name}'s logits are as large as {float(top.abs().max()):.2g}, too large to compare"
        )


@contextmanager
def first_place(models: Mapping[str, LanguageModel]) -> Iterator[None]:
    """Within it the first state of these models that has overflowed raises NotFiniteError.

    models: by their names in the message. A model on both sides has its first name.
    """

    def watch(place: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, given: dict[str, Any], out: Any) -> None:
            states = out[0] if isinstance(out, tuple | list) else out
            sound = states.abs().amax(-1) < LARGEST  # (B, T), with more streams in some models; false for NaN
            if not bool(sound.all()):
                first = (~sound).nonzero()[0]
                worst = float(states[tuple(first)].abs().max())
                size = f"as large as {worst:.2g}" if math.isfinite(worst) else "not finite"
                if sound.dim() != 2:
                    raise NotFiniteError(f"{place} is {size}")
                row, column = first.tolist()
                at = given.get("position_ids")
                position = int(at[min(row, len(at) - 1), column]) if isinstance(at, Tensor) else column
                raise NotFiniteError(f"{place} at position {position} is {size}")

        return hook

    with ExitStack() as stack:
        seen: list[Any] = []
        for name, lm in models.items():
            model = getattr(lm, "model", None)
            if model is None or any(model is other for other in seen):
                continue
            seen.append(model)
            modules = {f"{name}'s embedding": model.get_input_embeddings()}
            layers: Iterable[Any] = ()
            with suppress(UserError):  # of a model without a list of layers the embedding alone is seen
                layers = blocks_of(model)
            modules |= {f"{name}'s state after layer {i}": layer for i, layer in enumerate(layers)}
            for place, module in modules.items():
                stack.enter_context(_hooked(module, watch(place)))
        yield


@contextmanager
def _hooked(module: Any, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

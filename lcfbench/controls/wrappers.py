"""What controls put in a method's place: the same method with a sharer whose cache holds nothing, or noise; or one to which nothing is sent.

A method reaches its sharer through `self.sharer` and takes what it sends from caches that `prefill` and `read` return: that is where these step in, so
that a new method needs to know nothing of them.

>>> state = noised(method, seed=0).respond(batch)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.base import Adapter
from lcfbench.controls.names import ON_CACHE, check_control
from lcfbench.methods.base import Batch, Method, plain
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import positions_of
from lcfbench.models.shared_prefill import Shared
from lcfbench.models.state import Message, Opened, State

if TYPE_CHECKING:
    from lcfbench.methods.base import Method

Change = Callable[
    [Tensor, str], Tensor
]  # entries (L, H, n, D) of one document and a name for them → what stands in their place


def emptied(method: Method) -> Method:
    """The method with a sharer whose cache is all zeros."""
    return with_sharer(
        method, ReplacedCacheModel(method.sharer, lambda entries, name: torch.zeros_like(entries))
    )


def noised(method: Method, seed: int) -> Method:
    """The method with a sharer whose cache is noise: see `like`."""
    return with_sharer(
        method, ReplacedCacheModel(method.sharer, lambda entries, name: like(entries, f"noise-{seed}-{name}"))
    )


def with_sharer(method: Method, sharer: CausalLM) -> Method:
    """A copy of the method as it stands (calibration and all) with another sharer."""
    other = copy.copy(method)
    other.sharer = sharer
    return other


def like(entries: Tensor, name: str) -> Tensor:
    """Normal noise with the mean and standard deviation of entries (L, H, n, D) in each layer and head, decided by `name`."""
    own = entries.float()
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
    draw = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).to(
        own.device
    )  # the same on every device
    (mean, std), (shift, scale) = (
        (x.mean((2, 3), keepdim=True), x.std((2, 3), correction=0, keepdim=True)) for x in (own, draw)
    )
    return ((draw - shift) / scale.clamp(min=1e-12) * std + mean).to(entries.dtype)


class ReplacedCacheModel(CausalLM):
    """An model in all things but what it remembers: the model reads as ever, then the entries just read are changed, document by document.

    Each row's change is named after its own tokens and how many it has read before, so a document gets the same one in any batch and sitting.
    Entries of a `past` stay as they are given. Padding does, too.
    """

    def __init__(self, real: CausalLM, change: Change) -> None:
        vars(self).update(vars(real))
        self.real, self.change = real, change

    def prefill(self, ids: Tensor, mask: Tensor, past: KV | None = None, start: Tensor | int = 0) -> KV:
        read = self.real.prefill(ids, mask, past, start)
        keys, values = read.keys.clone(), read.values.clone()
        for b, (row, real) in enumerate(zip(ids, mask.bool(), strict=True)):
            tokens = row[real].tolist()
            if not tokens:
                continue
            before = int(read.mask[b].sum()) - len(tokens)
            for name, x in (
                ("K", keys),
                ("V", values),
            ):  # what was read now stands last, padding and what was read before in front of it
                x[:, b, :, -len(tokens) :] = self.change(
                    x[:, b, :, -len(tokens) :], f"{name}-{before}-{tokens}"
                )
        return replace(read, keys=keys, values=values)

    @contextmanager
    def apart(self) -> Iterator[None]:
        with self.real.apart():
            yield

    @contextmanager
    def sharing(self) -> Iterator[Shared]:
        with self.real.sharing() as shared:
            yield shared


class SkippedModel(CausalLM):
    """An model whose model is never run: what it is given to read leaves zeros."""

    def __init__(self, real: CausalLM) -> None:
        vars(self).update(vars(real))

    def prefill(self, ids: Tensor, mask: Tensor, past: KV | None = None, start: Tensor | int = 0) -> KV:
        g, mask = self.geometry, mask.to(self.device)
        none = torch.zeros(
            g.layers,
            *ids.shape[:1],
            g.kv_heads,
            ids.shape[1],
            g.head_dim,
            device=self.device,
            dtype=self.dtype,
        )
        read = KV(none, none, mask, positions_of(mask, start))
        return past.then(read).flush() if past is not None else read.flush()

    def open(self, state: State) -> Opened:
        raise AssertionError("nothing is asked of a sharer that is not run")


class SilentMethod(Method):
    """Nothing is sent and the sharer is not run: the adapter on the receiver's own cache where its kind allows that, else the receiver alone."""

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def __init__(self, method: Method) -> None:
        super().__init__(method.receiver, method.sharer, method.adapter)
        self.inner: Method | None = None
        if method.adapter is not None and method.adapter.own_cache:
            self.inner = with_sharer(method, SkippedModel(method.sharer))
            self.inner.adapter = without_message(method.adapter)

    def respond(self, batch: Batch) -> State:
        if self.inner is None:
            return plain(self.receiver, [d.receiver for d in batch.documents], batch)
        state = self.inner.respond(batch)
        state.message = replace(Message.none(len(batch.documents)), adapter_flops=state.message.adapter_flops)
        return state


def without_message(adapter: Adapter) -> Adapter:
    """The same weights with a message of zeros."""
    other, message = copy.copy(adapter), adapter.message
    other.message = lambda sharer, *at: torch.zeros_like(message(sharer, *at))  # type: ignore[method-assign]
    return other


def lacks(control: str, kind: type[Method]) -> str:
    """What a kind of method does not send, so that it cannot be run under a control: `message`, `cache`; empty where it can."""
    check_control(control)
    if control != "matched" and not kind.sends:
        return "message"
    return "cache" if control in ON_CACHE and not kind.uses_sharer_cache else ""


def under(control: str, method: Method, seed: int) -> Method:
    """The method to ask under a control; the very same one where the control is about senders alone. Methods are altered when they are calibrated.

    seed: of the noise.
    """

    check_control(control)
    if control == "zero":
        return emptied(method)
    if control == "noise":
        return noised(method, seed)
    return SilentMethod(method) if control == "silent" else method

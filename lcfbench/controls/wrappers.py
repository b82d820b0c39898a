"""Stand-ins for a method's sharer, and methods to which nothing, text or the receiver's own cache is sent.

A method reaches its sharer through `self.sharer` and makes its message from caches that `prefill` and
`read` return. The stand-ins change those, so that a new method needs to know nothing of controls.

>>> state = noised(method, seed=0).respond(batch)
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from lcfbench.adapters.base import Adapter
from lcfbench.errors import StopRunError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._note import with_note, with_notes
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods._wire import cache_across, texts_across
from lcfbench.methods.base import Batch, Method, prompt, read_alone
from lcfbench.methods.excerpt import own_text
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.latent import Thought
from lcfbench.models.padding import Real, pad_left, positions_of, silent_at
from lcfbench.models.protocol import LanguageModel, Message, Opened, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

FAITHFUL = 1e-3  # nats: the largest KL divergence of a cache that was sent and put back

# from entries (L, H, n, D) of one document, and a name for them, to the entries in their place
Change = Callable[[Tensor, str], Tensor]


def emptied(method: Method) -> Method:
    """The method with a sharer whose cache is all zeros."""
    return with_caches(method, lambda x, name: torch.zeros_like(x))


def noised(method: Method, seed: int) -> Method:
    """The method with a sharer whose cache is noise, see `noise_like`."""
    return with_caches(method, lambda x, name: noise_like(x, f"noise-{seed}-{name}"))


def with_caches(method: Method, change: Change) -> Method:
    """The method with every sharer's cache changed."""
    return each(method, lambda one: with_sharer(one, ReplacedCacheModel(one.sharer, change)))


def each(method: Method, change: Callable[[Method], Method]) -> Method:
    """The method changed; where it takes several sharers, that of each of them."""
    return method.each(change) if isinstance(method, SeveralSharers) else change(method)


def with_sharer(method: Method, sharer: LanguageModel) -> Method:
    """A copy of the method as it stands (calibration and all) with another sharer."""
    other = copy.copy(method)
    other.sharer = sharer
    return other


def noise_like(entries: Tensor, name: str) -> Tensor:
    """Normal noise with the mean and deviation of entries (L, H, n, D) a layer and head; `name` seeds it."""
    own = entries.float()
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
    # drawn on the CPU: the same on every device
    draw = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)).to(own.device)
    mean, shift = (x.mean((2, 3), keepdim=True) for x in (own, draw))
    std, scale = (x.std((2, 3), correction=0, keepdim=True) for x in (own, draw))
    return ((draw - shift) / scale.clamp(min=1e-12) * std + mean).to(entries.dtype)


class ReplacedCacheModel(CausalLM):
    """A model that reads as ever and then has the entries it has just read changed, document by document.

    Each change is named after the document's own tokens and the number of tokens before them, so a
    document gets the same change in any batch. Entries of a `past` and padding stay as they are.
    """

    def __init__(self, real: LanguageModel, change: Change) -> None:
        vars(self).update(vars(real))
        self.real, self.change = real, change

    def prefill(
        self,
        rows: Sequence[Sequence[int]],
        past: KV | None = None,
        start: Tensor | int = 0,
        real: Real | None = None,
    ) -> KV:
        return self.changed(self.real.prefill(rows, past, start, real), rows)

    def prefill_latent(self, rows: Sequence[Sequence[int]], thought: Thought) -> KV:
        return self.changed(self.real.prefill_latent(rows, thought), rows, thought.steps)

    def hidden_states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int], counts: Sequence[int]
    ) -> list[Tensor]:
        read = self.real.hidden_states(rows, layers, counts)
        named = zip(read, rows, strict=True)
        return [self.change(x[:, None], f"H-{list(layers)}-{list(row)}")[:, 0] for x, row in named]

    def changed(self, read: KV, rows: Sequence[Sequence[int]], behind: int = 0) -> KV:
        """The cache with the entries of `rows`, and of as many latent steps `behind`, changed."""
        keys, values = read.keys.clone(), read.values.clone()
        for b, tokens in enumerate(map(list, rows)):
            if not tokens:
                continue
            new = len(tokens) + behind
            before = int(read.present[b].sum()) - new
            for (name, x), layers in itertools.product((("K", keys), ("V", values)), alike(read)):
                heads, *sizes = read.shapes[layers[0]]
                size = sizes[name == "V"]
                own = f"-{layers}" if len(layers) < len(x) else ""
                # behind the padding and the past; what fills up a smaller layer stays zero
                fresh = x[layers, b, :heads, -new:, :size]
                x[layers, b, :heads, -new:, :size] = self.change(fresh, f"{name}-{before}-{tokens}{own}")
        return replace(read, keys=keys, values=values)


def alike(kv: KV) -> list[list[int]]:
    """The layers of a cache, those of one shape together."""
    shapes = list(kv.shapes)
    return [[i for i, each in enumerate(shapes) if each == shape] for shape in dict.fromkeys(shapes)]


class SkippedModel(CausalLM):
    """A model that is never run: its cache of a text is all zeros. It needs no weights."""

    def __init__(self, real: LanguageModel) -> None:
        vars(self).update(vars(real))

    @property
    def device(self) -> torch.device:
        return self.devices[0]  # one without weights is on the meta device

    def prefill(
        self,
        rows: Sequence[Sequence[int]],
        past: KV | None = None,
        start: Tensor | int = 0,
        real: Real | None = None,
    ) -> KV:
        g, mask = self.geometry, pad_left(rows, self.pad_id, self.device)[1]
        shape = g.layers, len(rows), g.kv_heads, mask.shape[1], g.head_dim
        none = torch.zeros(shape, device=self.device, dtype=self.dtype)
        layout = None if self.layout.plain else self.layout
        silent = None if real is None else silent_at(mask, real)
        shown = mask if silent is None else mask * ~silent
        read = KV(none, none, shown, positions_of(mask, start), silent=silent, layout=layout)
        return past.then(read).flush() if past is not None else read.flush()

    def prefill_latent(self, rows: Sequence[Sequence[int]], thought: Thought) -> KV:
        return self.prefill([[*row, *[self.pad_id] * thought.steps] for row in rows])

    def hidden_states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int], counts: Sequence[int]
    ) -> list[Tensor]:
        shape = len(layers), self.hidden_size
        return [torch.zeros(shape[0], n, shape[1], device=self.device, dtype=self.dtype) for n in counts]

    def rotate(
        self, keys: Tensor, positions: Tensor, layers: Sequence[int] | None = None, inverse: bool = False
    ) -> Tensor:
        """Returns zeros as they are."""
        return keys

    def open(self, state: State) -> Opened:
        raise AssertionError("a sharer that is not run cannot answer")

    def forward(self, *args: Any, **given: Any) -> Any:
        raise AssertionError("a sharer that is not run computes nothing")

    def run(self, *args: Any, **given: Any) -> Any:
        raise AssertionError("a sharer that is not run computes nothing")

    def attention_to(self, *args: Any, **given: Any) -> Any:
        raise AssertionError("a sharer that is not run attends nothing")


def without_sharer(method: Method) -> Method:
    """The method, a control's wrapper included, with a sharer that is never run: for replays."""
    return each(method, lambda one: with_sharer(one, SkippedModel(one.sharer)))


def read_as_zeros(lm: LanguageModel, prompts: list[Prompt]) -> State:
    """The state of prompts whose cache is to come from elsewhere: only their last tokens will be run."""
    return replace(SkippedModel(lm).read(prompts), lm=lm)


class SilentMethod(Method):
    """A method to which nothing is sent.

    The adapter works on the receiver's own cache where its kind allows that; else the receiver is alone.
    """

    sends: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def __init__(self, method: Method) -> None:
        super().__init__(method.receiver, method.sharer, method.adapter)
        self.inner: Method | None = None
        if method.adapter is not None and method.adapter.own_cache:
            self.inner = each(method, unheard)

    def respond(self, batch: Batch) -> State:
        if self.inner is None:
            return read_alone(self.receiver, [d.receiver for d in batch.documents], batch)
        state = self.inner.respond(replace(batch, wire=None))
        state.message = replace(Message.none(len(batch.documents)), adapter_flops=state.message.adapter_flops)
        return state


def unheard(method: Method) -> Method:
    """A method with an adapter whose sharer is not run and whose message is zeros."""
    other = with_sharer(method, SkippedModel(method.sharer))
    assert method.adapter is not None
    other.adapter = without_message(method.adapter)
    return other


def without_message(adapter: Adapter) -> Adapter:
    """The same weights with a message of zeros."""
    other, message = copy.copy(adapter), adapter.message
    other.message = lambda sharer, *at: torch.zeros_like(message(sharer, *at))  # type: ignore[method-assign]
    return other


class TextMethod(Method):
    """A method that sends words instead: the part of the sharer's text that its message is made of."""

    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def __init__(self, method: Method) -> None:
        super().__init__(method.receiver, method.sharer)
        self.inner = method

    def check_length(self, document: Document, sender: Document) -> None:
        check_room(self.receiver, with_note(self.receiver, document, own_text(sender)), document)

    def respond(self, batch: Batch) -> State:
        with batch.clock("message"):
            texts = self.inner.words(batch) or [own_text(sender) for sender in batch.message_from]
            texts = texts_across(batch, texts)
        with batch.clock("prefill"):
            state = self.receiver.read(with_notes(self.receiver, batch.documents, texts))
        size = [len(text.encode()) for text in texts]
        message = Message(size, size, [0] * len(texts), texts)
        return replace(state, message=batch.counted(message))


class PlumbingMethod(Method):
    """The receiver alone, whose cache of its own prompt is sent as bytes and put back before it answers.

    Under `--wire` the cache crosses in the form that is asked. A form that rounds may predict another
    token: what it costs is then the score, and only an exact one stops the run.
    """

    roles: ClassVar[tuple[str, ...]] = ("receiver",)

    def __init__(self, method: Method) -> None:
        super().__init__(method.receiver, method.sharer)

    def respond(self, batch: Batch) -> State:
        """Raises StopRunError where the next token's distribution is not the untouched receiver's."""
        with batch.clock("prefill"):
            prompts = [prompt(self.receiver, d.receiver, d) for d in batch.documents]
            state = read_as_zeros(self.receiver, prompts) if batch.replays else self.receiver.read(prompts)
        if batch.wire is not None:
            with batch.clock("message"):
                back = replace(state, kv=cache_across(batch, state.kv))
            if batch.wire == "native" and not batch.replays:
                self.check_faithful(batch, state, back)
            size = [0] * len(prompts)
            return replace(back, message=batch.counted(Message(size, list(size), list(size))))
        with batch.clock("message"):
            sent = as_bytes(state.kv)
        with batch.clock("fuse"):
            back = replace(state, kv=put_back(sent, state.kv))
        self.check_faithful(batch, state, back)
        size = [len(each) for each in sent]
        return replace(back, message=Message(size, size, [0] * len(size)))

    def check_faithful(self, batch: Batch, state: State, back: State) -> None:
        """Raises StopRunError where a cache that came back predicts another token."""
        untouched, through = (self.receiver.open(s).logits for s in (state, back))
        for document, kl in zip(batch.documents, divergence(untouched, through), strict=True):
            if not kl < FAITHFUL:  # NaN neither
                what = f"control plumbing: on document {document.doc_id} the cache of {self.receiver.name}"
                raise StopRunError(
                    f"{what} that was sent and put back predicts another token: KL {kl:.2g} nats, "
                    f"{FAITHFUL:g} is allowed.",
                    f"Trust no cache method here; see `lcfbench doctor --model {self.receiver.name}`.",
                )


def as_bytes(kv: KV) -> list[bytes]:
    """Returns the entries of each row of a cache as a file of safetensors; padding is left out."""
    found = []
    for b, on in enumerate(kv.present.bool()):
        entries = {"keys": kv.keys[:, b][:, :, on], "values": kv.values[:, b][:, :, on]}
        entries |= {"mask": kv.mask[b][on], "positions": kv.positions[b][on]}
        found.append(save({name: x.contiguous().cpu() for name, x in entries.items()}))
    return found


def put_back(sent: Sequence[bytes], kv: KV) -> KV:
    """Returns a cache of the form of `kv` whose entries are those that were sent; padding is zero.

    Raises StopRunError where entries are lacking.
    """
    keys, values, mask, positions = (torch.zeros_like(x) for x in (kv.keys, kv.values, kv.mask, kv.positions))
    for b, (file, on) in enumerate(zip(sent, kv.present.bool(), strict=True)):
        at = on.nonzero().flatten()
        read = {name: x.to(kv.keys.device) for name, x in load(file).items()}
        if (got := read["keys"].shape[2]) != len(at):
            what = f"control plumbing: {got} of {len(at)} entries of a cache came through."
            raise StopRunError(what, "Trust no cache method here.")
        keys[:, b].index_copy_(2, at, read["keys"])
        values[:, b].index_copy_(2, at, read["values"])
        mask[b, at], positions[b, at] = read["mask"], read["positions"]
    return replace(kv, keys=keys, values=values, mask=mask, positions=positions)


def divergence(untouched: Tensor, other: Tensor) -> list[float]:
    """Returns the KL divergence of logits (B, V) from those of the untouched model, nats, one a row."""
    p, q = (F.log_softmax(x.double(), dim=-1) for x in (untouched, other))
    return [float(x) for x in (p.exp() * (p - q)).sum(-1)]

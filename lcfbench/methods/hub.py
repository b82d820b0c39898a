"""hub: each model has one codec of a shared space; any two of them pass texts (LSC, arXiv 2601.06123).

The sharer's encoder makes a code of each token of its text, the receiver's decoder makes entries of its own
cache of it, and the receiver reads its prompt on top. N models need N codecs, and two models that were
never trained together pass texts all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcfbench.adapters.base import build
from lcfbench.adapters.card import card
from lcfbench.adapters.codec import SIDES, CodecAdapter, Side, codec_file, put_codec, read_codec, save_codec
from lcfbench.adapters.config import pair_config, recorded_names
from lcfbench.adapters.files import save
from lcfbench.alignment.tokens import aligned_positions
from lcfbench.errors import UserError
from lcfbench.methods._lengths import check_room
from lcfbench.methods._prefix import content, read_on_top
from lcfbench.methods._translate import columns_of, entries_at
from lcfbench.methods._wire import latents_across
from lcfbench.methods.base import Batch, Judge, Method, prompt
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.capabilities import Capability
from lcfbench.models.finite import check_cache
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import LanguageModel, Message, State
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt

LEAD = 2  # tokens of the receiver's prompt that stand in front of the entries
FIRST = 1  # tokens of a text that are not sent: attention of no meaning goes to the first one
DOCUMENTS, TOKENS, AT_ONCE = 64, 2048, 16  # from which codecs start, and documents read together


@dataclass
class Hub(Method):
    """Width is the adapter's, see `lcfbench.adapters.codec`.

    hub: a folder of codecs, for training: those of this pair that are there are taken and stay as they
    are, and new ones are added when the training ends. Without it the pair's adapter alone is made.
    """

    adapter: CodecAdapter
    hub: str = ""

    adapter_kinds: ClassVar[tuple[str, ...]] = ("codec",)
    starts_fitted: ClassVar[bool] = True
    needs: ClassVar[Mapping[str, tuple[Capability, ...]]] = {
        "receiver": ("edit", "prefix", "rotate"),
        "sharer": ("edit", "rotate"),
    }

    def __post_init__(self) -> None:
        assert isinstance(self.adapter, CodecAdapter), "hub needs a codec adapter"
        self.adapter.config.check_fits(self.receiver.geometry, self.sharer.geometry, "")
        self.frozen: frozenset[Side] = frozenset()
        if self.hub and self.adapter.training:
            self.frozen = self.taken(Path(self.hub))

    def taken(self, hub: Path) -> frozenset[Side]:
        """Takes the codecs that a hub has of this pair; returns their sides. Raises UserError for both."""
        there = frozenset(side for side in SIDES if codec_file(hub, revision(self.model(side))).is_file())
        if there == set(SIDES):
            raise UserError(
                f"{hub} has the codecs of both models: there is nothing to train.",
                f"Make their adapter with `lcfbench adapter compose {hub}`.",
            )
        if self.receiver is self.sharer:
            raise UserError("a hub passes texts between two models.", "Name two in --pair.")
        for side in there:
            put_codec(self.adapter, side, codec_file(hub, revision(self.model(side))))
            for part in self.adapter.codec(side).values():
                part.requires_grad_(False)
        return there

    def model(self, side: Side) -> LanguageModel:
        return self.sharer if side == "sharer" else self.receiver

    def options(self) -> dict[str, Any]:
        """Where codecs came from decides no answer; the adapter's weights do."""
        return {}

    @property
    def added(self) -> int:
        return LEAD

    def check_length(self, document: Document, sender: Document) -> None:
        sent = prompt(self.sharer, sender.sharer, sender)
        shown = prompt(self.receiver, document.receiver, document)
        beside = min(LEAD, len(shown.ids)) + max(len(sent.ids) - FIRST, 0)
        check_room(self.receiver, shown, document, beside=beside)

    def respond(self, batch: Batch) -> State:
        return self.passed(batch, "sharer", "receiver")

    def passed(self, batch: Batch, source: Side, target: Side) -> State:
        """Lets the model of one side read the message of the model of another side, or of its own."""
        reader, clock = self.model(target), batch.clock
        with clock("prefill"):
            prompts = [prompt(reader, d.receiver, d) for d in batch.documents]
        with clock("sharer"):
            shared = [prompt(self.model(source), s.sharer, s) for s in batch.message_from]
            theirs = self.read(source, shared)
        with clock("fuse"):
            mask = theirs.mask * (theirs.mask.cumsum(1) > FIRST)
            columns = torch.arange(theirs.length, device=mask.device).expand_as(mask)
            codes = self.codes(source, entries_at(theirs, columns)).unflatten(0, tuple(mask.shape))
            mask = mask.to(codes.device)
            if batch.wire is not None:
                codes = across(batch, codes, mask.bool())
            keys, values = self.decoded(target, codes)
        with clock("prefill"):
            state = read_on_top(reader, prompts, content(keys, values, mask.to(reader.device)), LEAD)
        return replace(state, message=batch.counted(self.account(prompts, shared)))

    def read(self, side: Side, prompts: Sequence[Prompt]) -> KV:
        """Returns a model's cache over texts, keys without positions; no gradient goes there."""
        lm = self.model(side)
        with torch.no_grad():
            kv = lm.prefill([p.ids for p in prompts])
            check_cache(kv, f"the cache of the {side} {lm.name}")
            return lm.content_keys(kv)

    def codes(self, side: Side, entries: Tensor) -> Tensor:
        """Returns codes (T, U) of entries (n, T, s), where the adapter is."""
        return self.adapter.message(entries.to(self.receiver.device, self.receiver.dtype), side)

    def decoded(self, side: Side, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns content keys and values (n, B, H, T, D) of a model from codes (B, T, U)."""
        lm, shape = self.model(side), tuple(codes.shape[:2])
        made = self.adapter(codes.flatten(0, 1), side).to(lm.device, lm.dtype)
        both = made.unflatten(1, shape).unflatten(-1, (2, lm.geometry.kv_heads, lm.geometry.head_dim))
        keys, values = both.permute(3, 0, 1, 4, 2, 5)
        return keys, values

    def account(self, prompts: Sequence[Prompt], shared: list[Prompt]) -> Message:
        """Returns the sizes of the message: a code for each token but the first."""
        adapter, size = self.adapter, self.receiver.dtype.itemsize
        tokens = [len(p.ids) for p in shared]
        sent = [max(n - FIRST, 0) for n in tokens]
        read, attention = self.receiver.flops(LEAD), self.receiver.attention_flops
        both = zip(sent, prompts, strict=True)
        return Message(
            wire_bytes=[adapter.wire_bytes(n, n, size) for n in sent],
            cache_bytes=[adapter.cache_bytes(n, size) for n in tokens],
            sharer_tokens=tokens,
            adapter_flops=[adapter.flops(n) + read + attention(len(p.ids), past=LEAD + n) for n, p in both],
            read=shared,
        )

    # -- training ---------------------------------------------------------------------------------

    def paths(self) -> list[tuple[Side, Side]]:
        """Returns the ways that a training goes: all four but those between frozen codecs."""
        if not self.adapter.whole:
            return [("sharer", "receiver")]
        every: list[tuple[Side, Side]] = [(a, b) for a in SIDES for b in (*SIDES[1:], SIDES[0])]
        return [(a, b) for a, b in every if not {a, b} <= self.frozen]

    def loss(self, batch: Batch, done: float, judge: Judge) -> tuple[Tensor, Tensor, int]:
        """Returns the answers' loss on one of the paths: suffix language modelling through the space.

        A model's own path keeps its encoder and its decoder in one space. The documents decide which
        path by their hash: the same after a resume.
        """
        paths = self.paths()
        chosen = hashlib.sha256("".join(d.hash for d in batch.documents).encode()).digest()
        source, target = paths[chosen[0] % len(paths)]
        with self.model(target).differentiable():
            return judge(self.passed(batch, source, target))

    def prepare(self, documents: Sequence[Document], say: Callable[[str], None]) -> None:
        """Starts the codecs in closed form on texts that both models read.

        The space is a frozen codec's, or the sharer's principal components; the other codec is fitted to
        it at tokens that stand at the same place of the text.
        """
        adapter = self.adapter
        if not adapter.whole:
            raise UserError("halves of codecs are not trained.", "Leave out -o whole=no.")
        anchor: Side = "receiver" if self.frozen == {"receiver"} else "sharer"
        other: Side = "sharer" if anchor == "receiver" else "receiver"
        found: dict[Side, list[Tensor]] = {anchor: [], other: []}
        for start in range(0, min(len(documents), DOCUMENTS), AT_ONCE):
            group = documents[start : start + AT_ONCE]
            texts = {s: [prompt(self.model(s), d.sharer, d) for d in group] for s in SIDES}
            tokens: dict[Side, list[list[int]]] = {anchor: [], other: []}
            for mine, theirs in zip(texts[other], texts[anchor], strict=True):
                source = aligned_positions(mine, theirs, "span")
                pairs = [(i, p) for i, p in enumerate(source) if min(i, p) >= FIRST]
                tokens[other].append([i for i, _ in pairs])
                tokens[anchor].append([p for _, p in pairs])
            for side in SIDES:
                kv = self.read(side, texts[side])
                index, real = columns_of(tokens[side], texts[side], kv)
                entries = entries_at(kv, index)[:, real.flatten().bool()]
                found[side].append(entries.to(self.receiver.device).float())
        both = {side: torch.cat(x, 1)[:, :TOKENS] for side, x in found.items()}
        if not both[anchor].shape[1]:
            raise UserError("the models share no token of the examples' texts.", "Name another --task.")
        if anchor not in self.frozen:
            adapter.start_space(anchor, both[anchor])
        with torch.no_grad():
            adapter.join_space(other, both[other], adapter.message(both[anchor], anchor))
        say(f"hub: the {other}'s codec starts from {both[other].shape[1]:,} tokens of the {anchor}'s.")

    def finished(self, say: Callable[[str], None]) -> None:
        """Adds the codecs that the hub lacks."""
        if not self.hub:
            return
        for side in SIDES:
            lm = self.model(side)
            file = codec_file(Path(self.hub), revision(lm))
            if side not in self.frozen and not file.exists():
                save_codec(self.adapter, side, file, lm.name, revision(lm))
                say(f"hub: {file} is the codec of {lm.name}.")


def revision(lm: LanguageModel) -> str:
    """Returns by what a hub knows a model."""
    return lm.revision or lm.name


def across(batch: Batch, codes: Tensor, real: Tensor) -> Tensor:
    """Returns codes (B, T, U) as they are read from bytes: those of a document's own tokens alone."""
    out = codes.clone()
    sent = [x[own][None] if bool(own.any()) else None for x, own in zip(codes, real, strict=True)]
    for b, found in enumerate(latents_across(batch, sent)):
        if found is not None:
            out[b, real[b]] = found[0]
    return out


def compose(hub: Path, pair: str, out: Path, force: bool = False, offline: bool = False) -> CodecAdapter:
    """Makes a pair's adapter of the sharer's encoder and the receiver's decoder; nothing is trained.

    Raises UserError where the hub lacks one of the models.
    """
    loaded = load_pair(pair, weights=(), offline=offline)
    models: dict[Side, Any] = {"sharer": loaded.sharer, "receiver": loaded.receiver}
    files = {side: codec_file(hub, revision(lm)) for side, lm in models.items()}
    if lacking := [models[side].name for side, file in files.items() if not file.is_file()]:
        raise UserError(
            f"{hub} has no codec of {', '.join(lacking)}.",
            f"Train one against a model that it has: lcfbench train --mode hub -o hub={hub}",
        )
    width = read_codec(files["sharer"])[1]
    names = recorded_names(loaded.names)
    config = pair_config(
        "codec",
        (names[0], loaded.receiver.geometry),
        (names[1], loaded.sharer.geometry),
        options={"width": width, "whole": False},
        training={"method": "hub", "revisions": {s: revision(lm) for s, lm in models.items()}},
    )
    adapter = build(config)
    assert isinstance(adapter, CodecAdapter)
    for side, file in files.items():
        put_codec(adapter, side, file)
    save(adapter, out, card(adapter), replace=force)
    return adapter

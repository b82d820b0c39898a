"""The peer of `per_document.py`.

One document after another, one layer after another, batch 1, as the field's evaluation scripts do
it.

For each document: both prompts are tokenised; the sharer runs `model(input_ids, attention_mask,
use_cache=True)`, which computes the logits of every position; so does the receiver over its prompt
without the last token; a Python loop over the layers sends each layer's entries through that
layer's own module (`_peer_layers.py`) and writes them back into the `DynamicCache`; the last token
and the answer run on that.

What is repeated: a document whose choices are longer than a token is a request a choice (an lm-eval
style `loglikelihood`): both prefills, the fusion and the answer run once for each choice of each
step. Choices of one token (letters) are read off one forward. Text is generated token by token. Not
repeated, in the peer's favour: tokenising and aligning a document, and the sharer's run on
generated tokens, which C2C's public wrapper makes and throws away. Padding never occurs.

`lean=True` is kinder: no logits while reading (what answers computes them for its own tokens only),
and one fused cache a document, deep-copied for each choice.

The harness makes the texts of both sides (prompts, token alignment, spans: plain Python), so that
both sides answer the same question.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks._peer_layers import PooledLCFLayer, layers_of
from lcfbench.alignment.spans import membership
from lcfbench.alignment.tokens import aligned_positions
from lcfbench.methods._fusion import Fusion
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt, continuation, extend
from lcfbench.tasks.task import Outcome


class PerDocument:
    """Answers documents with the adapter of `method`.

    receiver, sharer: transformers models of the peer's own: what the harness does to its copies
    (packed weights) must not speed these up. method: gives the adapter to slice, tokenizers and
    settings; its models are never run.
    """

    def __init__(self, method: Method, receiver: Any, sharer: Any, lean: bool = False) -> None:
        assert isinstance(method, Fusion) and method.adapter is not None, (
            "the peer runs what edits a cache with an adapter"
        )
        self.method, self.receiver, self.sharer = method, receiver.eval(), sharer.eval()
        self.config, self.adapter, self.layers = (
            method.adapter.config,
            method.adapter,
            layers_of(method.adapter, method.receiver.dtype),
        )
        self.lean = lean

    @torch.inference_mode()
    def answer(self, document: Document) -> Outcome:
        """The likelihoods of the document's choices, or the text that is written."""
        batch = Batch([document], [document], Clock())
        mine = prompt(self.method.receiver, document.receiver, document)
        theirs = self.method.sharer_prompts(batch, [mine])[0]
        if not document.steps:
            cache, rest = self.read(mine, theirs)
            return Outcome(text=self.write(cache, rest, document))
        ranked, picks, shown, fused = [], [], mine, None
        for number, step in enumerate(document.steps):
            if number:
                shown = extend(
                    shown,
                    step.led([s.choices[p] for s, p in zip(document.steps, picks, strict=False)]),
                    self._tokenizer,
                )
            choices = [continuation(shown, choice, self._tokenizer) for choice in step.choices]
            added = list(shown.ids[len(mine.ids) :])
            if self.lean:
                fused = fused or self.read(mine, theirs)
            if all(len(ids) == 1 for ids in choices):
                logprobs = self.run(*self.take(fused, mine, theirs), added)[-1].log_softmax(-1)
                ranked.append(
                    tuple((float(logprobs[ids[0]]), bool(logprobs.argmax() == ids[0])) for ids in choices)
                )
            else:
                ranked.append(
                    tuple(self.likelihood(*self.take(fused, mine, theirs), added, ids) for ids in choices)
                )
            picks.append(max(range(len(choices)), key=lambda c: ranked[-1][c][0]))
        return Outcome(tuple(ranked), None, tuple(picks))

    @property
    def _tokenizer(self) -> Any:
        return self.method.receiver.tokenizer

    def take(
        self, fused: tuple[DynamicCache, list[int]] | None, mine: Prompt, theirs: Prompt
    ) -> tuple[DynamicCache, list[int]]:
        """A fused cache to go on from, and what is left of the prompt.

        A copy of the one at hand, else all of it anew.
        """
        return copy.deepcopy(fused) if fused is not None else self.read(mine, theirs)

    # -- reading and fusing -----------------------------------------------------------------------

    def read(self, mine: Prompt, theirs: Prompt) -> tuple[DynamicCache, list[int]]:
        """Both prompts read and the receiver's cache edited; and the tokens left to run."""
        device = self.receiver.device
        seen, cache, start = DynamicCache(), DynamicCache(), 0
        ids = torch.tensor([theirs.ids], device=self.sharer.device)
        reads, asks = ((m.get_decoder() if self.lean else m) for m in (self.receiver, self.sharer))
        asks(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=seen, use_cache=True)
        ids = torch.tensor([mine.ids], device=device)
        for part in self.method.parts([mine]):
            if (stop := part.stops[0]) > start:
                mask = torch.ones_like(ids[:, :stop])
                reads(
                    input_ids=ids[:, start:stop], attention_mask=mask, past_key_values=cache, use_cache=True
                )
                self.fuse(cache, seen, mine, theirs, start, stop)
            start = stop
        return cache, list(mine.ids[start:])

    def fuse(
        self, cache: DynamicCache, seen: DynamicCache, mine: Prompt, theirs: Prompt, start: int, stop: int
    ) -> None:
        """Edits positions [start, stop) of the receiver's cache in place, layer by layer."""
        pooled = self.config.kind == "lcfx"
        source = [0] * stop if pooled else aligned_positions(mine, theirs, self.config.token_alignment)
        edited = [t for t in range(start, stop) if source[t] >= 0]
        at = torch.tensor(edited, device=self.receiver.device)
        reads = torch.tensor([source[t] for t in edited], device=self.sharer.device)
        spans, content = self.pooling(seen, theirs) if pooled else ([], None)
        for module, layer, other in zip(self.layers, self.config.layers, self.config.layer_map, strict=True):
            own, sent = cache.layers[layer], seen.layers[other]
            if isinstance(module, PooledLCFLayer):
                assert content is not None
                theirs_k, theirs_v = module.pool(content[other], sent.values, spans)
            else:
                theirs_k, theirs_v = sent.keys[:, :, reads], sent.values[:, :, reads]
            key, value = module(
                theirs_k.to(at.device), theirs_v.to(at.device), own.keys[:, :, at], own.values[:, :, at]
            )
            own.keys[:, :, at], own.values[:, :, at] = key.to(own.keys.dtype), value.to(own.values.dtype)

    def pooling(self, seen: DynamicCache, theirs: Prompt) -> tuple[list[list[int]], Tensor]:
        """LCF-X.

        The tokens of each span, and the sharer's keys as the adapter pools them (L, 1, H, M, D).
        """
        keys = torch.stack([layer.keys for layer in seen.layers])
        mask = torch.ones(1, len(theirs.ids), dtype=torch.long, device=keys.device)
        m: Any = self.method
        member = membership(m.spans, [theirs], mask, windows=m.windows, window=m.window, stride=m.stride)[0]
        if getattr(self.adapter, "unrotated_keys", False):
            place = torch.arange(len(theirs.ids), device=keys.device)[None]
            keys = m.sharer.rotate(keys, place, inverse=True)
        return [row.nonzero().flatten().tolist() for row in member], keys

    # -- answering --------------------------------------------------------------------------------

    def run(self, cache: DynamicCache, rest: list[int], more: list[int]) -> Tensor:
        """Logits (T, V) in fp32 of the tokens left and those that follow, on the cache, which grows."""
        ids = torch.tensor([rest + more], device=self.receiver.device)
        mask = torch.ones(1, cache.get_seq_length() + ids.shape[1], dtype=torch.long, device=ids.device)
        return (
            self.receiver(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            .logits[0]
            .float()
        )

    def likelihood(
        self, cache: DynamicCache, rest: list[int], added: list[int], choice: list[int]
    ) -> tuple[float, bool]:
        """Log-likelihood of one choice, and whether greedy decoding would write it."""
        logprobs = self.run(cache, rest, added + choice[:-1])[-len(choice) :].log_softmax(-1)
        wanted = torch.tensor(choice, device=logprobs.device)
        picked = logprobs.gather(1, wanted[:, None]).sum()
        return float(picked), bool((logprobs.argmax(-1) == wanted).all())

    def write(self, cache: DynamicCache, rest: list[int], document: Document) -> str:
        """Greedy text, token by token, until a stop."""
        stops, written = self.method.receiver.stop_ids(), []
        for _ in range(document.max_new_tokens):
            token = int(self.run(cache, rest, [])[-1].argmax())
            if token in stops:
                break
            written.append(token)
            rest = [token]
            if any(u in self._tokenizer.decode(written[-16:]) for u in document.until if u):
                break
        text = self._tokenizer.decode(written, skip_special_tokens=True)
        return min((text.partition(u)[0] for u in document.until if u), key=len, default=text)

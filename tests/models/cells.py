"""What one method does with one architecture of the zoo: exact, or refused in one line.

    cell("qwen3.5", "t2t")      # "exact", or the line; AssertionError where a number is wrong

Both models of the pair are of that architecture, with other weights. Text methods are held against
lm-eval's `hf`, the others against eager attention and against one document at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.conformance import Conformance, conformance
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import continuation
from tests.helpers import (
    SHARED,
    SPLIT,
    outcomes,
    random_activation,
    random_adapter,
    random_codec,
    random_dense,
    random_draft,
    random_lora,
    random_prefix,
    random_xkv,
    shared_document,
)
from tests.models import zoo

CLOSE = 2e-4  # nats
WRITTEN = 8  # tokens
EXACT = "exact"
EAGER_WRONG = ("falcon-alibi",)  # transformers adds ALiBi's bias twice there
# transformers itself writes something else with a cache than without: MiniMax's counts no entries where
# the first layer keeps a state, RoBERTa's positions begin elsewhere, Mamba 2's single steps lack a limit
BROKEN_CACHES = ("minimax", "roberta", "nemotron_h", "zamba2")
FACTS = "The brown box is in Toronto. The orange box is in Seoul. Zona works as a farmer. "
DOCUMENTS = [SHARED[1], shared_document(3, FACTS * 2)]  # 15 and 70 tokens, the window is 10

Ends = tuple[CausalLM, CausalLM]
TEXT = ("receiver", "sharer", "full_context", "t2t")
ADAPTERS: dict[str, Callable[[Ends], Any]] = {
    "c2c": lambda ends: random_adapter("c2c", ends),
    "lcf": lambda ends: random_adapter("lcf", ends),
    "lcfx": lambda ends: random_adapter("lcfx", ends),
    "dense": random_dense,
    "prefix": random_prefix,
    "draft_kv": random_draft,
    "xkv": random_xkv,
    "codec": lambda ends: random_codec(ends, whole=False),
    "activation": random_activation,
    "lora": lambda ends: random_lora(ends[0]),
}
# method → kind of adapter, documents
FUSED: dict[str, tuple[str, str | None, Sequence[Document]]] = {
    "kvcomm": ("kvcomm", None, SPLIT[:2]),
    "c2c": ("c2c", "c2c", DOCUMENTS),
    "lcf": ("lcf", "lcf", DOCUMENTS),
    "lcfx": ("lcf", "lcfx", SPLIT[:2]),
    "dense": ("dense", "dense", DOCUMENTS),
    "prefix": ("prefix", "prefix", DOCUMENTS),
    "draft_kv": ("draft_kv", "draft_kv", DOCUMENTS),
    "xkv": ("xkv", "xkv", DOCUMENTS),
    "hub": ("hub", "codec", DOCUMENTS),
    "cacheback": ("cacheback", None, SPLIT[:2]),
    "latentmas": ("latentmas", None, SPLIT[:2]),
    "activation": ("activation", "activation", DOCUMENTS),
    "sde": ("sde", None, SPLIT[:2]),
    "lora": ("lora", "lora", DOCUMENTS),
}
METHODS = (*TEXT, *FUSED)
TWICE = ("kvcomm", "cacheback", "latentmas", "sde", "lora")  # one model on both sides
# sde's own layer is the last of two, behind which a change reaches no later token
OPTIONS = {"sde": {"budget": "6", "layers": "0"}, "latentmas": {"steps": "2"}, "cacheback": {"budget": "8"}}
WIDE = {"latentmas": 2e-3, "hub": 2e-3}  # nats: a latent step and a code of many entries enlarge rounding


@lru_cache(maxsize=8)
def lm_of(name: str, seed: int, attention: str) -> CausalLM:
    """A model that was checked, as `CausalLM.load` checks it; of one architecture once."""
    lm = zoo.lm_of(name, seed, attention)
    lm.conformance = found(name)
    lm.read_as(lm.conformance.reading)
    return lm


@cache
def found(name: str) -> Conformance:
    return conformance(zoo.lm_of(name))


def cell(name: str, method: str) -> str:
    """Runs a method on an architecture. Returns "exact" or the line that refuses it."""
    try:
        with torch.no_grad():
            text(name, method) if method in TEXT else fused(name, *FUSED[method])
    except UserError as refused:
        return str(refused)
    return EXACT


def ends_of(name: str, attention: str, twice: bool = False) -> Ends:
    return lm_of(name, 0, attention), lm_of(name, 0 if twice else 1, attention)


# -- text ------------------------------------------------------------------------------------------


def text(name: str, method: str) -> None:
    ends = ends_of(name, "sdpa")
    documents = SPLIT[:2] if method in ("full_context", "t2t") else DOCUMENTS
    asked = create(method, *ends, None, {"budget": "6"} if method == "t2t" else {})
    got, state, _ = outcomes(asked, documents)
    read = [p.text + p.tail for p in state.prompts]
    steps = [d.steps[0].choices for d in documents]
    same(first_steps(got, steps), ranked(lm_eval_of(state.lm), read, steps), f"{method} = lm-eval's hf")
    if method == "t2t":
        requests = [prompt(ends[1], d.request, replace(d, steps=())).text for d in documents]
        notes = [text.strip() for text in state.message.texts]
        assert notes == [text.strip() for text in written(ends[1], requests, 6)], "notes = lm-eval's hf"
    elif method == "receiver":
        free = [replace(d, steps=(), scoring="generate", max_new_tokens=WRITTEN) for d in documents]
        views = [prompt(state.lm, d.receiver, d).text for d in free]
        assert texts(asked, free) == written(state.lm, views, WRITTEN), "written text = lm-eval's hf"
    same(outcomes(asked, documents[:1])[0], got[:1], f"{method}: one document = a batch")


def lm_eval_of(lm: Any) -> HFLM:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1, device="cpu")


def ranked(lm: HFLM, contexts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[list[float]]:
    """lm-eval's log-likelihoods of choices after each context."""
    asked = [
        Instance("loglikelihood", {}, (context, choice), i)
        for i, (context, some) in enumerate(zip(contexts, choices, strict=True))
        for choice in some
    ]
    flat = iter(lm.loglikelihood(asked, disable_tqdm=True))
    return [[next(flat)[0] for _ in some] for some in choices]


def written(lm: CausalLM, contexts: Sequence[str], tokens: int) -> list[str]:
    """What lm-eval's model writes greedily after each context; without a cache where that is broken."""
    if zoo.ZOO[lm.name.removeprefix("tiny-")][0] in BROKEN_CACHES:
        return [plainly_written(lm, context, tokens) for context in contexts]
    how = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    asked = [Instance("generate_until", {}, (context, how), i) for i, context in enumerate(contexts)]
    return lm_eval_of(lm).generate_until(asked, disable_tqdm=True)


def plainly_written(lm: CausalLM, context: str, tokens: int) -> str:
    ids = lm.tokenizer(context)["input_ids"]
    begun = len(ids)
    while len(ids) < begun + tokens:
        best = int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best in lm.stop_ids():
            break
        ids.append(best)
    return lm.tokenizer.decode(ids[begun:], skip_special_tokens=True)


def texts(method: Method, documents: Sequence[Document]) -> list[str | None]:
    batch = Batch(documents, documents, Clock())
    return [o.text for o in answer(method.respond(batch), batch)[0]]


def first_steps(rows: list[list[float]], steps: Sequence[Sequence[str]]) -> list[list[float]]:
    return [row[: len(some)] for row, some in zip(rows, steps, strict=True)]


# -- caches ----------------------------------------------------------------------------------------


def fused(name: str, method: str, kind: str | None, documents: Sequence[Document]) -> None:
    """Answers with each document's own message and with another one's, in one batch."""
    n = len(documents)
    twice = [*documents, *documents]
    senders = [*documents, *documents[1:], *documents[:1]]

    def made(attention: str) -> Method:
        ends = ends_of(name, attention, method in TWICE)
        return create(method, *ends, ADAPTERS[kind](ends) if kind else None, OPTIONS.get(method, {}))

    asked = made("sdpa")
    got, state, _ = outcomes(asked, twice, senders if asked.sends else twice)
    # a note of sde may be the same text, and its changes outside the windows of a model of two layers
    moves = method == "sde" or not asked.sends or different(got[:n], got[n:])
    assert moves, f"{method}: the message moves no score"
    if method in ("c2c", "dense", "draft_kv", "activation"):
        alone = outcomes(asked, twice[-2:-1], senders[-2:-1])[0]
        same(alone, got[-2:-1], f"{method}: one document = a batch")
    if method == "kvcomm":
        same(first_steps(got, [d.steps[0].choices for d in twice]), in_a_row(state, twice, senders), "kvcomm")
    if name in EAGER_WRONG:
        return
    other = made("eager")
    if other.receiver.model.config._attn_implementation != asked.receiver.model.config._attn_implementation:
        same(
            outcomes(other, twice, senders if asked.sends else twice)[0],
            got,
            f"{method}: eager = sdpa",
            WIDE.get(method, CLOSE),
        )


def in_a_row(state: Any, documents: Sequence[Document], senders: Sequence[Document]) -> list[list[float]]:
    """The plain model's scores after the sender's text and the document's own, read as one."""
    rows = []
    for shown, document, sender in zip(state.prompts, documents, senders, strict=True):
        before = [*prompt(state.lm, sender.sharer, sender).ids, *shown.ids]
        row = []
        for choice in document.steps[0].choices:
            tail = continuation(shown, choice, state.lm.tokenizer)
            logits = state.lm.model(torch.tensor([[*before, *tail]]), use_cache=False).logits[0].float()
            at = logits.log_softmax(-1)[-len(tail) - 1 : -1]
            row.append(float(at.gather(1, torch.tensor(tail)[:, None]).sum()))
        rows.append(row)
    return rows


def same(got: list[list[float]], wanted: list[list[float]], what: str, within: float = CLOSE) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert a == pytest.approx(b, abs=within), what


def different(a: list[list[float]], b: list[list[float]]) -> bool:
    return any(abs(x - y) > 1e-5 for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True))

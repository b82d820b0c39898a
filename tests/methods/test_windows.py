"""Sliding windows longer and shorter than prompts and messages: as plain, as eager, alone as in a batch.

The same trials on a tiny Gemma (window 64) and on the first six layers of the real one (gemma3-270m,
window 512): five with a window and one without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch, Method, prompt
from lcfbench.methods.create import create
from lcfbench.models.answering import decode
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.sources.models import find_model
from lcfbench.tasks.document import NOTE, Document, Step, View
from lcfbench.tasks.prompts import continuations
from tests.helpers import (
    causal_lm,
    random_adapter,
    random_codec,
    random_dense,
    random_draft,
    random_prefix,
    random_xkv,
)

NOTES = (
    "The key of Kafi is in the orange box. Zona works as a farmer in the next town. The brown box is in "
    "Seoul, and in spring the water comes up to the garden wall. A boat lies on the bank of the river. "
)
METHODS = (
    "receiver",
    "t2t",
    "kvcomm",
    "kvcomm-some",
    "cacheback",
    "latentmas",
    "activation",
    "sde",
    "prefix-after",
    "prefix-before",
    "lcf",
    "lcfx",
    "dense",
    "draft_kv",
    "xkv",
    "hub",
)


@dataclass
class Trial:
    """A model, lengths of texts in tokens round its window, and how far numbers may differ."""

    lm: CausalLM
    lengths: tuple[int, ...]
    window: int
    near: float


@pytest.fixture(scope="module", params=["tiny", pytest.param("gemma3-270m", marks=pytest.mark.real)])
def trial(request) -> Trial:
    torch.set_num_threads(1 if request.param == "tiny" else torch.get_num_threads())
    if request.param == "tiny":
        lm = causal_lm("tiny-gemma", family="gemma3", layers=4, heads=1, dim=16, window=64, bos=True)
        return Trial(lm, (24, 60, 140), 64, 5e-4)
    folder = find_model("gemma3-270m").path
    kinds = AutoConfig.from_pretrained(folder).layer_types[:6]
    assert kinds.count("sliding_attention") == 5
    cut = {"num_hidden_layers": 6, "layer_types": kinds, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **cut).eval()
    assert model.config.sliding_window == 512
    lm = CausalLM("gemma3-270m", model, AutoTokenizer.from_pretrained(folder), revision="six layers")
    return Trial(lm, (300, 600), 512, 5e-3)


def documents(trial: Trial, shared: bool) -> list[Document]:
    """A document a length; both views are as long."""
    tokenizer = trial.lm.tokenizer
    ids = tokenizer(NOTES * (trial.lengths[-1] // 20), add_special_tokens=False).input_ids
    asked = "\nQuestion: Where is the key of Kafi?\nAnswer: The key is in the"
    steps = (Step((" orange box", " brown", " box of the farmer"), (0,)),)
    found = []
    for i, n in enumerate(trial.lengths):
        mine, theirs = (View(tokenizer.decode(ids[at : at + n]) + asked) for at in (0, 0 if shared else 7))
        noted = View(f"{NOTE}\n{mine.user}")
        views = (mine, theirs, mine, theirs, noted)
        found.append(
            Document("windows", str(i), *views, "cloze", "orange box", steps, shared=shared, chat=False)
        )
    return found


def method_of(name: str, lm: CausalLM) -> tuple[Method, bool]:
    """A method on one model twice, and whether its documents are shared. Adapters change little."""
    ends = (lm, lm)
    if name.startswith("kvcomm"):
        return create("kvcomm", *ends, None, {"layers": "1,2"} if name == "kvcomm-some" else {}), False
    if name == "latentmas":
        return create(name, *ends, None, {"steps": "3"}), False
    if name in ("receiver", "t2t", "cacheback", "activation", "sde"):
        return create(name, *ends, None, {"budget": "5"} if name in ("t2t", "sde") else {}), False
    if name == "dense":
        return create("dense", *ends, random_dense(ends)), False
    if name == "hub":
        return create("hub", *ends, random_codec(ends)), False
    if name == "xkv":
        return create("xkv", *ends, random_xkv(ends)), False
    if name == "draft_kv":
        return create("draft_kv", *ends, random_draft(ends)), False
    if name.startswith("prefix"):
        return create("prefix", *ends, random_prefix(ends, place=name.partition("-")[2])), False
    return create("lcf", *ends, random_adapter(name, ends)), name == "lcf"


def scores(method: Method, some: list[Document]) -> list[list[float]]:
    batch = Batch(some, some, Clock())
    with torch.inference_mode():
        outcomes, _ = answer(method.respond(batch), batch)
    return [[ll for step in o.loglikelihoods for ll, _ in step] for o in outcomes]


@contextmanager
def eager(lm: CausalLM) -> Iterator[None]:
    lm.model.set_attn_implementation("eager")
    lm.shared.beginnings.clear()
    try:
        yield
    finally:
        lm.model.set_attn_implementation("sdpa")
        lm.shared.beginnings.clear()


@contextmanager
def double(method: Method) -> Iterator[None]:
    """The model and the adapter in float64."""
    lm = method.receiver
    for part in (lm.model, method.adapter):
        part.to(torch.float64)
    lm.shared.beginnings.clear()
    try:
        yield
    finally:
        lm.model.to(torch.float32)
        lm.shared.beginnings.clear()


@pytest.mark.parametrize("name", METHODS)
def test_batch_1_is_batch_n_and_sdpa_is_eager(name, trial):
    if trial.window == 512 and name in ("kvcomm-some", "prefix-after", "lcfx"):
        pytest.skip("minutes for what its neighbour shows; the tiny model tries it too")
    method, shared = method_of(name, trial.lm)
    some = documents(trial, shared)
    if trial.window == 512 and method.adapter is not None:
        # a random adapter blows rounding up on a real model (eager attention rounds its softmax to float32),
        # so eager is compared on the tiny one
        with double(method):
            for document, row in zip(some, scores(method, some), strict=True):
                assert scores(method, [document])[0] == pytest.approx(row, abs=1e-3)
        return
    lengths = [len(prompt(trial.lm, d.receiver, d).ids) for d in some]
    assert lengths[0] < trial.window < lengths[1] and (len(lengths) < 3 or 2 * trial.window < lengths[2])
    together = scores(method, some)
    for document, row in zip(some, together, strict=True):
        assert scores(method, [document])[0] == pytest.approx(row, abs=trial.near)
    with eager(trial.lm):
        for row, other in zip(scores(method, some), together, strict=True):
            assert row == pytest.approx(other, abs=trial.near)


@pytest.mark.parametrize("name", ["receiver", "kvcomm"])
def test_the_cached_path_is_the_plain_model(name, trial):
    """Choices after one text, or after two in a row: transformers alone, without a cache."""
    method, _ = method_of(name, trial.lm)
    some = documents(trial, False)
    for document, row in zip(some, scores(method, some), strict=True):
        shown = prompt(trial.lm, document.receiver, document)
        front = prompt(trial.lm, document.sharer, document).ids if name == "kvcomm" else ()
        for choice, found in zip(
            continuations(shown, document.steps[0].choices, trial.lm.tokenizer), row, strict=True
        ):
            ids = torch.tensor([[*front, *shown.ids, *choice]])
            with torch.inference_mode():
                out = trial.lm.model(ids, use_cache=False, logits_to_keep=len(choice) + 1).logits[0]
            ranked = out.float().log_softmax(-1)[:-1]
            plain = sum(float(ranked[i, token]) for i, token in enumerate(choice))
            assert found == pytest.approx(plain, abs=trial.near)


def test_texts_that_are_written_are_those_of_generate(trial, monkeypatch):
    """transformers drops entries outside a window where it generates; here the mask hides them."""
    lm = trial.lm
    monkeypatch.setattr(lm, "stop_ids", set)
    shown = [prompt(lm, d.receiver, d) for d in documents(trial, False)]
    with torch.inference_mode():
        texts, _ = decode(lm.open(lm.read(shown)), 12)
        for one, text in zip(shown, texts, strict=True):
            ids = torch.tensor([one.ids])
            more = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
            out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **more)
            assert lm.tokenizer.decode(out[0, len(one.ids) :], skip_special_tokens=True) == text

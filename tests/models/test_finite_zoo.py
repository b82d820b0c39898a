"""A number that is not finite in any architecture is an error, and its layer is the one that made it."""

from __future__ import annotations

import math

import pytest
import torch

from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import apart
from lcfbench.models.finite import NotFiniteError, check_cache, first_place
from lcfbench.models.kv_cache import KV
from lcfbench.models.layout import blocks_of
from lcfbench.models.timing import Clock
from tests.helpers import SHARED, plain_prompts
from tests.models.zoo import lm_of

NAMES = (
    "llama gemma3 gemma3n gemma4 llama4 gpt-oss gpt2 opt bloom gptj openai-gpt cohere2 deepseek-v3 "
    "deepseek-v4 qwen3-next qwen3.5 falcon-h1 jamba mamba2 rwkv"
).split()


def answers(method):
    batch = Batch(SHARED, SHARED, Clock())
    with torch.inference_mode():
        return answer(method.respond(batch), batch)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_the_layer_that_made_it_is_named(name, value):
    lm = lm_of(name)
    method = create("receiver", lm, lm)
    answers(method)
    if lm.shared.beginnings is not None:
        lm.shared.beginnings.clear()
    *_, weight = (p for p in blocks_of(lm.model)[1].parameters() if p.dim() > 1)
    weight.data[...] = value
    with pytest.raises(NotFiniteError):
        answers(method)
    with apart([lm]), first_place({"the receiver": lm}), pytest.raises(NotFiniteError) as found:
        answers(method)
    assert "the receiver's state after layer 1 " in found.value.what


@pytest.mark.parametrize("name", ["qwen3-next", "falcon-h1", "jamba"])
def test_a_recurrent_state_names_its_layer(name):
    lm = lm_of(name)
    kv = lm.read(plain_prompts(lm)).kv
    assert kv.states
    check_cache(kv, "it")
    (layer, kind, _), state = sorted(kv.states.items(), key=lambda each: each[0])[-1]
    state.view(-1)[-1] = math.inf
    with pytest.raises(NotFiniteError, match=f"it: the {kind} state of layer {layer} is inf"):
        check_cache(kv, "it")


def test_entries_are_named_by_the_decoder_s_layers():
    lm = lm_of("qwen3-next")
    kv = lm.read(plain_prompts(lm)).kv
    assert kv.layout is not None and kv.layout.at[-1] != len(kv.keys) - 1
    kv.keys[-1, 0, 0, -1, 0] = math.nan
    with pytest.raises(NotFiniteError, match=f"keys of layer {kv.layout.at[-1]} are nan"):
        check_cache(kv, "it")


def test_padding_inside_a_prompt_counts_and_left_padding_does_not():
    keys = torch.zeros(2, 1, 1, 4, 2)
    mask, silent = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[False, False, True, False]])
    kv = KV(keys, keys.clone(), mask, mask.cumsum(1), None, silent)
    kv.values[1, 0, 0, 0, 0] = math.nan
    check_cache(kv, "it")
    kv.values[1, 0, 0, 2, 0] = math.nan
    with pytest.raises(NotFiniteError, match="values of layer 1 are nan at entry 1"):
        check_cache(kv, "it")

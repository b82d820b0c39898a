"""Conformance of loaded models: right ones pass every check, each kind of mistake fails one."""

from __future__ import annotations

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.models import causal_lm as module
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.conformance import (
    AGAIN,
    BATCH,
    EAGER,
    FINITE,
    MASKS,
    PLACE,
    REST,
    Conformance,
    conformance,
    described,
    sample_rows,
)
from lcfbench.models.padding import positions_of
from tests import helpers
from tests.models import zoo


def failed(lm) -> set[str]:
    return {check.name for check in conformance(lm).checks if not check.ok}


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize("bos", [False, True])
def test_right_models_pass_every_check(family, bos):
    found = conformance(helpers.causal_lm(family, bos=bos, family=family))
    assert len(found.checks) == 16 and all(check.ok for check in found.checks), found
    assert not found.missing and found.reading == "padded"
    assert all(check.record()["name"] == check.name for check in found.checks)
    assert Conformance.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_fault(dtype):
    lm = helpers.causal_lm("half", family="qwen3")
    lm.model.to(dtype)
    assert not failed(lm)


def test_rows_of_the_sample_go_beyond_the_window_where_prompts_do():
    lm = helpers.causal_lm("windowed", family="gemma3", window=8)
    assert max(map(len, sample_rows(lm))) == 17 and len(sample_rows(lm)) == 4
    assert len(sample_rows(lm, longest=10)) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["model.norm.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_weights_that_are_not_finite(value, where):
    lm = helpers.causal_lm("nan")
    with torch.no_grad():
        lm.model.get_parameter(where).view(-1)[0] = value
    assert FINITE in failed(lm)


def test_positions_that_count_padding(monkeypatch):
    def counted(mask, start=0):
        return torch.arange(mask.shape[1])[None].expand_as(mask) + (
            start[:, None] if torch.is_tensor(start) else start
        )

    monkeypatch.setattr(module, "positions_of", counted)
    lm = helpers.causal_lm("padded")
    # rotary attention sees distances alone: keys carry other places, answers from the cache differ
    assert conformance(lm).reading == "equal" and not failed(lm)  # no padding is read then


def test_a_rest_that_forgets_where_it_begins(monkeypatch):
    monkeypatch.setattr(module, "positions_of", lambda mask, start=0: positions_of(mask, 0))
    record = conformance(helpers.causal_lm("forgetful"))
    assert record.reading == "whole" and "text" not in record.missing
    assert REST in record.missing["edit"] and "cannot be trusted" in record.missing["edit"]
    assert record.missing["edit"] == record.missing["prefix"] == record.missing["rotate"]


def test_padding_that_is_attended(monkeypatch):
    lm = helpers.causal_lm("unmasked")
    run = lm.run
    monkeypatch.setattr(
        lm, "run", lambda ids, mask, past, start: run(ids, torch.ones_like(mask), past, start)
    )
    assert BATCH in failed(lm)


@pytest.mark.parametrize(
    ("wrong", "fails"),
    [
        (lambda keys, positions, layers=None, inverse=False: keys, {PLACE}),
        (lambda keys, positions, layers=None, inverse=False: keys * (2 if inverse else 1), {AGAIN, PLACE}),
    ],
)
def test_a_rotation_that_is_not_the_models(monkeypatch, wrong, fails):
    lm = helpers.causal_lm("turned")
    monkeypatch.setattr(lm, "rotate", wrong)
    assert failed(lm) & {AGAIN, PLACE} == fails


def test_attention_that_differs_from_eager(monkeypatch):
    lm = helpers.causal_lm("sdpa")
    layer = lm.model.model.layers[0].self_attn
    forward = layer.forward

    def bent(*args, **kwargs):
        out, *rest = forward(*args, **kwargs)
        return (out * (1.5 if layer.config._attn_implementation == "sdpa" else 1.0), *rest)

    monkeypatch.setattr(layer, "forward", bent)
    assert EAGER in failed(lm)
    assert lm.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("error", [AttributeError("no rotary_emb"), RuntimeError("shape"), KeyError("x")])
def test_a_check_that_raises_has_failed_and_says_why(monkeypatch, error):
    lm = helpers.causal_lm("odd")

    def raising(*_, **__):
        raise error

    monkeypatch.setattr(lm, "rotate", raising)
    record = conformance(lm)
    found = {check.name: check for check in record.checks}
    assert not found[PLACE].ok and type(error).__name__ in found[PLACE].detail
    assert found[BATCH].ok and type(error).__name__ in record.missing["rotate"]


@pytest.mark.parametrize("name", ["gpt-neo", "bloom", "mpt", "falcon-alibi"])
def test_layers_whose_mask_holds_more_than_who_attends_whom_are_not_given_another(name, monkeypatch):
    """ALiBi's distances stand in the mask: with one of ours they would be gone."""
    lm = zoo.lm_of(name)
    assert not lm.takes_layer_masks
    monkeypatch.setattr(module, "maskable", lambda model: True)
    found = conformance(lm)
    assert MASKS in found.masks and not found.missing.get("text")
    lm.conformance = found
    assert not lm.takes_layer_masks
    with pytest.raises(UserError, match="take no masks of their own"):
        lm.check_layer_masks()


def test_layers_are_counted_in_the_decoder_alone():
    """Of an encoder-decoder, `num_hidden_layers` may be the encoder's."""
    shape = {"decoder_layers": 2, "encoder_layers": 5, "num_hidden_layers": 5, "d_model": 32}
    heads = {"decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    model = zoo.random_model(zoo.shrunk("bart", **shape, **heads))
    lm = CausalLM("tiny-bart", model, helpers.tokenizer(zoo.VOCABULARY))
    assert [*described(lm)] == ["layers 0, 1: 4 × 8"]

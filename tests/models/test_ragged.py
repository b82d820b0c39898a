"""Rows side by side in one forward come out as each group of them does by itself."""

from __future__ import annotations

import pytest
import torch

from lcfbench.models.answering import write, write_together
from lcfbench.models.choice_tree import branch
from lcfbench.models.layout import blocks_of
from lcfbench.models.padding import pad_left
from lcfbench.models.ragged import can_join, joined_run
from tests import helpers
from tests.helpers import FAMILIES
from tests.helpers import plain_prompts as prompts

COMMON = list(range(40, 60))
ROWS = [[*COMMON, *range(100, 100 + n)] for n in (1, 3, 4, 20, 21, 40)]
CHOICES = [
    [[7], [8, 9, 10], [8, 9, 11, 12]],
    [[20, 21], [22]],
    [[30], [31], [32, 33, 34, 35, 36, 37, 38, 39, 40, 41] * 5],
]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def both_ways(lm, work):
    """The result of some work with rows side by side, and group by group."""
    assert lm.joins
    side_by_side = work()
    lm.shared.beginnings.clear()
    lm.__dict__["can_join"] = False
    assert not lm.joins
    return side_by_side, work()


def same(a, b):
    """Equal but for the last element of a vectorised operation, which PyTorch computes otherwise."""
    assert torch.allclose(a, b, atol=3e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "rows", [ROWS, [row[10 + i :] for i, row in enumerate(ROWS)]], ids=["begun", "apart"]
)
def test_a_prefill_is_that_of_its_groups(rows, family):
    lm = helpers.causal_lm(family=family)
    joined, grouped = both_ways(lm, lambda: lm.prefill(rows))
    real = grouped.mask.bool()[None, :, None, :, None]
    same(joined.keys, grouped.keys * real)
    same(joined.values, grouped.values * real)
    assert torch.equal(joined.mask, grouped.mask)
    assert torch.equal(joined.positions * joined.mask, grouped.positions * grouped.mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_ranked_as_in_their_groups(family):
    lm = helpers.causal_lm(family=family)
    state, ran = lm.read(prompts(lm)), []
    handle = lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: ran.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    (ranked, opened), (expected, plain) = both_ways(lm, lambda: branch(state, CHOICES))
    handle.remove()
    assert ran == [(1, 60), (2, 6), (1, 50)], "58 tokens, and two to make them even"
    assert [x for row in ranked for x, _ in row] == pytest.approx(
        [x for row in expected for x, _ in row], abs=1e-4
    )
    assert [[greedy for _, greedy in row] for row in ranked] == [[g for _, g in row] for row in expected]
    assert torch.allclose(opened.logits, plain.logits, atol=1e-4)
    real = plain.kv.mask.bool()[None, :, None, :, None]
    assert torch.equal(opened.kv.mask, plain.kv.mask)
    same(opened.kv.keys * real, plain.kv.keys * real)


def test_gradients_flow_through_groups():
    lm = helpers.causal_lm()
    assert lm.joins
    with torch.enable_grad():
        assert not lm.joins


def test_a_model_that_lets_tokens_of_a_row_meet_elsewhere_is_read_in_groups():
    """A feed-forward layer that sees its neighbours would mix the rows."""
    lm = helpers.causal_lm()
    layer = lm.model.get_decoder().layers[1].mlp
    layer.register_forward_hook(lambda module, args, out: out + args[0].roll(1, 1))
    assert not can_join(lm)


@pytest.mark.parametrize("change", ["eager", "own kernel", "no backend"])
def test_attention_that_cannot_be_replaced_is_left_alone(change, monkeypatch):
    lm = helpers.causal_lm(attention="eager" if change == "eager" else "sdpa")
    if change == "own kernel":
        from transformers.models.llama import modeling_llama

        own = type(modeling_llama.ALL_ATTENTION_FUNCTIONS)()
        own["sdpa"] = lambda *args, **given: None
        monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", own)
    if change == "no backend":
        lm.model._supports_attention_backend = False
    assert not can_join(lm)


def test_a_layer_that_does_not_attend_leaves_no_entries(monkeypatch):
    lm = helpers.causal_lm()
    whole = joined_run(lm, ROWS)
    attention = blocks_of(lm.model)[-1].self_attn
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    kv = joined_run(lm, ROWS)
    assert len(kv.keys) == len(kv.values) == lm.geometry.layers - 1
    assert torch.equal(kv.keys, whole.keys[:-1]) and torch.equal(kv.values, whole.values[:-1])


def test_attention_is_the_models_own_again_after_a_forward_that_failed():
    lm = helpers.causal_lm()
    assert lm.can_join
    handle = lm.model.get_decoder().layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.prefill(ROWS)
    handle.remove()
    assert lm.attention == "sdpa"
    assert torch.isfinite(lm.run(*pad_left(ROWS, 0), None, 0).keys).all()


def test_texts_written_side_by_side_are_those_written_batch_by_batch():
    lm = helpers.causal_lm(family="gemma3")  # with a window shorter than the texts
    states = [lm.read(prompts(lm)[:2]), lm.read(prompts(lm)[2:]), lm.read(prompts(lm)[::-1])]
    asked = [(lm.open(state), most, ()) for state, most in zip(states, (12, 3, 9), strict=True)]
    ran = []
    handle = lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: ran.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    together = write_together(asked)
    handle.remove()
    assert together == [write(*each) for each in asked]
    assert [len(rows) for rows in together] == [2, 1, 3] and len(ran) == 11, (
        "as many steps as the longest takes"
    )
    assert ran[0] == (1, 8) and ran[-1] == (2, 1)

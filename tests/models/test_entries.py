"""A reading of a prompt ends where the last layer has written its entries, with the same cache."""

from __future__ import annotations

import pytest
import torch

from lcfbench.models.layout import blocks_of, decoder_of
from lcfbench.models.padding import pad_left, pad_right
from tests import helpers
from tests.models import zoo

ROWS = [[3, 4, 5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20]]
EARLY = [
    *("llama", "qwen3", "gemma2", "gemma3", "gpt-oss", "mixtral", "olmo2", "cohere2", "phi", "glm4"),
    *("gpt-neox", "gpt2", "opt", "bloom", "mpt", "falcon", "smollm3", "llama-yarn"),
]
LATE = ["gemma3n", "falcon-h1", "qwen3.5", "jamba", "zamba2"]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def ends_of(lm):
    """Counts how often the last block and what stands behind it have run to their ends, unseen by hooks."""
    ran = []
    forward = blocks_of(lm.model)[-1].forward

    def counted(*args, **given):
        out = forward(*args, **given)
        ran.append(1)
        return out

    blocks_of(lm.model)[-1].forward = counted
    return ran


def whole(lm, rows, past=None, start=0):
    """The cache of a reading that ends with the model."""
    pad = pad_left if past is None else pad_right
    return lm.run(*pad(rows, lm.pad_id), past, start)


def equal(a, b):
    return all(torch.equal(getattr(a, x), getattr(b, x)) for x in ("keys", "values", "mask", "positions"))


@pytest.mark.parametrize("name", EARLY)
def test_the_cache_is_that_of_a_whole_forward(name):
    lm = zoo.lm_of(name)
    assert lm.last_block is not None
    lm.__dict__["can_join"] = False  # rows side by side are read in other batches
    ran = ends_of(lm)
    first = lm.run(*pad_left(ROWS, lm.pad_id), None, 0, entries=True)
    assert not ran
    assert equal(first, whole(lm, ROWS)) and len(ran) == 1
    start = first.present.sum(1)
    more = [[21, 22], [23], [24, 25, 26]]
    early = lm.prefill(more, first, start)
    assert len(ran) == 1 and equal(early, whole(lm, more, first, start))


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_rows_side_by_side_end_early_too(family):
    lm = helpers.causal_lm(family=family)
    assert lm.joins and lm.last_block is not None
    ran = ends_of(lm)
    early = lm.prefill(ROWS)
    assert not ran
    lm.__dict__["last_block"] = None
    lm.shared.beginnings.clear()
    assert equal(early, lm.prefill(ROWS)) and ran


def test_a_long_text_ends_early_in_each_of_its_stretches(monkeypatch):
    monkeypatch.setattr("lcfbench.models.causal_lm.LONG", 4)
    monkeypatch.setattr("lcfbench.models.causal_lm.STRETCH", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr("lcfbench.models.causal_lm.BLOCK", 2)
    lm = helpers.causal_lm()
    lm.__dict__["can_join"] = False
    ran = ends_of(lm)
    early = lm.prefill(ROWS[2:])
    assert not ran
    assert equal(early, whole(lm, ROWS[2:])) and len(ran) > 1


@pytest.mark.parametrize("part", ["", "norm", "layers.2", "layers.2.mlp"])
def test_who_looks_at_what_comes_last_sees_it(part):
    lm = helpers.causal_lm()
    assert len(blocks_of(lm.model)) == 3
    seen = []
    place = decoder_of(lm.model).get_submodule(part)
    hook = place.register_forward_hook(lambda module, args, out: seen.append(out))
    lm.prefill(ROWS)
    hook.remove()
    assert seen


def test_a_gradient_goes_through_the_whole_model():
    lm = helpers.causal_lm()
    ran = ends_of(lm)
    past = lm.prefill(ROWS)
    assert not ran
    with torch.enable_grad():
        past.keys.requires_grad_()
        kv = lm.prefill([[21], [22], [23]], past, past.present.sum(1))
    assert ran and kv.keys.requires_grad


@pytest.mark.parametrize("name", LATE)
def test_layers_that_share_or_keep_states_are_read_to_the_end(name):
    assert zoo.lm_of(name).last_block is None

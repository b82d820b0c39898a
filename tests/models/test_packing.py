"""Packed weights give the very numbers of plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lcfbench.models import cpu_packing as packing
from lcfbench.models.cpu_packing import Packed, packed
from tests import helpers

needs = pytest.mark.skipif(not packing.can_pack(), reason="this CPU has no bfloat16 matmul instructions")


def layer(dtype=torch.bfloat16, bias=True):
    torch.manual_seed(0)
    module = nn.Linear(96, 160, bias=bias, dtype=dtype)
    return module.requires_grad_(False)


@needs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (2, 96), (3, 17, 96), (300, 96), (0, 96)])
def test_packed_equals_plain_bit_for_bit(bias, shape):
    plain, quick = layer(bias=bias), packed(layer(bias=bias))
    x = torch.randn(shape, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(quick(x), plain(x))


@needs
def test_a_model_answers_the_same():
    lms = [helpers.causal_lm(family="gemma3") for _ in range(2)]
    for lm in lms:
        lm.model.to(torch.bfloat16)
    packed(lms[1].model)
    assert any(isinstance(m, Packed) for m in lms[1].model.modules())
    ids = torch.arange(30, 60)[None]
    with torch.inference_mode():
        assert torch.equal(lms[0].model(ids).logits, lms[1].model(ids).logits)


@needs
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 96), (4, 96), (3, 20, 96), (2, 300, 96), (0, 96)])
def test_gradients_are_those_of_plain_weights_bit_for_bit(bias, shape):
    plain, quick = layer(bias=bias), packed(layer(bias=bias))
    given = torch.randn(shape, dtype=torch.bfloat16)
    with torch.inference_mode():  # laid out here, used where gradients are recorded
        quick(given)
    found = []
    for module in (plain, quick):
        x = given.clone().requires_grad_()
        y = module(x)
        y.float().pow(2).sum().backward()
        found.append((y, x.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert quick.weight.grad is None and not quick(given).requires_grad


@needs
def test_weights_that_learn_are_used_as_they_are():
    quick = packed(layer()).requires_grad_()
    quick(torch.ones(4, 96, dtype=torch.bfloat16)).float().sum().backward()
    assert quick.weight.grad is not None and quick._laid_out is None


@needs
def test_gradients_follow_weights_that_change():
    plain, quick = layer(), packed(layer())
    for _ in range(2):
        grads = []
        for module in (plain, quick):
            x = torch.ones(4, 96, dtype=torch.bfloat16, requires_grad=True)
            module(x).float().pow(2).sum().backward()
            grads.append(x.grad)
            with torch.no_grad():
                module.weight.mul_(2)
        assert torch.equal(*grads)


@needs
def test_weights_that_change_are_laid_out_again():
    quick, x = packed(layer()), torch.ones(1, 96, dtype=torch.bfloat16)
    with torch.no_grad():
        first = quick(x)
        quick.weight.mul_(2)
        assert not torch.equal(quick(x), first)
        quick.weight = nn.Parameter(layer().weight.clone(), requires_grad=False)
        assert torch.equal(quick(x), first)


@needs
def test_weights_made_under_inference_mode_are_used_as_they_are():
    with torch.inference_mode():
        quick, plain, x = packed(layer()), layer(), torch.ones(1, 96, dtype=torch.bfloat16)
        assert torch.equal(quick(x), plain(x))
        quick.weight.mul_(2)
        assert not torch.equal(quick(x), plain(x))


@needs
def test_a_copied_tree_of_modules_shares_the_layout():
    quick = packed(nn.Sequential(layer()))
    with torch.no_grad():
        quick(torch.ones(1, 96, dtype=torch.bfloat16))
        other = copy.deepcopy(quick, {id(t): t for t in quick.parameters()})
        other(torch.ones(1, 96, dtype=torch.bfloat16))
    assert other[0]._laid_out is quick[0]._laid_out


def test_float32_and_little_memory_leave_a_model_as_it_is(monkeypatch):
    assert type(packed(layer(torch.float32))) is nn.Linear
    monkeypatch.setattr(packing, "free_bytes", lambda device: 1000)
    assert type(packed(layer())) is nn.Linear

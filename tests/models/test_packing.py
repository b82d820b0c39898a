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
def test_gradients_flow_through_the_plain_weights():
    plain, quick = layer(), packed(layer())
    grads = []
    for module in (plain, quick):
        x = torch.ones(4, 96, dtype=torch.bfloat16, requires_grad=True)
        module(x).float().pow(2).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads) and quick._laid_out is None
    with torch.inference_mode():
        quick(torch.ones(1, 96, dtype=torch.bfloat16))
    held = quick(
        torch.ones(1, 96, dtype=torch.bfloat16)
    )  # laid out under inference, used where gradients are recorded
    assert not held.requires_grad


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

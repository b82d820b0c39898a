"""Entries of a cache are read and written where their layer, row and column say."""

from __future__ import annotations

import pytest
import torch

from lcfbench.adapters._layers import WHOLE, added, part, rms_norm
from lcfbench.models import answering
from lcfbench.models.finite import NotFiniteError
from lcfbench.models.kv_cache import at, columns, put

ROWS, COLUMNS = torch.tensor([0, 2, 2, 1]), torch.tensor([3, 0, 4, 1])


def cache(dim: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(5, 3, 2, 6, dim).to(dtype)  # (L, B, H, N, D)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [5, 6, 8])  # whole vectors of 16 bytes, and not
@pytest.mark.parametrize("layers", [(1, 2, 3), (4, 0)])
def test_entries_one_by_one(layers, dim, dtype, grad):
    x, new = cache(dim, dtype), cache(dim, dtype)[: len(layers), 0, :, :4].transpose(1, 2)  # (l, T, H, D)
    with torch.set_grad_enabled(grad):
        found, written = at(x, layers, ROWS, COLUMNS), put(x.clone(), layers, ROWS, COLUMNS, new)
    want = x.clone()
    for i, layer in enumerate(layers):
        for t, (row, column) in enumerate(zip(ROWS, COLUMNS, strict=True)):
            assert torch.equal(found[i, t], x[layer, row, :, column])
            want[layer, row, :, column] = new[i, t]
    assert torch.equal(written, want)


def test_a_cache_of_another_layout_is_read_as_well():
    x = cache(8, torch.bfloat16)
    other = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(at(other, (3, 1), ROWS, COLUMNS), at(x, (3, 1), ROWS, COLUMNS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [[[5, 0], [1, 2], [3, 3]], [[], [], []]])
def test_columns_of_each_row_and_their_gradients(index, dtype):
    x = cache(8, dtype).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    index = torch.tensor(index, dtype=torch.long)
    found = columns(x, index)
    for b, row in enumerate(index.tolist()):
        assert torch.equal(found[:, b], x[:, b][:, :, row])
    (grad,) = torch.autograd.grad((found * 2).sum(), x)
    want = torch.zeros_like(x)
    for b, row in enumerate(index.tolist()):
        for column in row:
            want[:, b, :, column] += 2
    assert torch.equal(grad, want)
    assert columns(x[:0], index).shape == (0, 3, 2, index.shape[1], 8)


@pytest.mark.parametrize("at", [WHOLE, slice(0, 5), slice(2, 4)])
def test_a_part_of_a_stack_has_its_gradient_and_the_whole_is_the_stack_itself(at):
    stack = torch.randn(5, 3, requires_grad=True)
    some = part(stack, at)
    assert torch.equal(some, stack[at]) and (some is stack) == (at != slice(2, 4))
    (grad,) = torch.autograd.grad((some * some).sum(), stack)
    (want,) = torch.autograd.grad((stack[at] * stack[at]).sum(), stack)
    assert torch.equal(grad, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_are_judged_alike_however_many_logits_are_at_hand(dtype, monkeypatch):
    torch.manual_seed(0)
    logits, counts = torch.randn(7, 50).mul(4).to(dtype), [1, 2, 3, 1]
    logits[3, 10] = logits[3].max()  # the largest twice: the first of them is greedy
    rows, gold = torch.arange(7), logits.argmax(-1)
    gold[5] = (gold[5] + 1) % 50

    def judged(at_once: int) -> list[tuple[float, bool]]:
        monkeypatch.setattr(answering, "LOGITS_BYTES", dict.fromkeys(answering.LOGITS_BYTES, at_once))
        return answering.judged(logits, gold, rows, counts, "m")

    found = judged(1 << 20)
    assert judged(1) == found == judged(3 * 50 * 4)
    each = logits.float().log_softmax(-1)[rows, gold].split(counts)
    assert [ll for ll, _ in found] == pytest.approx([float(some.sum()) for some in each], abs=1e-4)
    assert [greedy for _, greedy in found] == [True, True, False, True]
    logits[4] = 3.0
    with pytest.raises(NotFiniteError, match="all of m's logits are equal"):
        judged(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_without_gradients_use_fewer_buffers_and_give_the_same_bits(dtype):
    x, weight, gate = (torch.randn(size).to(dtype) for size in ((4, 7, 48), (4, 1, 48), (4, 7, 1)))
    kept = x.clone()
    with torch.no_grad():
        quick = rms_norm(x, weight), added(x, x * 2, gate), added(x, x * 2, None)
    with torch.enable_grad():
        plain = rms_norm(x, weight), added(x, x * 2, gate), added(x, x * 2, None)
    assert all(torch.equal(a, b) for a, b in zip(quick, plain, strict=True)) and torch.equal(x, kept)

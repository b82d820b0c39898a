"""Entries of a cache are read and written where their layer, row and column say."""

from __future__ import annotations

import pytest
import torch

from lcfbench.adapters._layers import added, rms_norm
from lcfbench.models.kv_cache import at, put

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
def test_steps_without_gradients_use_fewer_buffers_and_give_the_same_bits(dtype):
    x, weight, gate = (torch.randn(size).to(dtype) for size in ((4, 7, 48), (4, 1, 48), (4, 7, 1)))
    kept = x.clone()
    with torch.no_grad():
        quick = rms_norm(x, weight), added(x, x * 2, gate), added(x, x * 2, None)
    with torch.enable_grad():
        plain = rms_norm(x, weight), added(x, x * 2, gate), added(x, x * 2, None)
    assert all(torch.equal(a, b) for a, b in zip(quick, plain, strict=True)) and torch.equal(x, kept)

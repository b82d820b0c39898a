"""Every architecture of the zoo with every method: the number is right, or one line refuses it."""

from __future__ import annotations

import re

import pytest
import torch

from lcfbench.models.capabilities import CAPABILITIES
from lcfbench.registry import method_names
from tests.models import cells, table, zoo

USABLE = "these work: |Text methods only: |Use |No method works"  # what does work is said too


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_reads_its_text(name):
    """What a test of it is worth: its logits are not flat, and what it read moves them."""
    model = zoo.build(name)
    ids = torch.randint(5, 390, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(ids).logits[0].float()
        moved = model(torch.cat([ids[:, :38].flip(1), ids[:, 38:]], 1)).logits[0, -1]
    spread = logits.std(-1).mean()
    assert torch.isfinite(logits).all() and spread > 0.5
    assert (moved - logits[-1]).square().mean().sqrt() > 0.01 * spread


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "xlstm", "jamba"])
def test_operations_are_counted_without_attention_too(name):
    lm = zoo.lm_of(name)
    attends = lm.layout.geometry is not None
    assert lm.flops(10) >= 20 * lm.matmul_params and (lm.attention_flops(10, 5) > 0) == attends


@pytest.fixture(scope="module")
def page():
    return table.read_page()


def test_the_page_has_every_method():
    """In a column, or named as one that needs the same as those of a column."""
    beside = {"excerpt", "answer_letter", "identical", "single"}
    columns = {method for some in table.COLUMNS.values() for method in some}
    assert columns - {"lcfx"} | beside == {*method_names()}  # a kind of adapter of lcf
    assert all(name in table.INTRO for name in beside)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_capabilities_are_those_of_the_page(name, page):
    assert set(CAPABILITIES) - set(cells.found(name).missing) == page[name][0]


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in zoo.ZOO for column in table.COLUMNS])
def test_a_method_is_exact_or_refused_as_the_page_says(name, column, page):
    lines = [cells.cell(name, method) for method in table.COLUMNS[column]]
    assert table.kinds_of(lines) == page[name][1][column]
    for line in lines:
        assert line == cells.EXACT or ("\n" not in line and re.search(USABLE, line)), line

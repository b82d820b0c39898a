"""All choices in one forward score as each of them alone behind its prompt."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lcfbench.models.answering import decode, rank
from lcfbench.models.choice_tree import Branches, branch, can_branch
from lcfbench.models.padding import pad_left
from tests import helpers
from tests.helpers import FAMILIES
from tests.helpers import plain_prompts as prompts

CHOICES = [
    [[7], [8, 9, 10], [8, 9, 11, 12]],
    [[20, 21], [22]],
    [[30], [31], [32, 33, 34, 35, 36, 37, 38, 39, 40, 41]],
]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def same(a, b):
    assert [[g for _, g in row] for row in a] == [[g for _, g in row] for row in b]
    assert [x for row in a for x, _ in row] == pytest.approx([x for row in b for x, _ in row], abs=3e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_ranked_as_rows_are(family, attention):
    lm = helpers.causal_lm(family=family, attention=attention)
    state = lm.read(prompts(lm))
    ranked, opened = branch(state, CHOICES)
    plain = lm.open(state)
    same(ranked, rank(plain, CHOICES))
    assert torch.allclose(opened.logits, plain.logits, atol=3e-4) and torch.equal(
        opened.next_position, plain.next_position
    )
    assert torch.equal(opened.kv.mask, plain.kv.mask) and torch.equal(
        opened.kv.positions * opened.kv.mask, plain.kv.positions * plain.kv.mask
    )
    real = plain.kv.mask.bool()[None, :, None, :, None]
    assert torch.allclose(opened.kv.keys * real, plain.kv.keys * real, atol=3e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_step_goes_on_from_the_prompt_alone(family):
    lm = helpers.causal_lm(family=family)
    state, leads = lm.read(prompts(lm)), [[50, 51, 52], [53], [54, 55]]
    _, opened = branch(state, CHOICES)
    again, after = branch(opened.then(leads, []), CHOICES[::-1])
    plain = lm.open(lm.open(state).then(leads, []))
    same(again, rank(plain, CHOICES[::-1]))
    assert decode(after, 5) == decode(plain, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_counts_what_stands_on_the_way(family):
    """Texts longer than the window, and paths so many that a window over columns would lose the prompt."""
    lm = helpers.causal_lm(family=family)
    rows = [list(range(10, 90)), list(range(20, 50))]
    choices = [[[c, c + 1, c + 2, c + 3] for c in range(100, 130)], [[c, c + 1] for c in range(100, 160)]]
    ids, mask = pad_left(rows, 3)
    state = lm.open(lm.read(prompts(lm)[:2])).then(rows, [])
    ranked, _ = branch(state, choices)
    same(ranked, rank(lm.open(state), choices))


def test_rows_of_near_length_go_together(monkeypatch):
    lm = helpers.causal_lm()
    widths, forward = [], lm.forward_pieces
    monkeypatch.setattr(
        lm,
        "forward_pieces",
        lambda pieces, at: (widths.extend(tuple(p.ids.shape) for p in pieces), forward(pieces, at))[1],
    )
    long = [[[n] * 60 for n in range(5, 9)], [[20, 21], [22]], [[30], [31]]]
    ranked, opened = branch(lm.read(prompts(lm)), long)
    assert widths == [(2, 2), (1, 1 + 4 * 59)]
    same(ranked, rank(lm.open(lm.read(prompts(lm))), long))
    assert opened.kv.rows == 3


def test_a_token_knows_its_path_and_how_deep_it_stands():
    row = Branches.of([1, 2], [[3], [4, 5, 6], [7, 8]])
    assert (row.ids, row.path, row.depth) == ([1, 2, 4, 5, 7], [-1, -1, 1, 1, 2], [0, 1, 2, 3, 2])


def test_what_hides_entries_or_masks_otherwise_is_ranked_row_by_row():
    lm = helpers.causal_lm()
    state = lm.read(prompts(lm))
    assert can_branch(state)
    lm.model.config._attn_implementation = "flash_attention_2"
    assert not can_branch(state)


def test_models_of_other_families_are_ranked_row_by_row():
    """Their blocks are called otherwise, or take their mask by place."""
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=400, n_positions=64)
    lm = helpers.causal_lm()
    lm.model = GPT2LMHeadModel(config).eval()
    assert not can_branch(lm.read(prompts(lm)))

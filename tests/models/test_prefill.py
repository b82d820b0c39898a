"""Reading a batch without doing anything twice gives what reading each prompt alone gives."""

from __future__ import annotations

import itertools

import pytest
import torch

from lcfbench.models import shared_prefill as prefill
from lcfbench.models.padding import pad_left
from tests import helpers

COMMON = list(range(40, 60))
ROWS = [
    [*COMMON, 5, 6, 7],
    [*COMMON, 9],
    [*COMMON, 5, 8, *range(60, 90)],
    [*COMMON, 9],
    [*COMMON, 11, 12, 13, 14],
]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture
def counted():
    """A model and the (rows, columns) of its forwards."""

    def make(family="llama"):
        lm, ran = helpers.causal_lm(family=family), []
        lm.model.get_decoder().register_forward_pre_hook(
            lambda module, args, given: ran.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        return lm, ran

    return make


def real(kv, row):
    keep = kv.mask[row].bool()
    return torch.stack([kv.keys[:, row][:, :, keep], kv.values[:, row][:, :, keep]]), kv.positions[row][keep]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_each_row_is_the_one_read_alone(family, counted):
    lm, ran = counted(family)
    kv = lm.prefill(ROWS)
    assert kv.length == max(map(len, ROWS)) and kv.mask.sum(1).tolist() == [len(r) for r in ROWS]
    for i, row in enumerate(ROWS):
        alone, together = real(lm.run(*pad_left([row], 0), None, 0), 0), real(kv, i)
        assert torch.allclose(alone[0], together[0], atol=2e-4)
        assert torch.equal(alone[1], together[1])


def test_what_is_common_is_read_once_and_padding_is_not_read(counted):
    lm, ran = counted()
    lm.prefill(ROWS)
    # the beginning; then rests of 1, 3, 4 and 32 tokens side by side (the equal row once)
    assert ran == [(1, 20), (1, 1 + 3 + 4 + 32)]
    ran.clear()
    lm.prefill(ROWS)
    assert ran == [(1, 40)], "the beginning is kept"
    lm.shared.beginnings = None
    ran.clear()
    lm.prefill(ROWS)
    lm.prefill(ROWS)
    assert ran == 2 * [(1, 20), (1, 40)], "not where weights may change"


def test_few_common_tokens_are_not_worth_a_forward(counted):
    lm, ran = counted()
    lm.prefill([[1, 2, 3, 4], [1, 2, 5]])
    assert ran == [(1, 8)], "7, and one to make them even"


def test_no_more_beginnings_are_kept_than_a_few(counted):
    lm, _ = counted()
    for first in range(100, 120):
        lm.prefill([[first, *row] for row in ROWS])
    assert len(lm.shared.beginnings) == prefill.BEGINNINGS
    assert next(reversed(lm.shared.beginnings))[0] == 119


def test_any_order_of_a_batch_is_the_same_batch_bit_for_bit(counted):
    lm, ran = counted()
    with lm.shared.sharing():
        first = lm.prefill(ROWS)
        read = len(ran)
        for order in ([4, 0, 1, 2, 3], [2, 1, 4, 0, 1]):
            apart = helpers.causal_lm().prefill([ROWS[i] for i in order])
            kv = lm.prefill([ROWS[i] for i in order])
            assert torch.equal(kv.keys, apart.keys) and torch.equal(kv.values, apart.values)
            assert all(torch.equal(real(kv, k)[0], real(first, i)[0]) for k, i in enumerate(order))
        assert len(ran) == read
        lm.prefill(ROWS[:2])
        assert len(ran) > read, "other prompts are read"


def test_what_a_borrower_read_itself_is_not_lent_to_it(counted):
    lm, _ = counted()
    with lm.shared.sharing() as shared:
        lm.shared.start_accounting()
        for _ in range(3):
            lm.prefill(ROWS)
        assert lm.shared.saved_seconds == 0.0
        lm.shared.start_accounting()
        for _ in range(3):
            lm.prefill(ROWS)
        once = shared.held[next(iter(shared.held))][1]
        assert lm.shared.saved_seconds == once > 0, "another one would have read it once"
        assert lm.shared.release() == 1 and not shared.held


def test_long_beginnings_are_not_kept(counted, monkeypatch):
    lm, _ = counted()
    monkeypatch.setattr(prefill, "BEGINNING_BYTES", 10)
    lm.prefill(ROWS)
    assert not lm.shared.beginnings


def test_all_kept_beginnings_have_a_bound(counted, monkeypatch):
    lm, _ = counted()
    lm.prefill([[0, *row] for row in ROWS])
    (one,) = lm.shared.beginnings.values()
    monkeypatch.setattr(prefill, "KEPT_BYTES", 2 * one.nbytes)
    for first in range(1, 5):
        lm.prefill([[first, *row] for row in ROWS])
    assert [ids[0] for ids in lm.shared.beginnings] == [3, 4]


def test_empty_prompts_hold_nothing(counted):
    lm, ran = counted()
    kv = lm.prefill([[], [5, 6], []])
    assert kv.mask.tolist() == [[0, 0], [1, 1], [0, 0]] and not kv.keys[:, 0].any()
    assert lm.prefill([[], []]).length == 0
    assert ran == [(1, 2)]


def test_a_kept_beginning_serves_training_after_inference():
    lm = helpers.causal_lm()
    with torch.inference_mode():
        held = lm.prefill(ROWS)
    with torch.enable_grad():
        kv = lm.prefill(ROWS)
        scale = torch.ones((), requires_grad=True)
        (kv.keys * scale).sum().backward()
    assert scale.grad is not None
    assert all(torch.allclose(real(held, i)[0], real(kv, i)[0], atol=3e-6) for i in range(len(ROWS)))


def test_groups_take_the_fewest_tokens():
    def tokens(cuts, lengths, cost):
        return sum((b - a) * lengths[b - 1] + cost for a, b in cuts)

    for lengths in ([1, 2, 3, 50], [7], [3, 3, 3], [1, 1, 10, 11, 30, 31, 33]):
        for cost in (1, 20, 1000):
            ways = [
                list(itertools.pairwise((0, *cuts, len(lengths))))
                for n in range(len(lengths))
                for cuts in itertools.combinations(range(1, len(lengths)), n)
            ]
            best = min(tokens(w, lengths, cost) for w in ways)
            assert tokens(prefill.groups(lengths, cost), lengths, cost) == best
    assert prefill.groups([], 5) == [] and prefill.groups([2, 4], 1000, 3) == [(3, 5)]


def test_what_is_made_once_is_made_once_within_sharing_only():
    shared, made = helpers.causal_lm().shared, []

    def make():
        made.append(1)
        return object()

    assert shared.once("a", make) is not shared.once("a", make)
    with shared.sharing():
        first = shared.once("a", make)
        shared.start_accounting()
        with shared.sharing():
            assert shared.once("a", make) is first and shared.saved_seconds > 0
        with shared.apart():
            assert shared.once("a", make) is not first, "what is timed must be done"
        assert shared.once("b", make) is not first and shared.once("a", make) is first
    assert shared.once("a", make) is not first and len(made) == 6

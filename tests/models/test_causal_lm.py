"""Causal models against transformers itself: batching, padding, positions, attention kernels, windows."""

from __future__ import annotations

import warnings

import pytest
import torch

from lcfbench.models import memory
from lcfbench.models import shared_prefill as prefill
from lcfbench.models.answering import answer_loss, decode, rank
from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import positions_of
from lcfbench.tasks.prompts import continuation
from tests import helpers
from tests.helpers import FAMILIES, TEXTS
from tests.helpers import plain_prompts as prompts

CHOICES = [" orange", " B", " Toronto. The brown box"]


def scores(lm, shown):
    opened = lm.open(lm.read(shown))
    return rank(opened, [[continuation(p, c, lm.tokenizer) for c in CHOICES] for p in shown])


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_rank_equals_one_plain_forward(family):
    lm = helpers.causal_lm(family=family)
    shown = prompts(lm)
    for p, row in zip(shown, scores(lm, shown), strict=True):
        for c, (ll, greedy) in zip(CHOICES, row, strict=True):
            tail = continuation(p, c, lm.tokenizer)
            logits = lm.model(torch.tensor([[*p.ids, *tail]])).logits.log_softmax(-1)[0, len(p.ids) - 1 : -1]
            assert ll == pytest.approx(float(logits.gather(1, torch.tensor(tail)[:, None]).sum()), abs=2e-4)
            assert greedy == bool((logits.argmax(-1) == torch.tensor(tail)).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_1_equals_batch_n(family):
    lm = helpers.causal_lm(family=family)
    shown = prompts(lm)
    together = scores(lm, shown)
    alone = [scores(lm, [p])[0] for p in shown]
    for a, b in zip(together, alone, strict=True):
        assert [g for _, g in a] == [g for _, g in b]
        assert [x for x, _ in a] == pytest.approx([x for x, _ in b], abs=2e-4)
    texts, written = decode(lm.open(lm.read(shown)), 12)
    for p, text, n in zip(shown, texts, written, strict=True):
        assert decode(lm.open(lm.read([p])), 12) == ([text], [n])


@pytest.mark.parametrize("family", FAMILIES)
def test_sdpa_equals_eager(family):
    one, two = helpers.causal_lm(family=family), helpers.causal_lm(family=family, attention="eager")
    a, b = scores(one, prompts(one)), scores(two, prompts(two))
    assert [x for r in a for x, _ in r] == pytest.approx([x for r in b for x, _ in r], abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_equals_generate(family):
    lm = helpers.causal_lm(family=family)
    for p in prompts(lm):
        text, written = decode(lm.open(lm.read([p])), 10)
        ids = torch.tensor([p.ids])
        made = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=3
        )[0, ids.shape[1] :]
        assert text[0] == lm.tokenizer.decode(made, skip_special_tokens=True)
        assert written[0] == int((made != 2).sum())


def test_decode_stops_before_a_stop_string():
    lm = helpers.causal_lm()
    opened = lm.open(lm.read(prompts(lm)[:1]))
    whole = decode(opened, 12)[0][0]
    stop = whole[3:5]
    assert decode(opened, 12, [stop])[0][0] == whole.split(stop)[0]


def test_prefill_in_two_pieces_equals_one():
    lm = helpers.causal_lm(family="gemma3")
    rows = [p.ids for p in prompts(lm)]
    whole, first = lm.prefill(rows), [5, 2, 0]
    half = lm.prefill([ids[:n] for ids, n in zip(rows, first, strict=True)])
    rest = lm.prefill([ids[n:] for ids, n in zip(rows, first, strict=True)], half, torch.tensor(first))
    real = whole.mask.bool()
    assert torch.equal(whole.mask, rest.mask)
    assert torch.allclose(
        whole.keys.permute(1, 3, 0, 2, 4)[real], rest.keys.permute(1, 3, 0, 2, 4)[real], atol=1e-4
    )
    assert torch.equal(whole.positions[real], rest.positions[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_rotation_is_undone_and_redone(family):
    lm = helpers.causal_lm(family=family)
    rows = [p.ids for p in prompts(lm)]
    kv = lm.prefill(rows)
    bare = lm.content_keys(kv).keys
    assert torch.allclose(lm.rotate(bare, kv.positions), kv.keys, atol=1e-4)
    assert torch.equal(lm.rotate(bare[[2, 0]], kv.positions, [2, 0]), lm.rotate(bare, kv.positions)[[2, 0]])
    # the same words later in the text: first-layer content keys agree, rotated ones do not
    late = lm.prefill(rows, start=7)
    bare_late = lm.content_keys(late).keys
    real = kv.mask.bool()[:, None, :, None]
    assert torch.allclose((bare_late[0] - bare[0]) * real, torch.zeros(1), atol=1e-4)
    assert not torch.allclose((late.keys[0] - kv.keys[0]) * real, torch.zeros(1), atol=1e-2)


def test_ragged_layers_are_refused():
    lm = helpers.causal_lm()
    cache = lm.read(prompts(lm)[:1]).kv.to_cache()
    cache.layers[1].keys = cache.layers[1].keys[:, :, 1:]
    with pytest.raises(AssertionError, match="one shape"):
        KV.from_cache(cache, torch.ones(1, 3), torch.ones(1, 3))


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert positions_of(mask, torch.tensor([5, 0])).tolist() == [[5, 5, 5, 6], [0, 1, 2, 3]]


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_pieces_on_top_of_a_cache_equal_each_row_alone(family):
    """Padding between pieces would push real tokens out of a sliding window."""
    lm = helpers.causal_lm(family=family)
    first, second = prompts(lm), prompts(lm, [TEXTS[2], TEXTS[0], TEXTS[1]])
    leads = [list(p.ids)[:n] for p, n in zip(prompts(lm), (9, 2, 5), strict=True)]

    def through(rows):
        past = lm.prefill([first[r].ids for r in rows])
        opened = lm.open(lm.read([second[r] for r in rows], past=past, start=past.mask.sum(1)))
        again = lm.open(opened.then([leads[r] for r in rows], []))
        return opened.logits, again.logits, decode(again, 6)[0]

    together = through([0, 1, 2])
    for r in range(3):
        alone = through([r])
        assert torch.allclose(together[0][r], alone[0][0], atol=5e-4)
        assert torch.allclose(together[1][r], alone[1][0], atol=5e-4)
        assert together[2][r] == alone[2][0]
    whole = torch.tensor([[*first[1].ids, *second[1].ids, *leads[1]]])
    assert torch.allclose(together[1][1], lm.model(whole).logits[0, -1], atol=5e-4)


def test_the_loss_equals_a_plain_forward():
    lm = helpers.causal_lm(family="gemma3")
    state = lm.read(prompts(lm))
    targets = [[7, 8, 9], [11], [20, 21]]
    got, right = answer_loss(state, targets, [[True, False, True], [True], [True, True]])
    each = []
    for p, t, flags in zip(prompts(lm), targets, ([0, 2], [0], [0, 1]), strict=True):
        logits = lm.model(torch.tensor([[*p.ids, *t]])).logits[0, len(p.ids) - 1 : -1].log_softmax(-1)
        each.append(-sum(float(logits[i, t[i]]) for i in flags) / len(flags))
    assert float(got) == pytest.approx(sum(each) / 3, abs=1e-4)
    assert 0 <= float(right) <= 1


def forwards(lm):
    """The numbers of tokens, padding included, of every forward of the decoder from now on."""
    ran = []
    lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: ran.append(given["input_ids"].numel()), with_kwargs=True
    )
    return ran


def test_a_model_without_an_output_head_of_its_own_answers_too(monkeypatch):
    lm = helpers.causal_lm()
    state = lm.read(prompts(lm))
    first = lm.open(state).logits
    monkeypatch.setattr(lm.model, "get_output_embeddings", lambda: None)
    assert torch.allclose(lm.open(state).logits, first, atol=1e-5)


def test_what_is_shared_ends_where_memory_does_and_is_said_once(monkeypatch):
    lm, shown = helpers.causal_lm(), prompts(helpers.causal_lm())
    free = iter([40 << 30, 1])
    monkeypatch.setattr(prefill, "free_bytes", lambda device: next(free))
    monkeypatch.setattr(prefill, "_warned", False)
    for _ in range(2):  # measured when sharing begins the first time, not again
        with lm.shared.sharing(), lm.shared.sharing(), warnings.catch_warnings():
            warnings.simplefilter("error")
            ran = forwards(lm)
            first = lm.read(shown).kv.keys
            read = len(ran)
            assert torch.equal(first, lm.read(shown).kv.keys)
            assert read and len(ran) == read, "nothing is read twice"
        assert lm.shared.limit == 10 << 30
    small = helpers.causal_lm()
    with small.shared.sharing() as shared:
        assert small.shared.limit == 1 << 30, "at least so much"
        shared.limit = 1
        with pytest.warns(UserWarning, match=r"no longer shared beyond 0\.0 GB") as said:
            first, second = small.read(shown).kv.keys, small.read(shown).kv.keys
    assert len(said) == 1 and first is not second and torch.equal(first, second)


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:       9000 kB\nMemAvailable:   8000 kB\n")
    monkeypatch.setattr(memory, "Path", lambda _: table)
    assert memory.free_bytes(torch.device("cpu")) == 8000 * 1024
    monkeypatch.setattr(memory, "container_bytes", lambda: 5)
    assert memory.free_bytes(torch.device("cpu")) == 5
    monkeypatch.undo()
    for name, text in (("memory.max", "9000\n"), ("memory.current", "2000\n")):
        (tmp_path / name).write_text(text)
    assert memory.container_bytes(tmp_path) == 7000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.container_bytes(tmp_path) > 1 << 50
    monkeypatch.setattr(memory, "container_bytes", lambda: 1 << 62)
    monkeypatch.setattr(memory, "Path", lambda _: table)
    table.unlink()
    assert memory.free_bytes(torch.device("cpu")) // 4 == 2 << 30

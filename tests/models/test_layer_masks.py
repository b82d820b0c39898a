"""Entries hidden from some layers: against running layer after layer on caches that really lack them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from lcfbench.errors import UserError
from lcfbench.models.answering import answer_loss, decode, rank
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.layer_masks import check_maskable, hiding, windows
from lcfbench.models.padding import pad_left, positions_of
from lcfbench.models.protocol import State
from tests import helpers

FAMILIES = ["llama", "qwen3", "gemma3"]
READ = [
    list(range(20, 34)),
    list(range(60, 65)),
    list(range(101, 112)),
]  # what the cache holds, a row each: 14, 5 and 11 tokens
REST = [
    [200, 201, 202, 203],
    [210],
    [220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230],
]  # what runs on it; windows are 8 wide
CLOSE = dict(atol=2e-4, rtol=0)


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def cached(lm: CausalLM, rows: list[list[int]], seed: int = 0) -> KV:
    """Rows read, and about half of their entries hidden, others in every layer; the first one from none."""
    kv = lm.prefill(rows)
    hidden = torch.rand(kv.keys.shape[0], kv.length, generator=torch.Generator().manual_seed(seed)) < 0.5
    hidden[:, 0] = False
    out = torch.zeros(kv.keys.shape[0], len(rows), kv.length, dtype=torch.bool)
    for b, row in enumerate(rows):
        out[:, b, kv.length - len(row) :] = hidden[:, : len(row)]
    return replace(kv, hidden=out)


def state(lm: CausalLM, kv: KV, rest: list[list[int]]) -> State:
    ids, mask = pad_left(rest, 3)
    return State(lm, kv, ids, mask, positions_of(mask, kv.mask.sum(1)), [])


def by_hand(lm: CausalLM, kv: KV, b: int, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) of row b, layer after layer, each on a cache of the entries that it may see."""
    decoder, config = lm.model.get_decoder(), lm.model.config
    start = int(kv.mask[b].sum())
    at = torch.arange(start, start + len(ids))[None]
    x = decoder.embed_tokens(torch.tensor([ids]))
    real = kv.mask[b].bool()
    keeps = [real if kv.hidden is None else real & ~kv.hidden[i, b] for i in range(len(decoder.layers))]
    cache = DynamicCache()
    for i, keep in enumerate(keeps):
        cache.update(kv.keys[i, b : b + 1][:, :, keep], kv.values[i, b : b + 1][:, :, keep], i)
    kinds = config.layer_types if config.model_type == "gemma3_text" else None
    for i, layer in enumerate(decoder.layers):
        n = int(keeps[i].sum())
        window = config.sliding_window if kinds and kinds[i] == "sliding_attention" else 10**6
        mask = torch.full((1, 1, len(ids), n + len(ids)), -torch.inf)
        for q in range(len(ids)):
            for k in range(n + len(ids)):
                if n + q - window < k <= n + q:
                    mask[0, 0, q, k] = 0.0
        turn = decoder.rotary_emb(x, at, kinds[i]) if kinds else decoder.rotary_emb(x, at)
        x = layer(x, attention_mask=mask, position_embeddings=turn, position_ids=at, past_key_values=cache)
    return lm.model.lm_head(decoder.norm(x))[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_sees_what_it_would_see_without_the_hidden_entries(family, attention):
    lm = helpers.causal_lm(family=family, attention=attention)
    kv = cached(lm, READ)
    opened = lm.open(state(lm, kv, REST))
    plain = lm.open(state(lm, replace(kv, hidden=None), REST))
    for b, rest in enumerate(REST):
        torch.testing.assert_close(opened.logits[b], by_hand(lm, kv, b, rest)[-1], **CLOSE)
        assert not torch.allclose(opened.logits[b], plain.logits[b], atol=0.05)  # hiding did something
    # and on: one token after another, on the cache that came back
    texts, written = decode(opened, 6)
    for b, rest in enumerate(REST):
        ids: list[int] = []
        while (
            len(ids) < 6
            and (best := int(by_hand(lm, kv, b, [*rest, *ids])[-1].argmax())) not in lm.stop_ids()
        ):
            ids.append(best)
        assert texts[b] == lm.tokenizer.decode(ids, skip_special_tokens=True) and written[b] == len(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_rank_and_loss_keep_hiding(family):
    lm = helpers.causal_lm(family=family)
    kv = cached(lm, READ)
    one = [[5], [6], [7]]
    longer = lm.prefill(REST, kv, kv.mask.sum(1))
    assert longer.hidden is not None and longer.hidden.sum() == kv.hidden.sum()
    opened = lm.open(state(lm, longer, one))
    choices = [[[30, 31, 32], [40]], [[50], [51, 52]], [[9, 8, 7, 6], [5, 4]]]
    ranked = rank(opened, choices)
    st = state(lm, longer, one)
    loss, _ = answer_loss(st, [row[0] for row in choices], [[True] * len(row[0]) for row in choices])
    losses = []
    for b, row in enumerate(choices):
        for c, tail in enumerate(row):
            got = by_hand(lm, kv, b, [*REST[b], *one[b], *tail[:-1]]).log_softmax(-1)[-len(tail) :]
            per_token = got.gather(1, torch.tensor(tail)[:, None])
            assert ranked[b][c][0] == pytest.approx(float(per_token.sum()), abs=1e-3)
            if c == 0:
                losses.append(-float(per_token.mean()))
    assert float(loss) == pytest.approx(sum(losses) / len(losses), abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_1_equals_batch_n(family):
    lm = helpers.causal_lm(family=family)
    kv = cached(lm, READ)
    together = lm.open(state(lm, kv, REST)).logits
    for b, rest in enumerate(REST):
        alone = lm.open(state(lm, kv.rows_at(torch.tensor([b])).flush(), [rest])).logits
        torch.testing.assert_close(together[b], alone[0], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_from_all_layers_is_not_there(family):
    lm = helpers.causal_lm(family=family)
    kv = lm.prefill(READ)
    gone = torch.zeros_like(kv.mask).bool()
    gone[:, -4:-1] = True
    hidden = replace(kv, hidden=gone.expand(kv.keys.shape[0], -1, -1).clone())
    without = replace(kv, mask=kv.mask * ~gone).flush()
    st = state(lm, kv, REST)
    a, b = (lm.open(replace(st, kv=x)) for x in (hidden, without))
    torch.testing.assert_close(a.logits, b.logits, **CLOSE)
    assert decode(a, 5) == decode(b, 5)
    # nor does it matter what stands there
    at = hidden.hidden[:, :, None, :, None]
    noisy = replace(hidden, keys=torch.where(at, 99.0, kv.keys), values=torch.where(at, 99.0, kv.values))
    torch.testing.assert_close(lm.open(replace(st, kv=noisy)).logits, a.logits, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_hidden_changes_nothing(family):
    lm = helpers.causal_lm(family=family)
    kv = lm.prefill(READ)
    none = torch.zeros(*kv.keys.shape[:2], kv.length, dtype=torch.bool)
    a, b = (lm.open(state(lm, x, REST)) for x in (kv, replace(kv, hidden=none)))
    assert a.kv.hidden is None and b.kv.hidden is not None
    torch.testing.assert_close(a.logits, b.logits, **CLOSE)


def test_hooks_last_as_long_as_one_forward():
    lm = helpers.causal_lm()
    layers = lm.model.get_decoder().layers

    def hooks() -> int:
        return sum(len(layer._forward_pre_hooks) for layer in layers)

    kv = cached(lm, READ)
    with hiding(lm.model, None, kv.mask, 1):
        assert hooks() == 0
    with pytest.raises(ZeroDivisionError), hiding(lm.model, kv.hidden, kv.mask, 1):
        assert hooks() == len(layers)
        raise ZeroDivisionError
    lm.open(state(lm, kv, REST))
    assert hooks() == 0


def test_caches_carry_what_is_hidden():
    lm = helpers.causal_lm()
    kv = cached(lm, READ)
    plain = replace(kv, hidden=None)
    assert plain.then(plain).hidden is None and plain.flush().rows_at(torch.tensor([0])).hidden is None
    for both, own in ((kv.then(plain), slice(0, kv.length)), (plain.then(kv), slice(kv.length, None))):
        assert torch.equal(both.hidden[:, :, own], kv.hidden) and both.hidden.sum() == kv.hidden.sum()
        flush = both.flush()
        for b, row in enumerate(READ):  # every real entry kept its flag
            assert torch.equal(flush.hidden[:, b, -2 * len(row) :], both.hidden[:, b][:, both.mask[b].bool()])
    assert torch.equal(kv.rows_at(torch.tensor([2, 2, 0])).hidden, kv.hidden[:, [2, 2, 0]])
    assert kv.with_layers(torch.tensor([1]), kv.keys[:1], kv.values[:1]).hidden is kv.hidden
    with pytest.raises(AssertionError, match="hidden"):
        replace(kv, hidden=kv.hidden[:1])


def test_what_cannot_be_masked_is_refused():
    lm = helpers.causal_lm()
    kv = cached(lm, READ)
    lm.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"flash_attention_2.*--attention sdpa or eager"):
        lm.open(state(lm, kv, REST))
    lm.model.config._attn_implementation = "sdpa"
    assert windows(lm.model) == [None] * 3
    gemma = helpers.model("gemma3", window=8)
    assert windows(gemma) == [8, 8, None]
    gemma.config.layer_types = ["chunked_attention"] * 3
    with pytest.raises(UserError, match="chunked_attention"):
        check_maskable(gemma)

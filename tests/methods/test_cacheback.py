"""cacheback: what is kept, against plain references; where it stands; what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.methods import _cacheback_scores as scored
from lcfbench.methods._request import question_of
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.finite import NotFiniteError
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits, shared_document, split_document

FAMILIES = ["llama", "qwen3", "gemma3"]
SELECTORS = ["support", "snapkv", "h2o", "streaming", "random", "first"]
ASKING = ["support", "snapkv"]
LONG = split_document(
    9,
    "The brown box is in Toronto.",
    "Zona works as a farmer in the next town. The key of Kafi is in the orange box. A boat lies on the bank.",
)
DOCUMENTS = [*SPLIT, LONG]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def made(lm, **options):
    return create("cacheback", lm, lm, None, {key: str(value) for key, value in options.items()})


def places(method, documents: list[Document], senders: list[Document] | None = None) -> list[list[int]]:
    senders = senders or documents
    shared = [prompt(method.sharer, s.sharer, s) for s in senders]
    theirs = method.sharer_cache(shared)
    asked = [method.behind(p, question_of(d)) for p, d in zip(shared, documents, strict=True)]
    return [method.chosen(theirs, b, p, asked[b]) for b, p in enumerate(shared)]


def lengths(lm, documents: list[Document]) -> list[int]:
    return [len(prompt(lm, d.sharer, d).ids) for d in documents]


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_everything_kept_is_kvcomm_bit_for_bit(family, selector):
    lm = helpers.causal_lm(family=family, layers=4)
    whole, expected, _ = outcomes(create("kvcomm", lm, lm), DOCUMENTS)
    for options in ({"ratio": 1}, {"budget": 10_000}, {"budget": max(lengths(lm, DOCUMENTS))}):
        got, state, _ = outcomes(made(lm, selector=selector, **options), DOCUMENTS)
        assert got == whole
        assert same_bits(state.kv.keys, expected.kv.keys) and same_bits(state.kv.values, expected.kv.values)
        assert torch.equal(state.kv.positions, expected.kv.positions)
        assert state.message.wire_bytes == expected.message.wire_bytes == state.message.cache_bytes


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_budget_is_kept_exactly_and_position_0_within_it(selector):
    lm = helpers.causal_lm(layers=4)
    sizes = lengths(lm, DOCUMENTS)
    for budget in (1, 2, 3, 15, 16, 17, 18, 31, 32, 33, *sizes, *(n - 1 for n in sizes), max(sizes) + 5):
        found = places(made(lm, selector=selector, budget=budget), DOCUMENTS)
        for kept, n in zip(found, sizes, strict=True):
            assert len(kept) == len(set(kept)) == min(budget, n)
            assert kept == sorted(kept) and kept[0] == 0 and kept[-1] < n
    for ratio in (1.5, 4, 7.3, 10_000):
        found = places(made(lm, selector=selector, ratio=ratio), DOCUMENTS)
        assert list(map(len, found)) == [max(int(n / ratio), 1) for n in sizes]
    state = made(lm, selector=selector, budget=17).respond(Batch(DOCUMENTS, DOCUMENTS, Clock()))
    own = lengths_read(lm)
    assert state.kv.mask.sum(1).tolist() == [min(17, n) + m - 1 for n, m in zip(sizes, own, strict=True)]


def lengths_read(lm) -> list[int]:
    return [len(prompt(lm, d.receiver, d).ids) for d in DOCUMENTS]


def slow_spans(values: list[float], budget: int) -> list[int]:
    """The rule in words: whole spans by mean, then one window that holds the peak of the next one."""
    n = len(values)
    if budget >= n:
        return list(range(n))
    kept = [0]
    groups = [list(range(a, min(a + 16, n))) for a in range(0, n, 16)]
    ranked = sorted(groups, key=lambda g: -sum(values[i] for i in g) / len(g))
    for group in ranked:
        fresh = [i for i in group if i != 0]
        room = budget - len(kept)
        if room >= len(fresh):
            kept += fresh
            continue
        if room:
            best = max(fresh, key=lambda i: values[i])
            windows = [fresh[a : a + room] for a in range(len(fresh) - room + 1)]
            middle = best - room // 2
            kept += min((w for w in windows if best in w), key=lambda w: abs(w[0] - middle))
        break
    return sorted(kept)


def test_spans_are_those_of_the_plain_rule():
    draw = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 15, 16, 17, 31, 32, 33, 50, 100):
        scores = torch.rand(n, generator=draw)
        for budget in range(1, n + 3):
            assert scored.spans(scores, budget) == slow_spans(scores.tolist(), budget), (n, budget)
    # equal scores: the earlier span, and its first token is the peak
    assert scored.spans(torch.ones(40), 20) == list(range(20))
    # a peak at the end of its span keeps what stands before it
    peak = torch.zeros(48)
    peak[31] = 1.0
    assert scored.spans(peak, 5) == [0, 28, 29, 30, 31]


def weights_of(lm, context: list[int], request: list[int]) -> list[torch.Tensor]:
    """softmax(q·k) of each layer (heads, T + n, T + n), by transformers' eager attention at once."""
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    out = lm.model(torch.tensor([[*context, *request]]), output_attentions=True)
    lm.model.set_attn_implementation(before)
    return [w[0] for w in out.attentions]


def slow_scores(lm, context: list[int], request: list[int], layers: list[int]) -> dict[str, list[float]]:
    """Each selector's scores from loops over layers, heads, rows and neighbours."""
    n, T, tiny = len(context), len(request), 2.0**-126
    g = lm.geometry
    weights = weights_of(lm, context, request)
    snap, support = [0.0] * n, [0.0] * n
    for layer in layers:
        group = weights[layer].shape[0] // g.kv_heads
        for head in range(g.kv_heads):
            own = weights[layer][head * group : (head + 1) * group, n:, :n]
            rows = [[0.0, *[float(own[:, t, i].mean()) for i in range(1, n)]] for t in range(T)]
            mean = [sum(row[i] for row in rows) / T for i in range(n)]
            near = [range(max(i - 3, 0), min(i + 4, n)) for i in range(n)]
            for i in range(n):
                pooled = [max(row[j] for j in near[i]) for row in rows]
                energy = max((sum(pooled) / T) ** 2, tiny)
                row_energy = max(sum(p * p for p in pooled) / T, tiny)
                top = max(mean[j] for j in near[i])
                snap[i] += top
                support[i] += top * (row_energy / energy) ** 2
    alone = weights_of(lm, context, [])
    h2o = [sum(float(alone[layer][:, :, i].sum()) for layer in layers) for i in range(n)]
    return {"snapkv": snap, "support": support, "h2o": h2o}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_formula(family, attention):
    lm = helpers.causal_lm(family=family, layers=4, attention=attention)
    method = made(lm)
    shared = prompt(lm, LONG.sharer, LONG)
    context, request = list(shared.ids), method.behind(shared, question_of(LONG))
    layers = [i for i, w in enumerate(lm.windows) if w is None]
    assert scored.global_layers(lm) == layers and (len(layers) < 4) == (family == "gemma3")
    expected = slow_scores(lm, context, request, layers)
    found = scored.attended(lm, request, lm.prefill([context]))
    got = {"snapkv": scored.snapkv(found), "support": scored.support(found)}
    got["h2o"] = scored.accumulated(lm, context)
    for name, scores in got.items():
        assert scores.dtype == torch.float32
        assert scores.tolist() == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    assert lm.model.config._attn_implementation == attention


def test_a_position_that_one_row_leans_on_keeps_its_weight():
    even, one = torch.full((1, 1, 4, 20), 0.0), torch.zeros(1, 1, 4, 20)
    even[..., 10], one[..., 0, 10] = 0.1, 0.4

    def attended(x):
        pooled = scored.pool(x)
        return scored.Attended(*(v.mean(2).flatten(0, 1) for v in (x, pooled, pooled.square())))

    a, b = attended(even), attended(one)
    assert scored.snapkv(a)[10] == pytest.approx(float(scored.snapkv(b)[10]))
    assert scored.support(a)[10] == pytest.approx(0.1)
    assert scored.support(b)[10] == pytest.approx(0.1 * 16)  # four rows: row energy is four times energy
    assert scored.support(a)[2] == 0.0  # nothing attended: the factor is 1


def test_windows_everywhere_are_scored_by_all_layers(monkeypatch):
    lm = helpers.causal_lm(layers=4)
    monkeypatch.setattr(type(lm), "windows", [8] * 4)
    assert scored.global_layers(lm) == [0, 1, 2, 3]


def test_streaming_random_and_first():
    lm = helpers.causal_lm(layers=4)
    n = lengths(lm, [LONG])[0]
    assert places(made(lm, selector="first", budget=5), [LONG]) == [[0, 1, 2, 3, 4]]
    assert places(made(lm, selector="streaming", budget=7), [LONG]) == [[0, 1, 2, 3, n - 3, n - 2, n - 1]]
    assert places(made(lm, selector="streaming", budget=3), [LONG]) == [[0, 1, 2]]
    draws = {seed: places(made(lm, selector="random", budget=20, seed=seed), DOCUMENTS) for seed in range(6)}
    assert draws[0] == places(made(lm, selector="random", budget=20), DOCUMENTS)
    assert len({str(draw) for draw in draws.values()}) > 1
    assert draws[0][-1:] == places(made(lm, selector="random", budget=20), [LONG])  # whatever the batch


# -- where it stands -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_tokens_kept_are_the_text_read_alone(family):
    """They attended nothing that is dropped, so nothing else may differ."""
    lm = helpers.causal_lm(family=family, layers=4)
    method = made(lm, selector="first", budget=9)
    _, state, _ = outcomes(method, DOCUMENTS)
    for b, d in enumerate(DOCUMENTS):
        alone = lm.prefill([prompt(lm, d.sharer, d).ids[:9]])
        real = state.kv.mask[b].bool()
        torch.testing.assert_close(
            state.kv.keys[:, b][:, :, real][:, :, :9], alone.keys[:, 0], atol=1e-4, rtol=0
        )
        assert state.kv.positions[b, real].tolist() == list(range(int(real.sum())))


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_entries_stand_in_a_row_with_their_content(family):
    lm = helpers.causal_lm(family=family, layers=4)
    method = made(lm, budget=18)
    shared = [prompt(lm, d.sharer, d) for d in DOCUMENTS]
    theirs = method.sharer_cache(shared)
    chosen = places(method, DOCUMENTS)
    assert any(kept != list(range(len(kept))) for kept in chosen)
    sent = method.moved(theirs, chosen)
    was, now = lm.content_keys(theirs), lm.content_keys(sent)
    for b, kept in enumerate(chosen):
        a, e = theirs.mask[b].bool(), sent.mask[b].bool()
        assert sent.positions[b, e].tolist() == list(range(len(kept)))
        assert torch.equal(sent.values[:, b][:, :, e], theirs.values[:, b][:, :, a][:, :, kept])
        got, expected = now.keys[:, b][:, :, e], was.keys[:, b][:, :, a][:, :, kept]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        stay = [i for i, place in enumerate(kept) if i == place]
        keys = sent.keys[:, b][:, :, e][:, :, stay]
        assert same_bits(keys, theirs.keys[:, b][:, :, a][:, :, stay])  # position 0 at least


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_batches_agree(family, selector):
    one = {k: helpers.causal_lm(family=family, layers=4, attention=k) for k in ("sdpa", "eager")}
    method = made(one["sdpa"], selector=selector, budget=18)
    together, state, _ = outcomes(method, DOCUMENTS)
    eager, _, _ = outcomes(made(one["eager"], selector=selector, budget=18), DOCUMENTS)
    for x, y in zip(together, eager, strict=True):
        assert x == pytest.approx(y, abs=5e-4)
    for i, d in enumerate(DOCUMENTS):
        alone, single, _ = outcomes(method, [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert state.message.request_bytes[i] == single.message.request_bytes[0]
        assert state.message.token_bytes[i] == single.message.token_bytes[0]
    moved, _, _ = outcomes(method, DOCUMENTS, DOCUMENTS[1:] + DOCUMENTS[:1])
    assert any(x != pytest.approx(y, abs=1e-3) for x, y in zip(together, moved, strict=True))


# -- the request -----------------------------------------------------------------------------------


def test_the_request_is_the_receiver_s_question_without_its_notes():
    for d in DOCUMENTS:
        asked = question_of(d)
        assert asked.startswith("Question: In which city") and "box is in" not in asked
    shared = shared_document(0, "What is copper?")
    assert question_of(shared) == shared.receiver.user.strip()
    plain = replace(SPLIT[0], noted=SPLIT[0].sharer)  # no place for a note: the end that both texts have
    assert question_of(plain) == question_of(SPLIT[0])


@pytest.mark.parametrize("selector", ASKING)
def test_the_cache_is_another_document_s_and_the_question_the_receiver_s(selector):
    lm = helpers.causal_lm(layers=4)
    method = made(lm, selector=selector, budget=12)
    other = replace(LONG, receiver=replace(LONG.receiver, user="Notes: none.\nQuestion: Who?\nAnswer:"))
    other = replace(other, noted=replace(other.noted, user=other.receiver.user))
    asked = method.behind(prompt(lm, LONG.sharer, LONG), question_of(other))
    assert asked != method.behind(prompt(lm, LONG.sharer, LONG), question_of(LONG))
    _, state, _ = outcomes(method, [LONG], [SPLIT[1]])
    _, own, _ = outcomes(method, [SPLIT[1]])
    assert state.message.request_bytes == [len(question_of(LONG).encode())]
    assert state.message.cache_bytes == own.message.cache_bytes


def test_what_is_counted():
    lm = helpers.causal_lm(layers=4, heads=2, dim=8)
    sizes, entry = lengths(lm, DOCUMENTS), 4 * 2 * 2 * 8 * 4
    _, state, _ = outcomes(made(lm, budget=10), DOCUMENTS)
    m = state.message
    assert m.wire_bytes == [10 * entry] * 4 and m.cache_bytes == [n * entry for n in sizes]
    assert m.token_bytes == [20] * 4
    assert m.request_bytes == [len(question_of(d).encode()) for d in DOCUMENTS]
    asked = [made(lm).behind(prompt(lm, d.sharer, d), question_of(d)) for d in DOCUMENTS]
    assert m.sharer_tokens == [n + len(ids) for n, ids in zip(sizes, asked, strict=True)]
    for selector in ("h2o", "streaming", "random", "first"):
        _, silent, _ = outcomes(made(lm, selector=selector, budget=10), DOCUMENTS)
        assert silent.message.request_bytes == [0] * 4 and silent.message.sharer_tokens == sizes
    _, h2o, _ = outcomes(made(lm, selector="h2o", budget=10), DOCUMENTS)
    for twice, once, n in zip(h2o.message.adapter_flops, m.adapter_flops, sizes, strict=True):
        assert twice == pytest.approx(once + lm.flops(n))


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"selector": "best"}, "selector"),
        ({"ratio": "0.5"}, "ratio=0.5"),
        ({"ratio": "nan"}, "ratio"),
        ({"ratio": "inf"}, "ratio"),
        ({"budget": "0"}, "budget=0"),
        ({"budget": "3", "ratio": "2"}, "both"),
        ({"seed": "-1", "selector": "random"}, "seed"),
        ({"span": "4"}, "span"),
    ],
)
def test_bad_options_are_one_line(options, word):
    with pytest.raises(UserError, match=word) as error:
        made(helpers.causal_lm(), **options)
    assert "\n" not in str(error.value)


def test_two_models_are_refused_and_options_are_those_that_count():
    with pytest.raises(UserError, match="one model on both sides"):
        create("cacheback", *helpers.tiny_pair("lcf"))
    lm = helpers.causal_lm()
    assert made(lm).options() == {"selector": "support", "ratio": 4.0}
    assert made(lm, budget=3, seed=2).options() == {"selector": "support", "budget": 3}
    assert made(lm, selector="random", seed=2).options() == {"selector": "random", "ratio": 4.0, "seed": 2}


def test_attention_that_is_not_finite_is_said():
    lm = helpers.causal_lm(layers=4)
    kv = lm.prefill([list(prompt(lm, LONG.sharer, LONG).ids)])
    broken = replace(kv, keys=kv.keys.clone())
    broken.keys[1, 0, 0, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="attention of"):
        scored.attended(lm, [5, 6, 7], broken)


def test_shared_documents_work_too():
    _, state, _ = outcomes(made(helpers.causal_lm(layers=4), budget=4), SHARED)
    assert all(n > 0 for n in state.message.request_bytes)

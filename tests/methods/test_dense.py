"""Dense alignment on tiny random pairs: identity translations, closed forms, sizes, training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import AdapterConfig, pair_config
from lcfbench.adapters.dense_fit import Pairs, low_rank, r2, reconstruct
from lcfbench.adapters.files import load, save
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import target
from lcfbench.geometry import Geometry
from lcfbench.methods._translate import read_pairs
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.answering import answer_loss
from lcfbench.models.timing import Clock
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits
from tests.helpers import dense_config as config_of
from tests.helpers import random_dense as noisy
from tests.helpers import tiny_pair as pair

FORMS = [
    {"form": "mlp", "multiple": 2},
    {"form": "linear", "sources": 3, "residual": 6},
    {"form": "linear", "rank": 5, "residual": 6},
]
TEXTS = [replace(d, doc_id=f"{d.doc_id}-{i}") for i in range(7) for d in SPLIT + SHARED]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def identity(lm):
    """Translates a model's cache into itself; scales far above any entry, so that nothing is clamped."""
    adapter = build(config_of((lm, lm), form="linear"))
    with torch.no_grad():
        adapter.weight.copy_(torch.eye(adapter.width_in).expand_as(adapter.weight))
        adapter.input_scale.fill_(100.0)
        adapter.output_scale.fill_(100.0)
    return adapter.requires_grad_(False).eval()


# -- what the receiver ends up with ----------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("keep", [[0, 1, 2], [2]])
@torch.no_grad()
def test_the_own_cache_translated_into_itself_changes_nothing(family, keep):
    one = helpers.causal_lm("same", family=family, chat=True)
    plain = SHARED[1:]  # tokens that share one character all read the last of them: no identity
    alone, base, _ = outcomes(create("receiver", one, one), plain)
    for options in ({"context": "unaware"}, {}):
        adapter = identity(one).select(keep)
        adapter.blend_as = "mix"  # own + g·(translated − own): equal parts, whatever g
        got, state, _ = outcomes(create("dense", one, one, adapter, options), plain)
        for a, b in zip(got, alone, strict=True):
            assert a == pytest.approx(b, abs=5e-4)
    assert sum(state.message.wire_bytes) > 0
    assert sum(base.message.wire_bytes) == 0


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_the_own_cache_in_front_equals_the_two_texts_in_a_row(family):
    one = helpers.causal_lm("same", family=family)
    same_lead = [
        replace(d, receiver=replace(d.receiver, user="The b" + d.receiver.user[len("Notes") :]))
        for d in SPLIT
    ]
    same_lead = [
        replace(d, sharer=replace(d.sharer, user="The b" + d.sharer.user[len("Notes") :])) for d in same_lead
    ]
    got, _, _ = outcomes(create("dense", one, one, identity(one)), same_lead)
    expected, _, _ = outcomes(create("kvcomm", one, one), same_lead)
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, abs=5e-4)


@pytest.mark.parametrize("blend", ["add", "mix"])
@torch.no_grad()
def test_shut_gates_leave_what_was_read_bit_for_bit(blend):
    lms = pair()
    alone, base, _ = outcomes(create("receiver", *lms), SHARED)
    adapter = noisy(lms, logit=-1.0, form="linear", blend=blend, gate="hard")
    assert outcomes(create("dense", *lms, adapter), SHARED)[0] == alone  # all layers dropped
    assert outcomes(create("dense", *lms, adapter), SPLIT)[0] == outcomes(create("receiver", *lms), SPLIT)[0]
    adapter.requires_grad_(True)  # as in training: the layers are computed, and change nothing
    bare = [
        replace(d, receiver=replace(d.receiver, prefix=""), sharer=replace(d.sharer, prefix=""))
        for d in SHARED
    ]
    _, base, _ = outcomes(create("receiver", *lms), bare)
    _, state, _ = outcomes(create("dense", *lms, adapter), bare)
    assert same_bits(state.kv.keys, base.kv.keys)
    assert same_bits(state.kv.values, base.kv.values)
    adapter.gate_logit[2, 0] = 1.0
    _, state, _ = outcomes(create("dense", *lms, adapter), bare)
    assert same_bits(state.kv.values, base.kv.values)
    assert not torch.equal(state.kv.keys[2], base.kv.keys[2])


@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
@pytest.mark.parametrize("options", FORMS, ids=["mlp", "full", "rank"])
@torch.no_grad()
def test_batch_1_equals_batch_n(documents, options):
    for chat, context in ((False, "auto"), (True, "unaware")):
        lms = pair(chat=chat)
        method = create("dense", *lms, noisy(lms, **options), {"context": context})
        together, state, _ = outcomes(method, documents)
        for i, d in enumerate(documents):
            alone, single, _ = outcomes(method, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4)
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0] > 0
            assert state.message.sharer_tokens[i] == single.message.sharer_tokens[0]


@pytest.mark.parametrize(("documents", "context"), [(SHARED, "aware"), (SHARED, "unaware"), (SPLIT, "auto")])
@torch.no_grad()
def test_sdpa_equals_eager(documents, context):
    got = []
    for attention in ("sdpa", "eager"):
        lms = pair(attention=attention)
        got.append(
            outcomes(create("dense", *lms, noisy(lms, **FORMS[2]), {"context": context}), documents)[0]
        )
    for a, b in zip(*got, strict=True):
        assert a == pytest.approx(b, abs=5e-4)


@pytest.mark.parametrize(("documents", "context"), [(SHARED, "aware"), (SHARED, "unaware"), (SPLIT, "auto")])
@pytest.mark.parametrize("alignment", ["span", "remap"])
@torch.no_grad()
def test_a_deranged_message_is_another_one(documents, context, alignment):
    lms = pair()
    method = create("dense", *lms, noisy(lms, alignment=alignment, **FORMS[1]), {"context": context})
    matched, state, _ = outcomes(method, documents)
    deranged, other, _ = outcomes(method, documents, documents[1:] + documents[:1])
    assert all(a != pytest.approx(b, abs=1e-6) for a, b in zip(matched, deranged, strict=True))
    assert other.message.sharer_tokens == state.message.sharer_tokens[1:] + state.message.sharer_tokens[:1]


@torch.no_grad()
def test_unaware_hides_the_text_from_the_receiver():
    """With a constant translation nothing of the question reaches the answer, nor by the template."""
    one = helpers.causal_lm("same", chat=True)
    adapter = identity(one)
    adapter.weight.zero_()
    words = ["copper conducts heat", "conducts copper heat", "heat conducts copper"]
    documents = [
        replace(
            SHARED[0], receiver=replace(SHARED[0].receiver, user=w), sharer=replace(SHARED[0].sharer, user=w)
        )
        for w in words
    ]
    same = [
        d
        for d in documents
        if len(one.tokenizer(d.receiver.user).input_ids) == len(one.tokenizer(words[0]).input_ids)
    ]
    assert len(same) > 1
    got, _, _ = outcomes(create("dense", one, one, adapter, {"context": "unaware"}), same)
    assert all(row == pytest.approx(got[0], abs=5e-4) for row in got)
    aware, _, _ = outcomes(create("dense", one, one, adapter, {"context": "aware"}), same)
    assert aware[0] != pytest.approx(aware[1], abs=1e-3)


def test_a_pruned_adapter_serves_shared_contexts_only():
    lms = pair()
    method = create("dense", *lms, noisy(lms, **FORMS[1]).select([1, 3]))
    method.check(SHARED[0])
    with pytest.raises(UserError, match="translates 2 of 4 layers"):
        method.check(SPLIT[0])


def test_the_coin_between_aware_and_unaware():
    lms = pair()
    adapter = build(config_of(lms, form="linear", aware_share=0.5)).train()
    method = create("dense", *lms, adapter)
    batches = [Batch([d], [d], Clock()) for d in TEXTS if d.shared]
    tosses = [method.aware(b) for b in batches]
    assert 0 < sum(tosses) < len(tosses)
    assert tosses == [method.aware(b) for b in batches]
    adapter.aware_share = 0.0
    assert not any(method.aware(b) for b in batches)
    adapter.eval()
    assert all(method.aware(b) for b in batches)


@torch.no_grad()
def test_last_tokens_only():
    lms = pair()
    method = create("dense", *lms, noisy(lms, last=4, **FORMS[2]))
    _, state, _ = outcomes(method, SPLIT)
    assert state.message.wire_bytes == [4 * 4 * 5 * 4] * 3  # layers · tokens · rank · fp32


# -- phase I ---------------------------------------------------------------------------------------


def planted(lms, **options):
    """Real entries of the tiny pair, with targets that are a linear function of standardised ones."""
    adapter = build(config_of(lms, form="linear", reconstruction="ridge", **options))
    batches = list(read_pairs(*lms, TEXTS, adapter.config, lead=2))
    x = torch.cat([p.entries for p in batches], 1)
    mean, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    torch.manual_seed(5)
    rank = options.get("rank") or adapter.width_out
    W = (
        torch.randn(len(adapter.config.layers), adapter.width_in, rank)
        @ torch.randn(rank, adapter.width_out)
        / 20
    )
    made = [
        Pairs(p.entries, torch.bmm(adapter.window((p.entries - mean) / scale), W) + 0.7, p.held)
        for p in batches
    ]
    return adapter, made


@pytest.mark.parametrize("options", [{}, {"sources": 3}, {"rank": 4}], ids=["one", "three", "rank"])
def test_ridge_recovers_a_planted_map(options):
    adapter, made = planted(pair(), ridge_alpha=1e-9, **options)
    said = []
    reconstruct(adapter, lambda: iter(made), said.append)
    keys, values = r2(adapter, [p for p in made if p.held.any()])
    assert float(torch.cat([keys, values]).min()) > 0.999
    assert "R² K 1.000, V 1.000" in said[0]


def test_low_rank_is_the_best_of_its_rank():
    torch.manual_seed(0)
    X, W = torch.randn(200, 12).double() @ torch.randn(12, 12).double(), torch.randn(12, 9).double()
    U, S, Vh = torch.linalg.svd(X @ W, full_matrices=False)
    for rank in (1, 3, 9):
        down, up = low_rank(W, X.T @ X / len(X), rank)
        torch.testing.assert_close(X @ down @ up, U[:, :rank] * S[:rank] @ Vh[:rank])
        torch.testing.assert_close((X @ down).pow(2).mean(0), torch.ones(rank).double())
    down, up = low_rank(W, X.T @ X, 11)
    torch.testing.assert_close(down @ up, W)


@pytest.mark.parametrize(
    "options", [FORMS[0], {**FORMS[1], "reconstruction": "gradient"}], ids=["mlp", "linear"]
)
def test_gradient_reconstruction_learns(options):
    lms = (helpers.causal_lm("same"),) * 2
    adapter = build(config_of(lms, reconstruction_steps=80, reconstruction_lr=1e-2, **options))
    batches = list(read_pairs(*lms, TEXTS, adapter.config, lead=2))
    adapter.reconstruction = "none"
    reconstruct(adapter, lambda: iter(batches), print)
    assert torch.cat(r2(adapter, batches)).max() < 0.5  # statistics alone translate nothing
    adapter.reconstruction = "gradient"
    reconstruct(adapter, lambda: iter(batches), print)
    assert torch.cat(r2(adapter, batches)).min() > 0.8
    assert all(p.grad is None for p in adapter.parameters())


def test_pairs_stand_at_the_same_characters():
    one = helpers.causal_lm("same")
    for p in read_pairs(one, one, SPLIT, config_of((one, one), form="linear"), lead=2):
        torch.testing.assert_close(p.entries, p.targets)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("documents", "share"), [(SPLIT, 0.5), (SHARED, 1.0), (SHARED, 0.0)])
@pytest.mark.parametrize("options", FORMS, ids=["mlp", "full", "rank"])
def test_gradients_reach_every_weight(documents, share, options):
    lms = pair()
    adapter = noisy(lms, aware_share=share, **options).requires_grad_(True).train()
    method = create("dense", *lms, adapter)
    state = method.respond(Batch(documents, documents, Clock()))
    tokenizer = lms[0].tokenizer
    pairs = [
        target(d, p, tokenizer, tokenizer.eos_token_id) for d, p in zip(documents, state.prompts, strict=True)
    ]
    loss, _ = answer_loss(state, [ids for ids, _ in pairs], [flags for _, flags in pairs])
    loss.backward()
    for name, p in adapter.named_parameters():
        if name == "gate_logit" and share != 1.0:  # gates act only on what the receiver has read itself
            continue
        assert p.grad is not None and bool((p.grad.flatten(1).abs().sum(1) > 0).all()), name


# -- sizes and files -------------------------------------------------------------------------------

QWEN3, QWEN25 = Geometry(layers=28, kv_heads=8, head_dim=128), Geometry(layers=24, kv_heads=2, head_dim=64)


@pytest.mark.parametrize(("rank", "residual", "sources"), [(0, 0, 1), (0, 128, 3), (32, 0, 1), (48, 32, 2)])
def test_parameters_of_the_linear_form(rank, residual, sources):
    options = {"form": "linear", "rank": rank, "residual": residual, "sources": sources}
    with torch.device("meta"):
        adapter = build(pair_config("dense", ("a", QWEN3), ("b", QWEN25), options=options))
    fan_in, r, d = sources * 256, 2048, residual
    first = rank * (fan_in + r) if rank else fan_in * r
    more = ((rank or fan_in) * d + d) + d + 8 * d * d + (d * r + r) if d else 0
    assert adapter.params == 28 * (first + more + 2)


def test_parameters_of_the_mlp_form():
    with torch.device("meta"):
        adapter = build(pair_config("dense", ("a", QWEN3), ("b", QWEN3)))
        narrow = build(pair_config("dense", ("a", QWEN25), ("b", QWEN3), options={"multiple": 4}))
    hidden = 16 * 128
    assert adapter.params == 28 * (2 * 8 * (128 * hidden + hidden + hidden * 128 + 128) + 2)
    hidden = 4 * 64  # each of 2 receiver heads reads 4 of 8 sharer heads
    assert narrow.params == 24 * (2 * 2 * (4 * 128 * hidden + hidden + hidden * 64 + 64) + 2)


def test_wire_bytes_are_the_least_that_would_do():
    def of(**options):
        with torch.device("meta"):
            return build(
                pair_config("dense", ("a", QWEN3), ("b", QWEN25), layer_map="proportional", options=options)
            )

    cache = 24 * 256 * 50 * 2  # all sharer layers are read
    assert of(form="linear", rank=32).wire_bytes(50, 40, 2) == 28 * 32 * 40 * 2 < cache
    assert of(form="linear", rank=512).wire_bytes(50, 50, 2) == cache
    assert of(form="linear", sources=3).wire_bytes(50, 40, 2) == cache == of().cache_bytes(50, 2)
    one = AdapterConfig.model_validate(
        {**of(form="linear").config.model_dump(), "layers": (27,), "layer_map": (23,)}
    )
    with torch.device("meta"):
        assert build(one).cache_bytes(50, 2) == 256 * 50 * 2


@torch.no_grad()
def test_saved_and_loaded_it_answers_alike(tmp_path):
    lms = pair()
    for i, options in enumerate(FORMS):
        adapter = noisy(lms, **options)
        adapter.input_mean.normal_()
        adapter.output_scale.uniform_(0.5, 2)
        save(adapter, tmp_path / str(i), "card", torch.float32)
        again = load(tmp_path / str(i))
        assert all(
            torch.equal(a, b)
            for a, b in zip(adapter.state_dict().values(), again.state_dict().values(), strict=True)
        )
        assert (
            outcomes(create("dense", *lms, again), SPLIT)[0]
            == outcomes(create("dense", *lms, adapter), SPLIT)[0]
        )
        save(adapter, tmp_path / f"bf{i}", "card")
        assert torch.equal(
            load(tmp_path / f"bf{i}").output_scale, adapter.output_scale
        )  # statistics stay in fp32


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"form": "mlp", "rank": 4}, "form=linear"),
        ({"form": "mlp", "reconstruction": "ridge"}, "form=linear"),
        ({"sources": 4}, "Give 1 to 3"),
        ({"width": 4}, "do not fit"),
    ],
)
def test_settings_that_do_not_go_together(options, match):
    with pytest.raises(UserError, match=match):
        build(config_of(pair(), **options))


@pytest.mark.parametrize(("options", "match"), [({"context": "awre"}, "aware"), ({"lead": "-1"}, "lead=-1")])
def test_mistaken_method_options(options, match):
    lms = pair()
    with pytest.raises(UserError, match=match):
        create("dense", *lms, noisy(lms, **FORMS[0]), options)

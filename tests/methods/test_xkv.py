"""XKV on tiny random pairs: what crosses, what a shut gate is, retrieval, saving and training."""

from __future__ import annotations

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.lcf import flat
from lcfbench.evaluation.answer import target
from lcfbench.geometry import Geometry
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.answering import answer_loss
from lcfbench.models.timing import Clock
from lcfbench.models.wire import unpack
from lcfbench.training.recipe import TrainRecipe
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes
from tests.helpers import random_xkv as adapter
from tests.helpers import tiny_pair as pair

DOCUMENTS = pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
QWEN3, QWEN25 = Geometry(layers=28, kv_heads=8, head_dim=128), Geometry(layers=24, kv_heads=2, head_dim=64)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@DOCUMENTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("gate", ["hard", "gumbel", "soft"])
def test_shut_gates_equal_the_receiver_alone_bit_for_bit(documents, dtype, gate):
    lms = pair()
    for lm in lms:
        lm.model.to(dtype)
    made = adapter(lms, gate=gate)
    made.gate_logit.fill_(-torch.inf)
    with torch.no_grad():
        alone = outcomes(create("receiver", *lms), documents)[0]
        assert outcomes(create("xkv", *lms, made), documents)[0] == alone
        made.gate_logit[2, 1] = 1.0
        assert outcomes(create("xkv", *lms, made), documents)[0] != alone


@DOCUMENTS
def test_an_untrained_adapter_equals_the_receiver_alone_bit_for_bit(documents):
    lms = pair()
    torch.manual_seed(0)
    fresh = build(pair_config("xkv", *((e.name, e.geometry) for e in lms))).eval()
    assert torch.count_nonzero(fresh.up) == 0
    with torch.no_grad():
        assert (
            outcomes(create("xkv", *lms, fresh), documents)[0]
            == outcomes(create("receiver", *lms), documents)[0]
        )


@DOCUMENTS
@pytest.mark.parametrize("chat", [False, True])
def test_batch_1_equals_batch_n(documents, chat):
    lms = pair(chat=chat)
    method = create("xkv", *lms, adapter(lms))
    with torch.no_grad():
        together, state, _ = outcomes(method, documents)
        for i, d in enumerate(documents):
            alone, single, _ = outcomes(method, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4)
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0] > 0
            assert state.message.adapter_flops[i] == single.message.adapter_flops[0] > 0


@DOCUMENTS
def test_sdpa_equals_eager(documents):
    with torch.no_grad():
        a, b = (
            outcomes(create("xkv", *lms, adapter(lms)), documents)[0]
            for lms in (pair(), pair(attention="eager"))
        )
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


def test_the_message_is_the_slots_of_the_sharer_and_nothing_else():
    lms = pair()
    method = create("xkv", *lms, adapter(lms))
    batch = Batch(SPLIT, SPLIT, Clock(), "native")
    with torch.no_grad():
        state = method.respond(batch)
        sent = method.slots(method.sharer_cache(state.message.read))
    S, k, d = 3, 3, 6  # layers of the sharer, slots, numbers
    for row, packet in enumerate(state.message.packets):
        [(name, found)] = unpack(packet).items()
        assert name == "latents" and found.shape == (S, k, d)
        torch.testing.assert_close(found, sent[:, row])
    plain = create("xkv", *lms, method.adapter).respond(Batch(SPLIT, SPLIT, Clock()))
    assert plain.message.wire_bytes == [S * k * d * 4] * len(SPLIT)  # of whatever length the text is
    assert len({len(p.ids) for p in plain.message.read}) > 1


def test_the_message_of_the_sender_is_what_counts():
    lms = pair()
    method = create("xkv", *lms, adapter(lms))
    with torch.no_grad():
        matched, own, _ = outcomes(method, SPLIT)
        moved, other, _ = outcomes(method, SPLIT, SPLIT[1:] + SPLIT[:1])
    assert any(m != pytest.approx(d, abs=1e-6) for m, d in zip(matched, moved, strict=True))
    assert other.message.sharer_tokens == own.message.sharer_tokens[1:] + own.message.sharer_tokens[:1]


def test_every_entry_gets_what_it_retrieves_from_the_slots_of_all_layers():
    """Against the formula, one position and layer at a time; layers a few at a time change nothing."""
    torch.manual_seed(5)
    names = (
        ("r", Geometry(layers=4, kv_heads=2, head_dim=6)),
        ("s", Geometry(layers=3, kv_heads=1, head_dim=8)),
    )
    made = build(pair_config("xkv", *names, options={"slots": 3, "width": 5}))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
        sent, own = torch.randn(3, 2, 3, 5), torch.randn(4, 2, 3, 5)
        memory = made.memory(sent, own)
        assert memory.shape == (2, (3 + 4) * 3, 5)
        keys, values = torch.randn(2, 4, 2, 2, 7, 6)
        found = made(memory, keys, values)
        layer, row, column = 2, 1, 4
        entry = torch.cat([keys[layer, row, :, column].flatten(), values[layer, row, :, column].flatten()])
        score = (entry @ made.ask[layer]) @ memory[row].T / 5**0.5
        score = score + made.map[layer, 0].log_softmax(0).repeat_interleave(3)
        edit = score.softmax(0) @ memory[row] @ made.up[layer]
        for got, want in zip(found, edit.chunk(2), strict=True):
            torch.testing.assert_close(got[layer, row, :, column].flatten(), want, atol=1e-5, rtol=1e-4)
        parts = [made(memory, keys[at], values[at], at) for at in (slice(0, 3), slice(3, 4))]
        for whole, pieces in zip(found, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(whole, torch.cat(pieces))


def test_an_edit_of_a_key_is_turned_to_its_position():
    """The edited cache's content keys are the receiver's own plus the edit."""
    lms = pair()
    made = adapter(lms)
    method = create("xkv", *lms, made)
    made.gate_logit.fill_(torch.inf)
    with torch.no_grad():
        state = create("receiver", *lms).respond(Batch(SPLIT, SPLIT, Clock()))
        theirs = method.slots(method.sharer_cache(method.sharer_prompts(Batch(SPLIT, SPLIT, Clock()), [])))
        new = method.retrieved(state.kv, theirs)
        own, real = lms[0].content_keys(state.kv), state.kv.mask.bool()
        mine = made.message(made.pool(own.keys, own.values, own.mask, "receiver"), "receiver")
        keys, values = made(made.memory(theirs, mine), own.keys, own.values)
        found = lms[0].content_keys(new)
    for got, old, edit in ((found.keys, own.keys, keys), (new.values, state.kv.values, values)):
        torch.testing.assert_close(flat(got)[:, real], flat(old + edit)[:, real], atol=1e-4, rtol=1e-4)


def test_padding_is_pooled_by_no_slot():
    lms = pair()
    method = create("xkv", *lms, adapter(lms))
    with torch.no_grad():
        prompts = method.sharer_prompts(Batch(SPLIT, SPLIT, Clock()), [])
        together = method.slots(method.sharer_cache(prompts))
        for row, one in enumerate(prompts):
            alone = method.slots(method.sharer_cache([one]))
            torch.testing.assert_close(together[:, row], alone[:, 0], atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter():
    lms = pair()
    method = create("xkv", *lms, adapter(lms, pool_start="last").requires_grad_(True).train())
    state = method.respond(Batch(SPLIT, SPLIT, Clock()))
    tokenizer = lms[0].tokenizer
    gold = [
        target(d, p, tokenizer, tokenizer.eos_token_id) for d, p in zip(SPLIT, state.prompts, strict=True)
    ]
    loss, _ = answer_loss(state, [ids for ids, _ in gold], [flags for _, flags in gold])
    loss.backward()
    for name, p in method.adapter.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert torch.count_nonzero(p.grad), name


@pytest.mark.parametrize(("k", "d"), [(8, 24), (3, 7)])
def test_the_number_of_parameters_is_the_formula_and_near_the_published_one(k, d):
    names = ("r", QWEN3), ("s", QWEN25)
    with torch.device("meta"):
        found = build(pair_config("xkv", *names, options={"slots": k, "width": d})).params
    L, R, S, Q = 28, 2 * 8 * 128, 24, 2 * 2 * 64
    both = L * R + S * Q
    assert (
        found
        == k * both // 2 + both * d + (L + S) * k * d + 2 * L * R * d + L * (L + S) + 8 * d * d + d + 2 * L
    )
    with torch.device("meta"):
        assert build(pair_config("xkv", *names)).params == pytest.approx(4.55e6, rel=0.001)


def test_an_adapter_is_the_same_after_saving_and_a_shut_layer_may_go(tmp_path):
    lms = pair()
    made = adapter(lms, gate="hard", pool_start="last")
    made.gate_logit.fill_(1.0)
    with torch.no_grad():
        create("xkv", *lms, made).prepare(SPLIT, lambda _: None)
    helpers.saved_and_loaded(made, tmp_path / "a", "xkv", lms)
    with torch.no_grad():
        made.gate_logit[1] = -1.0
        shut = made(*inputs(made))
        shorter = made.select(made.open_layers())
        assert shorter.config.layers == (0, 2, 3)
        part = [x[[0, 2, 3]] for x in inputs(made)[1:]]
        for whole, some in zip(shut, shorter(inputs(made)[0], *part), strict=True):
            torch.testing.assert_close(whole[[0, 2, 3]], some)
        one, other = (outcomes(create("xkv", *lms, m), SPLIT)[0] for m in (shorter, made))
        for x, y in zip(one, other, strict=True):
            assert x == pytest.approx(y, abs=1e-5)


def inputs(made):
    generator = torch.Generator().manual_seed(2)
    memory = torch.randn(2, (3 + 4) * made.slots, made.width, generator=generator)
    return memory, *torch.randn(2, 4, 2, 2, 5, 8, generator=generator)


def test_input_statistics_are_those_of_slots_and_entries():
    lms = pair()
    made = adapter(lms)
    method = create("xkv", *lms, made)
    said = []
    method.prepare(SPLIT, said.append)
    with torch.no_grad():
        theirs = method.pooled(
            method.sharer_cache(method.sharer_prompts(Batch(SPLIT, SPLIT, Clock()), []))
        ).flatten(1, 2)
        own = lms[0].content_keys(create("receiver", *lms).respond(Batch(SPLIT, SPLIT, Clock())).kv)
        entries = torch.cat([flat(own.keys), flat(own.values)], -1)[:, own.mask.bool()]
    torch.testing.assert_close(made.mean_sharer[:, 0], theirs.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.mean_own[:, 0], entries.mean(1), atol=1e-4, rtol=1e-4)
    assert bool((made.deviation_receiver > 0).all()) and "statistics" in said[0]


def test_a_resumed_training_ends_as_the_uninterrupted_one(tmp_path):
    names = helpers.save_pair(tmp_path / "models")

    def recipe(out):
        small = {"steps": 6, "batch_size": 4, "dev_documents": 6, "eval_every": 3, "save_every": 2}
        more = {"warmup": 1, "lr": 3e-3, "dtype": "float32", "options": {"width": "8", "slots": "2"}}
        return TrainRecipe(adapters=["xkv"], pair=names, out=tmp_path / out, **small, **more)

    helpers.whole_and_resumed(recipe("whole"), recipe("a"), 4)

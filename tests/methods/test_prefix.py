"""Latent prefix on tiny random pairs: places of the entries, reading of the slots, start, sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.roofline import PhaseClock
from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.lcf import flat
from lcfbench.adapters.options import adapter_options
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer, target
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.methods.prefix import last_tokens
from lcfbench.models.answering import answer_loss
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import View
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits
from tests.helpers import random_prefix as adapter
from tests.helpers import tiny_pair as pair

DOCUMENTS = pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
PLACE = pytest.mark.parametrize("place", ["after", "before"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def responded(method, documents=SPLIT, senders=None):
    with torch.no_grad():
        return method.respond(Batch(documents, senders or documents, Clock()))


@DOCUMENTS
@PLACE
@pytest.mark.parametrize("chat", [False, True])
def test_batch_1_equals_batch_n(documents, place, chat):
    lms = pair(chat=chat)
    method = create("prefix", *lms, adapter(lms, place=place))
    with torch.no_grad():
        together, state, _ = outcomes(method, documents)
        for i, d in enumerate(documents):
            alone, single, _ = outcomes(method, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4)
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0] > 0
            assert state.message.adapter_flops[i] == single.message.adapter_flops[0] > 0


@DOCUMENTS
@PLACE
def test_sdpa_equals_eager(documents, place):
    with torch.no_grad():
        a, b = (
            outcomes(create("prefix", *lms, adapter(lms, place=place)), documents)[0]
            for lms in (pair(), pair(attention="eager"))
        )
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


@DOCUMENTS
@PLACE
def test_the_message_of_the_sender_is_what_counts(documents, place):
    lms = pair()
    method = create("prefix", *lms, adapter(lms, place=place))
    with torch.no_grad():
        matched, own, _ = outcomes(method, documents)
        moved, other, _ = outcomes(method, documents, documents[1:] + documents[:1])
    assert any(m != pytest.approx(d, abs=1e-6) for m, d in zip(matched, moved, strict=True))
    assert other.message.sharer_tokens == own.message.sharer_tokens[1:] + own.message.sharer_tokens[:1]
    # nothing but the sender's text crosses: the same sender gives the same entries whoever receives
    same = responded(method, documents, [documents[0]] * len(documents))
    slots = method.adapter.slots
    if place == "after":
        values = same.kv.values[..., -slots:, :]
        torch.testing.assert_close(values, values[:, :1].expand_as(values))


@PLACE
def test_an_untrained_up_projection_does_not_depend_on_the_sharer(place):
    lms = pair()
    fuser = build(
        pair_config("prefix", *((e.name, e.geometry) for e in lms), options={"slots": 4, "place": place})
    ).eval()
    method = create("prefix", *lms, fuser)
    assert torch.count_nonzero(fuser.up) == 0
    a, b = responded(method), responded(method, SPLIT, SPLIT[1:] + SPLIT[:1])
    assert torch.equal(a.kv.keys, b.kv.keys) and torch.equal(a.kv.values, b.kv.values)


@DOCUMENTS
@PLACE
def test_shut_gates_equal_the_receiver_alone_bit_for_bit(documents, place):
    lms = pair()
    shut = adapter(lms, gate="gumbel", place=place)
    shut.gate_logit.fill_(-1.0)
    with torch.no_grad():
        got, alone = (
            outcomes(create("prefix", *lms, shut), documents)[0],
            outcomes(create("receiver", *lms), documents)[0],
        )
        assert got == alone
        # one open gate of one layer: there alone the sender matters, and all layers have equally
        # many entries
        shut.gate_logit[1, 1] = 1.0
        assert outcomes(create("prefix", *lms, shut), documents)[0] != alone
    message = torch.randn(4, 2, 4, 6)
    (k, v), base = shut(message), flat(shut.base.view(4, 1, 4, 2, 2, 8)[:, :, :, 0].transpose(2, 3))
    assert (
        same_bits(flat(k), base.expand(4, 2, 4, 16))
        and torch.equal(v[0, 0], v[0, 1])
        and not torch.equal(v[1, 0], v[1, 1])
    )


def test_after_the_prompt_never_saw_the_entries_which_stand_at_the_last_token_read():
    lms = pair()
    fuser = adapter(lms)
    state, alone = responded(create("prefix", *lms, fuser)), responded(create("receiver", *lms))
    n = alone.kv.length
    assert state.kv.length == n + fuser.slots
    for b, row in enumerate(alone.kv.mask.bool()):
        mine = torch.cat(
            [
                state.kv.keys[:, b, :, state.kv.mask[b].bool()],
                state.kv.values[:, b, :, state.kv.mask[b].bool()],
            ],
            -1,
        )
        own = torch.cat([alone.kv.keys[:, b, :, row], alone.kv.values[:, b, :, row]], -1)
        assert same_bits(mine[:, :, : own.shape[2]], own)
    assert torch.equal(state.positions, alone.positions)
    assert torch.equal(state.kv.positions[:, -fuser.slots :], (alone.positions - 1).expand(-1, fuser.slots))


def test_before_the_prompt_follows_the_entries_and_attends_them():
    lms = pair()
    fuser = adapter(lms, place="before")
    state, alone = (
        responded(create("prefix", *lms, fuser), SPLIT[:1]),
        responded(create("receiver", *lms), SPLIT[:1]),
    )
    n, lead = alone.kv.length, 2
    assert state.kv.length == n + lead + fuser.slots
    assert state.kv.positions[0].tolist() == list(
        range(n + lead + fuser.slots)
    ) and state.positions.tolist() == [[n + lead + fuser.slots]]
    prompt_values = state.kv.values[:, 0, :, -n:]
    torch.testing.assert_close(
        prompt_values[0], alone.kv.values[0, 0]
    )  # the first layer's values have attended nothing yet
    assert not torch.allclose(prompt_values[1:], alone.kv.values[1:, 0], atol=1e-3)
    # the entries are the adapter's, turned to where they stand
    keys, _ = fuser(fuser.message(create("prefix", *lms, fuser).pooled(theirs(lms, SPLIT[:1]))))
    here = lms[0].rotate(keys, torch.arange(lead, lead + fuser.slots)[None])
    torch.testing.assert_close(state.kv.keys[..., lead : lead + fuser.slots, :], here)


def theirs(lms, documents):
    return create("prefix", *lms, adapter(lms)).sharer_cache([prompt(lms[1], d.sharer, d) for d in documents])


def test_slots_start_on_the_last_tokens_whatever_the_padding():
    lms = pair()
    fuser = adapter(lms, stir=0.0, slots=5)
    fuser.query.zero_()
    fuser.token_bias.mul_(10)  # as good as hard
    method = create("prefix", *lms, fuser)
    cache = theirs(lms, SPLIT)
    pooled = method.pooled(cache)
    plain = lms[1].content_keys(cache)
    for t, layer in enumerate(fuser.config.layer_map):
        want = torch.cat([flat(plain.keys), flat(plain.values)], -1)[layer, :, -1 - t]
        torch.testing.assert_close(pooled[t, :, t], want, rtol=1e-4, atol=1e-4)
    alone = method.pooled(theirs(lms, SPLIT[2:]))  # the shortest, without padding
    torch.testing.assert_close(pooled[:, 2:], alone, rtol=1e-4, atol=1e-5)


def test_keys_are_read_without_their_positions():
    """Two equal tokens read equal: the pool cannot tell where they stood."""
    lms = pair()
    cache = theirs(lms, SPLIT[:1])
    moved = replace(
        cache,
        keys=lms[1].rotate(lms[1].content_keys(cache).keys, cache.positions + 7),
        positions=cache.positions + 7,
    )
    for unrotated in (True, False):
        method = create("prefix", *lms, adapter(lms, unrotated_keys=unrotated))
        same = torch.allclose(method.pooled(cache), method.pooled(moved), atol=1e-4)
        assert same is unrotated


def test_prepare_standardises_every_slot_and_starts_from_the_receivers_last_tokens():
    lms, said = pair(), []
    fuser = adapter(lms, stir=0.0)
    method = create("prefix", *lms, fuser)
    method.prepare(SPLIT, said.append)
    pooled = method.pooled(theirs(lms, SPLIT))  # (L, B, T, s)
    x = (pooled - fuser.mean[:, None]) / (fuser.slot_scale * fuser.channel_scale)[:, None]
    assert "3 documents" in said[0]
    torch.testing.assert_close(x.mean(1), torch.zeros_like(x.mean(1)), atol=1e-3, rtol=0)
    assert (
        0.3 < float(x[1:].std(1, correction=0).mean()) < 1.5
    )  # layer 0 sees the same last tokens in all: there the floor holds
    read = responded(create("receiver", *lms))
    one = lms[0].content_keys(read.kv)
    torch.testing.assert_close(
        fuser.base[:, 1],
        torch.cat([flat(one.keys), flat(one.values)], -1)[:, :, -2].mean(1),
        rtol=1e-4,
        atol=1e-5,
    )
    keys, _ = last_tokens(one, one.length + 3)  # longer than any prompt
    assert torch.isfinite(keys).all() and torch.count_nonzero(keys[..., -3:, :]) == 0


def test_outliers_are_clamped():
    fuser = adapter(pair(), stir=0.0, width=2)
    big = torch.full((4, 1, 4, 32), 1e6)
    assert torch.equal(fuser.message(big), fuser.message(big * 10)) and not torch.equal(
        fuser.message(big), fuser.message(-big)
    )
    raw = adapter(pair(), stir=0.0, width=2, standardise=False)
    assert not torch.equal(raw.message(big), raw.message(big * 10)) and "mean" not in raw.state_dict()


@PLACE
@pytest.mark.parametrize("pool_start", ["last", "random"])
def test_every_parameter_gets_a_gradient_and_a_step_helps(place, pool_start):
    lms = pair()
    fuser = adapter(lms, place=place, pool_start=pool_start).requires_grad_(True).train()
    method = create("prefix", *lms, fuser)

    def loss():
        state = method.respond(Batch(SPLIT, SPLIT, Clock()))
        pairs = [target(d, p, lms[0].tokenizer, 2) for d, p in zip(SPLIT, state.prompts, strict=True)]
        return answer_loss(state, [ids for ids, _ in pairs], [flags for _, flags in pairs])[0]

    first = loss()
    first.backward()
    assert [n for n, p in fuser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    with torch.no_grad():
        norm = sum(p.grad.square().sum() for p in fuser.parameters()).sqrt()
        for p in fuser.parameters():
            p.sub_(0.02 * p.grad / norm)
        assert loss() < first


def test_after_the_receivers_prefill_is_shared_and_carries_no_gradient():
    lms = pair()
    method = create("prefix", *lms, adapter(lms).requires_grad_(True).train())
    assert not lms[0].rotary.reason  # found once for a model, by reading
    calls = []
    decoder = lms[0].model.get_decoder()
    hook = decoder.register_forward_hook(lambda *_: calls.append(1))
    with lms[0].shared.sharing():
        alone = lms[0].read([prompt(lms[0], d.receiver, d) for d in SPLIT])
        state = method.respond(Batch(SPLIT, SPLIT, Clock()))
    hook.remove()
    assert len(calls) == 1 and not alone.kv.keys.requires_grad and state.kv.keys.requires_grad


@pytest.mark.parametrize("kind", ["prefix", "dense"])
def test_prompts_are_rendered_within_a_phase(kind, monkeypatch):
    from lcfbench.methods import dense, prefix

    lms, clock, phases = pair(), PhaseClock(), []
    made = (
        adapter(lms)
        if kind == "prefix"
        else build(pair_config("dense", *((e.name, e.geometry) for e in lms))).requires_grad_(False)
    )
    monkeypatch.setattr(
        {"prefix": prefix, "dense": dense}[kind],
        "prompt",
        lambda *a: (phases.append(clock.phase), prompt(*a))[1],
    )
    with torch.no_grad():
        create(kind, *lms, made.eval()).respond(Batch(SPLIT, SPLIT, clock))
    assert set(phases) == {"prefix": {"prefill", "sharer"}, "dense": {"prefill"}}[kind]


def test_sizes():
    lms = pair()  # receiver 4 layers of width 16; sharer 3 layers of 1 head of 16
    fuser = adapter(lms, slots=5, width=6)
    L, s, r, d, T = 4, 32, 32, 6, 5
    queries, bias = L * T * 16, L * T * 64
    assert fuser.params == queries + bias + L * (s * d + T * d + 3 * d + 16 * d * d + d * r + T * r + 2)
    assert fuser.wire_bytes(1000, T, 2) == L * T * d * 2
    assert (
        fuser.wire_bytes(1, T, 2) == fuser.cache_bytes(1, 2) == 3 * 32 * 2
    )  # a one-token text is smaller than its message
    assert fuser.flops(10) == 2 * (3 * queries * 10 + T * L * (s * d + 16 * d * d + d * r))
    assert fuser.flops(20) - fuser.flops(10) == 2 * 3 * queries * 10


def test_one_token_prompts():
    lms = pair()
    bare = [replace(d, receiver=View("A"), sharer=View("A")) for d in SHARED[:2]]
    for place in ("after", "before"):
        method = create("prefix", *lms, adapter(lms, place=place))
        with torch.no_grad():
            batch = Batch(bare, bare, Clock())
            got, _ = answer(method.respond(batch), batch)
        assert all(torch.isfinite(torch.tensor([ll for ll, _ in o.loglikelihoods[0]])).all() for o in got)


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    lms = pair()
    fuser = adapter(lms, place="before")
    create("prefix", *lms, fuser).prepare(SPLIT, lambda _: None)
    again = helpers.saved_and_loaded(fuser, tmp_path / "a", "prefix", lms)
    assert again.config.options["place"] == "before" == again.place


def test_mistakes_are_named():
    lms = pair()
    names = tuple((e.name, e.geometry) for e in lms)
    with pytest.raises(UserError, match="all 4 receiver layers, not 2"):
        build(pair_config("prefix", *names, layers=2))
    with pytest.raises(UserError, match="equally many in every layer"):
        adapter(lms).select([0, 1, 3])
    with pytest.raises(
        UserError,
        match="place=behind of this prefix adapter makes no sense: input should be 'after' or 'before'",
    ):
        build(pair_config("prefix", *names, options={"place": "behind"}))
    with pytest.raises(UserError, match="slots=0 of this prefix adapter makes no sense"):
        build(pair_config("prefix", *names, options={"slots": 0}))
    with pytest.raises(UserError, match="needs an adapter"):
        create("prefix", *lms)
    with pytest.raises(UserError, match="sharer kv_heads 2, not 1"):
        create("prefix", lms[0], helpers.causal_lm("tiny-c", layers=4), adapter(lms))


def test_options_from_the_command_line():
    options, _ = adapter_options("prefix", {"place": "before", "slots": "8"})
    assert options["place"] == "before" and options["slots"] == 8 and options["gate"] == "soft"
    with pytest.raises(UserError, match="place"):
        adapter_options("prefix", {"place": "behind"})

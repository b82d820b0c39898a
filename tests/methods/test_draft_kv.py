"""Draft-KV on tiny random pairs: what crosses, who attends it, what a shut gate is, and its training."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.draft_kv import DraftKVAdapter, parse_stages, spread
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import target
from lcfbench.geometry import Geometry
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create, method_class
from lcfbench.methods.draft_kv import guarded, options_loss
from lcfbench.models.answering import answer_loss
from lcfbench.models.timing import Clock
from lcfbench.training.options import expanded
from lcfbench.training.recipe import TrainRecipe
from tests.helpers import SHARED, SPLIT, outcomes, save_pair, saved_and_loaded, whole_and_resumed
from tests.helpers import random_draft as adapter
from tests.helpers import tiny_pair as pair

DOCUMENTS = pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def judge(documents, supervise="all"):
    def judged(state):
        tokenizer = state.lm.tokenizer
        gold = [
            target(d, p, tokenizer, tokenizer.eos_token_id, supervise)
            for d, p in zip(documents, state.prompts, strict=True)
        ]
        loss, right = answer_loss(state, [ids for ids, _ in gold], [flags for _, flags in gold])
        return loss, right, sum(sum(flags) for _, flags in gold)

    return judged


@DOCUMENTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("gate", ["hard", "gumbel", "soft"])
def test_zero_gates_equal_the_receiver_alone_bit_for_bit(documents, dtype, gate):
    lms = pair()
    for lm in lms:
        lm.model.to(dtype)
    shut = adapter(lms, gate=gate)
    shut.gate_logit.fill_(-torch.inf)
    with torch.no_grad():
        alone = outcomes(create("receiver", *lms), documents)[0]
        assert outcomes(create("draft_kv", *lms, shut), documents)[0] == alone
        shut.gate_logit[:, 0] = 1.0  # either gate of a layer shuts it
        assert outcomes(create("draft_kv", *lms, shut), documents)[0] == alone
        shut.gate_logit.fill_(1.0)
        assert outcomes(create("draft_kv", *lms, shut), documents)[0] != alone


def test_a_gate_near_zero_is_near_the_receiver_alone():
    lms = pair()
    fuser = adapter(lms, gate="soft")
    fuser.gate_logit.fill_(-12.0)
    with torch.no_grad():
        got, alone = (
            outcomes(create(name, *lms, *rest), SPLIT)[0]
            for name, rest in (("draft_kv", (fuser,)), ("receiver", ()))
        )
    for x, y in zip(got, alone, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


@DOCUMENTS
@pytest.mark.parametrize("chat", [False, True])
def test_batch_1_equals_batch_n(documents, chat):
    lms = pair(chat=chat)
    method = create("draft_kv", *lms, adapter(lms))
    with torch.no_grad():
        together, state, _ = outcomes(method, documents)
        for i, d in enumerate(documents):
            alone, single, _ = outcomes(method, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4)
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0]
            assert state.message.sharer_tokens[i] == single.message.sharer_tokens[0]
        assert sum(state.message.wire_bytes) > 0


@DOCUMENTS
def test_sdpa_equals_eager(documents):
    with torch.no_grad():
        a, b = (
            outcomes(create("draft_kv", *lms, adapter(lms)), documents)[0]
            for lms in (pair(), pair(attention="eager"))
        )
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


def test_only_tokens_that_the_sharer_wrote_cross():
    lms = pair()
    method = create("draft_kv", *lms, adapter(lms, draft=5))
    longer = [replace(d, sharer=replace(d.sharer, user="a b c d " * 9 + d.sharer.user)) for d in SPLIT]
    with torch.no_grad():
        short, long = method.packet(SPLIT), method.packet(longer)
        state = method.respond(Batch(SPLIT, SPLIT, Clock()))
    assert [len(p.ids) for p in long.asked] > [len(p.ids) for p in short.asked]
    for packet in (short, long):
        written = [len(row) for row in packet.ids]
        assert packet.mask.sum(1).tolist() == written and packet.entries.shape[2] == max(written) <= 5
        count, s = len(method.adapter.config.layers), 2 * lms[1].geometry.kv_width
        sources = len(set(method.adapter.config.layer_map))
        assert packet.entries.shape[::3] == (count, s)
        assert method.account(packet).wire_bytes == [sources * s * n * 4 for n in written]
    # the receiver's cache holds the memory behind its own entries, and nothing else
    alone = lms[0].read(state.prompts).kv
    assert state.kv.mask.sum(1).tolist() == (alone.mask.sum(1) + short.mask.sum(1)).tolist()


def test_entries_are_those_of_the_sharer_at_the_written_tokens():
    lms = pair()
    method = create("draft_kv", *lms, adapter(lms, draft=4))
    with torch.no_grad():
        packet = method.packet(SPLIT[:1])
        [asked], [ids] = packet.asked, packet.ids
        whole = lms[1].content_keys(lms[1].prefill([[*asked.ids, *ids]]))
        at = list(method.adapter.config.layer_map)
        expected = torch.cat(
            [x[at][..., -len(ids) :, :].transpose(2, 3).flatten(3) for x in (whole.keys, whole.values)], -1
        )
    torch.testing.assert_close(packet.entries, expected, atol=1e-4, rtol=1e-4)


def test_the_message_of_the_sender_is_what_counts():
    lms = pair()
    method = create("draft_kv", *lms, adapter(lms))
    with torch.no_grad():
        matched, own, _ = outcomes(method, SPLIT)
        moved, other, _ = outcomes(method, SPLIT, SPLIT[1:] + SPLIT[:1])
    assert any(m != pytest.approx(d, abs=1e-6) for m, d in zip(matched, moved, strict=True))
    assert other.message.wire_bytes == own.message.wire_bytes[1:] + own.message.wire_bytes[:1]


def test_one_softmax_goes_over_own_entries_and_memory_weighed_by_the_gate():
    """An entry of weight 2 counts as two equal ones: against attention with the entry written twice."""
    lms = pair()
    fuser = adapter(lms, gate="hard")
    method = create("draft_kv", *lms, fuser)
    fuser.gate_logit.fill_(1.0)
    with torch.no_grad():
        packet = method.packet(SPLIT[:1])
        alone = lms[0].read(method.respond(Batch(SPLIT[:1], SPLIT[:1], Clock())).prompts)
        state = method.attending(alone, packet)
        n = packet.mask.shape[1]
        hidden = state.kv.hidden.clone()
        hidden[..., -n:] += torch.log(torch.tensor(2.0))
        weighed = replace(state, kv=replace(state.kv, hidden=hidden))
        memory = replace(
            state.kv,
            **{k: getattr(state.kv, k)[..., -n:, :] for k in ("keys", "values")},
            mask=state.kv.mask[:, -n:],
            positions=state.kv.positions[:, -n:],
            hidden=state.kv.hidden[..., -n:],
        )
        twice = replace(state, kv=state.kv.then(memory))
        a, b, c = (lms[0].open(s).logits for s in (weighed, twice, state))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(a, c, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("done", [0.0, 0.7, 0.9])
def test_gradients_reach_every_parameter_in_every_stage(done, attention):
    lms = pair(attention=attention)
    method = create("draft_kv", *lms, adapter(lms).requires_grad_(True).train())
    loss, right, tokens = method.loss(Batch(SPLIT, SPLIT, Clock()), done, judge(SPLIT))
    loss.backward()
    assert torch.isfinite(loss) and 0 <= float(right) <= 1 and tokens > 0
    for name, p in method.adapter.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert torch.count_nonzero(p.grad.flatten(1), 1).min() > 0, name  # of every layer


def test_equal_gates_of_two_layers_have_gradients_of_their_own():
    lms = pair()
    fuser = adapter(lms, gate="soft").requires_grad_(True).train()
    with torch.no_grad():
        fuser.gate_logit.fill_(0.5)
    method = create("draft_kv", *lms, fuser)
    method.loss(Batch(SPLIT, SPLIT, Clock()), 0.7, judge(SPLIT))[0].backward()
    grads = fuser.gate_logit.grad[:, 0]
    assert len(set(grads.tolist())) == len(grads) > 1


def test_the_stages_are_shares_of_the_steps():
    fuser = adapter(pair(), stages="0.5+0.25+0.25")
    assert [fuser.stage(x) for x in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert adapter(pair(), stages="0+0+1").stage(0.0) == 3
    expanded_text = TrainRecipe(adapters=["draft_kv"], options={"stages": "0.3+0.3+0.4"})
    assert expanded(expanded_text).specs()[0].mode == "draft_kv"  # one value, not several
    for text in ("1", "a+b+c", "0.5+0.5+0.5", "nan+0+1", "-1+1+1", "0.6,0.2,0.2"):
        with pytest.raises(UserError, match="three shares"):
            parse_stages(text)


def test_the_guard_is_the_plain_formula_and_its_baseline_is_detached():
    torch.manual_seed(0)
    wrong, none = (torch.rand(9, requires_grad=True) for _ in range(2))
    found = guarded(wrong, none, 0.1)
    plain = sum(max(0.0, w - n - 0.1) for w, n in zip(wrong.tolist(), none.tolist(), strict=True)) / 9
    assert found.item() == pytest.approx(plain) and plain > 0
    found.backward()
    assert none.grad is None
    harmful = [w > n + 0.1 for w, n in zip(wrong.tolist(), none.tolist(), strict=True)]
    assert [g > 0 for g in wrong.grad.tolist()] == harmful and 0 < sum(harmful) < 9


def test_the_third_stage_is_options_and_guard_and_the_second_answer_and_replay():
    lms = pair()
    documents = [replace(d, steps=d.steps[:1]) for d in SPLIT]
    assert all(len(d.steps) == 1 for d in documents)
    method = create("draft_kv", *lms, adapter(lms, guard=0.7, margin=0.0))
    batch = Batch(documents, documents, Clock())
    with torch.no_grad():
        third = method.loss(batch, 0.9, judge(documents))[0]
        packet, alone = method.packet(documents), create("receiver", *lms).respond(batch)
        own, _ = options_loss(method.attending(alone, packet), documents)
        senders = documents[1:] + documents[:1]
        wrong, _ = options_loss(method.respond(Batch(documents, senders, Clock())), documents)
        none, _ = options_loss(alone, documents)
        assert float(third) == pytest.approx(
            float(own.mean() + 0.7 * (wrong - none).clamp(min=0).mean()), abs=1e-5
        )
        second = method.loss(batch, 0.7, judge(documents))[0]
        state = method.respond(batch)
        whole = judge(documents)(state)[0] + 0.5 * method.reconstruction(state, packet)[0]
        assert float(second) == pytest.approx(float(whole), abs=1e-5)


def test_options_loss_is_the_cross_entropy_of_what_ranking_sees():
    lms = pair()
    documents = [replace(d, steps=d.steps[:1]) for d in SPLIT]
    method = create("draft_kv", *lms, adapter(lms))
    with torch.no_grad():
        scores, state, _ = outcomes(method, documents)
        losses, _ = options_loss(state, documents)
    for loss, row, d in zip(losses.tolist(), scores, documents, strict=True):
        gold = torch.tensor(row[: len(d.steps[0].choices)]).log_softmax(0)[d.steps[0].gold[0]]
        assert loss == pytest.approx(-float(gold), abs=5e-4)


@pytest.mark.parametrize("layers", [4, 1])
def test_the_number_of_parameters_is_the_formula(layers):
    H, D, S, d = 3, 8, 2 * 16, 5
    receiver, sharer = (
        Geometry(layers=12, kv_heads=H, head_dim=D),
        Geometry(layers=5, kv_heads=2, head_dim=16),
    )
    config = pair_config("draft_kv", ("a", receiver), ("b", sharer), options={"width": d}, layers=layers)
    with torch.device("meta"):
        assert build(config).params == layers * (2 * H * (S * d + d + d * D + D) + 2)


def test_the_layers_are_spread_over_the_upper_half():
    assert spread(30, 4) == [16, 20, 24, 28] and spread(28, 4) == [15, 19, 22, 26]
    assert spread(4, 3) == [1, 2, 3] and spread(1, 1) == [0]
    for layers in range(1, 40):
        for count in range(1, layers + 1):
            found = spread(layers, count)
            assert found == sorted(set(found)) and len(found) == count and found[-1] < layers
            assert found[0] >= min(layers // 2, layers - count)
    lms = pair()
    fresh = pair_config("draft_kv", *((e.name, e.geometry) for e in lms), options={"into": 2})
    made = method_class("draft_kv").configure(fresh, *lms)
    assert made.layers == tuple(spread(lms[0].geometry.layers, 2)) and len(made.layer_map) == 2
    assert made.layer_map == tuple(fresh.layer_map[i] for i in made.layers)


def test_an_adapter_is_the_same_after_saving_and_a_shut_layer_may_go(tmp_path):
    lms = pair()
    fuser = adapter(lms)
    saved_and_loaded(fuser, tmp_path / "a", "draft_kv", lms)
    with torch.no_grad():
        fuser.gate_logit[0] = -torch.inf
        shut = outcomes(create("draft_kv", *lms, fuser), SPLIT)[0]
        shorter = fuser.select(fuser.open_layers())
        assert len(shorter.config.layers) == len(fuser.config.layers) - 1
        for x, y in zip(outcomes(create("draft_kv", *lms, shorter), SPLIT)[0], shut, strict=True):
            assert x == pytest.approx(y, abs=1e-5)


def test_start_sets_the_statistics_of_drafts_and_of_the_receivers_entries():
    lms = pair()
    method = create("draft_kv", *lms, adapter(lms))
    said = []
    method.prepare(SPLIT, said.append)
    fuser = method.adapter
    packet = method.packet(SPLIT)
    real = packet.entries[:, packet.mask.bool()]
    torch.testing.assert_close(fuser.mean[:, :, 0].flatten(1), real.mean(1), atol=1e-4, rtol=1e-4)
    keys, values = method.own_entries(
        lms[0].read(create("receiver", *lms).respond(Batch(SPLIT, SPLIT, Clock())).prompts).kv
    )
    torch.testing.assert_close(fuser.base[:, 0, :, 0], keys.mean(2))
    torch.testing.assert_close(fuser.base[:, 1, :, 0], values.mean(2))
    assert "drafts" in said[0]


def test_a_sharer_that_writes_nothing_leaves_the_receiver_alone(monkeypatch):
    lms = pair()
    method = create("draft_kv", *lms, adapter(lms))
    monkeypatch.setattr("lcfbench.methods.draft_kv.write", lambda opened, *_: [[] for _ in opened.logits])
    with torch.no_grad():
        got, state, _ = outcomes(method, SPLIT)
        assert got == outcomes(create("receiver", *lms), SPLIT)[0]
    assert state.message.wire_bytes == [0] * len(SPLIT) and min(state.message.sharer_tokens) > 0


def test_a_training_that_stops_in_each_stage_ends_as_the_uninterrupted_one(tmp_path, monkeypatch):
    """Steps 1–3 are of the first stage, 4–6 of the second, 7–9 of the third, whose guard compares."""
    models = save_pair(tmp_path / "models")
    chosen = {"draft": "4", "width": "8", "stages": "0.33+0.33+0.34", "guard": "0.5", "margin": "0"}
    more = {"steps": 9, "batch_size": 4, "dev_documents": 4, "eval_every": 3, "save_every": 3, "lr": 3e-3}
    hops = {"task_options": {"hops": "1"}}  # one step of options
    seen = []
    plain = DraftKVAdapter.stage

    def stage(self, done):
        seen.append(plain(self, done))
        return seen[-1]

    monkeypatch.setattr(DraftKVAdapter, "stage", stage)

    def recipe(out):
        given = {"adapters": ["draft_kv"], "options": chosen, "warmup": 1, "dtype": "float32"}
        return TrainRecipe(pair=models, out=tmp_path / out, **given, **more, **hops)

    counts = []
    stopped = lambda: counts.append(len(seen))  # noqa: E731
    whole, parts = whole_and_resumed(recipe("whole"), recipe("parts"), 2, 5, 8, between=stopped)
    first, last = counts
    assert seen[:first][-9:] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert seen[-1:] == [3] and len(seen) - last < 9  # it went on from the last stop
    losses = [
        pd.read_parquet(folder / "training.parquet").query("metric == 'loss'").value.tolist()
        for folder in (whole, parts)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 9

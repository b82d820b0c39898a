"""Every method that sends, under every control, on tiny random pairs."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.alignment.tokens import aligned_positions
from lcfbench.controls import wrappers
from lcfbench.controls.base import load_control
from lcfbench.controls.names import CONTROLS
from lcfbench.controls.wrappers import ReplacedCacheModel, SilentMethod, noised, without_message
from lcfbench.errors import StopRunError
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create, method_class
from lcfbench.methods.excerpt import own_text
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.registry import method_names
from tests import helpers
from tests.helpers import ROOT, SHARED, SPLIT, outcomes, same_bits
from tests.helpers import made_method as made
from tests.helpers import random_adapter as fused
from tests.helpers import tiny_pair as pair

CASES = [
    ("t2t", "", SHARED),
    ("t2t", "", SPLIT),
    ("kvcomm", "", SHARED),
    ("kvcomm", "0,2", SPLIT),
    ("cacheback", "", SHARED),
    ("cacheback", "", SPLIT),
    ("latentmas", "", SHARED),
    ("latentmas", "", SPLIT),
    ("activation", "", SHARED),
    ("activation", "", SPLIT),
    ("sde", "", SHARED),
    ("sde", "", SPLIT),
    ("lcf", "lcf", SHARED),
    ("lcf", "remap", SHARED),
    ("lcf", "lcfx", SPLIT),
    ("c2c", "c2c", SHARED),
    ("dense", "aware", SHARED),
    ("dense", "unaware", SHARED),
    ("dense", "aware", SPLIT),
    ("prefix", "before", SHARED),
    ("prefix", "after", SPLIT),
    ("hub", "", SHARED),
    ("hub", "", SPLIT),
    ("xkv", "", SHARED),
    ("xkv", "", SPLIT),
    ("draft_kv", "", SHARED),
    ("draft_kv", "", SPLIT),
    ("identical", "lcf", SHARED),
    ("identical", "lcfx", SPLIT),
    ("identical", "c2c", SHARED),
    ("answer_letter", "", SHARED),
    ("answer_letter", "", SPLIT),
    ("excerpt", "", SPLIT),
]
IDS = [f"{name}-{what or 'plain'}-{documents[0].task}" for name, what, documents in CASES]
EVERY = pytest.mark.parametrize(("name", "what", "documents"), CASES, ids=IDS)
OWN = {"lcf", "remap", "lcfx"}  # kinds of adapter that edit a cache with nothing sent


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def method_of(name: str, what: str):
    """A method with its tiny pair. `what`: its kind of adapter, or what else there is to choose."""
    if name == "dense":
        ends = pair(name)
        return create(
            name, *ends, helpers.random_dense(ends, form="linear", sources=2, residual=6), {"context": what}
        )
    if name == "prefix":
        ends = pair(name)
        return create(name, *ends, helpers.random_prefix(ends, place=what))
    if name == "draft_kv":
        ends = pair(name)
        return create(name, *ends, helpers.random_draft(ends))
    if name == "hub":
        ends = pair(name)
        return create(name, *ends, helpers.random_codec(ends))
    if name == "xkv":
        ends = pair(name)
        return create(name, *ends, helpers.random_xkv(ends))
    if name in helpers.BASELINES:
        return helpers.made_baseline(name, what or None)
    if name == "kvcomm" and what:
        return create(name, *pair(name), None, {"layers": what})
    if what == "remap":
        ends = pair(name)
        return create(name, *ends, fused("lcf", ends, token_alignment="remap"))
    return made(name, what or None, pair(name))


def controls_of(name: str, method, documents) -> list[str]:
    """Controls of the message; conflict, which asks other documents, is looked at for itself."""
    able = [c for c in CONTROLS if not load_control(c).lacks(method_class(name)) and c != "conflict"]
    return [c for c in able if not load_control(c).refuses(method, documents)]


def ids_of(end: CausalLM, texts: list[str]):
    return [end.tokenizer(text)["input_ids"] for text in texts]


TEXTS = [
    "The key of Kafi is in the orange box.",
    "Zona works.",
    "The purple box is in Vienna. The brown box is in Toronto.",
]


def test_every_method_that_sends_is_covered_and_knows_of_no_control():
    assert {name for name, _, _ in CASES} == {name for name in method_names() if method_class(name).sends}
    named = [c for c in CONTROLS if c != "self"]  # every method says self
    words = re.compile(rf"\b({'|'.join(named)})\b", re.IGNORECASE)
    files = sorted((ROOT / "lcfbench" / "methods").glob("*.py"))
    assert len(files) > len(method_names())
    assert {f.name: found for f in files if (found := words.findall(f.read_text()))} == {}


def test_a_control_needs_what_it_changes():
    assert [load_control(c).lacks(method_class("receiver")) for c in CONTROLS] == [
        "",
        *["message"] * 7,
        "",
        "message",
    ]
    lacking = {c: what for c in CONTROLS if (what := load_control(c).lacks(method_class("excerpt")))}
    assert lacking == {"zero": "cache", "noise": "cache", "self": "sharer"}
    lacking = {c: what for c in CONTROLS if (what := load_control(c).lacks(method_class("identical")))}
    assert lacking == {"self": "sharer"}, "its sharer is the receiver"


@EVERY
def test_under_a_control(name, what, documents):
    method = method_of(name, what)
    before, _, _ = outcomes(method, documents)
    for control in controls_of(name, method, documents):
        altered = load_control(control).wrap(method, seed=0)
        assert (altered is method) == (control in ("matched", "deranged"))
        together, state, _ = outcomes(altered, documents)
        again, _, _ = outcomes(altered, documents)
        assert again == together
        for i, d in enumerate(documents):
            alone, single, _ = outcomes(altered, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4), control
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0]
        assert all(n > 0 for n in state.message.wire_bytes) == (control != "silent")
    assert outcomes(method, documents)[0] == before, "the method itself stays as it was"


def noting(plain, read):
    def noted(self, *args):
        read.append(plain(self, *args))
        return read[-1]

    return noted


@pytest.mark.parametrize("control", ["zero", "noise"])
@EVERY
def test_what_is_sent_is_made_from_the_altered_cache(name, what, documents, control, monkeypatch):
    if load_control(control).lacks(method_class(name)):
        pytest.skip("sends no cache")
    method, read = method_of(name, what), []
    for reading in ("prefill", "prefill_latent", "hidden_states"):
        monkeypatch.setattr(ReplacedCacheModel, reading, noting(getattr(ReplacedCacheModel, reading), read))
    _, state, _ = outcomes(load_control(control).wrap(method, seed=0), documents)
    times = 2 if name in ("draft_kv", "sde") else 1  # what it wrote is read behind the prompt
    assert sum(len(x) if isinstance(x, list) else x.rows for x in read) == times * len(documents), (
        "every document's message comes from a cache that was altered"
    )
    matched, own, _ = outcomes(method, documents)
    assert own.message.wire_bytes == state.message.wire_bytes or own.message.texts is not None
    assert own.message.read == state.message.read, "it reads what it always reads"
    if own.message.texts is None:
        assert matched != outcomes(load_control(control).wrap(method, seed=0), documents)[0]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_emptied_cache_is_zero_where_it_is_real(family):
    end = helpers.causal_lm("one", family=family)
    rows, sharer = ids_of(end, TEXTS), load_control("zero").wrap(create("kvcomm", end, end), seed=0).sharer
    real, emptied = end.prefill(rows), sharer.prefill(rows)
    mask = real.mask
    kept = ~mask.bool()[None, :, None, :, None].expand_as(real.keys)
    for x, y in ((real.keys, emptied.keys), (real.values, emptied.values)):
        assert not y[~kept].any() and same_bits(y[kept], x[kept]) and x[~kept].any()
    assert torch.equal(real.mask, emptied.mask) and torch.equal(real.positions, emptied.positions)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_noise_has_the_moments_of_each_documents_real_cache_by_layer_and_head(family):
    end = helpers.causal_lm("one", family=family)
    method = create("kvcomm", end, end)
    rows = ids_of(end, TEXTS)
    real, noise, other = (m.prefill(rows) for m in (end, *(noised(method, i).sharer for i in (0, 1))))
    mask = real.mask
    for which in ("keys", "values"):
        for b in range(len(TEXTS)):
            on = mask[b].bool()
            x, y, z = (getattr(kv, which)[:, b][:, :, on] for kv in (real, noise, other))
            assert torch.allclose(x.mean((2, 3)), y.mean((2, 3)), atol=1e-5)
            assert torch.allclose(x.std((2, 3), correction=0), y.std((2, 3), correction=0), rtol=1e-4)
            assert (
                torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].abs() < 0.95
            ) and not torch.equal(y, z)
            assert same_bits(getattr(real, which)[:, b][:, :, ~on], getattr(noise, which)[:, b][:, :, ~on])
            a = (y - y.mean((2, 3), keepdim=True)) / y.std((2, 3), keepdim=True)
            assert (a[0, 0] - a[-1, -1]).abs().max() > 0.5, "layers and heads are drawn apart"
    k, v = (x[0, 0, 0, mask[0].bool()].flatten() for x in (noise.keys, noise.values))
    assert torch.corrcoef(torch.stack([k, v]))[0, 1].abs() < 0.5, "keys and values are drawn apart"


def test_a_document_gets_its_own_noise_in_any_batch():
    end = helpers.causal_lm("one")
    sharer = noised(create("kvcomm", end, end), 0).sharer
    together = sharer.prefill(ids_of(end, TEXTS))
    for b, text in enumerate(TEXTS):
        alone, on = sharer.prefill(ids_of(end, [text])), together.mask[b].bool()
        assert torch.allclose(together.keys[:, b][:, :, on], alone.keys[:, 0], atol=1e-4)
        assert torch.allclose(together.values[:, b][:, :, on], alone.values[:, 0], atol=1e-4)


def test_what_was_read_before_stays_and_only_what_is_read_now_is_altered():
    end = helpers.causal_lm("one")
    sharer = load_control("zero").wrap(create("kvcomm", end, end), seed=0).sharer
    first, second = ids_of(end, TEXTS), ids_of(end, TEXTS[::-1])
    past = end.prefill(first)
    both = sharer.prefill(second, past, past.mask.sum(1))
    for b in range(len(TEXTS)):
        old, new = len(first[b]), len(second[b])
        entries = both.keys[:, b][:, :, both.mask[b].bool()]
        assert entries.shape[2] == old + new and not entries[:, :, old:].any()
        assert same_bits(entries[:, :, :old], past.keys[:, b][:, :, past.mask[b].bool()])


def test_an_altered_sharer_shares_prefills_and_is_an_model():
    end = helpers.causal_lm("one")
    sharer = noised(create("kvcomm", end, end), 0).sharer
    assert isinstance(sharer, CausalLM) and (sharer.name, sharer.revision, sharer.geometry) == (
        end.name,
        end.revision,
        end.geometry,
    )
    assert sharer.model is end.model and sharer.tokenizer is end.tokenizer
    runs = []
    hook = end.model.get_decoder().register_forward_hook(lambda *a: runs.append(1))
    with sharer.shared.sharing():
        one, two = (sharer.prefill(ids_of(end, TEXTS)) for _ in range(2))
        real = end.prefill(ids_of(end, TEXTS))
    hook.remove()
    assert len(runs) == 1 and torch.equal(one.keys, two.keys) and not torch.equal(one.keys, real.keys)


@EVERY
def test_silence_runs_no_sharer_and_leaves_the_receiver_or_the_adapter_on_its_own_cache(
    name, what, documents
):
    method = method_of(name, what)
    unheard = copy.deepcopy(method.sharer.model)

    def fail(*args):
        raise AssertionError("the sharer is run")

    for module in (unheard, unheard.get_decoder()):
        module.register_forward_pre_hook(fail)
    real, method.sharer = method.sharer, copy.copy(method.sharer)
    method.sharer.model = unheard
    silent = load_control("silent").wrap(method, seed=0)
    assert isinstance(silent, SilentMethod) and not silent.sends
    got, state, batch = outcomes(silent, documents)
    rows = len(documents)
    message = state.message
    assert (
        message.wire_bytes == message.cache_bytes == message.sharer_tokens == [0] * rows
        and message.texts is message.read is None
    )
    method.sharer = real
    alone, base, _ = outcomes(create("receiver", method.receiver, method.receiver), documents)
    if what not in OWN:
        assert (
            got == alone
            and same_bits(state.kv.keys, base.kv.keys)
            and same_bits(state.kv.values, base.kv.values)
        )
        assert message.adapter_flops is None and batch.clock.ms["sharer"] == 0
        return
    # the very same thing: the sharer's half of W_down is zero
    deaf = copy.deepcopy(method)
    deaf.adapter.down_sharer.zero_()
    expected, _, _ = outcomes(deaf, documents)
    assert got == expected != alone
    assert all(n > 0 for n in message.adapter_flops)
    deranged, _, _ = outcomes(silent, documents, documents[1:] + documents[:1])
    assert what == "remap" or deranged == got  # under remap another text has other positions that are edited


@pytest.mark.parametrize("kind", ["lcf", "lcfx"])
def test_an_adapter_without_message_standardises_and_still_sends_nothing(kind):
    ends = pair()
    adapter = fused(kind, ends, standardise=True)
    adapter.sharer_mean.normal_()
    muted = without_message(adapter)
    entries = torch.randn(4, 3, 2 * adapter.config.sharer_geometry.kv_width)
    assert not muted.message(entries).any() and adapter.message(entries).any() and muted.own_cache
    assert muted.down_sharer is adapter.down_sharer, "no weight is copied"


@pytest.mark.parametrize("name", ["lcf", "c2c", "dense"])
def test_position_t_of_n_reads_position_t_m_over_n_of_another_text(name, monkeypatch):
    method = method_of(name, "aware" if name == "dense" else name)
    seen, plain = [], type(method).positions

    def positions(self, exchange, part):
        index = plain(self, exchange, part)
        seen.append((exchange, part, index))
        return index

    monkeypatch.setattr(type(method), "positions", positions)
    method.respond(Batch(SHARED, SHARED[1:] + SHARED[:1], Clock()))
    read, lengths = 0, set()
    for exchange, part, index in seen:
        assert exchange.batch.own == [False] * len(SHARED)
        width = exchange.theirs.length
        for b, (mine, theirs) in enumerate(zip(exchange.prompts, exchange.shared, strict=True)):
            N, M = len(mine.ids), len(theirs.ids)
            lengths.add(N != M)
            inside = aligned_positions(mine, mine, method.adapter.config.token_alignment)
            stop = part.stops[b]
            for column, t in zip(
                range(index.shape[1] - 1, -1, -1), range(stop - 1, part.starts[b] - 1, -1), strict=False
            ):
                expected = (t * M) // N + width - M if inside[t] >= 0 else -1
                assert int(index[b, column]) == expected
                read += expected >= 0
    assert read > 10 and True in lengths


def test_gates_as_they_act():
    ends = pair()
    adapter = fused("lcf", ends)
    adapter.gate_logit[1] = -1.0
    adapter.gate_logit[2, 1] = -0.5
    assert adapter.gates_applied() == {"layers": [0, 1, 2, 3], "key": [1, 0, 1, 1], "value": [1, 0, 0, 1]}
    assert adapter.train().gates_applied()["key"] == [1, 0, 1, 1], "no draw, whatever the mode"
    soft = fused("lcf", ends, gate_init=0.0)
    soft.gate_mode = "soft"
    soft.gate_logit.zero_()
    assert soft.select([1, 3]).gates_applied()["layers"] == [1, 3]
    soft.gate_logit[0, 1] = 2.0
    found = soft.gates_applied()
    assert found["key"] == [0.5] * 4 and found["value"] == pytest.approx([0.880797, 0.5, 0.5, 0.5])
    names = ((e.name, e.geometry) for e in ends)
    open_for_good = build(
        pair_config("c2c", *names, options={"hidden": 8, "intermediate": 8, "ablation": "no-gate"})
    )
    assert open_for_good.gates_applied() is None
    assert helpers.random_lora(ends[0]).gates_applied() is None


@EVERY
def test_the_receivers_own_model_in_the_sharers_place(name, what, documents):
    method, control = method_of(name, what), load_control("self")
    if control.lacks(method_class(name)):
        assert "sharer" not in method.roles
        return
    refused = control.refuses(method, documents)
    if method.sharer is method.receiver or method.sharer.name == method.receiver.name:
        assert refused == (
            f"both models are {method.receiver.name}, so self is matched",
            "Use a pair of two models.",
        )
        return
    if method.adapter is not None and method.sharer.geometry != method.receiver.geometry:
        assert refused[0].startswith(f"its adapter reads the cache of {method.sharer.name}, and that of ")
        return
    assert refused is None
    own = control.wrap(method, seed=0)
    assert own is not method and own.sharer is own.receiver is method.receiver
    expected = create(name, method.receiver, method.receiver, method.adapter, {})
    for option, value in method.options().items():
        setattr(expected, option, value)
    got, state, _ = outcomes(own, documents)
    other, wanted, _ = outcomes(expected, documents)
    assert got == other and state.message.texts == wanted.message.texts
    if name == "t2t":
        matched = outcomes(method, documents)[1].message
        assert matched.texts != state.message.texts and matched.read is not state.message.read


@EVERY
def test_the_words_of_the_message_as_text(name, what, documents):
    method, control = method_of(name, what), load_control("equal-text")
    if documents is SHARED:
        assert "no words to send" in control.refuses(method, documents)[0]
        return
    assert control.refuses(method, documents) is None
    wrapped = control.wrap(method, seed=0)
    got, state, _ = outcomes(wrapped, documents)
    whole = [own_text(d) for d in documents]
    if name == "excerpt":
        assert got == outcomes(method, documents)[0] and state.message.texts == method.words(
            Batch(documents, documents, Clock())
        )
        return
    assert method.words(Batch(documents, documents, Clock())) is None
    assert state.message.texts == whole and all(whole)
    assert state.message.wire_bytes == [len(text.encode()) for text in whole]
    for d, text, shown in zip(documents, whole, state.prompts, strict=True):
        assert text in d.sharer.user and text in shown.text and text not in d.receiver.user
    assert got != outcomes(create("receiver", method.receiver, method.receiver), documents)[0]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_plumbing_puts_the_receivers_own_cache_back(family):
    end = helpers.causal_lm("one", family=family)
    method = load_control("plumbing").wrap(create("kvcomm", end, end), seed=0)
    got, state, _ = outcomes(method, SPLIT)
    alone, base, _ = outcomes(create("receiver", end, end), SPLIT)
    assert got == alone, "not a bit is lost"
    entries = base.kv.mask.sum(1) * end.geometry.token_numbers * base.kv.keys.itemsize
    sent = state.message.wire_bytes
    assert all(n < size < 1.3 * n + 2048 for n, size in zip(entries.tolist(), sent, strict=True))


@pytest.mark.parametrize("damage", ["values", "keys", "layers", "nan", "lost"])
def test_plumbing_stops_the_run_where_the_cache_is_damaged_on_its_way(damage, monkeypatch):
    end = helpers.causal_lm("one")
    method = load_control("plumbing").wrap(create("kvcomm", end, end), seed=0)
    plain = wrappers.as_bytes

    def damaged(kv):
        if damage in ("values", "keys"):
            hurt = getattr(kv, damage).clone()
            hurt[-1] = hurt[-1].roll(1, dims=2) * 8
            return plain(dataclasses.replace(kv, **{damage: hurt}))
        if damage == "lost":
            return plain(dataclasses.replace(kv, mask=kv.mask * (kv.positions > 0)))
        return plain(
            dataclasses.replace(kv, values=kv.values * torch.nan if damage == "nan" else kv.values.flip(0))
        )

    monkeypatch.setattr(wrappers, "as_bytes", damaged)
    told = r"entries of a cache came through" if damage == "lost" else r"on document .* KL .* nats, 0.001 is"
    with pytest.raises(StopRunError, match=f"control plumbing: .*{told}") as found:
        outcomes(method, SPLIT)
    assert found.value.code == 1

"""latentmas: the map from hidden states to embeddings, the entries of latent steps, the message."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest
import torch

from lcfbench.controls.wrappers import emptied, noised
from lcfbench.errors import UserError
from lcfbench.methods._lengths import TooLongError
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.conformance import conformance
from lcfbench.models.latent import Thought, lacking, realignment
from lcfbench.models.timing import Clock
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits
from tests.models import zoo

FAMILIES = ["llama", "qwen3", "gemma3"]  # tied; untied; tied, and its embeddings are scaled


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def made(lm, **options):
    return create("latentmas", lm, lm, None, {k: str(v) for k, v in options.items()})


def tables(lm):
    """The output head and the embeddings as the decoder gets them, float64, each (V, d)."""
    embed = lm.model.get_input_embeddings()
    scale = float(getattr(embed, "embed_scale", 1.0))
    return lm.model.get_output_embeddings().weight.double(), embed.weight.double() * scale


@pytest.mark.parametrize("ridge", [1e-5, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_is_the_formula_and_the_norm_is_the_embeddings(family, ridge, monkeypatch):
    monkeypatch.setattr("lcfbench.models.latent.ROWS", 150)  # several stretches, the last one shorter
    lm = helpers.causal_lm(family=family)
    out, table = tables(lm)
    eye = torch.eye(out.shape[1], dtype=torch.float64)
    expected = torch.inverse(out.T @ out + ridge * eye) @ out.T @ table
    found = realignment(lm, ridge)
    assert torch.allclose(found.matrix.double(), expected, rtol=1e-4, atol=1e-5)
    assert found.norm == pytest.approx(float(table.norm(dim=1).mean()), rel=1e-5)
    hidden = torch.randn(5, out.shape[1])
    made = found(hidden).double()
    assert torch.allclose(made.norm(dim=1), torch.full((5,), found.norm, dtype=torch.float64), rtol=1e-5)
    assert torch.allclose(
        torch.nn.functional.normalize(made, dim=1),
        torch.nn.functional.normalize(hidden.double() @ expected, dim=1),
        atol=1e-4,
    )
    scaled = float(getattr(lm.model.get_input_embeddings(), "embed_scale", 1.0))
    assert (scaled != 1) == (family == "gemma3")
    tied = lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    assert tied == (family != "qwen3")
    if tied and ridge < 1:  # what is written is read as it was: the map only scales
        assert torch.allclose(found.matrix.double(), eye * scaled, atol=1e-3 * scaled)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_those_of_the_plainest_loop(family):
    """Without cache, padding and batch: the text's embeddings, and one more each step."""
    lm = helpers.causal_lm(family=family)
    rows = [prompt(lm, d.sharer, d).ids for d in SPLIT]
    got = lm.prefill_latent(rows, Thought(3))
    align, decoder = realignment(lm, 1e-5), lm.model.get_decoder()
    for b, row in enumerate(rows):
        read = lm.model.get_input_embeddings()(torch.tensor([list(row)]))
        for _ in range(3):
            hidden = decoder(inputs_embeds=read, use_cache=False).last_hidden_state[:, -1]
            read = torch.cat([read, align(hidden)[:, None]], 1)
        cache = decoder(inputs_embeds=read, use_cache=True).past_key_values
        n = len(row) + 3
        assert int(got.mask[b].sum()) == n and got.positions[b, -n:].tolist() == list(range(n))
        for i, layer in enumerate(cache.layers):
            kept = layer.keys.shape[2]  # a sliding layer keeps its window alone
            assert torch.allclose(got.keys[i, b, :, -kept:], layer.keys[0], atol=2e-3)
            assert torch.allclose(got.values[i, b, :, -kept:], layer.values[0], atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
def test_without_steps_it_is_kvcomm_bit_for_bit(documents, family):
    lm = helpers.causal_lm(family=family)
    mine, state, _ = outcomes(made(lm, steps=0), documents)
    theirs, other, _ = outcomes(create("kvcomm", lm, lm), documents)
    assert mine == theirs and state.message == other.message
    assert same_bits(state.kv.keys, other.kv.keys) and same_bits(state.kv.values, other.kv.values)
    assert made(lm, steps=0, ridge=0.5).options() == {"steps": 0}


def test_each_text_stands_in_the_cache_once_and_the_steps_between():
    lm = helpers.causal_lm()
    _, state, _ = outcomes(made(lm, steps=4), SPLIT)
    _, plain, _ = outcomes(create("kvcomm", lm, lm), SPLIT)
    for b, d in enumerate(SPLIT):
        m, n = len(prompt(lm, d.sharer, d).ids), len(prompt(lm, d.receiver, d).ids)
        entries = m + 4 + n - 1  # the prompt's last token runs next
        real = state.kv.mask[b].bool()
        assert int(real.sum()) == entries
        assert state.kv.positions[b][real].tolist() == list(range(entries))
        assert state.positions[b].tolist() == [entries]
        own = plain.kv.mask[b].bool()
        assert same_bits(
            state.kv.keys[:, b][:, :, real][..., :m, :], plain.kv.keys[:, b][:, :, own][..., :m, :]
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_1_equals_batch_n_and_sdpa_equals_eager(family):
    lm = helpers.causal_lm(family=family)
    together, state, _ = outcomes(made(lm, steps=3), SPLIT)
    eager, _, _ = outcomes(made(helpers.causal_lm(family=family, attention="eager"), steps=3), SPLIT)
    for i, d in enumerate(SPLIT):
        alone, single, _ = outcomes(made(lm, steps=3), [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert together[i] == pytest.approx(eager[i], abs=5e-4)
        assert state.message.wire_bytes[i] == single.message.wire_bytes[0]


@pytest.mark.parametrize("reading", ["padded", "equal"])
def test_a_model_that_takes_no_padding_thinks_the_same(reading):
    lm = helpers.causal_lm()
    rows = [prompt(lm, d.sharer, d).ids for d in SPLIT]
    expected = lm.prefill_latent(rows, Thought(2))
    lm.read_as(reading)
    got = lm.prefill_latent(rows, Thought(2))
    assert torch.equal(got.mask, expected.mask) and torch.equal(got.positions, expected.positions)
    real = expected.mask.bool()[None, :, None, :, None]
    assert torch.allclose(got.keys * real, expected.keys * real, atol=1e-4)


def test_a_text_of_one_token_and_one_of_none():
    lm = helpers.causal_lm()
    got = lm.prefill_latent([[7], [5, 6, 9]], Thought(2))
    alone = lm.prefill_latent([[7]], Thought(2))
    assert got.mask.sum(1).tolist() == [3, 5]
    assert torch.allclose(got.keys[:, :1, :, -3:], alone.keys, atol=1e-4)
    with pytest.raises(UserError, match="empty text"):
        lm.prefill_latent([[7], []], Thought(2))


def test_the_steps_and_the_sender_s_text_reach_the_answer():
    lm = helpers.causal_lm()
    scores = {steps: outcomes(made(lm, steps=steps), SPLIT)[0] for steps in (0, 1, 5)}
    other = outcomes(made(lm, steps=5), SPLIT, SPLIT[1:] + SPLIT[:1])[0]
    values = [*scores.values(), other]
    for i, a in enumerate(values):
        for b in values[i + 1 :]:
            assert all(x != pytest.approx(y, abs=1e-5) for x, y in zip(a, b, strict=True))


def test_the_message_is_accounted():
    lm = helpers.causal_lm()
    _, state, _ = outcomes(made(lm, steps=5), SPLIT)
    _, plain, _ = outcomes(made(lm, steps=0), SPLIT)
    g = lm.geometry
    a_token = 2 * g.layers * g.kv_heads * g.head_dim * 4
    for n, m in zip(state.message.wire_bytes, plain.message.wire_bytes, strict=True):
        assert n - m == 5 * a_token
    assert [n - m for n, m in zip(state.message.sharer_tokens, plain.message.sharer_tokens, strict=True)] == [
        5
    ] * 3
    assert all(x > y for x, y in zip(state.message.adapter_flops, plain.message.adapter_flops, strict=True))


def test_controls_replace_the_entries_of_the_steps_too():
    lm = helpers.causal_lm()
    method = made(lm, steps=3)
    rows = [prompt(lm, d.sharer, d).ids for d in SPLIT]
    true = lm.prefill_latent(rows, Thought(3))
    none = emptied(method).sharer.prefill_latent(rows, Thought(3))
    real = true.mask.bool()[None, :, None, :, None]
    assert not bool((none.keys * real).any()) and not bool((none.values * real).any())
    noise = noised(method, 0).sharer.prefill_latent(rows, Thought(3))
    assert not bool(((noise.keys == true.keys) & real).any())
    n = len(rows[0]) + 3
    for x, y in ((noise.keys, true.keys), (noise.values, true.values)):
        assert torch.allclose(x[:, 0, :, -n:].mean((2, 3)), y[:, 0, :, -n:].mean((2, 3)), atol=1e-5)


def test_steps_need_positions():
    lm = helpers.causal_lm()
    d = SPLIT[0]
    need = len(prompt(lm, d.sharer, d).ids) + len(prompt(lm, d.receiver, d).ids)
    d = replace(d, steps=(), scoring="generate", max_new_tokens=1)
    lm.model.config.max_position_embeddings = need + 3
    made(lm, steps=3).check_length(d, d)
    with pytest.raises(TooLongError):
        made(lm, steps=4).check_length(d, d)


def test_entries_that_are_not_finite_are_named():
    lm = helpers.causal_lm()
    lm.realigned = types.MethodType(lambda self, hidden, ridge: torch.full((len(hidden), 32), torch.nan), lm)
    with pytest.raises(UserError, match="the cache of the sharer"):
        made(lm, steps=1).respond(Batch(SPLIT, SPLIT, Clock()))


def test_mistakes_are_named_in_one_line():
    lm, other = helpers.causal_lm(), helpers.causal_lm("other", seed=2, layers=4)
    for options, word in (({"steps": "-1"}, "steps"), ({"steps": "x"}, "steps"), ({"ridge": "0"}, "ridge")):
        with pytest.raises(UserError, match=word) as error:
            create("latentmas", lm, lm, None, options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="one model on both sides"):
        create("latentmas", lm, other)


# -- which models can ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3.5", "mamba"])
def test_what_is_presumed_is_what_is_found(name):
    lm = zoo.lm_of(name)
    presumed = lm.capabilities.lacks("latent")
    assert bool(presumed) == (name in ("qwen3.5", "mamba"))
    assert conformance(lm).missing.get("latent", "") == presumed or name == "mamba"
    assert bool(conformance(lm).missing.get("latent")) == bool(presumed)


def test_a_model_that_reads_embeddings_as_something_else_is_refused():
    lm = helpers.causal_lm()
    embed = lm.model.get_input_embeddings()
    decoder = lm.model.get_decoder()
    assert lacking(lm) == ""
    # as a model does that scales tokens' embeddings outside of its embedding layer
    handle = decoder.register_forward_pre_hook(
        lambda module, args, given: (
            args,
            {**given, "input_ids": None, "inputs_embeds": 3 * embed(given["input_ids"])}
            if given.get("input_ids") is not None
            else given,
        ),
        with_kwargs=True,
    )
    for layer in decoder.layers[:1]:
        layer.input_layernorm.forward = lambda x: x  # llama's norm would hide a factor
    assert "read as embeddings differs" in lacking(lm)
    handle.remove()
    lm = helpers.causal_lm()
    lm.model.lm_head = torch.nn.Linear(32, 300, bias=False)
    assert lacking(lm) == "its output head has 300 tokens and its embedding table 400"
    lm.model.lm_head = torch.nn.Identity()
    assert "no plain numbers" in lacking(lm)
    with pytest.raises(UserError, match=r"latentmas needs a sharer with the capability 'latent'"):
        create("latentmas", lm, lm)

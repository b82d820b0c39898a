"""activation: which state is read, what it changes, and that nothing else changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import read_config, weights_sha256
from lcfbench.adapters.files import load
from lcfbench.controls.base import load_control
from lcfbench.controls.wrappers import emptied, noised
from lcfbench.errors import UserError
from lcfbench.evaluation import runner
from lcfbench.evaluation.answer import answer
from lcfbench.methods._state_map import aligned_states, fit_map
from lcfbench.methods.activation import DOCUMENTS, Activation
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.activations import Edits, editing, hidden_states, lacking
from lcfbench.models.answering import answer_loss
from lcfbench.models.conformance import conformance
from lcfbench.models.timing import Clock
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.trainer import train
from tests import helpers
from tests.helpers import SHARED, SPLIT, manifest_of, outcomes, run_recipe, same_bits, tiny_pair
from tests.models import zoo

FAMILIES = ["llama", "qwen3", "gemma3"]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def made(lm, sharer=None, **options):
    return create("activation", lm, sharer or lm, None, {k: str(v) for k, v in options.items()})


def hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def plainest(lm, row, layer):
    """The states of one text behind a layer, without cache, padding and batch."""
    out = lm.model.get_decoder()(torch.tensor([list(row)]), use_cache=False, output_hidden_states=True)
    return out.hidden_states[layer + 1][0]  # of all but the last layer, which is normalised there


@pytest.mark.parametrize("reading", ["padded", "equal", "left", "steps"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_plainest_forward(family, reading):
    lm = helpers.causal_lm(family=family, layers=4)
    lm.read_as(reading)
    rows = [[*prompt(lm, d.sharer, d).ids] for d in SPLIT] + [[7]]
    counts = [1, 5, len(rows[2]), 1]
    before = hooks(lm)
    got = lm.hidden_states(rows, [0, 2], counts)
    assert hooks(lm) == before
    for row, n, states in zip(rows, counts, got, strict=True):
        assert states.shape == (2, n, lm.hidden_size)
        for layer, mine in zip((0, 2), states, strict=True):
            assert torch.allclose(mine, plainest(lm, row, layer)[-n:], atol=1e-4)
    with pytest.raises(UserError, match="empty text"):
        lm.hidden_states([[1], []], [0], [1, 0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("combine", ["replace", "mean"])
def test_a_message_to_oneself_on_the_same_text_changes_no_bit(family, combine):
    lm = helpers.causal_lm(family=family, layers=4)
    documents = [replace(d, sharer=d.receiver) for d in SPLIT]
    for layer in range(4):
        method = made(lm, combine=combine, sharer_layer=layer, receiver_layer=layer)
        state = method.respond(Batch(documents, documents, Clock()))
        alone = create("receiver", lm, lm).respond(Batch(documents, documents, Clock()))
        assert state.kv.edits is not None
        got, expected = lm.open(state), lm.open(alone)
        assert same_bits(got.logits, expected.logits)
        assert same_bits(got.kv.keys, expected.kv.keys) and same_bits(got.kv.values, expected.kv.values)
        assert got.kv.edits is None  # the tokens have run


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
def test_the_sum_with_zeros_is_the_receiver(documents, family):
    lm = helpers.causal_lm(family=family, layers=4)
    nothing = emptied(made(lm, combine="sum"))
    state, alone = (
        m.respond(Batch(documents, documents, Clock())) for m in (nothing, create("receiver", lm, lm))
    )
    assert same_bits(lm.open(state).logits, lm.open(alone).logits)
    got, expected = outcomes(nothing, documents)[0], outcomes(create("receiver", lm, lm), documents)[0]
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.parametrize("combine", ["replace", "sum", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_that_of_a_plain_forward_with_the_state_changed(family, combine):
    """Without cache, padding and batch; by its hook alone."""
    lm = helpers.causal_lm(family=family, layers=4)
    k, j = 1, 2
    method = made(lm, combine=combine, sharer_layer=k, receiver_layer=j)
    state = method.respond(Batch(SPLIT, SPLIT, Clock()))
    logits = lm.open(state).logits
    for b, d in enumerate(SPLIT):
        row = torch.tensor([list(prompt(lm, d.receiver, d).ids)])
        vector = plainest(lm, prompt(lm, d.sharer, d).ids, k)[-1]

        def change(module, args, out, vector=vector):
            state = out[0] if isinstance(out, tuple) else out
            new = {"replace": vector, "sum": state[:, -1] + vector, "mean": (state[:, -1] + vector) / 2}
            state = state.clone()
            state[:, -1] = new[combine]
            return (state, *out[1:]) if isinstance(out, tuple) else state

        handle = lm.model.get_decoder().layers[j].register_forward_hook(change)
        expected = lm.model(row, use_cache=False).logits[0, -1]
        handle.remove()
        plain = lm.model(row, use_cache=False).logits[0, -1]
        assert torch.allclose(logits[b], expected, atol=2e-3)
        assert not torch.allclose(logits[b], plain, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_1_equals_batch_n_and_sdpa_equals_eager(family):
    lm = helpers.causal_lm(family=family, layers=4)
    together, state, _ = outcomes(made(lm), SPLIT)
    eager, _, _ = outcomes(made(helpers.causal_lm(family=family, layers=4, attention="eager")), SPLIT)
    for i, d in enumerate(SPLIT):
        alone, single, _ = outcomes(made(lm), [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert together[i] == pytest.approx(eager[i], abs=5e-4)
        assert state.message.wire_bytes[i] == single.message.wire_bytes[0] == 4 * lm.hidden_size


@pytest.mark.parametrize("reading", ["equal", "left", "steps"])
def test_ways_of_reading_agree(reading):
    lm = helpers.causal_lm(layers=4)
    expected = outcomes(made(lm), SPLIT)[0]
    lm.read_as(reading)
    for a, b in zip(outcomes(made(lm), SPLIT)[0], expected, strict=True):
        assert a == pytest.approx(b, abs=5e-4)


def test_ranking_by_rows_and_the_training_s_loss_see_the_state_too():
    """Choices behind one root, choices a row each, and a loss over an answer: one model."""
    lm = helpers.causal_lm(layers=4)
    method = made(lm)
    tree = outcomes(method, SPLIT)[0]
    lm.can_join = False
    state = method.respond(Batch(SPLIT, SPLIT, Clock()))
    lm.__class__ = type("Rows", (type(lm),), {"takes_layer_masks": False})
    rows, _ = answer(state, Batch(SPLIT, SPLIT, Clock()))
    for a, o in zip(tree, rows, strict=True):
        assert a == pytest.approx([ll for step in o.loglikelihoods for ll, _ in step], abs=5e-4)
    ids = [[5, 9]] * len(SPLIT)
    loss, _ = answer_loss(state, ids, [[True, True]] * len(SPLIT))
    opened = lm.open(state)
    first = opened.logits.log_softmax(-1)[:, 5]
    second = lm.open(opened.then([[5]] * len(SPLIT), state.prompts)).logits.log_softmax(-1)[:, 9]
    assert float(loss) == pytest.approx(-float((first + second).mean()) / 2, abs=5e-4)


def test_state_layer_and_sender_reach_the_answer():
    lm = helpers.causal_lm(layers=4)
    values = [
        outcomes(create("receiver", lm, lm), SPLIT)[0],
        outcomes(made(lm), SPLIT)[0],
        outcomes(made(lm), SPLIT, SPLIT[1:] + SPLIT[:1])[0],
        outcomes(made(lm, sharer_layer=0), SPLIT)[0],
        outcomes(made(lm, receiver_layer=0), SPLIT)[0],
        outcomes(made(lm, combine="sum"), SPLIT)[0],
        outcomes(noised(made(lm), 0), SPLIT)[0],
    ]
    for i, a in enumerate(values):
        for b in values[i + 1 :]:
            assert all(x != pytest.approx(y, abs=1e-5) for x, y in zip(a, b, strict=True))


def test_defaults_are_the_paper_s_share_of_the_depth():
    lm = helpers.causal_lm(layers=4)
    assert made(lm).options() == {"sharer_layer": 2, "receiver_layer": 2, "combine": "replace"}
    found = Activation(zoo.lm_of("llama"), zoo.lm_of("llama")).options()
    assert found["receiver_layer"] == max(round(26 / 32 * zoo.lm_of("llama").geometry.layers) - 1, 0)


def test_hooks_go_when_a_forward_fails():
    lm = helpers.causal_lm(layers=4)
    before = hooks(lm)
    edits = Edits((1,), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 1, lm.hidden_size), "sum")
    zeros = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ZeroDivisionError), editing(lm.model, edits, zeros, zeros):
        assert hooks(lm) == before + 1
        raise ZeroDivisionError

    def broken(*args, **given):
        raise ZeroDivisionError

    layer = lm.model.get_decoder().layers[3]
    layer.forward = broken
    with pytest.raises(ZeroDivisionError):
        hidden_states(lm, [[1, 2, 3]], [0], [1])
    assert hooks(lm) == before


# -- two models ------------------------------------------------------------------------------------


def test_the_map_is_least_squares_and_finds_a_linear_relation():
    torch.manual_seed(0)
    x = torch.randn(400, 6) * torch.tensor([1.0, 5.0, 0.2, 1.0, 3.0, 1.0]) + 2
    W, b = torch.randn(6, 4), torch.randn(4)
    held = torch.arange(400) % 10 == 9
    found, facts = fit_map(
        [(part, part @ W + b, h) for part, h in zip(x.split(100), held.split(100), strict=True)]
    )
    assert facts["tokens"] == 360 and facts["r2"] > 0.999
    assert torch.allclose(found(x[None]), (x @ W + b)[None], atol=0.3)
    again, told = fit_map(
        [(part, part @ W + b, h) for part, h in zip(x.split(100), held.split(100), strict=True)]
    )
    assert told == facts and same_bits(again.linear.weight, found.linear.weight)
    other, _ = fit_map([(x, x @ W, held)])
    assert other.sha256 != found.sha256


def test_two_models_are_bridged_by_a_map_that_is_fitted_first():
    receiver, sharer = tiny_pair()
    assert receiver.hidden_size != sharer.hidden_size or receiver.geometry != sharer.geometry
    method = made(receiver, sharer)
    assert method.calibration == DOCUMENTS and method.options()["bridge"] == "ridge"
    with pytest.raises(UserError, match="has seen none"):
        method.respond(Batch(SPLIT, SPLIT, Clock()))
    facts = method.calibrate(SPLIT + SHARED)
    assert facts["tokens"] > 100 and len(facts["map_sha256"]) == 64
    assert made(receiver, sharer).calibrate(SPLIT + SHARED) == facts
    _, state, _ = outcomes(method, SPLIT)
    _, other, _ = outcomes(method, SPLIT, SPLIT[1:] + SPLIT[:1])
    assert not torch.isclose(state.kv.edits.vectors, other.kv.edits.vectors).all()
    assert state.message.wire_bytes == [4 * sharer.hidden_size] * 3  # as the sharer's, mapped here
    assert state.message.adapter_flops == [2.0 * sharer.hidden_size * receiver.hidden_size] * 3
    states = method.states([prompt(sharer, d.sharer, d) for d in SPLIT])
    assert torch.allclose(
        state.kv.edits.vectors[0, :, 0], method.map(torch.cat(states, 1))[0].to(receiver.dtype), atol=1e-6
    )


# -- the map as an adapter -------------------------------------------------------------------------


def fitted(ends, documents=SPLIT + SHARED, **options):
    """An adapter as a training without steps makes it, and what was said of it."""
    said = []
    adapter = helpers.random_activation(ends, **options)
    create("activation", *ends, adapter).prepare(documents, said.append)
    return adapter, said


@pytest.mark.parametrize("combine", ["replace", "sum", "mean"])
def test_an_adapter_answers_as_the_map_that_the_run_fits_on_the_same_documents(combine, tmp_path):
    ends = tiny_pair()
    by_run = made(*ends, combine=combine)
    facts = by_run.calibrate(SPLIT + SHARED)
    adapter, [said] = fitted(ends)
    method = create("activation", *ends, adapter, {"combine": combine})
    assert method.calibration == 0 and method.map.sha256 == facts["map_sha256"] == by_run.map.sha256
    assert method.options() == by_run.options()
    fit = adapter.config.training["fit"]
    assert {k: fit[k] for k in facts} == facts and fit["documents"] == len(SPLIT + SHARED)
    assert f"{facts['tokens']:,} tokens of {fit['documents']} documents" in said
    again = helpers.saved_and_loaded(adapter, tmp_path / "a", "activation", ends, within=0)
    for one in (adapter, again):
        got, state, _ = outcomes(create("activation", *ends, one, {"combine": combine}), SPLIT)
        expected, other, _ = outcomes(by_run, SPLIT)
        assert got == expected and same_bits(state.kv.edits.vectors, other.kv.edits.vectors)
        assert state.message == other.message
    assert again.map.sha256 == facts["map_sha256"]
    assert again.params == (ends[1].hidden_size + 1) * ends[0].hidden_size


def test_the_fitted_map_is_the_closed_form_on_held_rows():
    """Solved here by the normal equations of all rows, in doubles."""
    receiver, sharer = ends = tiny_pair()
    documents = SPLIT * 5
    adapter, _ = fitted(ends, documents)
    method = create("activation", *ends, adapter)
    parts = aligned_states((sharer, [method.source]), (receiver, [method.into]), documents)
    x, y, held = (torch.cat(p, d) for p, d in zip(zip(*parts, strict=True), (1, 1, 0), strict=True))
    x, y = x[0].double(), y[0].double()
    mean, std = x[~held].mean(0), x[~held].std(0, correction=0)
    rows = torch.cat([((x - mean) / std).clamp(-8, 8), torch.ones(len(x), 1).double()], 1)
    penalty = 1e-2 * int((~held).sum()) * torch.eye(rows.shape[1]).double()
    penalty[-1, -1] = 0  # not of the bias
    own = rows[~held]
    solved = torch.linalg.solve(own.T @ own + penalty, own.T @ y[~held])
    assert int(held.sum()) > 10
    torch.testing.assert_close(adapter(x[held].float()).double(), rows[held] @ solved, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
def test_a_map_of_zeros_that_is_added_is_the_receiver(documents):
    ends = tiny_pair()
    adapter = helpers.random_activation(ends)
    method = create("activation", *ends, adapter, {"combine": "sum"})
    alone = create("receiver", *ends).respond(Batch(documents, documents, Clock()))
    some = method.respond(Batch(documents, documents, Clock()))
    assert not same_bits(ends[0].open(some).logits, ends[0].open(alone).logits)
    for p in adapter.parameters():
        p.zero_()
    none = method.respond(Batch(documents, documents, Clock()))
    assert same_bits(ends[0].open(none).logits, ends[0].open(alone).logits)


def test_an_adapter_is_of_its_pair_its_layers_and_its_method():
    ends = tiny_pair()
    adapter = helpers.random_activation(ends, receiver_layer=1, sharer_layer=0)
    method = create("activation", *ends, adapter)
    layers = {"sharer_layer": 0, "receiver_layer": 1}
    assert method.options() == layers | {"combine": "replace", "bridge": "ridge"}
    create("activation", *ends, adapter, {"receiver_layer": "1", "bridge": "ridge"})
    mistakes = {
        "receiver_layer=2: the adapter's map is fitted for receiver_layer 1": {"receiver_layer": "2"},
        "sharer_layer=1: the adapter's map is fitted for sharer_layer 0": {"sharer_layer": "1"},
        "bridge=none": {"bridge": "none"},
    }
    helpers.refused_in_one_line("activation", ends, mistakes, adapter)
    helpers.refused_in_one_line("activation", ends[::-1], {"does not fit this pair": {}}, adapter)
    helpers.refused_in_one_line("activation", ends, {"runs activation": {}}, helpers.random_xkv(ends))
    helpers.refused_in_one_line("xkv", ends, {"runs xkv": {}}, adapter)
    wide = adapter.config.model_copy(update={"options": adapter.config.options | {"receiver_size": 48}})
    helpers.refused_in_one_line("activation", ends, {"the receiver's have 48 numbers": {}}, build(wide))
    for update, says in (
        ({"options": {}}, "depends on the width"),
        ({"layers": (1, 2)}, "of one layer, not 2"),
    ):
        with pytest.raises(UserError, match=says):
            build(adapter.config.model_copy(update=update))


def test_one_model_on_both_sides_may_have_a_map_and_self_uses_none():
    lm = helpers.causal_lm(layers=4)
    adapter, _ = fitted((lm, lm))
    method = create("activation", lm, lm, adapter)
    assert outcomes(method, SPLIT)[0] != outcomes(made(lm), SPLIT)[0]
    receiver, sharer = tiny_pair()
    of_two = create("activation", receiver, sharer, fitted((receiver, sharer))[0])
    assert outcomes(load_control("self").wrap(of_two, 0), SPLIT)[0] == outcomes(made(receiver), SPLIT)[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


def trained(models, out, steps, **more):
    small = {"batch_size": 4, "dev_documents": 6, "eval_every": 3, "save_every": 2, "warmup": 1}
    given = {"adapters": ["activation"], "pair": models, "out": out, "dtype": "float32", "lr": 3e-3}
    return TrainRecipe.model_validate({**small, **given, "steps": steps, **more})


def test_a_training_of_no_steps_saves_the_fit_and_a_run_names_it(models, tmp_path, capsys, monkeypatch):
    with torch.enable_grad():
        [folder] = train(trained(models, tmp_path / "a", 0), helpers.Watcher())
    record = read_config(folder).training
    assert record["steps"] == 0 and record["fit"]["documents"] == 32
    [point] = record["dev"]
    assert point["step"] == 0 and {"splitfacts/matched", "splitfacts/deranged"} < set(point)
    assert load(folder).map.sha256 == record["fit"]["map_sha256"] and not (folder / "checkpoint.pt").exists()
    text = (folder / "README.md").read_text()
    assert "no step was trained" in text and f"{record['fit']['tokens']} tokens of 32 documents" in text
    code, out, _ = helpers.invoke(capsys, monkeypatch, "adapter", "info", folder)
    assert code == 0 and f"training fit: documents 32, tokens {record['fit']['tokens']}" in out
    more = {"mode": ["activation"], "limit": 4, "task": ["splitfacts"]}
    [plain] = run_recipe(models, tmp_path / "runs", **more)
    recipe = helpers.small_recipe(models, tmp_path / "runs", **more).model_copy(update={"adapter": [folder]})
    [run] = runner.run(recipe, helpers.Watcher())
    with_adapter, without = manifest_of(tmp_path / "runs" / run), manifest_of(plain)
    assert with_adapter["adapter"] == "a" and without["adapter"] is None
    mine, other = with_adapter["identity"], without["identity"]
    assert mine["adapter_sha256"] == weights_sha256(folder) and other["adapter_sha256"] is None
    assert other["calibration_sha256"] and "calibration_sha256" not in mine
    assert with_adapter["adapter_facts"]["training"]["fit"] == record["fit"]


def test_steps_go_on_from_the_fit_and_a_resumed_training_ends_as_the_uninterrupted_one(models, tmp_path):
    with torch.enable_grad():
        recipes = (trained(models, tmp_path / out, 6, options={"documents": "8"}) for out in ("w", "a"))
        whole, _ = helpers.whole_and_resumed(*recipes, 4)
    record = read_config(whole).training
    assert record["fit"]["documents"] == 8 and load(whole).map.sha256 != record["fit"]["map_sha256"]
    log = pd.read_parquet(whole / "training.parquet").query("metric == 'loss'")
    assert len(log) == 6 and log.value.map(math.isfinite).all()


def test_no_steps_are_for_methods_that_are_fitted_first(models, tmp_path):
    recipe = trained(models, tmp_path / "a", 0, adapters=["lcf"])
    with pytest.raises(UserError, match="steps=0: lcf learns in steps alone"):
        train(recipe, helpers.Watcher())


def test_self_needs_no_map_and_one_model_neither():
    receiver, sharer = tiny_pair()
    method = made(receiver, sharer, sharer_layer=0)
    method.calibrate(SPLIT)
    mine = load_control("self").wrap(method, 0)
    expected = outcomes(made(receiver), SPLIT)[0]
    assert outcomes(mine, SPLIT)[0] == expected
    assert made(receiver).calibration == 0


def test_mistakes_are_named_in_one_line():
    receiver, sharer = tiny_pair()
    mistakes = {
        "sharer_layer=3 of tiny-b, which has 3": {"sharer_layer": "3"},
        "receiver_layer=4 of tiny-a, which has 4": {"receiver_layer": "4"},
        "receiver_layer": {"receiver_layer": "-1"},
        "combine": {"combine": "max"},
    }
    helpers.refused_in_one_line("activation", (receiver, sharer), mistakes)
    with pytest.raises(UserError, match="receiver_layer=9 of the receiver, which has 4"):
        Activation.check_depth({"receiver_layer": "9"}, lambda: 4)
    Activation.check_depth({"receiver_layer": "3"}, lambda: 4)
    if receiver.hidden_size != sharer.hidden_size:
        with pytest.raises(UserError, match="without a map they do not fit"):
            made(receiver, sharer, bridge="none")


def test_states_that_are_not_finite_are_named():
    says = "the hidden state of tiny-receiver behind layer 2"
    helpers.names_states_that_are_not_finite(made(helpers.causal_lm(layers=4)), SPLIT, says)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3.5", "mamba", "gemma3n", "recurrent-gemma"])
def test_what_is_presumed_is_what_is_found(name):
    lm = zoo.lm_of(name)
    presumed = lm.capabilities.lacks("activations")
    assert bool(presumed) == (name in ("mamba", "gemma3n", "recurrent-gemma")) or name == "recurrent-gemma"
    if name != "recurrent-gemma":
        assert bool(conformance(lm).missing.get("activations")) == bool(presumed)


def test_layers_of_another_form_are_refused():
    lm = zoo.lm_of("gemma3n")  # its layers keep several states a token
    assert lacking(helpers.causal_lm(layers=4)) == ""
    assert "layer 0 gives [(4, 1, 6, 32)] for 6 tokens" in lacking(lm)
    with pytest.raises(UserError, match=r"activation needs a receiver with the capability 'activations'"):
        create("activation", lm, lm)

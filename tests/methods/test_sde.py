"""sde: which differences are sent, at which tokens they act, and that without them it is t2t."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcfbench.controls.wrappers import ReplacedCacheModel
from lcfbench.errors import UserError
from lcfbench.methods import sde
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.methods.sde import SDE, parse_layers, token_ends
from lcfbench.models.timing import Clock
from lcfbench.models.wire import unpack
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits, tiny_pair

FAMILIES = ["llama", "qwen3", "gemma3"]
CASES = [(SPLIT, False), (SHARED, True)]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def made(lm, name="sde", **options):
    return create(name, lm, lm, None, {"budget": "6"} | {k: str(v) for k, v in options.items()})


class Still(ReplacedCacheModel):
    """A model that writes as ever and whose state never changes."""

    def __init__(self, real):
        super().__init__(real, lambda x, name: x)

    def hidden_states(self, rows, layers, counts):
        return [torch.ones_like(x) for x in self.real.hidden_states(rows, layers, counts)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("documents", "chat"), CASES, ids=["split", "shared"])
def test_without_deltas_it_is_t2t_bit_for_bit(documents, chat, family):
    lm = helpers.causal_lm(family=family, layers=4, chat=chat)
    method = made(lm)
    with_deltas = outcomes(method, documents)[0]
    method.sharer = Still(lm)
    got, state, _ = outcomes(method, documents)
    expected, plain, _ = outcomes(made(lm, "t2t"), documents)
    assert got == expected != with_deltas
    assert same_bits(state.kv.keys, plain.kv.keys) and same_bits(state.kv.values, plain.kv.values)
    assert state.message.texts == plain.message.texts and all(state.message.texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_that_are_added_change_no_bit_either(family, monkeypatch):
    """The forward with its hooks, of one document as t2t reads it."""
    lm = helpers.causal_lm(family=family, layers=4)
    method, edits = made(lm), sde.Edits
    added = []

    def nothing(blocks, positions, vectors, combine):
        added.append(int((positions >= 0).sum()))
        return edits(blocks, positions, torch.zeros_like(vectors), combine)

    monkeypatch.setattr(sde, "Edits", nothing)
    for d in SPLIT:
        _, state, _ = outcomes(method, [d])
        _, plain, _ = outcomes(made(lm, "t2t"), [d])
        assert same_bits(state.kv.keys, plain.kv.keys) and same_bits(state.kv.values, plain.kv.values)
    assert len(added) == len(SPLIT) and all(n > 2 for n in added)


def states_of(lm, ids, layer):
    out = lm.model.get_decoder()(torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True)
    return out.hidden_states[layer + 1][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_deltas_are_differences_of_the_plainest_forward_and_act_at_their_tokens(family):
    """Without cache, padding and batch: states after each token written, added by plain hooks."""
    lm = helpers.causal_lm(family=family, layers=4)
    method = made(lm, layers="0+2")
    state = method.respond(Batch(SPLIT, SPLIT, Clock()))
    logits = lm.open(state).logits
    for b, d in enumerate(SPLIT):
        asked = prompt(lm, d.request, replace(d, steps=())).ids
        opened = lm.open(lm.read([prompt(lm, d.request, replace(d, steps=()))]))
        [ids] = sde.speak_tokens(opened, 6, d.request_until)[1]
        note = state.message.texts[b]
        ends = token_ends(lm.tokenizer, ids, note)
        shown = method.noted(d, sde.text_of(d, note))
        start = method.start_of(shown, d, note)
        assert shown.text[start : start + len(note)] == note
        where = {start + end: n for n, end in ends.items()}
        mine = {t: where[z] for t, (a, z) in enumerate(shown.offsets) if z > a and z in where}
        assert len(mine) > 2
        handles, every = [], [states_of(lm, [*asked, *ids], layer)[len(asked) - 1 :] for layer in (0, 2)]
        for layer, after in zip((0, 2), every, strict=True):
            deltas = after[1:] - after[:-1]
            last = {n: t for t, n in mine.items()}  # of tokens that end alike the last

            def add(module, args, out, deltas=deltas, last=last):
                new = (out[0] if isinstance(out, tuple) else out).clone()
                for n, t in last.items():
                    new[:, t] += deltas[n]
                return (new, *out[1:]) if isinstance(out, tuple) else new

            handles.append(lm.model.get_decoder().layers[layer].register_forward_hook(add))
        expected = lm.model(torch.tensor([list(shown.ids)]), use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        plain = lm.model(torch.tensor([list(shown.ids)]), use_cache=False).logits[0, -1]
        off, moved = ((logits[b] - x).abs().max() for x in (expected, plain))
        assert off < 0.02 and off < 0.02 * moved  # random layers make rounding larger


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("documents", "chat"), CASES, ids=["split", "shared"])
def test_batch_1_equals_batch_n_and_sdpa_equals_eager(documents, chat, family):
    lm = helpers.causal_lm(family=family, layers=4, chat=chat)
    together, state, _ = outcomes(made(lm), documents)
    other = helpers.causal_lm(family=family, layers=4, chat=chat, attention="eager")
    eager, _, _ = outcomes(made(other), documents)
    for i, d in enumerate(documents):
        alone, single, _ = outcomes(made(lm), [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert together[i] == pytest.approx(eager[i], abs=5e-4)
        assert state.message.wire_bytes[i] == single.message.wire_bytes[0]


@pytest.mark.parametrize("reading", ["equal", "left", "steps"])
def test_ways_of_reading_agree(reading):
    lm = helpers.causal_lm(layers=4)
    expected = outcomes(made(lm), SPLIT)[0]
    lm.read_as(reading)
    for a, b in zip(outcomes(made(lm), SPLIT)[0], expected, strict=True):
        assert a == pytest.approx(b, abs=5e-4)


def test_the_message_is_the_note_and_a_delta_a_token():
    lm = helpers.causal_lm(layers=4)
    _, state, _ = outcomes(made(lm, layers="1+3"), SPLIT)
    batch = Batch(SPLIT, SPLIT, Clock(), "native")
    crossed = made(lm, layers="1+3").respond(batch)
    for note, size, data in zip(
        state.message.texts, state.message.wire_bytes, crossed.message.packets, strict=True
    ):
        read = unpack(data)
        tokens = len(read["ends"])
        assert bytes(read["note"].tolist()).decode() == note
        assert read["deltas"].shape == (2, tokens, lm.hidden_size) and 0 < tokens <= 6
        assert size == len(note.encode()) + 4 * tokens + 2 * tokens * lm.hidden_size * 4
    cut = outcomes(made(lm, layers="1+3", bytes=4), SPLIT)[1].message
    assert all(len(note.encode()) <= 4 for note in cut.texts)
    assert all(a < b for a, b in zip(cut.wire_bytes, state.message.wire_bytes, strict=True))


def test_a_note_without_text_is_t2t_s():
    lm = helpers.causal_lm(layers=4)
    documents = [replace(d, request_until=("",)) for d in SPLIT]
    assert token_ends(lm.tokenizer, [5, 9], "") == {}
    method = made(lm, bytes=1)  # half a character leaves nothing of some notes
    got = outcomes(method, documents)
    assert "" in got[1].message.texts
    batch = Batch(documents, documents, Clock(), "native")
    crossed = method.respond(batch)
    assert [len(x) == 0 for x in crossed.message.packets] == [note == "" for note in got[1].message.texts]


def test_mistakes_are_named_in_one_line():
    lm = helpers.causal_lm(layers=4)
    mistakes = {"layers=4": {"layers": "4"}, "layers=a": {"layers": "a"}, "budget=0": {"budget": "0"}}
    helpers.refused_in_one_line("sde", (lm, lm), mistakes)
    with pytest.raises(UserError, match="sde needs one model on both sides"):
        create("sde", *tiny_pair())
    with pytest.raises(UserError, match="layers=9"):
        SDE.check_depth({"layers": "9"}, lambda: 4)
    assert parse_layers("", 32) == (17, 20) and parse_layers("", 1) == (0,)
    helpers.names_states_that_are_not_finite(made(lm), SPLIT, "a hidden state of tiny-receiver")

"""Several sharers: each makes its message, the receiver takes them in together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcfbench.controls.base import load_control
from lcfbench.controls.deranged_one import drawn
from lcfbench.errors import UserError
from lcfbench.evaluation.rows import _each
from lcfbench.methods._fusion import Segment
from lcfbench.methods._prefix import in_front, moved
from lcfbench.methods._several import SeveralSharers
from lcfbench.methods.create import create, method_class
from lcfbench.methods.excerpt import own_text
from lcfbench.models.protocol import Message
from lcfbench.registry import method_names
from lcfbench.tasks.document import Document
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits

KINDS = {
    "lcf": ("lcf", "lcfx"),
    "identical": ("lcfx",),
    "c2c": ("c2c",),
    "dense": ("dense",),
    "prefix": ("before", "after"),
}
CASES = [
    (name, kind, documents)
    for name in method_names()
    if method_class(name).sends and method_class(name).joins
    for kind in KINDS.get(name, ("",))
    for documents in ([SPLIT] if kind == "lcfx" or name in ("excerpt", "prefix", "t2t") else [SHARED, SPLIT])
    if not (kind in ("lcf", "c2c") and documents is SPLIT)
]
EVERY = pytest.mark.parametrize(
    ("name", "kind", "documents"), CASES, ids=[f"{n}-{k or 'plain'}-{d[0].task}" for n, k, d in CASES]
)


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def method_of(name: str, kind: str):
    return helpers.method_of(name, kind or None, chat=False)


def dealt(documents: list[Document], texts: list[list[str]] | None = None) -> list[Document]:
    """The documents with three sharers: the sharer's own text, and two further notes."""
    out = []
    for i, d in enumerate(documents):
        own = own_text(d)
        parts = texts[i] if texts else [own, f"Gopa keeps bees {i}.", "The box of Lumi is brown."]
        views = tuple(replace(d.sharer, user=d.sharer.user.replace(own, part)) for part in parts)
        out.append(replace(d, sharers=views, requests=views))
    return out


def ways_of(name: str, documents) -> tuple[str, ...]:
    return method_class(name).ways(documents[0].shared)


def test_the_methods_that_take_one_sharer_are_known():
    sending = [name for name in method_names() if method_class(name).sends]
    assert {name for name in sending if not method_class(name).joins} == {
        "activation",
        "answer_letter",
        "draft_kv",
        "hub",
        "sde",
    }


@EVERY
def test_one_sharer_is_the_method_itself(name, kind, documents):
    method = method_of(name, kind)
    plain, before, _ = outcomes(method, documents)
    for way in ways_of(name, documents):
        alone = SeveralSharers([method], way)
        together, state, _ = outcomes(alone, documents)
        assert together == plain and same_bits(state.kv.keys, before.kv.keys)
        assert state.message == before.message and state.message.parts is None


@EVERY
def test_three_sharers(name, kind, documents):
    method = method_of(name, kind)
    mine = documents if documents[0].shared else dealt(documents)
    found = {}
    for way in ways_of(name, documents):
        three = SeveralSharers([method] * 3, way)
        for d in mine:
            three.check(d)
            three.check_length(d, d)
        together, state, _ = outcomes(three, mine)
        parts = state.message.parts
        assert parts is not None and len(parts) == 3
        for i, d in enumerate(mine):
            alone, _, _ = outcomes(three, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-3), way
            assert state.message.wire_bytes[i] == sum(part.wire_bytes[i] for part in parts)
            assert state.message.sharer_tokens[i] == sum(part.sharer_tokens[i] for part in parts)
        found[way] = together
    plain, _, _ = outcomes(method, documents)
    assert all(together != plain for together in found.values())
    told = [repr(each) for each in found.values()]
    same = name == "prefix" and kind == "after"  # behind the prompt there is no order
    assert len(set(told)) == (1 if same else len(told))


@EVERY
def test_without_an_order_the_order_changes_nothing(name, kind, documents):
    free = [way for way in ways_of(name, documents) if way in ("free", "parallel")]
    if not free:
        assert name in ("t2t", "excerpt"), "text has an order"
        return
    mine = documents if documents[0].shared else dealt(documents)
    turned = [replace(d, sharers=d.sharers[::-1], requests=d.requests[::-1]) for d in mine]
    method = SeveralSharers([method_of(name, kind)] * 3, free[0])
    here, there = outcomes(method, mine)[0], outcomes(method, turned)[0]
    for a, b in zip(here, there, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_in_a_row_the_order_counts():
    mine = dealt(SPLIT)
    turned = [replace(d, sharers=d.sharers[::-1], requests=d.requests[::-1]) for d in mine]
    method = SeveralSharers([method_of("kvcomm", "")] * 3, "row")
    here, there = outcomes(method, mine)[0], outcomes(method, turned)[0]
    assert max(abs(a - b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True)) > 1e-3


def test_entries_stand_where_they_would_have_been_read():
    """A cache moved on by n is the cache of the same tokens read from position n on."""
    lm = helpers.one_model_twice()[0]
    rows = [[5, 6, 7, 8, 9], [11, 12, 13]]
    by = torch.tensor([4, 9])
    read, at_once = lm.prefill(rows, start=by), moved(lm, lm.prefill(rows), by)
    on = read.mask.bool()
    assert torch.equal(read.positions[on], at_once.positions[on])
    for a, b in ((read.keys, at_once.keys), (read.values, at_once.values)):
        assert torch.allclose(a.transpose(2, 3)[:, on], b.transpose(2, 3)[:, on], atol=1e-5)


def test_a_context_cut_in_two_is_two_readings_in_a_row():
    """Two sharers of one model: the second's entries have not seen the first's, and stand behind them."""
    lm = helpers.one_model_twice()[0]
    first, second, mine = [5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]
    caches = [lm.prefill([first]), lm.prefill([second])]
    past, end = in_front(lm, caches, "row")
    by_hand = lm.prefill([first]).then(lm.prefill([second], start=len(first)))
    assert end.tolist() == [7] and past.positions.tolist() == [[*range(7)]]
    a, b = (lm.prefill([mine], kv, start=7) for kv in (past, by_hand))
    assert torch.allclose(a.keys, b.keys, atol=1e-5) and torch.allclose(a.values, b.values, atol=1e-5)
    whole = lm.prefill([first + second])
    assert not torch.allclose(lm.prefill([mine], whole, start=7).keys, a.keys, atol=1e-3)


def test_a_sharer_without_entries_changes_nothing():
    lm = helpers.one_model_twice()[0]
    read = lm.prefill([[5, 6, 7], [8, 9, 10, 11]])
    nothing = replace(read, mask=torch.zeros_like(read.mask))
    for way in ("row", "free"):
        past, end = in_front(lm, [nothing, read, nothing], way)
        assert end.tolist() == [3, 4] and torch.equal(past.mask, read.mask)
        on = read.mask.bool()
        assert same_bits(past.keys.transpose(2, 3)[:, on], read.keys.transpose(2, 3)[:, on])
        assert torch.equal(past.positions[on], read.positions[on])


def test_sliding_windows_have_an_order():
    lm = helpers.two_models()[1]
    assert any(lm.windows)
    caches = [lm.prefill([[5, 6]]), lm.prefill([[7]])]
    with pytest.raises(UserError, match="sliding window"):
        in_front(lm, caches, "free")


@pytest.mark.parametrize("way", ["parallel", "sequential"])
def test_a_shut_fuser_among_several_changes_nothing(way):
    ends = helpers.two_models()
    open_, shut = (helpers.random_adapter("lcf", ends, gate=gate) for gate in (1.0, -1.0))
    one, none = (create("lcf", *ends, adapter) for adapter in (open_, shut))
    plain, _, _ = outcomes(one, SHARED)
    assert not none.adapter.config.layers, "nothing is left of it"
    alone, _, _ = outcomes(SeveralSharers([none, none], way), SHARED)
    assert alone == outcomes(none, SHARED)[0] != plain


def test_parallel_adds_what_each_changes():
    method, documents = method_of("lcf", "lcfx"), dealt(SPLIT)
    prompts = outcomes(method, SPLIT)[1].prompts
    own = method.read(prompts, None, Segment.whole(prompts))
    three = outcomes(SeveralSharers([method] * 3, "parallel"), documents)[1].kv
    each = [outcomes(method, [d.dealt[k] for d in documents])[1].kv for k in range(3)]
    on = own.mask.bool()[None, :, None, :, None]
    for name in ("keys", "values"):
        base = getattr(own, name)
        added = sum(getattr(kv, name) - base for kv in each) + base
        assert torch.allclose((getattr(three, name) * on), added * on, atol=1e-5)


# -- different sharers, each with an adapter of its own ---------------------------------------------

PAIRS = {
    "lcf": ("lcf", lambda ends: helpers.random_adapter("lcf", ends), SHARED),
    "lcf-x": ("lcf", lambda ends: helpers.random_adapter("lcfx", ends), SPLIT),
    "c2c": ("c2c", lambda ends: helpers.random_adapter("c2c", ends), SHARED),
    "dense": ("dense", helpers.random_dense, SHARED),
    "dense-split": ("dense", helpers.random_dense, SPLIT),
    "xkv": ("xkv", helpers.random_xkv, SPLIT),
    "prefix-before": ("prefix", lambda ends: helpers.random_prefix(ends, place="before"), SPLIT),
    "prefix-after": ("prefix", lambda ends: helpers.random_prefix(ends, place="after"), SPLIT),
}
DIFFERENT = pytest.mark.parametrize("case", PAIRS)


def different(case: str) -> tuple[list, list[Document], tuple[str, ...]]:
    """The method of two different sharers, documents, and the ways to join."""
    name, made, documents = PAIRS[case]
    receiver, first = helpers.two_models()
    second = helpers.causal_lm("tiny-c", layers=2, seed=7)
    methods = [create(name, receiver, lm, made((receiver, lm))) for lm in (first, second)]
    shared = documents[0].shared
    mine = (
        documents
        if shared
        else [replace(d, sharers=(d.sharer, d.sharer), requests=(d.request,) * 2) for d in documents]
    )
    return methods, mine, method_class(name).ways(shared)


def other_than(a, b) -> float:
    return max(abs(x - y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True))


@DIFFERENT
def test_two_different_sharers(case):
    """Both are heard; where they have an order it counts; messages are counted each."""
    methods, documents, ways = different(case)
    alone = [outcomes(method, documents)[0] for method in methods]
    for way in ways:
        both, state, _ = outcomes(SeveralSharers(methods, way), documents)
        turned, other, _ = outcomes(SeveralSharers(methods[::-1], way), documents)
        assert all(other_than(both, one) > 1e-4 for one in alone)
        # entries behind the prompt have no order; what dense adds is made of the sharer's entries alone
        order = way in ("row", "sequential") and case not in ("prefix-after", "dense")
        assert (other_than(both, turned) > 1e-4) == order
        sizes = [part.wire_bytes for part in state.message.parts]
        assert sizes == [part.wire_bytes for part in other.message.parts][::-1]
        assert sizes == [outcomes(method, documents)[1].message.wire_bytes for method in methods]


@pytest.mark.parametrize("case", ["lcf", "lcf-x", "c2c", "xkv"])
def test_parallel_is_the_sum_of_what_different_adapters_change(case):
    methods, documents, _ = different(case)
    states = [outcomes(method, documents)[1] for method in methods]
    prompts = states[0].prompts
    own = methods[0].read(prompts, None, Segment.whole(prompts))
    both = outcomes(SeveralSharers(methods, "parallel"), documents)[1].kv
    on = own.mask.bool()[None, :, None, :, None]
    for name in ("keys", "values"):
        base = getattr(own, name)
        changes = [getattr(state.kv, name) - base for state in states]
        assert all(float((change * on).abs().max()) > 1e-3 for change in changes)
        assert torch.allclose(getattr(both, name) * on, (base + sum(changes)) * on, atol=1e-5)


@pytest.mark.parametrize("way", ["parallel", "sequential"])
def test_the_first_of_several_may_be_shut(way):
    """The others are heard; the message of the first is nothing."""
    methods, documents, _ = different("lcf")
    shut = create(
        "lcf",
        methods[0].receiver,
        methods[0].sharer,
        helpers.random_adapter("lcf", (methods[0].receiver, methods[0].sharer), gate=-1.0),
    )
    plain, before, _ = outcomes(methods[1], documents)
    for several in ([shut, methods[1]], [methods[1], shut]):
        found, state, _ = outcomes(SeveralSharers(several, way), documents)
        assert found == plain and same_bits(state.kv.keys, before.kv.keys)
        sizes = [part.wire_bytes for part in state.message.parts]
        assert [[0] * 3, before.message.wire_bytes] == sorted(sizes)


def test_adapters_that_cannot_stand_beside_each_other():
    methods, _, _ = different("lcf")
    receiver, first, second = methods[0].receiver, methods[0].sharer, methods[1].sharer
    remap = create(
        "lcf", receiver, second, helpers.random_adapter("lcf", (receiver, second), token_alignment="remap")
    )
    with pytest.raises(UserError, match="edit turns and whole prompts"):
        SeveralSharers([methods[0], remap], "parallel")
    places = [
        create("prefix", receiver, lm, helpers.random_prefix((receiver, lm), place=place))
        for lm, place in ((first, "before"), (second, "after"))
    ]
    with pytest.raises(UserError, match="one adapter puts entries before the prompt, one after it"):
        SeveralSharers(places, "row")
    dense = [
        create("dense", receiver, lm, helpers.random_dense((receiver, lm)), {"lead": lead})
        for lm, lead in ((first, "2"), (second, "3"))
    ]
    with pytest.raises(UserError, match="stand behind 2 and 3 tokens"):
        SeveralSharers(dense, "row")


def test_options_of_several_name_what_differs():
    receiver, sharer = helpers.two_models()
    made = [
        create("lcf", receiver, sharer, helpers.random_adapter("lcfx", (receiver, sharer)), {"windows": n})
        for n in "23"
    ]
    told = SeveralSharers(made, "parallel").options()
    assert told["windows"] == [2, 3] and told["spans"] == "windows"


@pytest.mark.parametrize("control", ["zero", "noise", "silent", "equal-text", "plumbing", "self"])
def test_controls_reach_different_sharers(control):
    methods, documents, _ = different("lcf-x")
    method = SeveralSharers(methods, "parallel")
    why = load_control(control).refuses(method, documents)
    if control == "self":
        assert why and "its adapter reads the cache of tiny-b" in why[0]
        return
    assert why is None
    before = outcomes(method, documents)[0]
    found, state, _ = outcomes(load_control(control).wrap(method, seed=0), documents)
    assert found != before and outcomes(method, documents)[0] == before
    if control == "silent":
        assert state.message.wire_bytes == [0] * 3


def test_texts_are_concatenated_and_counted_each():
    method = SeveralSharers([method_of("excerpt", "")] * 3, "row")
    [document] = dealt(SPLIT[:1], [["Alpha one.", "Beta.", "Gamma three."]])
    _, state, _ = outcomes(method, [document])
    assert "Notes: Alpha one. Beta. Gamma three. The brown box" in state.prompts[0].text
    assert state.message.texts == ["Alpha one.\nBeta.\nGamma three."]
    assert [part.wire_bytes for part in state.message.parts or []] == [[10], [5], [12]]


def test_equal_text_is_the_words_of_all():
    documents = dealt(SPLIT)
    method = load_control("equal-text").wrap(SeveralSharers([method_of("kvcomm", "")] * 3, "row"), 0)
    _, state, _ = outcomes(method, documents)
    assert "Gopa keeps bees 1. The box of Lumi is brown." in state.prompts[1].text


@pytest.mark.parametrize("control", ["zero", "noise", "silent", "self", "equal-text", "plumbing"])
def test_controls_reach_every_sharer(control):
    documents = dealt(SPLIT)
    name, kind = ("lcf", "lcfx") if control != "self" else ("t2t", "")
    method = SeveralSharers([method_of(name, kind)] * 3, ways_of(name, documents)[0])
    assert load_control(control).refuses(method, documents) is None
    before = outcomes(method, documents)[0]
    altered = load_control(control).wrap(method, seed=0)
    found, state, _ = outcomes(altered, documents)
    assert found != before and outcomes(method, documents)[0] == before
    if control == "self":
        assert all(lm is method.receiver for lm in altered.sharers)
    if control == "silent":
        assert state.message.wire_bytes == [0] * 3


def test_one_sharer_of_several_is_exchanged():
    documents = dealt(SPLIT)
    method = SeveralSharers([method_of("excerpt", "")] * 3, "row")
    control = load_control("deranged-one")
    senders = control.message_from(documents, seed=0)
    assert all(sender is not d for d, sender in ((d, senders[d.hash]) for d in documents))
    altered = control.wrap(method, seed=0)
    _, state, _ = outcomes(altered, documents, [senders[d.hash] for d in documents])
    places = [drawn(d, 0, 3) for d in documents]
    assert {drawn(replace(d, doc_id=str(i)), 0, 3) for d in documents for i in range(20)} == {0, 1, 2}
    for i, (d, at) in enumerate(zip(documents, places, strict=True)):
        other = senders[d.hash]
        each = altered.senders(d, other)
        assert [x is other for x in each] == [k == at for k in range(3)]
        told = [part.texts[i] for part in state.message.parts]
        assert told == [
            (other if k == at else d).dealt[k].sharer.user[7:27].strip() for k in range(3)
        ] or all(text in own_text((other if k == at else d).dealt[k]) for k, text in enumerate(told))


def test_one_sharer_has_no_run_of_deranged_one():
    why = load_control("deranged-one").refuses(method_of("excerpt", ""), SPLIT)
    assert why is not None and "deranged-one is deranged" in why[0]


def test_another_number_of_contexts_is_refused():
    method = SeveralSharers([method_of("excerpt", "")] * 2, "row")
    with pytest.raises(UserError, match="to 3, and --pair names 2 sharers"):
        method.check(dealt(SPLIT)[0])
    with pytest.raises(UserError, match="to 1, and --pair names 2 sharers"):
        method.check(SPLIT[0])
    SeveralSharers([method_of("t2t", "")] * 2, "row").check(SHARED[0])


def test_a_document_is_dealt_once_and_keeps_its_hash():
    [document] = dealt(SPLIT[:1])
    assert document.hash == SPLIT[0].hash and document.dealt is document.dealt
    assert [d.sharer for d in document.dealt] == list(document.sharers) and SPLIT[0].dealt == ()
    assert all(d.sharers == () and d.receiver == document.receiver for d in document.dealt)


def test_a_joined_message_lacks_what_one_part_lacks():
    one = Message([1], [2], [3], adapter_flops=[4.0], request_bytes=[5])
    both = Message.joined([one, Message([10], [20], [30], adapter_flops=[40.0])])
    assert (both.wire_bytes, both.cache_bytes, both.sharer_tokens) == ([11], [22], [33])
    assert both.adapter_flops == [44.0] and both.request_bytes is None and both.texts is None
    assert Message.joined([one]) is one


def test_rows_hold_the_size_of_each_message():
    documents = dealt(SPLIT)
    method = SeveralSharers([method_of("excerpt", "")] * 3, "row")
    _, state, _ = outcomes(method, documents)
    message = state.message
    assert _each(message, "wire_bytes", range(1, 2)) == [part.wire_bytes[1] for part in message.parts or []]
    assert _each(Message.none(3), "wire_bytes", range(1, 2)) is None

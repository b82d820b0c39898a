"""Messages as bytes: nothing changes under `native`, sizes are those of the bytes, rounding has its bound."""

from __future__ import annotations

import copy
import math
import statistics

import pytest
import torch
from safetensors.torch import save as save_tensors

import lcfbench
from lcfbench.analysis.plots.rate import plot, points_of
from lcfbench.controls.base import load_control
from lcfbench.controls.wrappers import without_sharer
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Batch, option_fields
from lcfbench.methods.create import create, method_class
from lcfbench.models.causal_lm import CausalLM, Outline
from lcfbench.models.finite import NotFiniteError
from lcfbench.models.timing import Clock
from lcfbench.models.wire import FORMS, pack, unpack
from lcfbench.registry import method_names
from tests.helpers import (
    SHARED,
    SPLIT,
    invoke,
    made_method,
    manifest_of,
    random_codec,
    random_dense,
    random_draft,
    random_prefix,
    random_xkv,
    rows,
    run_recipe,
    save,
    tiny_pair,
)

CASES = [
    ("t2t", None, SPLIT, {}),
    ("excerpt", None, SPLIT, {}),
    ("answer_letter", None, SHARED, {}),
    ("c2c", "c2c", SHARED, {}),
    ("c2c", "c2c", SHARED, {"token_alignment": "remap"}),
    ("lcf", "lcf", SHARED, {}),
    ("lcf", "lcf", SHARED, {"token_alignment": "remap"}),
    ("lcf", "lcfx", SPLIT, {}),
    ("prefix", "prefix", SPLIT, {}),
    ("dense", "dense", SHARED, {}),
    ("dense", "dense", SPLIT, {}),
    ("dense", "dense", SPLIT, {"form": "linear", "rank": 8}),
    ("dense", "dense", SHARED, {"form": "linear", "rank": 8}),
    ("hub", "codec", SPLIT, {}),
    ("hub", "codec", SHARED, {}),
    ("xkv", "xkv", SPLIT, {}),
    ("xkv", "xkv", SHARED, {}),
    ("draft_kv", "draft_kv", SPLIT, {}),
    ("draft_kv", "draft_kv", SHARED, {}),
    ("kvcomm", None, SPLIT, {}),
    ("kvcomm", None, SPLIT, {"layers": "0,2"}),
    ("latentmas", None, SPLIT, {"steps": "2"}),
    ("activation", None, SPLIT, {}),
    ("cacheback", None, SPLIT, {}),
    ("cacheback", None, SPLIT, {"selector": "h2o", "budget": "5"}),
    ("sde", None, SPLIT, {"budget": "6"}),
]
RANDOM = {
    "dense": random_dense,
    "prefix": random_prefix,
    "draft_kv": random_draft,
    "xkv": random_xkv,
    "codec": random_codec,
}
NAMES = [
    "-".join([n, k or "", "split" if d is SPLIT else "shared", *map(str, o.values())]) for n, k, d, o in CASES
]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def ends():
    return tiny_pair()


def made(ends, name, kind, options):
    if name in ("kvcomm", "latentmas", "activation", "cacheback", "sde"):
        return create(name, ends[0], ends[0], options=options)
    if kind in RANDOM:
        return create(name, *ends, RANDOM[kind](ends, **options))
    return made_method(name, kind, ends, **options)


def test_every_method_that_sends_is_among_the_cases():
    """identical is lcf or c2c of one model."""
    sending = {name for name in method_names() if method_class(name).sends}
    assert sending - {"identical"} == {name for name, *_ in CASES}


def asked(method, documents, wire, senders=None):
    """Log-likelihoods of every document's choices, message sizes, packets."""
    batch = Batch(documents, senders or documents, Clock(), wire)
    state = method.respond(batch)
    outcomes = [[ll for step in o.loglikelihoods for ll, _ in step] for o in answer(state, batch)[0]]
    return outcomes, state.message


@pytest.mark.parametrize(("name", "kind", "documents", "options"), CASES, ids=NAMES)
def test_native_changes_no_bit(ends, name, kind, documents, options):
    """Own messages and those of others; sizes are the bytes', and a document's do not depend on its batch."""
    method = made(ends, name, kind, options)
    for senders in (documents, [*documents[1:], documents[0]]):
        without, _ = asked(method, documents, None, senders)
        crossed, message = asked(method, documents, "native", senders)
        assert crossed == without
        assert message.wire_bytes == [len(data) for data in message.packets]
        assert all(message.packets)
        for i, (document, sender) in enumerate(zip(documents, senders, strict=True)):
            alone = asked(method, [document], "native", [sender])[1]
            assert alone.wire_bytes == message.wire_bytes[i : i + 1]


def without_weights(lm):
    """The model as it is opened where its weights stay on the disk."""
    found = Outline(lm.name, copy.deepcopy(lm.model).to("meta"), lm.tokenizer, lm.revision)
    found.devices = list(lm.devices)
    return found


@pytest.mark.parametrize("form", ["native", "fp8", "int8", "int4"])
@pytest.mark.parametrize(("name", "kind", "documents", "options"), CASES, ids=NAMES)
def test_what_crossed_is_all_that_the_receiver_needs(ends, name, kind, documents, options, form):
    """From stored bytes a method answers the same to the bit, beside a sharer without weights."""
    method = made(ends, name, kind, options)
    assert isinstance(method.sharer, CausalLM)
    bare = ends[0], ends[0] if method.sharer is ends[0] else without_weights(ends[1])
    own = {f.name: str(getattr(method, f.name)) for f in option_fields(type(method))}
    there = create(name, *bare, method.adapter, own)
    assert there.options() == method.options()
    for senders in (documents, [*documents[1:], documents[0]]):
        crossed, message = asked(method, documents, form, senders)
        batch = Batch(documents, senders, Clock(), form, stored=dict(enumerate(message.packets)))
        state = without_sharer(there).respond(batch)
        again = [[ll for step in o.loglikelihoods for ll, _ in step] for o in answer(state, batch)[0]]
        assert again == crossed
        assert state.message.packets == message.packets
        assert state.message.wire_bytes == message.wire_bytes
        if method.sends_text:
            assert state.message.texts == message.texts


@pytest.mark.parametrize("control", ["plumbing", "equal-text", "noise", "zero", "self"])
@pytest.mark.parametrize("name", ["t2t", "kvcomm", "excerpt"])
def test_controls_cross_as_bytes_too(ends, name, control):
    """Nothing changes under native, and a control's message can be read again."""
    inner = create(name, ends[0], ends[1 if name == "t2t" else 0])
    method = load_control(control).wrap(inner, 0)
    if load_control(control).lacks(type(inner)):
        pytest.skip("means nothing for it")
    without, _ = asked(method, SPLIT, None)
    crossed, message = asked(method, SPLIT, "native")
    assert crossed == without
    assert message.wire_bytes == [len(data) for data in message.packets]
    assert all(message.packets)
    batch = Batch(SPLIT, SPLIT, Clock(), "native", stored=dict(enumerate(message.packets)))
    state = without_sharer(method).respond(batch)
    assert [[ll for s in o.loglikelihoods for ll, _ in s] for o in answer(state, batch)[0]] == crossed


def test_plumbing_in_a_coarse_form_is_measured_and_does_not_stop(ends):
    method = load_control("plumbing").wrap(create("kvcomm", ends[0], ends[0]), 0)
    exact, whole = asked(method, SPLIT, "native")
    coarse, small = asked(method, SPLIT, "int4")
    assert coarse != exact and all(math.isfinite(ll) for row in coarse for ll in row)
    assert all(a < b / 4 for a, b in zip(small.wire_bytes, whole.wire_bytes, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "kind", "documents", "options"), CASES[3:], ids=NAMES[3:])
def test_rounded_messages_are_read(ends, name, kind, documents, options, form):
    """What is answered from is what was read: coarse forms change the answers, and are smaller."""
    method = made(ends, name, kind, options)
    without, _ = asked(method, documents, None)
    crossed, message = asked(method, documents, form)
    native = asked(method, documents, "native")[1]
    assert all(math.isfinite(ll) for row in crossed for ll in row)
    assert (crossed == without) == (form == "native")
    for data, whole in zip(message.packets, native.packets, strict=True):
        assert unpack(data).keys() == unpack(whole).keys()
        for part, x in unpack(whole).items():
            read = unpack(data)[part]
            assert read.shape == x.shape
            if x.is_floating_point():
                assert (read - x).abs().max() <= x.abs().max() * {"native": 0, "bf16": 2**-8}.get(
                    form, 1 / 13
                )


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize(("form", "levels"), [("int8", 127), ("int4", 7)])
def test_error_bound(form, levels, tokens):
    """No number is further from the true one than half a step of its scale."""
    torch.manual_seed(0)
    x = torch.randn(3, tokens, 7) * torch.rand(3, 1, 7) * 9  # 105 or 840 numbers: an odd count too
    read = unpack(pack({"keys": x}, form))["keys"]
    over = 1 if tokens >= 16 else (1, 2)
    step = x.abs().amax(over, keepdim=True) / levels
    assert read.shape == x.shape and read.dtype == torch.float32
    assert bool(((read - x).abs() <= step * 0.5001).all())
    assert bool(((read / step).round() - read / step).abs().max() < 1e-3)


def test_sizes_are_of_the_numbers_and_scales():
    """Beside the header a file holds the numbers in their width, and a scale a layer and channel."""
    x = torch.randn(4, 64, 32)
    sizes = {"native": 4, "bf16": 2, "fp8": 1, "int8": 1, "int4": 0.5}
    for form, width in sizes.items():
        data = pack({"keys": x}, form)
        body = len(data) - 8 - int.from_bytes(data[:8], "little")
        scales = 0 if form in ("native", "bf16") else 4 * 4 * 32
        assert body == x.numel() * width + scales


def test_round_trip_keeps_every_kind_of_number():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.tensor([[[0.0, -0.0, float("nan"), float("inf")]]], dtype=dtype)
        read = unpack(pack({"keys": x, "at": torch.tensor([3, 1])}, "native"))
        assert read["keys"].dtype == dtype and read["at"].tolist() == [3, 1]
        same = torch.int32 if dtype is torch.float32 else torch.int16
        assert torch.equal(read["keys"].view(same), x.view(same))
    assert unpack(pack({"keys": torch.zeros(2, 20, 3)}, "int4"))["keys"].count_nonzero() == 0


@pytest.mark.parametrize("form", ["fp8", "int8", "int4"])
def test_numbers_that_are_not_finite_have_no_scale(form):
    with pytest.raises(NotFiniteError, match=f"keys of a message are not finite, and {form}"):
        pack({"keys": torch.tensor([[[1.0, float("inf")]]])}, form)


CUT = save_tensors({"keys": torch.ones(3)})[:-2]


@pytest.mark.parametrize("data", [b"", b"12345678", CUT, b"\x02\0\0\0\0\0\0\0{}x", b"\xff" * 40])
def test_damaged_messages(data):
    with pytest.raises(UserError, match="a message cannot be read"):
        unpack(data)


def test_an_unknown_form():
    with pytest.raises(UserError, match="wire"):
        Recipe.merge(None, {"wire": "int3"})
    assert Recipe.merge(None, {"wire": "native,int4"}).wire == ["native", "int4"]


def test_a_run_for_each_form(one_model, tmp_path):
    """Only methods that send have one, and text has the one form; ids of runs that name none stay."""
    folder = tmp_path / "results"
    given = {"mode": "receiver,t2t,kvcomm", "control": ["matched", "deranged"]}
    plain = {path.name for path in run_recipe(one_model, folder, **given)}
    both = run_recipe(one_model, folder, wire=["native", "int8"], **given)
    receiver = [path for path in both if path.name.startswith("receiver")]
    assert {path.name for path in receiver} <= plain
    sent = [path for path in both if path not in receiver]
    assert len(sent) == 6 and not {path.name for path in sent} & plain
    by_form = {}
    for path in sent:
        identity = manifest_of(path)["identity"]
        by_form[identity["mode"], identity["control"], identity["wire"]] = rows(path)
        assert {row["wire"] for row in rows(path)} == {identity["wire"]}
    for control in given["control"]:
        [same] = [rows(folder / name) for name in plain if name.startswith(f"kvcomm-splitfacts-{control}")]
        native = by_form["kvcomm", control, "native"]
        assert [r["choices_loglikelihood"] for r in native] == [r["choices_loglikelihood"] for r in same]
        assert [r["score"] for r in native] == [r["score"] for r in same]
        assert all(a["message_bytes"] > b["message_bytes"] > 0 for a, b in zip(native, same, strict=True))
        small = by_form["kvcomm", control, "int8"]
        assert all(a["message_bytes"] < b["message_bytes"] for a, b in zip(small, native, strict=True))
        for row in by_form["t2t", control, "native"]:
            assert row["message_bytes"] == len(row["message_text"].encode())


@pytest.fixture(scope="module")
def one_model(tmp_path_factory):
    end = save(tmp_path_factory.mktemp("models") / "one")
    return f"{end}:{end}"


def test_worth_by_size(one_model, tmp_path, capsys, monkeypatch):
    """Each form stands at its median size with its own content; the same runs give the same bytes."""
    given = {"mode": "receiver,kvcomm,excerpt", "control": ["matched", "deranged"]}
    run_recipe(one_model, tmp_path / "results", wire=["native", "int8", "int4"], **given)
    summary = lcfbench.load_summary(tmp_path / "results")
    points = points_of(summary)
    assert [(p["mode"], p["label"]) for p in points] == [
        ("excerpt", "excerpt"),
        ("kvcomm", "kvcomm wire=int4"),
        ("kvcomm", "kvcomm wire=int8"),
        ("kvcomm", "kvcomm wire=native"),
    ]
    for point in points:
        folders = [tmp_path / "results" / point["run_id"]]
        folders += [tmp_path / "results" / r for r in deranged_of(summary, point)]
        own, other = ({r["doc_hash"]: r for r in rows(folder)} for folder in folders)
        assert point["content"] == pytest.approx(
            sum(own[d]["score"] - other[d]["score"] for d in own) / len(own)
        )
        assert point["message_bytes"] == statistics.median(r["message_bytes"] for r in own.values())
    code, out, _ = invoke(
        capsys, monkeypatch, "plot", "rate", tmp_path / "results", "--task", "splitfacts", "--out", tmp_path
    )
    assert code == 0 and out.split() == [str(tmp_path / f"rate.{kind}") for kind in ("png", "svg")]
    assert plot(points, tmp_path / "again")[1].read_bytes() == (tmp_path / "rate.svg").read_bytes()
    with pytest.raises(UserError, match="no run with a message"):
        points_of(summary[summary["mode"] == "receiver"])


def deranged_of(summary, point):
    same = (summary["label"] == point["label"]) & (summary["control"] == "deranged")
    return list(summary[same]["run_id"])

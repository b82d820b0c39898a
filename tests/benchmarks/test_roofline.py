"""Bytes and operations of a phase, against numbers made by hand and PyTorch's own counter of operations."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import (
    Limits,
    Work,
    floors,
    forward,
    fusion,
    head_params,
    main,
    measure,
    pairs,
    percent_of_limit,
    watch,
)
from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.variants import Variant
from lcfbench.latency.documents import unstopped
from lcfbench.latency.plan import Cell
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.timing import PHASES, Clock
from lcfbench.tasks.document import NOTE, Document, View
from tests import helpers

FAMILIES = ["llama", "qwen3", "gemma3"]


@pytest.fixture(autouse=True)
def quiet():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def asked(shared: bool = True, answer_tokens: int = 5) -> Document:
    mine, theirs = (
        View("The orange box is in Seoul. " * 4),
        View("The key of Kafi is in the orange box. " * 3),
    )
    theirs = mine if shared else theirs
    noted = View(f"{NOTE}\n{mine.user}")
    return Document(
        "bench",
        "1",
        mine,
        theirs,
        mine,
        theirs,
        noted,
        "generate",
        "",
        shared=shared,
        chat=False,
        max_new_tokens=answer_tokens,
    )


def square(lm, new: int, past: int, logits: int) -> float:
    """Operations as they are really run.

    Attention is a full rectangle, of which half is masked away. Without logits the last layer projects its
    queries, keys and values, and no more.
    """
    head = head_params(lm)
    body, attention = lm.matmul_params - head, lm.attention_flops(new, past=past, tokens=new)
    if not logits:
        body -= of_last(lm) - of_last(lm, "q_proj") - of_last(lm, "k_proj") - of_last(lm, "v_proj")
        attention *= 1 - 1 / lm.geometry.layers
    return 2 * body * new + 2 * head * logits + attention


def of_last(lm, name: str = "") -> int:
    """Parameters of the last layer, or of one of its projections."""
    layer = lm.model.get_decoder().layers[-1]
    return sum(p.numel() for p in (getattr(layer.self_attn, name) if name else layer).parameters())


def test_a_forward_by_hand():
    end = helpers.causal_lm(
        layers=3, heads=2, dim=8, vocabulary=400
    )  # hidden 32, feed-forward 48, 4 query heads, tied
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32  # Q, K and V, O, feed-forward, norms
    body, head = 3 * layer + 32, 400 * 32
    work = forward(end, "decode", new=5, past=7, logits=1)
    # weights, 5 embedding rows, K and V of 2·8 numbers in 3 layers for 7 entries read and 5 written,
    # logits; 4 bytes each
    assert work.bytes == 4 * (body + head + 5 * 32 + 2 * 16 * 3 * (7 + 5) + 400)
    assert work.flops == 2 * body * 5 + 2 * head + 4 * 3 * 4 * 8 * (5 * 7 + 15)
    without = forward(end, "prefill", new=5, past=7, logits=0)
    # the last layer's K and V alone
    last = layer - 2 * 32 * 16
    assert work.bytes - without.bytes == 4 * (head + 400 + last)
    assert work.flops - without.flops == 2 * head + 2 * last * 5 + 4 * 4 * 8 * (5 * 7 + 15)


def test_an_untied_head_is_counted_as_a_tied_one_is():
    end = helpers.causal_lm(family="qwen3")
    assert not end.model.config.tie_word_embeddings
    work = [forward(end, "prefill", new=4, past=0, logits=n) for n in (1, 2)]
    assert work[1].flops - work[0].flops == 2 * end.model.get_output_embeddings().weight.numel()
    table = end.model.get_input_embeddings().weight.numel()
    weights = sum(p.numel() for p in end.model.parameters())
    # neither table nor head are in a forward without logits
    assert forward(end, "prefill", new=4, past=0, logits=0).bytes < 4 * (weights - 2 * table) * 1.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("new", "past", "logits"), [(40, 0, 0), (24, 0, 1), (1, 30, 1), (6, 9, 2)])
def test_operations_are_those_pytorch_counts(family, new, past, logits):
    end = helpers.causal_lm(family=family, attention="eager", window=64)
    cache = None
    if past:
        cache = end.model(torch.randint(5, 300, (1, past))).past_key_values
    with FlopCounterMode(display=False) as counter:
        ids = torch.randint(5, 300, (1, new))
        if logits:
            end.model(ids, past_key_values=cache, logits_to_keep=logits)
        else:
            end.run(ids, torch.ones_like(ids), None, 0, entries=True)
    assert square(end, new, past, logits) == pytest.approx(
        counter.get_total_flops(), rel=0.03
    )  # norms are no matmuls
    unneeded = end.attention_flops(1, past=new * (new - 1) / 2)  # masked away
    if not logits:
        unneeded = unneeded * (1 - 1 / end.geometry.layers) + 2 * of_last(end, "q_proj") * new
    assert forward(end, "prefill", new, past, logits).flops == pytest.approx(
        square(end, new, past, logits) - unneeded
    )


@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (9, 0), (3, 5), (6, 20), (1, 6)])
def test_pairs_are_those_a_mask_lets_through(new, past, window):
    key, query = torch.arange(past + new), torch.arange(past, past + new)[:, None]
    see = (key <= query) & (key > query - (window or 10**6))
    assert pairs(new, past, window) == int(see.sum())


# the counter knows only the form that makes a new tensor
IN_PLACE = {torch.ops.aten.baddbmm_: lambda z, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}


class Counting(Clock):
    """Counts the operations of each phase with PyTorch's own counter."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = dict.fromkeys(PHASES, 0)

    @contextmanager
    def __call__(self, phase):
        with super().__call__(phase), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            yield
        self.flops[phase] += counter.get_total_flops()


@pytest.mark.parametrize(
    ("mode", "kind", "shared"),
    [
        ("receiver", None, True),
        ("t2t", None, False),
        ("lcf", "lcf", True),
        ("lcf", "lcfx", False),
        ("c2c", "c2c", True),
        ("dense", "dense", False),
        ("prefix", "prefix", False),
    ],
)
def test_every_phase_is_counted_where_it_runs(mode, kind, shared):
    ends = (
        helpers.causal_lm(attention="eager", layers=4),
        helpers.causal_lm("tiny-sharer", family="gemma3", heads=1, dim=16, window=64, attention="eager"),
    )
    adapter = None
    if kind:
        torch.manual_seed(0)
        options = {
            "lcf": {"width": 32},
            "lcfx": {"width": 32},
            "c2c": {"hidden": 16},
            "dense": {"residual": 8},
            "prefix": {"slots": 4, "width": 32},
        }[kind]
        with torch.inference_mode(False):
            adapter = (
                build(pair_config(kind, *((e.name, e.geometry) for e in ends), options=options))
                .requires_grad_(False)
                .eval()
            )
            adapter.gate_logit.fill_(1.0)
    method, document = create(mode, *ends, adapter, {"budget": "6"} if mode == "t2t" else {}), asked(shared)
    seen, clock = watch(method, document), Counting()
    with unstopped(method):
        batch = Batch([document], [document], clock)
        written = answer(method.respond(batch), batch)[1]
    assert written == [5] == [seen.tokens["answer"]]
    for phase in ("sharer", "message", "prefill", "decode"):
        mine = sum(square(f.lm, f.new, f.past, f.logits) for f in seen.forwards if f.phase == phase)
        assert mine == pytest.approx(clock.flops[phase], rel=0.03), phase
    fused = sum(w.flops for w in seen.work if w.phase == "fuse")
    assert (fused > 0) == (clock.flops["fuse"] > 0) == bool(kind)
    if kind:
        assert 0.85 * clock.flops["fuse"] <= fused <= 1.05 * clock.flops["fuse"], (fused, clock.flops["fuse"])
    assert not hasattr(ends[0].model.get_decoder(), "flops") and "flops" not in vars(adapter or object)
    assert (
        not ends[0].model.get_decoder()._forward_pre_hooks
        and not ends[0].model.get_output_embeddings()._forward_hooks
    )


def test_what_is_read_is_what_was_asked_for():
    ends = helpers.causal_lm(), helpers.causal_lm("tiny-sharer", family="gemma3", heads=1, dim=16)
    seen = watch(create("t2t", *ends, options={"budget": "6"}), asked(shared=False))
    of = lambda phase: [(f.new, f.past) for f in seen.forwards if f.phase == phase]  # noqa: E731
    [(read, _)] = of("sharer")
    assert (
        of("message") == [(1, read + i) for i in range(6)]
        and seen.tokens["note"] == 6
        and seen.tokens["sharer"] == read + 1 + 6
    )
    [(prompt, _)] = of("prefill")
    assert seen.tokens["answering"] == prompt + 1 and of("decode") == [(1, prompt + i) for i in range(5)]
    assert [f.by_first for f in seen.forwards if f.phase == "decode"] == [True, False, False, False, False]
    assert all(f.logits == (f.phase in {"message", "decode"}) for f in seen.forwards)


def test_a_fusion_by_hand():
    ends = helpers.causal_lm(layers=2), helpers.causal_lm(layers=2)
    adapter = (
        build(pair_config("lcf", *((e.name, e.geometry) for e in ends), options={"width": 8}))
        .requires_grad_(False)
        .eval()
    )
    adapter.gate_logit.fill_(1.0)
    seen = watch(create("lcf", *ends, adapter), asked())
    n = seen.tokens["answering"] - 1
    [work] = [w for w in seen.work if w.phase == "fuse"]
    entries = 2 * 2 * 16 * n * 4  # K and V, 2 layers, 2 heads of 8, fp32
    assert (
        work.bytes == 4 * adapter.params + 2 * 2 * 16 * seen.tokens["sharer"] * 4 + 2 * entries
    )  # weights; sharer's; own in and out
    assert work.flops == 2 * adapter.params * n
    assert work == fusion(
        adapter, 2 * 2 * 16 * seen.tokens["sharer"] * 4, 2 * entries, 2.0 * adapter.params * n
    )


def test_the_floor_is_the_slower_of_memory_and_arithmetic():
    limits = Limits(bytes_per_s=1e9, flops_per_s=1e10, ways={})
    work = [Work("prefill", 1e6, 1e8), Work("decode", 5e6, 1e6), Work("decode", 5e6, 1e6, by_first=False)]
    found = floors(work, limits)
    assert found["prefill"] == {"bytes": 1e6, "flops": 1e8, "ms": 10, "bound": "compute"}
    assert found["decode"] == {"bytes": 1e7, "flops": 2e6, "ms": 10, "bound": "memory"}
    assert (found["ttft"]["ms"], found["ttea"]["ms"]) == (15, 20)


def test_the_machine_is_measured_by_its_best_way():
    limits = measure(torch.device("cpu"), torch.float32, [(8, 16, 32)], buffer=1 << 20)
    reads = {k: v for k, v in limits.ways.items() if k.startswith("read")}
    assert len(reads) == 5 and "linear 8×16×32" in limits.ways
    assert limits.bytes_per_s == max(reads.values()) > 1e8
    assert limits.flops_per_s == max(v for k, v in limits.ways.items() if k not in reads) > 1e8
    better = limits.best(Limits(1e15, 1.0, {"read: sum": 1e15}))
    assert better.bytes_per_s == better.ways["read: sum"] == 1e15 and better.flops_per_s == limits.flops_per_s


def test_the_share_of_the_limit_is_floor_over_time():
    ends = helpers.causal_lm(), helpers.causal_lm("tiny-sharer", family="gemma3", heads=1, dim=16)
    cell = Cell(Variant("t2t"), 6, create("t2t", *ends, options={"budget": "6"}), asked(shared=False))
    found = percent_of_limit(cell, Limits(1e10, 1e11, {}), repeats=2)
    phases = ("sharer", "message", "prefill", "decode")
    assert set(found) == {*phases, "ttft", "ttea"}
    assert sum(found[p]["bytes"] for p in phases) == found["ttea"]["bytes"] >= found["ttft"]["bytes"]
    for entry in found.values():
        assert (
            entry["percent"] == pytest.approx(100 * entry["ms"] / entry["took_ms"], rel=1e-3)
            and entry["ms"] > 0
        )


@pytest.mark.real
def test_an_answer_of_the_embedded_pair_moves_all_weights_a_token(capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["roofline", "--answer-tokens", "3", "--prompt-tokens", "64", "--repeats", "2"]
    )
    main()
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    by_phase = {each["case"].split(", ")[1]: each for each in found["results"]}
    # 134,515,008 parameters, of which 28,311,552 are the head: a token of the answer moves all of them
    size = {"torch.bfloat16": 2, "torch.float16": 2, "torch.float32": 4}[found["dtype"]]
    decode, least = by_phase["decode"], 3 * 134_515_008 * size
    assert least < decode["bytes"] < 1.1 * least and decode["bound"] == "memory"
    assert 0 < by_phase["ttea"]["percent"] < 150  # a noisy neighbour may leave while the method runs
    assert any(line.startswith("decode") and "% of the limit" in line for line in lines)

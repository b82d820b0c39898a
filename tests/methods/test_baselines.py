"""The baselines: identical, single, lora, the sharer's pick, its text at equal bytes, the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.roofline import PhaseClock
from lcfbench.adapters import select as shipped
from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config, read_config
from lcfbench.adapters.files import load, save
from lcfbench.adapters.select import pick_adapter
from lcfbench.analysis import tables
from lcfbench.analysis.plots import frontier
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats import mean_interval
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from lcfbench.evaluation import runner
from lcfbench.evaluation.answer import answer, target
from lcfbench.evaluation.recipe import Recipe
from lcfbench.evaluation.rows import Rows
from lcfbench.methods._note import cut_bytes
from lcfbench.methods.answer_letter import picked
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create, method_class
from lcfbench.methods.excerpt import own_text
from lcfbench.models.answering import answer_loss
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.registry import method_summaries
from lcfbench.results.writer import RunWriter
from lcfbench.tasks.document import Document
from lcfbench.tasks.task import Outcome
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.trainer import train
from tests import helpers
from tests.helpers import BASELINES as NEW
from tests.helpers import SHARED, SPLIT, Watcher, outcomes, same_bits
from tests.helpers import made_baseline as made
from tests.helpers import one_model_twice as alone
from tests.helpers import random_adapter as fused
from tests.helpers import random_lora as lora_adapter
from tests.helpers import two_models as two


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


CASES = [
    ("identical", "lcf", SHARED),
    ("identical", "lcfx", SPLIT),
    ("identical", "c2c", SHARED),
    ("single", "lcf", SHARED),
    ("single", "lcfx", SPLIT),
    ("single", "c2c", SHARED),
    ("single", "lcf", SPLIT),
    ("lora", "lora", SHARED),
    ("lora", "lora", SPLIT),
    ("answer_letter", None, SHARED),
    ("answer_letter", None, SPLIT),
    ("excerpt", None, SPLIT),
]
IDS = [f"{m}-{k or 'none'}-{d[0].task}" for m, k, d in CASES]


def test_every_new_method_is_covered_and_listed():
    assert {m for m, _, _ in CASES} == set(NEW)
    assert all(
        text.startswith(f"{name}: ") and len(text) < 160
        for name, text in method_summaries().items()
        if name in NEW
    )


@torch.no_grad()
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("name", "kind", "documents"), CASES, ids=IDS)
def test_batch_1_equals_batch_n(name, kind, documents, chat):
    method = made(name, kind, chat=chat)
    together, state, _ = outcomes(method, documents)
    for i, d in enumerate(documents):
        by_itself, one, _ = outcomes(method, [d])
        assert together[i] == pytest.approx(by_itself[0], abs=5e-4)
        assert state.message.wire_bytes[i] == one.message.wire_bytes[0]
    assert (
        all(n > 0 for n in state.message.wire_bytes) is method.sends
        and any(state.message.wire_bytes) is method.sends
    )


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind", "documents"), CASES, ids=IDS)
def test_sdpa_equals_eager(name, kind, documents):
    a, b = (outcomes(made(name, kind, attention), documents)[0] for attention in ("sdpa", "eager"))
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


# -- identical and single --------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("kind", "documents"), [("lcf", SHARED), ("lcfx", SPLIT), ("c2c", SHARED)])
def test_identical_is_its_kinds_own_method_with_one_model_on_both_sides(kind, documents):
    lms = alone()
    adapter = fused(kind, lms)
    same, _, _ = outcomes(create("identical", *lms, adapter), documents)
    assert same == outcomes(create("c2c" if kind == "c2c" else "lcf", *lms, adapter), documents)[0]
    # whatever stands in the sharer's place is not asked
    assert same == outcomes(create("identical", lms[0], two()[1], adapter), documents)[0]


@torch.no_grad()
@pytest.mark.parametrize("alignment", ["span", "remap", "same"])
@pytest.mark.parametrize("kind", ["lcf", "c2c"])
def test_single_is_identical_where_both_views_are_equal(kind, alignment):
    lms = alone(chat=True)
    adapter = fused(kind, lms, token_alignment=alignment)
    got, state, _ = outcomes(create("single", *lms, adapter), SHARED)
    for a, b in zip(got, outcomes(create("identical", *lms, adapter), SHARED)[0], strict=True):
        assert a == pytest.approx(b, abs=1e-5)  # it reads once, one token less
    assert got != outcomes(create("receiver", *lms), SHARED)[0]
    assert not any(state.message.wire_bytes) and not any(state.message.sharer_tokens)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "documents"), [("lcf", SPLIT), ("lcfx", SPLIT), ("c2c", SPLIT)])
def test_single_never_sees_the_sharers_view(kind, documents):
    lms = alone()
    method = create("single", *lms, fused(kind, lms))
    method.check(documents[0])
    other = [replace(d, sharer=SHARED[0].sharer) for d in documents]
    assert outcomes(method, other)[0] == outcomes(method, documents)[0]
    assert outcomes(method, documents, documents[1:] + documents[:1])[0] == outcomes(method, documents)[0]


def test_single_reads_the_prompt_once():
    lms = alone()
    method = create("single", *lms, fused("lcf", lms))
    calls = []
    decoder = lms[0].model.get_decoder()
    handle = decoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        method.respond(Batch(SHARED, SHARED, Clock()))
    handle.remove()
    assert len(calls) == 1


@torch.no_grad()
def test_singles_adapter_is_in_its_rows_work():
    from types import SimpleNamespace

    lms = alone()
    adapter = fused("lcf", lms)
    task = SimpleNamespace(score=lambda *_: {"acc": 1.0}, metric=lambda _: "acc")

    def rows(method):
        _, state, _ = outcomes(method, SHARED)
        outcome = Outcome(text="", loglikelihoods=[])
        made = Rows(task, method)
        return state, [made.row(d, state, outcome, 0, range(i, i + 1))["flops"] for i, d in enumerate(SHARED)]

    state, work = rows(create("single", *lms, adapter))
    plain_state, plain_work = rows(create("receiver", *lms))
    assert plain_state.message.adapter_flops is None and all(n > 0 for n in state.message.adapter_flops)
    assert work == [a + b for a, b in zip(plain_work, state.message.adapter_flops, strict=True)]


@pytest.mark.parametrize("kind", ["lcf", "lcfx", "c2c"])
@pytest.mark.parametrize("name", ["identical", "single"])
def test_every_parameter_is_alive(name, kind):
    documents = SPLIT if kind == "lcfx" else SHARED
    lms = alone()
    adapter = fused(kind, lms).requires_grad_(True).train()
    adapter.gate_mode = "soft"
    method = create(name, *lms, adapter)
    method.prepare(documents, print)
    loss_of(method, documents).backward()
    assert not [n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_single_is_prepared_on_the_receivers_own_view():
    lms = alone()
    means = {}
    for name, documents in (
        ("single", SPLIT),
        ("identical", SPLIT),
        ("by hand", [replace(d, sharer=d.receiver) for d in SPLIT]),
    ):
        adapter = fused("lcfx", lms, standardise=True).requires_grad_(True)
        create("identical" if name == "by hand" else name, *lms, adapter).prepare(documents, print)
        means[name] = adapter.sharer_mean
    assert not torch.allclose(means["single"], means["identical"], atol=1e-3)
    assert (means["single"] - means["by hand"]).abs().mean() < (
        means["single"] - means["identical"]
    ).abs().mean()


def test_position_wise_adapters_are_refused_on_different_contexts():
    lms = alone()
    for kind in ("lcf", "c2c"):
        with pytest.raises(UserError, match=f"{kind} adapter fuses token by token"):
            create("identical", *lms, fused(kind, lms)).check(SPLIT[0])


# -- lora ------------------------------------------------------------------------------------------


def loss_of(method, documents: list[Document]) -> Tensor:
    state = method.respond(Batch(documents, documents, Clock()))
    tokenizer = state.lm.tokenizer
    pairs = [
        target(d, p, tokenizer, tokenizer.eos_token_id) for d, p in zip(documents, state.prompts, strict=True)
    ]
    return answer_loss(state, [ids for ids, _ in pairs], [flags for _, flags in pairs])[0]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
def test_an_untrained_lora_is_the_receiver_bit_for_bit(family, documents):
    lms = alone(family=family)
    base, plain, _ = outcomes(create("receiver", *lms), documents)
    got, state, _ = outcomes(create("lora", *lms, lora_adapter(lms[0], still=True)), documents)
    assert (
        got == base
        and same_bits(state.kv.keys, plain.kv.keys)
        and same_bits(state.kv.values, plain.kv.values)
    )


def test_loras_learn_side_by_side_and_leave_the_receiver_alone():
    lms = alone()
    with torch.no_grad():
        before = outcomes(create("receiver", *lms), SHARED)[0]
    frozen = {n: p.clone() for n, p in lms[0].model.named_parameters()}
    adapters = [lora_adapter(lms[0], still=True, rank=r) for r in (2, 4)]
    methods = [create("lora", *lms, a) for a in adapters]
    optimisers = [torch.optim.AdamW(a.parameters(), lr=1e-2, weight_decay=0.0) for a in adapters]
    losses: list[list[float]] = [[], []]
    for _ in range(4):
        for i, (method, optimiser) in enumerate(zip(methods, optimisers, strict=True)):
            loss = loss_of(method, SHARED)
            loss.backward()
            losses[i].append(float(loss.detach()))
            optimiser.step()
            optimiser.zero_grad()
        with torch.inference_mode():  # a dev evaluation between steps
            outcomes(methods[0], SHARED)
    assert (
        losses[0][0] == losses[1][0]
        and all(each[-1] < each[0] - 0.1 for each in losses)
        and losses[0][1:] != losses[1][1:]
    )
    with torch.no_grad():
        assert outcomes(create("receiver", *lms), SHARED)[0] == before
    now = dict(lms[0].model.named_parameters())
    assert list(now) == list(frozen) and all(
        torch.equal(now[n], p) and not now[n].requires_grad for n, p in frozen.items()
    )
    shared = {p.data_ptr() for p in methods[0].tuned.model.parameters()}
    assert shared == {
        p.data_ptr() for p in now.values()
    }  # the second tree of modules holds no weights of its own


def test_lora_lends_in_the_prefill_phase_and_only_what_changed(monkeypatch):
    lms = alone()
    adapter = lora_adapter(lms[0])
    method = create("lora", *lms, adapter)
    layer = method.layers["q_proj"][0]
    place, phases = method.place_weights, []
    clock = PhaseClock()
    monkeypatch.setattr(method, "place_weights", lambda: (phases.append(clock.phase), place()))
    with torch.no_grad():
        method.respond(Batch(SHARED, SHARED, clock))
        assert phases == ["prefill"]
        first = layer.lora_B["default"].weight
        place()
        assert layer.lora_B["default"].weight is first
        adapter.up["q_proj"].add_(1.0)
        place()
        assert torch.equal(layer.lora_B["default"].weight, adapter.up["q_proj"][0])
        assert layer.lora_B["default"].weight is not first
        adapter.load_state_dict({k: v * 2 for k, v in adapter.state_dict().items()})
        place()
        assert torch.equal(layer.lora_B["default"].weight, adapter.up["q_proj"][0])
    adapter.requires_grad_(True)
    place()
    assert layer.lora_B["default"].weight.requires_grad, "in training, gradients must flow"


def test_gradients_reach_every_lora_weight_and_are_those_of_peft():
    """Against PEFT used in the ordinary way: its own parameters, one whole forward."""
    from peft import LoraConfig, inject_adapter_in_model

    lms, twin = alone(), alone()[0]
    adapter = lora_adapter(lms[0], rank=3).requires_grad_(True)
    method = create("lora", *lms, adapter)
    loss = loss_of(method, SHARED[:1])
    loss.backward()
    targets = sorted(adapter.down)
    assert len(targets) == 7 and all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters()
    )

    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=targets), twin.model)
    own = {n: p for n, p in twin.model.named_parameters() if "lora_" in n}
    for n, p in own.items():
        layer, module, side = (
            int(n.split("layers.")[1].split(".")[0]),
            n.split(".lora_")[0].split(".")[-1],
            n.split("lora_")[1][0],
        )
        p.data.copy_((adapter.down if side == "A" else adapter.up)[module][layer])
    shown = prompt(twin, SHARED[0].receiver, SHARED[0])
    ids, _ = target(SHARED[0], shown, twin.tokenizer, None)
    logits = twin.model(torch.tensor([[*shown.ids, *ids]])).logits[0, len(shown.ids) - 1 : -1]
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(ids))
    theirs.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    for n, p in own.items():
        layer, module, side = (
            int(n.split("layers.")[1].split(".")[0]),
            n.split(".lora_")[0].split(".")[-1],
            n.split("lora_")[1][0],
        )
        mine = (adapter.down if side == "A" else adapter.up)[module].grad[layer]
        assert torch.allclose(mine, p.grad, atol=1e-5), n


def test_the_rank_comes_from_a_number_of_parameters():
    end = alone()[0]
    one = lora_adapter(end, rank=1).params
    for wanted, rank in ((1, 1), (3 * one, 3), (int(3.4 * one), 3), (int(3.6 * one), 4)):
        adapter = lora_adapter(end, params=wanted)
        assert (
            adapter.params == rank * one
            and adapter.config.options["rank"] == rank
            and "params" not in adapter.config.options
        )
    few = lora_adapter(end, targets="q_proj+v_proj", rank=2)
    assert sorted(few.down) == ["q_proj", "v_proj"] and few.params == 2 * 4 * ((32 + 32) + (32 + 16))


@torch.no_grad()
def test_a_lora_of_some_layers_changes_only_those():
    lms = alone()
    whole = pair_config(
        "lora", *2 * [(lms[0].name, lms[0].geometry)], layers=1, options={"targets": "v_proj"}
    )
    adapter = build(method_class("lora").configure(whole, *lms))
    for p in adapter.parameters():
        p.add_(0.1)
    adapter.requires_grad_(False)
    _, state, _ = outcomes(create("lora", *lms, adapter), SHARED)
    _, base, _ = outcomes(create("receiver", *lms), SHARED)
    assert torch.equal(state.kv.values[:3], base.kv.values[:3]) and not torch.equal(
        state.kv.values[3], base.kv.values[3]
    )


@torch.no_grad()
def test_a_saved_lora_says_the_same(tmp_path):
    lms = alone()
    adapter = lora_adapter(lms[0], params=3000)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(p.to(torch.bfloat16))
    before, _, _ = outcomes(create("lora", *lms, adapter), SHARED)
    save(adapter, tmp_path / "a", "")
    again = load(tmp_path / "a")
    assert outcomes(create("lora", *lms, again), SHARED)[0] == before
    assert (tmp_path / "a" / "adapter.safetensors").stat().st_size < 2 * adapter.params + 4000  # bf16
    assert (
        again.open_layers() == [0, 1, 2, 3]
        and again.wire_bytes(9, 9, 2) == 0
        and float(again.gate_logit.min()) > 0
    )
    with pytest.raises(UserError, match="no gates"):
        again.select([0])


def test_loras_mistakes_are_named(tmp_path):
    lms = alone()
    with pytest.raises(UserError, match=r"unknown lora target 'q_prj'.*q_proj"):
        lora_adapter(lms[0], targets="q_prj")
    with pytest.raises(UserError, match="depends on the receiver's modules"):
        build(pair_config("lora", *2 * [(lms[0].name, lms[0].geometry)]))
    with pytest.raises(UserError, match="shapes of this lora adapter makes no sense"):
        build(pair_config("lora", *2 * [(lms[0].name, lms[0].geometry)], options={"shapes": {"q_proj": [3]}}))
    wide = helpers.model(layers=4)
    wide.config.intermediate_size = 64
    other = CausalLM("wide", type(wide)(wide.config), helpers.tokenizer())
    with pytest.raises(UserError, match=r"was made for modules of .*\(48, 32\).*wide has .*\(64, 32\)"):
        create("lora", other, other, lora_adapter(lms[0]))


# -- notes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "plain", "Zürich 鍵は箱 🙂 é"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_text_is_cut_between_characters(text, end):
    for limit in range(1, 30):
        cut = cut_bytes(text, limit, end)
        assert len(cut.encode()) <= limit and (text.startswith(cut) if end == "first" else text.endswith(cut))
        longer = text[: len(cut) + 1] if end == "first" else text[-len(cut) - 1 :]
        assert cut == text or len(longer.encode()) > limit


@torch.no_grad()
def test_t2t_sends_no_more_than_its_bytes():
    lms = two()
    whole, cut = (create("t2t", *lms, None, {"budget": "12", "bytes": b}) for b in ("none", "7"))
    _, long, _ = outcomes(whole, SPLIT)
    _, short, _ = outcomes(cut, SPLIT)
    assert max(long.message.wire_bytes) > 7 >= max(short.message.wire_bytes)
    for a, b, p in zip(long.message.texts, short.message.texts, short.prompts, strict=True):
        assert a.startswith(b) and f"Notes: {b}".strip() in p.text and (a == b or a not in p.text)
    for none in ("-1", "0"):
        with pytest.raises(UserError, match=f"bytes={none}"):
            create("t2t", *lms, None, {"bytes": none})


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, "The key of Kafi is in the orange box."),
        ({"bytes": "11"}, "The key of"),
        ({"bytes": "11", "end": "last"}, "orange box."),
    ],
)
def test_an_excerpt_is_the_sharers_own_text(options, first):
    method = create("excerpt", *two(), None, options)
    _, state, _ = outcomes(method, SPLIT)
    assert state.message.texts[0] == first and state.message.wire_bytes[0] == len(first)
    assert f"Notes: {first} The brown box is in Toronto." in state.prompts[
        0
    ].text and state.message.sharer_tokens == [0, 0, 0]
    assert (
        outcomes(method, SPLIT, SPLIT[1:] + SPLIT[:1])[1].message.texts
        == state.message.texts[1:] + state.message.texts[:1]
    )
    assert method.roles == ("receiver",)  # no sharer is loaded for it


def test_an_excerpt_of_a_real_task_leaves_out_what_both_see():
    from lcfbench.tasks.task import load_task

    for d in load_task("splitfacts").documents(limit=5):
        text = own_text(d)
        assert (
            d.sharer.user == f"Notes: {text}\n" + d.sharer.user.split("\n", 1)[1] and "Question" not in text
        )
        assert d.noted.user.replace("<<note>>", text) == d.full.user


SPLITS = ("squad_split", "coqa_split", "hotpotqa_split", "musique_split", "twowiki_split")


def assert_only_the_sharers(name: str, **options) -> None:
    """An excerpt is the sharer's own text: no example, no instruction, no label, no question."""
    from lcfbench.tasks.task import load_task

    documents = load_task(name, options=options).documents(limit=4)
    assert documents
    for d in documents:
        text = own_text(d)
        start = text.split("\n")[0]
        assert (
            len(text) > 20 and text in d.sharer.user and start in d.full.user and start not in d.receiver.user
        )
        assert not text.startswith(("Notes:", "Answer")) and "Mia" not in text and "Question:" not in text
        if not options:
            before, _, rest = d.sharer.user.partition(text)
            assert (
                d.receiver.user.startswith(before.removesuffix("Notes: ")) and rest.strip() in d.receiver.user
            )


def invented(root: Path) -> None:
    from tests.helpers import coqa_rows as stories
    from tests.helpers import hotpot_row as hotpot
    from tests.helpers import keep_table as keep
    from tests.helpers import one_row_a_turn
    from tests.helpers import squad_rows as paragraphs
    from tests.split_rows import tables

    for (repo, config, split), table in tables().items():
        keep(root, repo, config, split, table)
    keep(root, "rajpurkar/squad", "plain_text", "validation", paragraphs(10))
    keep(root, "stanfordnlp/coqa", "turns", "validation", one_row_a_turn(stories()))
    keep(root, "hotpotqa/hotpot_qa", "distractor", "validation", [hotpot(i) for i in range(4)])


@pytest.mark.parametrize(
    "options", [{}, {"receiver_context": "none"}, {"sharer_question": "no"}], ids=["plain", "none", "blind"]
)
@pytest.mark.parametrize("name", SPLITS)
def test_an_excerpt_begins_with_the_sharers_half(name, options, tmp_path, monkeypatch):
    invented(tmp_path)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    assert_only_the_sharers(name, **options)


@pytest.mark.parametrize("name", SPLITS)
def test_an_excerpt_of_the_real_data_begins_with_the_sharers_half(name, mirror):
    from lcfbench.sources.datasets import look_table

    repo, config = {
        "squad_split": ("rajpurkar/squad", "plain_text"),
        "coqa_split": ("stanfordnlp/coqa", "turns"),
        "hotpotqa_split": ("hotpotqa/hotpot_qa", "distractor"),
        "musique_split": ("dgslibisey/MuSiQue", "default"),
        "twowiki_split": ("xanhho/2WikiMultihopQA", "default"),
    }[name]
    if not look_table(repo, config, "validation")[0]:
        pytest.skip(f"no {repo} in the mirror")
    assert_only_the_sharers(name)


@pytest.mark.parametrize(
    ("options", "match"), [({"bytes": "0"}, "bytes=0"), ({"end": "middle"}, "end=middle")]
)
def test_excerpts_mistakes_are_named(options, match):
    with pytest.raises(UserError, match=match):
        create("excerpt", *two(), None, options)
    with pytest.raises(UserError, match="shows both models the same text"):
        create("excerpt", *two()).check(SHARED[0])


@torch.no_grad()
def test_the_answer_sent_is_what_the_sharer_would_answer():
    lms = two()
    for documents in (SHARED, SPLIT):
        got, state, _ = outcomes(create("answer_letter", *lms), documents)
        batch = Batch(documents, documents, Clock())
        theirs, _ = answer(create("sharer", *lms).respond(batch), batch)
        for d, o, pick, p, n in zip(
            documents, theirs, state.message.texts, state.prompts, state.message.wire_bytes, strict=True
        ):
            assert pick == picked(d, [ll for ll, _ in o.loglikelihoods[0]]) and n == len(pick.encode())
            if not d.shared:
                assert pick == d.steps[0].choices[o.picks[0]].strip()
                assert p.text.startswith(f"Notes: {d.receiver.prefix or 'The answer is'} {pick}. The")
        deranged = outcomes(create("answer_letter", *lms), documents, documents[1:] + documents[:1])[
            1
        ].message.texts
        assert deranged == state.message.texts[1:] + state.message.texts[:1]


@torch.no_grad()
def test_a_letter_is_one_byte_in_a_sentence_of_the_receivers_own(mirror):
    from lcfbench.tasks.task import load_task

    [document, *_] = load_task("openbookqa").documents(scoring="letters", limit=3, receiver_chat=False)
    _, state, _ = outcomes(create("answer_letter", *two()), [document])
    pick = state.message.texts[0]
    assert (
        pick in "ABCD"
        and state.message.wire_bytes == [1]
        and state.prompts[0].text.startswith(f"The answer is {pick}.\n\nQuestion:")
    )
    with pytest.raises(UserError, match=r"in free text.*--scoring letters"):
        create("answer_letter", *two()).check(replace(document, steps=()))


def test_likelihood_is_a_character_only_where_that_is_the_metric():
    choices = SHARED[0].steps[0].choices
    assert choices == (" orange", " brown", " purple box")
    assert (
        picked(SHARED[0], [-5.9, -5.2, -6.0]) == "purple box"
        and picked(SPLIT[0], [-5.9, -5.2, -6.0]) == "brown"
    )


# -- choosing adapters, and whole runs -------------------------------------------------------------


def folder_of(place: Path, adapter, **training) -> Path:
    adapter.config = adapter.config.model_copy(update={"training": training})
    save(adapter, place, "")
    return place


def pick(mode: str, given: list[Path], pair=("tiny-a", "tiny-a"), shared: bool = False) -> str:
    return pick_adapter(
        given, method_class(mode).adapter_kinds, pair, shared=shared, mode=mode, task="t"
    ).name


def test_adapters_are_told_apart_by_the_method_that_trained_them(tmp_path, monkeypatch):
    same, different = alone(), two()
    places = [
        folder_of(tmp_path / "pair", fused("lcfx", different)),
        folder_of(tmp_path / "single", fused("lcfx", same), method="single"),
        folder_of(tmp_path / "old-same", fused("lcfx", same)),
        folder_of(tmp_path / "identical", fused("lcfx", same), method="identical"),
        folder_of(tmp_path / "lora", lora_adapter(same[0]), method="lora"),
        folder_of(tmp_path / "c2c", fused("c2c", same), method="identical"),
    ]
    wants = {"lcf": "pair", "single": "single", "identical": "identical", "lora": "lora"}
    for order in (places, places[::-1]):
        assert {
            mode: pick(mode, order, ("tiny-a", "tiny-b" if mode == "lcf" else "tiny-a")) for mode in wants
        } == wants
        assert pick("identical", order, shared=True) == "c2c"
    assert pick("identical", places[:3]) == "old-same"  # the kind decides where the config does not say
    with pytest.raises(
        UserError, match=r"for identical on t among those given: .*single \(lcfx, single of tiny-a:tiny-a\)"
    ):
        pick("identical", places[:2])
    with pytest.raises(UserError, match="for single on t among those given"):
        pick("single", places[2:])

    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert {
        mode: pick(mode, [], ("tiny-a", "tiny-b" if mode == "lcf" else "tiny-a")) for mode in wants
    } == wants
    assert pick("lcf", [], ("tiny-a", "tiny-a")) == "old-same"
    folder_of(tmp_path / "a-deranged", fused("lcfx", different), senders="deranged")
    assert pick("lcf", [], ("tiny-a", "tiny-b")) == "pair"
    with pytest.raises(UserError, match="train --mode single --pair x:x"):
        pick("single", [], ("x", "x"))


def test_trained_side_by_side_run_with_one_model_and_deranged_only_where_something_is_sent(tmp_path):
    receiver, absent = str(helpers.save(tmp_path / "receiver", layers=4)), str(tmp_path / "absent")
    Path(absent).mkdir()
    Path(absent, "config.json").write_text("{}")  # a name, and nothing that could be loaded
    training = TrainRecipe(
        adapters=["identical:width=8", "single:width=8", "lora:params=2000"],
        pair=f"{receiver}:{absent}",
        steps=3,
        batch_size=2,
        dev_documents=2,
        eval_every=3,
        lr=1e-2,
        dtype="float32",
        out=tmp_path / "trained",
    )
    watcher = Watcher()
    folders = train(training, watcher)
    assert [read_config(f).training["method"] for f in folders] == ["identical", "single", "lora"]
    curves = [set(read_config(f).training["dev"][-1]) - {"step", "loss"} for f in folders]
    assert curves == [
        {"splitfacts/matched", "splitfacts/deranged"},
        {"splitfacts/matched"},
        {"splitfacts/matched"},
    ]
    assert all(load(f).up_value.abs().sum() > 0 for f in folders[:2]) and all(
        p.abs().sum() > 0 for p in load(folders[2]).up.values()
    )
    recipe = Recipe(
        mode=["identical", "single", "lora", "excerpt"],
        pair=f"{receiver}:{absent}",
        limit=6,
        batch_size=4,
        dtype="float32",
        latency_documents=1,
        control=["matched", "deranged"],
        adapter=folders,
        out=tmp_path / "out",
    )
    runs = list(runner.run(recipe, watcher))
    manifests = {r: json.loads((tmp_path / "out" / r / "manifest.json").read_text()) for r in runs}
    got = sorted((m["identity"]["mode"], m["identity"]["control"], m["adapter"]) for m in manifests.values())
    sent = [
        (mode, control, a)
        for mode, a in (("excerpt", None), ("identical", "identical-width-8"))
        for control in ("deranged", "matched")
    ]
    assert got == sorted(
        [*sent, ("lora", "matched", "lora-params-2000"), ("single", "matched", "single-width-8")]
    )
    assert any("single, lora" in text and "no deranged run" in text for text in watcher.said) and all(
        "has no proof" in text for text in watcher.warned
    )
    for run_id, manifest in manifests.items():
        sends = manifest["identity"]["mode"] in ("identical", "excerpt")
        for row in helpers.rows(tmp_path / "out" / run_id, without=set()):
            assert (
                row["error"] is None
                and (row["message_bytes"] > 0) is sends
                and (row["message_from"] is not None) is sends
            )
            assert row["flops"] > 0 and (row["adapter_params"] > 0) is (
                manifest["identity"]["mode"] != "excerpt"
            )


# -- the routing oracle ----------------------------------------------------------------------------


def record(
    out: Path, mode: str, scores: dict[str, float], task: str = "t", dtype: str = "float32", **row
) -> None:
    names = {
        "mode": mode,
        "control": "matched",
        "task": task,
        "pair": "a:b",
        "receiver": "a",
        "scoring": "cloze",
        "seed": 0,
        "dtype": dtype,
    }
    writer = RunWriter.open(out, {**names, "options": {}}, {"chance": 0.25})
    for i, (name, score) in enumerate(scores.items()):
        writer.append(
            {"doc_hash": name, "doc_index": i, "score": score, "metric": "acc", "batch_size": 1, **row}
        )
    writer.finish()


def test_orf_is_the_larger_score_of_the_documents_both_answered(tmp_path):
    rng = np.random.default_rng(0)
    a, b = ({f"d{i}": float(x) for i, x in enumerate(rng.random(40) < 0.4)} for _ in range(2))
    b = {k: v for k, v in b.items() if k != "d3"}
    record(tmp_path, "receiver", a, ttft_ms=5.0, message_bytes=0)
    record(tmp_path, "sharer", b, message_bytes=0)
    record(tmp_path, "receiver", dict.fromkeys(a, 1.0), dtype="bfloat16")  # computed otherwise: not joined
    f1 = (
        {f"d{i}": float(x) for i, x in enumerate(rng.random(30))},
        {f"d{i}": float(x) for i, x in enumerate(rng.random(30))},
    )
    record(tmp_path, "receiver", f1[0], task="f1")
    record(tmp_path, "sharer", f1[1], task="f1")
    record(tmp_path, "receiver", a, task="lonely")
    summary = summarise(read_run_groups([tmp_path]).groups)
    orf = summary[summary["mode"] == "orf"].set_index("task")
    assert sorted(orf.index) == ["f1", "t"] and set(orf["control"]) == {"derived"}
    either = [max(a[k], b[k]) for k in b]
    expected = mean_interval(either)
    assert (orf.loc["t", "score"], orf.loc["t", "low"], orf.loc["t", "high"], orf.loc["t", "n"]) == expected
    assert orf.loc["t", "gain"] == pytest.approx(np.mean([max(a[k], b[k]) - a[k] for k in b]))
    assert orf.loc["f1", "score"] == pytest.approx(
        np.mean(np.maximum(list(f1[0].values()), list(f1[1].values())))
    )
    text = "\n".join(table.markdown() for table in tables.summary_tables(summary))
    assert (
        f"| orf | derived | 39 | {100 * expected.value:.1f} |" in text
        and "from the rows of receiver and sharer, not run" in text
    )
    told = [x for x in json.loads(tables.to_json(summary.to_dict("records"))) if x["mode"] == "orf"]
    assert len(told) == 2 and told[0]["ttft_ms"] is None and told[0]["message_bytes"] is None
    svg = frontier.plot(summary, tmp_path)[1].read_text()
    assert "orf" not in svg and "receiver" in svg

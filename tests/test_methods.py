"""Every method on tiny random pairs: shut gates, batching, attention kernels, message accounting, and kvcomm against plain concatenation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create, method_class
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import PHASES, Clock
from lcfbench.registry import method_names, method_summaries
from lcfbench.tasks.document import NOTE, Document, Step, View
from tests import tiny
from tests.drive import ROOT

COLOURS = (" orange", " brown", " purple box")


def shared(i: int, text: str) -> Document:
    view = View(f"Question: {text}", "Answer:")
    steps = (Step(COLOURS, (i % 3,)),)
    return Document(
        "shared",
        str(i),
        view,
        view,
        view,
        View(f"Background on: {text}"),
        view,
        "cloze",
        COLOURS[i % 3],
        steps,
    )


def split(i: int, mine: str, theirs: str) -> Document:
    ask = "\nQuestion: In which city is the key of Kafi?\nAnswer: The key of Kafi is in the"
    steps = (Step(COLOURS, (0,)), Step((" Seoul", " Toronto"), (1,), " {0} box. The {0} box is in"))
    a, b, both, noted = (
        View(f"Notes: {t}{ask}") for t in (mine, theirs, f"{theirs} {mine}", f"{NOTE} {mine}")
    )
    return Document(
        "split", str(i), a, b, both, b, noted, "cloze", "Toronto", steps, shared=False, chat=False
    )


SHARED = [
    shared(i, t)
    for i, t in enumerate(
        ["Which conducts heat? Zürich 鍵", "What is copper?", "The quick brown fox jumps over the lazy dog."]
    )
]
SPLIT = [
    split(
        0, "The brown box is in Toronto. The orange box is in Seoul.", "The key of Kafi is in the orange box."
    ),
    split(1, "The purple box is in Vienna.", "Zona works as a farmer. The key of Kafi is in the brown box."),
    split(2, "The brown box is in Seoul.", "The key."),
]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def pair(method: str = "lcf", attention: str = "sdpa", chat: bool = False) -> tuple[CausalLM, CausalLM]:
    receiver = tiny.endpoint("tiny-a", chat=chat, attention=attention, layers=4)
    if method == "kvcomm":
        return receiver, receiver
    return receiver, tiny.endpoint(
        "tiny-b",
        bos=True,
        chat=chat,
        attention=attention,
        family="gemma3",
        layers=3,
        heads=1,
        dim=16,
        vocabulary=330,
        seed=1,
    )


def fused(
    kind: str, ends: tuple[CausalLM, CausalLM], gate: float = 1.0, token_alignment: str = "span", **options
):
    receiver, sharer = ends
    torch.manual_seed(3)
    small = {"hidden": 24, "intermediate": 20} if kind == "c2c" else {"width": 8}
    names = ((receiver.name, receiver.geometry), (sharer.name, sharer.geometry))
    adapter = build(pair_config(kind, *names, token_alignment=token_alignment, options={**small, **options}))
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.3 * torch.randn_like(p))
        adapter.gate_logit.fill_(gate)
    adapter.requires_grad_(False)
    return adapter.eval()


CASES = [
    ("receiver", None, SHARED),
    ("sharer", None, SHARED),
    ("full_context", None, SPLIT),
    ("t2t", None, SHARED),
    ("t2t", None, SPLIT),
    ("kvcomm", None, SHARED),
    ("kvcomm", None, SPLIT),
    ("lcf", "lcf", SHARED),
    ("lcf", "lcfx", SPLIT),
    ("c2c", "c2c", SHARED),
]
ELSEWHERE = {
    "dense": "test_dense.py",
    "prefix": "test_prefix.py",
    **dict.fromkeys(("identical", "single", "lora", "answer_letter", "excerpt"), "test_baselines.py"),
}
IDS = [f"{m}-{k or 'none'}-{d[0].task}" for m, k, d in CASES]


def made(name: str, kind: str | None, ends: tuple[CausalLM, CausalLM], **options):
    return create(
        name, *ends, fused(kind, ends, **options) if kind else None, {"budget": "6"} if name == "t2t" else {}
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal as bits: 0.0 is not −0.0."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def outcomes(method, documents, senders=None):
    batch = Batch(documents, senders or documents, Clock())
    state = method.respond(batch)
    got, _ = answer(state, batch)
    batch.clock.total = batch.clock.total_ms()
    return [[ll for step in o.loglikelihoods for ll, _ in step] for o in got], state, batch


def test_every_method_is_covered_here():
    assert {m for m, _, _ in CASES} | set(ELSEWHERE) == set(method_names())
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in (ROOT / "tests" / file).read_text()
    assert all(text for text in method_summaries().values())


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("name", "kind", "documents"), CASES, ids=IDS)
def test_batch_1_equals_batch_n(name, kind, documents, chat):
    ends = pair(name, chat=chat)
    method = made(name, kind, ends)
    together, state, _ = outcomes(method, documents)
    for i, d in enumerate(documents):
        alone, single, _ = outcomes(method, [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert state.message.wire_bytes[i] == single.message.wire_bytes[0]
        assert state.message.sharer_tokens[i] == single.message.sharer_tokens[0]


@pytest.mark.parametrize(("name", "kind", "documents"), CASES, ids=IDS)
def test_sdpa_equals_eager(name, kind, documents):
    a, _, _ = outcomes(made(name, kind, pair(name)), documents)
    b, _, _ = outcomes(made(name, kind, pair(name, "eager")), documents)
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


@pytest.mark.parametrize("alignment", ["span", "remap"])
@pytest.mark.parametrize(
    ("name", "kind", "documents"),
    [c for c in CASES if c[1]],
    ids=[i for c, i in zip(CASES, IDS, strict=True) if c[1]],
)
def test_shut_gates_equal_the_receiver_alone_bit_for_bit(name, kind, documents, alignment):
    ends = pair(name)
    alone, base, _ = outcomes(made("receiver", None, ends), documents)
    shut = fused(kind, ends, gate=-1.0, token_alignment=alignment)
    dropped, _, _ = outcomes(create(name, *ends, shut), documents)
    assert dropped == alone
    # and with the layers computed all the same: half-open layers keep the shut half's bits
    if (
        alignment == "remap"
    ):  # read turn by turn: a later turn sees the edited earlier one, so the shut half moves too
        return
    shut.gate_logit[0, 0] = 1.0
    _, state, _ = outcomes(create(name, *ends, shut), documents)
    assert same_bits(state.kv.values, base.kv.values)
    assert same_bits(state.kv.keys[1:], base.kv.keys[1:])
    assert not torch.equal(state.kv.keys[0], base.kv.keys[0])


@pytest.mark.parametrize(
    ("name", "kind", "documents"), [c for c in CASES if method_class(c[0]).sends], ids=lambda v: str(v)[:12]
)
def test_the_message_matters_and_is_accounted(name, kind, documents):
    ends = pair(name)
    method = made(name, kind, ends)
    matched, state, batch = outcomes(method, documents)
    deranged, other, _ = outcomes(method, documents, documents[1:] + documents[:1])
    if name == "t2t":  # what was written is what moved on
        assert other.message.texts == state.message.texts[1:] + state.message.texts[:1]
    assert name == "t2t" or any(
        m != pytest.approx(d, abs=1e-6) for m, d in zip(matched, deranged, strict=True)
    )
    assert all(n > 0 for n in state.message.wire_bytes)
    assert all(
        0 < w <= c
        for w, c in zip(state.message.wire_bytes, state.message.cache_bytes, strict=True)
        if name != "t2t" and kind != "lcfx"
    )
    # what lies between the phases is next to nothing, unless another process takes the core meanwhile
    assert 0.5 * batch.clock.total < sum(batch.clock.ms[p] for p in PHASES) <= batch.clock.total
    assert 0 < batch.clock.ttft_ms < batch.clock.total


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_kvcomm_equals_reading_the_two_texts_in_a_row(family):
    one = tiny.endpoint("same", family=family)
    got, _, _ = outcomes(create("kvcomm", one, one), SPLIT)
    from lcfbench.methods.base import prompt
    from lcfbench.tasks.prompts import continuation

    for d, row in zip(SPLIT, got, strict=True):
        a, b = prompt(one, d.sharer, d), prompt(one, d.receiver, d)
        for c, ll in zip(d.steps[0].choices, row, strict=False):
            tail = continuation(b, c, one.tokenizer)
            logits = one.model(torch.tensor([[*a.ids, *b.ids, *tail]])).logits.log_softmax(-1)[
                0, -len(tail) - 1 : -1
            ]
            assert ll == pytest.approx(float(logits.gather(1, torch.tensor(tail)[:, None]).sum()), abs=5e-4)


def test_kvcomm_refuses_two_models():
    with pytest.raises(UserError, match="one model on both sides"):
        create("kvcomm", *pair("lcf"))


def test_t2t_puts_the_note_where_it_belongs():
    ends = pair("t2t", chat=True)
    _, state, _ = outcomes(create("t2t", *ends, None, {"budget": "5"}), SHARED)
    for d, p, note in zip(SHARED, state.prompts, state.message.texts, strict=True):
        assert p.text.index(d.request.user) < p.text.index(d.receiver.user)
        assert f"assistant\n{note}<|im_end|>" in p.text
    _, state, _ = outcomes(create("t2t", *ends, None, {"budget": "5"}), SPLIT)
    assert all(
        p.text.startswith(f"Notes: {note} The")
        for p, note in zip(state.prompts, state.message.texts, strict=True)
    )


def test_one_token_prompts_have_nothing_to_fuse():
    ends = pair()
    bare = [replace(d, receiver=View("A"), sharer=View("A")) for d in SHARED[:2]]
    assert (
        outcomes(create("lcf", *ends, fused("lcf", ends)), bare)[0]
        == outcomes(create("receiver", *ends), bare)[0]
    )


def test_open_layers_only_are_kept():
    ends = pair()
    adapter = fused("lcf", ends)
    adapter.gate_logit[1] = -1.0
    whole = create("lcf", *ends, adapter)
    assert whole.adapter.config.layers == (0, 2, 3)
    pruned = create("lcf", *ends, adapter.select([0, 2, 3]))
    assert outcomes(whole, SHARED)[0] == outcomes(pruned, SHARED)[0]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("t2t", {"budget": "ten"}, "must be of type int"),
        ("t2t", {"bugdet": "10"}, "budget"),
        ("t2t", {"budget": "0"}, "no room"),
        ("lfc", {}, "lcf"),
        ("lcf", {}, "needs an adapter"),
    ],
)
def test_mistakes_are_named(name, options, match):
    with pytest.raises(UserError, match=match):
        create(name, *pair(), None, options)


def test_an_adapter_for_another_pair_names_the_dims():
    ends = pair()
    other = (ends[0], tiny.endpoint("tiny-c", layers=4))
    with pytest.raises(
        UserError, match=r"sharer layers 4, not 3; sharer kv_heads 2, not 1; sharer head_dim 8, not 16"
    ):
        create("lcf", *other, fused("lcf", ends))

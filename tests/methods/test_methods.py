"""Every method on tiny random pairs: shut gates, batches, attention kernels, sizes, options.

kvcomm is compared with plain concatenation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.methods.base import Method
from lcfbench.methods.create import create, method_class, parse_options
from lcfbench.models.timing import PHASES
from lcfbench.registry import method_names, method_summaries
from lcfbench.tasks.document import View
from tests import helpers
from tests.helpers import SHARED, SPLIT, outcomes, same_bits
from tests.helpers import made_method as made
from tests.helpers import random_adapter as fused
from tests.helpers import tiny_pair as pair


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


CASES = [
    ("receiver", None, SHARED),
    ("sharer", None, SHARED),
    ("full_context", None, SPLIT),
    ("t2t", None, SHARED),
    ("t2t", None, SPLIT),
    ("kvcomm", None, SHARED),
    ("kvcomm", None, SPLIT),
    ("cacheback", None, SHARED),
    ("cacheback", None, SPLIT),
    ("latentmas", None, SHARED),
    ("latentmas", None, SPLIT),
    ("activation", None, SHARED),
    ("activation", None, SPLIT),
    ("sde", None, SHARED),
    ("sde", None, SPLIT),
    ("lcf", "lcf", SHARED),
    ("lcf", "lcfx", SPLIT),
    ("c2c", "c2c", SHARED),
]
ELSEWHERE = {
    "dense": "helpers.py",
    "draft_kv": "helpers.py",
    "prefix": "helpers.py",
    "xkv": "helpers.py",
    "hub": "helpers.py",
    **dict.fromkeys(("identical", "single", "lora", "answer_letter", "excerpt", "draft_kv"), "helpers.py"),
}
IDS = [f"{m}-{k or 'none'}-{d[0].task}" for m, k, d in CASES]


def test_every_method_is_covered_here():
    assert {m for m, _, _ in CASES} | set(ELSEWHERE) == set(method_names())
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in (Path(__file__).parent.parent / file).read_text()
    assert all(text for text in method_summaries().values())


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("name", "kind", "documents"), CASES, ids=IDS)
def test_batch_1_equals_batch_n(name, kind, documents, chat):
    lms = pair(name, chat=chat)
    method = made(name, kind, lms)
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
    lms = pair(name)
    alone, base, _ = outcomes(made("receiver", None, lms), documents)
    shut = fused(kind, lms, gate=-1.0, token_alignment=alignment)
    dropped, _, _ = outcomes(create(name, *lms, shut), documents)
    assert dropped == alone
    # and with the layers computed all the same: half-open layers keep the shut half's bits
    if (
        alignment == "remap"
    ):  # read turn by turn: a later turn sees the edited earlier one, so the shut half moves too
        return
    shut.gate_logit[0, 0] = 1.0
    _, state, _ = outcomes(create(name, *lms, shut), documents)
    assert same_bits(state.kv.values, base.kv.values)
    assert same_bits(state.kv.keys[1:], base.kv.keys[1:])
    assert not torch.equal(state.kv.keys[0], base.kv.keys[0])


@pytest.mark.parametrize(
    ("name", "kind", "documents"), [c for c in CASES if method_class(c[0]).sends], ids=lambda v: str(v)[:12]
)
def test_the_message_matters_and_is_accounted(name, kind, documents):
    lms = pair(name)
    method = made(name, kind, lms)
    matched, state, batch = outcomes(method, documents)
    deranged, other, _ = outcomes(method, documents, documents[1:] + documents[:1])
    if name == "t2t":  # what was written is what moved on
        assert other.message.texts == state.message.texts[1:] + state.message.texts[:1]
    assert name in ("t2t", "sde") or any(
        m != pytest.approx(d, abs=1e-6) for m, d in zip(matched, deranged, strict=True)
    )
    assert all(n > 0 for n in state.message.wire_bytes)
    assert all(
        0 < w <= c
        for w, c in zip(state.message.wire_bytes, state.message.cache_bytes, strict=True)
        if name != "t2t" and kind != "lcfx"
    )
    # what lies between the phases is next to nothing, unless another process takes the core
    # meanwhile
    assert 0.5 * batch.clock.total < sum(batch.clock.ms[p] for p in PHASES) <= batch.clock.total
    assert 0 < batch.clock.ttft_ms < batch.clock.total


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_kvcomm_equals_reading_the_two_texts_in_a_row(family):
    one = helpers.causal_lm("same", family=family)
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
    lms = pair("t2t", chat=True)
    _, state, _ = outcomes(create("t2t", *lms, None, {"budget": "5"}), SHARED)
    for d, p, note in zip(SHARED, state.prompts, state.message.texts, strict=True):
        assert p.text.index(d.request.user) < p.text.index(d.receiver.user)
        assert f"assistant\n{note}<|im_end|>" in p.text
    _, state, _ = outcomes(create("t2t", *lms, None, {"budget": "5"}), SPLIT)
    assert all(
        p.text.startswith(f"Notes: {note} The")
        for p, note in zip(state.prompts, state.message.texts, strict=True)
    )


def test_one_token_prompts_have_nothing_to_fuse():
    lms = pair()
    bare = [replace(d, receiver=View("A"), sharer=View("A")) for d in SHARED[:2]]
    assert (
        outcomes(create("lcf", *lms, fused("lcf", lms)), bare)[0]
        == outcomes(create("receiver", *lms), bare)[0]
    )


def test_open_layers_only_are_kept():
    lms = pair()
    adapter = fused("lcf", lms)
    adapter.gate_logit[1] = -1.0
    whole = create("lcf", *lms, adapter)
    assert whole.adapter.config.layers == (0, 2, 3)
    pruned = create("lcf", *lms, adapter.select([0, 2, 3]))
    assert outcomes(whole, SHARED)[0] == outcomes(pruned, SHARED)[0]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        (
            "t2t",
            {"budget": "ten"},
            "budget=ten of t2t is not a whole number, 1 or more, 4,096 at most. Its default is 50",
        ),
        ("t2t", {"bugdet": "10"}, "budget"),
        ("excerpt", {"end": "lst"}, "one of first, last"),
        ("t2t", {"budget": "0"}, "budget=0 of t2t is not a whole number, 1 or more"),
        ("lfc", {}, "lcf"),
        ("lcf", {}, "needs an adapter"),
    ],
)
def test_mistakes_are_named(name, options, match):
    with pytest.raises(UserError, match=match):
        create(name, *pair(), None, options)


@dataclass
class Options(Method):
    flag: bool = True
    count: int | None = 3
    share: float = 0.5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"flag": "no"}, {"flag": False}),
        ({"flag": "true", "count": "7"}, {"flag": True, "count": 7}),
        ({"count": "none", "share": "1"}, {"count": None, "share": 1.0}),
    ],
)
def test_an_option_becomes_the_type_of_its_field(given, expected):
    found = parse_options(Options, "options", given)
    assert found == expected and all(type(found[k]) is type(v) for k, v in expected.items())


@pytest.mark.parametrize("given", [{"flag": "perhaps"}, {"count": "1.5"}, {"share": "inf"}])
def test_an_option_of_another_type_names_its_default(given):
    with pytest.raises(UserError, match=r"of options is not .*Its default is"):
        parse_options(Options, "options", given)


def test_an_adapter_for_another_pair_names_the_dims():
    lms = pair()
    other = (lms[0], helpers.causal_lm("tiny-c", layers=4))
    with pytest.raises(
        UserError, match=r"sharer layers 4, not 3; sharer kv_heads 2, not 1; sharer head_dim 8, not 16"
    ):
        create("lcf", *other, fused("lcf", lms))

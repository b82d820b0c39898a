"""Span schemes of LCF-X: where texts are cut, which tokens go where, and that the pool takes any of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lcfbench.adapters import lcfx
from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.lcf import flat
from lcfbench.alignment.spans import SCHEMES, cut, membership, paragraphs, sentences, spans_of
from lcfbench.alignment.tokens import content_tokens
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import Prompt, render
from tests import helpers
from tests.helpers import SPLIT, outcomes
from tests.helpers import random_adapter as fused
from tests.helpers import tiny_pair as pair

PASTED = """Kafi lived in Seoul, and kept a key.
It was the second of two lines.

The orange box stands in Toronto.
 \t
Zona works as a farmer in Zürich; 鍵は箱の中にあります。
"""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def shown(text: str, prefix: str = "", bos: bool = True, chat: bool = False) -> Prompt:
    return render(View(text, prefix), helpers.tokenizer(330, bos, chat), chat=chat, choices=True)


def texts(prompt: Prompt, spans: list) -> list[str]:
    """What the tokens of each span cover."""
    return [
        prompt.text[min(prompt.offsets[t][0] for t in s) : max(prompt.offsets[t][1] for t in s)].strip()
        for s in spans
    ]


# -- where texts are cut ---------------------------------------------------------------------------


def test_a_pasted_text_is_cut_at_its_blank_lines():
    found = texts(p := shown(PASTED), spans_of("paragraphs", p, 0, 1))
    assert found == [
        "Kafi lived in Seoul, and kept a key.\nIt was the second of two lines.",
        "The orange box stands in Toronto.",
        "Zona works as a farmer in Zürich; 鍵は箱の中にあります。",
    ]


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("Read these.\n1. One is\nlong.\n2. Two.\n\nQuestion: 3.5 or 4?", ["Read", "1.", "2.", "Question"]),
        ("[1] One. [2] is not a start.\n[2] Two.", ["[1]", "[2] Two"]),
        ("Passage 1:\nOne.\nPassage 2:\nTwo.", ["Passage 1", "Passage 2"]),
        ("## Document 10\nOne\nmore\n## Document 11\nTwo", ["## Document 10", "## Document 11"]),
        (
            "Notes: The box is here.\nQuestion: Where?\nAnswer:",
            ["Notes", "Question", "Answer"],
        ),  # lines, where there is nothing else
        ("One line,\n1984 was a year.\nNo number.", ["One", "1984", "No"]),  # a single number is no numbering
        ("All in one.", ["All"]),
        ("\r\n\r\n".join(["One.", "Two."]), ["One", "Two"]),
    ],
)
def test_paragraphs(text, starts):
    pieces = cut(text, paragraphs)
    assert "".join(pieces) == text and len(pieces) == len(starts)
    assert all(p.lstrip().startswith(s) for p, s in zip(pieces, starts, strict=True))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The key is here. It is old! Is it? Yes.", 4),
        ("Dr. Ada met Mr. Bo at 3.5 p.m. on Jan. 5. They left.", 2),
        ("J. K. Rowling wrote it. So did I. She knows.", 3),
        ("See Fig. 3 and No. 5. He said no. She left.", 3),
        ("Animals, e.g. cats, i.e. pets, etc. are here. U.S. law differs.", 2),
        ('He said "Go." Then he went (slowly). (She stayed.) End', 4),
        ("Wait... what? and so on.", 1),
        ("鍵は箱の中。箱はソウルに！はい", 3),
        ("Title\nFirst line without a stop\nSecond one.", 3),
        ("No stop at all", 1),
    ],
)
def test_sentences(text, want):
    pieces = cut(text, sentences)
    assert "".join(pieces) == text
    assert len(pieces) == want, pieces


# -- which tokens go where -------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["paragraphs", "sentences", "overlap"])
@pytest.mark.parametrize("chat", [False, True])
def test_content_tokens_are_covered_and_no_others(scheme, chat):
    p = shown(PASTED + "Question: where?", "Answer: it is", chat=chat)
    spans = spans_of(scheme, p, 7, 5)
    covered = sorted({t for s in spans for t in s})
    assert covered == content_tokens(p) and 0 not in covered  # 0 is BOS
    assert (len(covered) < len(p.ids) - 1) is chat
    if scheme == "overlap":
        assert all(b[0] == a[5] for a, b in pairwise(spans)) and all(len(s) == 7 for s in spans[:-1])
    else:
        assert sum(map(len, spans)) == len(covered) and all(spans)
        found = texts(p, spans)
        assert "Answer: it is" in " ".join(found[-2:]) and "Toronto." in found[1] + found[2]
        assert not any("Answer" in t and "Question" in t for t in found)  # another turn, another span


@pytest.mark.parametrize(
    ("n", "window", "stride"),
    [(1, 4, 2), (4, 4, 2), (5, 4, 2), (9, 4, 4), (10, 4, 3), (10, 1, 1), (3, 99, 1)],
)
def test_overlapping_windows_leave_no_token_out_and_none_is_idle(n, window, stride):
    p = Prompt("x" * n, tuple(range(n)), tuple((i, i + 1) for i in range(n)), ((0, n),))
    spans = [set(s) for s in spans_of("overlap", p, window, stride)]
    assert set.union(*spans) == set(range(n))
    assert all(not s <= t for s, t in zip(spans[1:], spans, strict=False))


def test_nothing_to_cut_is_one_span():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    bare = Prompt("ab", (1, 2), ((0, 1), (1, 2)), ())  # a template that rewrites its contents
    full = Prompt("ab\n\nd", (1, 2, 3, 4), ((0, 1), (1, 2), (2, 4), (4, 5)), ((0, 5),))
    for scheme in ("paragraphs", "sentences", "overlap"):
        member = membership(scheme, [bare, full], mask, window=2, stride=2)
        assert member[0, 0].tolist() == [False, False, True, True] and not member[0, 1:].any()
        assert member[1].any(0).all() and member.shape[1] == 2


def windows_before(mask, count):
    """How tokens were numbered when there were only windows: the span of each, −1 for padding."""
    return torch.where(mask.bool(), (mask.cumsum(1) - 1) * count // mask.sum(1, keepdim=True), -1)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_windows_count_the_template_too_and_are_equal_in_length(count):
    prompts = [shown("One.\n\nTwo.", chat=True), shown("The key of Kafi.", chat=True)]
    width = max(len(p.ids) for p in prompts)
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    member = membership("one" if count == 1 else "windows", prompts, mask, windows=count)
    assert member.shape[1] == count and torch.equal(member.sum(1), mask)
    assert all(row.max() - row.min() <= 1 for row in member.sum(2))
    span = windows_before(mask, count)
    assert torch.equal(member.int().argmax(1)[mask.bool()], span[mask.bool()])


# -- the pool --------------------------------------------------------------------------------------


def pool_before(adapter, keys, values, spans):
    """The pool as it was when a token had one span: what shipped adapters were trained with."""
    L, B, H, M, D = keys.shape
    count = int(spans.max()) + 1
    member = spans[:, None, :] == torch.arange(count)[None, :, None]
    score = torch.einsum("lhd,lbhmd->lbhm", adapter.query_base.float(), keys.float()) / math.sqrt(D)
    if adapter.pool_start == "last":
        from_end = (spans >= 0).long().flip(1).cumsum(1).flip(1).sub(1).clamp(0, lcfx.TAIL - 1)
        score = score + adapter.token_bias.float()[:, from_end][:, :, None]
    inside = lcfx.masked_softmax(score[:, :, :, None], member[None, :, None]).to(keys.dtype)
    span_k, span_v = inside @ keys, inside @ values
    across = torch.einsum("lhd,lbhpd->lbhp", adapter.query_layer.float(), span_k.float()) / math.sqrt(D)
    if adapter.pool_start == "last":
        from_last = (spans.amax(1, keepdim=True) - torch.arange(count)).clamp(0, lcfx.LAST_SPAN - 1)
        across = across + adapter.span_bias.float()[:, from_last][:, :, None]
    weight = lcfx.masked_softmax(across, member.any(2)[None, :, None]).to(keys.dtype)[..., None, :]
    return torch.cat([flat(weight @ span_k), flat(weight @ span_v)], -1)


def pooler(pool_start: str = "last") -> lcfx.LCFXAdapter:
    torch.manual_seed(0)
    shape = Geometry(layers=3, kv_heads=2, head_dim=8)
    made = build(
        pair_config("lcfx", ("a", shape), ("b", shape), options={"width": 8, "pool_start": pool_start})
    )
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    assert isinstance(made, lcfx.LCFXAdapter)
    return made.requires_grad_(False)


@pytest.mark.parametrize("pool_start", ["random", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5])
def test_windows_and_one_pool_to_the_same_bits_as_ever(pool_start, dtype, count):
    adapter = pooler(pool_start)
    keys, values = torch.randn(2, 3, 4, 2, 23, 8).to(dtype)
    mask = (
        torch.arange(23) >= torch.tensor([0, 3, 11, 20])[:, None]
    ).long()  # the last row has fewer tokens than windows
    member = membership("windows", [], mask, windows=count)
    assert torch.equal(
        adapter.pool(keys, values, member), pool_before(adapter, keys, values, windows_before(mask, count))
    )


def test_many_spans_are_pooled_in_parts_as_if_at_once(monkeypatch):
    adapter = pooler()
    keys, values = torch.randn(2, 3, 2, 2, 40, 8)
    mask = (torch.arange(40) >= torch.tensor([0, 9])[:, None]).long()
    member = membership("windows", [], mask, windows=37)
    parts = adapter.pool(keys, values, member)
    monkeypatch.setattr(lcfx, "SPANS_AT_ONCE", 100)
    torch.testing.assert_close(parts, adapter.pool(keys, values, member))


def test_the_pool_by_hand_for_overlapping_spans():
    """Two spans that share a token, a token in none: the two softmaxes written out."""
    adapter = pooler("random")
    keys, values = torch.randn(2, 3, 1, 2, 4, 8)
    member = torch.tensor([[[True, True, False, False], [False, True, True, False]]])
    got = adapter.pool(keys, values, member)
    q, r = adapter.query_base, adapter.query_layer
    for layer in range(3):
        for h in range(2):
            k, v = keys[layer, 0, h], values[layer, 0, h]
            some = [(torch.softmax(k[s] @ q[layer, h] / 8**0.5, 0), s) for s in ([0, 1], [1, 2])]
            span_k, span_v = (torch.stack([w @ x[s] for w, s in some]) for x in (k, v))
            b = torch.softmax(span_k @ r[layer, h] / 8**0.5, 0)
            torch.testing.assert_close(got[layer, 0, 0, 8 * h : 8 * h + 8], b @ span_k)
            torch.testing.assert_close(got[layer, 0, 0, 16 + 8 * h : 24 + 8 * h], b @ span_v)


def test_empty_spans_and_padding_change_nothing():
    adapter = pooler()
    keys, values = torch.randn(2, 3, 1, 2, 12, 8)
    mask = torch.ones(1, 12, dtype=torch.long)
    member = membership("windows", [], mask, windows=3)
    want = adapter.pool(keys, values, member)
    wider = torch.cat(
        [member, torch.zeros(1, 4, 12, dtype=torch.bool)], 1
    )  # another row of the batch has seven spans
    torch.testing.assert_close(adapter.pool(keys, values, wider), want)
    padded = torch.cat([torch.zeros(1, 3, 5, dtype=torch.bool), member], 2)
    more = [torch.cat([torch.randn(3, 1, 2, 5, 8), x], 3) for x in (keys, values)]
    torch.testing.assert_close(adapter.pool(*more, padded), want)


# -- the method ------------------------------------------------------------------------------------


OPTIONS = [
    {},
    {"windows": "3"},
    {"spans": "one"},
    {"spans": "paragraphs"},
    {"spans": "sentences"},
    {"spans": "overlap", "window": "9", "stride": "4"},
]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()) or "default")
def test_any_scheme_with_any_adapter_batch_1_equals_batch_n(options, chat):
    lms = pair(chat=chat)
    method = create("lcf", *lms, fused("lcfx", lms, pool_start="last", unrotated_keys=True), options)
    with torch.no_grad():
        together, state, _ = outcomes(method, SPLIT)
        for i, d in enumerate(SPLIT):
            alone, single, _ = outcomes(method, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4)
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0]


def test_schemes_differ_in_what_they_read():
    lms = pair()
    adapter = fused("lcfx", lms)
    seen = []
    for options in OPTIONS:
        with torch.no_grad():
            seen.append(create("lcf", *lms, adapter, options).respond(Batch(SPLIT, SPLIT, Clock())).kv.values)
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    # a text of one paragraph and as many tokens as the window holds: `overlap` is then `one`
    # without BOS
    whole = {"spans": "overlap", "window": "500", "stride": "500"}
    spans = spans_of("overlap", shown(SPLIT[0].sharer.user), 500, 500)
    assert len(spans) == 1 and create("lcf", *lms, adapter, whole).options()["window"] == 500


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"spans": "chapters"}, "|".join(SCHEMES[:2])),
        ({"windows": "0"}, "windows=0 .* 1 or more"),
        ({"spans": "overlap", "window": "8", "stride": "9"}, "leaves tokens out"),
        ({"spans": "overlap", "stride": "0"}, "stride=0 .* 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, match):
    lms = pair()
    with pytest.raises(UserError, match=match):
        create("lcf", *lms, fused("lcfx", lms), options)

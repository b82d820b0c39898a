"""A request as a turn: what the receiver asks, who reads it, and what is counted, as text and as cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcfbench.evaluation.answer import answer
from lcfbench.methods._lengths import TooLongError
from lcfbench.methods._request import BEGIN, MOST, before_request, question_of, requests
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.answering import decode
from lcfbench.models.timing import Clock
from tests.helpers import SHARED, SPLIT, causal_lm, outcomes, tiny_pair

FORMS = ["question", "written"]
BLIND = [replace(d, request=replace(d.request, user=d.request.user.partition("Question")[0])) for d in SPLIT]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def method_of(name: str, form: str):
    lms = tiny_pair(name)
    more = {"selector": "snapkv", "budget": "6"} if name == "cacheback" else {"budget": "5"}
    return create(name, *lms, None, {**more, "request": form})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["t2t", "cacheback"])
def test_both_ways_send_the_same_request_and_count_its_bytes(name, form):
    method = method_of(name, form)
    asked = requests(method.receiver, SPLIT, form)
    _, state, _ = outcomes(method, SPLIT)
    assert state.message.request_bytes == [len(text.encode()) for text in asked.texts]
    assert min(state.message.request_bytes) > 0
    # whoever's message it is, the request is the document's own
    _, moved, _ = outcomes(method, SPLIT, SPLIT[1:] + SPLIT[:1])
    assert moved.message.request_bytes == state.message.request_bytes


def test_a_written_request_is_what_the_receiver_writes_behind_its_own_text():
    lm = causal_lm(layers=4)
    asked = requests(lm, SPLIT, "written")
    shown = [prompt(lm, replace(d.receiver, prefix=BEGIN), replace(d, steps=())) for d in SPLIT]
    texts, written = decode(lm.open(lm.read(shown)), MOST, ("\n",))
    assert asked.texts == [f"{BEGIN} {text.strip()}".strip() for text in texts]
    assert asked.ran == [len(p.ids) + n for p, n in zip(shown, written, strict=True)]
    assert len(set(asked.texts)) > 1
    assert requests(lm, SPLIT, "question").ran == [0] * len(SPLIT)
    assert requests(lm, SPLIT, "question").texts == [question_of(d) for d in SPLIT]


@pytest.mark.parametrize("documents", [SHARED, SPLIT, BLIND], ids=["shared", "split", "blind"])
@pytest.mark.parametrize("form", FORMS)
def test_the_sharer_reads_the_request_behind_its_own_text(form, documents):
    method = method_of("t2t", form)
    asked = requests(method.receiver, documents, form)
    _, state, _ = outcomes(method, documents)
    for d, text, read in zip(documents, asked.texts, state.message.read, strict=True):
        assert read.text.count(text) >= 1 and read.text.index(d.request.user.strip()[:20]) == 0
        assert read.text.rindex(text) >= len(d.request.user.rstrip())
    plain = create("t2t", method.receiver, method.sharer, None, {"budget": "5"})
    assert outcomes(plain, documents)[1].message.request_bytes is None


@pytest.mark.parametrize("form", FORMS)
def test_the_sharer_reads_another_receiver_s_request(form):
    method = method_of("t2t", form)
    other = replace(
        BLIND[0], receiver=replace(BLIND[0].receiver, user="Notes: none.\nQuestion: Who?\nAnswer:")
    )
    other = replace(other, noted=replace(other.noted, user="Notes: <<note>>\nQuestion: Who?\nAnswer:"))
    first, second = (method.respond(Batch([d], [d], Clock())) for d in (BLIND[0], other))
    assert first.message.read[0].text != second.message.read[0].text


@pytest.mark.parametrize("name", ["t2t", "cacheback"])
def test_writing_a_request_costs_operations_and_a_question_does_not(name):
    written, question = (
        outcomes(method_of(name, form), SPLIT)[1].message for form in ("written", "question")
    )
    lm = tiny_pair(name)[0]
    ran = requests(lm, SPLIT, "written").ran
    more = [a - b for a, b in zip(written.adapter_flops, question.adapter_flops, strict=True)]
    assert more == pytest.approx([lm.flops(n) for n in ran]) and min(more) > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["t2t", "cacheback"])
def test_batch_1_equals_batch_n(name, form):
    method = method_of(name, form)
    together, state, _ = outcomes(method, SPLIT)
    for i, d in enumerate(SPLIT):
        alone, single, _ = outcomes(method, [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert state.message.request_bytes[i] == single.message.request_bytes[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["t2t", "cacheback"])
def test_a_request_counts_where_positions_are_counted(name, form):
    """Where a length passes, the document is answered; where a model is too short, it is said before."""
    method = method_of(name, form)
    lms = {id(lm): lm for lm in (method.receiver, method.sharer)}.values()
    document, refused, answered = SPLIT[0], 0, 0
    for limit in range(40, 400, 24):
        for lm in lms:
            lm.model.config.max_position_embeddings = limit
        try:
            method.check_length(document, document)
        except TooLongError:
            refused += 1
            continue
        batch = Batch([document], [document], Clock())
        answer(method.respond(batch), batch)
        answered += 1
    assert refused and answered


def test_options_that_send_no_request_are_as_before():
    lm = causal_lm(layers=4)
    assert create("t2t", lm, lm).options() == {"budget": 50, "bytes": None}
    assert create("t2t", lm, lm, None, {"request": "written"}).options()["request"] == "written"
    assert "request" not in create("cacheback", lm, lm).options()
    assert create("cacheback", lm, lm, None, {"request": "written"}).options()["request"] == "written"
    blind = create("cacheback", lm, lm, None, {"request": "written", "selector": "first"})
    assert "request" not in blind.options()  # nothing is asked
    assert before_request(lm, SPLIT[0]).ids

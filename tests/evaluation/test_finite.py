"""A number that is not finite is never an answer: the row says so, and names its first place."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lcfbench.evaluation.answer import answer
from lcfbench.methods import load_pair
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.answering import decode, rank
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.finite import NotFiniteError, check_cache, first_place
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import Opened
from lcfbench.models.timing import Clock
from lcfbench.sources.models import find_model
from tests.helpers import SHARED, SPLIT, Watcher, causal_lm, method_of, plain_prompts, rows, run_recipe

NAN, INF = math.nan, math.inf
POISONS = {"nan": NAN, "inf": INF, "minus-inf": -INF, "huge": 1e30}


@pytest.fixture
def poisoned(monkeypatch):
    """Makes one number a row of a weight of one side's model `value`, once the model is loaded."""

    def poison(side: str, tensor: str, value: float) -> None:
        real = CausalLM.load.__func__

        def load(cls, found, **more):
            lm = real(cls, found, **more)
            if found.name.endswith(side):
                [weight] = [p for name, p in lm.model.named_parameters() if name.endswith(tensor)]
                with torch.no_grad():  # not by `.data`, which packed layers would not see
                    weight[..., 0] = value
            return lm

        monkeypatch.setattr(CausalLM, "load", classmethod(load))

    return poison


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("tensor", ["layers.1.self_attn.v_proj.weight", "layers.2.mlp.down_proj.weight"])
def test_a_poisoned_receiver_answers_nothing(pair, adapter, tmp_path, poisoned, tensor, poison, batch_size):
    poisoned("receiver", tensor, POISONS[poison])
    watcher = Watcher()
    folders = run_recipe(
        pair, tmp_path / "out", watcher, mode=["receiver", "lcf"], limit=4, batch_size=batch_size,
        adapter=[adapter],
    )  # fmt: skip
    for folder in folders:
        found = rows(folder)
        assert all(row["score"] == 0 and row["choices_loglikelihood"] is None for row in found)
        layer = tensor.split(".")[1]
        for row in found:
            assert f"First, the receiver's state after layer {layer} at position" in row["error"]
    assert len([text for text in watcher.warned if "4 of 4 documents failed" in text]) == 2


@pytest.mark.parametrize("control", ["matched", "deranged", "noise"])
@pytest.mark.parametrize("mode", ["lcf", "t2t", "sharer"])
@pytest.mark.parametrize("poison", ["nan", "inf", "huge"])
def test_a_poisoned_sharer_sends_nothing(pair, adapter, tmp_path, poisoned, mode, poison, control):
    if mode == "sharer" and control != "matched":
        pytest.skip("the sharer alone sends nothing")
    poisoned("sharer", "layers.1.mlp.down_proj.weight", POISONS[poison])
    more = {"adapter": [adapter]} if mode == "lcf" else {}
    [folder] = run_recipe(pair, tmp_path / "out", mode=[mode], control=[control], limit=4, **more)
    found = rows(folder)
    if poison == "huge":  # this model normalises what each layer gives: all that follows is finite
        assert all(row["error"] is None and row["choices_loglikelihood"] for row in found)
        return
    assert all("layer 1" in row["error"] and row["score"] == 0 for row in found)


@pytest.mark.parametrize("control", ["matched", "deranged", "noise"])
@pytest.mark.parametrize("mode", ["activation", "sde"])
@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_state_is_no_message(pair, tmp_path, poisoned, mode, poison, control):
    """One model on both sides: its states are read behind layers after the poison."""
    one = pair.split(":")[0]
    poisoned("receiver", "layers.1.mlp.down_proj.weight", POISONS[poison])
    more = {"options": {"budget": "6"}} if mode == "sde" else {}
    watcher = Watcher()
    [folder] = run_recipe(
        f"{one}:{one}", tmp_path / "out", watcher, mode=[mode], control=[control], limit=4, **more
    )
    assert all(row["score"] == 0 and "after layer 1 at position" in row["error"] for row in rows(folder))
    assert all(row["choices_loglikelihood"] is None for row in rows(folder))
    assert any("4 of 4 documents failed" in text for text in watcher.warned)


@pytest.mark.parametrize("poison", POISONS)
def test_no_map_is_fitted_to_poisoned_states(pair, tmp_path, poisoned, poison):
    """Of two models; huge states leave a finite map: it standardises them."""
    poisoned("sharer", "layers.1.mlp.down_proj.weight", POISONS[poison])
    [folder] = run_recipe(pair, tmp_path / "out", mode=["activation"], limit=4)
    for row in rows(folder):
        if poison == "huge":
            assert row["error"] is None and all(
                math.isfinite(ll) for step in json.loads(row["choices_loglikelihood"]) for ll in step
            )
        else:
            assert row["score"] == 0 and "cannot be calibrated" in row["error"]


@pytest.mark.parametrize("scale", [1e12, 1e20, 1e30])
@pytest.mark.parametrize("control", ["matched", "deranged", "zero", "noise", "silent"])
def test_an_adapter_that_overflows_scores_nothing(pair, adapter, tmp_path, monkeypatch, control, scale):
    real = load_pair.load_files

    def load(*args):
        made = real(*args)
        for name, weight in made.named_parameters():
            if "up_value" in name:
                weight.data.fill_(scale)
        return made

    monkeypatch.setattr(load_pair, "load_files", load)
    [folder] = run_recipe(pair, tmp_path / "out", mode=["lcf"], control=[control], limit=4, adapter=[adapter])
    for row in rows(folder):  # 1e12 is no overflow: its square is a number
        assert row["error"] is None if scale == 1e12 else row["error"] and row["score"] == 0


# -- the numbers themselves ----------------------------------------------------------------------

LM = causal_lm(layers=2)


def opened(logits: torch.Tensor) -> Opened:
    """What a model with these logits after its prompts is."""
    state = LM.open(LM.read(plain_prompts(LM)[: len(logits)]))
    return Opened(LM, logits, state.next_position, lambda: state.kv)


def logits(*changes: tuple[int, float], fill: float | None = None) -> torch.Tensor:
    """One row of logits, with some of them changed."""
    row = torch.linspace(-3, 3, LM.vocabulary_size) if fill is None else torch.full((400,), fill)
    for at, value in changes:
        row[at] = value
    return row[None]


BAD = {
    "nan-in-one-choice": logits((7, NAN)),
    "nan-elsewhere": logits((390, NAN)),
    "inf-in-one-choice": logits((7, INF)),
    "inf-elsewhere": logits((390, INF)),
    "minus-inf-in-one-choice": logits((7, -INF)),
    "all-nan": logits(fill=NAN),
    "all-inf": logits(fill=INF),
    "all-minus-inf": logits(fill=-INF),
    "all-zero": logits(fill=0.0),
    "all-equal": logits(fill=1e9),
    "all-equal-and-large": logits(fill=-3e38),
}


@pytest.mark.parametrize("name", BAD)
def test_logits_that_decide_nothing_are_an_error(name):
    with pytest.raises(NotFiniteError):
        rank(opened(BAD[name]), [[[5], [7]]])
    if name != "minus-inf-in-one-choice":  # such a token is only never written
        with pytest.raises(NotFiniteError):
            decode(opened(BAD[name]), 3)


@pytest.mark.parametrize("changes", [(), ((390, -INF),), ((5, 2.0), (7, 2.0)), ((5, -90.0),), ((9, 300.0),)])
def test_other_logits_are_answers_and_the_first_of_equal_choices_counts(changes):
    [row] = rank(opened(logits(*changes)), [[[5], [7]]])
    assert all(math.isfinite(ll) for ll, _ in row)
    if changes and changes[0] == (5, 2.0):
        assert row[0] == row[1] and max(range(2), key=lambda c: row[c][0]) == 0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_cache_names_its_first_bad_entry_and_padding_does_not_count(part, value):
    keys, values = (torch.zeros(3, 2, 1, 4, 2) for _ in range(2))
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    kv = KV(keys, values, mask, mask.cumsum(1) - 1)
    getattr(kv, part)[0, 0, 0, 0, 1] = value
    check_cache(kv, "it")
    getattr(kv, part)[2, 0, 0, 3, 0] = value
    with pytest.raises(NotFiniteError, match=rf"it: {part} of layer 2 are {value} at entry 2"):
        check_cache(kv, "it")


def test_tracing_leaves_the_models_as_they_were():
    before = [len(m._forward_hooks) for m in LM.model.modules()]
    with first_place({"the receiver": LM}):
        LM.read(plain_prompts(LM))
    assert [len(m._forward_hooks) for m in LM.model.modules()] == before


def test_many_ties_are_said(pair, tmp_path, monkeypatch):
    from lcfbench.evaluation import answer

    monkeypatch.setattr(answer, "branch", equal(answer.branch))
    monkeypatch.setattr(answer, "rank", equal(answer.rank))
    watcher = Watcher()
    run_recipe(pair, tmp_path, watcher, mode=["receiver"], limit=4, batch_size=1)
    assert any("4 of 4 documents the likeliest choices are equally likely" in t for t in watcher.warned)


def equal(real):
    """A ranking after which all choices are equally likely."""

    def ranked(*args):
        found = real(*args)
        lists = found[0] if isinstance(found, tuple) else found
        for row in lists:
            row[:] = [(-1.0, False)] * len(row)
        return found

    return ranked


# -- hostile trials ------------------------------------------------------------------------------

CASES = [
    *[("lcf", "lcf", SHARED), ("lcf", "remap", SHARED), ("lcf", "lcfx", SPLIT), ("c2c", "c2c", SHARED)],
    *[("c2c", "c2c-remap", SHARED), ("single", "lcf", SHARED), ("identical", "lcf", SHARED)],
    *[("prefix", "before", SPLIT), ("prefix", "after", SHARED), ("dense", None, SPLIT)],
    *[("dense", None, SHARED), ("lora", "lora", SHARED)],
    *[("draft_kv", None, SHARED), ("draft_kv", None, SPLIT)],
    *[("xkv", None, SHARED), ("xkv", None, SPLIT), ("hub", None, SPLIT)],
    *[("activation", "map", SHARED), ("activation", "map", SPLIT)],
]


@pytest.mark.parametrize("value", POISONS)
@pytest.mark.parametrize(
    ("name", "kind", "documents"), CASES, ids=[f"{n}-{k}-{d[0].task}" for n, k, d in CASES]
)
def test_one_bad_weight_of_an_adapter_is_no_tie(name, kind, documents, value):
    """A weight may be squashed (a gate of infinity is open); what is answered is finite and decided."""
    method = method_of(name, kind, name == "c2c" and kind != "c2c")
    failed = 0
    for weight_name, weight in method.adapter.named_parameters():
        flat, middle = weight.data.view(-1), weight.numel() // 2
        before, flat[middle] = flat[middle].clone(), POISONS[value]
        try:
            batch = Batch(documents, documents, Clock())
            with torch.inference_mode():
                outcomes, _ = answer(method.respond(batch), batch)
        except NotFiniteError:
            failed += 1
        else:
            assert value != "nan" or weight_name == "gate_logit", weight_name
            for ranked in (step for outcome in outcomes for step in outcome.loglikelihoods):
                assert all(math.isfinite(ll) for ll, _ in ranked) and len({ll for ll, _ in ranked}) > 1
        flat[middle] = before
    assert failed or value == "huge"


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("dtype", "weight"), [("float16", 6e4), ("bfloat16", 3e38)])
def test_half_precision_that_overflows_names_its_layer(pair, tmp_path, poisoned, dtype, weight, batch_size):
    poisoned("receiver", "layers.1.mlp.down_proj.weight", weight)
    more = {"mode": ["receiver"], "limit": 4, "batch_size": batch_size, "dtype": dtype}
    [folder] = run_recipe(pair, tmp_path / "out", **more)
    assert all("the receiver's state after layer 1 at" in row["error"] for row in rows(folder))


def poisoned_token(monkeypatch, token: int) -> None:
    """Makes the embedding of one token NaN in the receiver, once it is loaded."""
    real = CausalLM.load.__func__

    def load(cls, found, **more):
        lm = real(cls, found, **more)
        if found.name.endswith("receiver"):
            lm.model.get_input_embeddings().weight.data[token] = NAN
        return lm

    monkeypatch.setattr(CausalLM, "load", classmethod(load))


@pytest.mark.parametrize("mode", ["receiver", "lcf", "t2t"])
def test_padding_that_is_not_finite_is_no_error(pair, adapter, tmp_path, monkeypatch, mode):
    """A pad token whose embedding is NaN would spoil a batch; each document alone has none."""
    more = {"mode": [mode], "limit": 8, "adapter": [adapter]}
    [clean] = run_recipe(pair, tmp_path / "a", **more, batch_size=1)
    poisoned_token(monkeypatch, 3)  # <pad>; the head is the table, but no text has it
    [folder] = run_recipe(pair, tmp_path / "b", **more, batch_size=4)
    for mine, other in zip(rows(folder), rows(clean), strict=True):
        assert mine["error"] is None or "log-likelihood" in mine["error"] or "logit" in mine["error"]
        assert mine["error"] or mine["prediction"] == other["prediction"]


def test_a_bad_token_fails_the_documents_that_have_it_alone(pair, tmp_path, monkeypatch):
    [clean] = run_recipe(pair, tmp_path / "a", mode=["receiver"], limit=8)
    lm = CausalLM.load(find_model(pair.split(":")[0]), dtype="float32")
    texts = [row["receiver_prompt"] for row in rows(clean)]
    have = [set(lm.tokenizer(text).input_ids) for text in texts]
    some = [t for t in set.union(*have) if 0 < sum(t in ids for ids in have) < len(have)]
    bad = min(some, key=lambda t: abs(sum(t in ids for ids in have) - len(have) / 2))

    def hide(self, kv, ids, mask, positions, at):  # the table is the head too: its logit stays finite
        logits, longer = real(self, kv, ids, mask, positions, at)
        clean_rows = logits.isfinite().sum(-1) == logits.shape[-1] - 1
        logits[clean_rows, bad] = logits[clean_rows].nan_to_num(-50).amin(-1)
        return logits, longer

    real = CausalLM.forward
    monkeypatch.setattr(CausalLM, "forward", hide)
    poisoned_token(monkeypatch, bad)
    [folder] = run_recipe(pair, tmp_path / "b", mode=["receiver"], limit=8, batch_size=4)
    for row, ids in zip(rows(folder), have, strict=True):
        assert (row["error"] is not None) == (bad in ids), row["error"]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_text_is_no_answer_once_a_later_token_is_not_finite(pair, tmp_path, monkeypatch, number, value):
    real, calls = CausalLM.steps, []

    def steps(self, some):
        calls.append(1)
        every = real(self, some)
        return [logits.fill_(value) for logits in every] if len(calls) % 5 == number else every

    monkeypatch.setattr(CausalLM, "steps", steps)
    more = {"mode": ["receiver"], "limit": 2, "scoring": "generate", "batch_size": 1}
    monkeypatch.setattr(CausalLM, "stop_ids", lambda self: set())
    [folder] = run_recipe(pair, tmp_path, **more)
    assert all("token" in (row["error"] or "token") for row in rows(folder))
    assert any(f"largest logit is {value}" in (row["error"] or "") for row in rows(folder))
    assert all(row["prediction"] is None for row in rows(folder) if row["error"])


def test_ask_answers_nothing_from_a_bad_cache():
    lm = causal_lm(layers=2)
    method = create("receiver", lm, lm)
    assert isinstance(method.ask("What is copper?").text, str)
    lm.shared.beginnings.clear()
    lm.model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = NAN
    with pytest.raises(NotFiniteError, match="values of layer 1 are nan"):
        method.ask("What is copper?")

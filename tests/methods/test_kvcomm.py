"""kvcomm with chosen layers: the choice, the view of each layer, the message, the run's record."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.evaluation import runner
from lcfbench.evaluation.answer import answer
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods._kvcomm_scores import best, importance, parse_layers, scores
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.layer_masks import attention_sums
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, Step, View
from lcfbench.tasks.task import Task
from tests import helpers
from tests.helpers import SPLIT, Watcher, outcomes, rows
from tests.models import zoo

FAMILIES = ["llama", "qwen3", "gemma3"]


def document(i: int, mine: str, theirs: str) -> Document:
    ask = "\nQuestion: In which city is the key of Kafi?\nAnswer: The key of Kafi is in the"
    a, b = View(f"Notes: {mine}{ask}"), View(f"Notes: {theirs}{ask}")
    steps = (Step((" orange", " brown", " purple box"), (0,)),)
    return Document("split", str(i), a, b, b, b, a, "cloze", "orange", steps, shared=False, chat=False)


DOCUMENTS = [
    document(
        0, "The brown box is in Toronto. The orange box is in Seoul.", "The key of Kafi is in the orange box."
    ),
    document(
        1, "The purple box is in Vienna.", "Zona works as a farmer. The key of Kafi is in the brown box."
    ),
    document(2, "The brown box is in Seoul.", "The key."),
]


@pytest.fixture(autouse=True)
def no_grad():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def outcome(method, documents, senders=None):
    batch = Batch(documents, senders or documents, Clock())
    state = method.respond(batch)
    return [[ll for ll, _ in o.loglikelihoods[0]] for o in answer(state, batch)[0]], state


def made(lm: CausalLM, **options: str):
    return create("kvcomm", lm, lm, None, options)


# -- which layers ----------------------------------------------------------------------------------


def test_scores_are_the_formula():
    found = torch.tensor([0.2, 0.6, 0.4, 0.2])
    got = scores(found, alpha=0.7, mean=0.5, width=0.25)
    for i, x in enumerate([0.0, 1.0, 0.5, 0.0]):
        assert float(got[i]) == pytest.approx(0.7 * x + 0.3 * math.exp(-((i / 3 - 0.5) ** 2) / (2 * 0.25**2)))
    assert scores(torch.full((3,), 0.4), 1.0, 0.5, 0.3).tolist() == [0.0, 0.0, 0.0]
    assert best(scores(torch.rand(30), 0.0, 0.5, 1 / 3), 1 / 3) == list(range(10, 20))
    assert [len(best(torch.rand(30), s)) for s in (0.3, 0.5, 0.7, 1.0, 0.001)] == [9, 15, 21, 30, 1]
    assert best(torch.tensor([1.0, 2.0, 2.0, 0.0]), 0.25) == [1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_the_attention_on_the_sharer_s_entries(family, attention):
    """Against softmax(q·k) of the two texts in a row, from the projections; windows written out."""
    lm = helpers.causal_lm(family=family, attention=attention)
    d = DOCUMENTS[0]
    got, lms = importance(lm, lm, [d]), importance(lm, lm, [d], last=2)
    assert lm.model.config._attn_implementation == attention
    a, b = prompt(lm, d.sharer, d).ids, prompt(lm, d.receiver, d).ids
    n, m = len(a) + len(b), len(a)
    taken: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for i, layer in enumerate(lm.model.get_decoder().layers):

        def hook(module, args, kwargs, i=i):
            x = kwargs.get("hidden_states", args[0] if args else None)
            q, k = (
                p(x).view(1, n, -1, module.head_dim).transpose(1, 2) for p in (module.q_proj, module.k_proj)
            )
            if hasattr(module, "q_norm"):
                q, k = module.q_norm(q), module.k_norm(k)
            cos, sin = (t[:, None] for t in kwargs["position_embeddings"])

            def turn(y):
                half = y.shape[-1] // 2
                return y * cos + torch.cat([-y[..., half:], y[..., :half]], -1) * sin

            taken[i] = turn(q), turn(k).repeat_interleave(module.num_key_value_groups, 1)

        handles.append(layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True))
    lm.model(torch.tensor([[*a, *b]]))
    for handle in handles:
        handle.remove()
    for i, layer in enumerate(lm.model.get_decoder().layers):
        q, k = taken[i]
        at = torch.arange(n)
        see = at[None] <= at[:, None]
        if getattr(layer.self_attn, "sliding_window", None):
            see &= at[None] > at[:, None] - layer.self_attn.sliding_window
        weights = (q @ k.transpose(2, 3) * layer.self_attn.scaling).masked_fill(~see, -torch.inf).softmax(-1)
        assert float(got[i]) == pytest.approx(float(weights[0, :, m:, 1:m].sum(-1).mean()), abs=1e-5)
        assert float(lms[i]) == pytest.approx(float(weights[0, :, -2:, 1:m].sum(-1).mean()), abs=1e-5)
    assert float(got.min()) > 0 and float(got.max()) < 1
    both = importance(lm, lm, DOCUMENTS[:2])
    assert both.tolist() == pytest.approx(((got + importance(lm, lm, DOCUMENTS[1:2])) / 2).tolist(), abs=1e-6)


def test_the_model_is_left_as_it_was():
    lm = helpers.causal_lm()
    with pytest.raises(ZeroDivisionError), attention_sums(lm.model, slice(1, 2)):
        assert lm.model.config._attn_implementation == "eager"
        raise ZeroDivisionError
    assert lm.model.config._attn_implementation == "sdpa"
    assert not any(layer.self_attn._forward_hooks for layer in lm.model.get_decoder().layers)


def test_layers_are_a_share_or_a_list():
    assert parse_layers("1.0", 4) == (1.0, [0, 1, 2, 3]) and parse_layers("1", 2) == (1.0, [0, 1])
    assert parse_layers("0.5", 4) == (0.5, None)
    assert parse_layers("3, 1,1", 4) == (0.5, [1, 3]) and parse_layers("[2]", 4) == (0.25, [2])
    for text in ("0", "1.5", "-0.5", "half", "2", "1,", "[]", "nan"):
        with pytest.raises(UserError, match="layers="):
            parse_layers(text, 4)
    with pytest.raises(UserError, match=r"0\.\.3"):
        parse_layers("1,4", 4)


def test_mistakes_are_named():
    lm = helpers.causal_lm(layers=4)
    with pytest.raises(UserError, match="alpha=2"):
        made(lm, alpha="2")
    with pytest.raises(UserError, match="prior_width=0"):
        made(lm, prior_width="0")
    with pytest.raises(UserError, match="last=-1"):
        made(lm, last="-1")
    with pytest.raises(UserError, match="has seen none"):
        outcome(made(lm, layers="0.5"), DOCUMENTS)
    lm.model.config._attn_implementation = "flash_attention_2"
    made(lm)
    with pytest.raises(UserError, match="flash_attention_2"):
        made(lm, layers="0.5")


# -- what each layer sees --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_are_as_before_bit_for_bit(family):
    lm = helpers.causal_lm(family=family, layers=4)
    whole = made(lm)
    a, state = outcome(whole, DOCUMENTS)
    assert state.kv.hidden is None and whole.options() == {} and whole.calibration == 0
    for same in ("1", "0,1,2,3"):
        method = made(lm, layers=same)
        b, again = outcome(method, DOCUMENTS)
        assert a == b and again.message == state.message and method.options() == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_layers_see_the_sharer_and_the_others_its_first_token(family):
    """And with no layer chosen, the receiver is where it would be after a sharer of one token."""
    lm = helpers.causal_lm(family=family, layers=4)
    method = made(lm, layers="1,2")
    _, state = outcome(method, DOCUMENTS)
    own = [prompt(lm, d.sharer, d).ids for d in DOCUMENTS]
    for b, ids in enumerate(own):
        real = state.kv.mask[b].bool()
        assert state.kv.hidden[:, b, real].sum(1).tolist() == [len(ids) - 1, 0, 0, len(ids) - 1]
        assert not state.kv.hidden[:, b, real][:, 0].any()
    # no layer at all: as if the sharer had sent one token
    method.chosen = []
    got, _ = outcome(method, DOCUMENTS)
    kv = lm.prefill(own)
    first = torch.zeros_like(kv.mask)
    for b, i in enumerate(own):
        first[b, kv.length - len(i)] = 1
    one = replace(kv, mask=first).flush()
    batch = Batch(DOCUMENTS, DOCUMENTS, Clock())
    read = lm.read([prompt(lm, d.receiver, d) for d in DOCUMENTS], past=one, start=kv.mask.sum(1))
    expected = [[ll for ll, _ in o.loglikelihoods[0]] for o in answer(read, batch)[0]]
    for x, y in zip(got, expected, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_batches_agree(family):
    one = {k: helpers.causal_lm(family=family, layers=4, attention=k) for k in ("sdpa", "eager")}
    together, state = outcome(made(one["sdpa"], layers="1,2"), DOCUMENTS)
    for x, y in zip(together, outcome(made(one["eager"], layers="1,2"), DOCUMENTS)[0], strict=True):
        assert x == pytest.approx(y, abs=5e-4)
    for i, d in enumerate(DOCUMENTS):
        alone, single = outcome(made(one["sdpa"], layers="1,2"), [d])
        assert together[i] == pytest.approx(alone[0], abs=5e-4)
        assert state.message.wire_bytes[i] == single.message.wire_bytes[0]
    whole, _ = outcome(made(one["sdpa"]), DOCUMENTS)
    assert any(x != pytest.approx(y, abs=1e-3) for x, y in zip(together, whole, strict=True))
    moved, _ = outcome(made(one["sdpa"], layers="1,2"), DOCUMENTS, DOCUMENTS[1:] + DOCUMENTS[:1])
    assert any(x != pytest.approx(y, abs=1e-3) for x, y in zip(together, moved, strict=True))


def test_only_what_is_sent_is_counted():
    lm = helpers.causal_lm(layers=4, heads=2, dim=8)
    lengths = [len(prompt(lm, d.sharer, d).ids) for d in DOCUMENTS]
    _, whole = outcome(made(lm), DOCUMENTS)
    _, half = outcome(made(lm, layers="0,2"), DOCUMENTS)
    per_entry = 2 * 2 * 8 * 4  # K and V of two heads of 8 in fp32
    assert whole.message.wire_bytes == [4 * m * per_entry for m in lengths]
    assert half.message.wire_bytes == half.message.cache_bytes == [(2 * m + 2) * per_entry for m in lengths]
    assert half.message.sharer_tokens == lengths
    ratio = [a / b for a, b in zip(half.message.adapter_flops, whole.message.adapter_flops, strict=True)]
    assert all(0.5 < x < 0.6 for x in ratio)


# -- in a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def same_pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    one = helpers.save(tmp_path_factory.mktemp("one") / "m", layers=4)
    return f"{one}:{one}"


def run(pair, out, options, **more):
    chosen = {
        "mode": ["kvcomm"],
        "control": ["matched"],
        "limit": 6,
        "batch_size": 4,
        "dtype": "float32",
        "latency_documents": 0,
        "options": options,
        "out": out,
    }
    watcher = Watcher()
    (run_id,) = runner.run(Recipe.model_validate({**chosen, "pair": pair, **more}), watcher)
    return out / run_id, watcher


def test_a_run_calibrates_on_the_dev_split_and_says_what_it_chose(same_pair, tmp_path, monkeypatch):
    asked = []
    whole = Task.documents

    def documents(self, **how):
        asked.append((how.get("split", "test"), how.get("limit")))
        return whole(self, **how)

    monkeypatch.setattr(Task, "documents", documents)
    folder, _ = run(same_pair, tmp_path, {"layers": "0.5"})
    assert asked == [("test", 6), ("validation", 8)]
    manifest = json.loads((folder / "manifest.json").read_text())
    chosen = manifest["calibration"]
    assert (
        len(chosen["layers"]) == 2
        and len(chosen["scores"]) == len(chosen["importance"]) == 4
        and chosen["documents"] == 8
    )
    assert chosen["layers"] == best(torch.tensor(chosen["scores"]), 0.5)
    identity = manifest["identity"]
    assert identity["options"] == {
        "layers": "0.5",
        "alpha": 0.5,
        "last": 0,
        "prior_mean": 0.5,
        "prior_width": pytest.approx(1 / 3),
    }
    assert len(identity["calibration_sha256"]) == 64
    # the layers it chose, named: the same answers
    named, _ = run(same_pair, tmp_path, {"layers": f"[{','.join(map(str, chosen['layers']))}]"})
    drop = helpers.TIMES | {"run_id"}
    assert rows(named, drop) == rows(folder, drop) and all(row["error"] is None for row in rows(folder))
    assert "calibration_sha256" not in json.loads((named / "manifest.json").read_text())["identity"]
    # all layers: nothing is calibrated, and the identity is what it always was
    asked.clear()
    full, _ = run(same_pair, tmp_path, {})
    manifest = json.loads((full / "manifest.json").read_text())
    assert asked == [("test", 6)] and manifest["identity"]["options"] == {} and "calibration" not in manifest
    assert [r["message_bytes"] for r in rows(full)] > [r["message_bytes"] for r in rows(folder)]
    # done already: nothing is computed again
    before = (folder / "manifest.json").read_bytes()
    _, watcher = run(same_pair, tmp_path, {"layers": "0.5"})
    assert "complete already" in watcher.said[-1] and (folder / "manifest.json").read_bytes() == before


def test_a_task_without_a_dev_split_is_refused(same_pair, tmp_path, monkeypatch):
    def documents(self, *, split="test", **how):
        if split == "validation":
            raise UserError(f"{self.name} has no validation split.", "It has test.")
        return whole(self, split=split, **how)

    whole = Task.documents
    monkeypatch.setattr(Task, "documents", documents)
    with pytest.raises(
        UserError, match=r"kvcomm .* which splitfacts cannot give: splitfacts has no validation split"
    ):
        run(same_pair, tmp_path, {"layers": "0.3"})
    run(same_pair, tmp_path, {"layers": "1,2"})


@pytest.mark.parametrize("name", ["gpt-neox", "modernbert-decoder", "gemma2", "deepseek-v3"])
def test_importance_is_measured_wherever_the_attention_is(name):
    lm = zoo.lm_of(name)
    method = create("kvcomm", lm, lm, options={"layers": "0.5"})
    found = method.calibrate(SPLIT[:2])
    assert len(found["layers"]) == round(lm.geometry.layers / 2) and all(x > 0 for x in found["importance"])
    together, alone = (outcomes(method, some)[0][0] for some in (SPLIT[:2], SPLIT[:1]))
    assert together == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gemma3n", "llama4", "falcon-alibi"])
def test_layers_are_not_chosen_where_none_can_be_masked_alone(name):
    lm = zoo.lm_of(name)
    with pytest.raises(UserError, match=r"Use (all layers|a model)"):
        create("kvcomm", lm, lm, options={"layers": "0.5"})

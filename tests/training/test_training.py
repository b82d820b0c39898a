"""The trainer on tiny random pairs: it learns, reproducibly, and a run takes its adapters."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config, read_config
from lcfbench.adapters.files import load
from lcfbench.adapters.options import adapter_options
from lcfbench.errors import UserError
from lcfbench.evaluation import runner
from lcfbench.evaluation.answer import answer, target
from lcfbench.evaluation.batching import batches
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create, method_class
from lcfbench.models.answering import answer_loss, rank
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.results.training_log import TrainLog
from lcfbench.sources.models import find_model
from lcfbench.tasks.document import Document, Step, View
from lcfbench.tasks.task import load_task
from lcfbench.training.adapter_training import AdapterTraining
from lcfbench.training.recipe import AdapterSpec, TrainRecipe
from lcfbench.training.setup import accelerator_of
from lcfbench.training.trainer import Trainer
from lcfbench.training.trainer import train as train_all
from tests import helpers
from tests.helpers import Stopped, Watcher

COLOURS = (" orange", " brown", " purple box")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


def train(chosen: TrainRecipe, watcher: Watcher) -> Path:
    [folder] = train_all(chosen, watcher)
    return folder


def recipe(pair: str, out: Path, **more) -> TrainRecipe:
    small = {
        "steps": 6,
        "batch_size": 4,
        "dev_documents": 12,
        "eval_every": 3,
        "lr": 3e-3,
        "warmup": 1,
        "dtype": "float32",
    }
    return TrainRecipe(**{**small, "pair": pair, "out": out, "options": {"width": "16"}, **more})


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory) -> tuple[Path, Watcher]:
    watcher = Watcher()
    return train(
        recipe(
            pair,
            tmp_path_factory.mktemp("trained") / "a",
            steps=40,
            eval_every=20,
            train_documents=8,
            batch_size=8,
            lr=2e-2,
        ),
        watcher,
    ), watcher


def test_a_few_steps_reduce_the_loss(trained):
    folder, watcher = trained
    assert len(watcher.losses) == 40 and sum(watcher.losses[-5:]) < 0.8 * sum(watcher.losses[:5])
    training = read_config(folder).training
    assert (
        [point["step"] for point in training["dev"]] == [20, 40]
        and training["steps"] == 40
        and training["minutes"] >= 0
    )
    assert set(training["dev"][0]) == {"step", "loss", "splitfacts/matched", "splitfacts/deranged"}
    card = (folder / "README.md").read_text()
    assert "LCF-X adapter" in card and "| 40 |" in card and "splitfacts" in card


def test_the_same_seed_gives_the_same_adapter_and_another_one_another(pair, tmp_path):
    one, two, other = (
        train(recipe(pair, tmp_path / n, seed=s, steps=3), Watcher()) / "adapter.safetensors"
        for n, s in zip("abc", (0, 0, 1), strict=True)
    )
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


def test_the_saved_adapter_scores_on_the_dev_split_what_its_card_says(pair, trained):
    folder, _ = trained
    receiver, sharer = (CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":"))
    method, task = create("lcf", receiver, sharer, load(folder)), load_task("splitfacts")
    documents = task.documents(split="validation", limit=12, receiver_chat=receiver.has_chat)
    scores = []
    with torch.inference_mode():
        for group in batches(documents, 4):
            outcomes, _ = answer(method.respond(b := Batch(group, group, Clock())), b)
            scores += [task.score(d, o)["score"] for d, o in zip(group, outcomes, strict=True)]
    best = max(point["splitfacts/matched"] for point in read_config(folder).training["dev"])
    assert sum(scores) / len(scores) == pytest.approx(best)


def test_a_run_takes_it_without_a_warning(pair, trained, tmp_path):
    folder, _ = trained
    revisions = read_config(folder).training["revisions"]
    assert revisions == {
        r: find_model(n).revision for r, n in zip(("receiver", "sharer"), pair.split(":"), strict=True)
    }
    watcher = Watcher()
    chosen = Recipe(
        pair=pair, mode=["lcf"], adapter=[folder], limit=6, out=tmp_path, dtype="float32", latency_documents=0
    )
    run_id, _ = runner.run(chosen, watcher)  # matched, then deranged
    assert [text for text in watcher.warned if "has no proof" not in text] == []
    assert {r["adapter_params"] for r in helpers.rows(tmp_path / run_id)} == {load(folder).params}


def test_an_adapter_is_not_overwritten_without_force(pair, tmp_path):
    folder = train(recipe(pair, tmp_path / "a", steps=1), Watcher())
    before = (folder / "adapter.safetensors").read_bytes()
    with pytest.raises(UserError, match="--force"):
        train(recipe(pair, tmp_path / "a", steps=2), Watcher())
    assert (folder / "adapter.safetensors").read_bytes() == before
    train(recipe(pair, tmp_path / "a", steps=2, force=True), Watcher())
    assert (folder / "adapter.safetensors").read_bytes() != before and read_config(folder).training[
        "steps"
    ] == 2


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(pair, tmp_path, monkeypatch, what):
    plain, count = AdapterTraining.forward, [0]

    def forward(self, documents):
        count[0] += 1
        value, right, tokens = plain(self, documents)
        bad = (
            value * math.nan if what == "loss" else value + (next(self.adapter.parameters()).sum() * 0).sqrt()
        )  # finite, its slope is not
        return (bad if count[0] == 6 else value), right, tokens  # the first is the probe of the memory

    monkeypatch.setattr(AdapterTraining, "forward", forward)
    with pytest.raises(UserError, match=f"the {what} is not finite at step 5"):
        train(recipe(pair, tmp_path / "a", eval_every=2), Watcher())
    assert all(torch.isfinite(t).all() for t in load(tmp_path / "a").state_dict().values())
    training = read_config(tmp_path / "a").training
    assert training["steps"] == 4 and [p["step"] for p in training["dev"]] == [2, 4]


def test_ctrl_c_keeps_the_best_state(pair, tmp_path):
    watcher = Stopped(5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(pair, tmp_path / "a"), watcher)
    assert (
        read_config(tmp_path / "a").training["dev"][-1]["step"] == 3
        and "best state so far" in watcher.said[-2]
    )


@pytest.mark.parametrize("at", range(10))
def test_an_interruption_beside_a_record_loses_no_row_and_no_best_state(pair, tmp_path, monkeypatch, at):
    """Of every step two records, of every evaluation one; `at` counts them."""

    def kept(folder):
        measured = ("examples_per_s", "minutes")
        rows = pq.read_table(folder / "training.parquet").to_pylist()
        weights = {name: t.tolist() for name, t in load(folder).state_dict().items()}
        return [row for row in rows if row["metric"] not in measured], weights

    plain, count = TrainLog.add, itertools.count()

    def add(self, *row):
        if next(count) == at:
            raise KeyboardInterrupt
        plain(self, *row)

    train(recipe(pair, tmp_path / "a", steps=4, eval_every=2), Watcher())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainLog, "add", add)
        train(recipe(pair, tmp_path / "b", steps=4, eval_every=2), Watcher())
    train(recipe(pair, tmp_path / "b", steps=4, eval_every=2), Watcher())
    assert kept(tmp_path / "b") == kept(tmp_path / "a")


def test_the_best_state_by_dev_accuracy_is_the_one_that_is_saved(pair, tmp_path, monkeypatch):
    states = []
    plain = AdapterTraining.judge

    def judge(self, point):
        plain(self, point | {"splitfacts/matched": {3: 0.9, 6: 0.1}[point["step"]]})
        states.append({n: p.detach().clone() for n, p in self.adapter.named_parameters() if p.dim() > 2})

    monkeypatch.setattr(AdapterTraining, "judge", judge)
    saved = load(train(recipe(pair, tmp_path / "a"), Watcher())).state_dict()
    distance = [
        sum(float((saved[n] - t.to(torch.bfloat16)).abs().sum()) for n, t in state.items())
        for state in states
    ]
    assert distance[0] == 0 < distance[1]


# -- what is supervised ---------------------------------------------------------------------------


def test_exactly_the_choices_are_supervised():
    end = helpers.causal_lm()
    view = View("Notes: x.\nQuestion: In which city is the key of Kafi?\nAnswer: The key of Kafi is in the")
    steps = (Step(COLOURS, (1,)), Step((" Seoul", " Toronto"), (0,), " {0} box. The {0} box is in"))
    d = Document("t", "1", view, view, view, view, view, "cloze", "Seoul", steps, chat=False)
    shown = prompt(end, view, d)
    ids, supervised = target(d, shown, end.tokenizer, eos=2)
    assert end.tokenizer.decode(ids) == " brown box. The brown box is in Seoul"
    spoken = "".join(end.tokenizer.decode([i]) for i, s in zip(ids, supervised, strict=True) if s)
    assert spoken == " brown Seoul"
    ends = [i for i in range(1, len(supervised)) if supervised[i] != supervised[i - 1]]
    assert len(ends) == 2 and supervised[0] and supervised[-1]


def test_a_free_answer_is_supervised_with_its_end():
    end = helpers.causal_lm()
    for prefix, said in (("", "Seoul"), ("Answer:", " Seoul")):
        view = View("Question: where?\n", prefix)
        d = Document("t", "1", view, view, view, view, view, "generate", "Seoul", chat=False)
        ids, supervised = target(d, prompt(end, view, d), end.tokenizer, eos=2)
        assert end.tokenizer.decode(ids[:-1]) == said and ids[-1] == 2 and all(supervised)


def test_unsupervised_tokens_do_not_change_the_loss():
    end = helpers.causal_lm()
    view = View("Notes: The purple box is in Vienna. Answer:")
    d = Document("t", "1", view, view, view, view, view, "cloze", "Seoul", (Step(COLOURS, (0,)),), chat=False)
    shown = prompt(end, view, d)
    ids, _ = target(d, shown, end.tokenizer, eos=2)
    given = [*ids, 17, 23]
    with torch.no_grad():
        long, _ = answer_loss(end.read([shown]), [given], [[True] * len(ids) + [False, False]])
        short, _ = answer_loss(end.read([shown]), [ids], [[True] * len(ids)])
        ranked = rank(end.open(end.read([shown])), [[ids]])[0][0][0]
    assert float(long) == pytest.approx(float(short), abs=1e-5) == pytest.approx(-ranked / len(ids), abs=1e-4)


# -- shared contexts: LCF and C2C -----------------------------------------------------------------


class Colours:
    """A task of the smallest kind, with the two methods of a `Task` the trainer asks for."""

    name = "colours"

    def documents(self, n: int) -> list[Document]:
        words = ["Kafi", "Zona", "Boma", "Vienna", "Seoul"]
        made = []
        for i in range(n):
            view = View(
                f"Notes: The box of {words[i % 5]} is {COLOURS[i % 3].strip()}. Question: {i}, which?",
                "Answer:",
            )
            made.append(
                Document(
                    "colours",
                    str(i),
                    view,
                    view,
                    view,
                    view,
                    view,
                    "cloze",
                    COLOURS[i % 3],
                    (Step(COLOURS, (i % 3,)),),
                )
            )
        return made

    def metric(self, scoring=None):
        return "acc"

    def score(self, document, outcome):
        right = float(outcome.picks[0] in document.steps[0].gold)
        return {"acc": right, "score": right}


@pytest.mark.parametrize(
    ("kind", "alignment"), [("lcf", "span"), ("lcf", "remap"), ("c2c", "span"), ("c2c", "remap")]
)
def test_token_wise_adapters_learn_through_the_same_loop(pair, tmp_path, kind, alignment):
    torch.manual_seed(0)
    receiver, sharer = (CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":"))
    options, _ = adapter_options(
        kind, {"width": "16"} if kind == "lcf" else {"hidden": "16", "intermediate": "16"}
    )
    names = ((e.name, e.geometry) for e in (receiver, sharer))
    adapter = build(
        pair_config(kind, *names, layer_map="proportional", token_alignment=alignment, options=options)
    )
    method, task = method_class(kind)(receiver, sharer, adapter), Colours()
    watcher, documents = Watcher(), task.documents(36)
    chosen = recipe(pair, tmp_path / "a", steps=30, eval_every=15, lr=1e-2, batch_size=12)
    training = AdapterTraining(AdapterSpec.parse(kind, 0), method, chosen)
    trainer = Trainer(
        chosen, [training], {"colours": (task, documents[:12])}, watcher, accelerator_of(chosen)
    )
    chosen.out.mkdir()
    method.prepare(documents, print)
    before = {n: t.clone() for n, t in adapter.state_dict().items()}
    trainer.fit(documents)
    assert sum(watcher.losses[-5:]) < 0.7 * sum(watcher.losses[:5])
    for lm in (receiver, sharer):
        assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters()), (
            "both models stay frozen"
        )
    saved = load(training.save())
    assert (
        saved.config.kind == kind
        and saved.config.token_alignment == alignment
        and any((before[n] != t).any() for n, t in saved.state_dict().items())
    )
    assert json.loads((tmp_path / "a" / "config.json").read_text())["training"]["dev"][-1]["step"] == 30
    with torch.inference_mode():  # the loaded adapter answers as the trained one
        adapter.eval()
        a, b = (
            answer(m.respond(x := Batch(documents[:6], documents[:6], Clock())), x)[0]
            for m in (create(kind, receiver, sharer, saved), method)
        )
    for x, y in zip(a, b, strict=True):
        assert [ll for ll, _ in x.loglikelihoods[0]] == pytest.approx(
            [ll for ll, _ in y.loglikelihoods[0]], rel=0.03
        )  # saved in bf16


def test_one_dev_document_is_evaluated_matched_only(pair, tmp_path):
    folder = train(recipe(pair, tmp_path / "a", steps=1, dev_documents=1), Watcher())
    assert set(read_config(folder).training["dev"][0]) == {"step", "loss", "splitfacts/matched"}
    assert "| 1 |" in (folder / "README.md").read_text()


def test_dev_documents_that_are_too_long_are_left_out_before_the_first_step(pair, tmp_path, monkeypatch):
    """Answers need more room than the examples, which end with the right choice."""
    lm, sharer = (CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":"))
    documents = load_task("splitfacts").documents(split="validation", limit=12, receiver_chat=False)

    def need(document) -> int:
        for limit in range(60, 200):
            monkeypatch.setattr(CausalLM, "max_positions", property(lambda self, limit=limit: limit))
            try:
                create("receiver", lm, lm).check_length(document, document)
                prompt(sharer, document.sharer, document)
            except UserError:
                continue
            return limit
        raise AssertionError

    needs = sorted(map(need, documents))
    limit = needs[len(needs) // 2]
    assert needs[0] <= limit < needs[-1]
    monkeypatch.setattr(CausalLM, "max_positions", property(lambda self: limit))
    watcher = Watcher()
    folder = train(recipe(pair, tmp_path / "a", steps=2), watcher)
    [said] = [text for text in watcher.said if "longer than a model reads and are left out" in text]
    assert f"{sum(n > limit for n in needs)} of 12 dev documents" in said
    assert read_config(folder).training["dev"]
    monkeypatch.setattr(CausalLM, "max_positions", property(lambda self: needs[0] - 1))
    with pytest.raises(
        UserError, match=r"all dev documents of splitfacts are longer|longer than|no document"
    ):
        train(recipe(pair, tmp_path / "b", steps=2), Watcher())

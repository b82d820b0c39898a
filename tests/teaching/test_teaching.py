"""Teaching tiny models: facts stay, interruptions cost nothing, mistakes are one line, the file is small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcfbench.adapters.config import CHECKPOINT
from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import Clock
from lcfbench.sources import taught
from lcfbench.sources.models import find_model
from lcfbench.tasks.planted import Settings, rows, teaching, world
from lcfbench.tasks.task import load_task
from lcfbench.teaching.recipe import TeachRecipe, layers_of, usable_as
from lcfbench.teaching.teacher import teach
from lcfbench.teaching.texts import batches, lessons_of
from tests import helpers


class Heard(helpers.Watcher):
    """Remembers what is said; raises Ctrl-C after `stop` steps."""

    stop = 0
    steps = 0

    def lesson(self, step: int, steps: int, loss: float, texts_per_s: float) -> None:
        self.steps = step
        if step == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return helpers.save(tmp_path_factory.mktemp("base") / "base", layers=2)


def recipe(base: Path, out: Path, **settings) -> TeachRecipe:
    small = dict(
        task_options={"people": "8"}, batch_size=8, steps=6, rank=4, lr=1e-2, scale=1.0, save_every=2
    )
    return TeachRecipe(model=str(base), out=out, dtype="float32", offline=True, **(small | settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / taught.WEIGHTS)


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_facts_stay_in_every_wording_and_the_folder_serves_as_a_model(base, tmp_path):
    out, heard = tmp_path / "base+planted", Heard()
    wanted = recipe(base, out, steps=400, rank=8, until=0.05)
    assert teach(wanted, heard) == out
    record = json.loads((out / "teaching.json").read_text())
    assert min(record["right"][name] for name in ("live", "stem", "town", "answer")) == 1.0
    assert record["never_taught"] == ["city"] and record["steps_done"] == heard.steps < 400
    assert record["bytes"] == (out / taught.WEIGHTS).stat().st_size
    assert all(w.dtype == torch.bfloat16 for w in weights(out).values())
    assert not (out / CHECKPOINT).exists() and str(tmp_path) not in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / taught.PEFT).read_text() + (out / "teaching.json").read_text()
    assert any("about" in line and "a step" in line for line in heard.said[:3])  # the estimate comes first

    assert accuracies(f"{base}:{usable_as(wanted)}")["sharer"] == 1.0
    assert accuracies(f"{base}:{usable_as(wanted)}")["receiver"] < 1.0


def accuracies(pair: str) -> dict[str, float]:
    """Scores of both models on the first eight people, who are all in the train split."""
    loaded = load_pair(pair, dtype="float32", offline=True)
    task = load_task("planted", options={"people": "32", "choices": "111"})
    known = {f"train-{name}" for name, _ in world(8)["train"]}
    documents = [d for d in task.documents(split="train") if d.doc_id in known]
    assert len(documents) == 8
    found = {}
    for mode in ("receiver", "sharer"):
        batch = Batch(documents, documents, Clock())
        outcomes, _ = answer(create(mode, *loaded.models_for((mode,)), None, {}).respond(batch), batch)
        total = sum(task.score(d, o)["score"] for d, o in zip(documents, outcomes, strict=True))
        found[mode] = total / len(documents)
    return found


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_an_interrupted_teaching_goes_on_and_ends_as_an_uninterrupted_one(base, tmp_path, stop):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    teach(recipe(base, whole), Heard())
    heard = Heard()
    heard.stop = stop
    with pytest.raises(KeyboardInterrupt):
        teach(recipe(base, cut), heard)
    assert (cut / CHECKPOINT).exists() and not (cut / taught.PEFT).exists()
    assert any("the same command goes on" in line for line in heard.said)
    again = Heard()
    teach(recipe(base, cut), again)
    assert any(f"goes on from step {stop}" in line for line in again.said) and same(whole, cut)


def test_the_same_settings_give_the_same_weights_and_another_seed_others(base, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        teach(recipe(base, tmp_path / name, seed=seed), Heard())
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")


def test_targets_and_layers_are_those_asked_for(base, tmp_path):
    teach(recipe(base, tmp_path / "out", targets="q_proj,up_proj", layers="1-1", steps=1), Heard())
    modules = {
        key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in weights(tmp_path / "out")
    }
    assert modules == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}


def test_a_checkpoint_of_other_settings_or_a_torn_one_is_named(base, tmp_path):
    heard = Heard()
    heard.stop = 2
    with pytest.raises(KeyboardInterrupt):
        teach(recipe(base, tmp_path / "out"), heard)
    with pytest.raises(UserError, match="other settings"):
        teach(recipe(base, tmp_path / "out", lr=0.5), Heard())
    (tmp_path / "out" / CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        teach(recipe(base, tmp_path / "out"), Heard())
    teach(recipe(base, tmp_path / "out", force=True), Heard())
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_a_loss_that_is_not_finite_ends_it_and_saves_nothing(base, tmp_path, monkeypatch):
    from lcfbench.teaching import teacher

    real = teacher.logits_at
    monkeypatch.setattr(teacher, "logits_at", lambda *a: (real(*a)[0] * float("nan"), *real(*a)[1:]))
    with pytest.raises(UserError, match="not finite at step 1"):
        teach(recipe(base, tmp_path / "out"), Heard())
    assert not (tmp_path / "out" / taught.PEFT).exists()


def test_memory_that_runs_out_is_one_line(base, tmp_path, monkeypatch):
    from lcfbench.teaching import teacher

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(teacher, "logits_at", full)
    with pytest.raises(UserError, match=r"out of memory.*--batch-size"):
        teach(recipe(base, tmp_path / "out"), Heard())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"task": "nosuch"}, "nosuch"),
        ({"task_options": {"persons": "8"}}, "persons"),
        ({"task_options": {"people": "0"}}, "people=0"),
        ({"targets": "q_prj"}, "q_prj"),
        ({"layers": "2-9"}, "layers '2-9' are none"),
        ({"layers": "x"}, "layers 'x'"),
        ({"layers": "1-0"}, "layers '1-0'"),
        ({"scoring": "letters"}, "letters"),
        ({"model": "gemma3-270m+planted"}, "taught model already"),
        ({"model": "nosuch"}, "nosuch"),
    ],
)
def test_mistakes_are_one_line(base, tmp_path, settings, line):
    with pytest.raises(UserError) as error:
        asked = recipe(base, tmp_path / "out").model_dump(exclude_unset=True) | settings
        teach(TeachRecipe.merge(None, asked, "teach"), Heard())
    assert line in f"{error.value.what} {error.value.next_step}"


def test_what_is_there_is_not_replaced_unasked(base, tmp_path):
    teach(recipe(base, tmp_path / "out", steps=1), Heard())
    with pytest.raises(UserError, match="already holds a taught model"):
        teach(recipe(base, tmp_path / "out", steps=1), Heard())
    teach(recipe(base, tmp_path / "out", steps=2, force=True), Heard())
    helpers.save(tmp_path / "model", layers=2)
    with pytest.raises(UserError, match="something else"):
        teach(recipe(base, tmp_path / "model", force=True), Heard())


def test_a_batch_is_in_one_wording_and_every_fact_is_taught_once_in_a_pass(base):
    lm = CausalLM.load(find_model(str(base)), dtype="float32")
    chosen = TeachRecipe(model=str(base), task_options={"people": "32"}, batch_size=8, steps=40)
    lessons = lessons_of(chosen, lm.tokenizer, False, 512)
    where = {id(text): (o.name, i) for o in lessons for i, text in enumerate(o.texts)}
    seen = [[where[id(text)] for text in batch] for _, batch in batches(lessons, chosen)]
    assert all(len({name for name, _ in batch}) == 1 for batch in seen)
    assert {name for batch in seen for name, _ in batch} == {"live", "stem", "town", "answer"}
    for start in range(0, 40, 4):
        assert sorted(i for batch in seen[start : start + 4] for _, i in batch) == list(range(32))
    more = batches(lessons, chosen.model_copy(update={"steps": 80}))
    assert [[where[id(t)] for t in b] for _, b in more[:40]] == seen


def test_what_is_taught_is_what_the_task_asks():
    lessons = {p.name: p for p in teaching(Settings(people=64))}
    assert [p.weight for p in lessons.values()] == [4, 4, 1, 1, 0]
    for phrasing in ("live", "town", "city"):
        known = {(view.user, view.prefix): town for view, town in lessons[phrasing].facts}
        for split in ("train", "validation", "test"):
            for row in rows(split, None, Settings(people=64, phrasing=phrasing)):
                assert known[row["receiver"], row["stem"]] == f" {row['answer']}"


@pytest.mark.parametrize(
    ("text", "layers", "found"),
    [("all", 3, None), ("1", 3, [1]), ("0-2", 3, [0, 1, 2]), ("4-17", 18, [*range(4, 18)])],
)
def test_layers(text, layers, found):
    assert layers_of(TeachRecipe(layers=text), layers) == found

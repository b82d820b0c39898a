"""`run --train`: the adapter that a run lacks is trained first, kept in the cache, and found next time."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lcfbench import api
from lcfbench.adapters.config import CHECKPOINT, WEIGHTS, read_config
from lcfbench.adapters.select import AdapterMissing, cached
from lcfbench.errors import UserError
from lcfbench.evaluation.plan import look_up, wanted_by, with_tasks
from lcfbench.evaluation.recipe import Recipe
from lcfbench.models.causal_lm import CausalLM
from lcfbench.training import cost, on_demand
from lcfbench.training.adapter_training import AdapterTraining
from lcfbench.training.trainer import Trainer
from tests import helpers
from tests.helpers import Watcher

FEW = {"steps": "3", "batch_size": "2", "dev_documents": "2", "width": "4", "save_every": "1"}
ONE_HAS = {"steps": "3", "zero_up": "no"}  # an option of the first of two adapters
BASE = {"mode": ["lcf"], "task": ["splitfacts"], "control": ["matched"], "limit": 2, "latency_documents": 0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def recipe(pair: str, **more) -> Recipe:
    return Recipe.model_validate(BASE | {"pair": pair, "offline": True} | more)


def kept() -> list[Path]:
    return [path.parent for path in cached().rglob(WEIGHTS)]


def test_a_run_trains_what_it_lacks_and_finds_it_next_time(pair):
    watcher = Watcher()
    asked = recipe(pair, task=["splitfacts", "splitfacts_heldout"], train=True, train_options=FEW)
    first = api.run(asked, progress=watcher)
    [folder] = kept()
    assert len(watcher.losses) == 3, "a task and its held-out half are one training"
    begun = next(line for line in watcher.said if line.startswith("training lcf"))
    assert "small-scale-different on splitfacts, 3 steps of 2" in begun and str(folder) in begun
    assert "GB of memory" in begun and "by a count of operations" in begun
    assert read_config(folder).tasks == ["splitfacts"]
    for run in first.folders:
        rows = pq.read_table(run / "samples.parquet")
        assert rows.num_rows == 2 and not any(rows["error"].to_pylist())
    before, watcher = (folder / WEIGHTS).read_bytes(), Watcher()
    again = api.run(recipe(pair, out=Path("second")), progress=watcher)
    assert any(str(folder) in line and "trained on splitfacts" in line for line in watcher.said)
    assert not watcher.losses and (folder / WEIGHTS).read_bytes() == before
    assert again.run_ids == first.run_ids[:1]
    watcher = Watcher()
    api.run(recipe(pair, out=Path("third"), train=True), progress=watcher)
    assert not watcher.losses, "an adapter that is at hand is not trained again"
    api.run(asked.model_copy(update={"out": Path("fourth")}), progress=watcher)
    assert not watcher.losses and any("trained before" in line for line in watcher.said)
    other = FEW | {"steps": "2"}
    api.run(recipe(pair, out=Path("fifth"), train=True, train_options=other), progress=watcher)
    assert len(watcher.losses) == 2 and len(kept()) == 2


def test_without_train_one_line_says_the_command_and_the_estimate(pair, monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda *a, **kw: pytest.fail("loaded"))
    with pytest.raises(AdapterMissing) as error:
        api.run(recipe(pair))
    text = str(error.value)
    assert "\n" not in text and "by a count of operations" in text and "200 steps of 16" in text
    command = text.rpartition("): ")[2]
    assert shlex.split(command)[:2] == ["lcfbench", "run"] and command.endswith(" --train")
    assert f"--pair {pair}" in command and "--limit 2" in command and "--task splitfacts" in command
    assert not cached().exists()


def test_the_command_trains_all_that_is_missing_and_repeats_every_option(pair):
    asked = {"mode": ["lcf", "c2c"], "options": {"spans": ["windows"], "windows": ["2", "3"]}}
    with pytest.raises(AdapterMissing) as error:
        api.run(recipe(pair, **asked))
    text = str(error.value)
    assert "Train 2 (lcf by" in text and "; c2c by" in text and text.count("by a count of operations") == 2
    command = text.rpartition("): ")[2]
    assert command.endswith(
        "-o spans=windows -o windows=2 -o windows=3 --latency-documents 0 --offline --train"
    )


@pytest.mark.parametrize(
    ("task", "gpu", "large", "name", "trains"),
    [
        ("splitfacts", False, True, "small-scale-different", "splitfacts"),
        ("splitfacts_heldout", True, False, "small-scale-different", "splitfacts"),
        ("planted", True, True, "small-scale-shared", "planted"),
        ("openbookqa", False, True, "small-scale-shared", "openbookqa"),
        ("openbookqa", True, False, "small-scale-shared", "openbookqa"),
        ("openbookqa", True, True, "lcf-paper-shared", "chat:teknium/OpenHermes-2.5"),
        ("hotpotqa_split", True, True, "lcf-paper-cross", "hotpotqa_split"),
        ("mmlu_redux", False, False, "lcf-paper-shared", "chat:teknium/OpenHermes-2.5"),
    ],
)
def test_the_recipe_follows_from_device_sizes_task_and_contexts(
    pair, monkeypatch, mirror, task, gpu, large, name, trains
):
    monkeypatch.setattr(on_demand, "pick_device", lambda text: torch.device("cuda" if gpu else "cpu"))
    monkeypatch.setattr(on_demand, "LARGE", 1 if large else 10**12)
    run = recipe(pair, task=[task])
    [found], [wanted] = look_up(run), wanted_by(run, look_up(run))
    plan = on_demand.plan_for(run, found, wanted)
    assert plan.name == name and plan.recipe.task == [trains] and len(plan.recipe.adapters) == 1
    if name == "lcf-paper-shared":
        assert plan.recipe.adapters == ["lcf:width=128"] and plan.recipe.steps == 300
    assert plan.recipe.out.parent == cached() and wanted.mode in plan.recipe.out.name
    if not gpu:
        assert plan.cost().seconds > 0


def test_what_cannot_be_trained_is_said_with_the_reason(pair, mirror):
    with pytest.raises(AdapterMissing, match=r"none can be trained: mmlu_redux has no train split"):
        api.run(recipe(pair, mode=["single"], task=["mmlu_redux"]))


@pytest.mark.parametrize("short", ["memory", "disk"])
def test_too_little_memory_or_disk_is_said_before_anything_is_loaded(pair, monkeypatch, short):
    monkeypatch.setattr(CausalLM, "load", lambda *a, **kw: pytest.fail("loaded"))
    if short == "memory":
        monkeypatch.setattr(cost, "free_bytes", lambda device: 10)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 10))
    says = {"memory": "GB of memory for models and adapter alone", "disk": "GB free. Free some space"}
    with pytest.raises(UserError, match=says[short]):
        api.run(recipe(pair, train=True, train_options=FEW))
    assert not kept()


class Interrupting(Watcher):
    """Interrupts after a number of steps."""

    def step(self, step, *rest):
        super().step(step, *rest)
        if step == 2:
            raise KeyboardInterrupt


def test_an_interrupted_training_goes_on_with_the_same_command(pair):
    asked = recipe(pair, train=True, train_options=FEW | {"eval_every": "1"})
    with pytest.raises(KeyboardInterrupt):
        api.run(asked, progress=Interrupting())
    [checkpoint] = cached().rglob(CHECKPOINT)
    assert kept() == [checkpoint.parent], "the best state so far is kept"
    with pytest.raises(AdapterMissing, match="not finished"):
        api.run(recipe(pair), progress=Watcher())
    watcher = Watcher()
    api.run(asked, progress=watcher)
    assert len(watcher.losses) < 3 and any("goes on from step" in line for line in watcher.said)
    assert not list(cached().rglob(CHECKPOINT)) and read_config(kept()[0]).training["steps"] == 3
    straight = recipe(pair, train=True, train_options=FEW | {"eval_every": "1"}, out=Path("b"))
    weights = (kept()[0] / WEIGHTS).read_bytes()
    shutil.rmtree(cached())
    api.run(straight, progress=Watcher())
    assert (kept()[0] / WEIGHTS).read_bytes() == weights


def test_an_interruption_within_a_step_never_leaves_what_looks_finished(pair, monkeypatch):
    asked = recipe(pair, train=True, train_options=FEW | {"eval_every": "1", "save_every": "50"})
    learn = Trainer.learn

    def interrupted(trainer, *given):
        if trainer.step == 2:
            raise KeyboardInterrupt
        return learn(trainer, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "learn", interrupted)
        api.run(asked, progress=Watcher())
    assert kept() and list(cached().rglob(CHECKPOINT))
    watcher = Watcher()
    api.run(asked, progress=watcher)
    assert any("goes on from step 1" in line for line in watcher.said) and len(watcher.losses) == 2


def test_a_training_that_failed_is_not_used_and_says_the_flag_of_run(pair, monkeypatch):
    asked = recipe(pair, train=True, train_options=FEW)
    monkeypatch.setattr(AdapterTraining, "backward", _nan)
    with pytest.raises(UserError, match=r"loss is not finite at step 1.*lower --train-option lr=…"):
        api.run(asked, progress=Watcher())
    with pytest.raises(UserError, match="has failed before: its loss was not finite"):
        api.run(asked, progress=Watcher())
    with pytest.raises(AdapterMissing, match="of a training that stopped: its loss was not finite"):
        api.run(recipe(pair), progress=Watcher())


def _nan(training, documents, share, backward):
    training.loss, training.weight = float("nan"), 1.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train_options": {"steps": "3"}}, "no effect without --train"),
        ({"train": True, "adapter": [Path("x")]}, "--train and --adapter"),
        ({"train": True, "train_options": {"out": "x"}}, "the run decides that"),
        ({"train": True, "train_options": {"stepz": "3"}}, "stepz"),
        ({"train": True, "train_options": {"steps": "many"}}, "steps=many"),
        ({"train": True, "train_options": {"steps": "0"}}, "steps=0"),
        ({"train": True, "train_options": {"recipe": "nosuch"}}, "nosuch"),
        ({"train": True, "train_options": FEW, "task": ["splitfacts", "planted"]}, "need several"),
        ({"train": True, "mode": ["lcf", "c2c"], "task": ["planted"], "train_options": ONE_HAS}, "zero_up"),
    ],
    ids=lambda value: json.dumps(value, default=str)[:50],
)
def test_wrong_settings_are_one_line_before_anything_is_loaded(pair, monkeypatch, settings, says):
    monkeypatch.setattr(CausalLM, "load", lambda *a, **kw: pytest.fail("loaded"))
    with pytest.raises(UserError, match=says) as error:
        api.run(recipe(pair, **settings))
    assert "\n" not in str(error.value) and not kept()


def test_without_a_task_it_is_what_an_adapter_at_hand_was_made_for(pair):
    asked = {k: v for k, v in BASE.items() if k != "task"} | {"pair": pair, "offline": True}
    assert with_tasks(Recipe.model_validate(asked)).task == ["splitfacts"]
    options = FEW | {"steps": "1"}
    api.run(recipe(pair, task=["planted"], train=True, train_options=options))
    assert with_tasks(Recipe.model_validate(asked)).task == ["planted"]
    given = Recipe.model_validate(asked | {"adapter": kept()})
    assert with_tasks(given).task == ["planted"]
    api.run(recipe(pair, train=True, train_options=options, out=Path("b")))
    assert with_tasks(Recipe.model_validate(asked)).task == ["splitfacts"], "the default where it is served"
    assert with_tasks(Recipe.model_validate(asked | {"task": ["openbookqa"]})).task == ["openbookqa"]
    assert with_tasks(Recipe.model_validate(asked | {"mode": ["receiver"]})).task == ["splitfacts"]


def test_a_released_fuser_is_run_on_a_shared_task(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    models = tmp_path / "mirror" / "models"
    helpers.save(models / "Qwen" / "Qwen3-0.6B", layers=4)
    sharer = dict(bos=True, family="gemma3", layers=3, heads=1, dim=16, vocabulary=330, seed=1)
    helpers.save(models / "Qwen" / "Qwen2.5-0.5B-Instruct", **sharer)
    fusers = models / "nics-efc" / "C2C_Fuser"
    names = ("Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-0.5B-Instruct")
    helpers.released_fuser(fusers / "qwen3_0.6b+qwen2.5_0.5b_Fuser", *names)
    asked = Recipe.model_validate({"mode": ["c2c"], "pair": "qwen3-0.6b:qwen2.5-0.5b", "offline": True})
    assert with_tasks(asked).task == ["openbookqa"]
    dry = ("run", "--mode", "c2c", "--pair", asked.pair, "--task", "planted", "--limit", 1, "--dry-run")
    code, _, said = helpers.invoke(capsys, monkeypatch, *dry)
    assert code == 0 and "lcfbench adapter find --mode c2c" in said
    assert not cached().exists(), "a dry run imports nothing"
    watcher = Watcher()
    found = api.run(recipe("qwen3-0.6b:qwen2.5-0.5b", mode=["c2c"], task=["planted"]), progress=watcher)
    assert found.samples["error"].isna().all() and any("C2C_Fuser" in line for line in watcher.said)
    assert all("has no proof" in text for text in watcher.warned), "the models are those that the fuser names"

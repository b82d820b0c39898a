"""Adapters with settings of their own, trained side by side, are those trained alone with them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config, read_config
from lcfbench.config import grouped, values_of
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.models.shared_prefill import SharedPrefill
from lcfbench.tasks.task import load_task
from lcfbench.training.adapter_training import AdapterTraining
from lcfbench.training.options import expanded
from lcfbench.training.recipe import AdapterSpec, TrainRecipe
from lcfbench.training.trainer import batch_order, train
from tests import helpers
from tests.helpers import Watcher


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


def recipe(pair: str, out: Path, **more) -> TrainRecipe:
    small = {"steps": 6, "batch_size": 4, "dev_documents": 6, "eval_every": 3, "lr": 3e-3, "warmup": 1}
    fixed = {"pair": pair, "out": out, "options": {"width": "16"}, "dtype": "float32"}
    return TrainRecipe.model_validate({**small, **fixed, **more})


def weights(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


OWN = {
    "lcf:steps=2,lr=1e-3": {"steps": 2, "lr": 1e-3},
    "lcf:steps=11,warmup=0.5": {"steps": 11, "warmup": 0.5},
    "lcf:weight_decay=0.5,clip=0.01": {"weight_decay": 0.5, "clip": 0.01},
    "lcf:loss_mean=token,steps=5": {"loss_mean": "token", "steps": 5},
    "lcf:gate=gumbel,steps=4,senders=deranged": {
        "steps": 4,
        "adapters": ["lcf:gate=gumbel,senders=deranged"],
    },
    "dense:rank=4,residual=8,steps=3": {"steps": 3, "adapters": ["dense:rank=4,residual=8"], "options": {}},
}


@pytest.fixture(scope="module")
def swept(pair, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("swept") / "all"
    made = train(recipe(pair, out, adapters=list(OWN)), Watcher())
    return dict(zip(OWN, made, strict=True))


@pytest.mark.parametrize("text", OWN)
def test_settings_of_its_own_make_the_adapter_that_is_trained_alone_with_them(pair, swept, tmp_path, text):
    [alone] = train(recipe(pair, tmp_path / "a", **{"adapters": ["lcf"], **OWN[text]}), Watcher())
    assert weights(alone) == weights(swept[text])
    fixed = {"adapters": [text], "options": OWN[text].get("options", {"width": "16"})}
    [again] = train(recipe(pair, tmp_path / "b", **fixed), Watcher())
    assert weights(again) == weights(alone)
    mine, other = (read_config(folder).training for folder in (swept[text], alone))
    timed = {"minutes", "beside"}
    assert {k: v for k, v in mine.items() if k not in timed} == {
        k: v for k, v in other.items() if k not in timed
    }
    assert mine["dev"][-1]["step"] == mine["steps"]


def test_after_its_last_step_an_adapter_reads_nothing(pair, tmp_path, monkeypatch):
    seen, plain = [], AdapterTraining.forward

    def forward(self, documents):
        seen.append(self.spec.label)
        return plain(self, documents)

    monkeypatch.setattr(AdapterTraining, "forward", forward)
    train(recipe(pair, tmp_path / "a", adapters=["lcf:steps=2", "lcf:steps=5", "lcf:seed=1"]), Watcher())
    counts = [seen.count(label) - 1 for label in ("lcf-steps-2", "lcf-steps-5", "lcf-seed-1")]
    assert counts == [2, 5, 6]  # one more is the probe of the memory


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])
def test_an_interrupted_sweep_goes_on_and_ends_as_the_uninterrupted_one(pair, swept, tmp_path, stop):
    class Impatient(Watcher):
        def step(self, step, *rest):
            super().step(step, *rest)
            if step == stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(pair, tmp_path / "a", adapters=list(OWN)), Impatient())
    watcher = Watcher()
    resumed = train(recipe(pair, tmp_path / "a", adapters=list(OWN)), watcher)
    assert any(f"goes on from step {stop} of 11" in text for text in watcher.said)
    for text, folder in zip(OWN, resumed, strict=True):
        assert weights(folder) == weights(swept[text]), text
        assert read_config(folder).training["dev"] == read_config(swept[text]).training["dev"]


def test_another_setting_of_one_adapter_is_another_training(pair, tmp_path):
    class Impatient(Watcher):
        def step(self, step, *rest):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(pair, tmp_path / "a", adapters=["lcf:steps=4", "lcf"]), Impatient())
    with pytest.raises(UserError, match="other settings"):
        train(recipe(pair, tmp_path / "a", adapters=["lcf:steps=5", "lcf"]), Watcher())


@pytest.mark.parametrize("examples", [300, 40])
def test_batches_of_a_shorter_training_are_the_first_of_a_longer_one(examples):
    documents = load_task("splitfacts").documents(split="train", limit=examples)
    chosen = TrainRecipe(batch_size=4, train_documents=examples)
    hashes = [[d.hash for d in group] for group in batch_order(documents, chosen, 50)]
    assert len(hashes) == 50 and {len(group) for group in hashes} == {4}
    for steps in (1, 7, 8, 9, 33):
        shorter = batch_order(documents, chosen, steps)
        assert [[d.hash for d in group] for group in shorter] == hashes[:steps]


@pytest.mark.parametrize(
    ("text", "adapters"),
    [
        ("lcf", ["lcf"]),
        ("lcf,c2c", ["lcf", "c2c"]),
        ("lcf:width=16,lr=1e-3", ["lcf:width=16,lr=1e-3"]),
        ("lcf:width=16,lr=1e-3, c2c, lcf:width=32", ["lcf:width=16,lr=1e-3", "c2c", "lcf:width=32"]),
        ("lcf,width=16,seed=1", ["lcf:width=16,seed=1"]),
        ("identical:kind=c2c,hidden=8,single", ["identical:kind=c2c,hidden=8", "single"]),
    ],
)
def test_adapters_in_one_text(text, adapters):
    assert grouped(text) == adapters == TrainRecipe(adapters=text).adapters


@pytest.mark.parametrize(
    ("adapters", "options", "made"),
    [
        (["lcf"], {"width": "16,32"}, ["lcf:width=16", "lcf:width=32"]),
        (["lcf"], {"width": ["16", "32"], "seed": [0, 1]}, [f"lcf:width={w},seed={s}" for w in (16, 32) for s in (0, 1)]),  # noqa: E501
        (["lcf:width=8", "lcf", "lora"], {"width": "16,32"}, ["lcf:width=8", "lcf:width=16", "lcf:width=32", "lora"]),  # noqa: E501
        (["lcf:width=8"], {"lr": "1e-3,3e-3"}, ["lcf:width=8,lr=1e-3", "lcf:width=8,lr=3e-3"]),
        (["lcf", "c2c"], {"hidden": "8,8"}, ["lcf", "c2c:hidden=8"]),
        (["lcf", "c2c"], {"lr": "1e-3", "width": "8"}, ["lcf:lr=1e-3", "c2c:lr=1e-3"]),
        (["identical"], {"kind": "c2c", "hidden": "8,16"}, ["identical:kind=c2c,hidden=8", "identical:kind=c2c,hidden=16"]),  # noqa: E501
        (["lcf"], {"spans": "windows,one"}, ["lcf:spans=windows", "lcf:spans=one"]),
    ],
)  # fmt: skip
def test_several_values_are_several_adapters(adapters, options, made):
    found = expanded(TrainRecipe(adapters=adapters, options=options))
    assert sorted(found.adapters) == sorted(made)
    assert expanded(found).adapters == found.adapters and len(found.specs()) == len(made)


def test_several_values_are_trained_under_names_of_their_own(pair, tmp_path):
    options = {"width": "8,16", "lr": "1e-3"}
    made = train(recipe(pair, tmp_path / "a", steps=1, options=options), Watcher())
    assert [folder.name for folder in made] == ["lcf-width-8-lr-1e-3", "lcf-width-16-lr-1e-3"]
    assert [read_config(folder).options["width"] for folder in made] == [8, 16]
    assert json.loads((made[0] / "config.json").read_text())["training"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("adapter", "options", "complaint"),
    [
        ("lcf:lr=-1", {}, "lr=-1 of adapter lcf:lr=-1 is not a number above 0, 10 at most"),
        ("lcf:lr=nan", {}, "lr=nan"),
        ("lcf:lr=1e-3,lr=3e-3", {}, "adapter lcf:lr=1e-3,lr=3e-3 gives lr twice"),
        ("lcf:steps=-1", {}, "steps=-1 .* is not a whole number, 0 or more"),
        ("lcf:steps=0", {}, "steps=0: lcf learns in steps alone"),
        ("lcf:steps=1.5", {}, "steps=1.5 .* is not a whole number"),
        ("lcf:warmup=-1", {}, "warmup=-1"),
        ("lcf:dropout=1", {}, "dropout=1 of a lcfx adapter is not a number, 0 or more, below 1"),
        ("lcf:clip=0", {}, "clip=0 .* is not a number above 0"),
        ("lcf:loss_mean=words", {}, "loss_mean=words .* is not one of document, token"),
        ("lcf", {"width": "16,"}, "width=16, of lcf has an empty value"),
        ("lcf", {"width": "16,x"}, "width=x of a lcfx adapter is not a whole number"),
        ("lcf", {"lr": "1e-3,0"}, "lr=0 of adapter lcf:lr=0 is not a number above 0"),
        ("lcf:width=16,seed", {}, "seed"),
        ("lcf", {"hidden": "8,16"}, "hidden"),
        ("lcf,lcf:seed=1", {"hidden": "8,16"}, "no adapter asked for has an option hidden"),
        ("lcf,lcf", {"width": "8,16"}, "asked for twice"),
        ("receiver", {"width": "8,16"}, "method receiver has nothing to train"),
    ],
)  # fmt: skip
def test_one_bad_value_is_named_before_a_model_is_loaded(tmp_path, monkeypatch, adapter, options, complaint):
    monkeypatch.setattr("lcfbench.training.trainer.models_of", lambda *_: pytest.fail("models are loaded"))
    out = tmp_path / "a"
    with pytest.raises(UserError, match=complaint):
        train(TrainRecipe(adapters=adapter, options=options, out=out), Watcher())
    assert not list(out.glob("**/*.safetensors"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"task": "splitfacts,nosuch"}, "unknown task 'nosuch'"),
        ({"dev": "nosuch"}, "unknown task 'nosuch'"),
        ({"task_options": {"hops": "x"}}, "hops=x"),
        ({"task_options": {"nosuch": "1"}}, "unknown option of splitfacts 'nosuch'"),
    ],
)
def test_a_wrong_task_is_named_before_a_model_is_loaded(tmp_path, monkeypatch, settings, complaint):
    monkeypatch.setattr("lcfbench.training.trainer.models_of", lambda *_: pytest.fail("models are loaded"))
    with pytest.raises(UserError, match=complaint):
        train(TrainRecipe.model_validate(settings | {"out": tmp_path / "a"}), Watcher())


def test_values_of_a_list_are_one_value():
    assert values_of("layers", "1,2", list[int], "x") == ["1,2"]
    assert values_of("width", "16, 32,16", int, "x") == ["16", "32"]


def test_a_spec_tells_what_is_its_own():
    spec = AdapterSpec.parse("lcf:width=16,lr=1e-3,seed=2", 0)
    assert dict(spec.options) == {"width": "16"} and dict(spec.own) == {"lr": 1e-3} and spec.seed == 2
    assert spec.recipe(TrainRecipe(lr=1, steps=7)).model_dump(include={"lr", "steps"}) == {
        "lr": 1e-3,
        "steps": 7,
    }


def test_minutes_are_its_own_time_and_its_part_of_the_common_reading(pair, tmp_path, monkeypatch):
    forward, compute = AdapterTraining.forward, SharedPrefill._compute
    reading = []

    def slow(self, documents):
        time.sleep(0.2 if self.spec.seed == 1 else 0.0)
        return forward(self, documents)

    def read(self, *given):
        reading.append(time.sleep(0.1))
        return compute(self, *given)

    monkeypatch.setattr(AdapterTraining, "forward", slow)
    monkeypatch.setattr(SharedPrefill, "_compute", read)
    seconds = []
    monkeypatch.setattr(AdapterTraining, "save", lambda self: seconds.append(self.seconds))
    chosen = recipe(pair, tmp_path / "a", steps=2, eval_every=9, dev_documents=2)
    began = time.perf_counter()
    train(chosen.model_copy(update={"adapters": ["lcf:seed=0", "lcf:seed=1"]}), Watcher())
    fast, slower = seconds
    assert slower - fast > 0.3  # of 0.4
    assert fast >= 2 * 0.1  # two models, two steps, shared by two
    assert fast + slower < time.perf_counter() - began - 0.1 * (len(reading) - 4), "nothing is counted twice"


@pytest.mark.parametrize("kind", ["lcf", "lcfx"])
def test_dropout_is_of_the_training_alone(kind):
    torch.manual_seed(0)
    shape = Geometry(layers=2, kv_heads=2, head_dim=4)
    config = pair_config(kind, ("a", shape), ("b", shape), options={"width": 8, "dropout": 0.5})
    adapter = build(config)
    keys, values = torch.randn(2, 2, 1, 2, 3, 4)
    sent = adapter.message(torch.randn(2, 3, 16))[:, None]
    adapter.gate_mode = "hard"
    with torch.no_grad():
        adapter.gate_logit.fill_(1.0)
        adapter.eval()
        one, two = (adapter(sent, keys, values)[0] for _ in range(2))
        adapter.train()
        some, others = (adapter(sent, keys, values)[0] for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(some, others) and not torch.equal(some, one)


def test_a_disk_without_room_for_checkpoints_is_named_before_the_first_step(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(AdapterTraining, "forward", lambda *_: pytest.fail("a step is done"))
    with pytest.raises(UserError, match=r"with its checkpoints, needs .* has 0\.0 GB free") as caught:
        train(recipe(pair, tmp_path / "a"), Watcher())
    assert "--out" in caught.value.next_step

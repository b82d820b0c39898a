"""Training side by side, resumed, accumulated and over processes equals the plain training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from lcfbench.adapters.config import read_config
from lcfbench.adapters.files import load
from lcfbench.errors import UserError
from lcfbench.models.causal_lm import CausalLM
from lcfbench.training import trainer as module
from lcfbench.training.recipe import AdapterSpec, TrainRecipe
from lcfbench.training.trainer import Trainer, batch_order, train
from tests import helpers
from tests.helpers import ROOT, Watcher

ARGUMENTS = (
    "--steps 12 --batch-size 4 --dev-documents 6 --eval-every 4 --save-every 2 --lr 3e-3 --warmup 1 "
    "--dtype float32 -o width=16"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


def recipe(pair: str, out: Path, **more) -> TrainRecipe:
    small = {
        "steps": 6,
        "batch_size": 4,
        "dev_documents": 6,
        "eval_every": 3,
        "lr": 3e-3,
        "warmup": 1,
        "dtype": "float32",
    }
    return TrainRecipe.model_validate({**small, "pair": pair, "out": out, "options": {"width": "16"}, **more})


def weights(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


def test_side_by_side_is_the_same_as_alone(pair, tmp_path):
    together = train(
        recipe(pair, tmp_path / "all", adapters=["lcf", "lcf:gate=gumbel,seed=3", "lcf:width=8"]), Watcher()
    )
    assert [f.name for f in together] == ["lcf", "lcf-gate-gumbel-seed-3", "lcf-width-8"]
    for folder, spec in zip(together, ["lcf", "lcf:gate=gumbel,seed=3", "lcf:width=8"], strict=True):
        [alone] = train(recipe(pair, tmp_path / folder.name, adapters=[spec]), Watcher())
        assert weights(alone) == weights(folder)


def test_both_models_read_a_batch_once_for_all_adapters(pair, tmp_path, monkeypatch):
    calls, plain = [], CausalLM.run
    monkeypatch.setattr(
        CausalLM,
        "run",
        lambda self, *given, **more: (calls.append(self.name), plain(self, *given, **more))[1],
    )
    counts = []
    for n in (1, 3):
        calls.clear()
        train(
            recipe(
                pair, tmp_path / str(n), steps=2, eval_every=9, adapters=[f"lcf:seed={i}" for i in range(n)]
            ),
            Watcher(),
        )
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_a_killed_training_resumes_and_ends_as_the_uninterrupted_one(pair, tmp_path):
    [whole] = train(
        recipe(
            pair,
            tmp_path / "whole",
            steps=12,
            eval_every=4,
            save_every=2,
            options={"width": "16", "gate": "gumbel"},
        ),
        Watcher(),
    )
    command = [
        sys.executable,
        "-m",
        "lcfbench.cli",
        "train",
        "--pair",
        pair,
        *ARGUMENTS.split(),
        "-o",
        "gate=gumbel",
        "--out",
        str(tmp_path / "k"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "k" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (tmp_path / "k" / "adapter.safetensors").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "goes on from step" in done.stderr
    assert weights(tmp_path / "k") == weights(whole) and not checkpoint.exists()
    curves = [
        [{k: v for k, v in p.items()} for p in read_config(f).training["dev"]]
        for f in (whole, tmp_path / "k")
    ]
    assert curves[0] == curves[1]
    logs = [
        pd.read_parquet(f / "training.parquet").query("metric == 'loss'").value.tolist()
        for f in (whole, tmp_path / "k")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 12


def test_an_interrupted_training_goes_on_and_evaluates_what_it_owed(pair, tmp_path):
    class Impatient(Watcher):
        def step(self, step, *rest):
            super().step(step, *rest)
            if step == 3:  # before its evaluation
                raise KeyboardInterrupt

    [whole] = train(recipe(pair, tmp_path / "whole"), Watcher())
    with pytest.raises(KeyboardInterrupt):
        train(recipe(pair, tmp_path / "a"), watcher := Impatient())
    assert "the same command goes on from there" in watcher.said[-1]
    [resumed] = train(recipe(pair, tmp_path / "a", accumulate=1), Watcher())
    assert weights(resumed) == weights(whole)
    assert [p["step"] for p in read_config(resumed).training["dev"]] == [3, 6]


def test_the_temperature_falls_and_the_learning_rate_peaks(pair, tmp_path, monkeypatch):
    seen = []
    plain = module.AdapterTraining.forward

    def forward(self, documents):
        seen.append((self.adapter.temperature, self.optimiser.param_groups[0]["lr"]))
        return plain(self, documents)

    monkeypatch.setattr(module.AdapterTraining, "forward", forward)
    train(
        recipe(
            pair,
            tmp_path / "a",
            steps=10,
            warmup=0.2,
            eval_every=10,
            lr=1e-3,
            options={"width": "8", "gate": "gumbel"},
        ),
        Watcher(),
    )
    temperatures, rates = zip(*seen[1:], strict=True)  # the first is the probe of the memory
    assert (
        temperatures[0] == 1
        and temperatures[-1] < 0.01
        and sorted(temperatures, reverse=True) == list(temperatures)
    )
    assert (
        max(rates) == pytest.approx(1e-3)
        and rates[0] == pytest.approx(5e-4)
        and rates[-1] == pytest.approx(1e-3 / 8)
    )


def test_a_run_takes_the_method_options_of_the_training(pair, tmp_path):
    from lcfbench.evaluation import runner
    from lcfbench.evaluation.recipe import Recipe

    [folder] = train(recipe(pair, tmp_path / "a", steps=1, options={"width": "8", "spans": "one"}), Watcher())
    for given, spans in (({}, "one"), ({"spans": "sentences"}, "sentences")):
        chosen = Recipe(
            pair=pair,
            mode=["lcf"],
            control=["matched"],
            adapter=[folder],
            limit=2,
            out=tmp_path / "r",
            dtype="float32",
            latency_documents=0,
            options=given,
        )
        [run_id] = runner.run(chosen, Watcher())
        manifest = json.loads((tmp_path / "r" / run_id / "manifest.json").read_text())
        assert manifest["identity"]["options"]["spans"] == spans


def test_float16_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match="float16"):
        TrainRecipe.merge(None, {"pair": pair, "out": tmp_path / "a", "dtype": "float16"}, "train")


def test_a_checkpoint_of_other_settings_is_refused(pair, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(pair, tmp_path / "a", save_every=2), Watcher())
    monkeypatch.undo()
    with pytest.raises(UserError, match="other settings"):
        train(recipe(pair, tmp_path / "a", lr=1e-3, save_every=2), Watcher())
    (tmp_path / "a" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"checkpoint.pt cannot be read"):
        train(recipe(pair, tmp_path / "a", save_every=2), Watcher())
    assert train(recipe(pair, tmp_path / "a", save_every=2, force=True), Watcher())


@pytest.mark.parametrize("mean", ["document", "token"])
def test_accumulated_passes_are_the_whole_batch(pair, tmp_path, mean):
    tensors = []
    for n in (1, 2, 4):
        [folder] = train(recipe(pair, tmp_path / str(n), accumulate=n, steps=3, loss_mean=mean), Watcher())
        tensors.append(load(folder).state_dict())
    for other in tensors[1:]:
        for name, t in tensors[0].items():
            assert torch.allclose(t, other[name], atol=2e-2, rtol=2e-2), name


def test_an_adapter_can_be_trained_on_messages_of_others(pair, tmp_path):
    both = train(recipe(pair, tmp_path / "a", adapters=["lcf", "lcf:senders=deranged"]), Watcher())
    assert weights(both[0]) != weights(both[1])
    assert [read_config(f).training["senders"] for f in both] == ["matched", "deranged"]


def test_supervising_one_step_changes_what_is_learned(pair, tmp_path):
    made = train(
        recipe(pair, tmp_path / "a", adapters=["lcf", "lcf:supervise=first", "lcf:supervise=last"]), Watcher()
    )
    assert len({weights(f) for f in made}) == 3


def test_one_adapter_that_fails_does_not_stop_the_others(pair, tmp_path, monkeypatch):
    plain = module.AdapterTraining.forward

    def forward(self, documents):
        loss, right, tokens = plain(self, documents)
        return (loss * float("nan") if self.spec.seed == 1 else loss), right, tokens

    monkeypatch.setattr(module.AdapterTraining, "forward", forward)
    with pytest.raises(UserError, match="the loss is not finite at step 1"):
        train(recipe(pair, tmp_path / "a", adapters=["lcf", "lcf:seed=1"]), Watcher())
    assert read_config(tmp_path / "a" / "lcf").training["steps"] == 6


def test_memory_that_runs_out_names_the_knob(pair, tmp_path, monkeypatch):
    def forward(self, documents):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(module.AdapterTraining, "forward", forward)
    with pytest.raises(UserError, match="out of memory at step 1") as caught:
        train(recipe(pair, tmp_path / "a"), Watcher())
    assert "--accumulate" in caught.value.next_step


def test_memory_is_said_before_the_first_step(pair, tmp_path):
    watcher = Watcher()
    train(recipe(pair, tmp_path / "a"), watcher)
    assert any("GB at its peak" in text for text in watcher.said)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lcf:width", "is not KEY=VALUE"),
        ("lcf:seed=x", "seed=x"),
        ("lcf:senders=all", "senders=all .* is not one of matched, deranged"),
        ("lcf:supervise=no", "supervise=no .* is not one of all, first, last"),
    ],
)
def test_adapter_texts_that_make_no_sense(text, complaint):
    with pytest.raises(UserError, match=complaint):
        AdapterSpec.parse(text, 0)


def test_the_same_adapter_twice_and_options_of_none(pair, tmp_path):
    with pytest.raises(UserError, match="asked for twice"):
        train(recipe(pair, tmp_path / "a", adapters=["lcf", "lcf"]), Watcher())
    with pytest.raises(UserError, match="no adapter asked for has an option hidden"):
        train(
            recipe(
                pair, tmp_path / "a", adapters=["lcf", "lcf:seed=1"], options={"width": "16", "hidden": "8"}
            ),
            Watcher(),
        )


def test_batches_hold_documents_of_near_length(pair):
    from lcfbench.tasks.task import load_task

    documents = load_task("splitfacts").documents(split="train", limit=256)
    order = batch_order(documents, TrainRecipe(batch_size=16), 16)
    spread = [max(len(d.receiver.user) for d in g) - min(len(d.receiver.user) for d in g) for g in order]
    drawn = sorted(len(d.receiver.user) for d in documents)
    assert sum(spread) / len(spread) < (drawn[-1] - drawn[0]) / 2 and sorted(
        d.hash for g in order for d in g
    ) == sorted(d.hash for d in documents)

"""What the models have read is kept for later passes and changes nothing that a training promises."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.training_vs_plain import Case
from lcfbench.adapters.config import read_config
from lcfbench.models.kv_cache import KV
from lcfbench.models.padding import pad_left, positions_of
from lcfbench.models.prefill_memory import Budget, Memory
from lcfbench.models.shared_prefill import SharedPrefill
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.trainer import train
from tests import helpers
from tests.helpers import Stopped, Watcher


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


def recipe(pair: str, out: Path, **more) -> TrainRecipe:
    """40 examples, each read in both passes: 10 batches a pass."""
    small = {"steps": 20, "batch_size": 4, "train_documents": 40, "dev_documents": 6, "eval_every": 5}
    small |= {"lr": 3e-3, "warmup": 1, "dtype": "float32", "options": {"width": "16"}}
    return TrainRecipe.model_validate({**small, "pair": pair, "out": out, **more})


def weights(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


def losses(watcher: Watcher) -> list[float]:
    return watcher.losses


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory) -> tuple[Path, Watcher]:
    [folder] = train(recipe(pair, tmp_path_factory.mktemp("whole") / "a"), watcher := Watcher())
    return folder, watcher


@pytest.mark.parametrize("last", [7, 13, 19])
def test_interrupted_in_any_pass_it_ends_as_the_uninterrupted_one(pair, whole, tmp_path, last):
    with pytest.raises(KeyboardInterrupt):
        train(recipe(pair, tmp_path / "a"), Stopped(last))
    [resumed] = train(recipe(pair, tmp_path / "a"), watcher := Watcher())
    assert weights(resumed) == weights(whole[0])
    assert losses(watcher) == losses(whole[1])[last:]
    assert read_config(resumed).training["dev"] == read_config(whole[0]).training["dev"]


def test_what_is_kept_is_read_once(pair, tmp_path, monkeypatch):
    rows, plain = [], SharedPrefill._compute

    def compute(self, some, *rest):
        rows.append(len(some))
        return plain(self, some, *rest)

    monkeypatch.setattr(SharedPrefill, "_compute", compute)

    class Second(Watcher):
        def step(self, step, *rest):
            if step == 10:  # after a whole pass of 8 steps
                rows.clear()

    read = {}
    for gb in (0.0, 2.0):
        train(recipe(pair, tmp_path / str(gb), prefills_gb=gb, train_documents=32), Second())
        read[gb] = sum(rows)
    assert read[2.0] == 0 < 40 < read[0.0]  # dev documents too


def test_kept_or_not_the_adapter_is_nearly_the_same(pair, whole, tmp_path):
    train(recipe(pair, tmp_path / "none", prefills_gb=0.0), watcher := Watcher())
    assert losses(watcher) == pytest.approx(losses(whole[1]), rel=1e-4)
    assert losses(watcher)[:10] == losses(whole[1])[:10]


def test_beside_adapters_that_read_otherwise_it_is_the_one_alone(pair, whole, tmp_path):
    adapters = ["lcf:senders=deranged,width=8", "prefix:width=8", "lcf", "lcf:width=8,steps=13"]
    _, _, same, shorter = train(recipe(pair, tmp_path / "all", adapters=adapters), Watcher())
    assert weights(same) == weights(whole[0])
    alone = recipe(pair, tmp_path / "short", steps=13, options={"width": "8"}, train_documents=40)
    [short] = train(alone, Watcher())
    assert weights(shorter) == weights(short)


# -- the memory itself -----------------------------------------------------------------------------


def reader(read: list):
    """Reads rows so that the numbers depend on the batch, as those of some kernels do."""

    def once(rows) -> KV:
        read.append(rows)
        ids, mask = pad_left(rows, 0)
        keys = (ids + 1000 * len(rows)).float()[None, :, None, :, None].expand(2, -1, 1, -1, 4)
        return KV(keys, -keys, mask, positions_of(mask))

    return once


A, B, C, D = (1,), (2, 3), (4, 5), (6, 7, 8)


def test_a_row_keeps_the_numbers_of_its_first_batch():
    memory, once = Memory(Budget(1 << 20), {}), reader(read := [])
    first = memory.read((A, B), once)
    both = memory.read((B, C, D), once)
    assert read == [(A, B), (C, D)] and both.length == 3
    assert torch.equal(both.keys[:, 0, :, 1:], first.keys[:, 1])
    assert both.keys[0, 1, 0, 1:, 0].tolist() == [2004, 2005] and both.mask.tolist()[0] == [0, 1, 1]
    assert both.positions.tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 2]]
    fresh = Memory(Budget(1 << 20), {})
    fresh.restore([[list(row) for row in home] for home in memory.state()])
    again = fresh.read((B, C, D), reader(reread := []))
    assert reread == [(A, B), (C, D)]
    assert torch.equal(again.keys, both.keys) and torch.equal(again.values, both.values)


@pytest.mark.parametrize("limit, kept", [(0, 0), (3 * 64, 2), (7 * 64, 2), (8 * 64, 4)])
def test_no_more_is_kept_than_the_budget_allows(limit, kept):
    memory, once = Memory(budget := Budget(limit), {}), reader([])
    memory.read((A, B), once)
    memory.read((C, D), once)
    assert len(memory.homes) == len(memory.store) == kept and budget.used <= limit
    assert budget.used == sum(x.nbytes for both in memory.store.values() for x in both)


def test_nothing_is_kept_that_is_not_read_again():
    memory = Memory(Budget(1 << 20), {}, adds=False)
    memory.read((A, B), reader([]))
    assert not memory.homes and not memory.store


# -- the plain loop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, adapter", [("splitfacts", "lcf:width=8"), ("planted", "lcf:width=8,zero_up=no")]
)
def test_gradients_are_those_of_the_plain_loop(pair, tmp_path, task, adapter):
    given = {"batches": 2, "repeats": 1, "task": task, "batch_size": 4, "pair": pair, "dtype": "float32"}
    given |= {"device": "cpu", "lean": False}
    case = Case([adapter], argparse.Namespace(**given), tmp_path)
    case.add_plain()
    assert max(case.check().values()) < 1e-4

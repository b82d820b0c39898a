"""A tiny random pair, an adapter for it, and runs of it under matched and deranged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model
from tests.helpers import run_recipe, save_pair
from tests.hub_server import served


@dataclass(frozen=True)
class World:
    """pair: of two folders. adapter: a folder. runs: matched, deranged and the receiver alone."""

    pair: str
    adapter: Path
    runs: Path

    def copy(self, place: Path) -> Path:
        """A copy of the adapter that a test may change."""
        shutil.copytree(self.adapter, place)
        return place


def random_weights(folder: Path, pair: str, seed: int) -> Path:
    """An LCF-X adapter, open enough to change what the receiver says."""
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    torch.manual_seed(seed)
    made = build(pair_config("lcfx", *((e.name, e.geometry) for e in ends), options={"width": 8}))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
        made.gate_logit.fill_(1.0)
    made.config = made.config.model_copy(
        update={
            "training": {"revisions": {"receiver": ends[0].revision, "sharer": ends[1].revision}}
            | {"tasks": ["splitfacts"]}
        }
    )
    save(made, folder, "# Mine\n")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    pair = save_pair(root / "models")
    adapter = random_weights(root / "mine", pair, 5)
    both = {"mode": ["receiver", "lcf"], "control": ["matched", "deranged"]}
    run_recipe(pair, root / "results", **both, adapter=[adapter], task=["splitfacts"])
    return World(pair, adapter, root / "results")


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub of our own, an empty cache, no token, no mirror."""
    with served(monkeypatch, tmp_path) as made:
        yield made

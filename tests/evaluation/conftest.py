"""A tiny random pair in folders, and an adapter for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save as save_adapter
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model
from tests.helpers import save_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, pair) -> Path:
    """A random LCF-X adapter for the pair, open enough to change what the receiver says."""
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    torch.manual_seed(5)
    made = build(pair_config("lcfx", *((e.name, e.geometry) for e in ends), options={"width": 8}))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
        made.gate_logit.fill_(1.0)
    made.config = made.config.model_copy(
        update={"training": {"revisions": {"receiver": ends[0].revision, "sharer": ends[1].revision}}}
    )
    folder = tmp_path_factory.mktemp("adapters") / "x"
    save_adapter(made, folder, "")
    return folder

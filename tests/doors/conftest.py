"""Tiny random pairs in folders, plain and with chat templates, and adapters for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lcfbench.adapters.files import save as save_adapter
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model
from tests import helpers


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of pip and lscpu


def _saved(folder: Path, chat: bool) -> str:
    shapes = {
        "receiver": dict(layers=4),
        "sharer": dict(family="gemma3", layers=3, heads=1, dim=16, vocabulary=330, seed=1),
    }
    for name, shape in shapes.items():
        made = helpers.model(**shape)
        made.config.max_position_embeddings = 2048
        made.save_pretrained(folder / name)
        tokenizer = helpers.tokenizer(made.config.vocab_size, bos=name == "sharer" and not chat, chat=chat)
        tokenizer.save_pretrained(folder / name)
    return f"{folder / 'receiver'}:{folder / 'sharer'}"


@pytest.fixture(scope="session")
def plain_pair(tmp_path_factory) -> str:
    return _saved(tmp_path_factory.mktemp("plain"), chat=False)


@pytest.fixture(scope="session")
def chat_pair(tmp_path_factory) -> str:
    return _saved(tmp_path_factory.mktemp("chat"), chat=True)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory, plain_pair) -> dict[str, Path]:
    """A random adapter of each kind, open enough to change what the receiver says."""
    ends = tuple(CausalLM.load(find_model(n), dtype="float32") for n in plain_pair.split(":"))
    folders = {kind: tmp_path_factory.mktemp("adapters") / kind for kind in ("lcf", "lcfx")}
    for kind, folder in folders.items():
        save_adapter(helpers.random_adapter(kind, ends), folder, "")
    return folders

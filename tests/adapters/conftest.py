"""A Hub of our own for the tests of adapters."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import constants

from lcfbench.sources import hub
from tests.hub_server import Server


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub of our own, an empty cache, no token, no mirror."""
    torch.set_num_threads(1)
    made = Server()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LCFBENCH_MIRROR", "LCFBENCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    for name, value in {
        "ENDPOINT": made.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": made.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hub, "_down", {})
    monkeypatch.chdir(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()

"""A command in which every document of a run failed ends with 1; a part of them does not."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

from lcfbench.results.reader import load_samples
from tests.helpers import invoke, save_pair


@pytest.mark.parametrize("modes", ["receiver", "receiver,t2t"])
def test_every_document_failed_is_exit_1(capsys, monkeypatch, tmp_path, modes):
    receiver, sharer = save_pair(tmp_path / "models").split(":")
    bad = tmp_path / "bad"
    shutil.copytree(receiver, bad)
    weights = load_file(bad / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.down_proj.weight"))
    weights[name].fill_(1e30)  # finite, but its states overflow
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    line = ["run", "--pair", f"{bad}:{sharer}", "--mode", modes, "--limit", "4", "--dtype", "float32"]
    code, _, err = invoke(capsys, monkeypatch, *line, "--latency-documents", "0", "--out", out)
    rows = load_samples([out])
    assert code == 1 and rows["error"].notna().all() and len(rows) == (4 if modes == "receiver" else 12)
    assert err.count("failed: every document of") == (1 if modes == "receiver" else 3)

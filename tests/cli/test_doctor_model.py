"""`lcfbench doctor --model`: one page, one JSON object, documented exit codes."""

from __future__ import annotations

import json

import pytest

from tests.helpers import invoke
from tests.models import zoo


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: zoo.folder(name, folder) for name in ("llama", "qwen3.5", "bert-encoder", "mamba")}


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("llama", 0, ["layers 0–3: 2 × 8", "yes rotate", "kvcomm", "512 bytes a token"]),
        ("qwen3.5", 0, ["layers 1, 3: 2 × 8", "NO handover", "keep a recurrent state"]),
        ("mamba", 0, ["without a cache", "NO edit", "t2t"]),
        ("bert-encoder", 1, ["NO no token is changed by those after it", "NO text"]),
    ],
)
def test_the_page_of_a_model(models, name, code, said, capsys, monkeypatch):
    from lcfbench.cli.terminal import out

    monkeypatch.setattr(out, "_width", 80)
    arguments = ("doctor", "--model", models[name], "--dtype", "float32")
    got, page, err = invoke(capsys, monkeypatch, *arguments)
    assert got == code, err
    for words in said:
        assert words in " ".join(page.split())
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("name", ["llama", "qwen3.5"])
def test_the_json_of_a_model(models, name, capsys, monkeypatch):
    arguments = ("doctor", "--model", models[name], "--json", "--dtype", "float32", "--attention", "eager")
    code, text, _ = invoke(capsys, monkeypatch, *arguments)
    found = json.loads(text)
    assert code == 0 and found["attention"] == "eager" and found["dtype"] == "float32"
    names = "model revision source class parameters dtype device attention reading checks layers masks"
    names += " joins token_bytes state_bytes steady capabilities methods seconds"
    assert set(found) == set(names.split())
    assert all(set(check) == {"name", "ok", "difference", "detail"} for check in found["checks"])
    assert set(found["capabilities"]) == {
        "text",
        "edit",
        "prefix",
        "handover",
        "rotate",
        "latent",
        "activations",
    }
    kvcomm = found["methods"]["kvcomm"]
    assert kvcomm is True if name == "llama" else "keep a recurrent state" in kvcomm
    assert found["seconds"]["check"] > found["seconds"]["check_again"] >= 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/no/such/model"], "there is no model folder"),
        (["--model", "MODEL", "--device", "tpu"], "unknown device"),
        (["--dtype", "float32"], "--dtype is for one model"),
        (["--attention", "sdpa"], "--attention is for one model"),
        (["--trust-remote-code"], "--trust-remote-code is for one model"),
    ],
)
def test_one_line_and_exit_2(models, arguments, said, capsys, monkeypatch):
    given = [str(models["llama"]) if a == "MODEL" else a for a in arguments]
    code, out, err = invoke(capsys, monkeypatch, "doctor", "--offline", *given)
    assert code == 2 and said in err and not out and "Traceback" not in err

"""Code of a model's folder runs under --trust-remote-code alone, also where a terminal says yes."""

from __future__ import annotations

import json
import os
import pty
import select
import time
from pathlib import Path

import pytest

from tests import helpers

CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class MyConfig(LlamaConfig):
    model_type = {kind!r}
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
class MyTokenizer(PreTrainedTokenizerFast):
    pass
"""
MAPS = {  # the level at which code is declared: auto_map of config.json, and of tokenizer_config.json
    "config": ({"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}, None),
    "model": ({"AutoModelForCausalLM": "mine.MyModel"}, None),
    "tokenizer": (None, {"AutoTokenizer": ["mine.MyTokenizer", "mine.MyTokenizer"]}),
    "tokenizer, one class": (None, {"AutoTokenizer": [None, "mine.MyTokenizer"]}),
    "tokenizer in config.json": ({"AutoTokenizer": ["mine.MyTokenizer", None]}, None),
    "all": (
        {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
        {"AutoTokenizer": ["mine.MyTokenizer", "mine.MyTokenizer"]},
    ),
}
VERBS = {
    "run": ["run", "--mode", "receiver", "--task", "splitfacts", "--limit", "2", "--latency-documents", "0"],
    "preview": ["run", "--mode", "receiver", "--task", "splitfacts", "--dry-run"],
}


def folder_of(tmp_path: Path, level: str, known: bool) -> tuple[Path, Path]:
    """A model whose folder brings code; known: transformers has a type of that name, too."""
    pair = helpers.save_pair(tmp_path)
    folder, mark = Path(pair.partition(":")[0]), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    own, tokens = MAPS[level]
    kind = config["model_type"] if known or "AutoConfig" not in (own or {}) else "mine"
    (folder / "mine.py").write_text(CODE.format(mark=str(mark), kind=kind))
    if own:
        named = {"architectures": ["MyModel"]} if "AutoModelForCausalLM" in own else {}
        config |= named | {"model_type": kind, "auto_map": own}
        (folder / "config.json").write_text(json.dumps(config))
    if tokens:
        path = folder / "tokenizer_config.json"
        change = {"auto_map": tokens} | ({} if known else {"tokenizer_class": "MyTokenizer"})
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder, mark


def on_a_terminal(arguments: list[str], cwd: Path) -> tuple[int, str]:
    """Runs lcfbench on a terminal on which `y` is typed all the time: exit code and all that is shown."""
    leader, follower = pty.openpty()
    own = {"LCFBENCH_CACHE": str(cwd / "cache"), "PYTHONPATH": str(helpers.ROOT)}
    child = helpers.fork(arguments, cwd, own, [os.ttyname(follower)] * 3)
    shown, end = b"", time.monotonic() + 240
    try:
        while (running := child.is_alive()) or select.select([leader], [], [], 0)[0]:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65536)
            elif running:
                os.write(leader, b"y\n")
            assert time.monotonic() < end, shown
    finally:
        child.kill()
        child.join()
        os.close(follower)
        os.close(leader)
    assert child.exitcode is not None
    code = child.exitcode
    return code, shown.decode(errors="replace").replace("\r", "")


@pytest.mark.parametrize(
    ("level", "known"),
    [*((level, False) for level in MAPS if level != "model"), ("model", True), ("all", True)],
)
def test_code_runs_only_where_it_is_trusted(tmp_path, level, known):
    folder, mark = folder_of(tmp_path, level, known)
    codes = {}
    for name, verb in VERBS.items() if "tokenizer" in level else [("run", VERBS["run"])]:
        code, shown = on_a_terminal([*verb, "--pair", f"{folder}:{folder}", "--offline"], tmp_path)
        assert not mark.exists() and "Traceback" not in shown and "[y/N]" not in shown, shown
        assert code in (0, 2)
        if code == 2:
            assert "--trust-remote-code" in shown
        codes[name] = code
    assert codes["run"] == (0 if level == "tokenizer in config.json" else 2)
    asked = [*VERBS["run"], "--pair", f"{folder}:{folder}", "--offline", "--trust-remote-code"]
    code, shown = on_a_terminal(asked, tmp_path)
    assert "Traceback" not in shown
    assert mark.exists() == (level != "tokenizer in config.json") and code == 0, shown


def test_sizes_of_an_adapter_need_the_same_trust(tmp_path, capsys, monkeypatch):
    folder, mark = folder_of(tmp_path, "config", False)
    asked = ["adapter", "size", "--pair", f"{folder}:{folder}", "--offline", "--json"]
    code, _, err = helpers.invoke(capsys, monkeypatch, *asked)
    assert code == 2 and "--trust-remote-code" in err and not mark.exists()
    code, out, err = helpers.invoke(capsys, monkeypatch, *asked, "--trust-remote-code")
    assert code == 0 and json.loads(out)["params"] > 0 and mark.exists(), err


def test_trust_is_part_of_a_run_only_where_it_is_given(tmp_path):
    import lcfbench

    pair = helpers.save_pair(tmp_path)
    runs = []
    for trusted in (False, True):
        recipe = dict(mode="receiver", task="splitfacts", limit=2, latency_documents=0, dtype="float32")
        results = lcfbench.run(pair=pair, out=tmp_path / "out", trust_remote_code=trusted, **recipe)
        runs += list(results.summary()["run_id"])
    assert len(set(runs)) == 2
    identities = [json.loads((tmp_path / "out" / r / "manifest.json").read_text())["identity"] for r in runs]
    assert "trust_remote_code" not in identities[0] and identities[1]["trust_remote_code"] is True
    assert all("+" in r for r in identities[1]["revisions"])


def test_nothing_in_the_package_leaves_trust_to_a_question():
    """Every call of from_pretrained says whether code may run."""
    import ast

    import lcfbench

    found = 0
    for file in Path(lcfbench.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                assert "trust_remote_code" in [k.arg for k in node.keywords], f"{file}:{node.lineno}"
                found += 1
    assert found > 5

"""A run in which too many documents failed ends the command with 1; so does a device that failed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import lcfbench
from lcfbench.evaluation import run as run_module
from lcfbench.models.causal_lm import CausalLM
from lcfbench.results.manifest import Manifest, most_failed
from lcfbench.results.reader import list_runs, load_samples
from tests.helpers import invoke, manifest_of, rows, run_recipe, save_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("modes", ["receiver", "receiver,t2t"])
def test_every_document_failed_is_exit_1(capsys, monkeypatch, tmp_path, pair, modes, limit):
    receiver, sharer = pair.split(":")
    bad = tmp_path / "bad"
    shutil.copytree(receiver, bad)
    weights = load_file(bad / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.down_proj.weight"))
    weights[name].fill_(1e30)  # finite, but its states overflow
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    line = ["run", "--pair", f"{bad}:{sharer}", "--mode", modes, "--limit", limit, "--dtype", "float32"]
    line += ["--control", "matched", "--max-failed", "1.0"]  # all are too many, however many may fail
    code, _, err = invoke(capsys, monkeypatch, *line, "--latency-documents", "0", "--out", out)
    found, runs = load_samples([out]), modes.count(",") + 1
    assert code == 1 and found["error"].notna().all() and len(found) == limit * runs
    told = [text for text in err.splitlines() if text.startswith("failed: every document of")]
    assert len(told) == runs and all("First, the receiver's state after layer 1" in text for text in told)
    assert all(("(once)" if limit == 1 else "(4 times)") in text for text in told)


@pytest.fixture
def failing(monkeypatch):
    """Lets the documents fail that `fails` names, with the error it returns for them."""

    def install(fails):
        real = run_module.answer

        def answer(state, batch):
            for document in batch.documents:
                if error := fails(document):
                    raise error
            return real(state, batch)

        monkeypatch.setattr(run_module, "answer", answer)

    return install


def asked(pair, out, *more):
    line = ["run", "--pair", pair, "--mode", "receiver,sharer", "--limit", "8", "--dtype", "float32"]
    return [*line, "--control", "matched", "--latency-documents", "0", "--out", out, *more]


@pytest.mark.parametrize(
    ("count", "most", "code"),
    [
        *[(4, None, 0), (5, None, 1), (1, "0", 1), (1, "1", 0), (2, "1", 1), (7, "0.99", 0), (8, "99%", 1)],
        *[(1, "10%", 1), (1, "12.5%", 0), (2, ".25", 0), (3, ".25", 1), (8, "100", 1), (0, "0", 0)],
    ],
)
def test_a_part_that_failed_is_held_against_max_failed(
    capsys, monkeypatch, tmp_path, pair, failing, count, most, code
):
    seen: list[str] = []

    def fails(document):
        if document.hash not in seen:
            seen.append(document.hash)
        where = seen.index(document.hash)
        return ValueError(f"no {where}") if where < count else None

    failing(fails)
    more = ["--max-failed", most] if most else []
    got, _, err = invoke(capsys, monkeypatch, *asked(pair, tmp_path, *more))
    told = [text for text in err.splitlines() if text.startswith("failed: ")]
    assert got == code and len(told) == 2 * code
    assert len(load_samples([tmp_path])) == 16
    if code and count < 8:
        assert all(f"{count} of 8 documents of" in text for text in told)
        assert all("ValueError: no " in text for text in told)
    states = {entry["state"] for entry in list_runs(tmp_path)}
    assert states == {"failed" if code else "complete"}


@pytest.mark.parametrize("most", ["-1", "1.5", "101%", "abc", "", "nan", "1e3", "0.5%%", "٣"])
def test_a_limit_that_is_none_is_refused_before_anything(capsys, monkeypatch, tmp_path, most):
    code, _, err = invoke(capsys, monkeypatch, "run", "--max-failed", most, "--out", tmp_path / "out")
    if most:
        assert code == 2 and "setting max-failed: give a share" in err and not (tmp_path / "out").exists()


def test_errors_are_counted_by_kind_and_the_first_stays_first(capsys, monkeypatch, tmp_path, pair, failing):
    def fails(document):
        place = int(document.hash, 16) % 3
        return [ValueError(f"place {document.hash[:2]}0"), KeyError("other 7"), None][place]

    failing(fails)
    code, _, err = invoke(capsys, monkeypatch, *asked(pair, tmp_path, "--max-failed", "0"))
    told = [text for text in err.splitlines() if text.startswith("failed: ")]
    assert code == 1 and len(told) == 2
    [folder] = tmp_path.glob("receiver-*")
    errors = [row["error"] for row in sorted(rows(folder), key=lambda r: r["doc_index"]) if row["error"]]
    assert f"; the first: {errors[0]} (" in told[0]


def test_a_run_that_is_resumed_and_mended_is_a_result(capsys, monkeypatch, tmp_path, pair, failing):
    with monkeypatch.context() as once:
        real = run_module.answer

        def broken(state, batch):
            raise ValueError("broken")

        once.setattr(run_module, "answer", broken)
        assert invoke(capsys, once, *asked(pair, tmp_path))[0] == 1
        assert run_module.answer is not real
    assert invoke(capsys, monkeypatch, *asked(pair, tmp_path))[0] == 0
    assert {entry["state"] for entry in list_runs(tmp_path)} == {"complete"}


def test_one_run_of_several_fails_and_the_others_stay(capsys, monkeypatch, tmp_path, pair):
    receiver, sharer = pair.split(":")
    bad = tmp_path / "bad"
    shutil.copytree(sharer, bad)
    weights = load_file(bad / "model.safetensors")
    weights[next(n for n in weights if "embed" in n)].fill_(1e30)
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    code, _, err = invoke(capsys, monkeypatch, *asked(f"{receiver}:{bad}", out))
    assert code == 1 and err.count("failed: ") == 1 and "failed: every document of sharer-" in err
    found = load_samples([out])
    assert found[found["mode"] == "receiver"]["error"].isna().all()
    code, text, _ = invoke(capsys, monkeypatch, "show", out, "--json")
    lines = {line["label"]: line for line in json.loads(text)}
    assert code == 0 and lines["receiver"]["reliable"] and not lines["sharer"]["reliable"]


def test_no_verb_uses_a_run_beyond_its_own_limit(capsys, monkeypatch, tmp_path, pair, failing):
    whole, over = tmp_path / "whole", tmp_path / "over"
    line = ["--limit", "32", "--mode", "receiver"]
    assert invoke(capsys, monkeypatch, *asked(pair, whole), *line)[0] == 0
    first: list[str] = []

    def fails(document):
        first[:] = first or [document.hash]
        return ValueError("no") if document.hash == first[0] else None

    failing(fails)
    # 1 of 32 is below the 5 % from which nothing is judged, but above this run's own limit
    assert invoke(capsys, monkeypatch, *asked(pair, over), *line, "--max-failed", "0")[0] == 1
    assert not json.loads(invoke(capsys, monkeypatch, "show", over, "--json")[1])[0]["reliable"]
    said = " ".join(invoke(capsys, monkeypatch, "compare", whole, over)[1].split())
    assert "splitfacts receiver 0 – – – – – –" in said and "1 of 32 documents failed" in said
    assert invoke(capsys, monkeypatch, "check", whole, over)[0] == 4
    assert invoke(capsys, monkeypatch, "check", over, over)[0] == 4


@pytest.mark.parametrize(
    ("recipe", "failed", "many"),
    [
        *[({}, 5, True), ({}, 4, False), ({"max_failed": "0"}, 1, True), ({"max_failed": [1]}, 4, False)],
        *[({"max_failed": "junk"}, 5, True), (None, 8, True), ({"max_failed": "100%"}, 8, True)],
    ],
)
def test_a_manifest_of_any_version_says_whether_too_many_failed(recipe, failed, many):
    assert Manifest(recipe=recipe).too_many(failed, 8) is many
    assert not Manifest(recipe=recipe).too_many(0, 0)


def test_a_share_and_a_number():
    assert [most_failed(text, 30) for text in ("0.5", "10%", "8", "1", "1.0", "0", ".1")] == [
        15, 3, 8, 1, 30, 0, 3
    ]  # fmt: skip


# -- a device that failed ------------------------------------------------------------------------

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


def device_errors():
    return [torch.AcceleratorError(ASSERT), RuntimeError(ASSERT), RuntimeError("HIP error: invalid ordinal")]


@pytest.mark.parametrize("place", ["prefill", "forward", "warm-up"])
@pytest.mark.parametrize("number", range(3))
def test_a_device_that_failed_ends_the_command_at_once(capsys, monkeypatch, tmp_path, pair, place, number):
    error, calls = device_errors()[number], []

    def failing(real):
        def patched(self, *args, **more):
            if place == "warm-up" or any(path.stat().st_size for path in tmp_path.glob("*/samples.jsonl")):
                calls.append(1)
                raise error
            return real(self, *args, **more)

        return patched

    for name in ("prefill",) if place == "prefill" else ("forward", "forward_pieces"):
        monkeypatch.setattr(CausalLM, name, failing(getattr(CausalLM, name)))
    more = ["--batch-size", "2", "--mode", "receiver"]
    code, _, err = invoke(capsys, monkeypatch, *asked(pair, tmp_path), *more)
    told = [text for text in err.splitlines() if text.startswith("lcfbench: ")]
    assert code == 1 and len(told) == 1 and "the device failed" in told[0] and "Traceback" not in err
    assert len(calls) == 1, "nothing is tried again"
    [folder] = tmp_path.glob("receiver-*")
    manifest = manifest_of(folder)
    assert manifest["state"] == "interrupted" and manifest["errors"] == 0
    kept = load_samples([folder]).set_index("doc_hash")["written_at"]
    assert len(kept) == (0 if place == "warm-up" else 2)
    monkeypatch.undo()
    assert invoke(capsys, monkeypatch, *asked(pair, tmp_path), *more)[0] == 0
    assert len(rows(folder)) == 8 and all(row["error"] is None for row in rows(folder))
    now = load_samples([folder]).set_index("doc_hash")["written_at"]
    assert (now[kept.index] == kept).all(), "not answered again"


def test_a_device_that_failed_is_one_line_in_every_verb(capsys, monkeypatch, pair, tmp_path):
    def patched(self, *args, **more):
        raise torch.AcceleratorError(ASSERT)

    monkeypatch.setattr(CausalLM, "prefill", patched)
    line = ["bench", "--pair", pair, "--mode", "receiver", "--prompt-tokens", "64"]
    code, _, err = invoke(capsys, monkeypatch, *line)
    assert code == 1 and "the device failed" in err and "Traceback" not in err
    with pytest.raises(lcfbench.UserError, match="the device failed"):
        run_recipe(pair, tmp_path / "out", mode=["receiver"], limit=4)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError, torch.AcceleratorError])
def test_memory_that_ran_out_costs_its_document_alone(monkeypatch, tmp_path, pair, kind):
    real, bad = CausalLM.open, []

    def patched(self, state):
        if len(state.ids) == 1 and not bad:
            bad.append(1)
        if len(state.ids) > 1 or len(bad) == 1:
            bad.append(1)
            raise kind("CUDA error: out of memory" if kind is torch.AcceleratorError else "out of memory")
        return real(self, state)

    monkeypatch.setattr(CausalLM, "open", patched)
    [folder] = run_recipe(pair, tmp_path, mode=["receiver"], limit=4)
    found = rows(folder)
    assert len(found) == 4 and sum(row["error"] is not None for row in found) <= 1

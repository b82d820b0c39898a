"""The runner on tiny random pairs: equal answers every time, no row lost, no column left out."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save as save_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation import worker
from lcfbench.evaluation.run import Run
from lcfbench.methods.create import method_class
from lcfbench.methods.load_pair import other_revisions
from lcfbench.models import causal_lm
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import PHASES
from lcfbench.registry import method_names
from lcfbench.results.schema import COLUMNS
from lcfbench.results.writer import RunWriter
from lcfbench.sources.models import find_model
from tests import helpers
from tests.helpers import LIMIT, Watcher, rows
from tests.helpers import manifest_of as manifest
from tests.helpers import run_recipe as go

# -- the same every time --------------------------------------------------------------------------


def test_two_runs_give_equal_rows_and_one_name_wherever_they_lie(pair, adapter, tmp_path, monkeypatch):
    [one] = go(pair, tmp_path / "a", mode=["lcf"], adapter=[adapter])
    moved = tmp_path / "elsewhere"
    for name in pair.split(":"):
        shutil.copytree(name, moved / Path(name).name)
    monkeypatch.chdir(moved)
    [two] = go("./receiver:sharer/", Path("out"), mode=["lcf"], adapter=[adapter])
    assert one.name == two.name and rows(one) == rows(two)
    assert len(rows(one)) == LIMIT and all(r["error"] is None for r in rows(one))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"limit": LIMIT - 1},
        {"batch_size": 3},
        {"dtype": "bfloat16"},
        {"attention": "eager"},
        {"mode": ["full_context"]},
        {"task": ["splitfacts_heldout"]},
        {"task_options": {"keys": "2"}},
    ],
    ids=str,
)
def test_whatever_changes_the_answer_changes_the_name(pair, tmp_path, change):
    [one] = go(pair, tmp_path)
    [two] = go(pair, tmp_path, **change)
    assert one.name.split("-")[-1] != two.name.split("-")[-1]


def test_other_weights_of_the_same_shape_are_another_run(pair, tmp_path):
    changed = helpers.save(tmp_path / "receiver", layers=4, seed=9)
    [one] = go(pair, tmp_path)
    [two] = go(f"{changed}:{pair.split(':')[1]}", tmp_path)
    assert one.name != two.name


def test_an_option_or_an_adapter_changes_the_name(pair, adapter, tmp_path):
    names = {go(pair, tmp_path, mode=["t2t"], options={"budget": b}, limit=2)[0].name for b in ("3", "4")}
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    data = bytearray((other / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "adapter.safetensors").write_bytes(data)
    names |= {
        go(pair, tmp_path, mode=["lcf"], adapter=[folder], limit=2)[0].name for folder in (adapter, other)
    }
    assert len(names) == 4


@pytest.mark.parametrize("mode", ["receiver", "full_context", "lcf", "t2t"])
def test_batch_1_scores_as_batch_n(pair, adapter, tmp_path, mode):
    alone, together = (go(pair, tmp_path, mode=[mode], adapter=[adapter], batch_size=n)[0] for n in (1, 5))
    for a, b in zip(rows(alone), rows(together), strict=True):
        assert (a["prediction"], a["score"], a["message_bytes"], a["flops"]) == (
            b["prediction"],
            b["score"],
            b["message_bytes"],
            b["flops"],
        )
        for x, y in zip(
            json.loads(a["choices_loglikelihood"]), json.loads(b["choices_loglikelihood"]), strict=True
        ):
            assert x == pytest.approx(y, abs=5e-4)


# -- nothing recorded is lost --------------------------------------------------------------------


COMMAND = (
    "--mode",
    "t2t",
    "--limit",
    60,
    "--batch-size",
    4,
    "--dtype",
    "float32",
    "-o",
    "budget=24",
    "--control",
    "deranged",
)


@pytest.fixture(scope="module")
def uninterrupted(pair, tmp_path_factory) -> Path:
    [folder] = go(
        pair,
        tmp_path_factory.mktemp("whole"),
        mode=["t2t"],
        limit=60,
        control=["deranged"],
        options={"budget": "24"},
        latency_documents=5,
    )
    return folder


def stopped_midway(pair: str, out: Path, name: str, how: signal.Signals) -> subprocess.Popen:
    """A real process, hit by a signal in the middle of a batch or thereabouts."""
    child = helpers.start("run", "--pair", pair, "--out", out, *COMMAND)
    journal = out / name / "samples.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.002)
    child.send_signal(how)
    child.wait(60)
    return child


def test_a_run_killed_and_resumed_equals_an_uninterrupted_one(pair, tmp_path, uninterrupted):
    child = stopped_midway(pair, tmp_path, uninterrupted.name, signal.SIGKILL)
    folder = tmp_path / uninterrupted.name
    assert child.returncode == -signal.SIGKILL and manifest(folder)["state"] == "running"
    lines = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
    before = [json.loads(line) for line in lines if line.endswith(b"\n")]  # it may be killed within a line
    assert 6 <= len(before) < 60
    code, out, err = helpers.process("run", "--pair", pair, "--out", tmp_path, *COMMAND)
    assert code == 0, err
    assert rows(folder) == rows(uninterrupted)
    assert manifest(folder)["state"] == "complete" and len(manifest(folder)["sessions"]) == 2
    kept = {r["doc_hash"]: r["amortized_ms"] for r in rows(folder, without=set())}
    assert all(kept[r["doc_hash"]] == r["amortized_ms"] for r in before), (
        "what was recorded was not done again"
    )
    assert "t2t" in out and not (folder / "samples.jsonl").exists()


def test_ctrl_c_keeps_the_rows_exits_130_and_resumes(pair, tmp_path, uninterrupted):
    child = stopped_midway(pair, tmp_path, uninterrupted.name, signal.SIGINT)
    folder = tmp_path / uninterrupted.name
    said = child.stderr.read()
    assert (
        child.returncode == 130 and "interrupted: what is recorded stays" in said and "Traceback" not in said
    )
    assert manifest(folder)["state"] == "interrupted" and 6 <= len(rows(folder)) < 60
    watcher = Watcher()
    [again] = go(
        pair,
        tmp_path,
        watcher,
        mode=["t2t"],
        limit=60,
        control=["deranged"],
        options={"budget": "24"},
        latency_documents=5,
    )
    assert again == folder and rows(folder) == rows(uninterrupted)
    assert watcher.updates[0][1] >= 6 and watcher.updates[-1][1] == 60, (
        "progress counts what was recorded before"
    )
    assert watcher.updates[-1][0] == sum(r["score"] for r in rows(folder))


def test_a_batch_cut_in_its_middle_is_completed_as_it_would_have_been(pair, tmp_path, monkeypatch):
    [whole] = go(pair, tmp_path / "whole")
    plain, written = RunWriter.append, []

    def append(self, row):
        if len(written) == 6:  # two rows into the second batch of four
            raise KeyboardInterrupt
        written.append(row)
        plain(self, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunWriter, "append", append)
        go(pair, tmp_path / "cut")
    assert len(rows(tmp_path / "cut" / whole.name)) == 6
    [resumed] = go(pair, tmp_path / "cut")
    assert rows(resumed) == rows(whole) and {r["batch_size"] for r in rows(resumed)} == {4}


def test_a_finished_run_is_not_done_again_unless_fresh(pair, tmp_path, monkeypatch):
    [folder] = go(pair, tmp_path)
    stamp = manifest(folder)["finished_at"], (folder / "samples.parquet").read_bytes()
    watcher, answered = Watcher(), []
    plain = Run.answer
    monkeypatch.setattr(Run, "answer", lambda self, *a: (answered.append(1), plain(self, *a))[1])
    go(pair, tmp_path, watcher)
    assert not answered and any("complete already" in text for text in watcher.said)
    assert stamp == (manifest(folder)["finished_at"], (folder / "samples.parquet").read_bytes())
    before = rows(folder)
    go(pair, tmp_path, fresh=True)
    assert answered and rows(folder) == before and len(manifest(folder)["sessions"]) == 1


# -- a document that fails -----------------------------------------------------------------------


def test_a_document_that_fails_is_an_error_row_and_counts(pair, tmp_path):
    [folder] = go(pair, tmp_path / "all")
    tokens = [r["receiver_tokens"] for r in rows(folder)]
    short = tmp_path / "short"
    shutil.copytree(pair.split(":")[0], short)
    config = json.loads((short / "config.json").read_text())
    limit = sorted(tokens)[LIMIT // 2] + 30  # the answers need about 30
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": limit}))
    watcher = Watcher()
    [failed] = go(f"{short}:{pair.split(':')[1]}", tmp_path / "out", watcher, latency_documents=LIMIT)
    bad = [r for r in rows(failed) if r["error"]]
    assert 0 < len(bad) < LIMIT == len(rows(failed)) == manifest(failed)["documents"]
    assert all(r["score"] == 0.0 and f"has {limit}" in r["error"] and r["gold"] for r in bad)
    assert manifest(failed)["errors"] == len(bad)
    assert f"{len(bad)} of {LIMIT} documents are longer than a model reads" in watcher.warned[0]
    assert watcher.warned[1].startswith(f"{len(bad)} of {LIMIT} documents failed")
    good = {r["doc_hash"]: r["prediction"] for r in rows(folder)}
    assert all(r["prediction"] == good[r["doc_hash"]] for r in rows(failed) if not r["error"])
    go(f"{short}:{pair.split(':')[1]}", tmp_path / "out", watcher)  # tried again, not counted twice
    assert len(rows(failed)) == LIMIT and watcher.updates[-1][1] == LIMIT


# -- several at once -----------------------------------------------------------------------------


def test_many_runs_share_one_load_of_the_models(pair, adapter, tmp_path, monkeypatch):
    loaded, plain = [], CausalLM.load
    monkeypatch.setattr(
        CausalLM, "load", lambda found, **kw: (loaded.append(found.name), plain(found, **kw))[1]
    )
    watcher = Watcher()
    folders = go(
        pair,
        tmp_path,
        watcher,
        mode=["receiver", "lcf", "t2t"],
        task=["splitfacts", "splitfacts_heldout"],
        control=["matched", "deranged"],
        adapter=[adapter],
        limit=4,
    )
    assert sorted(loaded) == sorted(pair.split(":"))
    assert [tuple(f.name.split("-")[:3]) for f in folders] == [
        (mode, task, control)
        for task in ("splitfacts", "splitfacts_heldout")
        for mode, control in [
            ("receiver", "matched"),
            ("lcf", "matched"),
            ("lcf", "deranged"),
            ("t2t", "matched"),
            ("t2t", "deranged"),
        ]
    ]
    assert any("receiver" in text and "no deranged run" in text for text in watcher.said)


def test_runs_made_together_are_those_made_apart_and_the_models_read_once(
    pair, adapter, tmp_path, monkeypatch
):
    chosen = {
        "task": ["splitfacts"],
        "adapter": [adapter],
        "limit": 20,
        "batch_size": 8,
        "latency_documents": 2,
    }
    ran, plain, joined = [], CausalLM.run, causal_lm.joined_run
    monkeypatch.setattr(
        CausalLM, "run", lambda self, ids, *rest: (ran.append(self.name), plain(self, ids, *rest))[1]
    )
    monkeypatch.setattr(causal_lm, "joined_run", lambda lm, *a: (ran.append(lm.name), joined(lm, *a))[1])
    names = [Path(name).name for name in pair.split(":")]

    def forwards() -> dict[str, int]:
        count = {name: sum(name in each for each in ran) for name in names}
        ran.clear()
        return count

    controls = ["matched", "deranged", "zero", "noise", "silent"]
    together = go(
        pair,
        tmp_path / "together",
        mode=["lcf", "receiver"],
        control=controls,
        **chosen | {"latency_documents": 0},
    )
    shared = forwards()
    [lone] = go(pair, tmp_path / "lone", mode=["lcf"], **chosen | {"latency_documents": 0})
    alone = forwards()
    assert lone.name == together[0].name and rows(lone) == rows(together[0])
    warm_up = 2 * len(together)  # one document a run, unbatched
    assert all(shared[name] <= alone[name] + warm_up for name in names), (
        "batches are read once, whatever the control"
    )
    for folder in together:
        mode, _, control, _ = folder.name.split("-")
        [apart] = go(pair, tmp_path / "apart", mode=[mode], control=[control], **chosen)
        assert apart.name == folder.name and rows(apart) == rows(folder)
    assert all(manifest(folder)["seconds"] > 0 for folder in together)


def test_a_receiver_alone_loads_no_sharer(pair, tmp_path, monkeypatch):
    loaded, plain = [], CausalLM.load
    monkeypatch.setattr(
        CausalLM, "load", lambda found, **kw: (loaded.append(found.name), plain(found, **kw))[1]
    )
    go(pair, tmp_path, mode=["receiver", "full_context"], limit=2)
    assert loaded == [pair.split(":")[0]]


def test_what_is_missing_is_said_before_anything_is_loaded_or_recorded(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda *a, **kw: pytest.fail("loaded"))
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="openbookqa"):
        go(pair, tmp_path / "out", task=["splitfacts", "openbookqa"], scoring="cloze", offline=True)
    with pytest.raises(UserError, match="no adapter is at hand"):
        go(pair, tmp_path / "out", mode=["receiver", "lcf"])
    with pytest.raises(UserError, match="unknown scoring of splitfacts"):
        go(pair, tmp_path / "out", scoring="letters")
    assert not (tmp_path / "out").exists()


def test_deranged_messages_come_from_another_document_and_say_so(pair, adapter, tmp_path):
    matched, deranged = go(pair, tmp_path, mode=["lcf"], adapter=[adapter], control=["matched", "deranged"])
    [again] = go(pair, tmp_path / "again", mode=["lcf"], adapter=[adapter], control=["deranged"])
    [other] = go(pair, tmp_path / "other", mode=["lcf"], adapter=[adapter], control=["deranged"], seed=3)
    a, b = rows(matched), rows(deranged)
    assert all(r["message_from"] == r["doc_hash"] for r in a) and all(
        r["message_from"] != r["doc_hash"] for r in b
    )
    assert sorted(r["message_from"] for r in b) == sorted(r["doc_hash"] for r in a)
    assert {r["doc_hash"]: r["sharer_prompt_sha256"] for r in a} == {
        r["message_from"]: r["sharer_prompt_sha256"] for r in b
    }
    assert [r["choices_loglikelihood"] for r in a] != [r["choices_loglikelihood"] for r in b]
    assert rows(again) == b
    assert {r["doc_index"]: r["message_from"] for r in rows(other)} != {
        r["doc_index"]: r["message_from"] for r in b
    }


def test_task_options_go_to_the_tasks_that_know_them(pair, tmp_path, mirror):
    one, two = go(
        pair,
        tmp_path,
        task=["splitfacts", "openbookqa"],
        scoring="cloze",
        task_options={"keys": "2"},
        limit=2,
    )
    assert (
        manifest(one)["identity"]["task_options"]["keys"] == 2
        and "keys" not in manifest(two)["identity"]["task_options"]
    )
    with pytest.raises(UserError, match="Did you mean keys"):
        go(pair, tmp_path, task=["splitfacts", "openbookqa"], scoring="cloze", task_options={"kyes": "2"})


# -- every column is accounted for ---------------------------------------------------------------


# a task without subjects; no text states another value; messages that are handed over; one sharer
NEVER = {"subject", "conflict_winner", "wire"}
NEVER |= {"each_message_bytes", "each_sharer_tokens", "each_message_from"}
MEASURED = {"ttft_ms", "ttea_ms", *(f"{p}_ms" for p in PHASES)}


OWN_ADAPTERS = {
    "c2c",
    "dense",
    "prefix",
    "draft_kv",
    "xkv",
    "hub",
    "identical",
    "single",
    "lora",
}  # C2C has no business here; the others' rows: in their own tests


@pytest.mark.parametrize("mode", [m for m in method_names() if m not in OWN_ADAPTERS])
def test_every_column_is_accounted_for(pair, adapter, tmp_path, mode):
    if mode in ("kvcomm", "cacheback", "latentmas", "activation", "sde"):
        pair = f"{pair.split(':')[0]}:{pair.split(':')[0]}"
    [folder] = go(pair, tmp_path, mode=[mode], adapter=[adapter], latency_documents=3)
    kind = method_class(mode)
    table = rows(folder, without=set())
    sends = {"message_from", "sharer_prompt", "sharer_prompt_sha256"} if kind.sends else set()
    sends -= (
        {"sharer_prompt", "sharer_prompt_sha256"} if mode == "excerpt" else set()
    )  # the sharer's text goes over unread
    text = {"message_text"} if mode in {"t2t", "sde", "answer_letter", "excerpt"} else set()
    for row in table:
        empty = {k for k in COLUMNS if row[k] in (None, "")}
        may = (
            {"message_from", "sharer_prompt", "sharer_prompt_sha256", "message_text"} - sends - text
            | NEVER
            | ({"request_bytes", "message_token_bytes"} if mode != "cacheback" else set())
            | {"error", "thought", "thought_tokens", "parsed", "parsed_by"}  # ranked choices are not read
        )
        if mode == "sharer":  # who answers fills its own columns
            may ^= {
                "sharer_prompt",
                "sharer_prompt_sha256",
                "receiver_prompt",
                "receiver_prompt_sha256",
                "receiver_tokens",
            }
        answering = "sharer_tokens" if mode == "sharer" else "receiver_tokens"
        assert empty - MEASURED == may
        assert (
            set(json.loads(row["metrics"])) > {"score", "step1_acc"}
            and row["score"] == json.loads(row["metrics"])["score"]
        )
        for who in ("receiver", "sharer"):
            if shown := row[f"{who}_prompt"]:
                assert (
                    hashlib.sha256(shown.encode()).hexdigest() == row[f"{who}_prompt_sha256"]
                    and "key of" in shown
                )
        assert (
            row["flops"] > 0
            and row[answering] > 0
            and row["answer_tokens"] > 0
            and row["peak_memory_bytes"] > 0
        )
        assert (row["message_bytes"] > 0) == kind.sends
        assert (row["sharer_tokens"] > 0) == ("sharer" in kind.roles)
        needs = bool(kind.adapter_kinds) and not kind.adapter_optional
        assert (row["adapter_params"] > 0) == needs == (row["adapter_bytes"] > 0)
        assert row["message_cache_bytes"] >= (row["message_bytes"] > 0)
        assert len(json.loads(row["choices_loglikelihood"])) == 2
    timed = [r for r in table if r["ttea_ms"] is not None]
    assert [r["doc_index"] for r in timed] == [0, 1, 2]
    gaps = [abs(sum(r[f"{p}_ms"] for p in PHASES) - r["ttea_ms"]) / r["ttea_ms"] for r in timed]
    assert min(gaps) <= 0.05, (
        gaps
    )  # on a busy machine another process may run between two phases of one of them
    for row in timed:
        assert 0 < row["ttft_ms"] <= row["ttea_ms"]
        assert (row["sharer_ms"] > 0) == (kind.sends and "sharer" in kind.roles)
    found = manifest(folder)
    assert (
        found["chance"] == pytest.approx(1 / 3, abs=0.2)
        and found["documents_planned"] == LIMIT
        and found["documents_per_second"] > 0
    )
    assert (
        found["environment"]["device"] == "cpu" and found["environment"]["threads"] == torch.get_num_threads()
    )


@pytest.mark.parametrize("kind", ["lcf", "c2c"])
def test_token_wise_adapters_run_on_shared_contexts(pair, tmp_path, mirror, kind):
    small = {"width": 8} if kind == "lcf" else {"hidden": 8, "intermediate": 8}
    torch.manual_seed(1)
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    made = build(
        pair_config(kind, *((e.name, e.geometry) for e in ends), options={**small, "gate_init": 1.0})
    )
    save_adapter(made, tmp_path / "adapter", "")
    matched, deranged = go(
        pair,
        tmp_path / "out",
        mode=[kind],
        task=["openbookqa"],
        adapter=[tmp_path / "adapter"],
        control=["matched", "deranged"],
        limit=6,
    )
    for row in rows(matched):
        assert (
            row["error"] is None
            and row["adapter_params"] == made.params
            and row["metric"] == "acc"
            and row["scoring"] == "letters"
        )
        assert 0 < row["message_bytes"] <= row["message_cache_bytes"] and row["sharer_tokens"] > 0
    assert [r["choices_loglikelihood"] for r in rows(matched)] != [
        r["choices_loglikelihood"] for r in rows(deranged)
    ]


def test_an_adapter_trained_on_other_weights_is_pointed_out(pair, adapter, tmp_path):
    watcher = Watcher()
    go(pair, tmp_path, watcher, mode=["lcf"], adapter=[adapter], limit=2)
    assert len(watcher.warned) == 1 and "has no proof" in watcher.warned.pop()
    other = helpers.save(
        tmp_path / "sharer", bos=True, family="gemma3", layers=3, heads=1, dim=16, vocabulary=330, seed=2
    )
    go(f"{pair.split(':')[0]}:{other}", tmp_path, watcher, mode=["lcf"], adapter=[adapter], limit=2)
    assert (
        len(watcher.warned) == 2
        and "trained on other weights: sharer" in watcher.warned[0]
        and "receiver" not in watcher.warned[0]
    )


def test_generated_answers_are_recorded_too(pair, adapter, tmp_path):
    for folder in go(
        pair, tmp_path, mode=["receiver", "lcf"], adapter=[adapter], scoring="generate", limit=4
    ):
        assert all(
            r["choices_loglikelihood"] is None and isinstance(r["prediction"], str) for r in rows(folder)
        )
        assert manifest(folder)["chance"] is None


TEXTS = {"scoring": "generate", "limit": 10, "batch_size": 4, "latency_documents": 2}


def test_batches_of_texts_written_side_by_side_give_the_rows_of_each(pair, adapter, tmp_path, monkeypatch):
    asked = TEXTS | {"mode": ["receiver", "lcf"], "adapter": [adapter], "control": ["matched", "silent"]}
    counts, plain = [], CausalLM.steps
    monkeypatch.setattr(
        CausalLM, "steps", lambda self, steps: (counts.append(len(steps)), plain(self, steps))[1]
    )
    together = go(pair, tmp_path / "together", **asked)
    assert max(counts) == 3, "four, four and two documents"
    monkeypatch.setattr(worker, "SIDE_BY_SIDE", 4)
    counts.clear()
    apart = go(pair, tmp_path / "apart", **asked)
    assert set(counts) == {1}
    for one, other in zip(together, apart, strict=True):
        assert one.name == other.name and rows(one) == rows(other)
        assert manifest(one)["seconds"] > 0


def test_the_memory_of_batches_written_side_by_side_is_that_of_all(pair, tmp_path, monkeypatch):
    most, plain = [0], CausalLM.steps

    def steps(self, asked):
        most.append(sum(len(step.ids) for step in asked))
        return plain(self, asked)

    monkeypatch.setattr(CausalLM, "steps", steps)
    monkeypatch.setattr(
        "lcfbench.evaluation.run.reset_peak_memory", lambda _: most.__setitem__(slice(None), [0])
    )
    monkeypatch.setattr("lcfbench.evaluation.run.peak_memory_bytes", lambda _: max(most))
    [folder] = go(pair, tmp_path / "together", **TEXTS)
    assert {row["peak_memory_bytes"] for row in rows(folder, without=set())} == {10}


def test_batches_that_cannot_be_written_side_by_side_are_written_one_by_one(pair, tmp_path, monkeypatch):
    [whole] = go(pair, tmp_path / "whole", **TEXTS)

    def fail(asked):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("lcfbench.evaluation.run.answer_texts", fail)
    [folder] = go(pair, tmp_path / "alone", **TEXTS)
    assert rows(folder) == rows(whole) and not any(r["error"] for r in rows(folder))


def test_a_document_that_fails_among_batches_written_side_by_side_fails_alone(pair, tmp_path, monkeypatch):
    [whole] = go(pair, tmp_path / "whole", **TEXTS)
    bad = rows(whole)[5]["doc_hash"]
    plain = Run._batch

    def batch(self, documents, clock):
        if any(d.hash == bad for d in documents):
            raise RuntimeError("a broken document")
        return plain(self, documents, clock)

    monkeypatch.setattr(Run, "_batch", batch)
    [folder] = go(pair, tmp_path / "broken", **TEXTS)
    failed = {r["doc_hash"]: r["error"] for r in rows(folder) if r["error"]}
    assert list(failed) == [bad] and "a broken document" in failed[bad]
    kept = {r["doc_hash"]: r["prediction"] for r in rows(whole)}
    assert all(r["prediction"] == kept[r["doc_hash"]] for r in rows(folder) if not r["error"])


def test_a_fuser_for_another_model_of_the_same_shape_is_noticed(pair):
    import types

    end = types.SimpleNamespace(name="qwen3-1.7b", revision="abc", source="hub")
    same = types.SimpleNamespace(name="qwen2.5-0.5b", revision="def", source="hub")
    config = types.SimpleNamespace(
        training={}, receiver="Qwen/Qwen3-0.6B", sharer="Qwen/Qwen2.5-0.5B-Instruct"
    )
    said = other_revisions(config, end, same)
    assert said == "receiver was Qwen/Qwen3-0.6B, here it is qwen3-1.7b"


def test_fresh_forgets_nothing_when_something_else_cannot_be_run(pair, tmp_path):
    [folder] = go(pair, tmp_path)
    before = rows(folder)
    with pytest.raises(UserError):  # one document has no other to be deranged with
        go(pair, tmp_path, fresh=True, mode=["receiver", "t2t"], control=["matched", "deranged"], limit=1)
    with pytest.raises(UserError):
        go(pair, tmp_path, fresh=True, mode=["receiver", "lcf"], adapter=[tmp_path / "none"])
    assert rows(folder) == before and manifest(folder)["state"] == "complete"


def test_a_batch_that_fails_is_said_and_its_time_counts(pair, tmp_path, monkeypatch):
    [whole] = go(pair, tmp_path / "whole")
    plain, watcher = Run._respond, Watcher()

    def respond(self, documents):
        if len(documents) > 1:
            time.sleep(0.2)
            raise RuntimeError("too much at once")
        return plain(self, documents)

    monkeypatch.setattr(Run, "_respond", respond)
    [folder] = go(pair, tmp_path / "alone", watcher)
    assert [r["score"] for r in rows(folder)] == [r["score"] for r in rows(whole)] and {
        r["batch_size"] for r in rows(folder)
    } == {1}
    assert any("3 batches failed and were answered document by document" in text for text in watcher.warned)
    assert manifest(folder)["seconds"] > 0.6


def test_memory_that_is_held_for_others_is_given_back_first(pair, adapter, tmp_path, monkeypatch):
    plain, refused = Run._respond, []

    def respond(self, documents):
        if len(documents) > 1 and self.answering.receiver.shared.held and self.mode == "lcf":
            refused.append(1)
            raise torch.OutOfMemoryError("out of memory")
        return plain(self, documents)

    monkeypatch.setattr(Run, "_respond", respond)
    folders = go(pair, tmp_path, mode=["receiver", "lcf"], adapter=[adapter])
    assert refused and all(
        {r["batch_size"] for r in rows(f)} == {4} and not any(r["error"] for r in rows(f)) for f in folders
    )

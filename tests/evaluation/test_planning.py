"""What a plan says is what a run makes: ids, states, and what `only` chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lcfbench
from lcfbench.adapters.files import save as save_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation.planning import LISTING, looked_up, named, pairings, plan, runs_of
from lcfbench.evaluation.session import Session
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.causal_lm import CausalLM, Outline
from lcfbench.models.conformance_store import identity
from lcfbench.results.writer import RunWriter
from lcfbench.sources.models import find_model
from tests.helpers import (
    Watcher,
    invoke,
    random_adapter,
    random_codec,
    random_dense,
    random_draft,
    random_lora,
    random_prefix,
    random_xkv,
    run_recipe,
    small_recipe,
)
from tests.models import zoo

ALL = ["matched", "deranged", "zero", "noise", "silent"]


@pytest.fixture(scope="module")
def adapters(pair, tmp_path_factory) -> dict[str, Path]:
    """A random adapter of each kind: for the pair, or for its receiver alone."""
    opened = load_pair(pair, dtype="float32")
    ends, alone = (opened.receiver, opened.sharer), (opened.receiver, opened.receiver)
    made = {
        "lcf": random_adapter("lcf", ends),
        "lcfx": random_adapter("lcfx", ends),
        "c2c": random_adapter("c2c", ends),
        "identical": random_adapter("c2c", alone),
        "dense": random_dense(ends),
        "prefix": random_prefix(ends),
        "draft_kv": random_draft(ends),
        "xkv": random_xkv(ends),
        "codec": random_codec(ends),
        "lora": random_lora(opened.receiver),
    }
    home = tmp_path_factory.mktemp("kinds")
    for kind, adapter in made.items():
        save_adapter(adapter, home / kind, "")
    return {kind: home / kind for kind in made}


def twice(receiver_and_sharer: str) -> str:
    """A pair of the receiver and itself."""
    receiver = receiver_and_sharer.split(":")[0]
    return f"{receiver}:{receiver}"


CASES = {
    "text": {"mode": ["receiver", "sharer", "full_context", "t2t", "excerpt"], "control": ALL},
    "adapters": {"mode": ["lcf", "dense", "prefix"], "adapter": ["lcfx", "dense", "prefix"], "control": ALL},
    "shared": {"mode": ["lcf", "c2c"], "adapter": ["lcf", "c2c"], "task": ["planted"], "control": ALL},
    "draft": {"mode": ["draft_kv"], "adapter": ["draft_kv"], "task": ["splitfacts"], "control": ALL},
    "xkv": {"mode": ["xkv"], "adapter": ["xkv"], "task": ["splitfacts"], "control": ALL},
    "hub": {"mode": ["hub"], "adapter": ["codec"], "task": ["splitfacts"], "control": ALL},
    "twice": {"mode": ["kvcomm:layers=0.5", "kvcomm:layers=1,2"], "same": True, "task": ["splitfacts"]},
    "lora": {"mode": ["lora"], "adapter": ["lora"], "same": True},
    "number": {"mode": ["receiver", "t2t:budget=4,budget=6"], "dtype": "bfloat16", "seeds": [0, 3]},
    "half": {"mode": ["receiver"], "dtype": "float16", "attention": "eager", "scoring": "generate"},
    "auto": {"mode": ["receiver", "sharer"], "dtype": "auto", "task": ["splitfacts_heldout"]},
    "plan": {"mode": ["receiver"], "batch_size": 3, "task_options": {"hops": "1"}, "limit": 5},
}


def recipe_of(case: dict, pair: str, adapters: dict[str, Path], out: Path):
    chosen = dict(case)
    if chosen.pop("same", False):
        pair = twice(pair)
    if "adapter" in chosen:
        chosen["adapter"] = [adapters[kind] for kind in chosen["adapter"]]
    return small_recipe(pair, out, **chosen)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_has_the_identities_that_loaded_models_have(name, pair, adapters, tmp_path):
    recipe = recipe_of(CASES[name], pair, adapters, tmp_path)
    session = Session(recipe, Watcher())
    pairs = pairings(recipe, Watcher(), session.modes)
    real = [r for t in session.tasks for r in runs_of(session, t, session.variants[t.name], pairs)]
    found = list(looked_up(recipe, Watcher()))
    assert [r.identity for r in found] == [r.identity for r in real]
    assert [r.key for r in found] == [r.key for r in real]
    assert [r.too_long for r in found] == [r.too_long for r in real]
    assert len({r.key for r in found}) == len(found)
    assert all(isinstance(lm, Outline) for r in found for lm in r.models)


KINDS = ("gemma3", "gemma4", "qwen3_next", "phi3", "falcon_h1", "deepseek_v3", "bloom", "olmo2")
FACTS = (
    *("revision", "dtype", "devices", "attention", "layout", "geometry", "reading", "pad_id", "has_chat"),
    *("max_positions", "vocabulary_size", "matmul_params", "windows"),
)


@pytest.mark.parametrize("name", [name for name in KINDS if name in zoo.ZOO])
def test_an_outline_has_the_facts_of_the_loaded_model(name, tmp_path):
    found = find_model(str(zoo.folder(name, tmp_path)))
    for how in ({"dtype": "float32"}, {"dtype": "bfloat16"}):
        whole = CausalLM.load(found, check=False, **how)
        outline = CausalLM.load(found, check=False, weights=False, **how)
        assert isinstance(outline, Outline)
        for fact in FACTS:
            assert getattr(outline, fact) == getattr(whole, fact), fact
        assert outline.stop_ids() == whole.stop_ids()
        assert identity(outline) == identity(whole)  # a check that was made holds for it


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_a_model_that_tells_its_cache_only_when_it_is_loaded_is_loaded(name, tmp_path):
    found = find_model(str(zoo.folder(name, tmp_path)))
    lm = CausalLM.load(found, check=False, weights=False, dtype="float32")
    assert lm.weights and lm.layout == CausalLM.load(found, check=False, dtype="float32").layout


@pytest.fixture(scope="module")
def half_done(pair, tmp_path_factory):
    """Three runs: one complete, one with five of its rows, one that has not begun."""
    out = tmp_path_factory.mktemp("half")
    chosen = {"mode": ["receiver", "sharer", "full_context"]}
    recipe = small_recipe(pair, out, **chosen)
    new = plan(recipe, Watcher())
    run_recipe(pair, out, mode=["receiver"])
    other = tmp_path_factory.mktemp("whole")
    (folder,) = run_recipe(pair, other, mode=["sharer"], latency_documents=0)
    rows = lcfbench.load_samples(folder)
    run = next(r for r in looked_up(recipe, Watcher()) if r.mode == "sharer")
    writer = RunWriter.open(out, run.identity, run.facts, documents=[d.hash for d in run.documents])
    for row in rows.head(5).to_dict("records"):
        writer.append({k: v for k, v in row.items() if v == v and v is not None and k != "row_sha256"})
    writer.close()
    return recipe, new


def test_a_plan_has_the_ids_and_the_states_of_the_folders(half_done, pair):
    recipe, new = half_done
    assert [(r.state, r.done, r.minutes) for r in new.runs] == [("new", 0, None)] * 3
    assert new.unknown == 3 and new.minutes == 0
    found = plan(recipe, Watcher())
    assert [(r.state, r.done) for r in found.runs] == [("complete", 12), ("partial", 5), ("new", 0)]
    assert [r.id for r in found.runs] == [r.id for r in new.runs]
    assert {p.name for p in recipe.out.iterdir()} == {r.id for r in found.runs[:2]}
    assert found.runs[0].minutes == 0 and found.runs[1].minutes > 0 and found.runs[2].minutes is None
    assert found.runs[1].estimated_from == found.runs[1].id and found.runs[1].memory_bytes > 10**7


def test_a_run_that_is_written_now_is_running(half_done):
    recipe, _ = half_done
    run = next(r for r in looked_up(recipe, Watcher()) if r.mode == "sharer")
    writer = RunWriter.open(recipe.out, run.identity, run.facts, documents=[d.hash for d in run.documents])
    assert plan(recipe, Watcher()).runs[1].state == "running"
    writer.close()
    assert plan(recipe, Watcher()).runs[1].state == "partial"


def test_time_on_another_task_is_scaled_by_the_prompts(half_done, pair):
    recipe, _ = half_done
    (same,) = plan(small_recipe(pair, recipe.out, limit=8), Watcher()).runs
    (long,) = plan(small_recipe(pair, recipe.out, task_options={"receiver_distractors": "8"}), Watcher()).runs
    (other,) = plan(small_recipe(pair, recipe.out, dtype="float16"), Watcher()).runs
    assert same.minutes and long.minutes and other.minutes is None
    assert long.minutes / long.documents > 1.3 * same.minutes / same.documents
    assert same.estimated_from == long.estimated_from != other.estimated_from


def test_only_runs_what_it_names(pair, tmp_path):
    chosen = {"mode": ["receiver", "sharer", "t2t"], "control": ["matched", "deranged"], "limit": 4}
    found = plan(small_recipe(pair, tmp_path, **chosen), Watcher()).runs
    one, two, *_, last = found
    for only in ([one.id], [two.key, "1"], [str(last.number)]):
        listed = plan(small_recipe(pair, tmp_path, **chosen, only=only), Watcher()).runs
        made = run_recipe(pair, tmp_path, **chosen, only=only)
        assert [f.name for f in made] == [r.id for r in listed]
    assert [r.number for r in listed] == [last.number]
    assert {p.name for p in tmp_path.iterdir()} == {one.id, two.id, last.id}
    assert [r.state for r in plan(small_recipe(pair, tmp_path, **chosen), Watcher()).runs] == [
        "complete", "complete", "new", "complete",
    ]  # fmt: skip


RUNS = [("lcf-a-matched-0011223344", "r00000001"), ("lcf-a-deranged-5566778899", "r00000002")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3", "there is no run 3: this recipe has 2 runs."),
        ("0", "there is no run 0"),
        ("01", "there is no run 01"),
        ("-1", "unknown run '-1'"),
        ("1-2", "unknown run '1-2'"),
        ("r00000003", "Did you mean r00000002 or r00000001?"),
        ("lcf-a-matched-0011223345", "Did you mean lcf-a-matched-0011223344"),
        ("lcf-a-", "may be any of 2 runs: lcf-a-matched-0011223344, lcf-a-deranged-5566778899."),
        ("LCF-A-MATCHED-0011223344", "unknown run"),
        ("lcf-a-matched", "Did you mean lcf-a-matched-0011223344"),
    ],
)
def test_a_run_that_is_not_in_the_plan_is_one_line(name, words):
    with pytest.raises(UserError) as caught:
        named([name], RUNS)
    assert words in str(caught.value) and LISTING in str(caught.value)


def test_the_command_prints_a_table_and_one_object(half_done, pair, capsys, monkeypatch):
    recipe, _ = half_done
    flags = ["--mode", "receiver,sharer,full_context", "--control", "matched", "--limit", "12"]
    flags += ["--pair", pair, "--batch-size", "4", "--dtype", "float32", "--out", recipe.out]
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = invoke(capsys, monkeypatch, "plan", *flags)
    ids = [r.id for r in plan(recipe, Watcher()).runs]
    assert code == 0 and all(name in out for name in ids)
    assert max(map(len, out.splitlines())) <= 80
    assert "3 runs: 1 complete, 1 partial, 1 new; 19 documents are left" in " ".join(out.split())
    code, out, _ = invoke(capsys, monkeypatch, "plan", *flags, "--json", "--only", ids[1])
    whole = json.loads(out)
    assert code == 0 and [(r["id"], r["number"], r["done"]) for r in whole["runs"]] == [(ids[1], 2, 5)]
    code, out, err = invoke(capsys, monkeypatch, "run", *flags, "--only", f"1,{ids[1]}x")
    assert code == 2 and not out and f"Did you mean {ids[1]}" in err and "Traceback" not in err
    code, _, err = invoke(capsys, monkeypatch, "run", *flags, "--only", "1", "--dry-run")
    assert code == 2 and "--dry-run" in err


def test_a_gpu_is_planned_for_where_there_is_none(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    chosen = {"mode": ["receiver", "t2t"], "dtype": "auto"}
    here = lcfbench.plan(small_recipe(pair, tmp_path, **chosen))
    there = plan(small_recipe(pair, tmp_path, **chosen, device="cuda"), Watcher())
    assert [r.key for r in there.runs] == list(here["key"])
    assert not {r.id for r in there.runs} & set(here["id"])
    found = next(looked_up_for_gpu(small_recipe(pair, tmp_path, **chosen, device="cuda")))
    assert (found.identity["dtype"], found.identity["device"]) == ("bfloat16", "cuda")
    assert "No GPU is here" in there.remarks[0]
    with pytest.raises(UserError, match="device cuda is not there"):
        run_recipe(pair, tmp_path, device="cuda")


def looked_up_for_gpu(recipe):
    from lcfbench.models.dtypes import gpus_presumed

    with gpus_presumed():
        yield from list(looked_up(recipe, Watcher()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": ["receivr"]},
        {"task": ["splitfact"]},
        {"device": "gpu"},
        {"mode": ["lcf"], "adapter": ["nosuch"]},
        {"mode": ["receiver"], "control": ["deranged"]},
        {"mode": ["kvcomm"]},
        {"mode": ["t2t"], "options": {"budget": "0"}},
        {"scoring": "letters"},
        {"attention": "flash_attention_2"},
        {"task": ["no/such.yaml"]},
    ],
)
def test_a_plan_refuses_what_a_run_refuses_in_the_same_words(wrong, pair, tmp_path):
    said = []
    for call in (lcfbench.run, lcfbench.plan):
        with pytest.raises(UserError) as caught:
            call(pair=pair, out=tmp_path, limit=4, **{"mode": ["receiver"], "control": "matched", **wrong})
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not list(tmp_path.iterdir())


def test_the_ids_are_those_of_folders_that_a_run_makes(pair, adapters, tmp_path):
    chosen = {"mode": ["receiver", "lcf", "t2t"], "control": ["matched", "deranged"], "limit": 4}
    chosen |= {"adapter": [adapters["lcfx"]], "seeds": [1, 2]}
    listed = plan(small_recipe(pair, tmp_path, **chosen), Watcher())
    made = run_recipe(pair, tmp_path, **chosen)
    assert [r.id for r in listed.runs] == [f.name for f in made]

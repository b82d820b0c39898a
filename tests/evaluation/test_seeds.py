"""Several seeds and all controls through the runner: how often each runs, and what is recorded."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.evaluation import plan
from lcfbench.evaluation.recipe import Recipe
from lcfbench.models.causal_lm import CausalLM
from lcfbench.results.reader import read_runs
from lcfbench.results.writer import RunWriter
from lcfbench.sources import datasets as assets
from lcfbench.tasks.process_docs import Rows
from lcfbench.tasks.task import Task
from tests.helpers import Watcher, rows
from tests.helpers import manifest_of as manifest
from tests.helpers import run_recipe as go

FEW = 4


@contextmanager
def interrupted_after(rows, monkeypatch):
    """Within it, Ctrl-C is pressed once so many rows are written; the block must end that way."""
    plain, written = RunWriter.append, []

    def append(self, row):
        if len(written) == rows:
            raise KeyboardInterrupt
        written.append(row)
        plain(self, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunWriter, "append", append)
        yield


def few(monkeypatch, n: int = 6) -> None:
    """Natural tasks of n rows."""
    plain = Task._natural
    monkeypatch.setattr(Task, "_natural", lambda self, split: Rows(plain(self, split)[:n]))


# -- controls ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controlled(pair, adapter, tmp_path_factory) -> dict[tuple[str, str], Path]:
    watcher = Watcher()
    folders = go(
        pair,
        tmp_path_factory.mktemp("controls"),
        watcher,
        mode=["receiver", "excerpt", "t2t", "lcf"],
        adapter=[adapter],
        control=["matched", "deranged", "zero", "noise", "silent"],
    )
    assert (
        "receiver: sends no message, so there is no deranged or zero or noise or silent run of it."
        in watcher.said
    )
    assert "excerpt: sends no cache, so there is no zero or noise run of it." in watcher.said
    return {tuple(f.name.split("-")[::2][:2]): f for f in folders}  # type: ignore[misc]


def test_every_method_runs_under_the_controls_that_mean_something(controlled):
    found = {mode: [c for m, c in controlled if m == mode] for mode in ("receiver", "excerpt", "t2t", "lcf")}
    everything = ["matched", "deranged", "zero", "noise", "silent"]
    assert found == {
        "receiver": ["matched"],
        "excerpt": ["matched", "deranged", "silent"],
        "t2t": everything,
        "lcf": everything,
    }
    assert all(r["error"] is None for f in controlled.values() for r in rows(f))


def test_rows_say_what_was_sent_and_by_whom(controlled):
    alone = rows(controlled["receiver", "matched"])
    for mode in ("t2t", "lcf"):
        matched, silent = (rows(controlled[mode, c]) for c in ("matched", "silent"))
        for control in ("deranged", "zero", "noise"):
            for a, b in zip(matched, rows(controlled[mode, control]), strict=True):
                assert (b["message_from"] == b["doc_hash"]) == (control != "deranged")
                assert b["message_bytes"] > 0 and b["sharer_tokens"] > 0
                assert (a["sharer_prompt"] == b["sharer_prompt"]) == (control != "deranged")
        for a, b, c in zip(matched, silent, alone, strict=True):
            assert (
                b["message_from"]
                is b["message_text"]
                is b["sharer_prompt"]
                is b["sharer_prompt_sha256"]
                is None
            )
            assert b["message_bytes"] == b["message_cache_bytes"] == b["sharer_tokens"] == 0
            assert b["receiver_prompt"] == c["receiver_prompt"] and c["flops"] <= b["flops"] < a["flops"]
            assert (b["choices_loglikelihood"] == c["choices_loglikelihood"]) == (mode == "t2t")
    excerpt = rows(controlled["excerpt", "silent"])
    assert [r["choices_loglikelihood"] for r in excerpt] == [r["choices_loglikelihood"] for r in alone]
    answers = {
        c: [r["choices_loglikelihood"] for r in rows(controlled["lcf", c])]
        for m, c in controlled
        if m == "lcf"
    }
    assert answers["zero"] == answers["silent"], "to an adapter with raw inputs an empty cache says nothing"
    assert len({str(a) for a in answers.values()}) == 4


def test_manifests_tell_gates_and_derangement(controlled):
    for (mode, control), folder in controlled.items():
        found = manifest(folder)
        assert (len(found.get("message_from_sha256", "")) == 64) == (control == "deranged")
        assert (found.get("gates") == {"layers": [0, 1, 2, 3], "key": [1.0] * 4, "value": [1.0] * 4}) == (
            mode == "lcf"
        )
    one, two = (manifest(controlled[m, "deranged"])["message_from_sha256"] for m in ("t2t", "lcf"))
    assert one == two, "the same documents exchange messages under every method"


def test_noise_is_the_same_alone_in_batches_and_after_a_resume(
    pair, adapter, controlled, tmp_path, monkeypatch
):
    whole = rows(controlled["lcf", "noise"])
    chosen = {"mode": ["lcf"], "adapter": [adapter], "control": ["noise"]}
    [alone] = go(pair, tmp_path / "alone", batch_size=1, **chosen)
    for a, b in zip(rows(alone), whole, strict=True):
        x, y = ([ll for step in json.loads(r["choices_loglikelihood"]) for ll in step] for r in (a, b))
        assert x == pytest.approx(y, abs=5e-4)
    with interrupted_after(5, monkeypatch):
        go(pair, tmp_path / "cut", **chosen)
    [resumed] = go(pair, tmp_path / "cut", **chosen)
    assert resumed.name == controlled["lcf", "noise"].name and rows(resumed) == whole
    [other] = go(pair, tmp_path / "other", seed=1, **chosen)
    assert other.name != resumed.name


def test_a_method_without_a_cache_alone_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match=r"excerpt sends no cache that zero or noise could change"):
        go(pair, tmp_path, mode=["excerpt"], control=["zero", "noise"])


# -- seeds ---------------------------------------------------------------------------------------


def test_seeds_are_numbers_and_stand_in_the_place_of_one():
    assert Recipe.merge(None, {"seeds": "2,0,2"}).every_seed == [2, 0]
    assert Recipe.merge(None, {"seeds": 3}).every_seed == [3] and Recipe.merge(
        None, {"seed": 4}
    ).every_seed == [4]
    assert Recipe.merge(None, {}).every_seed == [0]
    with pytest.raises(UserError, match="seed 1 and seeds 0,1 are both given"):
        Recipe.merge(None, {"seed": 1, "seeds": "0,1"})
    with pytest.raises(UserError, match="setting seeds"):
        Recipe.merge(None, {"seeds": "0,x"})


def test_a_recipe_file_may_list_seeds(tmp_path):
    (tmp_path / "r.yaml").write_text("mode: [receiver]\nseeds: [0, 1, 2]\n")
    assert Recipe.merge(tmp_path / "r.yaml", {}).every_seed == [0, 1, 2]
    assert Recipe.merge(tmp_path / "r.yaml", {"seeds": "5"}).every_seed == [5]


def test_each_seed_is_the_run_that_it_is_alone(pair, tmp_path, monkeypatch):
    loaded, plain, watcher = [], CausalLM.load, Watcher()
    monkeypatch.setattr(
        CausalLM, "load", lambda found, **kw: (loaded.append(found.name), plain(found, **kw))[1]
    )
    both = go(pair, tmp_path / "both", watcher, mode=["receiver"], seeds=[0, 3], limit=FEW)
    assert len(loaded) == 1 and not any("draws nothing" in text for text in watcher.said)
    apart = [go(pair, tmp_path / "apart", mode=["receiver"], seed=s, limit=FEW)[0] for s in (0, 3)]
    assert [f.name for f in both] == [f.name for f in apart]
    for a, b in zip(both, apart, strict=True):
        assert rows(a) == rows(b)
    one, two = ({r["doc_hash"] for r in rows(f)} for f in both)
    assert not one & two, "another seed generates other documents"
    assert [{r["seed"] for r in rows(f)} for f in both] == [{0}, {3}]
    assert manifest(both[0])["identity"]["data_sha256"] != manifest(both[1])["identity"]["data_sha256"]


def test_seeds_resume_where_they_were_cut(pair, adapter, tmp_path, monkeypatch):
    chosen = {
        "mode": ["lcf"],
        "adapter": [adapter],
        "control": ["deranged", "noise"],
        "seeds": [0, 1],
        "limit": FEW,
    }
    whole = go(pair, tmp_path / "whole", **chosen)
    assert len({f.name for f in whole}) == 4
    with interrupted_after(FEW + 2, monkeypatch):
        go(pair, tmp_path / "cut", **chosen)
    resumed = go(pair, tmp_path / "cut", **chosen)
    assert [f.name for f in resumed] == [f.name for f in whole]
    assert all(rows(a) == rows(b) for a, b in zip(resumed, whole, strict=True))


def test_what_draws_nothing_is_run_once_and_the_data_is_read_once(pair, tmp_path, mirror, monkeypatch):
    few(monkeypatch)
    tables, plain, watcher = [], assets.load_table, Watcher()
    monkeypatch.setattr(assets, "load_table", lambda *a, **kw: (tables.append(a), plain(*a, **kw))[1])
    chosen = {
        "mode": ["receiver", "t2t"],
        "task": ["openbookqa"],
        "control": ["matched", "deranged", "noise", "silent"],
        "seeds": [1, 2],
        "processes": 1,
    }
    folders = go(pair, tmp_path, watcher, limit=None, **chosen)
    found = [(m["mode"], m["control"], m["seed"]) for m in (manifest(f)["identity"] for f in folders)]
    assert found == [
        ("receiver", "matched", 1),
        ("t2t", "matched", 1),
        ("t2t", "deranged", 1),
        ("t2t", "deranged", 2),
        ("t2t", "noise", 1),
        ("t2t", "noise", 2),
        ("t2t", "silent", 1),
    ]
    assert [text for text in watcher.said if "draws nothing" in text] == [
        "openbookqa: receiver, t2t, t2t (silent) draws nothing (every document is asked), so it is run "
        "once, with seed 1."
    ]
    assert len(tables) == 1
    one, two = (manifest(f) for f in folders[2:4])
    assert (
        one["dropped"] == two["dropped"] and one["identity"]["data_sha256"] == two["identity"]["data_sha256"]
    )
    assert one["message_from_sha256"] != two["message_from_sha256"]


def test_a_limit_draws_documents_by_the_seed(pair, tmp_path, mirror, monkeypatch):
    few(monkeypatch, 8)
    drawn = go(pair, tmp_path, task=["openbookqa"], limit=FEW, seeds=[0, 1])
    assert len(drawn) == 2 and len({r["doc_hash"] for f in drawn for r in rows(f)}) > FEW
    assert len(go(pair, tmp_path, task=["openbookqa"], limit=8, seeds=[0, 1])) == 1, (
        "the limit leaves nothing out"
    )


def test_calibration_documents_are_drawn_too(pair, tmp_path):
    receiver = pair.split(":")[0]
    plain = plan.load_task

    def load(name, **more):
        made = plain(name, **more)
        made.drawn = lambda limit: False  # type: ignore[method-assign]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "load_task", load)
        whole = go(f"{receiver}:{receiver}", tmp_path, mode=["kvcomm"], limit=2, seeds=[0, 1])
        chosen = go(
            f"{receiver}:{receiver}",
            tmp_path,
            mode=["kvcomm"],
            limit=2,
            seeds=[0, 1],
            options={"layers": "0.5"},
        )
    assert len(whole) == 1 and len(chosen) == 2


def test_runs_of_the_schema_before_still_open(pair, tmp_path):
    import pyarrow.parquet as pq

    [folder] = go(pair, tmp_path, limit=FEW)
    table = pq.read_table(folder / "samples.parquet")
    table = table.drop_columns(["receiver_prompt", "sharer_prompt", "row_sha256"])
    at = table.column_names.index("schema_version")
    table = table.set_column(at, table.field(at), [[3] * FEW])
    pq.write_table(table, folder / "samples.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    older = {k: v for k, v in manifest.items() if not k.endswith("sha256")} | {"schema_version": 3}
    (folder / "manifest.json").write_text(json.dumps(older))
    runs = read_runs([folder])
    assert not runs.warnings and runs.rows["receiver_prompt"].isna().all() and len(runs.rows) == FEW

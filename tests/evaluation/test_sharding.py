"""A run made in parts is the run made at once, whichever processes made them and in whatever order."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest

import lcfbench
from lcfbench.errors import Exit, UserError
from lcfbench.evaluation.gathering import gather
from lcfbench.evaluation.planning import plan
from lcfbench.evaluation.recipe import Recipe
from lcfbench.results.finding import listed
from lcfbench.results.reader import list_runs
from lcfbench.results.shards import shards_of
from lcfbench.results.writer import RunWriter, own
from tests.helpers import Watcher, invoke, manifest_of, run_recipe, small_recipe

SWEEP = {
    "mode": ["receiver", "sharer", "full_context", "t2t", "excerpt", "lcf"],
    "control": ["matched", "deranged", "noise", "zero"],
    "batch_size": 5,
    "limit": 12,
    "latency_documents": 1,
}
MEASURED = {"peak_memory_bytes", "amortized_ms", "written_at", "row_sha256"}


def rows_of(out: Path):
    found = lcfbench.load_samples(out)
    kept = [name for name in found.columns if name not in MEASURED and not name.endswith("_ms")]
    return found[kept].sort_values(["run_id", "doc_index"], ignore_index=True)


@pytest.fixture(scope="module")
def sweep(pair, adapter, tmp_path_factory):
    """The settings of 13 runs, and the folder in which they were made at once."""
    out = tmp_path_factory.mktemp("whole")
    chosen = {**SWEEP, "adapter": [adapter]}
    assert len(run_recipe(pair, out, **chosen)) >= 12
    return chosen, out


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is done."""


def killed_after(rows: int, monkeypatch, go):
    """Runs something that ends as if killed once so many rows are written."""
    plain, written = RunWriter.append, []

    def append(self, row):
        if len(written) == rows:
            self.close()
            raise Killed
        written.append(row)
        plain(self, row)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunWriter, "append", append)
        patch.setattr(RunWriter, "interrupt", lambda self: self.close())
        go()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shards_in_any_order_gathered_elsewhere_are_the_whole_sweep(
    count, sweep, pair, tmp_path, monkeypatch, capsys
):
    chosen, whole = sweep
    order = random.Random(count).sample(range(1, count + 1), count)
    places = {i: tmp_path / f"node-{i % 2}" for i in order}

    def go(i):
        return run_recipe(pair, places[i], **chosen, shard=f"{i}/{count}")

    first = next(i for i in order if i <= 3)  # there are three batches
    killed_after(7, monkeypatch, lambda: go(first))
    for i in [*order, first]:
        go(i)
    third = tmp_path / "third"
    partly = gather([places[first]], third)
    found = gather([*dict.fromkeys(places.values())], third)
    assert {each.state for each in found} == {"complete"} and partly[0].documents == 12
    assert rows_of(third).equals(rows_of(whole))
    assert not any(shards_of(folder) for folder in listed(third))
    # equal, and too few to say so of other documents
    assert invoke_check(whole, third, monkeypatch) == Exit.INCONCLUSIVE
    assert "worse" not in capsys.readouterr().out
    again = gather([*dict.fromkeys(places.values())], third)
    assert [each.state for each in again] == [each.state for each in found]
    assert rows_of(third).equals(rows_of(whole))


def invoke_check(baseline, new, monkeypatch) -> int:
    import sys

    from lcfbench.cli.app import main

    monkeypatch.setattr(sys, "argv", ["lcfbench", "check", str(baseline), str(new)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


FEW = {"mode": ["receiver", "t2t"], "limit": 9, "batch_size": 2}


@pytest.fixture(scope="module")
def few(pair, tmp_path_factory):
    out = tmp_path_factory.mktemp("few")
    run_recipe(pair, out, **FEW)
    return out


def test_the_last_part_in_one_folder_seals_the_run(few, pair, tmp_path):
    first, last = Watcher(), Watcher()
    made = run_recipe(pair, tmp_path, first, **FEW, shard="2/2")
    assert [r["state"] for r in list_runs(tmp_path)] == ["partial", "partial"]
    assert not listed(tmp_path)
    for place in (tmp_path, shards_of(made[0])[0]):
        with pytest.raises(UserError, match="nothing to read"):
            lcfbench.load_samples(place)
    states = [
        (r.state, r.done, r.documents) for r in plan(small_recipe(pair, tmp_path, **FEW), Watcher()).runs
    ]
    assert states == [("partial", 4, 9)] * 2
    part = plan(small_recipe(pair, tmp_path, **FEW, shard="2/2"), Watcher()).runs
    assert [(r.state, r.done, r.documents) for r in part] == [("complete", 4, 4)] * 2
    assert any("4 of 9 documents have rows; shard 2/2 is done" in text for text in first.said)
    run_recipe(pair, tmp_path, last, **FEW, shard="1/2")
    assert any("all 9 documents have rows" in text for text in last.said)
    assert rows_of(tmp_path).equals(rows_of(few))
    for folder in made:
        told = manifest_of(folder)
        assert told["state"] == "complete" and len(told["sessions"]) == 2 and not shards_of(folder)
        assert told["recipe"]["shard"] is None and "shard" not in told and told["seconds"] > 0
    again = Watcher()
    run_recipe(pair, tmp_path, again, **FEW, shard="1/2")
    assert all("complete already" in text for text in again.said) and not any(map(shards_of, made))
    with pytest.raises(UserError, match="is complete, and --fresh with --shard"):
        run_recipe(pair, tmp_path, **FEW, shard="1/2", fresh=True)


def test_parts_of_different_numbers_complete_a_run(few, pair, tmp_path):
    for shard in ("1/2", "2/4", "4/4"):
        run_recipe(pair, tmp_path, **FEW, shard=shard)
    assert rows_of(tmp_path).equals(rows_of(few))


def test_a_plain_run_takes_over_what_shards_have(few, pair, tmp_path, monkeypatch):
    killed_after(3, monkeypatch, lambda: run_recipe(pair, tmp_path, **FEW, shard="1/2"))
    written = []
    plain = RunWriter.append
    monkeypatch.setattr(RunWriter, "append", lambda self, row: (written.append(row), plain(self, row))[1])
    made = run_recipe(pair, tmp_path, **FEW)
    assert len(written) == 2 * 9 - 3
    assert rows_of(tmp_path).equals(rows_of(few)) and not any(map(shards_of, made))


def test_fresh_forgets_the_shards(pair, tmp_path):
    made = run_recipe(pair, tmp_path, **FEW, shard="1/2")
    run_recipe(pair, tmp_path, **FEW, fresh=True)
    assert not any(map(shards_of, made))


def test_an_empty_part_leaves_the_others(pair, tmp_path):
    (folder, *_) = run_recipe(pair, tmp_path, **FEW, shard="1/7")
    before = [path.name for path in shards_of(folder)]
    run_recipe(pair, tmp_path, **FEW, shard="7/7")
    assert [path.name for path in shards_of(folder)] == before == ["1-of-7"]


def test_an_empty_part_says_so(pair, tmp_path):
    watcher = Watcher()
    run_recipe(pair, tmp_path, watcher, **FEW, shard="7/7")
    assert all("shard 7/7 is empty" in text or "0 of 9 documents" in text for text in watcher.said)
    assert not list(tmp_path.iterdir())


def test_a_part_is_written_by_one_process(pair, tmp_path):
    (folder, *_) = run_recipe(pair, tmp_path, **FEW, shard="1/2")
    owner = own(shards_of(folder)[0])
    try:
        with pytest.raises(UserError, match=r"shard 1/2 of run .* is being written by another process"):
            run_recipe(pair, tmp_path, **FEW, shard="1/2", fresh=True)
    finally:
        owner.release()


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "1/0", "1of2", "1/1", "1/2/3", "-1/2", "1/", "/2", "", "²/3", "1.0/2"]
)
def test_a_part_that_is_none_is_one_line(text, capsys, monkeypatch):
    code, out, err = invoke(capsys, monkeypatch, "run", f"--shard={text}")
    assert code == 2 and not out and len(err.strip().splitlines()) == 1 and "shard" in err


def test_a_part_that_is_none_is_refused_in_python_too():
    with pytest.raises(UserError, match="of 2 parts there are 1/2 to 2/2"):
        Recipe.merge(None, {"shard": "3/2"})


def test_gather_says_what_is_missing_and_keeps_what_is_there(few, pair, tmp_path, capsys, monkeypatch):
    source, out = tmp_path / "a", tmp_path / "b"
    run_recipe(pair, source, **FEW, shard="1/2")
    before = sorted(p for p in source.rglob("*"))
    code, text, _ = invoke(capsys, monkeypatch, "gather", source, "--out", out)
    assert code == 4 and "5/9" in text and "8 documents have no row yet" in " ".join(text.split())
    assert sorted(p for p in source.rglob("*")) == before
    code, text, _ = invoke(capsys, monkeypatch, "gather", source, "--out", out, "--json")
    assert code == 4 and [each["rows"] for each in json.loads(text)] == [5, 5]
    run_recipe(pair, out, **FEW)
    assert rows_of(out).equals(rows_of(few))
    code, _, err = invoke(capsys, monkeypatch, "gather", tmp_path / "nosuch", "--out", out)
    assert code == 2 and "no run or shard" in err


def test_a_damaged_part_gives_no_row(few, pair, tmp_path):
    (folder, *_) = run_recipe(pair, tmp_path, **FEW, shard="1/2")
    path = shards_of(folder)[0] / "manifest.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"documents": 3}))
    found = {each.run_id: each for each in gather([tmp_path], tmp_path / "out")}[folder.name]
    assert found.rows == 0 and "not those that were recorded" in found.warnings[0]


@pytest.mark.parametrize(
    "told",
    [
        {"shard": None},
        {"shard": "x"},
        {"shard": {"index": 1, "count": 2, "documents": "many", "documents_sha256": 1}},
        {"identity": {"a": 1}},
        {"digest": None},
    ],
)
def test_a_part_that_does_not_say_what_it_is_completes_nothing(few, pair, tmp_path, told):
    (folder, *_) = run_recipe(pair, tmp_path, **FEW, shard="1/2")
    path = shards_of(folder)[0] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with contextlib.suppress(UserError):
        run_recipe(pair, tmp_path, **FEW, shard="1/2")
    assert folder.name not in [r.name for r in listed(tmp_path)]
    with contextlib.suppress(UserError):
        assert "complete" not in {each.state for each in gather([tmp_path], tmp_path / "out")}
    run_recipe(pair, tmp_path, **FEW)
    assert rows_of(tmp_path).equals(rows_of(few))


def test_a_damaged_part_is_called_so(pair, tmp_path):
    (folder, *_) = run_recipe(pair, tmp_path, **FEW, shard="1/2")
    (shards_of(folder)[0] / "samples.parquet").write_text("torn")
    part = plan(small_recipe(pair, tmp_path, **FEW, shard="1/2"), Watcher()).runs
    assert [each.state for each in part] == ["damaged", "complete"]


def test_time_counts_once_however_often_a_part_is_named(pair, tmp_path):
    (one, *_) = run_recipe(pair, tmp_path / "a", **FEW, shard="1/2")
    run_recipe(pair, tmp_path / "b", **FEW, shard="2/2")
    out, twice = tmp_path / "out", tmp_path / "twice"
    gather([tmp_path / "a", tmp_path / "b"], out)
    (tmp_path / "link").symlink_to("a")
    gather([tmp_path / "a"], twice)
    gather([tmp_path / name for name in ("a", "link", "twice", "b")], twice)
    seconds = [manifest_of(folder / one.name)["seconds"] for folder in (out, twice)]
    assert seconds[1] < 1.2 * seconds[0]


def test_parts_that_disagree_are_named(pair, tmp_path, monkeypatch):
    run_recipe(pair, tmp_path / "a", **FEW, shard="1/2")
    plain = RunWriter.append
    monkeypatch.setattr(
        RunWriter, "append", lambda self, row: plain(self, {**row, "score": 1.0 - row["score"]})
    )
    run_recipe(pair, tmp_path / "b", **FEW)
    monkeypatch.undo()
    with pytest.raises(UserError, match="Leave out the one that is wrong"):
        gather([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/samples.parquet"))


def test_aggregates_of_lm_eval_are_those_of_all_documents(mirror, pair, tmp_path):
    chosen = {"task": ["lm-eval/openbookqa"], "limit": 7, "batch_size": 2, "offline": True}
    (whole,) = run_recipe(pair, tmp_path / "whole", **chosen)
    for i in (2, 1):
        run_recipe(pair, tmp_path / f"node-{i}", **chosen, shard=f"{i}/2")
    (found,) = gather([tmp_path / "node-1", tmp_path / "node-2"], tmp_path / "out")
    told = manifest_of(tmp_path / "out" / found.run_id)
    assert told["lm_eval"] == manifest_of(whole)["lm_eval"] != {}
    assert rows_of(tmp_path / "out").equals(rows_of(tmp_path / "whole"))

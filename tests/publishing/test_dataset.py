"""Runs as a data set: in a folder, on a Hub of our own, opened by `datasets` in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard

from lcfbench.errors import UserError
from lcfbench.publishing.dataset import CARD, RUNS, TEXTS, build, publish
from lcfbench.results.reader import load_samples
from tests.helpers import forks, invoke

NAME = "me/runs"


def opened(name: str, queue, env: dict[str, str]) -> None:
    """What a user's process sees: rows, columns and one score sum of both configs."""
    import os

    os.environ.update(env)
    import datasets
    from huggingface_hub import constants

    if "HF_ENDPOINT" in env:  # the process was forked after these were read
        url = env["HF_ENDPOINT"]
        for module in (constants, datasets.config):
            for key, value in {"ENDPOINT": url, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": False}.items():
                if hasattr(module, key):
                    setattr(module, key, value)
        constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_CACHE = env["CACHE"]
    datasets.config.HF_DATASETS_CACHE = env["CACHE"]
    try:
        found = {}
        for config in ("samples", "summary"):
            rows = datasets.load_dataset(name, config, split="train", cache_dir=env["CACHE"])
            found[config] = (len(rows), sorted(set(rows["run_id"])), sum(rows["score"]))
        queue.put(found)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def loaded(name, tmp_path, **env: str):
    queue = multiprocessing.get_context("forkserver").SimpleQueue()
    child = forks().Process(target=opened, args=(str(name), queue, {"CACHE": str(tmp_path / "c"), **env}))
    child.start()
    found = queue.get()
    child.join(60)
    assert isinstance(found, dict), found
    return found


def holds(found, runs) -> None:
    rows = load_samples(runs)
    count, names, total = found["samples"]
    assert (count, names) == (len(rows), sorted(set(rows["run_id"])))
    assert total == pytest.approx(rows["score"].sum()) and found["summary"][0] >= 1


def test_a_folder_is_opened_by_datasets_and_by_lcfbench(world, tmp_path):
    made = build([world.runs], tmp_path / "data")
    assert len(made.runs) == 3 and made.tasks == ["splitfacts"] and not made.others
    holds(loaded(tmp_path / "data", tmp_path), world.runs)
    again = load_samples(tmp_path / "data" / RUNS)
    pd.testing.assert_frame_equal(again, load_samples(world.runs))
    card = DatasetCard((tmp_path / "data" / CARD).read_text())
    assert [c["config_name"] for c in card.data.to_dict()["configs"]] == ["samples", "summary"]
    assert "no score of a model" in " ".join(card.text.split()) and "Rows hold the prompts" in card.text
    text = "".join(p.read_text() for p in (tmp_path / "data").rglob("*") if p.suffix in (".json", ".md"))
    assert str(world.adapter) not in text and str(world.runs) not in text, "no path of this machine"
    assert (tmp_path / "data" / "report.html").stat().st_size > 10_000


def test_a_folder_that_got_more_runs_is_not_opened_from_the_cache_of_before(world, tmp_path):
    first = next(world.runs.glob("receiver-*"))
    build([first], tmp_path / "data")
    holds(loaded(tmp_path / "data", tmp_path), first)
    build([world.runs], tmp_path / "data")
    holds(loaded(tmp_path / "data", tmp_path), world.runs)


def test_without_prompts_no_word_of_the_documents_is_left(world, tmp_path):
    build([world.runs], tmp_path / "data", prompts=False)
    rows = load_samples(tmp_path / "data" / RUNS)  # the digests hold
    assert len(rows) == len(load_samples(world.runs)) and not rows[list(TEXTS)].notna().any().any()
    word = load_samples(world.runs)["gold"][0]
    for path in (tmp_path / "data").rglob("*"):
        assert not path.is_file() or word.encode() not in path.read_bytes(), path
    assert "are left out" in (tmp_path / "data" / CARD).read_text()
    build([world.runs], tmp_path / "data")
    assert "Rows hold the prompts" in (tmp_path / "data" / CARD).read_text()


def part_of(world, place, pattern):
    for run in world.runs.glob(pattern):
        shutil.copytree(run, place / run.name)
    return place


def test_publishing_again_adds_and_loses_nothing(world, tmp_path):
    first, second = part_of(world, tmp_path / "a", "receiver-*"), part_of(world, tmp_path / "b", "lcf-*")
    build([first], tmp_path / "data")
    card = tmp_path / "data" / CARD
    text = card.read_text().replace("tags:\n", "license: mit\ntags:\n- mine\n", 1)
    card.write_text(text.replace("# ", "# My ", 1))
    made = build([second], tmp_path / "data")
    assert len(made.runs) == 2 and len(made.others) == 1
    holds(loaded(tmp_path / "data", tmp_path), world.runs)
    _, block, body = card.read_text().split("---\n", 2)
    about = yaml.safe_load(block)
    assert about["license"] == "mit" and about["tags"][0] == "mine" and "# My " in body
    assert body.count("<!-- runs") == 1 and all(run in body for run in (*made.runs, *made.others))
    same = build([second], tmp_path / "data")
    assert (len(same.runs), len(same.others)) == (2, 1)


def test_a_run_that_is_there_with_other_scores_is_not_replaced(world, tmp_path):
    build([world.runs], tmp_path / "data")
    place = next((tmp_path / "data" / RUNS).glob("receiver-*")) / "samples.parquet"
    table = pq.read_table(place)
    rows = [row | {"score": 1.0 - row["score"]} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, table.schema), place)
    before = place.read_bytes()
    with pytest.raises(UserError, match="is there with other scores"):
        build([world.runs], tmp_path / "data")
    assert place.read_bytes() == before


def test_a_table_that_is_torn_there_is_one_line(world, tmp_path):
    build([world.runs], tmp_path / "data")
    place = next((tmp_path / "data" / RUNS).glob("receiver-*")) / "samples.parquet"
    place.write_bytes(place.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        build([world.runs], tmp_path / "data")


@pytest.mark.parametrize("tables", [0, 1, 3])
def test_interrupted_while_it_writes_no_table_is_torn(world, tmp_path, monkeypatch, tables):
    left, write = [tables], pq.write_table

    def stopped(table, where, **more):
        if left[0]:
            left[0] -= 1
            return write(table, where, **more)
        with where if hasattr(where, "write") else open(where, "wb") as file:
            file.write(b"PAR1 half")
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pq, "write_table", stopped)
        build([world.runs], tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.parquet"):
        assert isinstance(pq.read_table(path), pa.Table)
    assert len(build([world.runs], tmp_path / "data").runs) == 3


def damage(run, kind):
    manifest = json.loads((run / "manifest.json").read_text())
    if kind == "unfinished":
        (run / "manifest.json").write_text(json.dumps(manifest | {"state": "interrupted"}))
    elif kind == "no manifest":
        (run / "manifest.json").unlink()
    elif kind == "half a file":
        (run / "samples.parquet").write_bytes((run / "samples.parquet").read_bytes()[:1000])
    else:
        table = pq.read_table(run / "samples.parquet")
        rows = [row | {"score": 1.0} for row in table.to_pylist()]
        pq.write_table(type(table).from_pylist(rows, table.schema), run / "samples.parquet")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("unfinished", "is not finished"),
        ("no manifest", "has no manifest"),
        ("half a file", "cannot publish: .*cannot be read"),
        ("edited", "cannot publish: .*not those that were recorded"),
    ],
)
def test_what_is_not_sound_is_refused_and_sends_nothing(server, world, tmp_path, monkeypatch, kind, says):
    runs = part_of(world, tmp_path / "runs", "*-splitfacts-*")
    damage(sorted(runs.iterdir())[0], kind)
    monkeypatch.setenv("HF_TOKEN", "token")
    with pytest.raises(UserError, match=says):
        publish([runs], NAME)
    with pytest.raises(UserError, match=says):
        build([runs], tmp_path / "data")
    assert server.asked == [] and not (tmp_path / "data").exists()


def test_what_is_on_the_hub_is_opened_by_load_dataset(server, world, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    first, second = part_of(world, tmp_path / "a", "receiver-*"), part_of(world, tmp_path / "b", "lcf-*")
    made = publish([first], f"{NAME}@main")
    assert made.url.startswith(f"{server.url}/") and "/commit/" in made.url
    here = server.files(f"datasets/{NAME}")
    assert {CARD, "summary.parquet", "report.html", "report.md"} < set(here)
    made = publish([second], NAME)
    assert len(made.others) == 1
    holds(loaded(NAME, tmp_path, HF_ENDPOINT=server.url), world.runs)
    commits = len(server.repos[f"datasets/{NAME}"]["commits"])
    publish([second], NAME, revision="more")
    repo = server.repos[f"datasets/{NAME}"]
    assert set(repo["branches"]) == {"main", "more"} and len(repo["commits"]) > commits


def test_another_publication_in_between_is_one_line(server, world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    server.breaks = {"/commit/main": 412}
    with pytest.raises(UserError, match="changed meanwhile") as error:
        publish([world.runs], NAME)
    assert error.value.next_step == "Repeat the command."


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"token": None}, "no token, so lcfbench cannot publish"),
        ({"token": "reader"}, r"may not do this \(403\)"),
        ({"token": "wrong"}, "does not accept the token|no such repository"),
        ({"offline": True}, "offline was asked for"),
        ({"name": "runs"}, "is not a Hub repository"),
        ({"name": "me/runs@"}, "names no revision"),
        ({"revision": "0" * 40}, "is a commit"),
        ({"breaks": {"POST": 500}}, "it answered 500"),
    ],
)
def test_each_reason_is_one_line(server, world, monkeypatch, how, says):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    if token := how.get("token", "token"):
        monkeypatch.setenv("HF_TOKEN", token)
    server.breaks = how.get("breaks", {})
    with pytest.raises(UserError, match=says) as error:
        publish(
            [world.runs],
            how.get("name", NAME),
            revision=how.get("revision"),
            offline=how.get("offline", False),
        )
    assert "\n" not in str(error.value) and not server.repos


def test_a_public_data_set_is_not_made_private(server, world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "token")
    publish([world.runs], NAME)
    with pytest.raises(UserError, match="exists and is public"):
        publish([world.runs], NAME, private=True)
    publish([world.runs], "me/mine", private=True)
    assert server.repos["datasets/me/mine"]["private"]


def test_the_shell(server, world, tmp_path, monkeypatch, capsys):
    for args, says in [
        ((), "nothing says where"),
        (("--dry-run",), "no folder to write"),
        (("--dataset", "me/x", "--to", tmp_path / "d"), "two places"),
        (("--to", world.adapter), "no data set of runs"),
    ]:
        code, _, err = invoke(capsys, monkeypatch, "publish", world.runs, *args)
        assert code == 2 and says in err and err.count("\n") == 1
    args = ("--dataset", NAME, "--dry-run", "--to", tmp_path / "d")
    code, out, err = invoke(capsys, monkeypatch, "publish", world.runs, *args)
    assert code == 0 and out == f"3 runs: {tmp_path / 'd'}\n" and "licences" in err and not server.asked
    assert f'load_dataset("{NAME}"' in (tmp_path / "d" / CARD).read_text()
    monkeypatch.setenv("HF_TOKEN", "token")
    args = ("--dataset", NAME, "--without-prompts")
    code, out, err = invoke(capsys, monkeypatch, "publish", world.runs, *args)
    assert code == 0 and f"{server.url}" in out and "licences" not in err

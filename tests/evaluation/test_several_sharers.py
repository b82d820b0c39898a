"""Runs with several sharers, from the pair's name to the rows."""

from __future__ import annotations

import json

import pytest

from lcfbench.errors import UserError
from lcfbench.methods import load_pair as opening
from lcfbench.methods.load_pair import load_pair
from lcfbench.sources.models import first_pair, split_pair, split_sharers
from lcfbench.tasks.task import load_task
from tests.helpers import invoke, manifest_of, rows, run_recipe, save_pair


def test_the_names_of_a_pair(tmp_path, monkeypatch):
    assert split_sharers("smollm2-135m:gemma3-270m, smollm2-135m") == (
        "smollm2-135m",
        ("gemma3-270m", "smollm2-135m"),
    )
    assert first_pair("smollm2-135m:gemma3-270m,smollm2-135m") == ("smollm2-135m", "gemma3-270m")
    with pytest.raises(UserError, match="names 2 sharers, and one is taken here"):
        split_pair("smollm2-135m:gemma3-270m,gemma3-270m")
    with pytest.raises(UserError, match="has a comma and no sharer beside it"):
        split_sharers("smollm2-135m:gemma3-270m,")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert split_sharers("smollm2-135m:./a,b,gemma3-270m")[1] == ("./a,b", "gemma3-270m")


def test_a_model_named_thrice_is_loaded_once(tmp_path, monkeypatch):
    receiver, sharer = save_pair(tmp_path).split(":")
    loaded, load = [], opening.CausalLM.load
    monkeypatch.setattr(
        opening.CausalLM, "load", lambda found, **how: (loaded.append(found.name), load(found, **how))[1]
    )
    pair = load_pair(f"{receiver}:{sharer},{sharer},{receiver}", several=True)
    assert len(loaded) == 2
    assert pair.sharers == (pair.sharer, pair.sharer, pair.receiver) and pair.receiver is not pair.sharer
    assert load_pair(f"{receiver}:{sharer},{sharer}", several=True, roles=("receiver",)).more == ()
    with pytest.raises(UserError, match="one is taken here"):
        load_pair(f"{receiver}:{sharer},{sharer}")


@pytest.mark.parametrize("sharers", [1, 2, 3])
def test_splitfacts_deals_the_notes(sharers):
    documents = load_task("splitfacts_several", options={"sharers": str(sharers)}).documents(limit=40)
    for d in documents:
        assert len(d.dealt) == sharers
        parts = [v.user.partition("\n")[0].removeprefix("Notes: ") for v in d.sharers]
        assert d.sharer.user.startswith(f"Notes: {' '.join(parts)}\n"), "the sharer reads them in a row"
        assert f"{' '.join(parts)} " in d.full.user
        assert all(part.count(" box") == 1 for part in parts), "each knows of one key"
        name = d.receiver.prefix.removeprefix("The key of ").removesuffix(" is in the")
        assert sum(name in part for part in parts) == 1
        assert all(r.prefix == "The key of" and "Question" not in r.user for r in d.requests)
    if sharers == 1:
        plain = load_task("splitfacts").documents(limit=40)
        assert [d.sharer for d in documents] == [d.sharer for d in plain]
        assert [d.receiver for d in documents] == [d.receiver for d in plain]
    if sharers == 3:
        held = [
            [d.receiver.prefix[11:15] in v.user.partition("\n")[0] for v in d.sharers].index(True)
            for d in documents
        ]
        assert set(held) == {0, 1, 2}, "any of them may hold the key"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sharers": "9"}, "sharers=9"),
        ({"sharers": "0"}, "sharers=0"),
        ({"sharers": "3", "boxes": "2"}, "each key has a box of its own"),
    ],
)
def test_what_splitfacts_several_refuses(options, said):
    with pytest.raises(UserError, match=said):
        load_task("splitfacts_several", options=options).documents(limit=1)


def test_rows_of_two_sharers(tmp_path):
    receiver, sharer = save_pair(tmp_path).split(":")
    asked = {"task": ["splitfacts_several"], "task_options": {"sharers": "2"}, "limit": 6}
    asked |= {"mode": ["receiver", "excerpt"], "control": ["matched", "deranged-one"]}
    folders = run_recipe(f"{receiver}:{sharer},{sharer}", tmp_path / "out", **asked)
    assert [manifest_of(f)["identity"].get("join") for f in folders] == [None, "row", "row"]
    assert manifest_of(folders[1])["identity"]["sharer"].count(",") == 1
    alone, matched, one = map(rows, folders)
    assert all(row["each_message_bytes"] is None for row in alone)
    for row, other in zip(matched, one, strict=True):
        sizes = json.loads(row["each_message_bytes"])
        assert len(sizes) == 2 and sum(sizes) == row["message_bytes"] > 0
        assert json.loads(row["each_sharer_tokens"]) == [0, 0]
        assert json.loads(row["each_message_from"]) == [row["doc_hash"]] * 2
        assert sorted(json.loads(other["each_message_from"])) == sorted(
            [row["doc_hash"], other["message_from"]]
        )
        assert other["message_from"] != row["doc_hash"]
    again = run_recipe(f"{receiver}:{sharer}", tmp_path / "one", **asked | {"control": ["matched"]})
    for row, joined in zip(rows(again[1]), matched, strict=True):
        assert row["doc_hash"] == joined["doc_hash"] and row["each_message_bytes"] is None
        assert "join" not in manifest_of(again[1])["identity"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--mode", "draft_kv"), "draft_kv takes the message of one sharer"),
        (("--mode", "sharer"), "sharer takes the message of one sharer"),
        (("--mode", "t2t", "--task", "splitfacts"), "deals the sharer's text to 1, and --pair names 2"),
    ],
)
def test_what_a_run_refuses(tmp_path, capsys, monkeypatch, args, said):
    receiver, sharer = save_pair(tmp_path).split(":")
    task = () if "--task" in args else ("--task", "splitfacts_several", "--task-option", "sharers=2")
    pair = ("--pair", f"{receiver}:{sharer},{sharer}", "--out", tmp_path / "out", "--limit", "2")
    code, _, err = invoke(capsys, monkeypatch, "run", *pair, *task, *args)
    assert code == 2 and said in " ".join(err.split())


@pytest.mark.parametrize("verb", ["train", "probe"])
def test_other_verbs_take_one_sharer(tmp_path, capsys, monkeypatch, verb):
    receiver, sharer = save_pair(tmp_path).split(":")
    code, _, err = invoke(capsys, monkeypatch, verb, "--pair", f"{receiver}:{sharer},{sharer}")
    assert code == 2 and "names 2 sharers, and one is taken here" in " ".join(err.split())


def test_join_has_no_effect_with_one_sharer(tmp_path, capsys, monkeypatch):
    args = ("--pair", save_pair(tmp_path), "--mode", "t2t", "--join", "row", "--out", tmp_path / "out")
    code, _, err = invoke(capsys, monkeypatch, "run", *args)
    assert code == 2 and "--join has no effect with one sharer" in " ".join(err.split())


def test_a_dry_run_shows_what_each_sharer_reads(tmp_path, capsys, monkeypatch):
    receiver, sharer = save_pair(tmp_path).split(":")
    words = ["run", "--dry-run", "--mode", "receiver,t2t", "--limit", 1, "--task", "splitfacts_several"]
    pair = f"{receiver}:{sharer},{receiver}"
    code, out, _ = invoke(capsys, monkeypatch, *words, "--task-option", "sharers=2", "--pair", pair)
    entry = json.loads(out)
    [document] = load_task("splitfacts_several", options={"sharers": "2"}).documents(limit=1)
    assert code == 0 and len(entry["sharer"]) == len(entry["request"]) == 2
    for seen, view in zip(entry["sharer"], document.sharers, strict=True):
        assert view.user in seen["prompt"] and seen["tokens"] > 0
    code, _, err = invoke(capsys, monkeypatch, *words, "--task-option", "sharers=3", "--pair", pair)
    assert code == 2 and "deals the sharer's text to 3, and --pair names 2" in err and err.count("\n") == 1

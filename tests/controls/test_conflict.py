"""Runs under control conflict: whose message, who is asked, who won, and where it cannot be run."""

from __future__ import annotations

import json

import pytest

from lcfbench.controls.base import load_control
from lcfbench.controls.conflict import Conflict
from lcfbench.controls.names import CONTROLS
from lcfbench.results.manifest import read_manifest
from lcfbench.results.messages import read_message
from lcfbench.tasks.task import load_task
from tests.helpers import LIMIT, Watcher, invoke, rows, run_recipe, save_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("task", ["splitfacts", "planted"])
def test_rows_say_who_won_and_whose_message_it_was(pair, tmp_path, task):
    found = {}
    for folder in run_recipe(pair, tmp_path, mode=["receiver", "t2t"], task=[task], control=["conflict"]):
        found[read_manifest(folder)["identity"]["mode"]] = rows(folder)
    originals = [d.hash for d in load_task(task).documents(limit=LIMIT)]
    for mode, table in found.items():
        assert table and all(row["error"] is None for row in table)
        for row in table:
            steps = json.loads(row["choices_loglikelihood"])
            assert row["conflict_winner"] in ("message", "text", "neither")
            assert (row["conflict_winner"] == "message") == (row["score"] == 1.0)
            assert steps and row["doc_hash"] not in originals
        if mode == "t2t":
            own = [row["message_from"] == row["doc_hash"] for row in table]
            assert all(own) if task == "splitfacts" else not any(own)
            assert task == "splitfacts" or all(row["message_from"] in originals for row in table)
        else:
            assert all(row["message_from"] is None for row in table)


def test_where_it_cannot_be_run_one_line_says_why(pair, tmp_path):
    watcher = Watcher()
    run_recipe(
        pair,
        tmp_path,
        mode=["sharer", "receiver"],
        task=["splitfacts"],
        control=["matched", "conflict"],
        limit=2,
        watcher=watcher,
    )
    assert any("no conflict run of sharer: the receiver, whose text" in said for said in watcher.said)


def test_a_task_without_conflicts_is_refused_in_one_line(mirror, pair, tmp_path, capsys, monkeypatch):
    options = ("--pair", pair, "--out", tmp_path, "--mode", "t2t", "--control", "conflict")
    code, _, err = invoke(capsys, monkeypatch, "run", *options, "--task", "arc_challenge", "--limit", 2)
    assert code == 2 and "has no variant in which the receiver's text contradicts the message" in err
    assert "splitfacts, splitfacts_heldout, planted or planted_heldout" in " ".join(err.split())


def test_the_message_is_made_without_the_other_value():
    control = load_control("conflict")
    assert isinstance(control, Conflict)
    for task in ("planted", "splitfacts"):
        asked = control.documents(load_task(task).documents(limit=6))
        senders = control.message_from(asked, seed=0)
        for d in asked:
            assert d.rival.gold not in senders[d.hash].sharer.user
            assert senders[d.hash].receiver == (senders[d.hash].sharer if d.shared else d.receiver)


def test_a_run_remembers_the_controls_that_do_not_apply(pair, tmp_path):
    controls = ["matched", "deranged", "zero", "conflict", "silent"]
    found = {}
    for folder in run_recipe(pair, tmp_path, mode=["t2t", "receiver"], control=controls, limit=2):
        manifest = read_manifest(folder)
        key = (manifest["identity"]["mode"], manifest["identity"]["control"])
        found[key] = manifest.get("controls_left_out")
    assert found.pop(("t2t", "matched")) is None, "its sharer reads a cache, so all of them apply"
    assert set(found.values()) == {None}
    [excerpt] = [
        read_manifest(folder)
        for folder in run_recipe(pair, tmp_path, mode=["excerpt"], control=controls, limit=2)
        if folder.name.startswith("excerpt-") and "-matched-" in folder.name
    ]
    assert excerpt["controls_left_out"] == {"zero": "excerpt sends no cache"}


def test_the_messages_of_all_controls_are_kept(pair, tmp_path):
    folders = run_recipe(
        pair, tmp_path, mode=["t2t"], control=list(CONTROLS), limit=3, wire=["native"], keep_messages=True
    )
    kept = {}
    for folder in folders:
        control = read_manifest(folder)["identity"]["control"]
        table = rows(folder)
        assert all(row["error"] is None for row in table)
        found = [read_message(folder, row["doc_hash"]).packets for row in table if row["message_bytes"]]
        assert [sum(map(len, packets)) for packets in found] == [
            row["message_bytes"] for row in table if row["message_bytes"]
        ]
        kept[control] = len(found)
    assert set(kept) == set(CONTROLS) - {"deranged-one"}, "which takes several sharers"
    assert kept["equal-text"] == kept["plumbing"] == 3 and kept["silent"] == 0

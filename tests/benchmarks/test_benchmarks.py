"""The benchmarks compare what is comparable.

The per-document peer answers as the harness does, sides take turns, and the table says what was
found.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import _table, run_all
from benchmarks._common import ratio, report, turns
from benchmarks._peer import PerDocument
from benchmarks._sides import TOLERANCE, batched, difference, must_agree, random_adapter
from lcfbench.methods.create import create
from lcfbench.tasks.task import Outcome
from tests.helpers import SHARED, SPLIT, save_pair
from tests.helpers import random_adapter as fused
from tests.helpers import tiny_pair as pair

WRITTEN = [replace(d, scoring="generate", steps=(), max_new_tokens=6) for d in SHARED]
KINDS = [
    ("lcf", "lcf", {}, SHARED),
    ("lcf", "lcf", {"standardise": True, "soft": True}, SHARED),
    ("lcf", "lcf", {}, WRITTEN),
    ("lcf", "lcfx", {}, SPLIT),
    ("lcf", "lcfx", {"pool_start": "last", "unrotated_keys": True, "standardise": True}, SPLIT),
    ("c2c", "c2c", {}, SHARED),
    ("c2c", "c2c", {"blocks": 4, "soft": True}, SHARED),
    ("c2c", "c2c", {"token_alignment": "remap"}, SHARED),
    ("c2c", "c2c", {}, WRITTEN),
]


@pytest.fixture(autouse=True)
def quiet():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


# -- the peer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("mode", "kind", "options", "documents"), KINDS)
def test_the_per_document_peer_answers_as_the_batches_do(mode, kind, options, documents, chat) -> None:
    ends, copies = pair(chat=chat), pair(chat=chat)  # the peer has models of its own
    adapter = fused(kind, ends, **{k: v for k, v in options.items() if k != "soft"})
    adapter.gate_mode = "soft" if options.get("soft") else adapter.gate_mode
    if options.get("standardise"):
        torch.manual_seed(5)
        for name in ("sharer_mean", "receiver_mean", "sharer_scale", "receiver_scale"):
            getattr(adapter, name).add_(0.2 * torch.rand_like(getattr(adapter, name)))
    method = create(mode, *ends, adapter)
    ours = batched(method, documents, 3)
    for lean in (False, True):
        peer = PerDocument(method, *(end.model for end in copies), lean=lean)
        found = difference(ours, {d.hash: peer.answer(d) for d in documents})
        assert found.picks == 0 and found.nats < TOLERANCE, found


@pytest.mark.parametrize(
    ("mode", "kind", "documents"), [("lcf", "lcf", SHARED), ("lcf", "lcfx", SPLIT), ("c2c", "c2c", SHARED)]
)
def test_a_peer_that_computes_something_else_is_noticed(mode, kind, documents) -> None:
    ends = pair()
    method = create(mode, *ends, fused(kind, ends))
    peer = PerDocument(method, *(end.model for end in pair()))
    next(peer.layers[2].parameters()).mul_(1.5)
    found = difference(batched(method, documents, 3), {d.hash: peer.answer(d) for d in documents})
    assert found.nats > TOLERANCE
    with pytest.raises(SystemExit, match="the times mean nothing"):
        must_agree(found, torch.float32, "case")
    must_agree(found, torch.bfloat16, "case")  # counted, not refused


def test_each_choice_is_read_anew_unless_lean(monkeypatch) -> None:
    ends = pair()
    method = create("lcf", *ends, fused("lcf", ends))
    for lean, times in ((False, 3), (True, 1)):
        peer, read = PerDocument(method, *(end.model for end in pair()), lean=lean), []
        whole = peer.read
        monkeypatch.setattr(
            peer, "read", lambda *prompts, whole=whole, read=read: read.append(1) or whole(*prompts)
        )
        peer.answer(SHARED[0])
        assert len(read) == times


def test_a_random_adapter_edits_every_layer() -> None:
    ends = pair()
    adapter = random_adapter("c2c", *ends, {"hidden": 24, "intermediate": 24})
    assert adapter.open_layers() == list(range(ends[0].geometry.layers))
    alone = batched(create("receiver", *ends), SHARED, 3)
    assert difference(alone, batched(create("c2c", *ends, adapter), SHARED, 3)).nats > 10 * TOLERANCE


def test_differences_are_counted_by_document() -> None:
    one = {
        "a": Outcome((((-1.0, True), (-2.0, False)),), None, (0,)),
        "b": Outcome((((-1.0, True), (-2.0, False)),), None, (0,)),
    }
    other = {"a": one["a"], "b": Outcome((((-3.0, True), (-2.0, False)),), None, (1,))}
    assert difference(one, other) == (
        1,
        0.0,
    )  # where picks differ, likelihoods of later steps are of other texts
    assert difference(one, {**one, "b": Outcome((((-1.0, True), (-2.5, False)),), None, (0,))}) == (0, 0.5)
    with pytest.raises(AssertionError):
        difference(one, {"a": one["a"]})


# -- turns, ratios, one line ----------------------------------------------------------------------


def test_sides_take_turns_and_are_checked_before_their_times_count() -> None:
    seen, now = [], iter(range(1000))
    sides = {name: (lambda name=name: seen.append(name) or name) for name in "ab"}
    times = turns(
        sides,
        2,
        warm_up=1,
        clock=lambda: next(now),
        check=lambda returned: seen.append(sorted(returned.values())),
    )
    both = ["a", "b"]
    assert seen == ["b", "a", both, "a", "b", both, "b", "a", both]
    assert times == {"a": [1, 1], "b": [1, 1]}

    def refuse(_):
        raise SystemExit("differ")

    with pytest.raises(SystemExit):
        turns(sides, 1, check=refuse)


def test_ratios_are_paired() -> None:
    assert ratio({"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 16.0]}, of="theirs", to="ours") == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
    }


def test_a_report_is_one_json_line_and_a_file(tmp_path, capsys) -> None:
    report("mine", [{"case": "x", "ratio": 1.23456789}], tmp_path / "deep" / "mine.json", dtype="float32")
    line = json.loads(capsys.readouterr().out)
    assert line == json.loads((tmp_path / "deep" / "mine.json").read_text())
    assert line["results"] == [{"case": "x", "ratio": 1.235}] and {
        "machine",
        "threads",
        "torch",
        "commit",
        "date",
        "dtype",
    } <= set(line)


# -- the table and the driver ---------------------------------------------------------------------

FOUND = {
    "benchmark": "fusion",
    "machine": "a|b",
    "threads": 2,
    "dtype": "torch.bfloat16",
    "date": "2026-01-02T03:04:05Z",
    "results": [
        {"case": "seen", "ratio": 7.0},
        {
            "case": "slow",
            "claim": "faster",
            "target": 3.0,
            "ratio": {"median": 2.9, "low": 2.0, "high": 4.0},
            "differing": 1,
        },
        {
            "case": "small",
            "claim": "less",
            "target": 1.6,
            "better": "lower",
            "ratio": {"median": 1.6, "low": 1.5, "high": 1.7},
        },
        {"case": "start", "claim": "quick", "target": 10, "better": "lower", "ratio": 2.5, "unit": "s"},
        {"case": "no ratio"},
    ],
}


def test_the_table_says_what_was_claimed_found_and_met() -> None:
    text = _table.table([FOUND, {"benchmark": "growth", "failed": "ended with exit code 1"}])
    rows = [line for line in text.splitlines() if line.startswith(("| fusion", "| growth"))]
    assert rows == [
        "| fusion | slow | faster | ≥ 3× | 2.90 (2.00–4.00)× | **no** | 1 |",
        "| fusion | small | less | ≤ 1.6× | 1.60 (1.50–1.70)× | yes |  |",
        "| fusion | start | quick | ≤ 10 s | 2.5 s | yes |  |",
        "| fusion | seen |  |  | 7× |  |  |",
        "| growth | | failed: ended with exit code 1 | | | no | |",
    ]
    assert "- machine a|b, threads 2: fusion in bfloat16 (2026-01-02)" in text


@pytest.mark.parametrize(
    ("code", "limit", "found", "why"),
    [
        ("print('first'); print('{\"a\": 1}')", 60, {"a": 1}, ""),
        ("print('{not json')", 60, None, "printed no JSON line"),
        ("print('{\"a\": 1}'); raise SystemExit(3)", 60, None, "ended with exit code 3"),
        ("import time; print('{\"a\": 1}', flush=True); time.sleep(60)", 1, None, "took longer than 1 s"),
    ],
)
def test_a_benchmark_runs_apart_and_its_end_is_told(code, limit, found, why) -> None:
    began = time.perf_counter()
    assert run_all.run_one([sys.executable, "-c", code], limit) == (found, why)
    assert time.perf_counter() - began < 30


def test_one_that_fails_is_reported_and_the_rest_go_on(tmp_path, monkeypatch, capsys) -> None:
    ends = {
        "fusion": (None, "ended with exit code 1"),
        "dtype": ({"results": [{"case": "x", "claim": "c", "ratio": 2.0}]}, ""),
    }
    asked = []
    monkeypatch.setattr(
        run_all, "run_one", lambda command, limit: asked.append(command) or ends[command[2].split(".")[1]]
    )
    monkeypatch.setattr(
        sys, "argv", ["run_all", "--only", "fusion,dtype", "--results", str(tmp_path), "--quick"]
    )
    with pytest.raises(SystemExit, match="failed: fusion"):
        run_all.main()
    assert json.loads((tmp_path / "dtype.json").read_text())["quick"] is True
    text = (tmp_path / "table.md").read_text()
    assert "| dtype | x | c |" in text and "failed: ended with exit code 1" in text
    monkeypatch.setattr(sys, "argv", ["run_all", "--table", "--results", str(tmp_path)])
    (tmp_path / "table.md").unlink()
    run_all.main()
    assert (tmp_path / "table.md").read_text() == text and len(asked) == 2


def test_every_benchmark_but_the_simulations_is_known() -> None:
    names = run_all.names()
    assert {"per_document", "receiver_vs_lm_eval", "controls_sharing", "million_rows"} <= set(names)
    assert not [name for name in names if name.startswith("_") or "simulation" in name or name == "run_all"]
    assert set(run_all.QUICK) <= set(names) and set(run_all.APART) <= set(names)


# -- the comparisons themselves, on tiny models ---------------------------------------------------


def test_a_joint_run_has_the_rows_of_the_runs_made_apart(tmp_path) -> None:
    from benchmarks.controls_sharing import timed

    asked = {
        "pair": save_pair(tmp_path),
        "task": ["splitfacts"],
        "limit": 6,
        "batch_size": 4,
        "dtype": "float32",
        "options": {"budget": "4"},
    }
    joint, taken = timed(
        time.perf_counter, **asked, mode=["receiver", "t2t"], control=["matched", "deranged"]
    )
    apart = {}
    for mode, control in (("receiver", "matched"), ("t2t", "matched"), ("t2t", "deranged")):
        options = asked["options"] if mode == "t2t" else {}
        apart |= timed(time.perf_counter, **{**asked, "options": options}, mode=[mode], control=[control])[0]
    assert len(joint) == 18 and joint == apart and 0 < taken < 60


@pytest.mark.parametrize("scoring", ["letters", "cloze", "generate"])
def test_lm_eval_scores_the_same_documents_alike(scoring, mirror) -> None:
    from lm_eval.models.huggingface import HFLM

    from benchmarks.receiver_vs_lm_eval import ours, theirs
    from lcfbench.tasks.process_docs import Rows
    from lcfbench.tasks.task import load_task

    end, copy = pair(chat=True)[0], pair(chat=True)[0]
    task = load_task("openbookqa")
    lm = HFLM(pretrained=copy.model, tokenizer=copy.tokenizer, batch_size=4, device="cpu")
    rows = Rows(dict(d.native) for d in task.documents(scoring=scoring, limit=5, receiver_chat=True))
    mine, spent = ours(task, end, scoring, 5, 4, time.perf_counter)
    other, theirs_spent = theirs(task, lm, scoring, rows, True, time.perf_counter)
    assert mine == other and len(mine) == 5 and spent > 0 and theirs_spent > 0

"""Who won where message and text disagree: shares over documents, in every table that is printed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lcfbench.analysis.recorded import WINNERS
from lcfbench.analysis.report import page, sections, text
from lcfbench.analysis.report.source import read
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats.proportions import wilson
from lcfbench.analysis.summary import summarise
from lcfbench.results.writer import RunWriter
from tests.analysis.gate_runs import answers, identity, record
from tests.helpers import invoke

WON = ["message"] * 12 + ["text"] * 5 + ["neither"] * 3


def conflict(out: Path, won: list[str | None], seed: int = 0, mode: str = "lcf", failed: int = 0) -> None:
    """A conflict run with these winners, and so many documents that failed behind them."""
    writer = RunWriter.open(out, identity(control="conflict", seed=seed, mode=mode), {"sends": mode == "lcf"})
    for i, winner in enumerate([*won, *[None] * failed]):
        row = {"doc_hash": f"c{i}", "doc_index": i, "score": float(winner == "message"), "metric": "acc"}
        told = {"conflict_winner": winner} if winner else {"error": "no room", "score": 0.0}
        writer.append({**row, **told})
    writer.finish()


def line_of(out: Path) -> dict:
    [line] = [x for x in summarise(read_run_groups([out]).groups).to_dict("records") if x["control"] != "x"]
    return line


def test_shares_with_wilsons_interval_over_documents(tmp_path: Path) -> None:
    conflict(tmp_path, WON)
    line = line_of(tmp_path)
    assert line["won_n"] == 20
    for winner, count in zip(WINNERS, (12, 5, 3), strict=True):
        name = f"won_{winner}"
        assert (line[name], line[f"{name}_low"], line[f"{name}_high"]) == pytest.approx(
            (count / 20, *wilson(count, 20))
        )


def test_documents_that_failed_have_no_winner(tmp_path: Path) -> None:
    conflict(tmp_path, WON, failed=10)
    line = line_of(tmp_path)
    assert (line["n"], line["won_n"], line["won_message"]) == (30, 20, 0.6)


def test_seeds_are_averaged_by_document(tmp_path: Path) -> None:
    conflict(tmp_path, ["message", "text", "neither", "text"])
    conflict(tmp_path, ["message", "message", "neither", "text"], seed=1)
    line = line_of(tmp_path)
    assert line["seeds"] == 2 and line["won_n"] == 4
    assert [line[f"won_{w}"] for w in WINNERS] == [0.375, 0.375, 0.25]


def test_other_controls_have_none(tmp_path: Path) -> None:
    record(tmp_path, answers(20, 0.5, seed=0))
    line = line_of(tmp_path)
    assert line["won_n"] == 0 and all(math.isnan(line[f"won_{w}"]) for w in WINNERS)
    assert sections.conflicts(read([tmp_path])) == []
    assert 'id="conflicts"' not in page.html(read([tmp_path]))


def test_every_table_says_who_won(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    conflict(tmp_path, WON)
    conflict(tmp_path, ["message"] * 5 + ["text"] * 15, mode="receiver")
    for control in ("matched", "deranged"):
        record(tmp_path, answers(20, 0.5, seed=0), control=control)
    said = (
        "lcf (conflict): answered the message's value 60.0 % (38.7–78.1), its own text's 25.0 % (11.2–46.9), "
        "neither 15.0 % (5.2–36.0); 95 %, n=20"
    )
    alone = "receiver (conflict): answered the message's value 25.0 %"
    for verb in ("show", "verdict"):
        code, out, err = invoke(capsys, monkeypatch, verb, tmp_path, "--markdown")
        assert code == 0 and said in out and alone in out, (out, err)
    [table] = sections.conflicts(read([tmp_path]))
    assert [[e.text for e in row.entries] for row in table.rows] == [
        ["receiver", "splitfacts", "20", "25.0", "75.0", "0.0"],
        ["lcf", "splitfacts", "20", "60.0", "25.0", "15.0"],
    ]
    assert table.rows[1].entries[3].note == "[38.7, 78.1]"
    source = read([tmp_path])
    assert "Who wins where message and text disagree" in page.html(source)
    assert "60.0 \\[38.7, 78.1]" in text.markdown(source) or "60.0 [38.7, 78.1]" in text.markdown(source)
    code, out, _ = invoke(capsys, monkeypatch, "show", tmp_path, "--json")
    [found] = [x for x in json.loads(out) if (x["mode"], x["control"]) == ("lcf", "conflict")]
    assert found["won_text"] == 0.25 and found["won_n"] == 20
    assert found["gain"] == pytest.approx(0.35), "the gain is over the receiver that reads the same claim"


def test_the_receiver_under_conflict_is_nobodys_baseline(tmp_path: Path) -> None:
    record(tmp_path, answers(20, 0.5, seed=0), mode="receiver")
    record(tmp_path, answers(20, 0.6, seed=1), mode="sharer")
    conflict(tmp_path, WON, mode="receiver")
    lines = summarise(read_run_groups([tmp_path]).groups).to_dict("records")
    assert [x["mode"] for x in lines].count("orf") == 1
    [orf] = [x for x in lines if x["mode"] == "orf"]
    assert orf["n"] == 20 and orf["score"] >= 0.5

"""What a message keeps of a whole one's content and bytes: numbers, table, figure, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcfbench.analysis.kept import Aim, kept
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.api import Results
from lcfbench.errors import UserError
from tests.analysis.frontier_runs import answers, record
from tests.helpers import invoke

SPLIT = {"task": "splitfacts", "scoring": "cloze"}


def put(out: Path, mode: str, right: float, size: int, empty: float = 30, n: int = 400, **more) -> None:
    for control, share in (("matched", right), ("deranged", empty)):
        rows = answers(n, share, f"{mode}{control}{more}")
        record(out, rows, mode=mode, control=control, row={"message_bytes": size}, **{**SPLIT, **more})


@pytest.fixture
def runs(tmp_path) -> Path:
    put(tmp_path / "runs", "kvcomm", 70, 1_000_000)  # P 40, of which 80 % are 32
    put(tmp_path / "runs", "excerpt", 90, 100)
    put(tmp_path / "runs", "t2t", 62, 50)
    put(tmp_path / "runs", "lcf", 40, 2_000)
    put(tmp_path / "runs", "dense", 95, 20_000)
    return tmp_path / "runs"


def lines(runs: Path, aim: Aim):
    return {line.mode: line for line in kept(read_run_groups([runs]).groups, aim)}


def test_the_aim_needs_enough_content_shown_and_few_enough_bytes(runs):
    found = lines(runs, Aim("kvcomm"))
    assert {mode: line.reached for mode, line in found.items()} == {
        "excerpt": "yes",
        "t2t": "undecided",  # exactly 80 % of the content
        "lcf": "no",  # too little content
        "dense": "no",  # too many bytes
        "kvcomm": "no",
    }
    line = found["t2t"]
    assert line.above == pytest.approx(0.0) and line.above_low < 0 < line.above_high
    assert line.of_content == pytest.approx(0.8) and line.of_bytes == pytest.approx(50 / 1_000_000)
    assert found["lcf"].above == pytest.approx(0.10 - 0.32) and found["lcf"].above_high < 0
    assert all(
        line.kept_of == "kvcomm" and line.whole_content == pytest.approx(0.4) for line in found.values()
    )


def test_other_shares_decide_otherwise(runs):
    found = lines(runs, Aim("kvcomm", content=0.1, bytes=0.05))
    assert {mode for mode, line in found.items() if line.reached == "yes"} == {"excerpt", "t2t", "dense"}
    assert found["lcf"].reached == "undecided" and found["lcf"].above == pytest.approx(0.10 - 0.04)


def test_the_whole_is_the_run_with_the_most_bytes_and_the_worst_control_counts(runs):
    put(runs, "kvcomm", 99, 500, options={"layers": 0.3})
    rows = answers(400, 50, "kvcommzero")
    record(runs, rows, mode="kvcomm", control="zero", **SPLIT)
    found = kept(read_run_groups([runs]).groups, Aim("kvcomm"))
    assert [line.whole_content for line in found] == [pytest.approx(0.2)] * 6


def test_runs_without_a_deranged_one_are_left_out_and_no_whole_is_an_error(runs, tmp_path):
    record(runs, answers(400, 80, "c2c"), mode="c2c", control="matched", row={"message_bytes": 9}, **SPLIT)
    assert "c2c" not in lines(runs, Aim("kvcomm"))
    with pytest.raises(UserError, match="no run of c2c with a deranged one"):
        lines(runs, Aim("c2c"))
    with pytest.raises(UserError, match="unknown message 'kvcom'"):
        lines(runs, Aim("kvcom"))
    with pytest.raises(UserError, match="content share of 80"):
        Aim("kvcomm", content=80)


def test_the_table_and_a_figure_that_is_drawn_again_from_its_numbers(runs, tmp_path, capsys, monkeypatch):
    from lcfbench.cli.terminal import out as terminal

    monkeypatch.setattr(terminal, "_width", 200)

    def plot(*words: object) -> tuple[int, str, str]:
        return invoke(capsys, monkeypatch, "plot", "rate", *words)

    numbers = tmp_path / "rate.csv"
    code, out, _ = plot(runs, "--whole", "kvcomm", "--out", tmp_path, "--data", numbers)
    assert code == 0 and out.splitlines()[-1] == str(numbers)
    [row] = [line for line in out.splitlines() if line.startswith("excerpt")]
    assert row.split()[1:4] == ["100", "0.01", "%"] and row.split()[-1] == "yes"
    code, out, _ = plot(numbers, "--out", tmp_path / "again")
    svg = (tmp_path / "again" / "rate.svg").read_bytes()
    assert code == 0 and svg == (tmp_path / "rate.svg").read_bytes()
    assert b"80 % of P and 1 % of the bytes of kvcomm" in svg
    # a run takes the place of its point; others stay
    put(tmp_path / "more", "t2t", 75, 60)
    data = tmp_path / "both.csv"
    assert plot(numbers, tmp_path / "more", "--out", tmp_path / "both", "--data", data)[0] == 0
    old, new = ({line.split(",")[3]: line for line in p.read_text().splitlines()} for p in (numbers, data))
    assert old.keys() == new.keys() and {mode for mode in old if old[mode] != new[mode]} == {"t2t"}
    assert plot(numbers, "--task", "planted", "--out", tmp_path)[0] == 2
    assert plot(numbers, "--whole", "kvcomm", "--out", tmp_path)[0] == 2
    assert plot(runs, "--out", tmp_path, "--data", tmp_path / "x.txt")[0] == 2


@pytest.mark.parametrize(
    "text", ["", "pair,task\na,b\n", "no\x00numbers", "{cut}", "many", "inf", "nan", "0"]
)
def test_a_file_that_holds_no_numbers_of_a_figure_is_refused(runs, tmp_path, capsys, monkeypatch, text):
    numbers = tmp_path / "rate.csv"
    assert invoke(capsys, monkeypatch, "plot", "rate", runs, "--out", tmp_path, "--data", numbers)[0] == 0
    head, first, *_ = numbers.read_text().splitlines(keepends=True)
    size = head.strip().split(",").index("message_bytes")
    cells = first.split(",")
    told = head + ",".join([*cells[:size], text, *cells[size + 1 :]])
    broken = {"{cut}": head, **dict.fromkeys(("many", "inf", "nan", "0"), told)}
    numbers.write_text(broken.get(text, text))
    code, _, err = invoke(capsys, monkeypatch, "plot", "rate", numbers, "--out", tmp_path)
    assert code == 2 and str(numbers) in err.replace("\n", "")


def test_from_a_program(runs, tmp_path):
    results = Results(sorted(runs.iterdir()))
    assert set(results.kept("kvcomm")["mode"]) == {"kvcomm", "excerpt", "t2t", "lcf", "dense"}
    files = results.plot_rate(tmp_path, aim=Aim("kvcomm"), data=tmp_path / "numbers.csv")
    assert [file.name for file in files] == ["rate.png", "rate.svg", "numbers.csv"]
    with pytest.raises(UserError, match="choice"):
        results.plot_rate(tmp_path, tsk="splitfacts")

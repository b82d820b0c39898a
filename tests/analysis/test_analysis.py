"""Statistics on fixed vectors, tables that lose no digit, figures of equal bytes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import lcfbench
from lcfbench.analysis import tables
from lcfbench.analysis.plots import frontier
from lcfbench.analysis.plots.published import published
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats.proportions import wilson
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from lcfbench.results.writer import RunWriter
from tests.helpers import printed

PAIR = "smollm2-135m:gemma3-270m"
# task → (mode, control, right of 200, asked twice, ttft_ms, adapter MB, message bytes)
LINES = {
    "openbookqa": [
        ("receiver", "matched", 70, 75.0, 0, 0),
        ("full_context", "matched", 71, 75.0, 0, 0),
        ("t2t", "matched", 68, 2450.0, 0, 180),
        ("t2t", "deranged", 68, 2460.0, 0, 181),
        ("lcf", "matched", 69, 210.0, 3.2, 18000),
        ("lcf", "deranged", 69, 212.0, 3.2, 18100),
    ],
    "splitfacts": [
        ("receiver", "matched", 66, 60.0, 0, 0),
        ("full_context", "matched", 140, 95.0, 0, 0),
        ("lcf", "matched", 196, 180.0, 7.9, 12345),
        ("lcf", "deranged", 68, 181.0, 7.9, 12345),
    ],
}


def lines_of(out: Path, **more: bool) -> pd.DataFrame:
    return summarise(read_run_groups([out], **more).groups)


def record(out: Path, task: str, mode: str, control: str, scores: list[float], **more: object) -> str:
    names = {
        "mode": mode,
        "control": control,
        "task": task,
        "pair": PAIR,
        "receiver": "smollm2-135m",
        "scoring": "cloze",
        "seed": 0,
    }
    identity = {name: more.pop(name) for name in ("options", "seed", "dtype", "data_sha256") if name in more}
    writer = RunWriter.open(
        out, {"options": {}, **names, **identity}, {"chance": 1 / 3} if task == "splitfacts" else {}
    )
    for index, score in enumerate(scores):
        own = {name: value[index] if isinstance(value, list) else value for name, value in more.items()}
        writer.append(
            {
                "doc_hash": f"{task}{index}",
                "doc_index": index,
                "score": score,
                "metric": "accuracy",
                "batch_size": 1,
                **own,
            }
        )
    writer.finish()
    return writer.run_id


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("results")
    for task, lines in LINES.items():
        for mode, control, right, ttft_ms, mb, size in lines:
            scores = [1.0] * (2 * right) + [0.0] * (400 - 2 * right)
            record(
                out,
                task,
                mode,
                control,
                scores,
                ttft_ms=ttft_ms,
                adapter_bytes=int(mb * 1e6),
                message_bytes=size,
            )
    return lines_of(out)


def line(summary: pd.DataFrame, task: str, mode: str, control: str = "matched") -> pd.Series:
    found = summary[(summary["task"] == task) & (summary["mode"] == mode) & (summary["control"] == control)]
    assert len(found) == 1
    return found.iloc[0]


def test_errors_count_as_wrong_and_stay_in_the_denominator(tmp_path: Path) -> None:
    names = {"mode": "lcf", "control": "matched", "task": "t", "pair": "a:b", "scoring": "letters", "seed": 0}
    writer = RunWriter.open(tmp_path, names, {})
    for index in range(10):
        failed = (
            {"error": "RuntimeError: too long", "score": 1.0 if index == 9 else None}
            if index >= 8
            else {"score": 1.0}
        )
        writer.append({"doc_hash": str(index), "doc_index": index, **failed})
    writer.finish()
    got = lines_of(tmp_path).iloc[0]
    assert (got["n"], got["errors"], got["score"]) == (10, 2, 0.8)
    assert (got["low"], got["high"]) == pytest.approx(wilson(8, 10))


def test_gain_content_and_verdict(summary: pd.DataFrame) -> None:
    lcf = line(summary, "splitfacts", "lcf")
    assert (lcf["gain"], lcf["gain_n"]) == (pytest.approx(0.65), 400) and lcf["content"] == pytest.approx(
        0.64
    )
    assert lcf["verdict"] == "communicates" and lcf["adapter_mb"] == 7.9 and lcf["ttft_ms"] == 180.0
    assert line(summary, "openbookqa", "lcf")["verdict"] == "does not communicate"
    assert line(summary, "openbookqa", "receiver")["verdict"] == "" and math.isnan(
        line(summary, "openbookqa", "receiver")["gain"]
    )
    assert summary["mode"].iloc[0] == "receiver" and list(summary["task"].unique()) == [
        "openbookqa",
        "splitfacts",
    ]


def test_pairs_are_joined_by_document_and_by_options(tmp_path: Path) -> None:
    for width, right in ((64, 3), (128, 9)):
        record(
            tmp_path,
            "t",
            "lcf",
            "matched",
            [1.0] * right + [0.0] * (12 - right),
            options={"width": width},
            message_bytes=9,
        )
    record(
        tmp_path, "t", "lcf", "deranged", [1.0, 1.0, 0.0], options={"width": 128}, message_bytes=9
    )  # fewer documents
    got = lines_of(tmp_path).set_index(["label", "control"])
    assert got.loc[("lcf width=64", "matched"), "verdict"] == "untested"
    wide = got.loc[("lcf width=128", "matched")]
    assert (wide["content_n"], wide["content"]) == (3, pytest.approx(1 / 3)) and wide["n"] == 12


def test_times_of_a_batch_are_no_latency(tmp_path: Path) -> None:
    record(tmp_path, "t", "lcf", "matched", [1.0, 0.0], batch_size=8, amortized_ms=20.0)
    got = lines_of(tmp_path).iloc[0]
    assert math.isnan(got["ttft_ms"]) and got["ttft_n"] == 0 and got["docs_per_s"] == 50.0


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_loses_nothing_and_says_it_in_words(
    summary: pd.DataFrame, capsys, monkeypatch, width: int
) -> None:
    text = printed(capsys, monkeypatch, width, *tables.summary_tables(summary))
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    rows = [row.split() for row in text.splitlines()]
    for cells in (tables.summary_cells(item) for item in summary.to_dict("records")):
        assert list(" ".join(cells).split()) in rows  # every line whole, on one line
    words = " ".join(text.split())
    assert (
        "lcf: nothing is communicated" in words and "lcf: communicates: matched 98.0, deranged 34.0" in words
    )
    assert "message of another document" in words and "guessing gives 33.3 %" in words and "12,345" in words


def test_a_long_label_folds_and_numbers_stay(summary: pd.DataFrame, capsys, monkeypatch) -> None:
    long = summary.assign(label="lcf width=128 layers=9 alignment=remap")
    text = printed(capsys, monkeypatch, 80, *tables.summary_tables(long))
    assert "…" not in text and "18,000" in text and "2,450" in text and "98.0" in text


def test_exports(summary: pd.DataFrame) -> None:
    told = json.loads(tables.to_json(summary.to_dict("records")))
    assert len(told) == 10 and told[0]["adapter_mb"] is None and told[0]["score"] == 0.35
    assert [row["run_id"] for row in csv.DictReader(io.StringIO(tables.to_csv(summary)))] == list(
        summary["run_id"]
    )
    text = "\n".join(table.markdown() for table in tables.summary_tables(summary))
    assert (
        text.count("| --- |") == 2
        and "| lcf | deranged | 400 | 34.0 | 29.5–38.8 | 181 | 7.9 | 12,345 |" in text
    )


def test_the_plot_is_the_same_bytes_twice(
    summary: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = frontier.plot(summary.iloc[6:], tmp_path / "a")
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)  # the reader's own settings do not matter
    second = frontier.plot(summary.iloc[6:], tmp_path / "b")
    assert [path.name for path in first] == ["frontier.png", "frontier.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size > 5000
    assert matplotlib.rcParams["font.size"] == 30
    with pytest.raises(UserError, match="no runs"):
        frontier.plot(summary.iloc[:0], tmp_path)


def test_labels_do_not_overlap_and_stay_inside(summary: pd.DataFrame) -> None:
    figure = frontier.draw(summary)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    assert len(figure.axes) == 6
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_gid() == "label"]
        assert len(boxes) >= 3
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        frame = axes.get_window_extent(renderer).padded(1)
        assert all(
            frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes
        )
    said = " ".join(text.get_text() for text in figure.texts)
    assert "lcf: nothing is communicated" in said and "lcf communicates: 98.0 % with its own message" in said


def test_a_plot_of_what_was_not_measured(summary: pd.DataFrame) -> None:
    bare = summary.assign(
        ttft_ms=math.nan, adapter_mb=math.nan, message_bytes=math.nan, verdict="untested", chance=math.nan
    )
    figure = frontier.draw(bare.iloc[:1])
    assert [text.get_text() for text in figure.axes[1].texts] == ["not measured"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["no\nadapter"]
    frontier.draw(bare[bare["control"] == "deranged"])  # nothing matched: no front, no label, no failure


def test_published_numbers_only_when_asked_and_only_for_the_same_pair_and_task(summary: pd.DataFrame) -> None:
    assert {n.mode: n.score for n in published("qwen3-0.6b:qwen2.5-0.5b", "openbookqa")} == {
        "receiver": 0.392,
        "t2t": 0.44,
        "c2c": 0.526,
    }
    assert published(PAIR, "openbookqa") == []
    theirs = summary[summary["task"] == "openbookqa"].assign(pair="qwen3-0.6b:qwen2.5-0.5b")

    def names(lines: pd.DataFrame, asked: bool) -> list[str]:
        return [text.get_text() for axes in frontier.draw(lines, asked).axes for text in axes.texts]

    assert "c2c, published" in names(theirs, True) and "c2c, published" not in names(theirs, False)
    assert not any("published" in name for name in names(summary, True))


def test_no_torch() -> None:
    code = "import sys, lcfbench.results.writer, lcfbench.analysis.tables, lcfbench.analysis.plots.frontier; "
    code += "print([m for m in sys.modules if m in "
    code += "('torch', 'pandas', 'pyarrow', 'scipy', 'matplotlib', 'rich')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_subjects_are_tasks_of_their_own(tmp_path: Path) -> None:
    for mode, scores in (("receiver", [1.0, 0.0, 1.0, 1.0]), ("lcf", [1.0, 1.0, 1.0, 0.0])):
        record(tmp_path, "mmlu", mode, "matched", scores, subject=["law", "law", "art", "art"])
    got = lines_of(tmp_path, by_subject=True).set_index(["task", "mode"])
    assert (
        got.loc[("mmlu/law", "receiver"), "score"] == 0.5
        and got.loc[("mmlu/art", "receiver"), "score"] == 1.0
    )
    assert got.loc[("mmlu/law", "lcf"), "gain"] == 0.5 and got.loc[("mmlu/art", "lcf"), "gain"] == -0.5
    assert set(lines_of(tmp_path)["task"]) == {"mmlu"}
    record(tmp_path, "plain", "receiver", "matched", [1.0])
    assert "plain" in set(lines_of(tmp_path, by_subject=True)["task"])


def test_a_baseline_must_be_the_same_receiver(tmp_path: Path) -> None:
    record(tmp_path / "a", "t", "receiver", "matched", [0.0, 0.0], dtype="float32")
    record(tmp_path / "a", "t", "lcf", "matched", [1.0, 1.0], dtype="float32")
    assert lines_of(tmp_path / "a").set_index("mode").loc["lcf", "gain"] == 1.0
    record(tmp_path / "b", "t", "receiver", "matched", [0.0, 0.0], dtype="bfloat16")
    record(tmp_path / "b", "t", "lcf", "matched", [1.0, 1.0], dtype="float32")
    assert math.isnan(lines_of(tmp_path / "b").set_index("mode").loc["lcf", "gain"])


def test_seeds_share_a_line(tmp_path: Path) -> None:
    for seed, right in ((0, 6), (1, 8), (2, 10)):  # documents 0..9, 10..19, 20..29: another seed draws others
        hashes = [f"d{10 * seed + i}" for i in range(10)]
        record(
            tmp_path,
            "t",
            "lcf",
            "matched",
            [1.0] * right + [0.0] * (10 - right),
            seed=seed,
            doc_hash=hashes,
            message_bytes=9,
        )
        record(
            tmp_path,
            "t",
            "lcf",
            "deranged",
            [1.0] * 2 + [0.0] * 8,
            seed=seed,
            doc_hash=hashes,
            message_bytes=9,
        )
    got = lines_of(tmp_path).set_index("control")
    assert list(got["n"]) == [30, 30] and list(got["seeds"]) == [3, 3]
    own = got.loc["matched"]
    assert (
        own["score"] == pytest.approx(0.8) and own["seed_sd"] == pytest.approx(0.2) and own["content_n"] == 30
    )
    assert any("over 3 seeds 20.0 points" in note for note in tables.notes(lines_of(tmp_path)))


def test_one_document_under_several_seeds_counts_once(tmp_path: Path) -> None:
    for seed, scores in ((0, [1.0, 0.0]), (1, [0.0, 0.0])):
        record(tmp_path, "t", "lcf", "deranged", scores, seed=seed)
    got = lines_of(tmp_path).iloc[0]
    assert (got["n"], got["score"], got["seeds"]) == (2, 0.25, 2)


def test_two_runs_of_one_seed_are_two_lines(tmp_path: Path) -> None:
    record(tmp_path, "t", "lcf", "matched", [1.0], data_sha256="a" * 64)
    record(tmp_path, "t", "lcf", "matched", [0.0], data_sha256="b" * 64)
    assert sorted(lines_of(tmp_path)["label"]) == ["lcf data_sha256=aaaaaa", "lcf data_sha256=bbbbbb"]


def test_wrong_files_are_named_and_the_rest_is_summarised(tmp_path: Path) -> None:
    record(tmp_path, "t", "lcf", "matched", [1.0])
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    found = read_run_groups([tmp_path])
    assert len(found.groups) == 1 and "torn.parquet: skipped" in found.warnings[0]


def test_summary_and_verdicts_load_from_a_path(tmp_path: Path) -> None:
    for mode, control, right in (
        ("receiver", "matched", 0.0),
        ("lcf", "matched", 1.0),
        ("lcf", "deranged", 0.0),
    ):
        record(tmp_path, "t", mode, control, [right] * 40, message_bytes=9 if mode == "lcf" else 0)
    lines = lcfbench.load_summary(str(tmp_path))
    assert len(lines) == 3 and set(lines["mode"]) == {"receiver", "lcf"}
    found = lcfbench.verdicts([tmp_path])
    assert found["verdict"].tolist() == ["communicates"]
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.warns(UserWarning, match="torn.parquet: skipped"):
        assert len(lcfbench.load_summary(tmp_path)) == 3


def test_runs_that_are_not_finished_are_one_note():
    def line(label: str, state: str) -> dict:
        return {"label": label, "control": "matched", "state": state, "n": 3, "seeds": 1, "errors": 0}

    states = {"a": "running", "b": "complete", "c": "interrupted"}
    [note] = tables.notes(pd.DataFrame([line(*each) for each in states.items()]))
    said = "not finished, documents so far: a (matched) 3, c (matched) 3"
    assert note == f"{said}; repeat their commands to resume"
    [note] = tables.notes(pd.DataFrame([line("a", "running"), line("b", "complete")]))
    assert note == "a (matched): not finished, 3 documents so far; repeat its command to resume"

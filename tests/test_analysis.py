"""Statistics against fixed vectors, denominators, tables that lose no digit, and pictures that are the same bytes twice."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binomtest

from lcfbench.analysis import frontier, show
from lcfbench.analysis.published import published
from lcfbench.analysis.stats import mcnemar, mean_interval, paired_difference, tango, verdict, wilson
from lcfbench.analysis.summary import by_subject, summarise
from lcfbench.errors import UserError
from lcfbench.store import RunWriter, read_runs

PAIR = "smollm2-135m:gemma3-270m"
# task → (mode, control, right of 200, ttft_ms, adapter MB, message bytes)
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
    options = more.pop("options", {})
    writer = RunWriter.open(out, {**names, "options": options}, {"chance": 1 / 3} if task == "splitfacts" else {})
    for index, score in enumerate(scores):
        writer.append({"doc_hash": f"{task}{index}", "doc_index": index, "score": score, "metric": "accuracy", "batch_size": 1, **more})
    writer.finish()
    return writer.run_id


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("results")
    for task, lines in LINES.items():
        for mode, control, right, ttft_ms, mb, size in lines:
            scores = [1.0] * right + [0.0] * (200 - right)
            record(out, task, mode, control, scores, ttft_ms=ttft_ms, adapter_bytes=int(mb * 1e6), message_bytes=size)
    runs = read_runs([out])
    return summarise(runs.rows, runs.manifests)


def line(summary: pd.DataFrame, task: str, mode: str, control: str = "matched") -> pd.Series:
    found = summary[(summary["task"] == task) & (summary["mode"] == mode) & (summary["control"] == control)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (29, 263), (176, 500)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    assert wilson(k, n) == pytest.approx(tuple(binomtest(k, n).proportion_ci(method="wilson")), abs=1e-12)


def test_tango_and_mcnemar_on_published_data() -> None:
    # Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2014, table V: 1 and 7 discordant of 21 pairs.
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango(7, 1, 21) == pytest.approx((0.026, 0.517), abs=5e-4)
    z2 = 1.959963984540054**2
    assert tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9)
    assert mcnemar(1, 7) == pytest.approx(binomtest(1, 8).pvalue) and mcnemar(0, 0) == 1.0


def test_intervals_of_scores_that_are_not_binary() -> None:
    values = np.random.default_rng(3).beta(0.4, 0.6, 300)
    got = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(300)
    assert got == mean_interval(values)  # seeded
    assert got.low == pytest.approx(values.mean() - half, abs=0.005) and got.high == pytest.approx(values.mean() + half, abs=0.005)
    same = paired_difference(values, values)
    assert same.value == 0 and same.low < 0 < same.high  # equal scores on 300 documents are no proof of equality
    assert math.isnan(mean_interval([]).value)


def test_verdicts() -> None:
    assert verdict([1] * 60 + [0] * 40, [1] * 30 + [0] * 70).label == "communicates"
    equal = [1, 0] * 250
    assert verdict(equal, equal).label == "does not communicate" and "nothing is communicated" in verdict(equal, equal).text
    few = verdict(equal[:20], equal[:20])
    assert few.label == "undecided" and "n=20" in few.text and few.detectable > 0.05
    assert verdict([1] * 30 + [0] * 70, [1] * 60 + [0] * 40).label == "does not communicate"
    assert verdict([], []).label == "untested"


def test_errors_count_as_wrong_and_stay_in_the_denominator(tmp_path: Path) -> None:
    names = {"mode": "lcf", "control": "matched", "task": "t", "pair": "a:b", "scoring": "letters", "seed": 0}
    writer = RunWriter.open(tmp_path, names, {})
    for index in range(10):
        failed = {"error": "RuntimeError: too long", "score": 1.0 if index == 9 else None} if index >= 8 else {"score": 1.0}
        writer.append({"doc_hash": str(index), "doc_index": index, **failed})
    writer.finish()
    runs = read_runs([tmp_path])
    got = summarise(runs.rows, runs.manifests).iloc[0]
    assert (got["n"], got["errors"], got["score"]) == (10, 2, 0.8)
    assert (got["low"], got["high"]) == pytest.approx(wilson(8, 10))


def test_gain_content_and_verdict(summary: pd.DataFrame) -> None:
    lcf = line(summary, "splitfacts", "lcf")
    assert (lcf["gain"], lcf["gain_n"]) == (pytest.approx(0.65), 200) and lcf["content"] == pytest.approx(0.64)
    assert lcf["verdict"] == "communicates" and lcf["adapter_mb"] == 7.9 and lcf["ttft_ms"] == 180.0
    assert line(summary, "openbookqa", "lcf")["verdict"] == "does not communicate"
    assert line(summary, "openbookqa", "receiver")["verdict"] == "" and math.isnan(line(summary, "openbookqa", "receiver")["gain"])
    assert summary["mode"].iloc[0] == "receiver" and list(summary["task"].unique()) == ["openbookqa", "splitfacts"]


def test_pairs_are_joined_by_document_and_by_options(tmp_path: Path) -> None:
    for width, right in ((64, 3), (128, 9)):
        record(tmp_path, "t", "lcf", "matched", [1.0] * right + [0.0] * (12 - right), options={"width": width}, message_bytes=9)
    record(tmp_path, "t", "lcf", "deranged", [1.0, 1.0, 0.0], options={"width": 128}, message_bytes=9)  # fewer documents
    runs = read_runs([tmp_path])
    got = summarise(runs.rows, runs.manifests).set_index(["label", "control"])
    assert got.loc[("lcf width=64", "matched"), "verdict"] == "untested"
    wide = got.loc[("lcf width=128", "matched")]
    assert (wide["content_n"], wide["content"]) == (3, pytest.approx(1 / 3)) and wide["n"] == 12


def test_times_of_a_batch_are_no_latency(tmp_path: Path) -> None:
    record(tmp_path, "t", "lcf", "matched", [1.0, 0.0], batch_size=8, amortized_ms=20.0)
    runs = read_runs([tmp_path])
    got = summarise(runs.rows, runs.manifests).iloc[0]
    assert math.isnan(got["ttft_ms"]) and got["ttft_n"] == 0 and got["docs_per_s"] == 50.0


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_loses_nothing_and_says_it_in_words(summary: pd.DataFrame, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(show.table(summary))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    rows = [row.split() for row in text.splitlines()]
    for cells in (show.cells(item) for item in summary.to_dict("records")):
        assert list(" ".join(cells).split()) in rows  # every line whole, on one line
    words = " ".join(text.split())
    assert "lcf: nothing is communicated" in words and "lcf: communicates: matched 98.0, deranged 34.0" in words
    assert "message of another document" in words and "guessing gives 33.3 %" in words and "12,345" in words


def test_a_long_label_folds_and_numbers_stay(summary: pd.DataFrame) -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(show.table(summary.assign(label="lcf width=128 layers=9 alignment=remap")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and "18,000" in text and "2,450" in text and "98.0" in text


def test_exports(summary: pd.DataFrame) -> None:
    told = json.loads(show.to_json(summary))
    assert len(told) == 10 and told[0]["adapter_mb"] is None and told[0]["score"] == 0.35
    assert [row["run_id"] for row in csv.DictReader(io.StringIO(show.to_csv(summary)))] == list(summary["run_id"])
    text = show.to_markdown(summary)
    assert text.count("| --- |") == 2 and "| lcf | deranged | 200 | 34.0 | 27.8–40.8 | 181 | 7.9 | 12,345 |" in text


def test_the_plot_is_the_same_bytes_twice(summary: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
    said = " ".join(text.get_text() for text in figure.texts)
    assert "lcf: nothing is communicated" in said and "lcf communicates: 98.0 % with its own message" in said


def test_a_plot_of_what_was_not_measured(summary: pd.DataFrame) -> None:
    bare = summary.assign(ttft_ms=math.nan, adapter_mb=math.nan, message_bytes=math.nan, verdict="untested", chance=math.nan)
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
    code = "import sys, lcfbench.store, lcfbench.analysis.show, lcfbench.analysis.frontier; print([m for m in sys.modules if m in "
    code += "('torch', 'pandas', 'pyarrow', 'scipy', 'matplotlib', 'rich')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stderr


def test_subjects_are_tasks_of_their_own(tmp_path: Path) -> None:
    for mode, scores in (("receiver", [1.0, 0.0, 1.0, 1.0]), ("lcf", [1.0, 1.0, 1.0, 0.0])):
        record(tmp_path, "mmlu", mode, "matched", scores)
    runs = read_runs([tmp_path])
    rows = runs.rows.assign(subject=runs.rows["doc_index"].map(lambda i: "law" if i < 2 else "art"))
    got = summarise(*by_subject(rows, runs.manifests)).set_index(["task", "mode"])
    assert got.loc[("mmlu/law", "receiver"), "score"] == 0.5 and got.loc[("mmlu/art", "receiver"), "score"] == 1.0
    assert got.loc[("mmlu/law", "lcf"), "gain"] == 0.5 and got.loc[("mmlu/art", "lcf"), "gain"] == -0.5
    whole = summarise(*by_subject(runs.rows, runs.manifests))
    assert set(whole["task"]) == {"mmlu"}


def test_a_baseline_must_be_the_same_receiver(tmp_path: Path) -> None:
    record(tmp_path, "t", "receiver", "matched", [0.0, 0.0])
    record(tmp_path, "t", "lcf", "matched", [1.0, 1.0])
    runs = read_runs([tmp_path])
    assert summarise(runs.rows, runs.manifests).set_index("mode").loc["lcf", "gain"] == 1.0
    other = {
        r: {**m, "identity": {**m["identity"], "dtype": "float32" if m["identity"]["mode"] == "lcf" else "bfloat16"}}
        for r, m in runs.manifests.items()
    }
    assert math.isnan(summarise(runs.rows, other).set_index("mode").loc["lcf", "gain"])

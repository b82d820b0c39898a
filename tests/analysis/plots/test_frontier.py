"""Families are joined in order of size or budget, axes and runs are chosen, numbers ship with a figure."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lcfbench.analysis.families import members
from lcfbench.analysis.plots import frontier
from lcfbench.analysis.plots.scales import AXES, Point, front, joined, lay_out, panels_of
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.selection import select
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from tests.analysis.frontier_runs import ADAPTERS, BUDGETS, adapter, answers, record, write_family
from tests.helpers import invoke

N = 128


@pytest.fixture
def lcf(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`lcfbench …` in an empty folder."""
    (tmp_path / "ground").mkdir()
    monkeypatch.chdir(tmp_path / "ground")
    return lambda line, *more: invoke(capsys, monkeypatch, *line.split(), *more)


def summary_of(out: Path) -> pd.DataFrame:
    return summarise(read_run_groups([out]).groups)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def summary(runs: Path) -> pd.DataFrame:
    return summary_of(runs)


def lines_drawn(summary: pd.DataFrame, axis: str) -> dict[tuple[str, ...], bool]:
    found = lay_out(AXES[axis], frontier.marks_of(summary))
    assert found is not None
    return {tuple(p.line["short"] for p in line): pruned for line, pruned in joined(found.points)}


@pytest.mark.parametrize("axis", AXES)
def test_points_of_a_method_are_joined_by_size_or_budget(summary: pd.DataFrame, axis: str) -> None:
    assert lines_drawn(summary, axis) == {
        ("T2T 8", "T2T 16", "T2T 32", "T2T 64"): False,
        ("C2C-16", "C2C-64", "C2C-1024"): False,
        ("LCF-16", "LCF-32", "LCF-64", "LCF-128"): False,
        ("LCF-64", "LCF-64 9L", "LCF-64 6L"): True,
        ("C2C-64", "C2C-64 9L"): True,
    }


def test_names_are_short_and_tell_all_apart(summary: pd.DataFrame) -> None:
    for control in ("matched", "deranged"):
        names = summary[summary["control"] == control]["short"].tolist()
        assert len(set(names)) == len(names) >= 14 and max(map(len, names)) <= 9
    assert "label" in summary and summary["flops"].notna().all()


def test_two_of_one_size_are_two_lines_and_say_what_differs(tmp_path: Path) -> None:
    for name, rate in itertools.product(("lcf-16", "lcf-64"), (1e-3, 3e-3)):
        record(
            tmp_path,
            answers(N, 50, name),
            row={"adapter_bytes": ADAPTERS[name][3] * 1e6},
            **adapter(name, lr=rate),
        )
    assert set(lines_drawn(summary_of(tmp_path), "adapter")) == {
        ("LCF-16 lr=0.001", "LCF-64 lr=0.001"),
        ("LCF-16 lr=0.003", "LCF-64 lr=0.003"),
    }


def test_each_at_its_best_rate_is_one_line(tmp_path: Path) -> None:
    for name, rate in (("lcf-16", 3e-3), ("lcf-64", 1e-3), ("lcf-128", 3e-3)):
        record(
            tmp_path,
            answers(N, 50, name),
            row={"adapter_bytes": ADAPTERS[name][3] * 1e6},
            **adapter(name, lr=rate),
        )
    assert list(lines_drawn(summary_of(tmp_path), "adapter")) == [("LCF-16", "LCF-64", "LCF-128")]


def test_other_settings_are_other_lines(tmp_path: Path) -> None:
    for name, spans in itertools.product(("lcf-16", "lcf-64"), ("whole", "windows")):
        row = {"adapter_bytes": ADAPTERS[name][3] * 1e6}
        record(tmp_path, answers(N, 50, name), row=row, options={"spans": spans}, **adapter(name))
    assert set(lines_drawn(summary_of(tmp_path), "adapter")) == {
        tuple(f"LCF-{size} spans={spans}" for size in (16, 64)) for spans in ("whole", "windows")
    }


def test_runs_without_facts_keep_their_label(tmp_path: Path) -> None:
    for width in (64, 128):
        record(tmp_path, answers(N, 50, str(width)), mode="lcf", options={"width": width})
    groups = read_run_groups([tmp_path]).groups
    assert (
        {m.short for m in members(groups)}
        == {group.label for group in groups}
        == {"lcf width=64", "lcf width=128"}
    )


def _point(value: float, score: float, verdict: str) -> Point:
    return Point({"score": score, "verdict": verdict}, value, "matched", value)


@pytest.mark.parametrize(
    "verdict", ["adapts only", "does not communicate", "misleads", "undecided", "untested"]
)
def test_what_does_not_communicate_is_on_no_front(verdict: str) -> None:
    points = [_point(0, 0.3, ""), _point(1, 0.9, verdict), _point(2, 0.8, "communicates")]
    assert front(points, 3) == [(0, 30), (2, 30), (2, 80), (3, 80)]


def test_pale_marks_are_explained(tmp_path: Path) -> None:
    record(tmp_path, answers(N, 90, "a"), **adapter("lcf-16"))
    told = [text.get_text() for text in frontier.draw(summary_of(tmp_path)).legends[0].texts]
    assert any("no communication shown" in text for text in told)


@pytest.mark.parametrize(
    "axes", [["adapter"], ["flops"], ["latency", "bytes"], ["adapter", "latency", "bytes"], [*AXES]]
)
def test_labels_of_many_variants_do_not_overlap_and_stay_inside(
    summary: pd.DataFrame, axes: list[str]
) -> None:
    figure = frontier.draw(summary, panels=panels_of(axes))
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    assert len(figure.axes) == len(axes)
    whole = figure.bbox
    for panel in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in panel.texts if text.get_gid() == "label"]
        assert len(boxes) == 15
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        frame = panel.get_window_extent(renderer).padded(1)
        assert all(
            frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes
        )
        outer = panel.get_tightbbox(renderer)
        assert whole.x0 <= outer.x0 and outer.x1 <= whole.x1 and whole.y0 <= outer.y0 and outer.y1 <= whole.y1
    for text in (*figure.texts, *figure.legends):
        box = text.get_window_extent(renderer)
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    said = [text.get_window_extent(renderer) for text in (*figure.texts, *figure.legends)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(said, 2))
    assert not any(a.overlaps(panel.get_window_extent(renderer)) for a in said for panel in figure.axes)


def test_a_legend_of_every_entry_stays_inside(tmp_path: Path) -> None:
    pair = "qwen3-0.6b:qwen2.5-0.5b"
    write_family(tmp_path, "openbookqa", 40, names=["lcf-16", "lcf-64-9L"], pair=pair)
    for seed in (0, 1):
        record(tmp_path, answers(40, 50, str(seed)), mode="single", task="openbookqa", pair=pair, seed=seed)
    failed = {"mode": "kvcomm", "task": "openbookqa", "pair": pair, "errors": range(20)}
    record(tmp_path, answers(40, 50, "k"), **failed)
    for names in ([*AXES], ["adapter"]):
        figure = frontier.draw(summary_of(tmp_path), True, panels_of(names))
        (legend,) = figure.legends
        box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        assert len(legend.texts) == 10 and figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(text.get_window_extent()) for text in figure.texts)


def test_many_verdicts_are_one_sentence(summary: pd.DataFrame) -> None:
    said = " ".join(text.get_text().strip() for text in frontier.draw(summary).texts)
    assert said.count("Communicate, by so many points") == 1 and "LCF-64 9L +" in said and "(n=128)" in said


def test_spread_over_seeds_is_drawn(tmp_path: Path) -> None:
    for seed, control in itertools.product((0, 1), ("matched", "deranged")):
        record(
            tmp_path,
            answers(N, 60 + 20 * seed, control),
            control=control,
            seed=seed,
            first=1000 * seed,
            row={"message_bytes": 80},
            **adapter("lcf-16"),
        )
    summary = summary_of(tmp_path)
    figure = frontier.draw(summary, panels=panels_of(["bytes"]))
    assert "± standard deviation over seeds" in [text.get_text() for text in figure.legends[0].texts]
    assert len([line for line in figure.axes[0].lines if line.get_linewidth() == 6]) == 2


def test_what_an_axis_lacks_is_named(tmp_path: Path) -> None:
    record(tmp_path, answers(N, 26, "r"), row={"ttft_ms": 40.0})
    record(tmp_path, answers(N, 90, "a"), row={"adapter_bytes": 1_500_000}, **adapter("lcf-16"))
    figure = frontier.draw(summary_of(tmp_path), panels=panels_of(["latency", "flops"]))
    assert figure.axes[0].get_xlabel().endswith("not measured: LCF-16")
    assert [text.get_text() for text in figure.axes[1].texts] == ["not measured"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--x", "adaptr"], "unknown axis 'adaptr'. Did you mean adapter?"),
        (["--x", "adapter,latncy"], "Did you mean latency?"),
        (["--task", "plantd"], "unknown task of these runs 'plantd'. Did you mean planted?"),
        (["--pair", "smollm2-135m:gemma3"], "Did you mean smollm2-135m:gemma3-270m?"),
        (["--data", "numbers.txt"], "ends in neither .csv nor .figure.parquet. Name it numbers.csv"),
        (["--data", "numbers.parquet"], "Name it numbers.csv or numbers.figure.parquet"),
        (["--data", "manifest.json/x.csv"], "cannot write"),
    ],
)
def test_mistakes_are_one_line(runs: Path, lcf: Any, flags: list[str], said: str) -> None:
    Path("manifest.json").write_text("{}")
    code, out, err = lcf(f"plot frontier {runs} --out drawn", *flags)
    assert code == 2 and not out and said in " ".join(err.split()) and not Path("drawn").exists()


def test_numbers_ship_with_the_figure_and_are_no_samples(runs: Path, tmp_path: Path, lcf: Any) -> None:
    for name in ("numbers.csv", "numbers.figure.parquet"):
        code, out, _ = lcf(f"plot frontier {runs} --out {tmp_path} --x adapter --data {tmp_path / name}")
        assert code == 0 and out.split()[-1] == str(tmp_path / name)
    table = pd.read_parquet(tmp_path / "numbers.figure.parquet")
    with open(tmp_path / "numbers.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["short"] for row in rows] == table["short"].tolist() and len(rows) == 1 + 2 * 14
    assert {row["source"] for row in rows} == {"measured"}
    first = (tmp_path / "numbers.figure.parquet").read_bytes()
    record(tmp_path, answers(N, 26, "r"))
    code, out, err = lcf(f"show {tmp_path}")
    assert code == 0 and "figure" not in err  # beside runs it is no damaged run
    lcf(f"plot frontier {runs} --out {tmp_path} --x adapter --data {tmp_path}/numbers.figure.parquet")
    assert (tmp_path / "numbers.figure.parquet").read_bytes() == first


def test_tasks_and_pairs_are_chosen(tmp_path: Path) -> None:
    record(tmp_path, answers(N, 26, "r"))
    record(tmp_path, answers(N, 26, "r"), task="other")
    record(tmp_path, answers(N, 26, "r"), pair="a:b", task="third")
    groups = read_run_groups([tmp_path]).groups
    assert {g.task for g in select(groups, ["planted", "third"], [])} == {"planted", "third"}
    assert {g.task for g in select(groups, [], ["a:b"])} == {"third"}
    with pytest.raises(UserError, match="no run of planted with a:b"):
        select(groups, ["planted"], ["a:b"])


def test_the_same_runs_give_the_same_bytes(summary: pd.DataFrame, tmp_path: Path) -> None:
    once, twice = (frontier.plot(summary, tmp_path / name, panels=panels_of([*AXES])) for name in "ab")
    assert [a.read_bytes() for a in once] == [b.read_bytes() for b in twice]
    assert len(BUDGETS) == 4

"""The figure of a training holds every adapter and dev task; a file that is no log is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lcfbench.analysis.plots.training import draw, plot, read
from lcfbench.errors import UserError
from tests.helpers import invoke


def log(folder: Path) -> Path:
    rows = [
        {"adapter": a, "step": s, "metric": m, "value": v / s}
        for a in ("lcf-seed-0", "lcf-seed-1", "c2c")
        for s in range(1, 21)
        for m, v in (("loss", 3.0), *((("t/matched", 0.9), ("t/deranged", 0.3)) if s % 10 == 0 else ()))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([*rows, {"adapter": "", "step": 1, "metric": "examples_per_s", "value": 4.0}]).to_parquet(
        folder / "training.parquet"
    )
    return folder


def test_seeds_share_a_colour_and_every_task_has_a_panel(tmp_path):
    figure = draw(read([log(tmp_path / "a")]))
    assert [a.get_title() for a in figure.axes] == ["training loss (mean of 10 steps)", "t, dev split"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["lcf", "c2c"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert (
        colours[:3] == [colours[0]] * 3 and colours[0] != colours[-1]
    )  # two seeds and their mean, then the other adapter


def test_the_same_log_gives_the_same_bytes(tmp_path):
    one, two = (plot([log(tmp_path / "a")], tmp_path / n) for n in "bc")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two] and one[0].name == "training.png"


def test_adapters_of_several_trainings_are_told_apart(tmp_path):
    names = set(read([log(tmp_path / "a"), log(tmp_path / "b")])["adapter"])
    assert {"a c2c", "b c2c"} <= names


def test_what_is_no_log_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no training.parquet"):
        read([tmp_path])
    (tmp_path / "training.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match="is no training log"):
        read([tmp_path])


def changed(**columns: list) -> Callable[[Path], object]:
    return lambda path: pd.DataFrame(ROWS | columns).to_parquet(path)


ROWS = {"adapter": ["a", "a"], "step": [1, 2], "metric": ["loss", "loss"], "value": [1.0, 0.5]}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no parquet": lambda path: path.write_bytes(b"PAR1 not a parquet file PAR1"),
    "NUL bytes": lambda path: path.write_bytes(b"\0" * 4000),
    "no rows": lambda path: pd.DataFrame(ROWS).iloc[:0].to_parquet(path),
    "another schema": lambda path: pd.DataFrame({"x": [1]}).to_parquet(path),
    "no step": lambda path: pd.DataFrame(ROWS).drop(columns="step").to_parquet(path),
    "steps as words": changed(step=["one", "two"]),
    "steps below 0": changed(step=[-1, 2]),
    "steps of halves": changed(step=[0.5, 1.5]),
    "steps without value": changed(step=[1, None]),
    "steps of infinity": changed(step=[1.0, float("inf")]),
    "steps as lists": changed(step=[[1], [2]]),
    "values as words": changed(value=["a", "b"]),
    "values as lists": changed(value=[[1.0], [2.0]]),
    "adapters as numbers": changed(adapter=[1, 2]),
    "adapters without name": changed(adapter=[None, "a"]),
    "metrics as numbers": changed(metric=[1, 2]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_log_is_one_line_and_the_others_are_drawn(tmp_path, name, capsys, monkeypatch):
    log(tmp_path / "good")
    DAMAGES[name](log(tmp_path / "bad") / "training.parquet")
    code, out, err = invoke(capsys, monkeypatch, "plot", "training", tmp_path, "--out", tmp_path / "figures")
    assert code == 0 and "training.svg" in out
    assert len([x for x in err.splitlines() if "is no training log" in x and "bad" in x]) == 1
    code, _, err = invoke(capsys, monkeypatch, "plot", "training", tmp_path / "bad", "--out", tmp_path)
    assert code == 2 and len(err.splitlines()) <= 4 and "is no training log" in err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, -1e308])
def test_a_loss_that_is_not_finite_is_drawn_without_it(tmp_path, value):
    folder = log(tmp_path / "a")
    changed(value=[1.0, value])(folder / "training.parquet")
    assert plot([folder], tmp_path / "figures")[0].is_file()

"""An average over tasks is the mean over equal documents; nothing is left out silently."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lcfbench.analysis.plots import frontier
from lcfbench.analysis.plots.published import TOGETHER, published
from lcfbench.analysis.pooling import averaged, pool_adapters
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats import mean_interval, paired
from lcfbench.analysis.stats.proportions import wilson
from lcfbench.analysis.summary import summarise
from lcfbench.errors import UserError
from lcfbench.tasks.groups import find_group
from tests.analysis.frontier_runs import adapter, answers, record
from tests.helpers import invoke

SIZES = {"openbookqa": 50, "arc_challenge": 120}
RIGHT = {"openbookqa": 40.0, "arc_challenge": 80.0}


def write(
    out: Path, task: str, name: str = "lcf-16", shift: float = 0, **more: Any
) -> dict[str, list[float]]:
    """One adapter, matched and deranged; its scores."""
    n = more.pop("n", SIZES[task])
    found = {}
    for control in ("matched", "deranged"):
        right = RIGHT[task] + shift if control == "matched" else 25.0
        found[control] = answers(n, right, f"{task} {control} {name} {shift}")
        row = {"adapter_bytes": 1_500_000, "message_bytes": 10 * n, "ttft_ms": float(n), "flops": 1e9 * n}
        record(out, found[control], task=task, control=control, row=row, **{**adapter(name), **more})
    return found


def pooled(out: Path) -> tuple[pd.DataFrame, list[str]]:
    found = averaged(read_run_groups([out]).groups)
    return summarise(found.groups).set_index(["mode", "control"]), found.left_out


def test_the_average_is_over_all_documents(tmp_path: Path) -> None:
    scores: dict[str, list[float]] = {"matched": [], "deranged": [], "receiver": []}
    for task in SIZES:
        for control, values in write(tmp_path, task).items():
            scores[control] += values
        scores["receiver"] += (alone := answers(SIZES[task], 26, task))
        record(tmp_path, alone, task=task)
    lines, left_out = pooled(tmp_path)
    assert not left_out and set(lines["task"]) <= {" + ".join(p) for p in itertools.permutations(SIZES)}
    own, n = lines.loc["lcf", "matched"], sum(SIZES.values())
    weighted = sum(SIZES[task] * RIGHT[task] / 100 for task in SIZES) / n
    assert own["n"] == n and own["score"] == pytest.approx(weighted)
    assert (own["low"], own["high"]) == pytest.approx(wilson(sum(scores["matched"]), n))
    content = paired(scores["matched"], scores["deranged"])
    assert own["content"] == pytest.approx(content.value) and own["content_n"] == n
    assert (own["content_low"], own["content_high"]) == pytest.approx(content.interval())
    assert own["gain"] == pytest.approx(paired(scores["matched"], scores["receiver"]).value)
    assert own["adapter_mb"] == 1.5 and own["verdict"] == "communicates"
    mean = (50 * 50 + 120 * 120) / n  # of the tasks' medians
    assert (own["ttft_ms"], own["message_bytes"], own["flops"]) == pytest.approx(
        (mean, 10 * mean, 1e9 * mean)
    )
    assert own["chance"] == 0.25 and own["ttft_n"] == n


def test_a_method_without_a_task_is_named(tmp_path: Path) -> None:
    for task in SIZES:
        write(tmp_path, task)
    write(tmp_path, "openbookqa", "c2c-16")
    lines, left_out = pooled(tmp_path)
    assert set(lines.index) == {("lcf", "matched"), ("lcf", "deranged")}
    assert left_out == [
        f"C2C-16 ({c}) is left out: not run on arc_challenge" for c in ("deranged", "matched")
    ]


def test_fewer_documents_are_named_and_more_are_cut(tmp_path: Path) -> None:
    for task in SIZES:
        write(tmp_path, task)
        record(tmp_path, answers(SIZES[task] + 30, 26, task), task=task)  # the receiver has more
    write(tmp_path, "openbookqa", "c2c-16", n=20)
    write(tmp_path, "arc_challenge", "c2c-16")
    lines, left_out = pooled(tmp_path)
    assert left_out == [
        f"C2C-16 ({c}) is left out: 20 of the 50 documents of openbookqa" for c in ("deranged", "matched")
    ]
    assert set(lines["n"]) == {170}
    expected = [answers(SIZES[task] + 30, 26, task)[: SIZES[task]] for task in SIZES]
    assert lines.loc["receiver", "matched"]["score"] == pytest.approx(np.mean(np.concatenate(expected)))


def test_two_runs_of_a_task_are_not_chosen_from(tmp_path: Path) -> None:
    for task, boxes in (("openbookqa", 1), ("openbookqa", 2), ("arc_challenge", 1)):
        record(tmp_path, answers(SIZES[task], 50, task), task=task, task_options={"boxes": boxes})
    with pytest.raises(UserError, match="2 runs of openbookqa fit"):
        pooled(tmp_path)


@pytest.mark.parametrize("seeds", [[(0, 1), (0, 1)], [(0, 1), (0,)]])
def test_seeds_are_averaged_one_by_one(tmp_path: Path, seeds: list[tuple[int, ...]]) -> None:
    for task, some in zip(SIZES, seeds, strict=True):
        for seed in some:
            write(tmp_path, task, shift=5.0 * seed, seed=seed)
    if seeds[0] != seeds[1]:
        with pytest.raises(UserError, match="different seeds"):
            pooled(tmp_path)
        return
    own = pooled(tmp_path)[0].loc["lcf", "matched"]
    assert (own["seeds"], own["n"]) == (2, 170) and own["seed_sd"] == pytest.approx(0.05 / 2**0.5, abs=0.005)


def test_equal_hashes_of_two_tasks_are_two_documents(tmp_path: Path) -> None:
    for task in SIZES:
        record(tmp_path, answers(40, 50, task), task=task, named="same")
    groups = read_run_groups([tmp_path]).groups
    assert averaged(groups).groups[0].n == sum(group.n for group in groups)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([{"task": "a"}], "an average needs several tasks; here is only a"),
        ([{"task": "a"}, {"task": "b", "scoring": "letters"}], "no method was run on all of a, b"),
        (
            [{"task": "a"}, {"task": "b", "row": {"metric": "f1"}}],
            "different metrics have no average (a acc, b f1)",
        ),
        ([{"task": "a"}, {"task": "b", "mode": "sharer"}], "not run on"),
    ],
)
def test_what_has_no_average_is_refused(tmp_path: Path, tasks: list[dict[str, Any]], said: str) -> None:
    for more in tasks:
        record(tmp_path, answers(30, 50, "x"), **more)
    with pytest.raises(UserError) as error:
        pooled(tmp_path)
    assert said in str(error.value)


def test_the_command_draws_one_panel_and_names_what_it_leaves_out(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in SIZES:
        write(tmp_path, task)
    write(tmp_path, "openbookqa", "c2c-16")
    flags = [
        "--average",
        "--x",
        "adapter",
        "--task",
        "openbookqa,arc_challenge",
        "--data",
        tmp_path / "n.csv",
    ]
    code, out, err = invoke(capsys, monkeypatch, "plot", "frontier", tmp_path, *flags)
    assert code == 0 and "C2C-16 (matched) is left out: not run on arc_challenge" in " ".join(err.split())
    table = pd.read_csv(tmp_path / "n.csv")
    assert len(table) == 2 and set(table["n"]) == {170}


def test_published_averages_are_drawn_beside_measured_ones(tmp_path: Path) -> None:
    pair = "qwen3-0.6b:qwen2.5-0.5b"
    averaged_tasks = TOGETHER.join(find_group("lcf-shared").members)
    assert len(published(pair, averaged_tasks)) == 5 and not published(pair, "openbookqa + arc_challenge")
    for task in reversed(averaged_tasks.split(TOGETHER)):
        record(tmp_path, answers(30, 50, task), task=task, pair=pair)
    summary = summarise(averaged(read_run_groups([tmp_path]).groups).groups)
    axes = frontier.draw(summary, published=True).axes[0]
    names = {text.get_text() for text in axes.texts}
    assert {"LCF-128 9L, published", "LCF-256, published", "C2C, published"} <= names


def family_of_seeds(out: Path, seeds: tuple[int, ...] = (0, 1, 2), deranged: int = 3) -> None:
    for seed, control in itertools.product(seeds, ("matched", "deranged")):
        if control == "matched" or seed < deranged:
            right = 80 + 5 * seed if control == "matched" else 25
            row = {"adapter_bytes": 1_500_000, "message_bytes": 80}
            record(
                out,
                answers(100, right, f"{control}{seed}"),
                control=control,
                row=row,
                **adapter("lcf-16", seed),
            )


def test_adapters_of_several_training_seeds_are_one_point(tmp_path: Path) -> None:
    family_of_seeds(tmp_path)
    record(tmp_path, answers(100, 26, "r"))
    groups = read_run_groups([tmp_path]).groups
    assert len(groups) == 7 and len(pool_adapters(groups)) == 3
    lines = summarise(pool_adapters(groups)).set_index(["mode", "control"])
    own = lines.loc["lcf", "matched"]
    means = np.mean([answers(100, 80 + 5 * seed, f"matched{seed}") for seed in range(3)], axis=0)
    assert own["short"] == "LCF-16 ×3" and own["label"].endswith(", 3 adapters")
    assert own["score"] == pytest.approx(0.85) and own["seed_sd"] == pytest.approx(0.05) and own["n"] == 100
    assert (own["low"], own["high"]) == pytest.approx(mean_interval(means)[1:3])
    assert own["verdict"] == "communicates" and own["content_n"] == 100


def test_a_deranged_run_of_fewer_adapters_is_no_twin(tmp_path: Path) -> None:
    family_of_seeds(tmp_path, deranged=2)
    own = summarise(pool_adapters(read_run_groups([tmp_path]).groups)).set_index("control").loc["matched"]
    assert own["verdict"] == "untested"


def test_adapters_trained_otherwise_are_not_pooled(tmp_path: Path) -> None:
    for seed, rate in ((0, 1e-3), (1, 3e-3)):
        record(tmp_path, answers(100, 50, str(seed)), **adapter("lcf-16", seed, rate))
    assert len(pool_adapters(read_run_groups([tmp_path]).groups)) == 2

"""Groups of tasks: packaged ones, a user's own in lm-eval's form and ours, and what can be wrong."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from lcfbench import registry
from lcfbench.analysis.plots.published import NUMBERS
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.tasks import groups
from lcfbench.tasks.groups import Group, chosen_groups, expand, find_group, group_names, packaged_names
from lcfbench.tasks.yaml_files import task_names
from tests.helpers import invoke

LM_EVAL = "group: reasoning\ntask: [openbookqa, arc_challenge]\n"


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def members_of(path: Path) -> dict[str, float | None]:
    [group] = chosen_groups([str(path)])
    return dict(group.members)


# -- packaged ------------------------------------------------------------------------------------


def test_packaged_groups_are_shipped_and_named_after_their_files():
    wheel = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert wheel["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["tasks"] == "lcfbench/_tasks"
    assert packaged_names() == ["c2c", "dense", "lcf-shared"]
    for name in packaged_names():
        group = find_group(name)
        assert group is not None and group.name == name and group.source == registry.OURS
        assert name not in task_names()


def test_the_weights_of_lcf_give_its_published_gain():
    group = find_group("lcf-shared")
    assert group is not None and group.weighting == "documents"
    whole = sum(weight or 0 for weight in group.members.values())
    assert round(100 * (group.members["mmlu_pro"] or 0) / whole) == 62
    gains = {"mmlu_redux": 3.11, "arc_challenge": 0.70, "openbookqa": 0.60, "mmlu_pro": 1.88}
    by_label = {row.label: 100 * row.score for row in group.published}
    average = sum((group.members[task] or 0) * gain for task, gain in gains.items()) / whole
    assert average == pytest.approx(by_label["LCF-128 9L"] - by_label["C2C"], abs=0.011)


@pytest.mark.parametrize("method", ["receiver", "t2t", "c2c"])
def test_the_averages_of_c2c_are_the_means_of_its_table(method):
    group = find_group("c2c")
    assert group is not None and group.weighting == "equal" and set(group.members.values()) == {1.0}
    pair = "qwen3-0.6b:qwen2.5-0.5b"
    table = [n.score for n in NUMBERS if n.pair == pair and n.mode == method and n.task in group.members]
    [row] = [r for r in group.published if r.method == method and r.control == "matched"]
    assert len(table) == 4 and row.score == pytest.approx(sum(table) / 4, abs=6e-5)


# -- in place of tasks ---------------------------------------------------------------------------


def test_a_group_stands_for_its_members_each_once(tmp_path):
    assert expand(["splitfacts", "c2c", "openbookqa", "lcf-shared"]) == [
        *("splitfacts", "openbookqa", "arc_challenge", "mmlu_redux", "ceval", "mmlu_pro")
    ]
    own = write(tmp_path, LM_EVAL)
    recipe = Recipe.merge(None, {"task": f"splitfacts,{own},openbookqa"})
    assert recipe.task == ["splitfacts", "openbookqa", "arc_challenge"]
    file = write(tmp_path, f"task: [{own}]\n", "recipe.yaml")
    assert Recipe.merge(file, {}).task == ["openbookqa", "arc_challenge"]


def test_a_folder_of_tasks_may_hold_groups(tmp_path, monkeypatch, capsys):
    write(tmp_path, LM_EVAL)
    monkeypatch.setenv("LCFBENCH_TASKS", str(tmp_path))
    assert group_names()[-1] == "reasoning" and expand(["reasoning"]) == expand(["mine"])
    assert "mine" not in task_names() and "mine" in registry.names("tasks")
    code, out, _ = invoke(capsys, monkeypatch, "ls", "groups", "--json")
    listed = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and list(listed["reasoning"]["members"]) == ["openbookqa", "arc_challenge"]
    code, out, _ = invoke(capsys, monkeypatch, "ls", "tasks")
    assert code == 0 and "lcf-shared" in out and "reasoning" in out
    code, out, _ = invoke(capsys, monkeypatch, "ls", "tasks", "--json")
    assert code == 0 and not {"mine", "reasoning", "c2c"} & {row["name"] for row in json.loads(out)}


def test_a_finder_of_other_groups_can_be_added(monkeypatch):
    other = Group("other/all", "", {"splitfacts": None}, "documents", source="other")
    find = {"other/all": other}.get
    monkeypatch.setattr(groups, "FINDERS", [*groups.FINDERS, find])
    assert expand(["other/all", "openbookqa"]) == ["splitfacts", "openbookqa"]


# -- a user's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "weighting", "members"),
    [
        ("", "equal", {"openbookqa": 1.0, "arc_challenge": 1.0}),
        (
            "aggregate_metric_list: [{metric: acc}]\n",
            "documents",
            {"openbookqa": None, "arc_challenge": None},
        ),
        (
            "aggregate_metric_list: [{metric: acc, weight_by_size: false}]\n",
            "equal",
            {"openbookqa": 1.0, "arc_challenge": 1.0},
        ),
        ("weighting: documents\n", "documents", {"openbookqa": None, "arc_challenge": None}),
        ("members: {openbookqa: 3, arc_challenge: 1}\n", "given", {"openbookqa": 3.0, "arc_challenge": 1.0}),
        (
            "members: {openbookqa: 3, arc_challenge: 1}\nweighting: equal\n",
            "equal",
            {"openbookqa": 1.0, "arc_challenge": 1.0},
        ),
    ],
)
def test_weights_of_a_users_group(tmp_path, more, weighting, members):
    text = LM_EVAL if "members" not in more else "group: reasoning\n"
    [group] = chosen_groups([str(write(tmp_path, text + more))])
    assert (group.name, group.weighting, dict(group.members)) == ("reasoning", weighting, members)


def test_groups_within_groups_and_tasks_of_ones_own(tmp_path):
    (tmp_path / "table.csv").write_text("question,answer\nWho?,Ada\n")
    write(tmp_path, LM_EVAL, "inner.yaml")
    outer = write(tmp_path, "group: outer\ntask: [inner.yaml, table.csv, c2c, splitfacts]\n")
    expected = ["openbookqa", "arc_challenge", "table", "mmlu_redux", "ceval", "splitfacts"]
    assert list(members_of(outer)) == expected
    assert "table" in task_names()


WRONG = {
    "no tasks": ("group: g\ntask: []\n", "no list of names"),
    "a changed task": ("group: g\ntask: [{task: openbookqa, num_fewshot: 5}]\n", "a file of its own"),
    "a key of tasks": ("group: g\ntask: [openbookqa]\nnum_fewshot: 5\n", "no key 'num_fewshot'"),
    "itself": ("group: g\ntask: [openbookqa, mine.yaml]\n", "includes itself"),
    "itself by name": ("group: g\ntask: [openbookqa, g]\n", "includes itself"),
    "no file": ("group: g\ntask: [gone.yaml]\n", "there is no file"),
    "negative": ("members: {openbookqa: -1}\n", "is -1"),
    "nought": ("members: {openbookqa: 0}\n", "is 0"),
    "a truth": ("members: {openbookqa: true}\n", "is True"),
    "a text": ("members: {openbookqa: many}\n", "is 'many'"),
    "not finite": ("members: {openbookqa: .inf}\n", "inf"),
    "half the weights": ("members: {openbookqa: 1, arc_challenge: null}\n", "arc_challenge has no weight"),
    "a weighted group": ("members: {c2c: 2, splitfacts: 1}\n", "c2c is a group and has a weight"),
    "weighting": ("task: [openbookqa]\nweighting: sise\n", "unknown weighting 'sise'"),
    "members": ("members: 3\n", "no list of names"),
    "name": ("group: 3\ntask: [openbookqa]\n", "is no text"),
    "published": ("task: [openbookqa]\npublished: [{pair: a:b}]\n", "pair, method, score and source"),
    "published no list": ("task: [openbookqa]\npublished: 3\n", "published is no list"),
    "published score": (
        "task: [openbookqa]\npublished: [{pair: 'a:b', method: lcf, score: 190, source: me}]\n",
        "no number of per cent",
    ),
    "taken": ("group: c2c\ntask: [openbookqa]\n", "offered by"),
    "a task's name": ("group: openbookqa\ntask: [splitfacts]\n", "is also a task"),
    "unknown": ("group: g\ntask: [openbokqa]\n", "Did you mean openbookqa"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_group_is_one_line_before_anything_runs(tmp_path, capsys, monkeypatch, case):
    text, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    asked = {"taken": "mine.yaml,c2c", "a task's name": "mine.yaml,openbookqa"}.get(case, "mine.yaml")
    code, out, err = invoke(capsys, monkeypatch, "run", "--mode", "receiver", "--task", asked)
    assert code == 2 and not out and words in " ".join(err.split()) and len(err.splitlines()) <= 2
    assert "Traceback" not in err and not list(tmp_path.glob("results/*"))


def test_unknown_names_are_told_with_the_groups_beside(capsys, monkeypatch):
    code, _, err = invoke(capsys, monkeypatch, "run", "--task", "lcf-shard")
    assert code == 2 and "Did you mean lcf-shared" in err
    with pytest.raises(UserError, match="unknown group"):
        chosen_groups(["openbookqa"])


def test_where_one_task_is_asked_for_a_group_is_told(capsys, monkeypatch):
    code, out, err = invoke(capsys, monkeypatch, "probe", "--task", "c2c")
    assert code == 2 and not out and "c2c is a group of tasks" in err and "Name one of openbookqa" in err


def test_a_group_is_checked_member_by_member(tmp_path, capsys, monkeypatch):
    group = write(tmp_path, LM_EVAL)
    code, out, err = invoke(capsys, monkeypatch, "task", "check", group, "--limit", "4")
    heads = [line.split(":")[0] for line in out.splitlines() if "documents, shared contexts" in line]
    assert heads == ["openbookqa", "arc_challenge"] and code == 0
    assert "next: lcfbench run --task" in err  # a probe takes one task

"""Flags made from the settings models: name, type, choices, default, environment variable."""

from __future__ import annotations

import importlib
import shlex

import pytest
import typer

import lcfbench
from lcfbench.cli.app import app
from lcfbench.cli.options import merged
from lcfbench.config import PLACES
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.registry import kinds
from lcfbench.training.recipe import TrainRecipe
from tests import helpers

VERBS = {
    "run": "lcfbench.evaluation.recipe:Recipe",
    "train": "lcfbench.training.recipe:TrainRecipe",
    "bench": "lcfbench.latency.recipe:BenchRecipe",
    "adapter prune": "lcfbench.training.recipe:PruneRecipe",
    "probe": "lcfbench.probing.recipe:ProbeRecipe",
    "oracle enrich": "lcfbench.oracle.recipe:Enrich",
    "oracle transform": "lcfbench.oracle.recipe:Transform",
}


def command(line: str):
    """The click command behind a verb, with its flags."""
    found = typer.main.get_command(app)
    for name in line.split():
        found = found.resolve_command(found.context_class(found, info_name="lcfbench"), [name])[1]
    return found


@pytest.mark.parametrize(("line", "model"), VERBS.items())
def test_every_field_is_a_flag_with_its_description_and_default(line, model):
    module, _, kind = model.partition(":")
    flags = {p.name: p for p in command(line).params}
    for name, field in getattr(importlib.import_module(module), kind).model_fields.items():
        assert name in flags and field.description, name
        if flags[name].param_type_name == "argument":
            continue
        assert flags[name].help.startswith(field.description), name
        default = field.default
        if isinstance(default, (str, int)) and not isinstance(default, bool):
            assert flags[name].help.endswith(f"[default: {default}]"), name
        assert flags[name].default is None, "a flag that was not given must not hide a recipe's setting"


def test_flags_that_are_not_the_name_of_their_field():
    flags = {p.name: p.opts for line in VERBS for p in command(line).params}
    assert flags["options"] == ["-o", "--option"] and flags["task_options"] == ["--task-option"]
    assert flags["adapters"] == ["--adapter"] and flags["before"] == ["--with"] and flags["map"] == ["--map"]


def test_environment_variables():
    own = {p.name: p.envvar for p in command("run").params if p.envvar}
    assert own["batch_size"] == "LCFBENCH_BATCH_SIZE" and own["recipe"] == "LCFBENCH_RECIPE"
    assert not {"adapter", "options", "task_options", "fresh"} & set(own) and len(own) == 19
    for line in ("train", "bench", "adapter prune"):
        shared = {"pair", "dtype", "offline", *PLACES}
        here = command(line).params
        assert {p.name for p in here if p.envvar} == shared & {p.name for p in here}


def test_lists_are_separated_by_commas_or_repeated():
    found = merged(
        Recipe, {"mode": ["receiver,t2t", "lcf"], "adapter": ["a,b", "c"], "seeds": ["1", "2,3"]}, None, "run"
    )
    assert found.mode == ["receiver", "t2t", "lcf"] and found.seeds == [1, 2, 3]
    assert [str(p) for p in found.adapter] == ["a,b", "c"]
    several = ["lcf:width=8,seed=1", "dense"]
    assert merged(TrainRecipe, {"adapters": several}, None, "train").adapters == several
    assert merged(TrainRecipe, {"adapters": "lcf"}, None, "train").adapters == ["lcf"]


def test_variables_may_hold_lists(monkeypatch, capsys):
    monkeypatch.setenv("LCFBENCH_MODE", "receiver, lfc")
    code, _, err = helpers.invoke(capsys, monkeypatch, "run", "--limit", "2")
    assert code == 2 and "unknown method 'lfc'" in err


def test_help_names_choices_kinds_and_every_flag():
    code, text, _ = helpers.process("run", "--help")
    assert code == 0 and "letters|cloze|generate" in text and "LCFBENCH_LIMIT" in text
    code, text, _ = helpers.process("adapter", "size", "--help")
    assert code == 0 and "|".join(kinds()) in text and len(kinds()) >= 6


def test_the_version():
    assert helpers.process("--version")[:2] == (0, f"lcfbench {lcfbench.__version__}\n")


@pytest.mark.parametrize(
    "given", [["width=8,16"], ["width=8", "width=16"], ["width=8", "width=16", "width=8"]]
)
def test_an_option_that_stands_twice_has_both_values(given):
    assert merged(TrainRecipe, {"options": given}, None, "train").options == {"width": "8,16"}
    assert merged(TrainRecipe, {"task_options": given}, None, "train").task_options == {"width": "8,16"}


@pytest.mark.parametrize(
    "line",
    [
        "run --out @",
        "plan --out=",
        "train --out @",
        "teach --model m --out @",
        "probe --out @",
        "report results -o @",
        "bench --out @",
        "ls runs --out @",
        "demo --out @",
        "adapter import-c2c x --out @",
        "adapter prune x --dev splitfacts --out @",
        "adapter pull x/y --out @",
        "oracle enrich --out @",
        "oracle transform --out @",
        "task new mine --out @",
        "plot frontier results --data @",
        "plot length results --data @",
        "plot length results --dial @",
        "plot training x --out @",
        "export jsonl -o @",
        "export eee -o @",
        "publish --to @",
        "check a b --junit @",
        "run --adapter x --adapter @",
        "show @",
    ],
)
def test_an_empty_value_is_never_the_current_folder(line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["" if word == "@" else word for word in line.split()]
    code, out, err = helpers.invoke(capsys, monkeypatch, *words)
    assert code == 2 and not out and err.count("\n") == 1 and " is empty. " in err, err
    assert line.split()[-2 if "@" in line else -1].rstrip("=") in err or line == "show @"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"), [({"out": ""}, "out: it is empty"), ({"adapter": ["a", ""]}, "adapter: a name in")]
)
def test_an_empty_path_of_a_recipe_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Recipe.merge(None, given)


@pytest.mark.parametrize("name", [".", "..", "/", "a.png"])
def test_numbers_of_a_figure_have_a_name(name, capsys, monkeypatch):
    code, _, err = helpers.invoke(capsys, monkeypatch, "plot", "frontier", "results", "--data", name)
    assert code == 2 and f"{'a' if name == 'a.png' else 'frontier'}.figure.parquet" in err


@pytest.mark.parametrize("verb", [["run", "--recipe"], ["plan"]])
@pytest.mark.parametrize("own", [False, True])
def test_adapters_that_a_recipe_trains_first_are_named_with_the_command(
    verb, own, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my own.yaml").write_text(
        "train: {adapters: ['lcf:width=8'], out: a}\nrun: {mode: lcf, task: splitfacts, adapter: [a/x, a/y]}"
    )
    name, first = ("my own.yaml", "a/x") if own else ("embedded", "adapters/embedded/lcf-width-32")
    code, _, err = helpers.invoke(capsys, monkeypatch, *verb, name)
    assert code == 2 and err.count("\n") == 1 and f"{first} and" in err, err
    assert err.endswith(f"Train them: lcfbench train --recipe {shlex.quote(name)}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["my own.yaml"]

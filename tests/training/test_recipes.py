"""Packaged recipes: each is a training and a run, with adapters of the published sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.options import adapter_options
from lcfbench.config import packaged_recipes, read_recipe
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe
from lcfbench.methods.base import option_fields
from lcfbench.methods.create import method_class, parse_options
from lcfbench.oracle.recipe import Enrich, Transform
from lcfbench.sources.models import geometry, split_pair
from lcfbench.tasks.task import load_task
from lcfbench.tasks.yaml_files import options_for, read_task
from lcfbench.training import data
from lcfbench.training.options import split_options
from lcfbench.training.recipe import PruneRecipe, TrainRecipe, folder_of
from lcfbench.training.setup import adapter_kind

RECIPES = {name: path for name, path in packaged_recipes().items() if "bench" not in read_recipe(path, None)}
PUBLISHED = {  # parameters of the papers' adapters, methods by methods
    "lcf-paper-shared": [7_890_680, 19_393_528, 53_409_272],
    "lcf-paper-cross": [25_873_400],
    "c2c-paper": [477_848_056],
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_training_and_the_run_that_goes_with_it(name):
    training, evaluation = TrainRecipe.merge(name, {}, "train"), Recipe.merge(name, {}, "run")
    evaluation.check_names()
    assert training.pair == evaluation.pair and read_recipe(RECIPES[name], None)["description"].endswith(".")
    for mode in evaluation.mode:
        kind = method_class(mode)
        known = {k: v for k, v in evaluation.options.items() if k in {f.name for f in option_fields(kind)}}
        for values in itertools.product(*known.values()):
            parse_options(kind, mode, dict(zip(known, values, strict=True)))
    sources = [data.parse_source(text) for text in training.task]
    assert sources and (training.dev or all(s.kind == "task" for s in sources))
    names = [s.name for s in sources if s.kind == "task"] + (training.dev or [])
    assert all(read_task(n).get("validation_split") or "splits" in read_task(n)["metadata"] for n in names), (
        "there is something to choose by"
    )
    options_for(names, training.task_options)
    assert {s.mode for s in training.specs()} <= set(evaluation.mode), "what is trained is what is run"
    made = {folder_of(training, s) for s in training.specs()}
    assert evaluation.adapter and set(evaluation.adapter) <= made and training.out.name == name


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_its_adapters_have_the_published_sizes(name):
    training = TrainRecipe.merge(name, {}, "train")
    ends = [(n, geometry(n, offline=True)) for n in split_pair(training.pair)]
    tasks = training.dev or [t.split("*")[0] for t in training.task]
    contexts = {"shared" if load_task(t).shared else "different" for t in tasks}
    counts, used = [], set()
    for spec in training.specs():
        if spec.mode == "lora":  # its size is that of the receiver's modules, which no geometry tells
            continue
        method = method_class(spec.mode)
        kind = adapter_kind(method, contexts, spec)
        _, for_adapter, taken = split_options(kind, method, training.options, dict(spec.options))
        used |= taken
        options, alignment = adapter_options(kind, for_adapter, small_scale=training.preset == "small-scale")
        with torch.device("meta"):
            counts.append(build(pair_config(kind, *ends, options=options, **alignment)).params)
    assert used == set(training.options), "every option of a recipe means something"
    assert counts == PUBLISHED.get(name, counts)


def test_an_unknown_recipe_is_one_line():
    with pytest.raises(UserError, match=r"unknown recipe 'c2c-papr'. Did you mean c2c-paper"):
        TrainRecipe.merge("c2c-papr", {}, "train")


def test_flags_win_over_a_recipe(tmp_path):
    assert TrainRecipe.merge("c2c-paper", {"steps": 3}, "train").steps == 3
    path = tmp_path / "r.yaml"
    path.write_text("train: {steps: 4}\nlimit: 3\n")
    with pytest.raises(UserError, match="beside them, limit"):
        TrainRecipe.merge(path, {}, "train")
    path.write_text("train: {steps: 4}\n")
    with pytest.raises(UserError, match="has no part run"):
        Recipe.merge(path, {}, "run")


@pytest.mark.parametrize("settings", [TrainRecipe, PruneRecipe, Enrich, Transform])
def test_every_setting_is_described_in_one_line(settings):
    for name, field in settings.model_fields.items():
        text = field.description or ""
        assert text.endswith(".") and "\n" not in text and len(text) <= 140, (name, text)

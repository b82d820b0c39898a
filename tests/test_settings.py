"""Every settings model, every field: odd values are one line, numbers have limits on both sides."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import lcfbench
from lcfbench.config import Settings, field_kinds
from lcfbench.errors import UserError
from lcfbench.evaluation.recipe import Recipe


def models() -> list[type[Settings]]:
    for module in pkgutil.walk_packages(lcfbench.__path__, "lcfbench."):
        if module.name.endswith("recipe"):
            importlib.import_module(module.name)
    found, left = [], [Settings]
    while left:
        found += (below := left.pop().__subclasses__())
        left += below
    return sorted(found, key=lambda model: model.__name__)


FIELDS = [(model, name) for model in models() for name in model.model_fields]
ODD = [
    *("null", "[]", "{}", "[[a]]", "{a: b}", "[{a: b}]", "[null]", "true", "[true]", "5", "-1", "0"),
    *("8.5", "8.0", "[8.5]", "1e300", ".nan", ".inf", "-.inf", "[.nan]", '"1"', '"\\0"', '"a\\nb"'),
    *('"\\e[31m"', "2020-01-01", "9223372036854775807", "a" * 300, "a/" * 5000, '""', "~nosuch"),
    *("'~nosuch:b'", "'a:b:c'", "[a, a]", "{1: 2}", "{a: {b: c}}", "{a: [[1]]}", "{a: null}"),
    *("{1: a, '1': b}", "/dev/null", ".", "/", "','", "'a*nan'", "'a*-1'", "'chat:*'", "'lcf:x'", "':'"),
]


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_an_odd_value_in_a_recipe_is_one_line(tmp_path, model, name):
    file = tmp_path / "odd.yaml"
    for odd in ODD:
        file.write_text(f"{name}: {odd}\n")
        try:
            made = model.merge(file, {})
            for check in ("check_names", "specs", "digest"):
                getattr(made, check, lambda: None)()
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, odd


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_a_number_has_limits_and_takes_nothing_else(tmp_path, model, name):
    kinds = field_kinds(model.model_fields[name].annotation)
    file = tmp_path / "odd.yaml"
    texts: list[str] = []
    if {int, float} & kinds:
        texts += ["-1e12", "1e12", "-1000000000000", "1000000000000", ".nan", ".inf", "-.inf", "true", '"x"']
    if int in kinds:
        texts += ["1.5", "8.0", "[1.5]", "[true]"]
    if {int, float} & kinds and "list" not in str(model.model_fields[name].annotation):
        texts.append('"1"')
    if bool in kinds:
        texts += ["1", "0", "1.0", "maybe", "[]"]
    for text in texts:
        file.write_text(f"{name}: {text}\n")
        with pytest.raises(UserError, match=r"odd\.yaml|--help") as caught:
            model.merge(
                file, {n: "x" for n, f in model.model_fields.items() if f.is_required() and n != name}
            )
        assert name.replace("_", "-") in str(caught.value), text


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("TrainRecipe", "lr", 0),
        ("TrainRecipe", "clip", 0),
        ("TrainRecipe", "steps", -1),
        ("TrainRecipe", "dtype", "float16"),
        ("TrainRecipe", "seed", -1),
        ("Enrich", "shots", -1),
        ("Enrich", "attention", "fast"),
        ("BenchRecipe", "repeats", 0),
        ("BenchRecipe", "dtype", "int8"),
        ("Recipe", "device", "cpu:9"),
        ("Recipe", "seed", 2**63),
        ("Recipe", "seeds", "1,9223372036854775808"),
        ("Transform", "device", "cuda:x"),
    ],
)
def test_values_that_mean_nothing_are_refused(model, field, value):
    kind = next(m for m in models() if m.__name__ == model)
    with pytest.raises(UserError, match=f"setting {field}"):
        kind.merge(None, {field: value})


@pytest.mark.parametrize("model", [m for m in models() if "dtype" in m.model_fields])
@pytest.mark.parametrize(("short", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_short_names_of_number_formats(model, short, dtype):
    needed = {n: "x" for n, f in model.model_fields.items() if f.is_required()}
    assert model.merge(None, {**needed, "dtype": short}).dtype == dtype


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("run: [1,2]", "run is not a mapping"),
        ("run: abc", "run is not a mapping"),
        ("run: 5", "run is not a mapping"),
        ("run: true", "run is not a mapping"),
        ("run:", "has no part run"),
        ("run: {}", "has no part run"),
        ("run: {1: 2}", "has the key 1"),
        ("run: {a: 1}\n5: x", "has the key 5"),
        ("run: {limit: 1}\nlimit: 3", "beside them, limit"),
        ("run: {limit: 1, limit: 2}", "stands twice"),
        ("mode: [[a]]", "setting mode of recipe"),
        ("mode: {a: b}", "setting mode of recipe"),
        ("run: {limit: 010}", ""),
    ],
)
def test_parts_of_a_recipe(tmp_path, text, says):
    from lcfbench.evaluation.recipe import Recipe

    (tmp_path / "r.yaml").write_text(text)
    if not says:
        assert Recipe.merge(tmp_path / "r.yaml", {}, "run").limit == 10
        return
    with pytest.raises(UserError, match=says) as caught:
        Recipe.merge(tmp_path / "r.yaml", {}, "run")
    assert "r.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "~nosuchuser/r.yaml", "", "/", "\n"])
def test_odd_names_of_recipes(name):
    from lcfbench.evaluation.recipe import Recipe

    with pytest.raises(UserError):
        Recipe.merge(name, {}, "run")


def test_a_name_given_twice_is_said(capsys):
    assert Recipe.model_validate({"task": "openbookqa,splitfacts,openbookqa"}).task == [
        "openbookqa",
        "splitfacts",
    ]
    assert "openbookqa: named more than once, counted once." in capsys.readouterr().err


def test_options_of_a_recipe():
    from lcfbench.config import texts

    assert texts({"a": [1, 2], 3: True, "n": None}) == {"a": "1,2", "3": "yes", "n": "none"}

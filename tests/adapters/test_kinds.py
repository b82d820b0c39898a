"""Kinds of adapter describe themselves: nothing is derived from how a kind is spelled."""

from __future__ import annotations

import pytest
import torch

from lcfbench.adapters.base import adapter_class, build, method_of, own_method
from lcfbench.adapters.card import card
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save
from lcfbench.adapters.options import adapter_options
from lcfbench.adapters.select import pick_adapter
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.methods.create import method_class
from lcfbench.registry import kinds, method_names
from lcfbench.training.ablation import method_for
from lcfbench.training.recipe import AdapterSpec
from lcfbench.training.setup import adapter_kind

PAIR = ("a", Geometry(layers=4, kv_heads=2, head_dim=8)), ("b", Geometry(layers=3, kv_heads=1, head_dim=16))
MUX = '''"""mux: an adapter for shared contexts, of a kind that ends in x."""

from lcfbench.adapters.lcf import LCFAdapter


class Mux(LCFAdapter):
    title = "MUX"
    own_method = "{method}"
    contexts = ("shared",)
    small_scale = {{"width": 4}}
'''


@pytest.fixture
def mux(tmp_path, monkeypatch):
    """A kind called mux, whose own method is lcf."""
    (tmp_path / "mux.py").write_text(MUX.format(method="lcf"))
    monkeypatch.setenv("LCFBENCH_PLUGINS", str(tmp_path / "mux.py"))
    torch.manual_seed(0)
    return build(pair_config("mux", *PAIR, options=adapter_options("mux", {})[0]))


def test_every_kind_has_a_method_contexts_and_options_that_it_knows():
    for kind in kinds():
        found = adapter_class(kind)
        assert kind in method_class(own_method(kind)).adapter_kinds
        assert set(found.contexts) <= {"shared", "different"} and found.contexts and found.title
        assert adapter_options(kind, {})[0] == dict(found.small_scale)
    for name in method_names():
        assert set(method_class(name).adapter_kinds) <= set(kinds())


def test_a_kind_that_ends_in_x_serves_the_contexts_it_names(mux, tmp_path):
    assert mux.width == 4 and method_of(mux.config) == own_method("mux") == "lcf"
    save(mux, tmp_path / "a", card(mux))
    assert "# MUX adapter, a ← b" in (tmp_path / "a" / "README.md").read_text()
    for shared in (True, False):
        chosen = {"pair": ("a", "b"), "shared": shared, "mode": "lcf", "task": "t"}
        if shared:
            assert pick_adapter([tmp_path / "a"], ("mux", "lcfx"), **chosen) == tmp_path / "a"
        else:
            with pytest.raises(UserError, match="no adapter of kind lcfx for lcf on t"):
                pick_adapter([tmp_path / "a"], ("mux", "lcfx"), **chosen)


def test_training_takes_the_first_kind_that_serves_the_contexts(mux, monkeypatch):
    spec = AdapterSpec("lcf", "lcf")
    method = type("Both", (method_class("lcf"),), {"adapter_kinds": ("lcfx", "mux")})
    assert adapter_kind(method, ["shared"], spec) == "mux"
    assert adapter_kind(method, ["different"], spec) == "lcfx"
    with pytest.raises(UserError, match="needs different adapters"):
        adapter_kind(method, ["shared", "different"], spec)
    assert adapter_kind(method_class("identical"), ["shared"], spec) == "lcf"
    assert adapter_kind(method_class("identical"), ["different"], spec) == "lcfx"
    assert adapter_kind(method_class("dense"), ["shared", "different"], spec) == "dense"
    monkeypatch.setattr(method_class("lcf"), "adapter_kinds", ("lcf", "lcfx", "mux"))
    assert method_for("mux") == "lcf" and method_for("mux", "single") == "lcf"


@pytest.mark.parametrize(
    ("kind", "key", "text", "value"),
    [
        ("lcf", "standardise", "no", False),
        ("lcf", "standardise", "1", True),
        ("lcf", "gate_init", "none", None),
        ("lcf", "gate_init", "0.5", 0.5),
        ("lcf", "width", "16", 16),
        ("dense", "rank", "0", 0),
        ("c2c", "ablation", "no-gate", "no-gate"),
    ],
)
def test_options_follow_the_constructors_types(kind, key, text, value):
    assert adapter_options(kind, {key: text}, small_scale=False)[0] == {key: value}


@pytest.mark.parametrize(
    ("kind", "key", "text", "says"),
    [
        (
            "lcf",
            "width",
            "0",
            "=0 of a lcf adapter is not a whole number, 1 or more, 1,048,576 at most. Its default is 128",
        ),
        ("lcf", "width", "1e3", "is not a whole number, 1 or more"),
        ("lcf", "gate_init", "inf", "is not a number or none"),
        ("lcf", "standardise", "perhaps", "is not yes or no"),
        ("lcf", "gate", "sofd", "is not one of gumbel, soft, hard. Did you mean soft"),
        ("lcf", "layer_map", "nearest", "is not one of terminal, proportional"),
        ("dense", "rank", "-1", "is not a whole number, 0 or more"),
        ("lcf", "widht", "8", "unknown option of a lcf adapter 'widht'. Did you mean width"),
    ],
)
def test_options_that_make_no_sense_name_type_and_default(kind, key, text, says):
    with pytest.raises(UserError) as error:
        adapter_options(kind, {key: text})
    assert says in str(error.value)

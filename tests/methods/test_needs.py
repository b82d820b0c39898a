"""Which methods a pair allows, on tiny models whose caches allow more and less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from lcfbench import registry
from lcfbench.adapters.config import pair_config
from lcfbench.errors import UserError
from lcfbench.methods.base import Method
from lcfbench.methods.create import create
from lcfbench.methods.needs import check_needs, lacking
from lcfbench.models.capabilities import CACHE as CACHE_CAPABILITIES
from lcfbench.models.conformance import conformance
from tests import helpers
from tests.models import zoo

CACHE = {
    "activation",
    "c2c",
    "cacheback",
    "dense",
    "draft_kv",
    "hub",
    "identical",
    "kvcomm",
    "latentmas",
    "lcf",
    "prefix",
    "sde",
    "single",
    "xkv",
}
# name → methods that are refused with this model on both sides, and a word of the reason
REFUSED = {
    "llama": (set(), ""),
    "gemma4": ({"latentmas"}, "it takes no input embeddings"),
    "cohere2": (set(), ""),
    "qwen3.5": ({"cacheback", "kvcomm", "latentmas"}, "layers 0, 2 keep a recurrent state"),
    "gpt2": (
        {"cacheback", "dense", "draft_kv", "hub", "prefix", "xkv"},
        "layer 0's values change with the position",
    ),
    "deepseek-v3": (
        {"cacheback", "dense", "draft_kv", "hub", "prefix", "xkv"},
        "layer 0's values carry the position, not its keys",
    ),
    "falcon-alibi": ({"cacheback", "dense", "draft_kv", "hub", "prefix", "xkv"}, "ALiBi"),
    "hunyuan": (
        {"cacheback", "dense", "draft_kv", "hub", "prefix", "xkv"},
        "no rotary rule gives the keys of layer 0",
    ),
    "mamba": (CACHE | {"lora"}, "no layer keeps keys and values"),
    "recurrent-gemma": (CACHE, "cannot be trusted"),
}


@pytest.fixture(scope="module")
def checked():
    known = {}

    def make(name):
        if name not in known:
            known[name] = zoo.lm_of(name)
            known[name].conformance = conformance(known[name])
        return known[name]

    return make


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_is_refused_where_the_model_lacks_what_it_needs(name, checked):
    lm, (refused, why) = checked(name), REFUSED[name]
    assert {m for m in registry.method_names() if lacking(m, lm, lm)} == refused
    for mode in refused:
        with pytest.raises(UserError) as error:
            check_needs(mode, lm, lm)
        told = str(error.value)
        assert why in told and "\n" not in told and lm.name in told and mode in told
        assert "receiver" in told and "full_context" in told  # what does work
        assert ("Text methods only" in told) == (refused >= CACHE)


@pytest.mark.parametrize("name", ["gpt2", "qwen3.5", "mamba"])
def test_a_model_that_was_not_checked_presumes_the_same(name, checked):
    """Models that are made in memory, not loaded."""
    lm = zoo.lm_of(name)
    for mode in registry.method_names():
        assert lacking(mode, lm, lm) == lacking(mode, checked(name), checked(name))


def test_the_side_that_lacks_it_is_named(checked):
    receiver, sharer = checked("llama"), checked("gpt2")
    check_needs("lcf", receiver, sharer)
    with pytest.raises(UserError, match=r"sharer.*'rotate'.*tiny-gpt2"):
        check_needs("prefix", receiver, sharer)
    with pytest.raises(UserError, match=r"receiver.*'rotate'.*tiny-gpt2"):
        check_needs("prefix", sharer, receiver)


@pytest.mark.parametrize("kind", ["lcfx", "prefix"])
def test_the_adapter_says_whether_keys_are_turned(kind, checked):
    receiver, sharer = checked("llama"), checked("gpt2")
    mode = {"lcfx": "lcf", "prefix": "prefix"}[kind]

    def config(unrotated):
        ends = ((lm.name, lm.geometry) for lm in (receiver, sharer))
        return pair_config(kind, *ends, options={"unrotated_keys": unrotated})

    assert not lacking(mode, receiver, sharer, config(False))
    assert [x[:2] for x in lacking(mode, receiver, sharer, config(True))] == [("rotate", "sharer")]
    twice = lacking("identical", sharer, sharer, config(True)) if kind == "lcfx" else None
    assert twice is None or twice[0][:2] == ("rotate", "receiver")


def test_a_method_from_elsewhere_that_declares_nothing():
    @dataclass
    class Plain(Method):
        pass

    @dataclass
    class Adapted(Method):
        roles: ClassVar[tuple[str, ...]] = ("receiver",)
        adapter_kinds: ClassVar[tuple[str, ...]] = ("mine",)

    assert Plain.needs_with(None) == {"receiver": (), "sharer": ()}
    assert Adapted.needs_with(None) == {"receiver": CACHE_CAPABILITIES}


def test_a_method_is_not_even_made(checked):
    lm = checked("qwen3.5")
    with pytest.raises(UserError, match="recurrent state"):
        create("kvcomm", lm, lm)


def test_a_run_is_refused_before_its_first_method_answers(tmp_path):
    path = zoo.folder("qwen3.5", tmp_path)
    with pytest.raises(UserError, match=r"kvcomm needs .* layers 0, 2 keep a recurrent state"):
        helpers.run_recipe(
            f"{path}:{path}", tmp_path / "out", mode=["receiver", "kvcomm"], task=["splitfacts"]
        )
    assert not list((tmp_path / "out").glob("*/samples.parquet"))


def test_a_training_is_refused_before_it_reads_an_example(tmp_path):
    import lcfbench

    path = zoo.folder("gpt2", tmp_path)
    with pytest.raises(UserError, match=r"prefix needs .*positions are absolute"):
        lcfbench.train(
            pair=f"{path}:{path}",
            adapters=["prefix"],
            task=["splitfacts"],
            steps=2,
            dtype="float32",
            out=tmp_path / "a",
        )
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").glob("*.safetensors"))


def test_a_model_that_computes_something_else_is_not_loaded(tmp_path):
    path = zoo.folder("bert-encoder", tmp_path)
    with pytest.raises(UserError, match=r"cannot be used here: .*no token is changed by those after it"):
        helpers.run_recipe(f"{path}:{path}", tmp_path / "out", mode=["receiver"], task=["splitfacts"])

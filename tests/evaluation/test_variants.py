"""Several values are several runs: what is asked, what is refused, and that each is the run it is alone."""

from __future__ import annotations

import json

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save as save_adapter
from lcfbench.errors import UserError
from lcfbench.evaluation import session
from lcfbench.evaluation.plan import options_of
from lcfbench.evaluation.recipe import Recipe
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model
from tests.helpers import Watcher, rows
from tests.helpers import run_recipe as go

FEW = 4


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, pair):
    """Two random LCF-X adapters of two widths."""
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    root, out = tmp_path_factory.mktemp("adapters"), []
    for width in (8, 16):
        torch.manual_seed(width)
        made = build(pair_config("lcfx", *((e.name, e.geometry) for e in ends), options={"width": width}))
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.3 * torch.randn_like(p))
            made.gate_logit.fill_(1.0)
        revisions = {"receiver": ends[0].revision, "sharer": ends[1].revision}
        made.config = made.config.model_copy(update={"training": {"revisions": revisions}})
        save_adapter(made, root / f"x{width}", "")
        out.append(root / f"x{width}")
    return out


def asked(mode, **options):
    recipe = Recipe(mode=mode, options=options)
    return [
        (v.mode, *(f"{k}={text}" for k, text in v.options))
        for v, _ in options_of(recipe.mode, recipe.options)
    ]


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("t2t:budget=50,lcf:spans=windows", {}, [("t2t", "budget=50"), ("lcf", "spans=windows")]),
        ("t2t:budget=16,32,lcf", {}, [("t2t", "budget=16"), ("t2t", "budget=32"), ("lcf",)]),
        ("t2t:budget=32,bytes=9,receiver", {}, [("t2t", "budget=32", "bytes=9"), ("receiver",)]),
        ("t2t:budget=32,budget=16", {}, [("t2t", "budget=32"), ("t2t", "budget=16")]),
        ("receiver,t2t", {"budget": "16,64"}, [("receiver",), ("t2t", "budget=16"), ("t2t", "budget=64")]),
        ("t2t", {"budget": [16, "64"]}, [("t2t", "budget=16"), ("t2t", "budget=64")]),
        (
            "t2t:budget=5,excerpt",
            {"budget": "16", "bytes": "8"},
            [("t2t", "budget=5", "bytes=8"), ("excerpt", "bytes=8")],
        ),
        (
            "t2t",
            {"budget": "1,2", "bytes": "none,8"},
            [("t2t", f"budget={a}", f"bytes={b}") for a in (1, 2) for b in ("none", 8)],
        ),
        ("kvcomm:layers=0,2,receiver", {}, [("kvcomm", "layers=0,2"), ("receiver",)]),
        ("kvcomm:layers=[2],layers=0.5", {}, [("kvcomm", "layers=[2]"), ("kvcomm", "layers=0.5")]),
        ("kvcomm", {"layers": ["0,2", "0.5"]}, [("kvcomm", "layers=0,2"), ("kvcomm", "layers=0.5")]),
        (["receiver", "t2t:budget=1,2"], {}, [("receiver",), ("t2t", "budget=1"), ("t2t", "budget=2")]),
        (
            ["receiver", {"t2t": {"budget": [1, 2]}}],
            {},
            [("receiver",), ("t2t", "budget=1"), ("t2t", "budget=2")],
        ),
        ({"receiver": None, "t2t": {"bytes": None}}, {}, [("receiver",), ("t2t", "bytes=None")]),
    ],
)
def test_several_values_are_several_variants(mode, options, expected):
    assert asked(mode, **options) == expected


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("t2t:budget=16,lfc", {}, ["unknown method 'lfc'", "lcf"]),
        ("t2t:budget=16,x", {}, ["budget=x of t2t", "whole number"]),
        ("t2t", {"budget": "16,0"}, ["budget=0 of t2t", "1 or more"]),
        ("t2t", {"budget": "16,"}, ["budget= of t2t"]),
        ("t2t:spans=one", {}, ["unknown option of t2t in --mode t2t:spans=one 'spans'"]),
        ("receiver,t2t", {"spans": "one"}, ["unknown option of receiver, t2t 'spans'"]),
        ("t2t:adapter=x", {}, ["t2t:adapter=x", "runs no adapter"]),
        ("lcf:adapter=there-is-none", {}, ["there-is-none"]),
    ],
)
def test_one_bad_value_is_named(mode, options, words):
    recipe = Recipe(mode=mode, options=options)
    with pytest.raises(UserError) as error:
        recipe.check_names()
        options_of(recipe.mode, recipe.options)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("mode", ["t2t,budget=32", ["t2t", ["lcf"]], [{"t2t": 3}], 3])
def test_other_shapes_are_refused(mode):
    with pytest.raises(UserError, match="setting mode"):
        Recipe.merge(None, {"mode": mode})


def test_every_variant_is_the_run_it_is_alone(pair, adapters, tmp_path):
    """Rows bit for bit, ids too; what is asked twice runs once and is said."""
    watcher = Watcher()
    common = {"control": ["matched", "deranged"], "limit": FEW}
    together = go(
        pair,
        tmp_path / "together",
        watcher,
        mode=["receiver", "t2t:budget=3", "t2t", "lcf"],
        adapter=adapters,
        options={"budget": "3,5", "windows": "2"},
        **common,
    )
    assert [text for text in watcher.said if "run once" in text] == [
        "splitfacts: t2t budget=3 is asked twice, so it is run once."
    ]
    alone = [go(pair, tmp_path / "alone", mode=["receiver"], **common)]
    alone += [
        go(pair, tmp_path / "alone", mode=["t2t"], options={"budget": budget}, **common)
        for budget in ("3", "5")
    ]
    alone += [
        go(pair, tmp_path / "alone", mode=["lcf"], adapter=[a], options={"windows": "2"}, **common)
        for a in adapters
    ]
    by_name = {f.name: f for some in alone for f in some}
    assert [f.name for f in together] == list(by_name) and len(together) == 9
    for folder in together:
        assert rows(folder) == rows(by_name[folder.name]), folder.name
    answers = [[r["choices_loglikelihood"] for r in rows(f)] for f in together if f.name.startswith("lcf")]
    assert len({json.dumps(a) for a in answers}) == len(answers) == 4, "every adapter answers in its own way"


def test_an_adapter_that_is_damaged_stops_all_before_models_are_loaded(pair, adapters, tmp_path, monkeypatch):
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("config.json", "adapter.safetensors"):
        (bad / name).write_bytes((adapters[0] / name).read_bytes())
    (bad / "config.json").write_text((adapters[1] / "config.json").read_text())
    monkeypatch.setattr(CausalLM, "load", None)
    with pytest.raises(UserError, match=r"bad/adapter.safetensors does not match its config"):
        go(pair, tmp_path / "out", mode=["lcf"], adapter=[*adapters, bad])
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_fit_together_run_in_portions(pair, adapters, tmp_path, monkeypatch):
    asked = {
        "mode": ["receiver", "lcf"],
        "adapter": adapters,
        "control": ["matched", "deranged"],
        "limit": FEW,
    }
    whole = go(pair, tmp_path / "whole", **asked)
    sizes = [(a / "adapter.safetensors").stat().st_size * 2 for a in adapters]  # saved in bfloat16
    monkeypatch.setattr(session, "free_bytes", lambda device: 2 * max(sizes))
    watcher = Watcher()
    parts = go(pair, tmp_path / "parts", watcher, **asked)
    assert any("made in 2 portions" in text for text in watcher.said)
    assert [f.name for f in parts] == [f.name for f in whole]
    assert [rows(f) for f in parts] == [rows(f) for f in whole]
    monkeypatch.setattr(session, "free_bytes", lambda device: max(sizes) - 1)
    with pytest.raises(UserError, match=r"x16 takes 0\.00 GB"):
        go(pair, tmp_path / "none", **asked)
    assert not (tmp_path / "none").exists()

"""Records of checked models: made once, told apart by all that matters, and never in the way."""

from __future__ import annotations

import pytest
import torch

from lcfbench.models import causal_lm
from lcfbench.models import conformance_store as store
from lcfbench.models.conformance import Conformance
from lcfbench.models.ragged import can_join
from tests.models import zoo


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "conformance"


@pytest.fixture
def counted(monkeypatch):
    """Counts how often a model is really checked."""
    calls, own = [], store.conformance

    def check(lm):
        calls.append(lm)
        return own(lm)

    monkeypatch.setattr(store, "conformance", check)
    return calls


@pytest.mark.parametrize("name", ["llama", "qwen3.5", "jamba", "mamba"])
def test_a_model_is_checked_once_and_then_reads_as_the_record_says(cache, counted, name):
    first, second = zoo.lm_of(name), zoo.lm_of(name)
    found = store.recorded(first)
    again = store.recorded(second)
    assert len(counted) == 1 and again == found
    assert second.reading == first.reading == found.reading
    assert store.recorded(zoo.lm_of(name), again=True) == found and len(counted) == 2
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_whether_rows_run_side_by_side_is_tried_once_a_model(cache, monkeypatch, name):
    tried = []
    monkeypatch.setattr(causal_lm, "can_join", lambda lm: tried.append(lm) or can_join(lm))
    first, second, unchecked = (zoo.lm_of(name) for _ in range(3))
    first.conformance = store.recorded(first)
    assert first.can_join == (name == "llama") and tried == [first]
    second.conformance = store.recorded(second)
    assert second.can_join == first.can_join == second.conformance.joins and tried == [first]
    assert unchecked.can_join == first.can_join and tried == [first, unchecked]
    (path,) = cache.iterdir()  # a record that does not say is completed
    path.write_text(first.conformance.model_copy(update={"joins": None}).model_dump_json())
    third, fourth = zoo.lm_of(name), zoo.lm_of(name)
    third.conformance = store.recorded(third)
    assert third.can_join == first.can_join and tried == [first, unchecked, third]
    fourth.conformance = store.recorded(fourth)
    assert fourth.can_join == first.can_join and tried == [first, unchecked, third]


def test_a_record_that_is_gone_is_not_made_anew_by_half(cache, monkeypatch):
    lm = zoo.lm_of("llama")
    store.recorded(lm)
    (path,) = cache.iterdir()
    path.write_text(
        Conformance.model_validate_json(path.read_bytes())
        .model_copy(update={"joins": None})
        .model_dump_json()
    )
    lm = zoo.lm_of("llama")
    lm.conformance = store.recorded(lm)
    path.unlink()
    assert lm.can_join and lm.conformance.joins and not path.exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"reading": "padded"}',
        b"\xff\xfe",
        b'{"reading": "backwards"}',
        b"0" * 4000,
    ],
)
def test_a_damaged_record_is_made_again(cache, counted, damage):
    found = store.recorded(zoo.lm_of("llama"))
    (path,) = cache.iterdir()
    path.write_bytes(damage)
    assert store.recorded(zoo.lm_of("llama")) == found and len(counted) == 2
    assert Conformance.model_validate_json(path.read_bytes()) == found


def test_a_record_that_cannot_be_kept_costs_time_alone(cache, counted):
    cache.parent.mkdir()
    cache.write_text("no folder")  # as a read-only disk: nothing can be written
    assert store.recorded(zoo.lm_of("llama")) == store.recorded(zoo.lm_of("llama"))
    assert len(counted) == 2 and cache.read_text() == "no folder"
    cache.unlink()
    (cache / f"{store.identity(zoo.lm_of('llama'))[:24]}.json").mkdir(parents=True)
    assert store.recorded(zoo.lm_of("llama")).reading == "padded"


def test_all_that_may_change_a_result_names_the_record(cache, monkeypatch):
    lm = zoo.lm_of("llama")
    names = {store.identity(lm)}
    lm.model.config._name_or_path = "/another/place"
    assert store.identity(lm) in names  # a moved folder is the same model

    def another() -> None:
        assert store.identity(lm) not in names
        names.add(store.identity(lm))

    lm.revision = "other"
    another()
    lm.model.set_attn_implementation("eager")
    another()
    lm.model.to(torch.bfloat16)
    another()
    lm.model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    another()
    monkeypatch.setattr(store.transformers, "__version__", "5.99")
    another()
    monkeypatch.setattr(store.torch, "__version__", "2.99")
    another()
    assert len(names) == 7

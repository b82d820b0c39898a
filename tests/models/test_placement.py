"""Models on several devices: the answers are those of one device.

The second device is PyTorch's lazy one, which every build has: it computes on the CPU, and as a GPU does it
refuses to compute with a tensor of another device.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch._lazy.ts_backend
from accelerate import cpu_offload, disk_offload, dispatch_model

from lcfbench.adapters.files import load, save
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.loading import check_weights
from lcfbench.models.placement import devices_of, loaded_weights, main_device, offloaded
from tests import helpers
from tests.helpers import SHARED, SPLIT

OTHER = torch.device("lazy:0")
CPU = torch.device("cpu")
CASES = [
    ("receiver", None, SHARED),
    ("sharer", None, SHARED),
    ("full_context", None, SPLIT),
    ("t2t", None, SHARED),
    ("kvcomm", None, SHARED),
    ("kvcomm", {"layers": "0,2"}, SPLIT),
    ("lcf", "lcf", SHARED),
    ("lcf", "lcfx", SPLIT),
    ("c2c", "c2c", SHARED),
    ("dense", "dense", SHARED),
    ("prefix", "prefix", SHARED),
    ("xkv", "xkv", SPLIT),
    ("activation", "activation", SPLIT),
]
IDS = [f"{name}-{documents[0].task}" for name, _, documents in CASES]


@pytest.fixture(scope="module", autouse=True)
def second_device():
    torch._lazy.ts_backend.init()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():  # the lazy device has no inference mode
        yield


def method_of(name: str, what, ends):
    if what == "dense":
        return create(name, *ends, helpers.random_dense(ends, form="linear", sources=2, residual=6), {})
    if what == "prefix":
        return create(name, *ends, helpers.random_prefix(ends))
    if what == "xkv":
        return create(name, *ends, helpers.random_xkv(ends))
    if what == "activation":
        return create(name, *ends, helpers.random_activation(ends))
    if isinstance(what, dict):
        return create(name, *ends, None, what)
    return helpers.made_method(name, what, ends)


def remade(lm: CausalLM, model) -> CausalLM:
    return CausalLM(lm.name, model, lm.tokenizer, lm.revision, lm.source)


def spread(lm: CausalLM) -> CausalLM:
    """The same model with half of its layers and its output head on the other device."""
    model, layers = copy.deepcopy(lm.model), lm.geometry.layers
    places = {"model.embed_tokens": CPU, "model.rotary_emb": CPU, "model.norm": OTHER, "lm_head": OTHER}
    places |= {f"model.layers.{i}": OTHER if i % 2 else CPU for i in range(layers)}
    untied = model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert untied is not model.get_input_embeddings().weight
    for name, place in places.items():
        model.get_submodule(name).to(place)
    hooked = dispatch_model(model, places, main_device=CPU, skip_keys="past_key_values", force_hooks=True)
    return remade(lm, hooked)


def moved(lm: CausalLM) -> CausalLM:
    """The same model on the other device."""
    return remade(lm, copy.deepcopy(lm.model).to(OTHER))


def test_a_saved_adapter_is_loaded_onto_the_device(tmp_path):
    save(helpers.random_prefix(helpers.tiny_pair()), tmp_path / "a", "card")
    loaded = load(tmp_path / "a", OTHER, torch.float32)
    assert {t.device for t in loaded.state_dict().values()} == {OTHER}


WAYS = {
    "the receiver is spread": lambda r, s: (spread(r), s),
    "the sharer is spread": lambda r, s: (r, spread(s)),
    "the sharer is elsewhere": lambda r, s: (r, moved(s)),
}


CANNOT_ITERATE = {"sharer", "t2t", "dense", "prefix", "xkv"}  # nor add to the parts that one gets


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "what", "documents"), CASES, ids=IDS)
def test_every_method_answers_as_on_one_device(name, what, documents, way):
    if way == "the sharer is elsewhere" and name in CANNOT_ITERATE:
        pytest.skip("PyTorch's lazy device computes nothing with the parts of a tensor that is iterated")
    ends = helpers.tiny_pair(name)
    expected = helpers.outcomes(method_of(name, what, ends), documents)[0]
    placed = WAYS[way](*ends) if ends[0] is not ends[1] else (WAYS[way](*ends)[0],) * 2
    method = method_of(name, what, placed)
    if method.adapter is not None:
        method.adapter.to(placed[0].device)
    found = helpers.outcomes(method, documents)[0]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_layers_that_are_fetched_for_each_forward_compute_the_same(tmp_path, where):
    whole = helpers.causal_lm(layers=4)
    model = copy.deepcopy(whole.model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if where == "disk":
        disk_offload(model, tmp_path, execution_device=CPU)
    else:
        cpu_offload(model, execution_device=CPU)
    assert offloaded(model) and main_device(model) == CPU and devices_of(model) == [CPU]
    check_weights("folder", model)
    names = {name for name, weight in loaded_weights(model) if weight.device.type != "meta"}
    assert names == {name for name, _ in model.named_parameters()}
    found = remade(whole, model)
    assert found.device == CPU and found.dtype == torch.float32 and found.flops(3) > 0
    outcome = helpers.outcomes(method_of("receiver", None, (found, found)), SHARED)[0]
    assert outcome == helpers.outcomes(method_of("receiver", None, (whole, whole)), SHARED)[0]

"""Rotary rules: keys turned back are those that the model's own attention turned."""

from __future__ import annotations

import sys

import pytest
import torch

from lcfbench.errors import UserError
from lcfbench.models.rotary import NONE, find_rules
from tests.models import zoo

IDS = list(range(20, 60, 3))
# name → layers that turn nothing
TURNING: dict[str, tuple[int, ...]] = {
    "llama": (),
    "llama-3.1": (),
    "llama-yarn": (),
    "llama-dynamic": (),
    "llama-longrope": (),
    "qwen3": (),
    "gemma3": (),
    "gemma3n": (),
    "gemma4": (),
    "gemma4-k-eq-v": (),
    "gpt-oss": (),
    "gpt-oss-yarn": (),
    "smollm3": (1, 3),
    "smollm3-sliding": (1, 3),
    "cohere": (),
    "cohere2": (2, 4),
    "exaone4": (2, 4),
    "ernie4.5": (),
    "glm4": (),
    "gptj": (),
    "phi3-sliding": (),
    "phi4-mini": (),
    "stablelm": (),
    "gpt-neox": (),
    "qwen3.5": (),
    "falcon-h1": (),
    "lfm2": (),
    "granite-hybrid": (),
}
ABSENT = {
    "gpt2": "layer 0's values change with the position (positions are absolute)",
    "opt": "positions are absolute",
    "bloom": "takes no positions",
    "falcon-alibi": "ALiBi",
    "deepseek-v2": "compressed",
    "deepseek-v3": "layer 0's values carry the position, not its keys",
    "hunyuan": "no rotary rule gives the keys of layer 0",  # normalised after they turned
    "mamba": "takes no positions",
    "recurrent-gemma": "no layer keeps keys",
}


@torch.no_grad()
def cache_of(model, positions, ids=IDS):
    row = torch.tensor([ids[: positions.shape[1]]]).expand(len(positions), -1)
    out = model.get_decoder()(
        input_ids=row, attention_mask=torch.ones_like(row), position_ids=positions, use_cache=True
    )
    return [layer.keys for layer in out.past_key_values.layers if getattr(layer, "keys", None) is not None]


def turned(rules, keys, positions, layer, inverse):
    """One layer's keys: those of a sliding layer are the last of the positions."""
    return rules.turn(keys[None], positions[:, -keys.shape[2] :], [layer], inverse)[0]


@pytest.mark.parametrize("name", TURNING)
def test_keys_turned_back_are_those_that_the_models_attention_turned(name, monkeypatch):
    """The reference is the model's own function, watched: what it was given and which layers called it."""
    model = zoo.build(name)
    module, given = sys.modules[type(model).__module__], []
    own = module.apply_rotary_pos_emb

    def watched(*args, **kwargs):
        given.extend(x for x in (*args, *kwargs.values()) if torch.is_tensor(x) and x.dim() == 4)
        return own(*args, **kwargs)

    rules = find_rules(model, IDS, 512)
    monkeypatch.setattr(module, "apply_rotary_pos_emb", watched)
    positions = torch.arange(5, 14)[None]
    keys = cache_of(model, positions)
    assert len(keys) == len(rules.layers)
    assert [i for i, rule in enumerate(rules.layers) if rule == NONE] == list(TURNING[name])
    for i, (key, rule) in enumerate(zip(keys, rules.layers, strict=True)):
        back = turned(rules, key, positions, i, inverse=True)
        assert torch.equal(back, key) == (rule == NONE)
        if rule == NONE:
            continue
        part = back[..., rule.first : rule.first + rule.width]
        seen = [x[..., : rule.width] for y in given for x in (y, y.transpose(1, 2))]
        seen = [x[:, :, -part.shape[2] :] for x in seen if x.shape[1] == part.shape[1]]
        assert any(x.shape == part.shape and torch.allclose(x, part, atol=1e-5) for x in seen), (name, i)
        assert torch.allclose(turned(rules, back, positions, i, inverse=False), key, atol=1e-5)


@pytest.mark.parametrize("name", [*TURNING, "llama4", "nemotron-h", "jamba"])
def test_keys_of_one_place_foretell_those_of_another(name):
    model = zoo.build(name, seed=1)
    rules = find_rules(model, IDS, 512)
    here, there = torch.arange(3, 12)[None], torch.arange(21, 30)[None]
    for i, (a, b) in enumerate(zip(cache_of(model, here), cache_of(model, there), strict=True)):
        content = turned(rules, a, here, i, inverse=True)
        assert torch.allclose(turned(rules, content, there, i, inverse=False), b, atol=1e-4), (name, i)


@pytest.mark.parametrize("name", ABSENT)
def test_a_model_whose_keys_do_not_carry_their_place_has_no_rules_and_says_why(name):
    rules = find_rules(zoo.build(name), IDS, 512)
    assert ABSENT[name] in rules.reason
    with pytest.raises(UserError, match="cannot be moved"):
        rules.turn(torch.zeros(1, 1, 1, 2, 8), torch.zeros(1, 2, dtype=torch.long))


# after a text of more than 128 tokens "dynamic" keeps its frequencies in the next one of just 128
@pytest.mark.parametrize(
    ("name", "steady"), [("llama-dynamic", 127), ("llama-longrope", 30), ("phi4-mini", 30)]
)
def test_frequencies_that_depend_on_the_length_are_refused_beyond_their_first_stretch(name, steady):
    model = zoo.build(name)
    rules = find_rules(model, IDS, 512)
    assert rules.steady == steady
    keys = torch.randn(4, 1, 2, 3, 8)
    inside = torch.tensor([[0, 20, steady - 1]])
    first = rules.turn(keys, inside, inverse=True)
    cache_of(model, torch.arange(150)[None], ids=list(range(5, 155)))  # a long text changes the module
    assert torch.equal(rules.turn(keys, inside, inverse=True), first)
    for inverse in (True, False):
        with pytest.raises(UserError, match=f"more than {steady} tokens"):
            rules.turn(keys, torch.tensor([[0, 20, steady]]), inverse=inverse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "cohere2", "glm4", "gemma3"])
def test_rounding_hides_no_rule(name, dtype):
    exact = find_rules(zoo.build(name), IDS, 512)
    assert find_rules(zoo.build(name).to(dtype), IDS, 512).layers == exact.layers


def test_layers_of_a_padded_stack_turn_their_own_dims_alone():
    model = zoo.build("gemma4")  # 8 dims in sliding layers, 16 in full ones
    rules = find_rules(model, IDS, 512)
    positions = torch.arange(9)[None]
    keys = cache_of(model, positions)
    padded = torch.stack([torch.nn.functional.pad(k, (0, 16 - k.shape[-1])) for k in keys])
    back = rules.turn(padded, positions, inverse=True)
    for i, key in enumerate(keys):
        assert not back[i, ..., key.shape[-1] :].any()
        assert torch.equal(back[i, ..., : key.shape[-1]], turned(rules, key, positions, i, inverse=True))


def test_few_positions_are_not_exceeded():
    model = zoo.random_model(zoo.shrunk("gpt2", n_inner=48, n_positions=16, num_hidden_layers=2))
    assert "absolute" in find_rules(model, IDS, 16).reason


def test_a_rule_that_no_candidate_has_is_refused(monkeypatch):
    model = zoo.build("llama")
    module = sys.modules[type(model).__module__]
    own = module.apply_rotary_pos_emb
    calls = []

    def squared(q, k, cos, sin, **more):
        calls.append(1)
        q, turned = own(q, k, cos, sin, **more)
        return q, turned * turned if len(calls) % 4 == 3 else turned  # the third of four layers

    monkeypatch.setattr(module, "apply_rotary_pos_emb", squared)
    assert find_rules(model, IDS, 512).reason == "no rotary rule gives the keys of layer 2"


def test_the_search_leaves_the_model_as_it_was():
    model = zoo.build("llama-dynamic")
    before = {name: b.clone() for name, b in model.named_buffers()}
    find_rules(model, IDS, 512)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks

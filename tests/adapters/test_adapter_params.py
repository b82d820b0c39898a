"""Adapter sizes against the published ones, from the geometry alone."""

from __future__ import annotations

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.c2c import C2CAdapter as C2CFuser
from lcfbench.adapters.config import pair_config
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry

QWEN3 = Geometry(layers=28, kv_heads=8, head_dim=128)
SHARERS = {
    "0.5b": Geometry(layers=24, kv_heads=2, head_dim=64),
    "llama-1b": Geometry(layers=16, kv_heads=8, head_dim=64),
    "1.5b": Geometry(layers=28, kv_heads=2, head_dim=128),
    "0.6b": QWEN3,
}
TABLE = [
    ("c2c", "0.5b", {}, None, 477_848_056),
    ("c2c", "llama-1b", {}, None, 499_868_152),
    ("c2c", "1.5b", {}, None, 485_188_088),
    ("c2c", "0.6b", {}, None, 529_228_280),
    ("lcf", "0.5b", {"width": 64}, None, 7_890_680),
    ("lcf", "0.5b", {"width": 128}, None, 19_393_528),
    ("lcf", "0.5b", {"width": 256}, None, 53_409_272),
    ("lcf", "0.5b", {"width": 512}, None, 165_480_952),
    ("lcf", "0.5b", {"width": 128}, 19, 13_159_894),
    ("lcf", "0.5b", {"width": 128}, 9, 6_233_634),
    ("lcf", "0.5b", {"width": 128}, 6, 4_155_756),
    ("lcfx", "0.6b", {"width": 128}, None, 25_873_400),
]


def made(kind: str, sharer: Geometry, options: dict[str, object], layers: int | None = None):
    with torch.device("meta"):
        return build(
            pair_config(kind, ("receiver", QWEN3), ("sharer", sharer), options=options, layers=layers)
        )


@pytest.mark.parametrize(("kind", "sharer", "options", "layers", "params"), TABLE)
def test_parameters_are_the_published_ones(kind, sharer, options, layers, params):
    assert made(kind, SHARERS[sharer], options, layers).params == params


def test_lcfx_queries_are_a_small_part():
    adapter = made("lcfx", QWEN3, {"width": 128})
    assert sum(p.numel() for n, p in adapter.named_parameters() if n.startswith("query")) == 57_344


def test_defaults_are_the_published_sizes():
    assert (
        made("c2c", SHARERS["0.5b"], {}).params
        == made("c2c", SHARERS["0.5b"], {"hidden": 1024, "intermediate": 1024, "blocks": 3}).params
    )
    assert made("lcf", SHARERS["0.5b"], {}).params == 19_393_528


@pytest.mark.parametrize("blocks", [3, 4, 6])
def test_c2c_formula(blocks):
    """The formula of the parameter count, with one more block to the edit for each above 3."""
    S, T, H, h, i = 12, 40, 5, 24, 20
    receiver, sharer = Geometry(layers=3, kv_heads=H, head_dim=8), Geometry(layers=2, kv_heads=3, head_dim=4)
    options = {"hidden": h, "intermediate": i, "blocks": blocks}
    per_layer = 2 * (
        (S + T + 1) * h + (blocks - 1) * (h + 2 * h * i) + (h + 2 * h * h) + (h * H + H) + (h * T + T) + 1
    )
    with torch.device("meta"):
        adapter = build(pair_config("c2c", ("r", receiver), ("s", sharer), options=options))
    assert adapter.params == 3 * per_layer


def test_pruned_layers_are_the_last_and_keep_their_map():
    config = made("lcf", SHARERS["0.5b"], {"width": 64}, 6).config
    assert config.layers == (22, 23, 24, 25, 26, 27) and config.layer_map == (18, 19, 20, 21, 22, 23)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"1\.\.28"):
        made("lcf", SHARERS["0.5b"], {}, 29)
    with pytest.raises(UserError, match="without an edit"):
        made("c2c", SHARERS["0.5b"], {"blocks": 2})


def test_untrained_c2c_is_the_identity_and_a_selection_is_a_shorter_one():
    receiver, sharer = Geometry(layers=3, kv_heads=2, head_dim=4), Geometry(layers=2, kv_heads=1, head_dim=6)
    torch.manual_seed(0)
    adapter = build(
        pair_config("c2c", ("r", receiver), ("s", sharer), options={"hidden": 8, "intermediate": 10})
    ).eval()
    keys, values, message = torch.randn(3, 2, 2, 5, 4), torch.randn(3, 2, 2, 5, 4), torch.randn(3, 2, 5, 12)
    with torch.no_grad():
        out = adapter(message, keys, values)
        assert torch.equal(out[0], keys) and torch.equal(out[1], values)
        adapter.gate_logit.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]]))
        whole = adapter(message, keys, values)
        assert not torch.equal(whole[0][0], keys[0]) and torch.equal(whole[1][0], values[0])  # K open, V shut
        assert torch.equal(whole[0][2], keys[2]) and not torch.equal(whole[1][2], values[2])  # K shut, V open
        half = adapter.requires_grad_(False).select([0, 2])
        assert (
            isinstance(half, C2CFuser)
            and half.config.layers == (0, 2)
            and not any(p.requires_grad for p in half.parameters())
        )
        some = half(message[[0, 2]], keys[[0, 2]], values[[0, 2]])
    torch.testing.assert_close(some[0], whole[0][[0, 2]])
    torch.testing.assert_close(some[1], whole[1][[0, 2]])


def test_selection_keeps_the_dtype():
    receiver = Geometry(layers=3, kv_heads=2, head_dim=4)
    adapter = build(
        pair_config("c2c", ("r", receiver), ("s", receiver), options={"hidden": 8, "intermediate": 10})
    ).to(torch.bfloat16)
    adapter.gate_logit.data = adapter.gate_logit.data.float()
    assert (
        adapter.select([1]).in_weight.dtype == torch.bfloat16
        and adapter.select([1]).gate_logit.dtype == torch.float32
    )


def test_every_parameter_of_c2c_gets_a_gradient():
    receiver, sharer = Geometry(layers=2, kv_heads=2, head_dim=4), Geometry(layers=2, kv_heads=1, head_dim=6)
    adapter = build(
        pair_config(
            "c2c", ("r", receiver), ("s", sharer), options={"hidden": 8, "intermediate": 10, "blocks": 4}
        )
    ).train()
    keys, values = torch.randn(2, 1, 2, 5, 4), torch.randn(2, 1, 2, 5, 4)
    out = adapter(torch.randn(2, 1, 5, 12), keys, values)
    (out[0].square().sum() + out[1].square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())

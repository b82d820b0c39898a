"""Editing a few layers at a time, without gradients, equals editing all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lcfbench.adapters import base
from lcfbench.adapters._layers import joined, linear, rms_norm, standard
from lcfbench.adapters.base import Editor, build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.lcf import CLAMP, flat
from lcfbench.geometry import Geometry

RECEIVER, SHARER = Geometry(layers=5, kv_heads=2, head_dim=6), Geometry(layers=4, kv_heads=1, head_dim=10)
KINDS = [
    ("lcf", {"width": 8}),
    ("lcf", {"width": 8, "standardise": True}),
    ("lcfx", {"width": 8}),
    ("c2c", {"hidden": 12, "intermediate": 16}),
]


def made(kind: str, gate: str = "soft", **options) -> Editor:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    adapter = build(
        pair_config(kind, ("r", RECEIVER), ("s", SHARER), options={**options, "gate": gate, "gate_init": 0.5})
    )
    assert isinstance(adapter, Editor)
    with torch.no_grad():
        for name, tensor in adapter.state_dict().items():
            if name.endswith("bias") or "norm" in name:
                tensor.normal_()
    if options.get("standardise"):
        adapter.calibrate(3 * torch.randn(5, 64, 20) + 1, torch.randn(5, 64, 24) - 2)
    return adapter.eval()


def inputs(B: int = 3, N: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 5, B, 2, N, 6, generator=g)
    return 40 * torch.randn(5, B * N, 20, generator=g), keys, values


def whole(adapter: Editor, sent: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return adapter(adapter.message(sent).unflatten(1, (keys.shape[1], -1)), keys, values)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_pieces_without_gradients_equal_the_whole_with_them(kind, options, monkeypatch):
    adapter, (sent, keys, values) = made(kind, **options), inputs()
    want = whole(adapter, sent, keys, values)
    assert want[0].requires_grad and adapter.pieces(21) == [slice(0, 5)]  # gradients: all at once
    monkeypatch.setattr(base, "CACHED_NUMBERS", 2 * 21 * adapter.widest)
    before = [x.clone() for x in (sent, keys, values)]
    with torch.no_grad():
        pieces = adapter.pieces(21)
        assert pieces == [slice(0, 2), slice(2, 4), slice(4, 5)]
        parts = []
        for at in pieces:
            message = adapter.message(sent[at], at).unflatten(1, (3, 7))
            parts.append(adapter(message, keys[at], values[at], None, at))
    for got, wanted in zip((torch.cat(x) for x in zip(*parts, strict=True)), want, strict=True):
        torch.testing.assert_close(got, wanted)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (sent, keys, values), strict=True)
    )  # what is handed in stays as it is


@pytest.mark.parametrize("standardise", [False, True])
def test_lcf_is_its_formula(standardise):
    """Written out one layer and one step at a time."""
    adapter, (sent, keys, values) = made("lcf", width=8, standardise=standardise), inputs()
    got = whole(adapter, sent, keys, values)
    for i in range(5):
        own = torch.cat([flat(keys[i : i + 1]), flat(values[i : i + 1])], -1).flatten(1, 2)[0]
        theirs = sent[i]
        if standardise:
            theirs = ((theirs - adapter.sharer_mean[i]) / adapter.sharer_scale[i]).clamp(-CLAMP, CLAMP)
            own = ((own - adapter.receiver_mean[i]) / adapter.receiver_scale[i]).clamp(-CLAMP, CLAMP)
        z = theirs @ adapter.down_sharer[i] + own @ adapter.down_receiver[i] + adapter.down_bias[i]
        for norm, up, down in (
            (adapter.norm1, adapter.ffn1_in, adapter.ffn1_out),
            (adapter.norm2, adapter.ffn2_in, adapter.ffn2_out),
        ):
            z = z + F.gelu(rms_norm(z, norm[i]) @ up[i]) @ down[i]
        alpha = torch.sigmoid(z @ adapter.head_weight[i] + adapter.head_bias[i]).view(
            3, 7, 2, 2
        )  # (B, N, K or V, H)
        gate = torch.sigmoid(adapter.gate_logit[i])
        for kv, (x, up, plus) in enumerate(
            ((keys, adapter.up_key, adapter.up_key_bias), (values, adapter.up_value, adapter.up_value_bias))
        ):
            edit = (z[:, 4 * kv : 4 * kv + 4] @ up[i] + plus[i]).view(3, 7, 2, 6)
            want = x[i] + gate[kv] * (alpha[:, :, kv, :, None] * edit).transpose(1, 2)
            torch.testing.assert_close(got[kv][i], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_gradients_are_those_of_finite_differences(kind, options):
    """To the few digits that norms in fp32 leave: a term lost would show in the first."""
    adapter, (sent, keys, values) = made(kind, **options).double(), (x.double() for x in inputs(1, 3))
    loss = lambda: sum((x * x).sum() for x in whole(adapter, sent, keys, values))  # noqa: E731
    loss().backward()
    for name, p in adapter.named_parameters():
        if p.grad is None:
            assert kind == "lcfx" and name.startswith("query")  # the pool's own
            continue
        at = int(p.grad.abs().argmax())
        with torch.no_grad():
            flat_p, h = p.view(-1), 1e-3
            flat_p[at] += h
            up = loss()
            flat_p[at] -= 2 * h
            down = loss()
            flat_p[at] += h
        torch.testing.assert_close(
            p.grad.view(-1)[at],
            (up - down) / (2 * h),
            rtol=5e-3,
            atol=1e-3,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("gradients", [True, False])
def test_standardising_is_the_same_either_way_and_leaves_its_input(gradients):
    x = torch.randn(2, 5, 4) * 20
    mean, scale = torch.randn(2, 1, 4), torch.rand(2, 1, 4) + 0.5
    given = x.clone().requires_grad_(gradients)
    assert torch.equal(standard(given, mean, scale, 8.0), ((x - mean) / scale).clamp(-8, 8)) and torch.equal(
        given, x
    )


def test_joined_is_k_then_v_of_each_token():
    keys, values = torch.randn(2, 5, 3, 2, 7, 6)
    assert torch.equal(joined(keys, values), torch.cat([flat(keys), flat(values)], -1).flatten(1, 2))


def test_a_term_of_the_matmul_is_added():
    x, w, bias, term = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.randn(2, 1, 5), torch.randn(2, 3, 5)
    for plus in (bias, term):
        torch.testing.assert_close(linear(x, w, plus), x @ w + plus)


@pytest.mark.parametrize("kind", ["lcf", "c2c"])
def test_a_shut_gate_leaves_every_bit(kind):
    adapter, (sent, keys, values) = made(kind, gate="hard"), inputs()
    keys[0, 0, 0, 0, 0] = values[0, 0, 0, 0, 0] = -0.0
    with torch.no_grad():
        adapter.gate_logit.copy_(torch.tensor([[1.0, -1.0]]).expand(5, 2))
        got = whole(adapter, sent, keys, values)
        assert torch.equal(got[1].view(torch.int32), values.view(torch.int32)) and not torch.equal(
            got[0], keys
        )

"""The adapters again, the way the field's code holds them.

One small module a layer, plain `nn.Linear`s, one layer's cache in, one out.

Weights are sliced from a stacked adapter, so both sides compute the same function. Written from the
papers (LCF arXiv 2605.22863v2, C2C arXiv 2510.03215v2); tests/test_benchmarks.py holds it against
the stacked modules.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcfbench.adapters import lcf, lcfx
from lcfbench.adapters.base import Adapter

CLAMP = 8.0


class RMSNorm(nn.Module):
    """Statistics in fp32, as the frozen models' own norms have it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Block(nn.Module):
    """`x + W2·GELU(W1·RMSNorm(x))`.

    W1 (in, inner), W2 (inner, in) as the stacked adapters hold them.
    """

    def __init__(self, norm: Tensor, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.norm, self.w1, self.w2 = RMSNorm(norm.flatten()), dense(up), dense(down)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w2(F.gelu(self.w1(self.norm(x))))


def dense(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """`nn.Linear` of a weight (in, out) and a bias (1, out)."""
    made = nn.Linear(*weight.shape, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight.T)
        if bias is not None:
            made.bias.copy_(bias.flatten())
    return made.requires_grad_(False)


def flat(x: Tensor) -> Tensor:
    """(B, H, N, D) → (B, N, H·D)."""
    return x.transpose(1, 2).flatten(2)


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, H·D) → (B, H, N, D)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class LCFLayer(nn.Module):
    """One layer of LCF: K and V of both models through one bottleneck."""

    def __init__(self, stack: lcf.LCFAdapter, i: int) -> None:
        super().__init__()
        self.heads, self.half = stack.heads, stack.width // 2
        self.down = dense(torch.cat([stack.down_sharer[i], stack.down_receiver[i]]), stack.down_bias[i])
        self.block1 = Block(stack.norm1[i], stack.ffn1_in[i], stack.ffn1_out[i])
        self.block2 = Block(stack.norm2[i], stack.ffn2_in[i], stack.ffn2_out[i])
        self.up_key, self.up_value = (
            dense(stack.up_key[i], stack.up_key_bias[i]),
            dense(stack.up_value[i], stack.up_value_bias[i]),
        )
        self.head = dense(stack.head_weight[i], stack.head_bias[i])
        self.gate_key, self.gate_value = (float(g.flatten()[i]) for g in stack.gates(()))
        self.standardise = stack.standardise
        if stack.standardise:
            for name in ("sharer_mean", "sharer_scale", "receiver_mean", "receiver_scale"):
                self.register_buffer(name, getattr(stack, name)[i].clone())

    def standard(self, x: Tensor, side: str) -> Tensor:
        if not self.standardise:
            return x
        return (
            ((x.float() - getattr(self, f"{side}_mean")) / getattr(self, f"{side}_scale"))
            .clamp(-CLAMP, CLAMP)
            .to(x.dtype)
        )

    def forward(
        self, sharer_key: Tensor, sharer_value: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Edited key and value (B, H, N, D); the sharer's are (B, H_s, N, D_s)."""
        theirs = self.standard(torch.cat([flat(sharer_key), flat(sharer_value)], -1), "sharer")
        own = self.standard(torch.cat([flat(key), flat(value)], -1), "receiver")
        z = self.block2(self.block1(self.down(torch.cat([theirs, own], -1))))
        alpha_key, alpha_value = (
            torch.sigmoid(self.head(z)).transpose(1, 2).unsqueeze(-1).chunk(2, 1)
        )  # (B, H, N, 1)
        delta_key, delta_value = (
            heads(self.up_key(z[..., : self.half]), self.heads),
            heads(self.up_value(z[..., self.half :]), self.heads),
        )
        return (
            key + self.gate_key * alpha_key * delta_key,
            value + self.gate_value * alpha_value * delta_value,
        )


class PooledLCFLayer(LCFLayer):
    """One layer of LCF-X: the sharer's cache pooled to one entry, offered to every position."""

    def __init__(self, stack: lcfx.LCFXAdapter, i: int) -> None:
        super().__init__(stack, i)
        self.query_base, self.query_layer = stack.query_base[i], stack.query_layer[i]  # (H_s, D_s)
        biased = stack.pool_start == "last"
        self.token_bias, self.span_bias = (
            (stack.token_bias[i], stack.span_bias[i]) if biased else (None, None)
        )

    def pool(self, key: Tensor, value: Tensor, spans: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The sharer's (1, H, M, D), keys as the adapter wants them, pooled to (1, H, 1, D).

        Spans: token numbers of each, empty ones too.
        """
        scale = math.sqrt(key.shape[-1])
        read = sorted({t for span in spans for t in span})
        from_end = {t: len(read) - 1 - k for k, t in enumerate(read)}
        score = torch.einsum("hd,bhmd->bhm", self.query_base.float(), key.float()) / scale
        keys, values, filled = [], [], [p for p, span in enumerate(spans) if span]
        for span in (spans[p] for p in filled):
            at = torch.tensor(span, device=key.device)
            inside = score[..., at]
            if self.token_bias is not None:
                inside = (
                    inside
                    + self.token_bias.float()[[min(from_end[t], len(self.token_bias) - 1) for t in span]]
                )
            weight = inside.softmax(-1).to(key.dtype).unsqueeze(-2)  # (1, H, 1, m)
            keys.append(weight @ key[:, :, at])
            values.append(weight @ value[:, :, at])
        span_key, span_value = torch.cat(keys, 2), torch.cat(values, 2)  # (1, H, P, D)
        across = torch.einsum("hd,bhpd->bhp", self.query_layer.float(), span_key.float()) / scale
        if self.span_bias is not None:
            across = (
                across
                + self.span_bias.float()[[min(filled[-1] - p, len(self.span_bias) - 1) for p in filled]]
            )
        weight = across.softmax(-1).to(key.dtype).unsqueeze(-2)
        return weight @ span_key, weight @ span_value

    def forward(
        self, sharer_key: Tensor, sharer_value: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with a pooled (1, H_s, 1, D_s)."""
        n = key.shape[2]
        return super().forward(
            sharer_key.expand(-1, -1, n, -1), sharer_value.expand(-1, -1, n, -1), key, value
        )


class C2CHalf(nn.Module):
    """C2C's fuser for K, or for V, of one layer."""

    def __init__(self, stack: Adapter, i: int, kv: int) -> None:
        super().__init__()
        self.heads = stack.config.receiver_geometry.kv_heads
        self.inp = dense(stack.in_weight[i, kv], stack.in_bias[i, kv])
        cut = lambda block: Block(block.norm[i, kv], block.up[i, kv], block.down[i, kv])  # noqa: E731
        self.trunk, self.scale, self.delta = (
            cut(stack.trunk),
            cut(stack.scale),
            nn.Sequential(*(cut(b) for b in stack.delta)),
        )
        self.head, self.out = (
            dense(stack.head_weight[i, kv], stack.head_bias[i, kv]),
            dense(stack.out_weight[i, kv], stack.out_bias[i, kv]),
        )
        self.gate = float(stack.gates(())[kv].flatten()[i])

    def forward(self, sharer: Tensor, own: Tensor) -> Tensor:
        u = self.trunk(self.inp(torch.cat([flat(sharer), flat(own)], -1)))
        alpha = torch.sigmoid(self.head(self.scale(u))).transpose(1, 2).unsqueeze(-1)  # (B, H, N, 1)
        return own + self.gate * alpha * heads(self.out(self.delta(u)), self.heads)


class C2CLayer(nn.Module):
    """One layer of C2C: K and V fully apart."""

    def __init__(self, stack: Adapter, i: int) -> None:
        super().__init__()
        self.key, self.value = C2CHalf(stack, i, 0), C2CHalf(stack, i, 1)

    def forward(
        self, sharer_key: Tensor, sharer_value: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Edited key and value (B, H, N, D)."""
        return self.key(sharer_key, key), self.value(sharer_value, value)


def layers_of(adapter: Adapter, dtype: torch.dtype) -> nn.ModuleList:
    """A module for every layer of a stacked adapter, computing in `dtype`."""
    kinds = {"lcf": LCFLayer, "lcfx": PooledLCFLayer, "c2c": C2CLayer}
    kind = kinds[adapter.config.kind]
    made = nn.ModuleList(kind(adapter, i) for i in range(len(adapter.config.layers))).eval()
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)  # not the buffers: input statistics stay in fp32
    return made

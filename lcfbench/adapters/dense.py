"""Dense alignment: the sharer's cache translated, token by token, into the receiver's own.

arXiv 2606.13594. The adapter reads content keys (rotary positions taken out) and values of 1 to 3
neighbouring sharer layers, standardised and clamped, and writes content keys and values of one
receiver layer. `mlp` is the paper's map; `linear` has a closed form (ridge regression), and its
rank sets the size of adapter and message; a small residual MLP on top learns the rest.

>>> options = {"form": "linear", "rank": 32, "residual": 32}
>>> adapter = build(pair_config("dense", receiver, sharer, options=options))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from lcfbench.adapters._layers import gated, linear, rms_norm, stacked, standard
from lcfbench.adapters.base import Adapter, GateMode
from lcfbench.adapters.config import AdapterConfig, Size, SizeOrZero
from lcfbench.errors import UserError

CLAMP = 8.0  # standardised inputs beyond this are outliers of the frozen models, not content
MOST_SOURCES = 3


class DenseAdapter(Adapter):
    """Translates entries; the method decides how they reach the receiver.

    form: `mlp` has for each receiver KV head one MLP for K and one for V, which reads that head
    group's keys or values of the sharer, hidden width `multiple` × the receiver's head dim (where
    head counts differ, groups are taken in proportion; the paper has equal ones). `linear` has one
    matrix a layer from all of K|V to all of K|V; with `rank` r > 0 two factors, and a message of r
    numbers a token and layer.
    sources: sharer layers that each receiver layer reads, around `config.layer_map`.
    residual: width of the residual MLP, 0 for none.
    last: on different contexts only the last so many tokens of the sharer's text are sent; 0: all.
    blend: for a token that the receiver has read too: `add` (the paper) is own + g·translated,
    `mix` is own + g·(translated − own). gate, gate_init: see `Adapter`; g acts in this blend only.
    aware_share: share of training batches of shared documents in which the receiver reads too; in
    the others it sees only the translation.
    reconstruction: the first fit of the translation to the receiver's own cache of the same text:
    `ridge` (closed form, `linear` only) on `ridge_tokens` tokens with `ridge_alpha`·N on the
    diagonal, `gradient` for `reconstruction_steps` steps of AdamW at `reconstruction_lr`, or `none`
    (only input and output statistics are measured).
    """

    title = "dense-alignment"
    # translation in closed form, then a small residual: 2 million parameters for the default pair
    small_scale: ClassVar[Mapping[str, Any]] = {
        "form": "linear",
        "rank": 48,
        "residual": 32,
        "reconstruction": "ridge",
        "ridge_tokens": 8_000,
        "blend": "mix",
        "gate": "soft",
        "gate_init": 0.0,
    }
    input_mean: Tensor
    input_scale: Tensor
    output_mean: Tensor
    output_scale: Tensor
    default_gate_init = -2.0  # adding to what was read starts as a small edit; the paper leaves it open

    def __init__(
        self,
        config: AdapterConfig,
        form: Literal["mlp", "linear"] = "mlp",
        multiple: Size = 16,
        sources: Size = 1,
        rank: SizeOrZero = 0,
        residual: SizeOrZero = 0,
        last: SizeOrZero = 0,
        blend: Literal["add", "mix"] = "add",
        aware_share: float = 0.5,
        reconstruction: Literal["gradient", "ridge", "none"] = "gradient",
        ridge_tokens: Annotated[int, Ge(1)] = 20_000,
        ridge_alpha: float = 1e-2,
        reconstruction_steps: Annotated[int, Ge(1)] = 300,
        reconstruction_lr: float = 1e-3,
        gate: GateMode = "soft",
        gate_init: float | None = None,
    ) -> None:
        super().__init__(config, gate, gate_init)
        L, R, S = len(config.layers), config.receiver_geometry, config.sharer_geometry
        _check(form, rank, reconstruction, sources, S.layers)
        self.form, self.multiple, self.sources = form, multiple, sources
        self.rank, self.residual, self.last = rank, residual, last
        self.blend_as, self.aware_share, self.reconstruction = blend, aware_share, reconstruction
        self.ridge_tokens, self.ridge_alpha = ridge_tokens, ridge_alpha
        self.reconstruction_steps, self.reconstruction_lr = reconstruction_steps, reconstruction_lr
        self.width_in, self.width_out = sources * 2 * S.kv_width, 2 * R.kv_width
        for name, size in (("input", self.width_in), ("output", self.width_out)):
            self.register_buffer(f"{name}_mean", torch.zeros(L, 1, size))
            self.register_buffer(f"{name}_scale", torch.ones(L, 1, size))
        if form == "mlp":
            groups, fan_in = 2 * R.kv_heads, sources * self.group_heads * S.head_dim
            hidden = multiple * R.head_dim
            self.mlp_in, self.mlp_out = (
                stacked(L * groups, fan_in, hidden),
                stacked(L * groups, hidden, R.head_dim),
            )
            self.mlp_in.data = self.mlp_in.data.view(L, groups, fan_in, hidden)
            self.mlp_out.data = self.mlp_out.data.view(L, groups, hidden, R.head_dim)
            self.mlp_in_bias = nn.Parameter(torch.zeros(L, groups, 1, hidden))
            self.mlp_out_bias = nn.Parameter(torch.zeros(L, groups, 1, R.head_dim))
        elif rank:
            self.down, self.up = stacked(L, self.width_in, rank), stacked(L, rank, self.width_out)
        else:
            self.weight = stacked(L, self.width_in, self.width_out)
        if residual:
            d = residual
            self.residual_down = stacked(L, self.code, d)
            self.residual_down_bias = nn.Parameter(torch.zeros(L, 1, d))
            self.residual_norm = nn.Parameter(torch.ones(L, 1, d))
            self.residual_in, self.residual_out = stacked(L, d, 4 * d), stacked(L, 4 * d, d)
            self.residual_up = stacked(L, d, self.width_out, zero=True)
            self.residual_up_bias = nn.Parameter(torch.zeros(L, 1, self.width_out))

    @property
    def code(self) -> int:
        """Numbers a token and layer that `message` makes."""
        return self.rank or self.width_in

    @property
    def group_heads(self) -> int:
        """Sharer KV heads that one receiver head reads (`mlp`)."""
        return -(-self.config.sharer_geometry.kv_heads // self.config.receiver_geometry.kv_heads)

    @property
    def windows(self) -> list[list[int]]:
        """The adjacent sharer layers that each stack entry reads, around its `layer_map`."""
        last = self.config.sharer_geometry.layers - self.sources  # at the ends windows move inwards
        starts = [min(max(s - (self.sources - 1) // 2, 0), last) for s in self.config.layer_map]
        return [list(range(a, a + self.sources)) for a in starts]

    def window(self, entries: Tensor) -> Tensor:
        """Returns the input of each stack entry (L, T, sources·s), from all layers (S, T, s)."""
        index = torch.tensor(self.windows, device=entries.device)  # (L, sources)
        L, T = index.shape[0], entries.shape[1]
        return entries[index].transpose(1, 2).reshape(L, T, self.width_in)

    def standard(self, x: Tensor) -> Tensor:
        """Returns standardised and clamped inputs, in the dtype of x."""
        return standard(x, self.input_mean, self.input_scale, CLAMP)

    def message(self, sharer: Tensor) -> Tensor:
        """Returns the code (L, T, r) of content entries; without rank, the entries standardised."""
        x = self.standard(sharer)
        return linear(x, self.down) if self.rank else x

    def forward(self, message: Tensor) -> tuple[Tensor, Tensor]:
        """Returns content keys and values (L, B, H, N, D) from a message (L, B, N, ·)."""
        L, B, N, _ = message.shape
        R = self.config.receiver_geometry
        x = message.reshape(L, B * N, -1)
        out = self._mlp(x) if self.form == "mlp" else linear(x, self.up if self.rank else self.weight)
        if self.residual:
            z = linear(x, self.residual_down, self.residual_down_bias)
            inner = F.gelu(linear(rms_norm(z, self.residual_norm), self.residual_in))
            z = z + linear(inner, self.residual_out)
            out = out + linear(z, self.residual_up, self.residual_up_bias)
        out = (out.float() * self.output_scale + self.output_mean).to(message.dtype)
        out = out.view(L, B, N, 2, R.kv_heads, R.head_dim).permute(3, 0, 1, 4, 2, 5)
        return out[0], out[1]

    def _mlp(self, x: Tensor) -> Tensor:
        L, T, _ = x.shape
        R, S, n = self.config.receiver_geometry, self.config.sharer_geometry, self.group_heads
        first = [min(h * S.kv_heads // R.kv_heads, S.kv_heads - n) for h in range(R.kv_heads)]
        heads = torch.tensor([list(range(a, a + n)) for a in first], device=x.device)  # (H, n)
        split = x.view(L, T, self.sources, 2, S.kv_heads, S.head_dim)
        split = split[:, :, :, :, heads]  # (L, T, sources, 2, H, n, D_s)
        read = split.permute(0, 3, 4, 1, 2, 5, 6).reshape(L, 2 * R.kv_heads, T, -1)
        hidden = F.gelu(read @ self.mlp_in.to(x.dtype) + self.mlp_in_bias.to(x.dtype))
        out = hidden @ self.mlp_out.to(x.dtype) + self.mlp_out_bias.to(x.dtype)  # (L, 2H, T, D)
        return out.transpose(1, 2).reshape(L, T, self.width_out)

    def blend(self, own_k: Tensor, own_v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Blends own entries with translated ones, all (L, B, H, N, D), keys rotated alike.

        Where a gate is shut the own entries stay bit for bit.
        """
        gate_k, gate_v = self.gates((own_k.shape[1], own_k.shape[2], own_k.shape[3], 1))
        if self.blend_as == "mix":
            keys, values = keys - own_k, values - own_v
        return gated(own_k, gate_k, keys), gated(own_v, gate_v, values)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the least bytes of: code, translated entries, sharer layers that are read."""
        a_token = min(self.code, self.width_out) * len(self.config.layers)
        return min(a_token * fused_tokens * itemsize, self.cache_bytes(sharer_tokens, itemsize))

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        layers = {s for window in self.windows for s in window}
        return sum(map(self.config.sharer_geometry.numbers, layers)) * sharer_tokens * itemsize


def _check(form: str, rank: int, reconstruction: str, sources: int, sharer_layers: int) -> None:
    """Raises UserError for settings that do not go together."""
    if not 1 <= sources <= min(MOST_SOURCES, sharer_layers):
        raise UserError(
            f"sources={sources} of a sharer with {sharer_layers} layers.",
            f"Give 1 to {min(MOST_SOURCES, sharer_layers)}.",
        )
    if form == "mlp" and rank:
        raise UserError(f"rank={rank} belongs to form=linear.", "Add -o form=linear, or leave the rank out.")
    if form == "mlp" and reconstruction == "ridge":
        raise UserError(
            "reconstruction=ridge belongs to form=linear.",
            "Use -o form=linear or -o reconstruction=gradient.",
        )

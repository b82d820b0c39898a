"""XKV: slots of both caches are one memory that every receiver position reads (arXiv 2608.20617).

k learned queries a layer and head pool the sharer's cache, and k others the receiver's own. Each pooled
slot, standardised, goes down to `width` numbers; those of the sharer are the message. The slots of all
layers of both models are one memory. A position of receiver layer l asks it with its own entry:

    weights = softmax(query · slots / √width + log softmax(map_l)),  entry += g · up_l(weights · slots)

map_l is learned, one number for each layer of either model; it starts at the layer that the pair's
layer map names and at l itself. up starts at zero, so an untrained adapter leaves the receiver as it is.

The paper publishes 4.55 M parameters and no code. With L receiver layers of R numbers (K and V of all
heads), S sharer layers of Q numbers, k slots and width d there are here

    k·(L·R + S·Q)/2 + (L·R + S·Q)·d + (L + S)·k·d + 2·L·R·d + L·(L + S) + 8·d² + d + 2·L

(queries, down, slot embeddings, query and up, map, the slots' FFN, gates): 4.55 M for Qwen3-0.6B with
Qwen2.5-0.5B at the defaults k = 8, d = 24. Open there, and so a choice of ours: the pair of that number, k,
d, the form of the map, the FFN, the keys' form (here without rotary positions on both sides, and an edit of
keys turned to the entry's position), and the statistics with which inputs are standardised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lcfbench.adapters._layers import WHOLE, ffn, joined, linear, part, rms_norm, stacked, standard
from lcfbench.adapters._pool import last_first, pooled
from lcfbench.adapters.base import CACHED_NUMBERS, Adapter, GateMode, build
from lcfbench.adapters.config import AdapterConfig, Size
from lcfbench.adapters.lcf import CLAMP

START = 4.0  # of a layer's map at the two layers it begins with
Side = Literal["sharer", "receiver"]
SIDES: tuple[Side, Side] = ("sharer", "receiver")


class XKVAdapter(Adapter):
    """Pools both caches, and edits each receiver entry with what it retrieves from the slots.

    slots: k, of each layer and model. width: numbers of a slot. pool_start: "last" starts slot t on the
    t-th last token by a learned bias over the distance from the end; "random" has queries alone.
    standardise: see `calibrate`. gate, gate_init: see `Adapter`.
    """

    title = "XKV"
    small_scale: ClassVar[Mapping[str, Any]] = {"width": 64, "pool_start": "last"}
    default_gate_init = 1.0

    def __init__(
        self,
        config: AdapterConfig,
        slots: Size = 8,
        width: Size = 24,
        pool_start: Literal["random", "last"] = "random",
        standardise: bool = True,
        gate: GateMode = "soft",
        gate_init: float | None = None,
    ) -> None:
        super().__init__(config, gate, gate_init)
        L, k, d = len(config.layers), slots, width
        R, S = config.receiver_geometry, config.sharer_geometry
        self.slots, self.width, self.pool_start, self.standardise = k, d, pool_start, standardise
        self.heads, self.dim, self.depths = R.kv_heads, R.head_dim, (S.layers, R.layers)
        scale = 0.1 if pool_start == "last" else 1.0
        for side, shape in zip(SIDES, (S, R), strict=True):
            n, s = shape.layers, 2 * shape.kv_width
            query = scale * torch.randn(n, shape.kv_heads, k, shape.head_dim)
            self.register_parameter(f"query_{side}", nn.Parameter(query))
            if pool_start == "last":
                self.register_parameter(f"bias_{side}", nn.Parameter(last_first(n, k)))
            self.register_parameter(f"down_{side}", stacked(n, s, d))
            self.register_parameter(f"slot_{side}", nn.Parameter(0.3 * torch.randn(n, k, d)))
            if standardise:
                self.register_buffer(f"mean_{side}", torch.zeros(n, 1, s))
                self.register_buffer(f"deviation_{side}", torch.ones(n, 1, s))
        self.norm = nn.Parameter(torch.ones(1, 1, d))
        self.ffn_in, self.ffn_out = stacked(1, d, 4 * d), stacked(1, 4 * d, d)
        start = torch.zeros(L, 1, S.layers + R.layers)
        start[range(L), 0, list(config.layer_map)] = START
        start[range(L), 0, [S.layers + layer for layer in config.layers]] = START
        self.map = nn.Parameter(start)
        self.ask = stacked(L, 2 * R.kv_width, d)
        if standardise:
            self.register_buffer("mean_own", torch.zeros(L, 1, 2 * R.kv_width))
            self.register_buffer("deviation_own", torch.ones(L, 1, 2 * R.kv_width))
        self.up = stacked(L, d, 2 * R.kv_width, zero=True)

    def pool(self, keys: Tensor, values: Tensor, mask: Tensor, side: Side) -> Tensor:
        """Pools the cache of a side, (l, B, H, M, D) under mask (B, M), into slots (l, B, k, s)."""
        bias = self.tensor("bias", side) if self.pool_start == "last" else None
        return pooled(self.tensor("query", side), bias, keys, values, mask)

    def message(self, sharer: Tensor, side: Side = "sharer") -> Tensor:
        """Returns slots (l, B, k, d) of pooled slots (l, B, k, s); those of the sharer are the message."""
        x = self.standardised(sharer.flatten(1, 2), side)
        return linear(x, self.tensor("down", side)).unflatten(1, sharer.shape[1:3])

    def memory(self, sent: Tensor, own: Tensor) -> Tensor:
        """Joins the slots (l, B, k, d) of both models, the sharer's first, into a memory (B, N, d)."""
        both = zip(SIDES, (sent, own), strict=True)
        told = [x + self.tensor("slot", side).to(x.dtype)[:, None] for side, x in both]
        z = torch.cat([x.transpose(0, 1).flatten(1, 2) for x in told], 1)  # (B, N, d)
        z = ffn(z.reshape(1, -1, self.width), self.norm, self.ffn_in, self.ffn_out).view(z.shape)
        return rms_norm(z, self.norm.new_ones(1))

    def forward(
        self, memory: Tensor, keys: Tensor, values: Tensor, at: slice = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """Returns edits of content keys and values (l, B, H, N, D) of the stack entries `at`."""
        L, B, H, N, D = keys.shape
        x = self.standardised(joined(keys, values), "own", at)
        query = linear(x, part(self.ask, at)).view(L, B, N, self.width)
        score = (query @ memory.transpose(1, 2)).float() / math.sqrt(self.width)
        layer = part(self.map, at).float().log_softmax(-1).repeat_interleave(self.slots, -1)
        found = (score + layer[:, None]).softmax(-1).to(memory.dtype) @ memory
        edit = linear(found.flatten(1, 2), part(self.up, at)).view(L, B, N, 2, H, D).permute(3, 0, 1, 4, 2, 5)
        return edit[0], edit[1]

    def pieces(self, tokens: int) -> list[slice]:
        """Returns the slices of the stack to be computed one after another, for so many tokens."""
        layers = len(self.config.layers)
        if torch.is_grad_enabled() or self.gate_logit.device.type != "cpu":
            return [slice(0, layers)]
        widest = max(2 * self.heads * self.dim, sum(self.depths) * self.slots)
        size = max(1, CACHED_NUMBERS // max(tokens * widest, 1))
        return [slice(start, min(start + size, layers)) for start in range(0, layers, size)]

    def tensor(self, name: str, side: str) -> Tensor:
        """Returns a parameter or buffer of a side."""
        found: Tensor = getattr(self, f"{name}_{side}")
        return found

    def standardised(self, x: Tensor, name: str, at: slice = WHOLE) -> Tensor:
        """Returns inputs (l, T, s) with the statistics of `name`."""
        if not self.standardise:
            return x
        mean, deviation = (part(self.tensor(what, name), at) for what in ("mean", "deviation"))
        return standard(x, mean, deviation, CLAMP)

    def calibrate(self, name: Literal["sharer", "receiver", "own"], x: Tensor) -> None:
        """Sets the statistics of an input from examples (l, T, s): pooled slots, or entries (`own`)."""
        if not self.standardise:
            return
        wide = x.float()
        floor = 1e-2 * wide.abs().mean((1, 2), keepdim=True) + 1e-6
        self.tensor("mean", name).copy_(wide.mean(1, keepdim=True))
        self.tensor("deviation", name).copy_(wide.std(1, correction=0, keepdim=True) + floor)

    def select(self, keep: list[int]) -> Adapter:
        """Returns a copy that edits only the stack entries `keep`; the memory stays whole."""
        chosen = {
            name: tuple(getattr(self.config, name)[i] for i in keep) for name in ("layers", "layer_map")
        }
        with torch.device("meta"):
            shorter = build(self.config.model_copy(update=chosen))
        index = torch.tensor(keep, dtype=torch.long, device=self.gate_logit.device)
        layered = {"gate_logit", "map", "ask", "up", "mean_own", "deviation_own"}
        state = {n: t.index_select(0, index) if n in layered else t for n, t in self.state_dict().items()}
        shorter.load_state_dict(state, assign=True)
        for mine, whole in zip(shorter.parameters(), self.parameters(), strict=True):
            mine.requires_grad_(whole.requires_grad)
        shorter.temperature = self.temperature
        return shorter.train(self.training)

    def flops(self, positions: int) -> float:
        """Counts the slots of both sides, and retrieval and heads at so many edited positions."""
        k, d, memory = self.slots, self.width, sum(self.depths) * self.slots
        slots = sum(self.tensor("down", side).numel() for side in SIDES) * k + 8 * d * d * memory
        pool = 3 * self.tensor("query", "receiver").numel() * positions
        each = self.ask.numel() + self.up.numel() + 2 * len(self.config.layers) * memory * d
        return 2.0 * (slots + pool + each * positions)

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the bytes of the sharer's slots: k of `width` numbers for each of its layers."""
        return self.depths[0] * self.slots * self.width * itemsize

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        """Returns the bytes of the sharer's cache, all layers of which are read."""
        shape = self.config.sharer_geometry
        return sum(map(shape.numbers, range(shape.layers))) * sharer_tokens * itemsize

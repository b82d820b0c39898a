"""Hub codecs: an encoder into and a decoder out of one shared space a model (LSC, arXiv 2601.06123).

A pair takes the sharer's encoder and the receiver's decoder, so N models need N codecs. A token's code is
`width` numbers, made of the keys (without rotary positions) and values of all of a model's layers:

    code = Σ_l standardised_l · encode_l,   entry_l = base_l + scale_l · (code · decode_l)

The paper's own form of encoder and decoder is open to us; both are linear here, and start in closed form.
A hub is a folder with one file a model, named by the digest of the model's revision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lcfbench.adapters._layers import stacked, standard
from lcfbench.adapters.base import Adapter
from lcfbench.adapters.config import AdapterConfig, Size
from lcfbench.adapters.files import check_numbers
from lcfbench.errors import UserError
from lcfbench.files import replacing
from lcfbench.provenance import digest

CLAMP = 8.0  # deviations beyond which an input is cut
PENALTY = 1e-2  # of the closed form, times the mean square of an input
FORMAT = "lcfbench-codec-1"
Side = Literal["sharer", "receiver"]
SIDES: tuple[Side, Side] = ("sharer", "receiver")
ENCODER, DECODER = ("encode", "mean", "deviation"), ("decode", "base", "scale")


class CodecAdapter(Adapter):
    """Two codecs, or the halves of them that a pair needs.

    width: numbers a token in the shared space. whole: both codecs whole, as they are trained; without it
    the sharer's encoder and the receiver's decoder alone, as `lcfbench adapter compose` makes it. There
    are no gates.
    """

    title = "hub codec"
    own_method = "hub"
    small_scale: ClassVar[Mapping[str, Any]] = {"width": 256}

    def __init__(self, config: AdapterConfig, width: Size = 1024, whole: bool = True) -> None:
        super().__init__(config, "hard", 1.0)
        del self.gate_logit
        self.gate_logit = torch.ones(len(config.layers), 2, device="cpu")  # type: ignore[assignment]
        R = config.receiver_geometry
        if config.layers != tuple(range(R.layers)):
            raise UserError(
                f"a hub codec writes all {R.layers} receiver layers, not {len(config.layers)}.",
                "Take a smaller width instead (-o width=128).",
            )
        self.width, self.whole = width, whole
        for side, shape in zip(SIDES, (config.sharer_geometry, R), strict=True):
            n, s = shape.layers, 2 * shape.kv_width
            if whole or side == "sharer":
                weight = nn.Parameter(stacked(n, s, width).data / n**0.5)
                self.register_parameter(f"{side}_encode", weight)
                self.register_buffer(f"{side}_mean", torch.zeros(n, 1, s))
                self.register_buffer(f"{side}_deviation", torch.ones(n, 1, s))
            if whole or side == "receiver":
                self.register_parameter(f"{side}_decode", stacked(n, width, s))
                self.register_parameter(f"{side}_base", nn.Parameter(torch.zeros(n, 1, s)))
                self.register_buffer(f"{side}_scale", torch.ones(n, 1, s))

    def part(self, side: str, name: str) -> Tensor:
        """Returns a parameter or buffer of a side's codec."""
        found: Tensor = getattr(self, f"{side}_{name}")
        return found

    def codec(self, side: str) -> dict[str, Tensor]:
        """Returns what there is of a side's codec, by the names of its parts."""
        return {n: self.part(side, n) for n in (*ENCODER, *DECODER) if hasattr(self, f"{side}_{n}")}

    def message(self, sharer: Tensor, side: str = "sharer") -> Tensor:
        """Returns codes (T, U) of the entries (n, T, s) of all layers of a model, K and V flattened."""
        x = self.standardised(sharer, side)
        return x.transpose(0, 1).flatten(1) @ self.part(side, "encode").flatten(0, 1).to(x.dtype)

    def standardised(self, entries: Tensor, side: str) -> Tensor:
        return standard(entries, self.part(side, "mean"), self.part(side, "deviation"), CLAMP)

    def forward(self, codes: Tensor, side: str = "receiver") -> Tensor:
        """Returns entries (n, T, s) of all layers of a model from codes (T, U)."""
        decode, base, scale = (self.part(side, name).to(codes.dtype) for name in DECODER)
        return base + scale * (codes @ decode)

    def open_layers(self) -> list[int]:
        return list(range(len(self.config.layers)))

    def select(self, keep: list[int]) -> Adapter:
        raise UserError(
            "a hub codec has no gates to prune it by.", "Train one of a smaller width: -o width=128."
        )

    # -- the closed form --------------------------------------------------------------------------

    @torch.no_grad()
    def start_space(self, side: str, entries: Tensor) -> None:
        """Makes a side's principal components the shared space, from its entries (n, T, s)."""
        self._measure(side, entries)
        x = self.standardised(entries.float(), side).transpose(0, 1).flatten(1)
        square, vectors = torch.linalg.eigh(x @ x.T)
        square, vectors = square.flip(0)[: self.width].clamp(min=0), vectors.flip(1)[:, : self.width]
        kept = square > 1e-6 * square[0]
        weight = x.T @ (vectors[:, kept] / square[kept].sqrt())
        weight = weight / (square[kept].mean() / len(x)).sqrt()  # codes with variance about 1
        whole = torch.zeros(x.shape[1], self.width, device=x.device)
        whole[:, : weight.shape[1]] = weight
        self.part(side, "encode").copy_(whole.view_as(self.part(side, "encode")))
        self._fit_decoder(side, self.message(entries.float(), side), entries)

    @torch.no_grad()
    def join_space(self, side: str, entries: Tensor, codes: Tensor) -> None:
        """Fits a side's codec to codes (T, U) of another model, at its own entries (n, T, s)."""
        self._measure(side, entries)
        x = self.standardised(entries.float(), side).transpose(0, 1).flatten(1)
        self.part(side, "encode").copy_(ridge(x, codes.float()).view_as(self.part(side, "encode")))
        self._fit_decoder(side, codes.float(), entries)

    def _measure(self, side: str, entries: Tensor) -> None:
        x = entries.float()
        mean, deviation = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
        floor = 1e-2 * x.abs().mean((1, 2), keepdim=True) + 1e-6
        for name, value in (("mean", mean), ("base", mean), ("deviation", deviation + floor)):
            self.part(side, name).copy_(value)
        self.part(side, "scale").copy_(deviation)

    def _fit_decoder(self, side: str, codes: Tensor, entries: Tensor) -> None:
        scale = self.part(side, "scale").clamp(min=1e-6)
        y = ((entries.float() - self.part(side, "base")) / scale).clamp(-CLAMP, CLAMP)
        weight = ridge(codes, y.transpose(0, 1).flatten(1))  # (U, n·s)
        self.part(side, "decode").copy_(weight.unflatten(1, (len(entries), -1)).transpose(0, 1))

    # -- sizes ------------------------------------------------------------------------------------

    def flops(self, positions: int) -> float:
        """Counts the sharer's encoder and the receiver's decoder at so many tokens."""
        weights = self.part("sharer", "encode").numel() + self.part("receiver", "decode").numel()
        return 2.0 * weights * positions

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Returns the bytes of a code of `width` numbers a token."""
        return fused_tokens * self.width * itemsize

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        """Returns the bytes of the sharer's cache, all layers of which are read."""
        shape = self.config.sharer_geometry
        return sum(map(shape.numbers, range(shape.layers))) * sharer_tokens * itemsize


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Returns weights (p, q), x (N, p) · weights ≈ y (N, q), through the smaller Gram matrix."""
    N, p = x.shape
    penalty = PENALTY * float(x.square().mean()) * max(N, p) + 1e-12
    if p <= N:
        return torch.linalg.solve(x.T @ x + penalty * torch.eye(p, device=x.device), x.T @ y)
    return x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(N, device=x.device), y)


# -- a hub's files --------------------------------------------------------------------------------


def codec_file(hub: Path, revision: str) -> Path:
    """Returns where a hub keeps the codec of a model, by its revision."""
    return hub / f"{digest(revision)[:16]}.safetensors"


def save_codec(adapter: CodecAdapter, side: Side, file: Path, model: str, revision: str) -> None:
    """Writes a side's whole codec as a file of its hub; matrices in bfloat16, statistics in float32."""
    matrices = {"encode", "decode", "base"}
    tensors = {
        name: t.detach().cpu().to(torch.bfloat16 if name in matrices else torch.float32).contiguous()
        for name, t in adapter.codec(side).items()
    }
    facts = {"model": model, "revision": revision, "width": str(adapter.width), "format": FORMAT}
    with replacing(file.parent, {file.name}) as made:
        save_file(tensors, made / file.name, metadata={"codec": json.dumps(facts, sort_keys=True)})
        (made / file.name).chmod(0o644)


def read_codec(file: Path) -> tuple[dict[str, Tensor], int]:
    """Returns the parts of a codec and its width. Raises UserError for a damaged file."""
    mend = "Train this model's codec into the hub again."
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("codec", "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        width = int(facts["width"]) if facts["format"] == FORMAT else 0
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no codec of this version.", mend) from error
    if set(tensors) != {*ENCODER, *DECODER} or width < 1:
        raise UserError(f"{file} is no whole codec of this version.", mend)
    check_numbers(tensors, str(file))
    return tensors, width


@torch.no_grad()
def put_codec(adapter: CodecAdapter, side: Side, file: Path) -> None:
    """Copies a hub's codec into a side of an adapter. Raises UserError where it does not fit."""
    tensors, width = read_codec(file)
    if width != adapter.width:
        raise UserError(
            f"the codecs of {file.parent} have width {width}, this adapter {adapter.width}.",
            f"Train it with -o width={width}.",
        )
    for name, own in adapter.codec(side).items():
        if own.shape != tensors[name].shape:
            raise UserError(
                f"{file} was made for a model of other layers than this {side}.",
                "Train this model's codec into the hub again.",
            )
        own.copy_(tensors[name])

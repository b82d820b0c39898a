"""What every trainable adapter shares: a config that says what it fits, stacked weights, gates, saving and loading.

An adapter is a folder: `adapter.safetensors`, `config.json`, `README.md` (the card). Weights have a leading layer dimension; entry `i` of
the stack edits receiver layer `config.layers[i]` from sharer layer `config.layer_map[i]`. One kind of adapter is one file of this folder
with a class `Fuser`, found by its name.

>>> adapter = load(Path("my-adapter"), device="cpu", dtype=torch.bfloat16)
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from lcfbench.errors import UserError
from lcfbench.geometry import Geometry

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
GateMode = Literal["gumbel", "soft", "hard"]


class AdapterConfig(BaseModel):
    """All that is needed to rebuild an adapter without its weights.

    kind: the file of this folder. layers: receiver layers that are edited, in stack order. layer_map: the sharer layer each of them reads;
    stored, never recomputed. token_alignment: `span`, `remap` (with its strategy) or `same`, see `lcfbench.alignment`.
    options: the kind's own settings. training: how it was made (free form, for the card).
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    kind: str
    receiver: str
    sharer: str
    receiver_geometry: Geometry
    sharer_geometry: Geometry
    layers: tuple[int, ...]
    layer_map: tuple[int, ...]
    token_alignment: Literal["span", "remap", "same"] = "span"
    remap_strategy: Literal["longest", "first"] = "longest"
    options: dict[str, Any] = {}
    training: dict[str, Any] = {}

    def check_fits(self, receiver: Geometry, sharer: Geometry, where: str) -> None:
        """Raises UserError naming every dim in which the pair at hand differs from the one this adapter was made for."""
        wrong = self.receiver_geometry.differences(receiver, "receiver") + self.sharer_geometry.differences(sharer, "sharer")
        if wrong:
            raise UserError(
                f"adapter {where} was made for {self.receiver}:{self.sharer} and does not fit this pair: {'; '.join(wrong)}.",
                f"Run it with --pair {self.receiver}:{self.sharer}, or train one for this pair.",
            )


class Adapter(nn.Module):
    """Base of all kinds. Parameters and buffers that belong to layers have the layer as their first dimension.

    Every kind has `gate_logit` (L, 2), one for K and one for V: `g = 1[logit > 0]` at inference; in training as `gate` says:
    "gumbel" sigmoid((logit + G)/τ) (C2C), "soft" sigmoid(logit), "hard" as at inference. `gate="soft"` holds at inference too.
    """

    default_gate_init: ClassVar[float] = 0.0

    def __init__(self, config: AdapterConfig, gate: GateMode = "gumbel", gate_init: float | None = None) -> None:
        super().__init__()
        self.config, self.gate_mode = config, gate
        init = self.default_gate_init if gate_init is None else gate_init
        self.gate_logit = nn.Parameter(torch.full((len(config.layers), 2), float(init)))
        self.temperature = 1.0

    def anneal(self, step: int, steps: int = 1929, first: float = 1.0, last: float = 0.001) -> None:
        """Gumbel temperature at a training step: `first · (last/first)^(min(step/steps, 1))` (C2C's schedule)."""
        self.temperature = first * (last / first) ** min(step / steps, 1.0)

    def gates(self, shape: tuple[int, ...], noise: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Gate of K and of V, broadcastable to `(L,) + shape`; `noise` are the uniform draws of that shape, for tests."""
        layers = self.gate_logit.shape[0]
        flat = (layers,) + (1,) * len(shape)
        out = []
        for i in (0, 1):
            logit = self.gate_logit[:, i].view(flat)
            if self.gate_mode == "soft":
                gate = torch.sigmoid(logit)
            elif self.training and self.gate_mode == "gumbel":
                uniform = noise[i] if noise is not None else torch.rand((layers, *shape), device=logit.device)
                gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
                gate = torch.sigmoid((logit + gumbel) / self.temperature)
            else:
                gate = (logit > 0).to(logit.dtype)
            out.append(gate)
        return out[0], out[1]

    def open_layers(self) -> list[int]:
        """Stack indices whose K or V gate is open: the others cannot change anything at inference."""
        if self.gate_mode == "soft":
            return list(range(len(self.config.layers)))
        return (self.gate_logit > 0).any(1).nonzero()[:, 0].tolist()

    def select(self, keep: list[int]) -> Adapter:
        """A copy that holds only the stack entries `keep`: a pruned adapter is a shorter stack and its layer list."""
        config = self.config.model_copy(
            update={
                "layers": tuple(self.config.layers[i] for i in keep),
                "layer_map": tuple(self.config.layer_map[i] for i in keep),
            }
        )
        with torch.device("meta"):
            shorter = build(config)
        index = torch.tensor(keep, dtype=torch.long, device=self.gate_logit.device)
        # assigned, not copied: every tensor keeps its dtype
        shorter.load_state_dict({name: t.index_select(0, index) for name, t in self.state_dict().items()}, assign=True)
        for mine, whole in zip(shorter.parameters(), self.parameters(), strict=True):
            mine.requires_grad_(whole.requires_grad)
        shorter.temperature = self.temperature
        return shorter.train(self.training)

    def message(self, sharer: Tensor) -> Tensor:
        """What crosses the wire: (L, T, ·) from the sharer's entries (L, T, s), K and V flattened."""
        raise NotImplementedError

    @property
    def params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def wire_bytes(self, sharer_tokens: int, fused_tokens: int, itemsize: int) -> int:
        """Bytes of the smallest tensor the receiver's side needs for one document (see protocol.md)."""
        return self.cache_bytes(sharer_tokens, itemsize)

    def cache_bytes(self, sharer_tokens: int, itemsize: int) -> int:
        """Bytes of the sharer's cache entries this adapter reads: K and V of the distinct sharer layers."""
        return len(set(self.config.layer_map)) * 2 * self.config.sharer_geometry.kv_width * sharer_tokens * itemsize


def stacked(layers: int, fan_in: int, fan_out: int, zero: bool = False) -> nn.Parameter:
    """Weights (L, in, out) with PyTorch's own linear initialisation, or zeros."""
    if zero:
        return nn.Parameter(torch.zeros(layers, fan_in, fan_out))
    return nn.Parameter(torch.empty(layers, fan_in, fan_out).uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One batched matmul for all layers: x (L, T, in) · weight (L, in, out) + bias (L, 1, out), in the dtype of x."""
    if bias is None:
        return torch.bmm(x, weight.to(x.dtype))
    return torch.baddbmm(bias.to(x.dtype), x, weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """RMSNorm over the last dim, a weight (L, 1, d) a layer, statistics in fp32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def kinds() -> list[str]:
    """Kinds of adapter: the files of this folder that are not helpers."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in {"__init__", "base", "import_c2c"})


def build(config: AdapterConfig) -> Adapter:
    """An untrained adapter; under `torch.device("meta")` it costs nothing and still counts its parameters."""
    if config.kind not in kinds():
        raise UserError(f"adapter of unknown kind {config.kind!r}.", f"This version knows {', '.join(kinds())}.")
    return importlib.import_module(f"lcfbench.adapters.{config.kind}").Fuser(config, **config.options)


def save(adapter: Adapter, folder: Path, card: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes weights, config and card. Raises UserError where the folder already holds an adapter."""
    from safetensors.torch import save_file

    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder} already holds an adapter.", "Name another --output, or pass --force.")
    folder.mkdir(parents=True, exist_ok=True)
    # statistics and gates decide, so they stay in fp32; matrices are what takes space
    tensors = {
        n: t.detach().cpu().to(dtype if t.dim() > 2 and n in dict(adapter.named_parameters()) else torch.float32).contiguous()
        for n, t in adapter.state_dict().items()
    }
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "lcfbench", "kind": adapter.config.kind})
    (folder / CONFIG).write_text(adapter.config.model_dump_json(indent=1) + "\n")
    (folder / CARD).write_text(card)
    partial.rename(folder / WEIGHTS)


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder; UserError for what is missing, broken or from a future version."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"{folder} holds no adapter ({CONFIG} is missing).",
            "Name a folder made by `lcfbench train`; see `lcfbench ls adapters`.",
        )
    try:
        raw = json.loads(path.read_text())
        if isinstance(raw, dict) and raw.get("format", 0) > FORMAT:
            raise UserError(f"{path} has format {raw['format']}; this version reads up to {FORMAT}.", "Upgrade lcfbench.")
        return AdapterConfig.model_validate(raw)
    except (json.JSONDecodeError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a valid adapter config ({str(error).splitlines()[0]}).", "Fetch or train it again."
        ) from error


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Adapter:
    """A saved adapter, ready for inference, strictly: a missing, extra or misshapen tensor is an error."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    with torch.device("meta"):
        adapter = build(config)
    try:
        tensors = load_file(folder / WEIGHTS)
        adapter.load_state_dict(tensors, strict=True, assign=True)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {WEIGHTS}.", "Fetch or train it again.") from error
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder / WEIGHTS} is truncated or does not match its config ({str(error).strip().splitlines()[-1].strip()}).",
            "Fetch or train it again.",
        ) from error
    parameters = dict(adapter.named_parameters())
    for name, tensor in adapter.state_dict().items():
        wide = name == "gate_logit" or name not in parameters
        tensor.data = tensor.data.to(device, torch.float32 if wide else dtype)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter.eval()


def weights_sha256(folder: Path) -> str:
    """sha256 of the weights file, by which a run names its adapter."""
    with (folder / WEIGHTS).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def pair_config(
    kind: str,
    receiver: tuple[str, Geometry],
    sharer: tuple[str, Geometry],
    *,
    layer_map: str = "terminal",
    token_alignment: str = "span",
    options: dict[str, Any] | None = None,
    layers: int | None = None,
) -> AdapterConfig:
    """The config of a fresh adapter for a pair. `layers` keeps only the last so many receiver layers (for sizes of pruned adapters)."""
    from lcfbench.alignment import layer_map as make_map

    L, S = receiver[1].layers, sharer[1].layers
    if layers is not None and not 0 < layers <= L:
        raise UserError(f"layers={layers} is outside 1..{L}.", "The receiver has that many layers.")
    first = 0 if layers is None else L - layers
    return AdapterConfig(
        kind=kind,
        receiver=receiver[0],
        sharer=sharer[0],
        receiver_geometry=receiver[1],
        sharer_geometry=sharer[1],
        layers=tuple(range(first, L)),
        layer_map=tuple(make_map(layer_map, L, S)[first:]),
        token_alignment=token_alignment,  # type: ignore[arg-type]
        options=options or {},
    )

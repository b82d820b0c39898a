"""Messages as bytes: one safetensors file a document, in the form that a run names.

The forms are `FORMS`. `native` keeps every number as the model has it, `bf16` rounds it to bfloat16. `fp8`
(E4M3), `int8` and `int4` divide by scales that stand in the file too, as float32: one a layer and channel
where the message has `MANY` or more vectors a layer, else one a layer. A scale is the largest absolute
value divided by the largest number of the form (448, 127, 7); int4 puts two numbers into a byte.

>>> data = pack({"keys": keys}, "int8"); unpack(data)["keys"]                    # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lcfbench.config import WireForm
from lcfbench.errors import UserError
from lcfbench.models.finite import NotFiniteError, finite

FORMS: tuple[str, ...] = get_args(WireForm)
MANY = 16  # vectors a layer from which each channel has a scale of its own
LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}
SCALE, SHAPE = ".scale", ".shape"
HEADER = 8  # bytes that give the length of a safetensors header


def pack(parts: Mapping[str, Tensor], form: WireForm) -> bytes:
    """Returns a message as the bytes of a safetensors file.

    parts: tensors (L, T, C) of numbers, which `form` rounds; of whole numbers any shape, kept as they
    are. Raises NotFiniteError for a number that no scale can hold, UserError for a form that this torch
    lacks.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, str] = {}
    for name, x in parts.items():
        x = x.detach().cpu()
        if not x.is_floating_point() or form == "native":
            tensors[name] = x.contiguous()
        elif form == "bf16":
            tensors[name] = x.to(torch.bfloat16).contiguous()
        else:
            if not finite(x):
                raise NotFiniteError(f"the {name} of a message are not finite, and {form} cannot hold them")
            tensors[name], tensors[name + SCALE] = scaled(x, form)
            if form == "int4":
                shapes[name + SHAPE] = json.dumps(list(x.shape), separators=(",", ":"))
    return save(tensors, shapes or None)


def unpack(data: bytes) -> dict[str, Tensor]:
    """Returns the tensors of a message; those that were divided by scales are float32 again.

    Raises UserError for bytes that are no message.
    """
    try:
        tensors, about = load(data), metadata(data)
        parts = {name: x for name, x in tensors.items() if not name.endswith(SCALE)}
        return {
            name: _whole(x, tensors.get(name + SCALE), about.get(name + SHAPE)) for name, x in parts.items()
        }
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"a message cannot be read ({' '.join(str(error).split())[:120]}).",
            "Its bytes were changed or cut on the way; run again.",
        ) from error


def metadata(data: bytes) -> dict[str, str]:
    """Returns the texts in the header of a safetensors file."""
    size = int.from_bytes(data[:HEADER], "little")
    found: dict[str, Any] = json.loads(data[HEADER : HEADER + size])
    return dict(found.get("__metadata__") or {})


def scaled(x: Tensor, form: WireForm) -> tuple[Tensor, Tensor]:
    """Returns numbers (L, T, C) in a form, and their scales (L, 1, C) or (L, 1, 1)."""
    x = x.float()
    over = 1 if x.shape[1] >= MANY else (1, 2)
    scale = x.abs().amax(over, keepdim=True) / LARGEST[form] if x.numel() else x.new_ones(len(x), 1, 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).contiguous()
    small = x / scale
    if form == "fp8":
        if not hasattr(torch, "float8_e4m3fn"):
            raise UserError(f"torch {torch.__version__} has no float8.", "Use --wire int8, or a newer torch.")
        return small.clamp(-LARGEST[form], LARGEST[form]).to(torch.float8_e4m3fn), scale
    whole = small.round().clamp(-LARGEST[form], LARGEST[form]).to(torch.int8)
    return (whole if form == "int8" else _pairs(whole)), scale


def _pairs(whole: Tensor) -> Tensor:
    """Returns numbers −7 to 7 as bytes of two; the last half byte of an odd count is empty."""
    flat = (whole.flatten() + 8).to(torch.uint8)
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def _whole(x: Tensor, scale: Tensor | None, shape: str | None) -> Tensor:
    """Returns a tensor of a message as it was, but for what rounding took."""
    if scale is None:
        return x
    if shape is not None:
        sizes = json.loads(shape)
        both = torch.stack([x & 15, x >> 4], 1).flatten().to(torch.int8) - 8
        x = both[: torch.Size(sizes).numel()].view(sizes)
    return x.float() * scale

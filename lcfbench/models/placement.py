"""Models that stand on several devices, or partly in memory from which each layer is fetched.

accelerate's hooks move a layer's inputs, but not the cache: `KV.to_cache` puts each of its layers where the
decoder's stands (`Layout.devices`). Outside a forward all of a cache is on one device, where the tokens
go in, and so is an adapter.

>>> main_device(model), devices_of(model)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lcfbench.models.dtypes import DTYPES


def main_device(model: Any) -> torch.device:
    """Returns the device where token ids go in."""
    return _device_of(model.get_input_embeddings())


def number_of(model: Any) -> torch.dtype:
    """Returns the number format in which a model computes; that of its weights, unless they are quantised."""
    kept = model.dtype
    return kept if kept in DTYPES.values() else model.config.dtype


def devices_of(model: Any) -> list[torch.device]:
    """Returns the devices that compute, each once, that of the token ids first."""
    every = [main_device(model), *map(_device_of, _hooked(model)), *(p.device for p in model.parameters())]
    return list(dict.fromkeys(device for device in every if device.type != "meta"))


def offloaded(model: Any) -> bool:
    """Returns whether some weights are fetched for each forward."""
    return any(p.device.type == "meta" for p in model.parameters())


def loaded_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields name and weights of every parameter, those that are fetched for each forward too."""
    from accelerate.utils import align_module_device

    seen: set[int] = set()
    for at, module in model.named_modules():
        own = [name for name, p in module.named_parameters(recurse=False) if id(p) not in seen]
        if not own:
            continue
        seen |= {id(p) for p in module.parameters(recurse=False)}
        with align_module_device(module):
            for name in own:
                yield f"{at}.{name}".lstrip("."), getattr(module, name)


def _hooked(model: Any) -> list[nn.Module]:
    return [
        m
        for m in model.modules()
        if getattr(getattr(m, "_hf_hook", None), "execution_device", None) is not None
    ]


def _device_of(module: nn.Module) -> torch.device:
    """Returns where a module computes: the place of accelerate's hook, else of its first parameter."""
    for part in module.modules():
        if (place := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device(place if not isinstance(place, int) else f"cuda:{place}")
    return next(module.parameters()).device

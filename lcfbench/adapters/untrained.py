"""Adapters of exact shape that nothing was learned in: they take the time and memory of trained ones.

>>> untrained(pair_config("c2c", receiver, sharer), torch.device("cpu"), torch.bfloat16).params
477848056
"""

from __future__ import annotations

import torch

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import AdapterConfig


def untrained(config: AdapterConfig, device: torch.device, dtype: torch.dtype) -> Adapter:
    """Returns an adapter as it is before training, all gates open, without gradients.

    One layer is initialised and repeated, which for hundreds of megabytes is much quicker.
    """
    shape = config.receiver_geometry
    lone = {"layers": 1, "shapes": shape.shapes and shape.shapes[:1], "at": shape.at and shape.at[:1]}
    first = {"layers": (0,), "layer_map": config.layer_map[:1]}
    one = build(config.model_copy(update={**first, "receiver_geometry": shape.model_copy(update=lone)}))
    with torch.device("meta"):
        made = build(config)
    weights = set() if one.full_precision else {name for name, _ in one.named_parameters()} - {"gate_logit"}
    state = {}
    source, shapes = one.state_dict(), {name: t.shape for name, t in made.state_dict().items()}
    if any(source[name].shape[1:] != shape[1:] for name, shape in shapes.items()):
        source = build(config).state_dict()  # a layer's weights that depend on how many layers there are
    for name, wanted in shapes.items():
        number = dtype if name in weights else torch.float32  # as a saved one is loaded
        state[name] = source[name].to(device, number).expand(wanted).contiguous()
    made.load_state_dict(state, assign=True)
    with torch.no_grad():
        made.gate_logit.fill_(1.0)
    return made.requires_grad_(False).eval()

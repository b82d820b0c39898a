"""Saving and loading adapters, strictly.

>>> adapter = load(Path("my-adapter"), device="cpu", dtype=torch.bfloat16)
"""

from __future__ import annotations

from pathlib import Path

import torch

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import CARD, CONFIG, WEIGHTS, read_config
from lcfbench.errors import UserError


def save(adapter: Adapter, folder: Path, card: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes weights, config and card. Raises UserError where the folder already holds an adapter."""
    from safetensors.torch import save_file

    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder} already holds an adapter.", "Name another --out, or pass --force.")
    folder.mkdir(parents=True, exist_ok=True)
    # statistics and gates decide, so they stay in fp32; matrices are what takes space
    tensors = {
        n: t.detach().cpu().to(dtype if t.dim() > 2 and n in dict(adapter.named_parameters()) else torch.float32).contiguous()
        for n, t in adapter.state_dict().items()
    }
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "lcfbench"})  # one entry: the order of several is random
    (folder / CONFIG).write_text(adapter.config.model_dump_json(indent=1) + "\n")
    (folder / CARD).write_text(card)
    partial.chmod(0o644)  # safetensors writes files that only their owner can read
    partial.rename(folder / WEIGHTS)


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

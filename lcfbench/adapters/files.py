"""Saves and loads adapters, strictly.

>>> adapter = load(Path("my-adapter"), device="cpu", dtype=torch.bfloat16)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcfbench.adapters.base import Adapter, build
from lcfbench.adapters.config import CARD, CONFIG, PROOF, SOURCE, WEIGHTS, AdapterConfig, read_config, reason
from lcfbench.errors import UserError
from lcfbench.files import finish, locked, replacing
from lcfbench.sources.cache import say

MEND = "Fetch or train it again."
LARGEST_WEIGHT = 1e6  # trained weights and input statistics stay below some thousands
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
POINTER = b"version https://git-lfs"
REPORT, PICTURE = "pruning.json", "pruning.png"  # `adapter prune` adds them to the adapter it makes
OWN = {WEIGHTS, CONFIG, CARD, PROOF, SOURCE, REPORT, PICTURE}  # those that are not made anew go


def save(
    adapter: Adapter, folder: Path, card: str, dtype: torch.dtype = torch.bfloat16, replace: bool = False
) -> None:
    """Writes weights, config and card, all or none, also when the process is killed.

    Raises UserError where the folder already holds an adapter, unless `replace`.
    """
    if (folder / WEIGHTS).exists() and not replace:
        raise UserError(f"{folder} already holds an adapter.", "Name another --out, or pass --force.")
    matrices = {n for n, p in adapter.named_parameters() if p.dim() > 2 and not adapter.full_precision}
    tensors = {  # statistics and gates stay in fp32: they are small, and the gates decide
        name: t.detach().cpu().to(dtype if name in matrices else torch.float32).contiguous()
        for name, t in adapter.state_dict().items()
    }
    with replacing(folder, OWN) as made:
        save_file(tensors, made / WEIGHTS, metadata={"format": "lcfbench"})  # the order of several is random
        (made / WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner can read
        (made / CONFIG).write_text(adapter.config.model_dump_json(indent=1) + "\n")
        (made / CARD).write_text(card)


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Adapter:
    """Loads a saved adapter for inference.

    Raises UserError for a missing, extra or misshapen tensor, and for numbers that are not finite.
    """
    config, path = read_config(folder), folder / WEIGHTS
    adapter = blank(config, folder)
    try:
        tensors = load_file(path)
        check_numbers(tensors, str(path))
        adapter.load_state_dict(tensors, strict=True, assign=True)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {WEIGHTS}.", MEND) from error
    except SafetensorError as error:
        if path.read_bytes()[: len(POINTER)] == POINTER:
            raise UserError(
                f"{path} is a git-lfs pointer, not the weights.",
                "Run `git lfs pull`, or use `lcfbench adapter pull`.",
            ) from error
        raise UserError(f"{path} is truncated or no safetensors file ({reason(error)}).", MEND) from error
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not match its config ({last}).", MEND) from error
    parameters = dict(adapter.named_parameters())
    for name, tensor in adapter.state_dict().items():
        wide = name == "gate_logit" or name not in parameters or adapter.full_precision
        narrow = tensor.data.to(torch.float32 if wide else dtype)
        if not bool(torch.isfinite(narrow).all()):
            shown = str(narrow.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} overflows in {shown}.", "Use --dtype bfloat16 or float32.")
        tensor.data = narrow
    if config.imported_without_padding:
        say(
            f"{folder} was imported before padded positions were read: it does not answer as C2C's own code "
            f"does. Import it again: lcfbench adapter import-c2c"
        )
    return adapter.to(device).requires_grad_(False).eval()


def check_saved(folder: Path) -> None:
    """Raises UserError where config or weights are missing or damaged, or do not belong together.

    Names and shapes are compared; the weights themselves are not read.
    """
    config, path = read_config(folder), folder / WEIGHTS
    shapes = {name: list(t.shape) for name, t in blank(config, folder).state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        load(folder)  # says why
        raise
    if wrong := [n for n in sorted({*shapes, *there}) if shapes.get(n) != there.get(n)]:
        raise UserError(f"{path} does not match its config ({wrong[0]}).", MEND)


def check_numbers(tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None) -> None:
    """Raises UserError that names the first tensor whose numbers cannot be right.

    These are NaN, infinity, integers, and matrices with an entry beyond `LARGEST_WEIGHT`: the answers
    of such an adapter are those of overflow. dtype: in which they will be stored.
    """
    for name, tensor in tensors.items():
        stored = tensor if dtype is None else tensor.to(dtype)
        if tensor.dtype not in DTYPES or not bool(torch.isfinite(stored).all()):
            raise UserError(f"{where}: {name} holds NaN, infinity or no floating-point numbers.", MEND)
        if tensor.numel() and float(largest := tensor.abs().max()) > LARGEST_WEIGHT:
            raise UserError(
                f"{where}: {name} holds {float(largest):.1e}; no trained weight is that large.", MEND
            )


def blank(config: AdapterConfig, folder: Path) -> Adapter:
    """Builds the adapter of a config without storage. Raises UserError where that fails."""
    try:
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, ValueError, OverflowError) as error:  # sizes that no tensor can have
        raise UserError(
            f"{folder / CONFIG} describes no adapter that can be built ({reason(error)}).", MEND
        ) from error


def stored_dtype(folder: Path) -> torch.dtype:
    """Returns the dtype of the saved matrices: the narrowest floating-point type in the file."""
    with safe_open(folder / WEIGHTS, framework="pt") as f:
        names = {f.get_slice(key).get_dtype() for key in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    return torch.bfloat16 if "BF16" in names else torch.float16 if "F16" in names else torch.float32


@contextmanager
def making(place: Path, force: bool) -> Iterator[Path]:
    """Gives a new folder, whose files replace the adapter at `place` when the block ends well.

    Until then `place` stays as it is, also when the process is killed. An adapter that is there is
    replaced only with `force`; other files beside it stay. Raises UserError at once where
    `place` is taken, or another process writes it.
    """
    check_free(place, force)
    with locked(place):
        finish(place)
        check_free(place, force)
        with replacing(place, OWN) as made:
            yield made
            check_free(place, force)  # minutes may have passed


def check_free(place: Path, force: bool) -> None:
    """Raises UserError unless an adapter may be put at `place`."""
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file; an adapter is a folder.", "Name another --out.")
    if Path.cwd().is_relative_to(place.resolve()):
        raise UserError(f"{place} is the folder this runs in, or one above it.", "Name another --out.")
    if not force and any((place / name).exists() for name in (WEIGHTS, CONFIG)):
        raise UserError(f"{place} already holds an adapter.", "Name another --out, or pass --force.")

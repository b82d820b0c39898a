"""Saving and loading adapters, strictly.

>>> adapter = load(Path("my-adapter"), device="cpu", dtype=torch.bfloat16)
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lcfbench.adapters.base import Adapter, adapter_class, build
from lcfbench.adapters.config import CARD, CONFIG, WEIGHTS, AdapterConfig, check_options, read_config, reason
from lcfbench.errors import UserError
from lcfbench.files import writing

MEND = "Fetch or train it again."
POINTER = b"version https://git-lfs"
REPORT, PICTURE = "pruning.json", "pruning.png"  # what pruning puts beside the adapter it makes
OWN = {WEIGHTS, CONFIG, CARD, REPORT, PICTURE}


def save(
    adapter: Adapter, folder: Path, card: str, dtype: torch.dtype = torch.bfloat16, replace: bool = False
) -> None:
    """Writes weights, config and card; the weights come last and whole. Raises UserError where the folder already holds an adapter, unless
    `replace`: then the old weights stay until the new ones are there.
    """
    from safetensors.torch import save_file

    if (folder / WEIGHTS).exists() and not replace:
        raise UserError(f"{folder} already holds an adapter.", "Name another --out, or pass --force.")
    folder.mkdir(parents=True, exist_ok=True)
    # statistics and gates decide, so they stay in fp32; matrices are what takes space
    tensors = {
        n: t.detach()
        .cpu()
        .to(dtype if t.dim() > 2 and n in dict(adapter.named_parameters()) else torch.float32)
        .contiguous()
        for n, t in adapter.state_dict().items()
    }
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "lcfbench"})  # one entry: the order of several is random
    (folder / CONFIG).write_text(adapter.config.model_dump_json(indent=1) + "\n")
    (folder / CARD).write_text(card)
    partial.chmod(0o644)  # safetensors writes files that only their owner can read
    partial.rename(folder / WEIGHTS)


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Adapter:
    """A saved adapter, ready for inference, strictly: a missing, extra or misshapen tensor is an error, and so is a number that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = read_config(folder), folder / WEIGHTS
    adapter = blank(config, folder)
    try:
        tensors = load_file(path)
        wrong = [name for name, t in tensors.items() if not t.is_floating_point()]
        wrong += [
            name for name, t in tensors.items() if name not in wrong and not bool(torch.isfinite(t).all())
        ]
        if wrong:
            raise UserError(f"{path}: {wrong[0]} holds NaN, infinity or no floating-point numbers.", MEND)
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
        raise UserError(
            f"{path} does not match its config ({str(error).strip().splitlines()[-1].strip()}).", MEND
        ) from error
    parameters = dict(adapter.named_parameters())
    for name, tensor in adapter.state_dict().items():
        wide = name == "gate_logit" or name not in parameters
        tensor.data = tensor.data.to(device, torch.float32 if wide else dtype)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter.eval()


def blank(config: AdapterConfig, folder: Path) -> Adapter:
    """The adapter of a config without storage. Raises UserError for a config no adapter can be built from."""
    check_options(config, inspect.signature(adapter_class(config.kind).__init__, eval_str=True).parameters)
    try:
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, ValueError, OverflowError) as error:  # sizes that no tensor can have
        raise UserError(
            f"{folder / CONFIG} describes no adapter that can be built ({reason(error)}).", MEND
        ) from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype an adapter's matrices were saved in: of the floating-point types in the file the narrowest."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as f:
        names = {f.get_slice(key).get_dtype() for key in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    return torch.bfloat16 if "BF16" in names else torch.float16 if "F16" in names else torch.float32


@contextmanager
def making(place: Path, force: bool) -> Iterator[Path]:
    """A new folder beside `place`, which takes its place when the block ends well; until then `place` stays as it is, also when killed.

    An adapter that is there already is replaced as a whole with `force` only; files beside it that are none of its own move along.
    Raises UserError at once where `place` is taken.
    """
    check_free(place, force)
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield made
        with writing(place):
            made.chmod(0o755)  # mkdtemp makes folders only their owner can enter
            check_free(place, force)  # minutes may have passed
            old = made.with_name(made.name + ".old")
            if place.is_dir():
                place.rename(old)
            made.rename(place)
            if old.is_dir():
                for other in old.iterdir():
                    if other.name not in OWN:
                        other.rename(place / other.name)
                shutil.rmtree(old)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_free(place: Path, force: bool) -> None:
    """Raises UserError unless an adapter may be put at `place`."""
    if place.exists() and not place.is_dir():
        raise UserError(f"{place} is a file; an adapter is a folder.", "Name another --out.")
    if Path.cwd().is_relative_to(place.resolve()):
        raise UserError(f"{place} is the folder this runs in, or one above it.", "Name another --out.")
    if not force and any((place / name).exists() for name in (WEIGHTS, CONFIG)):
        raise UserError(f"{place} already holds an adapter.", "Name another --out, or pass --force.")

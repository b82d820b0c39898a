"""What the checks of a model found, kept in the cache folder: each model is checked once.

A record is named by all that may change it: config, weights, number format, attention, device,
the versions of torch and transformers, and the code of the checks and of reading.

>>> record = recorded(lm)  # at once where this model was checked before
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from pydantic import ValidationError

from lcfbench.files import write
from lcfbench.models.conformance import Conformance, conformance
from lcfbench.sources.cache import cache_dir, say
from lcfbench.sources.models import code_digest

if TYPE_CHECKING:
    from lcfbench.models.causal_lm import CausalLM

LARGE = 2_000_000_000  # parameters from which the check is announced: it takes more than some seconds


def recorded(lm: CausalLM, again: bool = False) -> Conformance:
    """Returns what the checks of a loaded model found, and has it read as they say.

    again: check it even where that was done before. A record that cannot be read is made again; one
    that cannot be written is made at every load.
    """
    found = None if again else known(lm)
    if found is not None:
        return found
    path = _place(lm)
    if lm.matmul_params > LARGE:
        say(f"checking {lm.name} on this machine, which is done once …")
    found = conformance(lm)
    if (joins := vars(lm).get("can_join")) is not None:  # the checks read, so they have found it out
        found = found.model_copy(update={"joins": joins})
    _keep(path, found)
    return found


def with_joins(lm: CausalLM, joins: bool) -> None:
    """Adds to a model's record whether its rows run side by side, so that the next load need not try."""
    if lm.conformance is None:
        return
    lm.conformance = lm.conformance.model_copy(update={"joins": joins})
    path = _place(lm)
    if _read(path) is not None:
        _keep(path, lm.conformance)


def _keep(path: Path, found: Conformance) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, found.model_dump_json(indent=2).encode() + b"\n")
    except OSError:  # a read-only or full cache folder costs time alone
        pass


def known(lm: CausalLM) -> Conformance | None:
    """Returns what was found before and has the model read as it says; None where nothing is kept."""
    found = _read(_place(lm))
    if found is not None:
        lm.read_as(found.reading)
    return found


def _place(lm: CausalLM) -> Path:
    return cache_dir() / "conformance" / f"{identity(lm)[:24]}.json"


def _read(path: Path) -> Conformance | None:
    try:
        return Conformance.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not there, or damaged
        return None


def identity(lm: CausalLM) -> str:
    """64 hex digits over all that may change what the checks of a model find."""
    config: dict[str, Any] = lm.model.config.to_dict()
    config.pop("_name_or_path", None)
    about = {
        "config": config,
        "revision": lm.revision,
        "dtype": str(lm.dtype),
        "attention": lm.model.config._attn_implementation,
        "device": lm.devices[0].type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "code": code_digest(Path(__file__).parent),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

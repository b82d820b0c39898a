"""lcfbench measures how much of one language model's knowledge reaches another, and how fast.

>>> import lcfbench
>>> found = lcfbench.run(mode=["receiver", "lcf"], control=["matched", "deranged"], limit=64)
>>> found.summary(), found.verdicts()

Names are imported when they are first used, so that `import lcfbench` costs nothing.
"""

from __future__ import annotations

import importlib

from lcfbench._version import __version__

TYPE_CHECKING = False  # the command hears Ctrl-C 20 ms sooner without `typing`
if TYPE_CHECKING:
    from typing import Any

    from lcfbench.adapters.base import Adapter
    from lcfbench.analysis.summary import load_summary, verdicts
    from lcfbench.api import Results, create, gather, plan, probe, replay, run, train
    from lcfbench.controls.base import Control
    from lcfbench.errors import UserError
    from lcfbench.evaluation.recipe import Recipe
    from lcfbench.methods.ask import Answer
    from lcfbench.methods.base import Batch, Method
    from lcfbench.methods.load_pair import Pair, load_pair
    from lcfbench.models.protocol import Message, State
    from lcfbench.results.reader import load_samples
    from lcfbench.results.recorded_run import load_messages
    from lcfbench.training.recipe import TrainRecipe

_HOME = {
    "lcfbench.adapters.base": ("Adapter",),
    "lcfbench.analysis.summary": ("load_summary", "verdicts"),
    "lcfbench.api": ("Results", "create", "gather", "plan", "probe", "replay", "run", "teach", "train"),
    "lcfbench.controls.base": ("Control",),
    "lcfbench.errors": ("UserError",),
    "lcfbench.evaluation.recipe": ("Recipe",),
    "lcfbench.methods.ask": ("Answer",),
    "lcfbench.methods.base": ("Batch", "Method"),
    "lcfbench.methods.load_pair": ("Pair", "load_pair"),
    "lcfbench.models.protocol": ("Message", "State"),
    "lcfbench.results.reader": ("load_samples",),
    "lcfbench.results.recorded_run": ("load_messages",),
    "lcfbench.training.recipe": ("TrainRecipe",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = [
    "Adapter",
    "Answer",
    "Batch",
    "Control",
    "Message",
    "Method",
    "Pair",
    "Recipe",
    "Results",
    "State",
    "TrainRecipe",
    "UserError",
    "__version__",
    "create",
    "gather",
    "load_messages",
    "load_pair",
    "load_samples",
    "load_summary",
    "plan",
    "probe",
    "replay",
    "run",
    "teach",
    "train",
    "verdicts",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'lcfbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""Imports what every run needs in one go, with the garbage collector at rest."""

from __future__ import annotations

import gc
import importlib

LIBRARIES = (
    *(
        "torch",
        "lm_eval.api.task",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
    ),
    *(
        "transformers.models.llama.modeling_llama",
        "lcfbench.evaluation.runner",
    ),  # Llama's file imports what every architecture does
)


def import_libraries() -> None:
    """Imports what every run imports. The collector rests meanwhile: it would walk through all that was imported so far again and again,
    a tenth of the time; afterwards it need not look at modules at all.
    """
    gc.disable()
    try:
        for name in LIBRARIES:
            importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()

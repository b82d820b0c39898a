"""What a person sees: progress lines (`progress`), what the verbs print (`verbs`), lists and cards (`lists`). Nothing here computes.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

from rich.console import Console

err, out = Console(stderr=True, highlight=False, markup=False), Console(highlight=False, markup=False)


def note(text: str, style: str = "") -> None:
    """One line on stderr, unbroken, so that a log has one line a message."""
    err.print(text, style=style, soft_wrap=True)


def warn(text: str) -> None:
    """A warning: what is odd, in one line."""
    note(f"warning: {text}", "yellow")


def quiet_libraries() -> None:
    """Progress bars and warnings of libraries that speak to developers stay out of a user's terminal; their errors do not."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("lm_eval", "lm-eval", "datasets", "transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(transformers|torch|lm_eval)")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

"""Reports of long-running work to its caller: silent, as bars, or as the command line shows them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class Progress(Protocol):
    """Hears how a recipe's runs go. right: the sum of scores so far."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def begin(self, title: str, total: int, done: int, right: float) -> None: ...

    def update(self, title: str, right: float, done: int) -> None: ...

    def end(self, title: str) -> None: ...


@runtime_checkable
class Follower(Protocol):
    """A Progress that also hears, after `begin`, in which folder a run is recorded."""

    def follow(self, title: str, folder: Path) -> None: ...


@runtime_checkable
class Crew(Protocol):
    """A Progress that also hears what every worker does, a text for each."""

    def workers(self, doing: Sequence[str]) -> None: ...


class TrainProgress(Protocol):
    """Hears how a training goes. right: the share of supervised tokens that greedy decoding gets right."""

    def say(self, text: str) -> None: ...

    def step(
        self,
        step: int,
        steps: int,
        loss: float,
        right: float,
        gates_open: int,
        gates: int,
        examples_per_s: float,
    ) -> None: ...


class TeachProgress(Protocol):
    """Hears how a teaching goes. loss: mean of the last pass over all texts."""

    def say(self, text: str) -> None: ...

    def lesson(self, step: int, steps: int, loss: float, texts_per_s: float) -> None: ...


class PruneProgress(Protocol):
    """Hears how far the ablations of a pruning are."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def update(self, done: int, total: int) -> None: ...


class Silent:
    """Passes warnings on to Python's `warnings` and drops the rest; serves runs and trainings."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        warnings.warn(text, UserWarning, stacklevel=3)

    def begin(self, title: str, total: int, done: int, right: float) -> None: ...

    def update(self, title: str, right: float, done: int) -> None: ...

    def end(self, title: str) -> None: ...

    def step(
        self,
        step: int,
        steps: int,
        loss: float,
        right: float,
        gates_open: int,
        gates: int,
        examples_per_s: float,
    ) -> None: ...

    def lesson(self, step: int, steps: int, loss: float, texts_per_s: float) -> None: ...


@dataclass
class Bars(Silent):
    """Shows a bar a run, or one for a training, in terminals and in notebooks (tqdm)."""

    _bars: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(text)

    def begin(self, title: str, total: int, done: int, right: float) -> None:
        from tqdm.auto import tqdm

        self._bars[title] = tqdm(total=total, initial=done, desc=title, unit="doc")

    def update(self, title: str, right: float, done: int) -> None:
        bar = self._bars[title]
        bar.set_postfix(score=f"{100 * right / max(done, 1):.1f} %", refresh=False)
        bar.update(done - bar.n)

    def end(self, title: str) -> None:
        self._bars.pop(title).close()

    def step(
        self,
        step: int,
        steps: int,
        loss: float,
        right: float,
        gates_open: int,
        gates: int,
        examples_per_s: float,
    ) -> None:
        if "training" not in self._bars:
            self.begin("training", steps, 0, 0.0)
        bar = self._bars["training"]
        bar.set_postfix(loss=f"{loss:.3f}", right=f"{100 * right:.0f} %", refresh=False)
        bar.update(step - bar.n)
        if step == steps:
            self.end("training")

    def lesson(self, step: int, steps: int, loss: float, texts_per_s: float) -> None:
        self.step(step, steps, loss, 0.0, 0, 0, texts_per_s)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`, `12 days`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole < 172_800 else f"{whole // 86400} days"


def quiet_libraries() -> None:
    """Silences the progress bars and the developers' warnings of libraries; their errors are still shown."""
    import logging
    import os

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

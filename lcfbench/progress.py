"""What long-running work tells its caller."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What the loop tells whoever watches."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def begin(self, title: str, total: int, done: int, right: float) -> None: ...

    def update(self, title: str, right: float, done: int) -> None: ...

    def end(self, title: str) -> None: ...


class TrainProgress(Protocol):
    """What the trainer tells whoever watches."""

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


class PruneProgress(Protocol):
    """What pruning tells whoever watches."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def update(self, done: int, total: int) -> None: ...

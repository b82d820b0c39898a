"""Trackers that follow runs and trainings: trackio, wandb and tensorboard, behind one small face.

>>> tracker = begin("tensorboard", "my-run", {"seed": 0}, Path("results"), print)   # doctest: +SKIP
>>> tracker.log({"score": 0.5}, step=16); tracker.finish({"score": 0.6})             # doctest: +SKIP

A tracker never costs a result: where it fails, it is reported once and left alone from then on. trackio
keeps its data on this machine (TRACKIO_DIR), wandb's WANDB_MODE=offline does, tensorboard's event files
lie in `tensorboard/NAME` of the folder. No tracker measures the machine: its threads would be timed too.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from lcfbench.errors import UserError

TrackerName: TypeAlias = Literal["trackio", "wandb", "tensorboard"]
PROJECT = "lcfbench"
FAILURES = Exception  # of another project's code, its network and its files

Values = Mapping[str, float]


class Backend(Protocol):
    """One run in a tracker."""

    def log(self, values: Values, step: int) -> None: ...

    def finish(self, summary: Mapping[str, Any], good: bool) -> None: ...


class Trackio:
    """A run in trackio's local database, or in the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        import trackio
        from trackio.context_vars import current_run

        with redirect_stdout(io.StringIO()):
            current_run.set(None)  # else the run before is finished; several are followed at once
            self.run = trackio.init(
                PROJECT,
                name=name,
                config=config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            current_run.set(None)

    def log(self, values: Values, step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], good: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self.run.log({f"final/{name}": value for name, value in summary.items()})
            self.run.finish()


class Wandb:
    """A run of wandb, as its own settings (WANDB_MODE, WANDB_PROJECT, WANDB_DIR …) say."""

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=name,
            resume="allow",
            config=config,
            reinit="create_new",
            settings=quiet,
        )

    def log(self, values: Values, step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], good: bool) -> None:
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=0 if good else 1)


class TensorBoard:
    """Event files in `tensorboard/NAME` below a folder."""

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(folder / "tensorboard" / name))
        self._text("config", config)

    def log(self, values: Values, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        made = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=made)))
        self.writer.flush()

    def finish(self, summary: Mapping[str, Any], good: bool) -> None:
        self._text("summary", summary)
        self.writer.close()

    def _text(self, tag: str, facts: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.text.summary_v2 import text_pb

        written = json.dumps(facts, indent=1, ensure_ascii=False, default=str).replace("\n", "\n    ")
        self.writer.add_event(Event(wall_time=time.time(), step=0, summary=text_pb(tag, f"    {written}")))
        self.writer.flush()


BACKENDS: dict[TrackerName, Callable[[str, dict[str, Any], Path], Backend]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


class Tracker:
    """One run in a tracker, which is left alone after its first failure."""

    def __init__(self, kind: TrackerName, warn: Callable[[str], None], make: Callable[[], Backend]) -> None:
        self.kind, self.warn = kind, warn
        self.backend: Backend | None = None
        self.backend = self._tried(make)

    def log(self, values: Values, step: int) -> None:
        """Passes numbers on. step: grows from call to call."""
        if (backend := self.backend) is not None:
            self._tried(lambda: backend.log(values, step))

    def finish(self, summary: Mapping[str, Any], good: bool = True) -> None:
        """Closes the tracker's run. good: whether it came to its end."""
        if (backend := self.backend) is not None:
            self._tried(lambda: backend.finish(summary, good))
        self.backend = None

    def _tried(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except FAILURES as error:
            self.backend = None
            reason = " ".join(str(error).split())[:200]
            self.warn(
                f"tracker {self.kind} failed and is left out from here on "
                f"({type(error).__name__}: {reason}); nothing else is lost."
            )
            return None


def check_tracker(kind: TrackerName | None) -> None:
    """Raises UserError, before anything heavy, for a tracker that is not installed or not logged in."""
    if kind is None:
        return
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"tracker {kind} is not installed.", 'pip install "lcfbench[track]"')
    if kind == "wandb" and os.environ.get("WANDB_MODE", "online") in ("online", "shared"):
        import wandb

        if not wandb.api.api_key:
            raise UserError("wandb is not logged in.", "Set WANDB_MODE=offline, or call `wandb login`.")


def begin(
    kind: TrackerName, name: str, config: Mapping[str, Any], folder: Path, warn: Callable[[str], None]
) -> Tracker:
    """Begins a run in a tracker, or goes on with the one of this name.

    config: settings, ready for JSON. folder: below it lie files that the tracker makes. warn: hears
    once that the tracker fails.
    """
    plain = json.loads(json.dumps(config, default=str))
    return Tracker(kind, warn, lambda: BACKENDS[kind](name, plain, folder))

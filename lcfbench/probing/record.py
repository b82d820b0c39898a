"""What a probe has found so far: one JSON file in its folder, written after every part.

>>> record = Record.open(recipe)                                              # doctest: +SKIP
>>> with record.part("task") as found: found["documents"] = 500               # doctest: +SKIP
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.files import locked, now, write, write_json, writing
from lcfbench.probing.recipe import ProbeRecipe

RECORD, PAGE = "probe.json", "probe.md"
OURS = ("runs", "oracle", "adapter")  # folders of a probe
FORMAT = 1


class TimeUp(KeyboardInterrupt):
    """The minutes are spent: what runs stops as at Ctrl-C, which keeps what there is."""


@dataclass
class Record:
    """The parts that are done, and the seconds that all calls took.

    parts: by name, JSON values; each has the `seconds` it took. began: of this call (monotonic).
    """

    recipe: ProbeRecipe
    folder: Path
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: float = 0.0
    started_at: str = ""
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, recipe: ProbeRecipe) -> Record:
        """Begins a probe, or goes on with the one in the folder.

        Raises UserError for a folder with a probe of other settings, or one that cannot be read or
        written.
        """
        folder = recipe.folder
        record = cls(recipe, folder, started_at=now())
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with record.alone():
            if recipe.fresh:
                for name in OURS:
                    shutil.rmtree(folder / name, ignore_errors=True)
                (folder / RECORD).unlink(missing_ok=True)
            if (folder / RECORD).exists():
                record._restore(folder / RECORD)
        return record

    def alone(self) -> AbstractContextManager[object]:
        """Keeps other probes out of the folder. Raises UserError where one is at work."""
        return locked(self.folder, busy=f"another probe is at work in {self.folder}")

    def _restore(self, path: Path) -> None:
        step = "Name another --out, or start over with --fresh."
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            identity, parts, used = found["identity"], found["parts"], float(found["seconds"])
            self.started_at = str(found["started_at"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}).", step) from error
        if identity != self.recipe.identity():
            own = self.recipe.identity()
            apart = [k for k in own if not isinstance(identity, dict) or own[k] != identity.get(k)]
            what = f"{self.folder} holds a probe with another {', '.join(apart) or 'setting'}."
            raise UserError(what, step)
        self.parts, self.used = parts, used

    @property
    def seconds(self) -> float:
        """Seconds of all calls."""
        return self.used + time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds until `end`."""
        return self.end - time.monotonic()

    @property
    def end(self) -> float:
        """The moment (monotonic) at which the budget is spent; a call that goes on has a minute at least."""
        return self.began + max(60 * self.recipe.minutes - self.used, 60.0 if self.used else 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """Gives a dict to fill; keeps it, with the seconds it took, when the block ends well."""
        began, found = time.monotonic(), dict[str, Any]()
        try:
            yield found
        finally:
            self.save()
        self.parts[name] = found | {"seconds": round(time.monotonic() - began, 1)}
        self.save()

    def save(self) -> None:
        """Writes the record, whole."""
        with writing(self.folder):
            write_json(
                self.folder / RECORD,
                {
                    "format": FORMAT,
                    "identity": self.recipe.identity(),
                    "started_at": self.started_at,
                    "seconds": round(self.seconds, 1),
                    "parts": self.parts,
                },
            )

    def save_page(self, markdown: str) -> None:
        """Writes the page beside the runs."""
        with writing(self.folder):
            write(self.folder / PAGE, markdown.encode())

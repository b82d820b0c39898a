"""Shards: parts of a run's batches that other processes answer, each in a folder of its own.

>>> Shard.parse("2/3").of(["a", "b", "c", "d", "e"])
['b', 'e']

`<out>/<run_id>/shards/2-of-3/` holds what a run's folder holds, for the batches 2, 5, 8 … of the run. A
shard is no run: readers pass it by until `gather` has put its rows into the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SHARDS = "shards"  # the folder in a run's folder
MOST = 100_000
FORM = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
NAME = re.compile(r"[1-9][0-9]{0,5}-of-[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `i/n`. Raises ValueError for another form, and for a part that there is not."""
        if not (found := FORM.fullmatch(text)):
            raise ValueError("write it as 1/4: the first of four parts")
        index, count = int(found[1]), int(found[2])
        if count == 1 and index == 1:
            raise ValueError("1/1 is the whole run; leave it out")
        if not 2 <= count <= MOST:
            raise ValueError(f"a run has 2 to {MOST:,} parts")
        if not 1 <= index <= count:
            raise ValueError(f"of {count} parts there are 1/{count} to {count}/{count}")
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.index}-of-{self.count}"

    def of(self, batches: Sequence[T]) -> list[T]:
        """Its part of the batches: every `count`-th, in their order."""
        return list(batches[self.index - 1 :: self.count])

    def folder(self, run: Path) -> Path:
        """Its folder in that of the run."""
        return run / SHARDS / self.name


def is_shard(folder: Path) -> bool:
    """Says whether a folder is that of a shard, by its name and where it lies."""
    return folder.parent.name == SHARDS and bool(NAME.fullmatch(folder.name))


def shards_of(run: Path) -> list[Path]:
    """The folders of a run's shards, sorted."""
    try:
        found = [path for path in (run / SHARDS).iterdir() if is_shard(path) and path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (int(path.name.split("-")[2]), int(path.name.split("-")[0])))

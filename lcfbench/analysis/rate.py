"""The worth of messages by size: which recorded runs are read, and the files that are written.

from lcfbench.analysis.rate import Choice, draw
draw([Path("results")], Path("."), Choice(task="splitfacts", whole="kvcomm"), warnings := [])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.kept import Aim, Kept, kept
from lcfbench.analysis.plots import rate
from lcfbench.analysis.run_groups import RunGroup, read_run_groups
from lcfbench.analysis.selection import select
from lcfbench.analysis.summary import summarise
from lcfbench.analysis.tables import to_csv
from lcfbench.errors import UserError
from lcfbench.files import check_output, write_output

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ".csv"  # ending of the numbers of a figure


@dataclass(frozen=True)
class Choice:
    """The choices of a figure of rates.

    task, pair: names, empty for all. aim: the whole message beside which each other is held, and the
    shares of its content and bytes; none draws and tells no shares. data: a .csv that gets the numbers.
    """

    task: str = ""
    pair: str = ""
    aim: Aim | None = None
    data: Path | None = None


@dataclass
class Drawn:
    """files: what was written. kept: each message beside the whole one, where an aim was given."""

    files: list[Path]
    kept: list[Kept] = field(default_factory=list)


def draw(paths: Sequence[Path], folder: Path, chosen: Choice, warnings: list[str]) -> Drawn:
    """Draws `rate.png` and `rate.svg` into a folder.

    paths: recorded runs, and .csv files that `data` wrote before: their points are drawn as they stand, and
    where a run has the same pair, task, scoring and label it replaces the point. warnings: gets what is
    left out and why. Raises UserError for names that no run has, and where nothing can be read or written.
    """
    if chosen.data is not None:
        if chosen.data.suffix != NUMBERS:
            what = f"--data {chosen.data} does not end in {NUMBERS}."
            raise UserError(what, f"Name it {chosen.data.stem.strip('.') or 'rate'}{NUMBERS}.")
        check_output(chosen.data)
    numbers = [path for path in paths if path.suffix == NUMBERS]
    runs = [path for path in paths if path.suffix != NUMBERS]
    points = [point for path in numbers for point in rate.read(path, chosen.task, chosen.pair)]
    beside: list[Kept] = []
    if runs:
        found = read_run_groups(runs)
        warnings += found.warnings
        names = [chosen.task] if chosen.task else [], [chosen.pair] if chosen.pair else []
        groups = select(found.groups, *names)
        beside = kept(groups, chosen.aim) if chosen.aim else []
        points = _merged(points, _points(groups, beside, chosen.aim))
    elif chosen.aim:
        what = f"--whole {chosen.aim.whole} needs the documents of recorded runs."
        raise UserError(what, f"Name their folder beside {numbers[0]}, or leave --whole out.")
    files = rate.plot(points, folder)
    if chosen.data is not None:
        write_output(chosen.data, to_csv([{n: x.get(n) for n in rate.COLUMNS} for x in points]).encode())
        files.append(chosen.data)
    return Drawn(files, beside)


def _points(groups: list[RunGroup], beside: Sequence[Kept], aim: Aim | None) -> list[dict[str, Any]]:
    """The points of runs, each with what it keeps of the whole message."""
    summary: pd.DataFrame = summarise(groups)
    by_key = {rate.key(line._asdict()): line for line in beside}
    points = rate.points_of(summary)
    for point in points:
        line = by_key.get(rate.key(point))
        if line is not None and aim is not None:
            point |= {n: getattr(line, n) for n in rate.KEPT}
            point["share"], point["share_of_bytes"] = aim.content, aim.bytes
    return points


def _merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    replaced = {rate.key(point) for point in new}
    return rate.in_order([*(point for point in old if rate.key(point) not in replaced), *new])

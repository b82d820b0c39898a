"""Scores and times by the length of the sharer's context: the lines of a figure and its table.

    from lcfbench.analysis.length import draw
    draw([Path("results")], Path("."), Choice(task="splitfacts_heldout"), None, warnings := [])

One task option, the dial, makes contexts longer; runs that differ in it, in their limit or their seed are
points of one line. A context's length is the number of tokens that a sharer read, the median over documents;
of several methods the least, for what others read beyond it is a request, or they wrote it. It stands for
the runs without a sharer too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcfbench.analysis.naming import labels
from lcfbench.analysis.plots import length as figure
from lcfbench.analysis.run_groups import RunGroup, RunGroups, read_run_groups
from lcfbench.analysis.selection import select
from lcfbench.analysis.summary import ALONE, GROUP, hashable, summarise
from lcfbench.analysis.tables import known, number, percent, score, short_legend
from lcfbench.errors import UserError
from lcfbench.files import check_output, write_output
from lcfbench.tables import Column, Table, csv_cell

DIAL = "distractors"
# parts of an identity that tell methods apart, whatever the task asks
OF_THE_METHOD = ("options", "adapter_sha256", "adapter_config", "wire", "join", "dtype", "attention")
NUMBERS = tuple(
    """pair task scoring setting method label tokens documents score low high content content_low content_high
    ttea_ms after_ms ttea_n message_bytes flops run_id""".split()
)


@dataclass(frozen=True)
class Choice:
    """What a figure shows: one task and pair, or all where empty. dial: the task option that varies."""

    task: str = ""
    pair: str = ""
    dial: str = DIAL


def draw(
    paths: Sequence[Path], folder: Path, chosen: Choice, data: Path | None, warnings: list[str]
) -> tuple[list[Table], list[Path]]:
    """Draws `length.png` and `length.svg` of recorded runs into a folder; returns the tables and the files.

    data: a .csv that gets the numbers. warnings: gets what is left out and why. Raises UserError for
    names that no run has, and where nothing can be drawn, read or written.
    """
    if data is not None:
        if data.suffix != ".csv":
            name = data.stem.strip(".") or "length"
            raise UserError(f"--data {data} does not end in .csv.", f"Name it {name}.csv.")
        check_output(data)
    points = points_of(read_run_groups(list(paths)), chosen, warnings)
    files = figure.plot(points, folder)
    if data is not None:
        write_output(data, _csv(points))
        files.append(data)
    return tables(points), files


def points_of(found: RunGroups, chosen: Choice, warnings: list[str]) -> list[dict[Any, Any]]:
    """Returns a summary line for every method at every length, with `tokens` and `setting` beside it.

    setting: the task's options but the dial, where runs of the task differ in them. `after_ms`: the part of
    `ttea_ms` that is left once the sharer has read its text. In order of pair, task,
    scoring, setting, method (the receiver alone first) and length. Raises UserError where no run tells how
    long its context was.
    """
    warnings += found.warnings
    groups = select(found.groups, [chosen.task] if chosen.task else [], [chosen.pair] if chosen.pair else [])
    records: list[dict[Any, Any]] = summarise(groups).to_dict("records")
    lines = {line["run_id"]: line for line in records if line["run_id"]}
    matched = [group for group in groups if group.control == "matched" and group.n]
    _check_dial(matched, chosen.dial)
    lengths, names, settings = _lengths(matched), _names(matched), _settings(matched, chosen.dial)
    points: dict[Hashable, dict[Any, Any]] = {}
    for group in matched:
        tokens = lengths.get(_asked(group))
        name, setting = names[_series(group)], settings[_asked(group)]
        if tokens is None:
            what = (
                f"{name} ({group.task}) is left out: no run of these documents tells how much a sharer read."
            )
            warnings += [what] if what not in warnings else []
            continue
        line = lines["+".join(group.run_ids)]
        line |= {"tokens": tokens, "setting": setting, "method": name, "documents": group.n}
        line["after_ms"] = _after_reading(group)
        place = (*(line[key] for key in GROUP), setting, _series(group), _asked(group))
        other = points.get(place)
        if other is not None:
            less, line = sorted((other, line), key=_weight)
            what = f"{less['run_id']} is left out: {line['run_id']} has the same context and more documents."
            warnings.append(what)
        points[place] = line
    if not points:
        step = "Run a method with a sharer, such as kvcomm, on the same documents."
        raise UserError("no run tells how long the sharer's context was.", step)

    def order(line: Mapping[str, Any]) -> tuple[Any, ...]:
        head = (*(str(line[key]) for key in GROUP), line["setting"])
        return (*head, line["mode"] != ALONE, line["mode"], line["method"], line["tokens"])

    return sorted(points.values(), key=order)


def _after_reading(group: RunGroup) -> float:
    """Milliseconds from the end of the sharer's reading to that of the answer, the median; NaN where no
    document was timed."""
    import numpy as np

    codes, whole = group.timed("ttea_ms")
    read, sharer = group.timed("sharer_ms")
    _, ours, theirs = np.intersect1d(codes, read, assume_unique=True, return_indices=True)
    return float(np.median(whole[ours] - sharer[theirs])) if len(ours) else math.nan


def _weight(line: Mapping[Any, Any]) -> tuple[int, int]:
    """Of two runs of one context the one with more documents, then with more timed ones, is drawn."""
    return line["documents"], line["ttea_n"]


def _check_dial(groups: Sequence[RunGroup], dial: str) -> None:
    """Raises UserError for a dial that is no option of any task, unless it is the usual one."""
    there = sorted({name for group in groups for name in group.identity.get("task_options") or {}})
    if dial != DIAL and dial not in there:
        what = f"no run has a task option {dial}."
        raise UserError(what, f"They have {', '.join(there)}." if there else "Leave --dial out.")


def _asked(group: RunGroup) -> Hashable:
    """What decides a group's contexts: the task with its options."""
    options = hashable(group.identity.get("task_options") or {})
    return (group.pair, group.task, group.scoring, options)


def _series(group: RunGroup) -> Hashable:
    """What the points of one line share."""
    told = {name: group.identity.get(name) for name in OF_THE_METHOD}
    return (group.pair, group.task, group.scoring, group.mode, hashable(told))


def _lengths(groups: Iterable[RunGroup]) -> dict[Hashable, float]:
    """The tokens of each context, where a method says what its sharer read."""
    read: dict[Hashable, float] = {}
    for group in groups:
        tokens = group.median("sharer_tokens")
        if known(tokens) and tokens > 0:
            key = _asked(group)
            read[key] = min(tokens, read.get(key, math.inf))
    return read


def _names(groups: Sequence[RunGroup]) -> dict[Hashable, str]:
    """A name for each line: the mode, and what tells it from others of the mode."""
    first = _first(groups, _series)
    bare = [
        replace(g, identity={k: v for k, v in g.identity.items() if k in OF_THE_METHOD})
        for g in first.values()
    ]
    return dict(zip(first, labels(bare), strict=True))


def _first(groups: Iterable[RunGroup], key: Callable[[RunGroup], Hashable]) -> dict[Hashable, RunGroup]:
    found: dict[Hashable, RunGroup] = {}
    for group in groups:
        found.setdefault(key(group), group)
    return found


def _settings(groups: Sequence[RunGroup], dial: str) -> dict[Hashable, str]:
    """The task options that tell the contexts of a task apart, the dial aside; as `hops=1`."""
    options = {_asked(g): (g.task, dict(g.identity.get("task_options") or {})) for g in groups}
    found = {}
    for key, (task, own) in options.items():
        every = [other for name, other in options.values() if name == task]
        told = [n for n in own if n != dial and len({repr(other.get(n)) for other in every}) > 1]
        found[key] = ", ".join(f"{name}={own[name]}" for name in told)
    return found


def tables(points: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns a table for each panel of the figure: a line for each method and length."""
    heads = [Column("method", wrap=True)]
    heads += [Column(name, right=True) for name in ("tokens", "score %", "95 %", "content P")]
    heads += [Column(f"{name}\ns", right=True) for name in ("answer", "then")]
    heads += [Column("docs", right=True, optional=True)]
    heads += [Column("bytes", right=True, optional=True), Column("GFLOP", right=True, optional=True)]
    found = []
    for title, lines in figure.panels(points).items():
        rows = [
            [
                str(line["method"]),
                number(line["tokens"]),
                score(line),
                f"{percent(line['low'])}–{percent(line['high'])}",
                _content(line),
                number(line["ttea_ms"] / 1000, 1),
                number(line["after_ms"] / 1000, 1),
                number(line["documents"]),
                number(line["message_bytes"] or None),
                number(line["flops"] / 1e9),
            ]
            for line in lines
        ]
        legend = short_legend(heads, rows)
        legend += (
            " tokens: that the sharer reads, median. answer s: to the end of the answer, alone and warm;"
        )
        legend += " then s: the part of it that is left once the sharer has read."
        found.append(Table(f"{title}; {figure.count(lines)}", heads, rows, legend=legend.strip()))
    return found


def _content(line: Mapping[str, Any]) -> str:
    if not known(line["content"]):
        return percent(None)
    low, high = (percent(line[f"content_{end}"], "+") for end in ("low", "high"))
    return f"{percent(line['content'], '+')} [{low}, {high}]"


def _csv(points: Sequence[Mapping[str, Any]]) -> bytes:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(NUMBERS)
    for line in points:
        values = (line[name] for name in NUMBERS)
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else csv_cell(v) for v in values])
    return text.getvalue().encode()

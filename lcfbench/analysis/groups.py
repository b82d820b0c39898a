"""Averages of groups of tasks: the weighted mean of a method's scores, beside what was published.

    from lcfbench.analysis.groups import averages
    runs = read_run_groups([Path("results")]).groups
    averages(runs, summarise(runs))[0].score

The weights are fixed numbers, and documents of different tasks count as independent: the interval is
that of Zou and Donner 2008 (Stat Med 27:1693, MOVER), which joins the tasks' own intervals. A group
that lacks a task has no average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.analysis.pooling import OF_THE_TASK
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.summary import COMPUTED, summarise
from lcfbench.analysis.tables import NONE, known, mark, percent
from lcfbench.provenance import digest
from lcfbench.results.reader import Paths, as_paths, warn_all
from lcfbench.tables import Cell, Column, Table
from lcfbench.tasks.groups import Group, PublishedAverage, chosen_groups, known_groups

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.analysis.run_groups import RunGroup

Line = Mapping[Any, Any]  # of a summary
SHOWN = 6  # tasks that a sentence names; of more it says how many
SHOWN_FROM = 2  # tasks of a group that were run, from which it is shown unasked
# of the identity: what a task, a seed or only the computing changes
APART = ("task", "seed", "plugins", "scoring", "control", *OF_THE_TASK, *COMPUTED)


@dataclass(frozen=True)
class Average:
    """The average of one method, or several that lack the same tasks.

    label: of the method in the summary. weights: of each task, in all 1; documents: asked of each. n: all
    of them. Scores are fractions with their 95 % intervals; gain and content as in the summary, NaN where a
    task has none. published: of the same pair, method and control. missing: tasks without a run; then there
    is no average.
    """

    group: str
    title: str
    pair: str
    scoring: str
    label: str
    control: str
    metric: str = ""
    weights: Mapping[str, float] | None = None
    documents: Mapping[str, int] | None = None
    n: int = 0
    score: float = math.nan
    low: float = math.nan
    high: float = math.nan
    gain: float = math.nan
    gain_low: float = math.nan
    gain_high: float = math.nan
    content: float = math.nan
    content_low: float = math.nan
    content_high: float = math.nan
    reliable: bool = True
    published: tuple[PublishedAverage, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def record(self, flat: bool = False) -> dict[str, Any]:
        """The average as a line of a summary's JSON; `task` is the group's name. flat: for CSV."""
        found = asdict(self)
        found |= {"task": found.pop("group"), "is_group": True}
        if flat:
            told = {"weights": weights_told(self), "published": "; ".join(published_told(self))}
            counts = ", ".join(f"{task} {n}" for task, n in (self.documents or {}).items())
            found |= {**told, "documents": counts}
            found |= {name: "; ".join(found[name]) for name in ("missing", "notes")}
        return found


class Joined(NamedTuple):
    """A weighted mean and its interval."""

    value: float
    low: float
    high: float


def joined(parts: Sequence[tuple[float, float, float]], weights: Sequence[float]) -> Joined:
    """The weighted mean of independent estimates (value, low, high). Weights sum to 1."""
    value = sum(w * part[0] for w, part in zip(weights, parts, strict=True))
    below = math.hypot(*(w * (part[0] - part[1]) for w, part in zip(weights, parts, strict=True)))
    above = math.hypot(*(w * (part[2] - part[0]) for w, part in zip(weights, parts, strict=True)))
    return Joined(value, value - below, value + above)


def averages(
    runs: Sequence[RunGroup], summary: pd.DataFrame, chosen: Sequence[Group] | None = None
) -> list[Average]:
    """Every group's averages, a line a method and control, then what lacks tasks.

    summary: `summarise` of the same runs. chosen: the groups; by default the packaged ones and those of
    `LCFBENCH_TASKS` of which two tasks were run.
    """
    lines = {line["run_id"]: line for line in summary.to_dict("records")}
    runs = [run for run in runs if run.n and "+".join(run.run_ids) in lines]
    found: list[Average] = []
    for group in known_groups() if chosen is None else chosen:
        for pair in dict.fromkeys(run.pair for run in runs):
            mine = [run for run in runs if run.pair == pair and run.task in group.members]
            if len({run.task for run in mine}) >= (SHOWN_FROM if chosen is None else 1):
                found += _of_pair(group, pair, mine, lines)
    return found


def load_averages(paths: Paths, groups: Sequence[str] = ()) -> pd.DataFrame:
    """`averages` of every run under `paths` as a DataFrame. groups: names or files."""
    import pandas as pd

    read = read_run_groups(as_paths(paths))
    warn_all(read.warnings)
    found = averages(read.groups, summarise(read.groups), chosen_groups(groups) if groups else None)
    return pd.DataFrame([average.record() for average in found])


def _of_pair(group: Group, pair: str, runs: Sequence[RunGroup], lines: Mapping[str, Line]) -> list[Average]:
    methods: dict[tuple[str, str, str], list[RunGroup]] = {}
    for run in runs:
        methods.setdefault((run.mode, run.control, _method(run)), []).append(run)
    whole: list[Average] = []
    lacking: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    order = {run_id: place for place, run_id in enumerate(lines)}
    for mine in sorted(methods.values(), key=lambda runs: min(order["+".join(r.run_ids)] for r in runs)):
        for scoring, of_it in _by_scoring(mine, group):
            missing = tuple(task for task in group.members if task not in {run.task for run in of_it})
            picked, unclear = _one_each(of_it, group)
            if missing or unclear:
                name = f"{of_it[0].label} ({of_it[0].control})"
                lacking.setdefault((scoring, missing, unclear), []).append(name)
            else:
                parts = [(run, lines["+".join(run.run_ids)]) for run in picked]
                whole.append(_average((group, pair, scoring), parts))
    for (scoring, missing, unclear), names in lacking.items():
        told = ", ".join(dict.fromkeys(names))
        whole.append(
            Average(group.name, group.title, pair, scoring, told, "", missing=missing, notes=unclear)
        )
    return whole


def _method(run: RunGroup) -> str:
    """All that runs of one method on several tasks have in common."""
    plugins = run.identity.get("plugins") or {}
    code = {name: found for name, found in plugins.items() if not name.startswith("tasks/")}
    return digest([{k: v for k, v in run.identity.items() if k not in APART}, code])


def _by_scoring(runs: Sequence[RunGroup], group: Group) -> list[tuple[str, list[RunGroup]]]:
    """The runs by scoring: those by which every task is scored; else all together where each has one."""
    found: dict[str, list[RunGroup]] = {}
    for run in runs:
        found.setdefault(run.scoring, []).append(run)
    whole = [(s, mine) for s, mine in found.items() if {run.task for run in mine} == set(group.members)]
    if whole or len(found) == 1:
        return whole or list(found.items())
    one_each = all(len({r.scoring for r in runs if r.task == run.task}) == 1 for run in runs)
    return [(", ".join(sorted(found)), list(runs))] if one_each else list(found.items())


def _one_each(runs: Sequence[RunGroup], group: Group) -> tuple[list[RunGroup], tuple[str, ...]]:
    """Of each task the run with the most documents, and the tasks of which several have as many."""
    import numpy as np

    picked, unclear = [], []
    for task in group.members:
        mine = sorted((run for run in runs if run.task == task), key=lambda run: (-run.n, run.run_ids))
        alike = [run for run in mine if run.n == mine[0].n]
        same = all(
            np.array_equal(run.codes, mine[0].codes) and np.array_equal(run.scores, mine[0].scores)
            for run in alike
        )
        if not same:
            names = ", ".join("+".join(run.run_ids) for run in alike[:3])
            unclear.append(f"{len(alike)} runs of {task} fit equally well ({names}); name one of them")
        picked += mine[:1]
    return picked, tuple(unclear)


def _average(head: tuple[Group, str, str], parts: Sequence[tuple[RunGroup, Line]]) -> Average:
    group, pair, scoring = head
    amounts = [float(group.members[run.task] or run.n) for run, _ in parts]
    weights = [amount / sum(amounts) for amount in amounts]
    first, line = parts[0]

    def of(*names: str) -> Joined:
        return joined([(line[names[0]], line[names[1]], line[names[2]]) for _, line in parts], weights)

    found: dict[str, Any] = {}
    for name, ends in (
        ("score", ("low", "high")),
        ("gain", ("gain_low", "gain_high")),
        ("content", ("content_low", "content_high")),
    ):
        found |= zip((name, *ends), of(name, *ends), strict=True)
    return Average(
        group.name,
        group.title,
        pair,
        scoring,
        str(line["label"]),
        first.control,
        metric=", ".join(dict.fromkeys(run.metric for run, _ in parts)),
        weights={run.task: weight for (run, _), weight in zip(parts, weights, strict=True)},
        documents={run.task: run.n for run, _ in parts},
        n=sum(run.n for run, _ in parts),
        reliable=all(run.reliable for run, _ in parts),
        published=_published(group, pair, first, str(line["short"])),
        notes=tuple(_notes(group, [run for run, _ in parts])),
        **found,
    )


def _published(group: Group, pair: str, run: RunGroup, short: str) -> tuple[PublishedAverage, ...]:
    """What was published for this pair, method and control: of the same adapter where one is alike."""
    asked = pair.lower(), run.mode, run.control
    rows = [row for row in group.published if (row.pair, row.method, row.control) == asked]
    return tuple([row for row in rows if row.label == short] or rows)


def listed(texts: Sequence[str]) -> str:
    """Texts in one line; of many the first ones and the number of the others."""
    shown = texts if len(texts) <= SHOWN + 1 else [*texts[:SHOWN], f"and {len(texts) - SHOWN} more"]
    return ", ".join(shown)


def _notes(group: Group, runs: Sequence[RunGroup]) -> list[str]:
    """What must be known of the runs: parts of test sets, failures, and what differs between them."""
    found, counted = [], group.weighting == "documents"
    whole = {task: f" of {weight:,.0f}" for task, weight in group.members.items() if counted and weight}
    told = {run.task: f"{run.task} {run.n:,}{whole.get(run.task, '')}" for run in runs}
    part = [run for run in runs if run.n != group.members[run.task] or not counted]
    limited = [told[run.task] for run in part if run.identity.get("limit") is not None]
    if limited:
        found.append(f"only a part of the documents: {listed(limited)}")
    fewer = [told[r.task] for r in part if r.identity.get("limit") is None and r.task in whole]
    if fewer:
        found.append(f"weighted by whole test sets, of which these were asked: {listed(fewer)}")
    if counted and len(whole) < len(group.members):
        found.append("weighted by the documents of these runs")
    if failed := sum(run.errors for run in runs):
        found.append(f"{failed:,} documents failed and count as wrong")
    if unfinished := [run.task for run in runs if run.state in ("running", "interrupted")]:
        found.append(f"not finished: {listed(unfinished)}")
    if len(metrics := dict.fromkeys(run.metric for run in runs)) > 1:
        found.append(f"a mean of different metrics: {', '.join(metrics)}")
    apart = [name for name in COMPUTED if len({repr(run.identity.get(name)) for run in runs}) > 1]
    if apart:
        found.append(f"the tasks' runs differ in {', '.join(apart)}")
    return found


# -- shown ---------------------------------------------------------------------------------------


def tables(found: Sequence[Average]) -> list[Table]:
    """A table for each group, pair and scoring: averages, and below them what a group lacks."""
    heads = [Column("method", wrap=True), Column("control")]
    names = ("docs", "score %", "95 %", "gain G", "content P", "published %")
    heads += [Column(name, right=True) for name in names]
    return [Table(title, heads, [*map(_cells, mine)], [], told) for title, mine, told in by_group(found)]


def by_group(found: Sequence[Average]) -> list[tuple[str, list[Average], list[tuple[str, str]]]]:
    """For each group, pair and scoring a title, the averages, and remarks as (style, sentence)."""
    together: dict[tuple[str, str, str], list[Average]] = {}
    for average in found:
        together.setdefault((average.group, average.pair, average.scoring), []).append(average)
    made = []
    for (name, pair, scoring), mine in together.items():
        receiver, _, sharer = pair.partition(":")
        whole = [average for average in mine if average.weights]
        title = f"group {name} ({scoring}): receiver {receiver}, sharer {sharer}."
        title += f" Mean of {listed(weights_told(whole[0]).split(', '))}." if whole else ""
        made.append((title, whole, _remarks(mine)))
    return made


def weights_told(average: Average) -> str:
    """The tasks of an average with their weights in per cent."""
    shares = (average.weights or {}).items()
    return ", ".join(f"{task} {100 * weight:.1f} %" for task, weight in shares)


def _cells(average: Average) -> list[Cell]:
    return [
        average.label,
        average.control,
        f"{average.n:,}",
        percent(average.score) + mark(asdict(average)),
        f"{percent(average.low)}–{percent(average.high)}",
        *(difference(average, name) for name in ("gain", "content")),
        tuple(published_told(average)) or NONE,
    ]


def difference(average: Average, name: str) -> Cell:
    """A gain or content in points, its interval below."""
    value, low, high = (getattr(average, f"{name}{end}") for end in ("", "_low", "_high"))
    if not known(value):
        return NONE
    return percent(value, "+"), f"[{percent(low, '+')}, {percent(high, '+')}]"


def published_told(average: Average) -> list[str]:
    """Each published number, with its label where it has one of its own."""
    return [
        f"{100 * row.score:.2f}" + (f" {row.label}" if row.label.lower() not in ("", row.method) else "")
        for row in average.published
    ]


def _remarks(found: Sequence[Average]) -> list[tuple[str, str]]:
    """(style, sentence): what a group lacks, what must be known of its runs, and the sources."""
    told = []
    for average in found:
        if average.missing:
            what = f"no average: {listed(average.missing)} not run"
            told.append(("yellow", f"{average.group}, {average.label}: {what}"))
        for note in average.notes:
            name = f"{average.label} ({average.control})" if average.control else average.label
            told.append(("yellow", f"{name}: {note}"))
    if sources := dict.fromkeys(row.source for average in found for row in average.published):
        told.append(("dim", f"published: {', '.join(sources)}; other hardware, prompts and perhaps scoring"))
    return told

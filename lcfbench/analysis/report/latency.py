"""Where the time goes: the phases of one document, averaged over those timed alone.

    stacks(source)[0].bars[0].parts      # [("sharer", 64.6), ("message", 0.0), …], ms

Batched rows are left out: throughput is another number.
"""

from __future__ import annotations

from typing import NamedTuple

from lcfbench.analysis.recorded import TIMED
from lcfbench.analysis.report.entries import (
    NONE,
    Entry,
    Head,
    Row,
    Table,
    duration,
    number,
    places_named,
    text,
)
from lcfbench.analysis.report.source import Source
from lcfbench.analysis.run_groups import RunGroup
from lcfbench.analysis.summary import SHOWN

PHASES = tuple(name.removesuffix("_ms") for name in TIMED if name not in ("ttft_ms", "ttea_ms"))
GAP = 0.05  # parts that miss more of the total than this leave a visible rest


class Bar(NamedTuple):
    """One method.

    parts: phase → mean ms; rest: what the total has beyond them, ms, 0 within `GAP`; n: documents
    timed alone.
    """

    label: str
    control: str
    parts: dict[str, float]
    rest: float
    total: float
    first_token: float
    n: int

    @property
    def said(self) -> str:
        """The bar in words: what is nil is left out."""
        parts = {**self.parts, "unaccounted": self.rest}
        return ", ".join(f"{name} {duration(ms)}" for name, ms in parts.items() if ms > 0)


class Stack(NamedTuple):
    """One task.

    longest: of the bars, ms: they share its scale. untimed: methods of which no document was timed
    alone.
    """

    heading: str
    bars: list[Bar]
    longest: float
    untimed: list[str]


def stacks(source: Source) -> list[Stack]:
    """One for each pair, task and scoring, its methods in the summary's order."""
    found = []
    for key in source.by_task:
        groups = [group for group in source.groups_of(key) if group.control in SHOWN]
        bars = [bar for group in groups if (bar := _bar(group))]
        timed = {(bar.label, bar.control) for bar in bars}
        others = [g for g in groups if (g.label, g.control) not in timed]
        untimed = [_named(group.label, group.control) for group in others]
        heading = f"{key[1]} ({key[2]}), {places_named(key[0])}"
        found.append(Stack(heading, bars, max((bar.total for bar in bars), default=0.0), untimed))
    return found


def tables(source: Source) -> list[Table]:
    """The same numbers for Markdown."""
    names = (*(f"{name} ms" for name in PHASES), "to end of answer ms", "timed")
    heads = [Head("method"), *(Head(name, True) for name in names)]
    found = []
    for index, stack in enumerate(stacks(source)):
        rows = []
        for bar in stack.bars:
            parts = [Entry(duration(ms), ms) if ms > 0 else Entry(NONE) for ms in bar.parts.values()]
            total = Entry(duration(bar.total), bar.total)
            rows.append(Row([text(_named(bar.label, bar.control)), *parts, total, number(bar.n)]))
        if rows:
            found.append(Table(f"latency-{index}", stack.heading, heads, rows))
    return found


def _bar(group: RunGroup) -> Bar | None:
    """None where nothing was timed alone, or the phases were not told apart."""
    totals, firsts = (group.timed(name)[1] for name in ("ttea_ms", "ttft_ms"))
    parts = {name: group.timed(f"{name}_ms")[1] for name in PHASES}
    if not any(len(values) for values in parts.values()):
        return None
    means = {name: float(values.mean()) if len(values) else 0.0 for name, values in parts.items()}
    total = float(totals.mean()) if len(totals) else sum(means.values())
    rest = total - sum(means.values())
    first = float(firsts.mean()) if len(firsts) else 0.0
    n = max(len(values) for values in parts.values())
    rest = rest if rest > GAP * total else 0.0
    return Bar(group.label, group.control, means, rest, max(total, sum(means.values())), first, n)


def _named(label: str, control: str) -> str:
    return label if control == "matched" else f"{label}, {control}"

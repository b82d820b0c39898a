"""Two sets of runs side by side: what changed on the same documents, how surely, and at what cost.

    from lcfbench.analysis.compare import compare
    compare(read_run_groups([Path("a")]), read_run_groups([Path("b")])).lines[0].difference

Differences are B − A, document by document; ratios are B / A. Scores are fractions here; tables
show points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lcfbench.analysis.matching import (
    EXPLAINS,
    REFUSED,
    Pairing,
    allowing,
    changes,
    clashes,
    differing,
    full_name,
    known_fields,
    listed,
    match,
    name_of,
    other_machine,
    prompts_apart,
    refuse,
    short_names,
    told_apart,
    unrecorded,
)
from lcfbench.analysis.run_groups import comparable_scores, too_many_failed
from lcfbench.analysis.stats import Paired, holm, paired
from lcfbench.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from lcfbench.analysis.run_groups import RunGroup, RunGroups

SAME_TASK = "Name two runs of the same task; `lcfbench ls runs` lists them."
FEW = 30  # documents below which an interval is told with a warning


class Line(NamedTuple):
    """One comparison, `what` being its name.

    n: documents both have. low, high: 95 % interval of the difference. p_holm: corrected over all
    lines. a, b: names of the methods. latency_ratio: median over the `latency_n` documents timed
    alone in both. only_a, only_b: hashes of documents that one side lacks. What is not known is
    NaN.
    """

    what: str
    task: str
    scoring: str
    metric: str
    a: str
    b: str
    n: int
    mean_a: float = math.nan
    mean_b: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    latency_ratio: float = math.nan
    latency_n: int = 0
    message_ratio: float = math.nan
    adapter_ratio: float = math.nan
    only_a: Sequence[str] = ()
    only_b: Sequence[str] = ()
    differs: Sequence[str] = ()
    notes: Sequence[str] = ()
    overall: bool = False


@dataclass(frozen=True)
class Comparison:
    """lines: one a pair of groups, then one for all tasks of a method together.

    unmatched: what only one side has, in words.
    """

    lines: list[Line]
    unmatched_a: list[str]
    unmatched_b: list[str]


def compare(a: RunGroups, b: RunGroups, allow: Sequence[str] = ()) -> Comparison:
    """Everything that A and B both asked, compared.

    A pair that is not comparable is a line that says why, without numbers.

    allow: fields of `REFUSED` that may differ. Raises UserError: the two hold nothing alike;
    nothing they hold is comparable; they have no document in common.
    """
    known_fields(REFUSED, allow, "compare")
    pairs, left_a, left_b = match(a.groups, b.groups)
    if not pairs:
        held = "; ".join(
            f"{side} holds {listed(groups.groups) or 'nothing'}" for side, groups in (("A", a), ("B", b))
        )
        raise UserError(f"nothing to compare: {held}.", SAME_TASK)
    bad = {id(one): found for one, other in pairs if (found := clashes(one, other, REFUSED, allow))}
    good = [pair for pair in pairs if id(pair[0]) not in bad]
    shared = {id(one): len(comparable(one, other)[0]) for one, other in pairs}
    failed = any(too_many_failed(*pair) for pair in pairs)
    if not failed and not any(shared.values()):
        one, other = pairs[0]
        if one.task != other.task:
            raise UserError(
                f"A asks task {one.task}, B asks task {other.task}: nothing to compare.", SAME_TASK
            )
    if not good:
        refuse(pairs, REFUSED, allow, "compare")
    if not failed and not any(shared[id(one)] for one, _ in good):
        one, other = good[0]
        raise UserError(
            f"no document in common: {full_name(one)} and {full_name(other)}.",
            "Run both with the same --limit and --seed.",
        )
    names = short_names([one for one, _ in pairs])
    lines = [
        _refused(name, pair, bad[id(pair[0])]) if id(pair[0]) in bad else _line(name, pair)
        for name, pair in zip(names, pairs, strict=True)
    ]
    lines += _overall([pair for pair in good if shared[id(pair[0])]])
    adjusted = holm([line.p for line in lines])
    lines = [line._replace(p_holm=p) for line, p in zip(lines, adjusted, strict=True)]
    names_a, names_b = (
        dict(zip(map(id, side.groups), short_names(side.groups), strict=True)) for side in (a, b)
    )
    return Comparison(
        lines, [names_a[id(group)] for group in left_a], [names_b[id(group)] for group in left_b]
    )


def comparable(a: RunGroup, b: RunGroup) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both on the documents that failed in neither; none where too many failed."""
    ours, theirs, _ = comparable_scores(a, b)
    return (ours[:0], theirs[:0]) if too_many_failed(a, b) else (ours, theirs)


def latency_ratios(a: RunGroup, b: RunGroup, column: str = "ttft_ms") -> np.ndarray:
    """B / A of every document that was timed alone in both."""
    import numpy as np

    (codes_a, ms_a), (codes_b, ms_b) = a.timed(column), b.timed(column)
    _, at_a, at_b = np.intersect1d(codes_a, codes_b, return_indices=True)
    one, other = np.asarray(ms_a)[at_a], np.asarray(ms_b)[at_b]
    timed = (one > 0) & (other > 0)
    return other[timed] / one[timed]


def only_in(a: RunGroup, b: RunGroup) -> list[str]:
    """Hashes of the documents that A has and B lacks."""
    import numpy as np

    alone = ~np.isin(a.codes, b.codes)
    return sorted(map(str, a.hashes[alone])) if alone.any() else []


def _named(name: str, pair: Pairing) -> Line:
    a, b = pair
    ends = name_of(a), name_of(b)
    return Line(
        name if ends[0] == ends[1] else f"{name} → {ends[1]}", a.task, a.scoring, a.metric, *ends, n=0
    )


def _refused(name: str, pair: Pairing, found: dict[str, tuple[Any, Any]]) -> Line:
    return _named(name, pair)._replace(
        notes=[f"not comparable: {told_apart(found)} differs; {allowing(found)} compares all the same"]
    )


def _line(name: str, pair: Pairing) -> Line:
    import numpy as np

    a, b = pair
    here = _scored(_named(name, pair), *comparable(a, b))
    ratios, notes = np.empty(0), _notes(a, b, here.n)
    if not (why := other_machine(a, b)):
        ratios = latency_ratios(a, b)
    elif len(latency_ratios(a, b)):
        notes.append(f"first token not compared: {why}")
    return here._replace(
        latency_ratio=float(np.median(ratios)) if len(ratios) else math.nan,
        latency_n=len(ratios),
        message_ratio=_ratio(b.median("message_bytes"), a.median("message_bytes")),
        adapter_ratio=_ratio(b.median("adapter_bytes"), a.median("adapter_bytes")),
        only_a=only_in(a, b),
        only_b=only_in(b, a),
        differs=changes(differing(a, b, (*REFUSED, *EXPLAINS))),
        notes=notes,
    )


def _scored(line: Line, x: np.ndarray, y: np.ndarray) -> Line:
    """The line with its means, difference, interval and p."""
    if not len(x):
        return line
    got: Paired = paired(y, x)
    low, high = got.interval()
    means: dict[str, Any] = {"mean_a": float(x.mean()), "mean_b": float(y.mean())}
    return line._replace(n=got.n, **means, difference=got.value, low=low, high=high, p=got.p())


def _notes(a: RunGroup, b: RunGroup, n: int) -> list[str]:
    notes = []
    if why := too_many_failed(a, b):
        notes.append(f"not compared: {why}")
    elif n < FEW:
        few = f"only {n} documents: whatever the difference looks like, little can be concluded"
        notes.append(few if n else "no document in common")
    for side, group in (("A", a), ("B", b)):
        if group.errors:
            notes.append(f"{side}: {group.errors} of {group.n} documents failed and are left out")
        if group.unparsed > 0:
            notes.append(f"{side}: {100 * group.unparsed:.1f} % of the answers could not be read")
        if group.state in ("running", "interrupted"):
            notes.append(f"{side}: not finished, {group.n} documents so far")
    if (apart := prompts_apart(a, b))[0]:
        notes.append("prompts differ on {} of {} documents".format(*apart))
    if absent := unrecorded(a, b, REFUSED):
        notes.append(f"not recorded on both sides, so not compared: {', '.join(absent)}")
    return notes


def _overall(pairs: Sequence[Pairing]) -> list[Line]:
    """Compares methods over all their tasks; 0/1 scores go together, others by metric."""
    import numpy as np

    groups: dict[tuple[str, ...], list[Pairing]] = {}
    for a, b in pairs:
        scale = "0/1" if all(((s == 0) | (s == 1)).all() for s in comparable(a, b)) else a.metric
        groups.setdefault((a.pair, a.label, a.control, b.pair, b.label, b.control, scale), []).append((a, b))
    lines = []
    for members in groups.values():
        if len({a.task for a, _ in members}) < max(
            2, len(members)
        ):  # one task, or a task twice: no sum of tasks
            continue
        x, y = map(np.concatenate, zip(*(comparable(*pair) for pair in members), strict=True))
        (a, b), metrics = members[0], dict.fromkeys(one.metric for one, _ in members)
        first, second = name_of(a), name_of(b)
        methods = " → ".join(dict.fromkeys((first, second)))
        what = f"overall, {len(x):,} documents of {len(members)} tasks: {methods}"
        lines.append(_scored(Line(what, "", "", ", ".join(metrics), first, second, n=0, overall=True), x, y))
    return lines


def _ratio(b: float, a: float) -> float:
    return b / a if a > 0 and b > 0 else math.nan

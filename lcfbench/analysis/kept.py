"""How much of a whole cache's worth a smaller message keeps, and at what part of its bytes.

    from lcfbench.analysis.kept import Aim, kept
    kept(read_run_groups([Path("results")]).groups, Aim("kvcomm"))

Worth is content P, as in a verdict: matched minus the worst run without content. What decides is the
difference P − share · P of the whole, paired over the documents that all of these runs have: a quotient of
two means has no useful interval where the lower one may be near zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from lcfbench.analysis.matching import REFUSED, differing
from lcfbench.analysis.run_groups import RunGroup
from lcfbench.analysis.stats import Paired, paired
from lcfbench.analysis.summary import GROUP, hashable, nearest, set_apart, twins_of
from lcfbench.controls.names import WITHOUT_CONTENT
from lcfbench.errors import UserError, unknown
from lcfbench.tables import Cell, Column, Table

if TYPE_CHECKING:
    import numpy as np

Reached: TypeAlias = Literal["yes", "no", "undecided"]
STYLES = {"yes": "green", "no": "red", "undecided": "yellow"}


@dataclass(frozen=True)
class Aim:
    """What a message shall keep of a whole one.

    whole: the label or the method of the message that is the measure, as kvcomm; of several runs the one
    with the most bytes. content: share of its P. bytes: share of its bytes. Raises UserError for shares that
    are none.
    """

    whole: str
    content: float = 0.8
    bytes: float = 0.01

    def __post_init__(self) -> None:
        for name in ("content", "bytes"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise UserError(f"a {name} share of {value:g}.", "Give a share above 0 and up to 1, as 0.8.")


class Kept(NamedTuple):
    """One method beside the whole message of its pair, task and scoring. Scores are fractions.

    kept_of: the whole's label. message_bytes: median. of_bytes, of_content: shares of the whole's; NaN where
    that is nothing.
    whole_content: the whole's P on the same `n` documents. above: P − share · whole_content, with its 95 %
    interval. reached: "yes" where the bytes are few enough and the whole interval lies above 0; "no" where
    they are too many or it lies below.
    """

    pair: str
    task: str
    scoring: str
    mode: str
    label: str
    kept_of: str
    message_bytes: float
    of_bytes: float
    content: float
    whole_content: float
    of_content: float
    above: float
    above_low: float
    above_high: float
    n: int
    reached: Reached


def kept(groups: Sequence[RunGroup], aim: Aim) -> list[Kept]:
    """Every matched run that sent a message beside the whole one of its place, in order of bytes.

    Left out are runs without a deranged one, and those that answered other questions than the whole.
    Raises UserError where no place has a whole message with a deranged run.
    """
    sent = [g for g in groups if g.control == "matched" and g.median("message_bytes") > 0]
    wholes = {_place(g): g for g in sorted(sent, key=_bytes) if aim.whole in (g.label, g.mode)}
    if not wholes:
        labels = list(dict.fromkeys(g.label for g in sent))
        raise unknown("message", aim.whole, labels, "lcfbench show")
    found = [_kept(g, wholes[_place(g)], groups, aim) for g in sent if _place(g) in wholes]
    lines = [line for line in found if line is not None]
    if not lines:
        raise UserError(
            f"no run of {aim.whole} with a deranged one to compare it with.",
            f"Run it with the others: --mode {aim.whole},… --control matched,deranged.",
        )
    return sorted(lines, key=lambda line: (line.pair, line.task, line.scoring, line.message_bytes))


def _kept(group: RunGroup, whole: RunGroup, groups: Sequence[RunGroup], aim: Aim) -> Kept | None:
    own_empty, whole_empty = without_content(group, groups)[0], without_content(whole, groups)[0]
    if not own_empty or not whole_empty or differing(group, whole, REFUSED):
        return None
    scores = shared_scores([group, whole, *own_empty, *whole_empty])
    if not len(scores[0]):
        return None
    split = 2 + len(own_empty)
    test = share_test((scores[0], scores[2:split]), (scores[1], scores[split:]), aim.content)
    low, high = (test.scale * end for end in test.pair.interval())
    size, most = group.median("message_bytes"), whole.median("message_bytes")
    reached: Reached = "undecided"
    if size > aim.bytes * most or high < 0:
        reached = "no"
    elif low > 0:
        reached = "yes"
    return Kept(
        group.pair, group.task, group.scoring, group.mode, group.label, whole.label,
        size, size / most, test.content, test.whole,
        test.content / test.whole if test.whole > 0 else math.nan,
        test.scale * test.pair.value, low, high, test.pair.n, reached,
    )  # fmt: skip


class ShareTest(NamedTuple):
    """pair: its difference times `scale` is content − share · whole. content, whole: both P."""

    pair: Paired
    scale: float
    content: float
    whole: float
    whole_pair: Paired


Arms: TypeAlias = "tuple[np.ndarray, Sequence[np.ndarray]]"  # matched scores, and those without content


def share_test(own: Arms, whole: Arms, share: float) -> ShareTest:
    """Content of one message minus a share of another's, document by document.

    own, whole: matched scores and those of each run without content, all over the same documents; the
    best of those without content counts. The difference is written as one of two means that lie between 0
    and 1, as intervals of scores need.
    """
    matched, other = own[0], whole[0]
    worst, worst_other = (max(part[1], key=lambda x: float(x.mean())) for part in (own, whole))
    pair = paired((matched + share * worst_other) / (1 + share), (worst + share * other) / (1 + share))
    return ShareTest(
        pair, 1 + share, float((matched - worst).mean()), float((other - worst_other).mean()),
        paired(other, worst_other),
    )  # fmt: skip


def without_content(group: RunGroup, groups: Sequence[RunGroup]) -> tuple[list[RunGroup], str]:
    """Returns the same method under every control without content that was run, and what must be said of it.

    Deranged must be among them: else there are none, and what is said is why.
    """
    found: list[RunGroup] = []
    said: list[str] = []
    for control in WITHOUT_CONTENT:
        fitting = twins_of(group, groups, control)
        twin, why = nearest(group, fitting)
        if twin is not None:
            found.append(twin)
            if len(fitting) > 1:
                said.append(f"{control}: {'+'.join(twin.run_ids)} is the nearest of {len(fitting)} that fit")
        elif control == "deranged":
            return [], _lacking(group, groups, fitting, why)
        elif why:
            said.append(f"{control} is left out: {why}")
    return found, "; ".join(said)


def _lacking(group: RunGroup, groups: Sequence[RunGroup], fitting: Sequence[RunGroup], why: str) -> str:
    """Why no deranged run stands beside a run. fitting: those of its settings. why: what `nearest` says."""
    if why:
        return f"which deranged run counts is open: {why}"
    if fitting:
        return f"its deranged run {'+'.join(fitting[0].run_ids)} has no document in common with it"
    place = _place(group)
    others = [g for g in groups if (g.control, g.mode, _place(g)) == ("deranged", group.mode, place)]
    if others:
        names = ", ".join(set_apart(group, others))
        return f"the deranged runs of {group.mode} differ from it in {names}: run it with the same settings"
    return "no run without content: add --control deranged"


def shared_scores(runs: Sequence[RunGroup]) -> list[np.ndarray]:
    """Scores of each on the documents that all have and that failed in none, in the same order."""
    import numpy as np

    codes = runs[0].codes
    for run in runs[1:]:
        codes = np.intersect1d(codes, run.codes, assume_unique=True)
    for run in runs:
        codes = codes[~np.isin(codes, run.failed)]
    return [run.scores[np.searchsorted(run.codes, codes)] for run in runs]


def kept_tables(lines: Sequence[Kept], aim: Aim) -> list[Table]:
    """A table a pair, task and scoring: bytes, P, what is kept of both, and whether the aim is reached."""
    columns = [
        Column("method"), Column("bytes", right=True), Column("of its bytes", right=True),
        Column("P", right=True), Column("of its P", right=True),
        Column(f"P − {100 * aim.content:.3g} % of its P, 95 %", right=True), Column("reached"),
    ]  # fmt: skip
    tables = []
    for place in dict.fromkeys((x.pair, x.task, x.scoring) for x in lines):
        here = [x for x in lines if (x.pair, x.task, x.scoring) == place]
        rows = [_row(line) for line in here]
        legend = (
            f"its: of {here[0].kept_of}, P {100 * here[0].whole_content:+.1f}. P: content, points; intervals "
            f"over n={here[0].n:,} documents. reached: at most {100 * aim.bytes:.3g} % of its bytes, and the "
            "interval lies above 0."
        )
        title = f"{place[1]} ({place[2]}): {place[0]}"
        tables.append(Table(title, columns, rows, [STYLES[x.reached] for x in here], legend=legend))
    return tables


def _row(line: Kept) -> list[Cell]:
    def share(value: float) -> str:
        return "–" if math.isnan(value) else f"{100 * value:.3g} %"

    ends = f"[{100 * line.above_low:+.1f}, {100 * line.above_high:+.1f}]"
    return [
        line.label, f"{line.message_bytes:,.0f}", share(line.of_bytes), f"{100 * line.content:+.1f}",
        share(line.of_content), f"{100 * line.above:+.1f} {ends}", line.reached,
    ]  # fmt: skip


def _place(group: RunGroup) -> Any:
    return hashable([getattr(group, name) for name in GROUP])


def _bytes(group: RunGroup) -> float:
    return group.median("message_bytes")

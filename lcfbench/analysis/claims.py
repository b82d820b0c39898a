"""What papers claim, held against recorded runs: it holds here, it does not, or it is undecided.

    from lcfbench.analysis.claims import judge_claims
    judge_claims(read_run_groups([Path("results")]).groups)

The claims stand in claims.yaml. A claim is judged on every pair and task on which the runs that it is about
were recorded; their intervals are at 1 − 0.05/k for k such lines (Bonferroni), so that with 95 % none of
the verdicts is an accident.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lcfbench.analysis.kept import share_test, shared_scores, without_content
from lcfbench.analysis.matching import REFUSED, differing
from lcfbench.analysis.run_groups import RunGroup, too_many_failed
from lcfbench.analysis.stats import DELTA, Paired, paired
from lcfbench.analysis.summary import GROUP, hashable
from lcfbench.errors import UserError
from lcfbench.parsing import load_yaml
from lcfbench.tables import Cell, Column, Table

Label: TypeAlias = Literal["holds here", "does not hold here", "undecided", "not measured"]
ALPHA = 0.05
STYLES = {"holds here": "green", "does not hold here": "red", "undecided": "yellow", "not measured": "dim"}
LEGEND = (
    "difference: points, over the documents that all runs of the line have, with an interval that is as wide "
    f"as {100 * (1 - ALPHA):g} % for all lines together asks. content: matched minus the worst run without "
    "content (deranged, zero, noise, silent). holds here: the whole interval says so. does not hold here: it "
    "excludes the claim, for one of being better an advantage of {delta} points or more. Else undecided."
)


class Arm(BaseModel):
    """The runs that a claim is about. mode: a method. options: those that they must have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mode: str
    options: dict[str, Any] = {}

    def fits(self, group: RunGroup) -> bool:
        """Whether runs are of this method, with its options and their own documents' messages."""
        own = group.identity.get("options") or {}
        same = all(str(own.get(name)) == str(value) for name, value in self.options.items())
        return group.mode == self.mode and group.control == "matched" and same


class Claim(BaseModel):
    """A sentence of a paper and the measurement that is closest to it. See claims.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    paper: str
    source: str
    claim: str
    test: Literal["content", "above", "level", "share"]
    a: Arm
    b: Arm | None = None
    tasks: tuple[str, ...] = ("*",)
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    here: str = ""


class Judged(NamedTuple):
    """A claim on one pair and task. Scores and differences are fractions.

    pair, task, a, b: "" where nothing was measured. against: which run without content, for content alone.
    difference: of what the claim is about: scores, scores + margin, contents, or content minus a share of
    the other's. low, high: its interval at `confidence`. command: repeats the runs.
    """

    claim: Claim
    label: Label
    pair: str = ""
    task: str = ""
    a: str = ""
    b: str = ""
    score_a: float = float("nan")
    score_b: float = float("nan")
    difference: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    confidence: float = float("nan")
    note: str = ""
    command: str = ""

    def record(self) -> dict[str, Any]:
        """Its fields as one flat line, the claim's first."""
        own = {name: getattr(self.claim, name) for name in ("paper", "source", "claim", "test")}
        return {**own, "verdict": self.label, **{k: v for k, v in self._asdict().items() if k not in SKIPPED}}


SKIPPED = ("claim", "label")


@dataclass(frozen=True)
class _Line:
    """What can be judged.

    runs: all that are read, a first. b: what a is held against, in words. scores: means of both. tests:
    differences of which each must be above 0, divided by `scale`. given: what must be above 0 too. note:
    which runs were chosen, where several fit.
    """

    claim: Claim
    runs: Sequence[RunGroup]
    b: str
    scores: tuple[float, float]
    tests: Sequence[Paired]
    scale: float = 1.0
    given: Paired | None = None
    note: str = ""


def claims() -> list[Claim]:
    """The packaged claims, in the order of their file."""
    found = load_yaml(Path(__file__).with_name("claims.yaml"), "claims")
    return TypeAdapter(list[Claim]).validate_python(found["claims"])


def judge_claims(groups: Sequence[RunGroup], delta: float = DELTA) -> list[Judged]:
    """Every claim on every pair and task on which it can be judged, in the order of claims.yaml.

    A claim without such runs is one line, "not measured". delta: advantages smaller than this count as none.
    """
    every = claims()
    found = [list(_lines(claim, groups)) for claim in every]
    lines = sum(isinstance(line, _Line) for several in found for line in several)
    confidence = 1 - ALPHA / max(lines, 1)
    judged: list[Judged] = []
    for claim, several in zip(every, found, strict=True):
        judged += [
            _judge(line, confidence, delta) if isinstance(line, _Line) else line for line in several
        ] or [Judged(claim, "not measured")]
    return judged


def _lines(claim: Claim, groups: Sequence[RunGroup]) -> Iterator[_Line | Judged]:
    """What can be judged of a claim, or why it cannot although the runs are there."""
    asked = [g for g in groups if any(fnmatch(g.task, pattern) for pattern in claim.tasks)]
    places = dict.fromkeys(hashable([getattr(g, name) for name in GROUP]) for g in asked)
    for place in places:
        here = [g for g in asked if hashable([getattr(g, name) for name in GROUP]) == place]
        ours = [g for g in here if claim.a.fits(g)]
        theirs = [g for g in here if claim.b is not None and claim.b.fits(g)]
        if not ours or (claim.b is not None and not theirs):
            continue
        several = [what for what in (ours, theirs) if len(what) > 1]
        if several:
            names = ", ".join(sorted(g.label for g in several[0]))
            why = f"several runs fit ({names}): name the folders of one"
            yield Judged(claim, "undecided", ours[0].pair, ours[0].task, note=why)
            continue
        yield _line(claim, ours[0], theirs[0] if theirs else None, groups)


def _line(claim: Claim, a: RunGroup, b: RunGroup | None, groups: Sequence[RunGroup]) -> _Line | Judged:
    """One pair and task: the differences that decide."""

    def unfit(note: str) -> Judged:
        return Judged(claim, "undecided", a.pair, a.task, a.label, b.label if b else "", note=note)

    if b is not None and (apart := differing(a, b, REFUSED)):
        return unfit(f"not comparable: they differ in {', '.join(apart)}")
    about = [a] if claim.test == "content" else [a, b] if claim.test == "share" else []
    found = [without_content(g, groups) for g in about if g is not None]
    if lacking := [note for several, note in found if not several]:
        return unfit(lacking[0])
    note = "; ".join(dict.fromkeys(note for _, note in found if note))
    runs = [a, *([b] if b else []), *(g for several, _ in found for g in several)]
    failed = next((why for g in runs if (why := too_many_failed(a, g))), "")
    if failed:
        return unfit(failed)
    scores = shared_scores(runs)
    if not len(scores[0]):
        return unfit("no document in common")
    own = scores[0]
    if b is None:
        worst = max(range(1, len(runs)), key=lambda at: float(scores[at].mean()))
        means = float(own.mean()), float(scores[worst].mean())
        tests = [paired(own, other) for other in scores[1:]]
        return _Line(claim, runs, runs[worst].control, means, tests, note=note)
    other, means = scores[1], (float(own.mean()), float(scores[1].mean()))
    if claim.test != "share":
        return _Line(claim, runs, b.label, means, [paired(own, other)])
    split = 2 + len(found[0][0])
    test = share_test((own, scores[2:split]), (other, scores[split:]), claim.share)
    return _Line(claim, runs, b.label, means, [test.pair], test.scale, test.whole_pair, note)


def _judge(line: _Line, confidence: float, delta: float) -> Judged:
    claim, a = line.claim, line.runs[0]
    margin = claim.margin if claim.test == "level" else 0.0
    worst = min(line.tests, key=lambda test: test.value)
    low = line.scale * min(test.interval(confidence)[0] for test in line.tests)
    high = line.scale * worst.interval(confidence)[1]
    advantage = delta if claim.test in ("content", "above") else 0.0
    label: Label = (
        "holds here"
        if low + margin > 0
        else "does not hold here"
        if high + margin < advantage
        else "undecided"
    )
    note = line.note
    if any(run.state != "complete" for run in line.runs):
        note = "; ".join(filter(None, ["some of its runs are not complete", note]))
    if line.given is not None and line.given.interval(confidence)[0] <= 0:
        label, note = "undecided", "no content is shown of which this could be a share"
    return Judged(
        claim, label, a.pair, a.task, a.label, line.b, *line.scores, line.scale * worst.value, low, high,
        worst.n, confidence, note, _command(line.runs),
    )  # fmt: skip


def _command(runs: Sequence[RunGroup]) -> str:
    """The command that makes these runs again."""
    first, recipe = runs[0], runs[0].manifest.recipe or {}
    modes = dict.fromkeys(_spec(run) for run in runs)
    controls = dict.fromkeys(run.control for run in runs)
    words = ["lcfbench", "run", "--pair", first.pair, "--task", first.task]
    words += ["--mode", ",".join(modes), "--control", ",".join(controls)]
    for name, value in (recipe.get("task_options") or {}).items():
        words += ["--task-option", f"{name}={value}"]
    asked = {name: first.identity.get(name) for name in ("limit", "seed", "dtype", "wire", "join")}
    asked |= {name: recipe.get(name) for name in ("scoring", "shots", "prompt")}
    for name, value in asked.items():
        words += [f"--{name}", str(value)] if value not in (None, 0) else []
    return shlex.join(words)


def _spec(run: RunGroup) -> str:
    """A method with its adapter and all its options, as `--mode` takes it."""
    options: Mapping[str, Any] = run.identity.get("options") or {}
    adapter = {"adapter": _adapter(run)} if run.manifest.adapter else {}
    told = [f"{name}={value}" for name, value in {**adapter, **options}.items() if value is not None]
    return f"{run.mode}:{','.join(told)}" if told else run.mode


def _adapter(run: RunGroup) -> str:
    """The adapter as `--adapter` takes it; of an older run as its recipe names it, or its name."""
    if run.manifest.adapter_folder:
        return run.manifest.adapter_folder
    name, recipe = str(run.manifest.adapter), run.manifest.recipe or {}
    given = [str(path) for path in recipe.get("adapter") or []]
    for spec in recipe.get("mode") or []:
        given += re.findall(r"adapter=([^,]+)", str(spec))
    return next((path for path in given if Path(path).name == name), name)


# -- as tables ------------------------------------------------------------------------------------


def some(judged: Sequence[Judged]) -> list[Judged]:
    """The claims of which something was measured. Raises UserError where that is none."""
    found = [line for line in judged if line.label != "not measured"]
    if not found:
        raise UserError(
            "these runs are of nothing that a paper claims.",
            "`lcfbench claims --all` lists the claims; each needs the methods that it is about on one task.",
        )
    return found


def claims_table(judged: Sequence[Judged], delta: float = DELTA) -> Table:
    """A line a claim, pair and task, for a terminal or Markdown."""
    columns = [
        Column("paper", wrap=True), Column("claim", wrap=True), Column("pair", optional=True, wrap=True),
        Column("task", optional=True, wrap=True), Column("measured", wrap=True), Column("verdict", wrap=True),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [line.claim.paper, line.claim.claim, line.pair, line.task, measured(line), verdict_told(line)]
        for line in judged
    ]
    legend = LEGEND.replace("{delta}", f"{100 * delta:g}")
    return Table("", columns, rows, [STYLES[line.label] for line in judged], legend=legend)


def verdict_told(line: Judged) -> str:
    """The verdict, with the number of documents where that is why it is open."""
    return f"undecided at n={line.n:,}" if line.label == "undecided" and line.n else line.label


def measured(line: Judged) -> tuple[str, ...]:
    """What was measured: both sides, the difference, what else is to be said."""
    if not line.n:
        return (line.note or "–",)
    what = {"content": "content", "share": f"content − {100 * line.claim.share:g} % of the other's"}
    said = what.get(line.claim.test, "difference")
    ends = f"[{100 * line.low:+.1f}, {100 * line.high:+.1f}]"
    return (
        f"{line.a} {100 * line.score_a:.1f}, {line.b} {100 * line.score_b:.1f}",
        f"{said} {100 * line.difference:+.1f} {ends}, n={line.n:,}",
        *([line.note] if line.note else []),
    )


def page(judged: Sequence[Judged], delta: float = DELTA) -> str:
    """All claims as a page of Markdown: a table of verdicts, then each claim with its lines and command."""
    rows = [[x.claim.paper, x.claim.claim, x.task or "–", verdict_told(x)] for x in judged]
    heads = [Column(name) for name in ("paper", "claim", "task", "verdict")]
    legend = LEGEND.replace("{delta}", f"{100 * delta:g}")
    parts = [Table("", heads, rows).markdown().rstrip(), legend]
    for paper, of_paper in groupby(judged, lambda line: line.claim.paper):
        parts.append(f"## {paper}")
        for claim, lines in groupby(of_paper, lambda line: line.claim):
            parts += _section(claim, list(lines))
    return "\n\n".join(parts) + "\n"


def _section(claim: Claim, lines: Sequence[Judged]) -> list[str]:
    """One claim: its sentence, what is different here, its lines, the commands that repeat them."""
    columns = [Column(name) for name in ("pair", "task", "measured", "verdict")]
    table = Table("", columns, [[x.pair, x.task, measured(x), verdict_told(x)] for x in lines])
    commands = "\n".join(line.command for line in lines if line.command)
    return [
        f"> {claim.claim} ({claim.source})",
        *([claim.here] if claim.here else []),
        table.markdown().rstrip() if lines[0].pair else "Not measured here.",
        *([f"```bash\n{commands}\n```"] if commands else []),
    ]

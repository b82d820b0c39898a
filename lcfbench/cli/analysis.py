"""Verbs that only read what was recorded: show, verdict, compare, check, report, plot. None imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcfbench.cli.console import echo, note, warn
from lcfbench.cli.options import RunsArgument, group
from lcfbench.errors import Exit, UserError
from lcfbench.files import check_output, standard_stream, write_output

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.analysis.frontier import Choice
    from lcfbench.analysis.gate import Checked
    from lcfbench.analysis.run_groups import RunGroups
    from lcfbench.tables import Table

REPORTS = {"html": "report.html", "markdown": "report.md", "csv": "report.csv"}
RESULTS = Path("results")
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="FIELD", help="Compare although this field of the runs differs. Repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="CSV.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Markdown.")]
GroupOption = Annotated[
    list[str] | None,
    typer.Option(
        "--group", metavar="NAME", help="Average this group: a name of `ls groups`, or a YAML. Repeatable."
    ),
]
ExplainOption = Annotated[bool, typer.Option("--explain", help="Say below the table what every term means.")]
TaskOption = Annotated[str, typer.Option("--task", help="Draw this task. [default: each, below one another]")]
PairOption = Annotated[str, typer.Option("--pair", help="Draw this pair. [default: each]")]

plot_app = group("Figures from recorded runs.")


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    for verb in (show, verdict, compare, check, claims, report):
        app.command()(verb)
    app.add_typer(plot_app, name="plot")


# -- tables ---------------------------------------------------------------------------------------


def show(
    runs: RunsArgument = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
    by_subject: Annotated[
        bool, typer.Option("--by-subject", help="A line a subject where a task has them (mmlu_redux).")
    ] = False,
    explain: ExplainOption = False,
    groups: GroupOption = None,
) -> None:
    """Show scores with intervals, latency, adapter and message sizes: a line a method, task and control.

    Below them the averages of groups of which two tasks were run, and what was published for the pair.
    """
    show_runs(runs or [RESULTS], _form(as_json, as_csv, as_markdown), by_subject, explain, groups)


def show_runs(
    paths: Sequence[Path],
    form: str = "table",
    by_subject: bool = False,
    explain: bool = False,
    groups: Sequence[str] | None = None,
) -> None:
    """Prints the summary of recorded runs, and averages of groups. form: table, markdown, csv or json."""
    from lcfbench.analysis.groups import averages, tables
    from lcfbench.analysis.run_groups import read_run_groups
    from lcfbench.analysis.summary import summarise
    from lcfbench.analysis.tables import summary_tables
    from lcfbench.tasks.groups import chosen_groups

    chosen = chosen_groups(groups) if groups else None
    if by_subject and chosen:
        raise UserError("--group and --by-subject are both given.", "Leave one of them out.")
    read = read_run_groups(list(paths), by_subject=by_subject)
    _warn(read.warnings)
    summary = summarise(read.groups)
    found = [] if by_subject else averages(read.groups, summary, chosen)
    if chosen and not found:
        names = ", ".join(group.name for group in chosen)
        raise UserError(f"no task of {names} was run here.", "Name the folders of its runs.")
    records = [average.record(flat=form == "csv") for average in found]
    lines: Any = [*summary.to_dict("records"), *records] if records else summary
    _print(lines, lambda: [*summary_tables(summary, explain), *tables(found)], form)


def verdict(
    runs: RunsArgument = None,
    delta: Annotated[
        str, typer.Option(help="Differences smaller than this count as none: 2pt are two percentage points.")
    ] = "2pt",
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
    explain: ExplainOption = False,
) -> None:
    """Say whether knowledge crosses, how much, how surely and at which cost.

    A line for every method that sends something: gain, content and a verdict in words, corrected for
    all claims that are shown.
    """
    from lcfbench.analysis.summary import judged
    from lcfbench.analysis.tables import verdict_tables

    least = _share(delta, "--delta", "2pt")
    summary = summary_of(runs or [RESULTS], delta=least)
    form = _form(as_json, as_csv, as_markdown)
    _print(judged(summary), lambda: verdict_tables(summary, least, explain), form)


def compare(
    a: Annotated[Path, typer.Argument(help="A results folder, run folder or parquet file.")],
    b: Annotated[
        Path | None,
        typer.Argument(help="The runs it is compared with; differences are B − A. Without it, those of A."),
    ] = None,
    only_a: Annotated[
        str | None,
        typer.Option(
            "--a", help="Of A only the runs of this label, as `show` names them, or of this method."
        ),
    ] = None,
    only_b: Annotated[
        str | None, typer.Option("--b", help="Of B only the runs of this label or method.")
    ] = None,
    allow: AllowOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
    explain: ExplainOption = False,
) -> None:
    """Compare runs on the same documents: paired difference, interval, p, latency and bytes ratios."""
    from lcfbench.analysis.compare import compare as compared
    from lcfbench.analysis.matching import labelled
    from lcfbench.analysis.tables import comparison_records, comparison_table, to_json

    if b is None and (only_a is None or only_b is None):
        raise UserError("there is no B to compare with A.", "Name other runs, or labels with --a and --b.")
    first, second = _both(a, b or a)
    sides = (labelled(first, only_a, "A"), labelled(second, only_b, "B"))
    found = compared(*sides, allow or [])
    if as_json:
        lines = [line._asdict() for line in found.lines]
        whole = {"lines": lines, "only_a": found.unmatched_a, "only_b": found.unmatched_b}
        echo(to_json(whole), end="")
    else:
        form = _form(False, as_csv, as_markdown)
        _print(comparison_records(found), lambda: [comparison_table(found, explain)], form)


def summary_of(paths: Sequence[Path], by_subject: bool = False, delta: float | None = None) -> pd.DataFrame:
    """Summarises recorded runs, a line a method, task (or subject) and control; warns of unreadable ones."""
    from lcfbench.analysis.run_groups import read_run_groups
    from lcfbench.analysis.stats import DELTA
    from lcfbench.analysis.summary import summarise

    found = read_run_groups(list(paths), by_subject=by_subject)
    _warn(found.warnings)
    return summarise(found.groups, DELTA if delta is None else delta)


def _both(a: Path, b: Path, damaged_too: bool = False) -> tuple[RunGroups, RunGroups]:
    """Reads two sides with their prompts; warns of files that cannot be read."""
    from lcfbench.analysis.run_groups import read_run_groups

    first, second = (read_run_groups([s], prompts=True, damaged_too=damaged_too) for s in (a, b))
    _warn(first.warnings + second.warnings)
    return first, second


def _print(
    lines: pd.DataFrame | Sequence[dict[str, Any]], tables: Callable[[], list[Table]], form: str
) -> None:
    """Prints lines as JSON or CSV, or their tables for a terminal or as Markdown."""
    from lcfbench.analysis.tables import to_csv, to_json
    from lcfbench.cli.tables import show

    if form == "json":
        echo(to_json(lines if isinstance(lines, Sequence) else lines.to_dict("records")), end="")
    elif form == "csv":
        echo(to_csv(lines), end="")
    else:
        show(*tables(), form="markdown" if form == "markdown" else "table")


def _form(as_json: bool, as_csv: bool, as_markdown: bool) -> str:
    return "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table"


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        warn(warning)


def claims(
    runs: RunsArgument = None,
    delta: Annotated[
        str, typer.Option(help="Advantages smaller than this count as none: 2pt are two percentage points.")
    ] = "2pt",
    every: Annotated[
        bool, typer.Option("--all", help="Also the claims of which no run says anything here.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Hold what papers claim against recorded runs: holds here, does not hold here, or undecided.

    A line a claim, pair and task; the intervals are corrected for all lines. JSON and CSV also have the
    command that repeats the runs.
    """
    from lcfbench.analysis.claims import claims_table, judge_claims, some
    from lcfbench.analysis.run_groups import read_run_groups

    least = _share(delta, "--delta", "2pt")
    read = read_run_groups(list(runs or [RESULTS]))
    _warn(read.warnings)
    judged = judge_claims(read.groups, least)
    shown = judged if every else some(judged)
    form = _form(as_json, as_csv, as_markdown)
    _print([line.record() for line in shown], lambda: [claims_table(shown, least)], form)


# -- check ----------------------------------------------------------------------------------------


def check(
    baseline: Annotated[
        Path, typer.Argument(help="Runs that are known to be good, such as results/baseline.")
    ],
    new: Annotated[Path, typer.Argument(help="Runs of the same methods and tasks, made now.")],
    max_drop: Annotated[str, typer.Option(help="Points of score that may be lost.")] = "1pt",
    max_slowdown: Annotated[
        str | None,
        typer.Option(help="Time to first token that may be added, such as 10%. [default: not checked]"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="An inconclusive check fails (1) too.")] = False,
    allow: AllowOption = None,
    junit: Annotated[Path | None, typer.Option(help="Also write a JUnit XML file.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Also print GitHub annotations. [default: in GitHub Actions]")
    ] = False,
    explain: ExplainOption = False,
) -> None:
    """Guard CI by exit codes: is a new run worse than the baseline?

    0 surely not worse, 1 surely worse, 3 too few documents to say, 4 something is missing, 2 not
    comparable.
    """
    from lcfbench.analysis.gate import outputs
    from lcfbench.analysis.gate.check import check_run_groups

    if junit is not None:
        check_output(junit)
    drop = _share(max_drop, "--max-drop", "1pt")
    slower = None if max_slowdown is None else _share(max_slowdown, "--max-slowdown", "10%", most=10.0)
    github = github or os.environ.get("GITHUB_ACTIONS") == "true"
    try:
        checked = check_run_groups(*_both(baseline, new, damaged_too=True), drop, slower, allow or [])
    except UserError as error:
        reason = f"{error.what} {error.next_step}"
        if github:
            echo(outputs.annotation("error", "lcfbench check", reason))
        _write_reports(junit, outputs.refused_junit(reason), outputs.refused_markdown(reason))
        raise
    _print_checked(checked, strict, explain)
    if github:
        for line in outputs.github_lines(checked, strict):
            echo(line)
    _write_reports(junit, outputs.to_junit(checked, strict), outputs.to_markdown(checked, strict))
    if (ended := checked.exit(strict)) != Exit.OK:
        raise typer.Exit(ended)


def _print_checked(checked: Checked, strict: bool, explain: bool) -> None:
    """Prints a line an aspect, and the outcome in one sentence."""
    from lcfbench.analysis.tables import check_table
    from lcfbench.cli.tables import show

    show(check_table(checked, explain=explain))
    style = {Exit.OK: "green", Exit.FAILED: "bold red"}.get(checked.exit(strict), "yellow")
    note(checked.summary(strict), style, stdout=True)


def _write_reports(junit: Path | None, xml: str, markdown: str) -> None:
    """Writes the JUnit file, and adds to GitHub's summary page where there is one. Raises UserError."""
    if junit is not None:
        write_output(junit, xml.encode())
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with open(page, "a", encoding="utf-8") as file:
                file.write(markdown)
        except OSError as error:
            what = f"cannot write {page}: {error.strerror or error}."
            raise UserError(what, "GITHUB_STEP_SUMMARY names the file of a job's summary.") from error


def _share(text: str, flag: str, example: str, most: float = 1.0) -> float:
    """Reads `2pt`, `2%` or `0.02` as 0.02. Raises UserError for others, and for `most` or more."""
    number, scale = text.strip(), 1.0
    for ending in ("pt", "pts", "%"):
        if number.endswith(ending):
            number, scale = number.removesuffix(ending).strip(), 0.01
            break
    try:
        value = float(number) * scale
    except ValueError:
        value = -1.0
    if not 0 <= value < most:
        what = f"{flag} {text!r} is no share from 0 to below {100 * most:g} %."
        raise UserError(what, f"Give for example {flag} {example}.")
    return value


# -- report and figures ---------------------------------------------------------------------------


def report(
    runs: RunsArgument = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write. [default: report.html, .md or .csv]")
    ] = None,
    as_markdown: MarkdownOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Write one self-contained page of recorded runs.

    Verdicts, frontiers, tables by task and subject, latency, gates, examples, provenance.
    """
    form = _form(False, as_csv, as_markdown)
    path = write_report(runs or [RESULTS], out, "html" if form == "table" else form)
    if not standard_stream(path):
        echo(path)


def write_report(runs: Sequence[Path], out: Path | None, form: str) -> Path:
    """Writes the report of these runs, whole or not at all, and returns its path.

    out: a file, or a folder that is there; `REPORTS[form]` by default. form: html, markdown or csv.
    Raises UserError where nothing can be read or the file cannot be written.
    """
    from lcfbench.analysis.report import FORMS
    from lcfbench.analysis.report.source import read

    name = REPORTS[form]
    path = Path(name) if out is None else out / name if out.is_dir() else out
    check_output(path)
    source = read(runs)
    _warn(source.warnings)
    write_output(path, FORMS[form](source).encode())
    return path


@plot_app.command("frontier")
def plot_frontier(
    runs: RunsArgument = None,
    x: Annotated[
        list[str] | None,
        typer.Option(
            "--x",
            metavar="AXES",
            help="adapter, latency, bytes, flops; several by commas. [default: adapter,latency,bytes]",
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these tasks; several by commas.")
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only these pairs; several by commas.")
    ] = None,
    average: Annotated[
        bool,
        typer.Option("--average", help="One panel for all tasks: the mean, weighted by their documents."),
    ] = False,
    pool_seeds: Annotated[
        bool,
        typer.Option("--pool-seeds", help="Draw adapters that differ in their training seed as one point."),
    ] = False,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Also draw the published numbers of the same pair and task, hollow."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for frontier.png and frontier.svg. [default: beside the first argument]"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Also write the numbers of the figure: NAME.csv or NAME.figure.parquet."),
    ] = None,
) -> None:
    """Accuracy against adapter size, latency, message bytes or computation, with the Pareto front.

    The points of one method are joined in order of adapter size or budget. Filled: matched; pale where
    no communication is shown, which is on no front. Hollow: deranged. Square: pruned.
    """
    from lcfbench.analysis.frontier import Choice

    chosen = Choice(x or (), task or (), pair or (), published, average, pool_seeds)
    for path in draw_frontier(runs or [RESULTS], out, chosen, data):
        echo(path)


def draw_frontier(
    paths: Sequence[Path], folder: Path | None = None, chosen: Choice | None = None, data: Path | None = None
) -> list[Path]:
    """Draws the frontier of recorded runs, and says what it leaves out; returns the files."""
    from lcfbench.analysis.frontier import Choice, draw

    warnings: list[str] = []
    try:
        return draw(paths, folder or _folder(paths[0]), chosen or Choice(), data, warnings)
    finally:
        _warn(warnings)


@plot_app.command("rate")
def plot_rate(
    runs: RunsArgument = None,
    task: TaskOption = "",
    pair: PairOption = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for rate.png and rate.svg. [default: beside the first argument]"),
    ] = None,
    whole: Annotated[
        str,
        typer.Option(
            "--whole",
            metavar="METHOD",
            help="Say what each message keeps of this one's P and bytes, as kvcomm: a label or a method.",
        ),
    ] = "",
    share: Annotated[float, typer.Option("--share", help="Share of its P that shall be kept.")] = 0.8,
    share_of_bytes: Annotated[
        float, typer.Option("--share-of-bytes", help="Share of its bytes that may be spent.")
    ] = 0.01,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Also write the numbers, NAME.csv; in place of runs it is drawn again."),
    ] = None,
) -> None:
    """What messages are worth by their size: content P with its interval against message bytes.

    The points of one method are joined in order of bytes; `run --wire native,int8,int4` makes several.
    """
    from lcfbench.analysis.kept import Aim, kept_tables
    from lcfbench.analysis.rate import Choice, draw
    from lcfbench.cli.tables import show

    paths, warnings = runs or [RESULTS], list[str]()
    aim = Aim(whole, share, share_of_bytes) if whole else None
    try:
        drawn = draw(paths, out or _folder(paths[0]), Choice(task, pair, aim, data), warnings)
    finally:
        _warn(warnings)
    if aim is not None:
        show(*kept_tables(drawn.kept, aim))
    for path in drawn.files:
        echo(path)


@plot_app.command("length")
def plot_length(
    runs: RunsArgument = None,
    task: TaskOption = "",
    pair: PairOption = "",
    dial: Annotated[
        str,
        typer.Option(
            "--dial", metavar="OPTION", help="Task option that makes contexts longer. [default: distractors]"
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for length.png and length.svg. [default: beside the first argument]"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Also write the numbers of the figure: NAME.csv.")
    ] = None,
) -> None:
    """Score and time to answer by the length of the sharer's context, a line a method; and their table.

    Run a task once for each length, as `--task-option distractors=70`; contexts are as long as the sharer
    reads, in tokens.
    """
    from lcfbench.analysis.length import DIAL, Choice, draw
    from lcfbench.cli.tables import show as show_tables

    paths, warnings = runs or [RESULTS], list[str]()
    try:
        tables, files = draw(
            paths, out or _folder(paths[0]), Choice(task, pair, dial or DIAL), data, warnings
        )
    finally:
        _warn(warnings)
    show_tables(*tables)
    for path in files:
        echo(path)


@plot_app.command("training")
def plot_training(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `lcfbench train` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for training.png and training.svg. [default: the first one]"),
    ] = None,
) -> None:
    """Loss and dev accuracy, matched and deranged, over the steps of a training."""
    from lcfbench.analysis.plots.training import plot

    warnings: list[str] = []
    paths = plot(folders, out or _folder(folders[0]), warnings)
    _warn(warnings)
    for path in paths:
        echo(path)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent

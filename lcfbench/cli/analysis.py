"""Verbs that only read what was recorded: show, verdict, compare, check, report, plot. None of them imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcfbench.cli.options import RunsArgument
from lcfbench.errors import Exit, UserError

plot_app = typer.Typer(no_args_is_help=True, help="Figures from recorded runs.", rich_markup_mode=None)
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="FIELD", help="Compare although this field of the runs differs; repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="CSV.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Markdown.")]


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    for verb in (show, verdict, compare, check, report):
        app.command()(verb)
    app.add_typer(plot_app, name="plot")


def show(
    runs: RunsArgument = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
    by_subject: Annotated[
        bool, typer.Option("--by-subject", help="A line a subject where a task has them (mmlu_redux).")
    ] = False,
) -> None:
    """What was measured: method, task, documents, accuracy ± interval, latency, adapter and message size."""
    from lcfbench.cli.verbs import show_runs

    show_runs(runs or [Path("results")], _form(as_json, as_csv, as_markdown), by_subject)


def verdict(
    runs: RunsArgument = None,
    delta: Annotated[
        str, typer.Option(help="Differences smaller than this count as none: 2pt are two percentage points.")
    ] = "2pt",
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Does knowledge cross, how much, how surely, at what cost: gain, content and a verdict in words, corrected over all that is shown."""
    from lcfbench.cli.verbs import show_verdicts

    show_verdicts(
        runs or [Path("results")], _share(delta, "--delta", "2pt"), _form(as_json, as_csv, as_markdown)
    )


def compare(
    a: Annotated[Path, typer.Argument(help="A results folder, run folder or parquet file.")],
    b: Annotated[Path, typer.Argument(help="What it is compared with; differences are B − A.")],
    allow: AllowOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    as_markdown: MarkdownOption = False,
) -> None:
    """Two runs on the same documents: paired difference, interval, p, latency and bytes ratio, by task and overall."""
    from lcfbench.cli.verbs import show_comparison

    show_comparison(a, b, _form(as_json, as_csv, as_markdown), allow or [])


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
) -> None:
    """Guard CI: 0 surely not worse, 1 surely worse, 3 too few documents to say, 4 something is missing, 2 not comparable."""
    from lcfbench.cli.gate_view import check as gate

    slower = None if max_slowdown is None else _share(max_slowdown, "--max-slowdown", "10%", most=10.0)
    ended = gate(
        baseline, new, _share(max_drop, "--max-drop", "1pt"), slower, strict, allow or [], junit, github
    )
    if ended != Exit.OK:
        raise typer.Exit(ended)


def report(
    runs: RunsArgument = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write. [default: report.html, .md or .csv]")
    ] = None,
    as_markdown: MarkdownOption = False,
    as_csv: CsvOption = False,
) -> None:
    """One self-contained page: verdicts, frontiers, tables by task and subject, where the time goes, gates, examples, provenance."""
    from lcfbench.cli.report_view import write_report

    typer.echo(
        write_report(
            runs or [Path("results")], out, "markdown" if as_markdown else "csv" if as_csv else "html"
        )
    )


@plot_app.command("frontier")
def plot_frontier(
    runs: RunsArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for frontier.png and frontier.svg. [default: beside the first argument]"
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Also draw the published numbers of the same pair and task, hollow."
        ),
    ] = False,
) -> None:
    """Accuracy against adapter size, latency and message bytes, with the Pareto front."""
    from lcfbench.cli.verbs import draw_frontier

    for path in draw_frontier(runs or [Path("results")], out, published):
        typer.echo(path)


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

    for path in plot(folders, out or (folders[0] if folders[0].is_dir() else folders[0].parent)):
        typer.echo(path)


def _form(as_json: bool, as_csv: bool, as_markdown: bool) -> str:
    return "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table"


def _share(text: str, flag: str, example: str, most: float = 1.0) -> float:
    """`2pt`, `2%` and `0.02` are all 0.02. Raises UserError for anything else, and for what is not below `most`."""
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
        raise UserError(
            f"{flag} {text!r} is no share from 0 to below {100 * most:g} %.",
            f"Give for example {flag} {example}.",
        )
    return value

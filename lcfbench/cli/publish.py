"""`lcfbench export` and `lcfbench publish`: recorded runs for other tools and for the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from lcfbench.cli.console import echo, note, warn
from lcfbench.cli.options import OfflineOption, RunsArgument, group
from lcfbench.errors import UserError
from lcfbench.files import standard_stream
from lcfbench.progress import quiet_libraries

export_app = group("Recorded runs in other formats: JSON Lines, CSV, Every Eval Ever.")
FileOption = Annotated[
    Path, typer.Option("-o", "--out", help="File to write; /dev/stdout prints.", show_default=True)
]


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command line."""
    app.add_typer(export_app, name="export")
    app.command()(publish)


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        warn(sentence)


@export_app.command("jsonl")
def export_jsonl(runs: RunsArgument = None, out: FileOption = Path("rows.jsonl")) -> None:
    """Write every row of the runs as a line of JSON: all columns, null where nothing is known."""
    _rows(runs, "jsonl", out)


@export_app.command("csv")
def export_csv(runs: RunsArgument = None, out: FileOption = Path("rows.csv")) -> None:
    """Write every row of the runs as CSV: all columns; text begins no formula of a spreadsheet."""
    _rows(runs, "csv", out)


def _rows(runs: list[Path] | None, form: str, out: Path) -> None:
    from lcfbench.publishing.export import write_rows

    _warn(write_rows(runs or [Path("results")], "csv" if form == "csv" else "jsonl", out))
    if not standard_stream(out):
        echo(out)


@export_app.command("eee")
def export_eee(
    runs: RunsArgument = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for data/TASK/DEVELOPER/MODEL/….")] = Path(
        "eee"
    ),
    organization: Annotated[
        str, typer.Option(help="Who publishes these results, for source_metadata.")
    ] = "unknown",
) -> None:
    """Write runs in the schema of Every Eval Ever: a record and its samples for each finished run.

    A run under a control is an evaluation of its own name, never the model's score. Samples hold the
    prompts. Where the package every-eval-ever is there, its own validator reads all that was written.
    """
    from lcfbench.publishing.eee import write_records
    from lcfbench.publishing.eee_check import SEPARATELY, validated

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file.", "Name a folder with -o.")
    written = write_records(runs or [Path("results")], out, organization)
    _warn(written.warnings)
    checked = validated(out, written.files)
    note(f"valid by every-eval-ever {checked}." if checked else SEPARATELY.format(out=out))
    for path in written.files:
        echo(path)


def publish(
    runs: RunsArgument = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME[@BRANCH]", help="Data set on the Hub; made where there is none."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="A folder instead: what would be published.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; write the folder --to.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Only for those you let in.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch; made where there is none. [default: main]")
    ] = None,
    without_prompts: Annotated[
        bool,
        typer.Option("--without-prompts", help="Leave out prompts, messages, answers: the data set's words."),
    ] = False,
    offline: OfflineOption = None,
) -> None:
    """Put runs on the Hub as a data set: parquet, manifests, report, card. `load_dataset` opens it.

    Runs that are there stay. One that is not finished, or not as it was recorded, is refused. Needs a
    token (`hf auth login`), but for --dry-run.
    """
    from lcfbench.publishing import dataset as data
    from lcfbench.sources.repositories import split_repo

    quiet_libraries()
    paths, prompts = runs or [Path("results")], not without_prompts
    name, _ = split_repo(dataset, revision) if dataset else ("", None)
    if dry_run or (to is not None and dataset is None):
        if to is None:
            raise UserError("--dry-run has no folder to write.", "Name one with --to FOLDER.")
        made = data.build(paths, to, prompts=prompts, name=name)
    elif to is not None:
        raise UserError("--dataset and --to are two places.", "Leave one out, or add --dry-run.")
    elif dataset is None:
        raise UserError("nothing says where to publish.", "Give --dataset ORG/NAME, or --to FOLDER.")
    else:
        options: dict[str, Any] = {"private": private, "revision": revision, "prompts": prompts}
        options["offline"] = bool(offline)
        made = data.publish(paths, dataset, **options)
    _warn(made.warnings)
    if prompts:
        warn(
            f"the rows hold the prompts of {', '.join(made.tasks)}: the licences of their data sets hold for "
            "them; --without-prompts leaves them out."
        )
    more = f", beside {len(made.others)} that were there" if made.others else ""
    echo(f"{len(made.runs)} runs{more}: {made.url or made.place}")

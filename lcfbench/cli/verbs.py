"""What `run`, `train`, `show`, `plot` and `demo` do for a person: call what computes, print what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lcfbench.cli.console import echo, note, out, quiet_libraries, warn
from lcfbench.cli.progress import RunProgress, TrainLine
from lcfbench.errors import Exit

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.evaluation.recipe import Recipe
    from lcfbench.tables import Table
    from lcfbench.training.recipe import TrainRecipe


def run_and_show(recipe: Recipe) -> None:
    """Runs a recipe and prints the table of what it made. Ctrl-C keeps what is recorded and exits 130."""
    recipe.check_names()
    finished: list[str] = []
    try:
        quiet_libraries()
        from lcfbench.cli.startup import import_libraries

        import_libraries()
        from lcfbench.evaluation.runner import run

        for run_id in run(recipe, RunProgress()):
            finished.append(run_id)
    except KeyboardInterrupt:
        note(f"interrupted: what is recorded stays in {recipe.out}; the same command goes on from there.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    show_runs([recipe.out / run_id for run_id in finished], "table")
    note(f"recorded in {recipe.out}; this table again: lcfbench show {recipe.out}")


def train_and_show(recipe: TrainRecipe) -> None:
    """Trains adapters and says where they are. Ctrl-C saves the best states so far and a checkpoint, and exits 130."""
    from lcfbench.training.trainer import train

    quiet_libraries()
    try:
        folders = train(recipe, TrainLine())
    except KeyboardInterrupt:
        note("interrupted.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    tasks = ",".join(t.split("*")[0] for t in recipe.dev or recipe.task)
    for spec, folder in zip(recipe.specs(), folders, strict=True):
        again = f"lcfbench run --mode {spec.mode} --pair {recipe.pair} --task {tasks} --adapter {folder}"
        out.print(f"saved {folder}; use it with: {again}", soft_wrap=True)


def print_prompts(recipe: Recipe, limit: int) -> None:
    """The exact prompts of the first documents of every task, with token counts, as one JSON object a document."""
    recipe.check_names()
    quiet_libraries()
    from transformers import AutoTokenizer

    from lcfbench.sources.models import find_tokenizer, split_pair
    from lcfbench.tasks.preview import preview
    from lcfbench.tasks.task import load_task
    from lcfbench.tasks.yaml_files import options_for

    ends = [
        AutoTokenizer.from_pretrained(find_tokenizer(name, offline=recipe.offline))
        for name in split_pair(recipe.pair)
    ]
    for name, given in options_for(recipe.task, recipe.task_options).items():
        task = load_task(name, seed=recipe.every_seed[0], offline=recipe.offline, options=given)
        documents = task.documents(
            scoring=recipe.scoring, limit=limit, receiver_chat=bool(ends[0].chat_template)
        )
        for entry in preview(documents, *ends):
            out.print(json.dumps(entry, indent=1, ensure_ascii=False), soft_wrap=True)


def summary_of(paths: Sequence[Path], subjects: bool = False, delta: float | None = None) -> pd.DataFrame:
    """One line a method, task (or each of its subjects) and control of the recorded runs; what could not be read is said."""
    from lcfbench.analysis.run_groups import read_run_groups
    from lcfbench.analysis.stats import DELTA
    from lcfbench.analysis.summary import summarise

    found = read_run_groups(list(paths), by_subject=subjects)
    for warning in found.warnings:
        warn(warning)
    return summarise(found.groups, DELTA if delta is None else delta)


def show_runs(paths: Sequence[Path], form: str, subjects: bool = False) -> None:
    """Prints the summary of recorded runs. form: table, markdown, csv or json."""
    from lcfbench.analysis.tables import summary_tables

    summary = summary_of(paths, subjects)
    print_lines(summary, lambda: summary_tables(summary), form)


def show_verdicts(paths: Sequence[Path], delta: float, form: str) -> None:
    """Prints gain, content and a verdict in words for every method that sends something.

    form: table, markdown, csv or json. Raises UserError where no method sends anything.
    """
    from lcfbench.analysis.summary import judged
    from lcfbench.analysis.tables import verdict_tables

    summary = summary_of(paths, delta=delta)
    print_lines(judged(summary), lambda: verdict_tables(summary, delta), form)


def show_comparison(a: Path, b: Path, form: str, allow: Sequence[str]) -> None:
    """Compares the runs recorded under `a` and `b`. form: table, markdown, csv or json.

    Raises UserError where nothing is comparable.
    """
    from lcfbench.analysis.compare import compare
    from lcfbench.analysis.run_groups import read_run_groups
    from lcfbench.analysis.tables import comparison_records, comparison_table, to_json

    ours, theirs = (read_run_groups([side], prompts=True) for side in (a, b))
    for warning in ours.warnings + theirs.warnings:
        warn(warning)
    found = compare(ours, theirs, allow)
    if form == "json":
        lines = [line._asdict() for line in found.lines]
        whole = {"lines": lines, "only_a": found.unmatched_a, "only_b": found.unmatched_b}
        echo(to_json(whole), end="")
    else:
        print_lines(comparison_records(found), lambda: [comparison_table(found)], form)


def print_lines(
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


def draw_frontier(paths: Sequence[Path], folder: Path | None, published: bool) -> list[Path]:
    """Draws the frontier of recorded runs; returns the files."""
    from lcfbench.analysis.plots.frontier import plot

    return plot(
        summary_of(paths), folder or (paths[0] if paths[0].is_dir() else paths[0].parent), published=published
    )


def demo(results: Path, limit: int) -> None:
    """The main job on the embedded pair and real data: runs, table, frontier, report."""
    from lcfbench.cli.report_view import write_report
    from lcfbench.evaluation.recipe import Recipe

    chosen = {
        "mode": "receiver,full_context,t2t,lcf",
        "task": "splitfacts,splitfacts_heldout,openbookqa",
        "control": "matched,deranged",
        "scoring": "cloze",
        "limit": limit,
        "out": results,
        "options": {"budget": "32"},
    }
    run_and_show(Recipe.merge(None, chosen))
    for path in draw_frontier([results], None, False):
        typer.echo(f"frontier: {path}")
    typer.echo(f"report: {write_report([results], results / 'report.html', 'html')}")

"""`lcfbench task …`: a task of one's own, written from a table and looked at before it is run."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from lcfbench.cli import options
from lcfbench.cli.console import echo, note
from lcfbench.cli.options import JsonOption, OfflineOption
from lcfbench.errors import Exit
from lcfbench.progress import quiet_libraries

task_app = options.group(
    "A task of your own: a table (CSV, TSV, JSON, JSON Lines, parquet) or lm-eval's own YAML."
)


@task_app.command("new")
def task_new(
    name: Annotated[str, typer.Argument(help="The task's name; NAME.yaml is written.")],
    table: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A table with columns question, answer and choices; without it, an example."
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="shared|different", help="Whether both models read the same; without it, by the columns."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the file.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a task file with comments, its columns inferred from a table."""
    from lcfbench.tasks.new import write_task

    written = write_task(name, table, out, context, force)
    for path in written:
        echo(f"written: {path}")
    note(f"next: lcfbench task check {quote(str(written[-1]))}")


@task_app.command("check")
def task_check(
    task: Annotated[str, typer.Argument(help="A file, a folder of task files, or a name of `ls tasks`.")],
    pair: Annotated[
        str | None,
        typer.Option(
            help="RECEIVER:SHARER whose tokenizers count; without it, the embedded pair.",
            envvar="LCFBENCH_PAIR",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents to look at. [default: all]", show_default=False)
    ] = None,
    task_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Options of the task. Repeatable.")
    ] = None,
    offline: OfflineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a task as a run would, and say what is in it, what is wrong, and what both models will see.

    Ends with 0 where all is well, 1 where there is something to mend, 2 where it cannot be read.
    """
    quiet_libraries()
    from lcfbench.config import parse_assignments
    from lcfbench.models.tokenizers import load_tokenizers
    from lcfbench.registry import add_paths
    from lcfbench.sources.cache import EMBEDDED_PAIR
    from lcfbench.tasks.inspection import inspect, warnings

    given = parse_assignments(task_option, "--task-option")
    names = add_paths("tasks", task)
    receiver, sharer = load_tokenizers(pair or EMBEDDED_PAIR, offline=bool(offline))
    tokenizers = {"receiver": receiver, "sharer": sharer}
    pages = [inspect(name, tokenizers, limit=limit, options=given, offline=bool(offline)) for name in names]
    wrong = [warnings(page) for page in pages]
    if as_json:
        every = [page | {"warnings": w} for page, w in zip(pages, wrong, strict=True)]
        echo(json.dumps(every[0] if len(every) == 1 else every, indent=1, ensure_ascii=False, default=str))
    else:
        for page, sentences in zip(pages, wrong, strict=True):
            echo("\n".join(page_of(page, sentences)))
        named = f"--pair {quote(pair)} " if pair else ""
        note(f"next: lcfbench probe {named}--task {quote(task)}")
    if any(wrong):
        raise typer.Exit(Exit.FAILED)


def page_of(facts: dict[str, Any], sentences: list[str]) -> list[str]:
    """The lines of a task's page."""
    places, chance, common = facts["answer_places"], facts["chance"], facts["majority_answer"]
    lines = [
        f"{facts['task']}: {facts['documents']} documents, {facts['context']} contexts",
        f"  splits: {', '.join(facts['splits'])}",
        f"  scoring: {', '.join(f'{name} by {metric}' for name, metric in facts['scorings'].items())}",
    ]
    if facts["looked_at"] < facts["documents"]:
        lines.append(f"  looked at: {facts['looked_at']} of them")
    if facts["choices"]:
        lines += [
            f"  choices: {', '.join(f'{n} in {count} documents' for n, count in facts['choices'].items())}",
            f"  chance: {chance:.1%}",
            f"  place of the answer: {', '.join(f'{place + 1}: {count}' for place, count in places.items())}",
        ]
    lines.append(f"  commonest answer: {common['answer']!r}, {common['share']:.1%} of the documents")
    for role, units in facts["prompts"].items():
        spreads = (f"{low} / {middle} / {high} {unit}" for unit, (low, middle, high) in units.items())
        lines.append(f"  {role}'s prompts, shortest / median / longest: {'; '.join(spreads)}")
    if message := facts["message"]:
        alone = "{:.0%} by the receiver's text alone, {:.0%} by the sharer's, {:.0%} by neither"
        said = alone.format(message["receiver_alone"], message["sharer_alone"], message["neither"])
        lines.append(f"  the answer is given away in {said} (its words are there and no other choice's)")
    first = facts["first"]
    for role in ("receiver", "sharer"):
        lines += [
            f"  the {role} reads (document {first['id']}):",
            *(f"    | {t}" for t in first[role].split("\n")),
        ]
    if first["choices"]:
        lines.append(f"  and these are ranked: {', '.join(map(repr, first['choices']))}")
    lines.append(f"  right: {first['gold']!r}")
    if problems := facts["problems"]:
        lines.append("  rows that cannot be asked:")
        lines += [f"    row {p['row']}, {p['field']}: {p['what']}" for p in problems[:10]]
        if len(problems) > 10:
            lines.append(f"    and {len(problems) - 10} more (--json lists all)")
    return [*lines, *(f"  ! {sentence}" for sentence in sentences or [])] + (
        [] if sentences else ["  nothing to mend"]
    )

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

ROWS = 20  # that cannot be asked and are listed
LONGEST = 1600  # characters of a text that are shown
READ = {"receiver": "the receiver", "sharer": "the sharer", "request": "a sharer that writes (t2t)"}

task_app = options.group(
    "A task of your own: a table (CSV, TSV, JSON, JSON Lines, parquet) or lm-eval's own YAML."
)


@task_app.command("new")
def task_new(
    name: Annotated[str, typer.Argument(help="The task's name; NAME.yaml is written.")],
    table: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TABLE|ORG/NAME[:CONFIG]",
            help="A table or a Hub data set with columns question, answer and choices; without it, "
            "a table of examples is written too.",
        ),
    ] = None,
    shared: Annotated[
        bool | None,
        typer.Option(
            "--shared/--different",
            help="Both models read the same, or each a text of its own; without it, by the columns.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the file.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    offline: OfflineOption = None,
) -> None:
    """Write a task file with comments, its columns inferred from a table or a data set of the Hub."""
    from lcfbench.tasks.new import write_task

    context = None if shared is None else "shared" if shared else "different"
    written = write_task(name, table, out, context, force, bool(offline))
    for path in written:
        echo(f"written: {path}")
    note(f"next: lcfbench task check {quote(str(written[-1]))}")


@task_app.command("check")
def task_check(
    task: Annotated[str, typer.Argument(help="A file, a folder of task files, or a task or group by name.")],
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
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="A Jinja file, or a name of the task's `prompts:`, in place of its prompt.",
        ),
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
    from lcfbench.tasks.groups import expand
    from lcfbench.tasks.inspection import inspect, warnings

    given = parse_assignments(task_option, "--task-option")
    names = expand(add_paths("tasks", task))
    receiver, sharer = load_tokenizers(pair or EMBEDDED_PAIR, offline=bool(offline))
    tokenizers = {"receiver": receiver, "sharer": sharer}
    pages = [
        inspect(name, tokenizers, limit=limit, options=given, offline=bool(offline), prompt=prompt)
        for name in names
    ]
    wrong = [warnings(page) for page in pages]
    if as_json:
        every = [page | {"warnings": w} for page, w in zip(pages, wrong, strict=True)]
        echo(json.dumps(every[0] if len(every) == 1 else every, indent=1, ensure_ascii=False, default=str))
    else:
        for page, sentences in zip(pages, wrong, strict=True):
            echo("\n".join(page_of(page, sentences)))
        named = f"--pair {quote(pair)} " if pair else ""
        verb = "probe" if len(pages) == 1 else "run"  # a group has no probe
        note(f"next: lcfbench {verb} {named}--task {quote(task)}")
    if any(wrong):
        raise typer.Exit(Exit.FAILED)


def page_of(facts: dict[str, Any], sentences: list[str]) -> list[str]:
    """The lines of a task's page."""
    places, chance, common = facts["answer_places"], facts["chance"], facts["majority_answer"]
    lines = [
        f"{facts['task']}: {facts['documents']} documents, {facts['context']} contexts",
        f"  splits: {', '.join(facts['splits'])}",
        f"  worked examples (--shots): {facts['examples'] or 'none'}",
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
    for number, shown in enumerate(facts["shown"], 1):
        lines += [
            "",
            f"  document {number} of {facts['looked_at']} (id {shown['doc_id']})",
            *document_of(shown),
        ]
    lines.append("")
    if problems := facts["problems"]:
        lines.append("  rows that cannot be asked:")
        lines += [f"    row {p['row']}, {p['field']}: {p['what']}" for p in problems[:ROWS]]
        if len(problems) > ROWS:
            lines.append(f"    and {len(problems) - ROWS} more (--json lists all)")
    return [*lines, *(f"  ! {sentence}" for sentence in sentences or [])] + (
        [] if sentences else ["  nothing to mend"]
    )


def document_of(shown: dict[str, Any]) -> list[str]:
    """The lines of one document: what both models read, what a sharer that writes is asked, what is right."""
    lines = []
    for name, who in READ.items():
        seen = shown[name]
        tokens = f", {seen['tokens']:,} tokens" if "tokens" in seen else ""
        same = name == "sharer" and seen["prompt"] == shown["receiver"]["prompt"]
        lines.append(f"  {who} reads{' the same text' if same else ''}{tokens}{'' if same else ':'}")
        lines += [f"    | {line}" for line in cut(seen["prompt"]).split("\n")] if not same else []
        if how := seen.get("adapted"):
            lines.append(f"    (changed for its chat template: {how})")
    for step in shown["steps"]:
        led = f" behind {step['lead']!r}" if step["lead"] else ""
        ranked = (f"{cut(c['text'])!r} ({c['tokens']})" for c in step["choices"])
        lines.append(f"  ranked{led} (tokens): {', '.join(ranked)}")
    if not shown["steps"] and shown.get("max_new_tokens"):
        stops = ", ".join(map(repr, shown["until"]))
        lines.append(
            f"  written: {shown['max_new_tokens']} tokens at most" + (f", up to {stops}" if stops else "")
        )
    return [*lines, f"  right: {cut(shown['gold'])!r}"]


def cut(text: str) -> str:
    """A text without its middle where it is long, with the number of characters left out."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} … {len(text) - LONGEST:,} characters … {text[-LONGEST // 2 :]}"

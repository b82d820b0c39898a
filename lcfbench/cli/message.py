"""`lcfbench message …`: looks at the messages that a run kept, and answers from them again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcfbench.cli import options
from lcfbench.cli.console import echo, warn
from lcfbench.cli.options import JsonOption, OutOption
from lcfbench.errors import Exit
from lcfbench.progress import quiet_libraries
from lcfbench.tables import Column, Table

if TYPE_CHECKING:
    from lcfbench.evaluation.replay import Replayed
    from lcfbench.results.messages import KeptMessage

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, or its id below --out.", show_default=False)
]
DocumentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--document", "-d", help="A document's number, or the beginning of its doc_hash; again for more."
    ),
]
EXCERPT = 60  # characters of a text in a table of many messages
HASH = 12  # characters of a hash that are shown

message_app = options.group("Messages that `run --keep-messages` stored: what crossed, and what it says.")


@message_app.command("show")
def show(
    run: RunArgument, document: DocumentOption = None, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Show what crossed: shapes, number formats, bytes, text, and the spans that were chosen.

    A line a document; with --document all of it. No model is loaded.
    """
    from lcfbench.results.recorded_run import RecordedRun, load_messages, run_with_messages

    folder = run_with_messages(run, out or Path("results"))
    kept = load_messages(folder, document or ())
    number = {row["doc_hash"]: row["doc_index"] for row in RecordedRun.open(folder).rows}
    facts = [{"number": number[each.about["doc_hash"]], **_facts(each)} for each in kept]
    if as_json:
        echo(json.dumps({"messages": facts}, indent=1, ensure_ascii=False))
        return
    from lcfbench.cli.tables import show as show_tables

    if document:
        show_tables(*[_page(each) for each in facts])
    else:
        columns = [
            Column("#", right=True),
            Column("document"),
            Column("form"),
            Column("bytes", right=True),
            Column("message", wrap=True),
        ]
        rows = [
            [str(each["number"]), _name(each), each["form"], f"{each['bytes']:,}", _line(each)]
            for each in facts
        ]
        show_tables(Table("", columns, rows, remarks=[("", "--document # shows all of one.")]))


@message_app.command("replay")
def replay(
    run: RunArgument,
    document: DocumentOption = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Where the run's adapter is now; none: where the run found it.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where a file of a method, task or control is now that the run was given by its path; "
            "again for more. None: where it was."
        ),
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer again from the stored messages, without the sharer, and compare with the rows.

    Ends with 1 where an answer or a score is not the row's.
    """
    from lcfbench.results.recorded_run import run_with_messages

    quiet_libraries()
    folder = run_with_messages(run, out or Path("results"))
    from lcfbench.cli.progress import RunProgress
    from lcfbench.evaluation.replay import replay as replay_run

    found = replay_run(folder, RunProgress(), document or (), adapter, file or ())
    unequal = [each for each in found if not each.equal]
    if as_json:
        told = [{**asdict(each), "equal": each.equal} for each in found]
        echo(json.dumps({"run": str(folder), "equal": not unequal, "documents": told}, indent=1))
    else:
        from lcfbench.cli.tables import show as show_tables

        show_tables(_compared(found, len(unequal)))
    for each in unequal:
        if each.error:
            warn(f"document {each.number}: {each.error}")
    if unequal:
        raise typer.Exit(Exit.FAILED)


def _facts(message: KeptMessage) -> dict[str, Any]:
    """What is shown of a message: where it comes from, its size, its text or its tensors."""
    from lcfbench.results.messages import DamagedMessageError, tensors_of

    about = {k: v for k, v in message.about.items() if k not in ("packets", "wire", "text")}
    found: dict[str, Any] = {**about, "form": message.about.get("wire", "native")}
    found["bytes"] = sum(map(len, message.packets))
    if message.sharers > 1:
        own = ("message_from", "bytes", "text", "tensors", "spans")
        told = [{k: v for k, v in _facts(part).items() if k in own} for part in message.of_each()]
        return {k: v for k, v in found.items() if k not in own[2:]} | {"each": told}
    if message.is_text:
        found["text"] = [data.decode(errors="replace") for data in message.packets]
        return found
    try:
        found["tensors"] = [
            {name: {"dtype": kind, "shape": shape} for name, (kind, shape) in tensors_of(data).items()}
            if data
            else {}
            for data in message.packets
        ]
    except (ValueError, LookupError, TypeError) as error:
        name = str(about["doc_hash"])[:HASH]
        raise DamagedMessageError(
            f"the message of document {name} has no header.", "Run it again with --fresh --keep-messages."
        ) from error
    return found


def _name(facts: dict[str, Any]) -> str:
    return str(facts["doc_hash"])[:HASH]


def _line(facts: dict[str, Any]) -> str:
    """A message in few words."""
    if "each" in facts:
        return "; ".join(f"{k}: {_line(part)}" for k, part in enumerate(facts["each"], 1))
    if "text" in facts:
        text = " | ".join(" ".join(each.split()) for each in facts["text"])
        return (text if len(text) <= EXCERPT else f"{text[:EXCERPT]} …") or "(empty text)"
    parts = [_tensor(name, x) for each in facts["tensors"] for name, x in each.items()]
    spans = [span for each in facts.get("spans", []) for span in each]
    kept = sum(span["stop"] - span["start"] for span in spans)
    return ", ".join(parts + ([f"{kept} tokens in {len(spans)} spans"] if spans else [])) or "(nothing)"


def _tensor(name: str, x: dict[str, Any]) -> str:
    return f"{name} {x['dtype']} {'×'.join(map(str, x['shape']))}"


def _page(facts: dict[str, Any]) -> Table:
    """All of a message, a line a fact."""
    rows = [["form", f"{facts['form']}, {facts['bytes']:,} bytes"]]
    parts = facts.get("each", [facts])
    for number, part in enumerate(parts, 1):
        if len(parts) > 1:
            rows.append(["sharer", f"{number}, {part['bytes']:,} bytes"])
        rows += _contents(part, facts["doc_hash"])
    remarks = []
    if any(part.get("spans") for part in parts):
        remarks = [("", "numbers are places of tokens in the sharer's prompt, the first is 0.")]
    title = f"document {facts['number']} ({_name(facts)}), {facts['mode']} {facts['control']}"
    return Table(title, [Column("what"), Column("message", wrap=True)], rows, remarks=remarks)


def _contents(facts: dict[str, Any], name: str) -> list[list[str]]:
    """The document that a sharer's message comes from, and what it holds. name: the hash of its own."""
    sender = "itself" if facts["message_from"] == name else facts["message_from"][:HASH]
    rows = [["from", sender]]
    for text in facts.get("text", []):
        rows.append(["text", text or "(empty)"])
    for each in facts.get("tensors", []):
        rows += [["tensor", _tensor(name, x)] for name, x in each.items()]
    for each in facts.get("spans", []):
        rows += [[f"{span['start']}–{span['stop'] - 1}", span["text"]] for span in each]
    return rows


def _compared(found: list[Replayed], unequal: int) -> Table:
    """Answers side by side."""
    columns = [
        Column("#", right=True),
        Column("document"),
        Column("recorded", wrap=True),
        Column("now", wrap=True),
        Column("score", right=True),
        Column("nats", right=True),
        Column("equal"),
    ]
    rows = [
        [
            str(each.number),
            each.doc_hash[:HASH],
            each.recorded or "",
            each.replayed or "",
            f"{each.recorded_score:g}"
            + ("" if each.recorded_score == each.replayed_score else f" → {each.replayed_score:g}"),
            "" if each.difference is None else f"{each.difference:.1g}",
            "yes" if each.equal else "no",
        ]
        for each in found
    ]
    same = f"{len(found) - unequal:,} of {len(found):,} answers are those of the rows; no sharer was run."
    nats = "nats: the largest difference of the log-likelihoods of its choices."
    return Table("", columns, rows, remarks=[("", same), ("", nats)])

"""Summaries, verdicts and comparisons as tables: for a terminal, Markdown or a file.

>>> from lcfbench.analysis.tables import summary_tables
>>> print(summary_tables(summarise(groups))[0].markdown())                        # doctest: +SKIP

JSON and CSV come from the same lines, with every column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcfbench.analysis.matching import first_few
from lcfbench.analysis.orf import DERIVED
from lcfbench.analysis.recorded import WINNERS
from lcfbench.analysis.run_groups import MOST_FAILED
from lcfbench.analysis.summary import GROUP, judged
from lcfbench.tables import Cell, Column, Table, csv_cell

if TYPE_CHECKING:
    import pandas as pd

    from lcfbench.analysis.compare import Comparison, Line
    from lcfbench.analysis.gate import Checked, Item

NONE = "–"
UNRELIABLE = "*"  # behind a score that says more of failures than of the method
FEW_HASHES = 3
STYLES = {"communicates": "green", "undecided": "yellow", "untested": "dim"}
STYLES |= {"not judged": "bold yellow"}
STYLES |= dict.fromkeys(("adapts only", "does not communicate", "misleads"), "red")
WON = {  # who won a conflict, said in a sentence
    "message": "the message's value",
    "text": "its own text's",
    "neither": "neither",
}
CHECK_STYLES = {"ok": "green", "surely worse": "bold red"}
CHECK_STYLES |= {"inconclusive": "yellow", "incomplete": "bold yellow"}
SHORT = {  # a term that a table may show → what it says below
    "deranged": "deranged: with the message of another document, so what stays is no communication",
    "self": "self: the receiver's own model makes the message",
    "equal-text": "equal-text: the message's words as text",
    "conflict": "conflict: the receiver's text states another value; the score counts the message's",
    "plumbing": "plumbing: the receiver's own cache, sent and put back",
    "orf": "orf: right when either model alone is right",
    "95 %": "95 %: interval over documents",
    "gain G": "gain G: points above the receiver alone",
    "content P": "content P: points above the same method with another document's message "
    "(or zeros, noise, none where that was run and scores better)",
    "p": "p: chance of such a P by luck, corrected for all lines",
    "B − A": "B − A: points, on the documents that both have",
    "Holm": "Holm: p corrected for the number of lines",
    UNRELIABLE: f"{UNRELIABLE}: over {100 * MOST_FAILED:g} % of the documents, or the run's --max-failed, "
    "failed; they count as wrong",
    NONE: f"{NONE}: none or not measured",
}
SUMMARY_LEGEND = (
    "matched: the receiver gets the message of its own document. deranged: it gets that of another "
    "document, so a score that stays is no communication. zero, noise, silent: a message of zeros, of "
    "noise, or none. orf (derived): right when either model alone is right; not run. score: mean over all "
    "documents; those that failed count as wrong, and a * says that more than 5 %, or than the run's "
    "--max-failed, did. 95 %: interval over documents. first token ms: median time "
    "to the first answer token, one document at a time. adapter MB: the trained module as saved. message "
    f"bytes: median over documents. {NONE}: none or not measured."
)
VERDICT_LEGEND = (
    "score: mean with the document's own message. gain G: matched minus the receiver alone. content P: "
    "matched minus deranged (another document's message), or minus zero, noise or silent where that was run "
    "and scores better. Both in points with 95 % intervals over the "
    "documents that both runs have. p: the chance of such a P, or a larger one, if the message did not "
    "matter; corrected after Holm over all verdicts shown, because among many lines some look good by luck. "
    "communicates: P is surely above 0; misleads: below 0; adapts only, does not communicate: P is surely "
    "within ±{delta:g} points, with and without a gain; undecided: too few documents to say; untested: no "
    "deranged run; not judged: more than 5 % of the documents, or than a run's --max-failed, failed. ms: "
    "median time to the first answer token. bytes: median size of a message."
)
COMPARISON_LEGEND = (
    "A, B: mean scores in %. B − A: the difference in points over the documents that both have, with its "
    "95 % interval. p: the chance of such a difference, or a larger one, if the two were equally good. Holm: "
    "p corrected for the number of lines. Ratios are B / A."
)
CHECK_LEGEND = (
    "baseline, new: mean scores in %. change: new minus baseline in points, on the documents that both have, "
    "with its 90 % interval. ok: surely not worse than what may be lost (--max-drop); surely worse: more "
    "is lost; inconclusive: too few documents to say; incomplete: a run or documents are missing. first "
    "token: milliseconds and per cent, medians; n: runs or documents."
)


def short_legend(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> str:
    """Says in a line or two the terms that these columns and cells show."""
    cells = [cell for row in rows for cell in row if isinstance(cell, str)]
    said = {c.name for c in columns} | {*cells} | {cell[-1:] for cell in cells}
    found = [text for term, text in SHORT.items() if term in said]
    return ". ".join(found) + "." * bool(found)


def summary_tables(summary: pd.DataFrame, explain: bool = False) -> list[Table]:
    """Returns a table for each pair, task and scoring, with the verdicts in words below.

    explain: the legend says everything, not only the terms that are shown.
    """
    heads = [Column("method", wrap=True), Column("control")]
    heads += [Column(name, right=True) for name in ("docs", "score %", "95 %")]
    heads += [
        Column(f"{a}\n{b}", right=True)
        for a, b in (("first", "token ms"), ("adapter", "MB"), ("message", "bytes"))
    ]
    found = []
    for (pair, task, scoring), lines in summary.groupby(GROUP, sort=False, dropna=False):
        receiver, _, sharer = str(pair).partition(":")
        title = f"{task} ({scoring}): receiver {receiver}" + (f", sharer {sharer}" if sharer else "")
        chance = lines["chance"].dropna()
        guess = f"; guessing gives {100 * chance.iloc[0]:.1f} %" if len(chance) else ""
        title += f". Score: {', '.join(dict.fromkeys(lines['metric']))}{guess}."
        records = lines.to_dict("records")
        styles = ["" if line["control"] in ("matched", DERIVED) else "dim" for line in records]
        rows = [summary_cells(line) for line in records]
        found.append(Table(title, heads, rows, styles, [*sentences(lines), *_won(lines), *_cautions(lines)]))
    rows_of_all = [row for table in found for row in table.rows]
    found[-1].legend = SUMMARY_LEGEND if explain else short_legend(heads, rows_of_all)
    return found


def summary_cells(line: Mapping[Any, Any]) -> list[Cell]:
    """Returns one summary line as text. A method that sends nothing has no control."""
    return [
        str(line["label"]),
        control_of(line) or NONE,
        str(line["n"]),
        score(line),
        f"{percent(line['low'])}–{percent(line['high'])}" if known(line["low"]) else NONE,
        number(line["ttft_ms"]),
        number(line["adapter_mb"], 1),
        number(line["message_bytes"] or None),
    ]


def control_of(line: Mapping[Any, Any]) -> str:
    """Returns the control of a summary line, empty for a method that sends nothing."""
    silent = line["control"] == "matched" and not line["sends"] and not line["verdict"]
    return "" if silent else str(line["control"])


def winners(lines: pd.DataFrame) -> list[str]:
    """Returns a sentence for every line that says who won where message and text disagree."""
    found = []
    for line in lines.to_dict("records"):
        if not (known(line["won_n"]) and line["won_n"]):
            continue
        shares = [f"{WON[w]} {percent(line[f'won_{w}'])} % ({_ends(line, f'won_{w}')})" for w in WINNERS]
        name = f"{line['label']} ({line['control']})"
        found.append(f"{name}: answered {', '.join(shares)}; 95 %, n={int(line['won_n']):,}")
    return found


def _ends(line: Mapping[Any, Any], name: str) -> str:
    return f"{percent(line[f'{name}_low'])}–{percent(line[f'{name}_high'])}"


def sentences(lines: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns (style, sentence) for every line with a verdict."""
    told = lines[lines["verdict"].fillna("") != ""].to_dict("records")
    return [(STYLES.get(line["verdict"], ""), f"{line['label']}: {line['verdict_text']}") for line in told]


def notes(lines: pd.DataFrame) -> list[str]:
    """Returns cautions: spread over seeds, failed documents, unfinished runs."""
    found, records = [], lines.to_dict("records")
    for line in records:
        if line["seeds"] > 1:
            spread = f"standard deviation of the score over {line['seeds']} seeds"
            name, points = f"{line['label']} ({line['control']})", f"{100 * line['seed_sd']:.1f} points"
            found.append(f"{name}: {spread} {points}; 95 % is over documents")
    unfinished = []
    for line in records:
        name = f"{line['label']} ({line['control']})"
        if known(line.get("note")) and line["note"]:
            found.append(f"{name}: {line['note']}")
        if line["errors"]:
            found.append(f"{name}: {line['errors']} of {line['n']} documents failed and count as wrong")
        if known(line.get("unparsed")) and line["unparsed"]:
            share = percent(line["unparsed"])
            found.append(f"{name}: {share} % of the answers could not be read and count as wrong")
        if line["state"] in ("running", "interrupted"):
            unfinished.append((name, line["n"]))
    if len(unfinished) == 1:
        [(name, n)] = unfinished
        found.append(f"{name}: not finished, {n} documents so far; repeat its command to resume")
    elif unfinished:
        some = ", ".join(f"{name} {n}" for name, n in unfinished)
        found.append(f"not finished, documents so far: {some}; repeat their commands to resume")
    return found


def _won(lines: pd.DataFrame) -> list[tuple[str, str]]:
    return [("", sentence) for sentence in winners(lines)]


def _cautions(lines: pd.DataFrame) -> list[tuple[str, str]]:
    return [("yellow", f"note: {note}") for note in notes(lines)]


def verdict_tables(summary: pd.DataFrame, delta: float, explain: bool = False) -> list[Table]:
    """Returns a table for each pair, task and scoring: gain, content and verdict, best first.

    delta: differences below this count as none. Raises UserError where no run sends a message.
    """
    heads = [Column("method", wrap=True)]
    heads += [
        Column(name, right=True) for name in ("docs", "score", "gain G", "content P", "p", "ms", "bytes")
    ]
    found = []
    for key, lines in judged(summary).groupby(GROUP, sort=False):
        title = "{1} ({2}, {metric}): {0}".format(*key, metric=lines["metric"].iloc[0])
        whole = summary[(summary[GROUP] == list(key)).all(axis=1)]  # also lines that have no verdict
        remarks = [*sentences(lines), *_won(whole), *_cautions(whole)]
        found.append(Table(title, heads, [*map(verdict_cells, lines.to_dict("records"))], [], remarks))
    rows = [row for table in found for row in table.rows]
    found[-1].legend = VERDICT_LEGEND.format(delta=100 * delta) if explain else short_legend(heads, rows)
    return found


def verdict_cells(line: Mapping[Any, Any]) -> list[Cell]:
    """Returns one line with a verdict as text."""
    spread = "" if math.isnan(line["seed_sd"]) else f" ± {100 * line['seed_sd']:.1f}"
    differences = [
        (f"{100 * line[name]:+.1f}", f"[{100 * line[f'{name}_low']:+.1f}, {100 * line[f'{name}_high']:+.1f}]")
        if known(line[name])
        else NONE
        for name in ("gain", "content")
    ]
    sizes = number(line["ttft_ms"]), number(line["message_bytes"])
    return [
        str(line["label"]),
        str(line["n"]),
        f"{percent(line['score'])}{spread}{mark(line)}{unparsed(line)}",
        *differences,
        p_short(line["p_holm"]),
        *sizes,
    ]


def comparison_table(found: Comparison, explain: bool = False) -> Table:
    """Returns a row for each comparison, with costs, differences and cautions below."""
    heads = [Column("what", wrap=True)]
    heads += [Column(name, right=True) for name in ("docs", "A", "B", "B − A", "95 %", "p", "Holm")]
    rows = [
        [
            line.what,
            f"{line.n:,}",
            percent(line.mean_a),
            percent(line.mean_b),
            percent(line.difference, "+"),
            _interval(line),
            p_short(line.p),
            p_short(line.p_holm),
        ]
        for line in found.lines
    ]
    remarks = [("", f"{line.what}: {text}") for line in found.lines for text in comparison_remarks(line)]
    for side, names in (("A", found.unmatched_a), ("B", found.unmatched_b)):
        remarks += [("", f"only {side} holds {first_few(names)}")] if names else []
    return Table(
        "",
        heads,
        rows,
        ["bold" if x.overall else "" for x in found.lines],
        remarks,
        COMPARISON_LEGEND if explain else short_legend(heads, rows),
    )


def comparison_remarks(line: Line) -> list[str]:
    """Returns costs, what differs, documents of one side only, and cautions."""
    ratios = [f"first token ×{line.latency_ratio:.2f} (n={line.latency_n})"] if line.latency_n else []
    sizes = (("message", line.message_ratio), ("adapter", line.adapter_ratio))
    ratios += [f"{name} ×{ratio:.2f}" for name, ratio in sizes if known(ratio)]
    found = [", ".join(ratios)] if ratios else []
    found += [f"differs: {'; '.join(line.differs)}"] if line.differs else []
    for side, hashes in (("A", line.only_a), ("B", line.only_b)):
        if hashes:
            few = ", ".join(hashes[:FEW_HASHES]) + (", …" if len(hashes) > FEW_HASHES else "")
            found.append(f"only {side} has {len(hashes):,} documents: {few}")
    return [*found, *line.notes]


def comparison_records(found: Comparison) -> list[dict[str, Any]]:
    """Returns lines for CSV: documents of one side as counts, sentences joined."""
    return [
        {
            name: len(x) if name.startswith("only_") else "; ".join(x) if isinstance(x, (list, tuple)) else x
            for name, x in line._asdict().items()
        }
        for line in found.lines
    ]


def check_table(checked: Checked, marks: Mapping[Any, str] | None = None, explain: bool = False) -> Table:
    """Returns a row for each aspect that was checked, with explanations below.

    marks: a sign in front of each outcome.
    """
    heads = [Column(""), Column("what", wrap=True)]
    heads += [Column(name, right=True) for name in ("baseline", "new", "change", "90 %", "n")]
    rows, remarks, before = [], [], ""
    for item in checked.items:
        style, aspect = CHECK_STYLES[item.outcome], "" if item.aspect == "score" else item.aspect
        outcome = f"{marks[item.outcome]} {item.outcome}" if marks else str(item.outcome)
        what = f"  {item.aspect}" if item.name == before else item.name + (aspect and f": {aspect}")
        rows.append([outcome, what, *check_cells(item)])
        remarks += [(style, f"{item.name}{aspect and f', {aspect}'}: {item.text}")] if item.text else []
        before = item.name
    remarks += [("dim", text) for text in checked.notes]
    styles = [CHECK_STYLES[item.outcome] for item in checked.items]
    return Table("", heads, rows, styles, remarks, CHECK_LEGEND if explain else "")


def check_cells(item: Item) -> list[str]:
    """Returns baseline, new, change, interval and n: points, or milliseconds and per cent."""
    timed = item.aspect == "first token"
    unit, ms, runs = (" %", " ms", f" run{'' if item.n == 1 else 's'}") if timed else ("", "", "")
    return [
        *(f"{x:,.1f}{ms}" if known(x) else NONE for x in (item.baseline, item.new)),
        f"{item.change:+.1f}{unit}" if known(item.change) else NONE,
        f"{item.low:+.1f} to {item.high:+.1f}" if known(item.low) else NONE,
        f"{item.n:,}{runs}" if item.n else NONE,
    ]


def to_json(value: Any) -> str:
    """Returns JSON; NaN is null."""
    return json.dumps(_plain(value), indent=2) + "\n"


def to_csv(lines: pd.DataFrame | Sequence[Mapping[str, Any]]) -> str:
    """Returns CSV with a header; what is not known is empty. Text begins no formula of a spreadsheet."""
    import pandas as pd

    records = lines if isinstance(lines, Sequence) else lines.to_dict("records")
    safe = [{name: csv_cell(value) for name, value in record.items()} for record in records]
    columns = None if isinstance(lines, Sequence) else lines.columns
    return pd.DataFrame(safe, columns=columns, dtype=object).to_csv(index=False, lineterminator="\n")


def known(value: Any) -> bool:
    """Returns whether a value is neither missing nor NaN."""
    return value is not None and value == value


def percent(value: float | None, sign: str = "") -> str:
    """Returns a share in percent, or a difference of shares in points."""
    return f"{100 * value:{sign}.1f}" if value is not None and known(value) else NONE


def score(line: Mapping[Any, Any]) -> str:
    """Returns a summary line's score in percent, marked where it says more of failures."""
    return percent(line["score"]) + mark(line) + unparsed(line)


def unparsed(line: Mapping[Any, Any]) -> str:
    """Returns the share of answers that could not be read, for behind a score; empty where all were."""
    share = line.get("unparsed")
    return f" ({percent(share)} % unread)" if known(share) and share else ""


def mark(line: Mapping[Any, Any]) -> str:
    """Returns the sign behind a score where too many of its documents failed."""
    return "" if reliable(line) or not known(line["score"]) else UNRELIABLE


def reliable(line: Mapping[Any, Any]) -> bool:
    """Returns whether few enough documents failed, also for a published number, which does not say."""
    return line.get("reliable") is not False


def number(value: float | None, digits: int = 0) -> str:
    """Returns a number with thousands separated."""
    return f"{value:,.{digits}f}" if known(value) else NONE


def p_short(p: float) -> str:
    """Returns a p-value in three digits; a tiny one is `<.001`."""
    return NONE if not known(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _interval(line: Line) -> str:
    return f"{percent(line.low, '+')} to {percent(line.high, '+')}" if known(line.low) else NONE


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    return value if known(value) else None

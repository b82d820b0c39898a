"""The report without HTML: the same tables as Markdown, or the summary's lines as CSV.

Path("report.md").write_text(markdown(source))
"""

from __future__ import annotations

from collections.abc import Iterator

from lcfbench.analysis.report import latency
from lcfbench.analysis.report.entries import Table
from lcfbench.analysis.report.provenance import provenance
from lcfbench.analysis.report.sections import averaged, conflicts, headline, subjects, tasks, verdicts
from lcfbench.analysis.report.source import Source
from lcfbench.analysis.tables import SUMMARY_LEGEND, to_csv
from lcfbench.tables import markdown as plain


def csv(source: Source) -> str:
    """A line a method, task and control; what is not known is empty."""
    return to_csv(source.summary)


def markdown(source: Source) -> str:
    """GitHub tables under the page's headings; figures and examples are in HTML only."""
    shared, runs = provenance(source)
    out = ["# lcfbench report", "", *(f"> {plain(caution)}" for caution in source.cautions), ""]
    out += ["## Does anything get across?", ""]
    for said in headline(source):
        more = f", and {said.more} more" if said.more else ""
        out.append(f"- **{plain(said.lead)}**: {'; '.join(map(plain, said.items))}{more}.")
    out += ["", *_table(verdicts(source))]
    for table in conflicts(source):
        out += _table(table)
    out += ["## Tables by task", ""]
    for table in [*tasks(source), *averaged(source), *subjects(source)]:
        out += _table(table)
    out += [plain(SUMMARY_LEGEND), "", "## Where the time goes", ""]
    for table in latency.tables(source):
        out += _table(table)
    out += [
        "## Provenance",
        "",
        *(f"- {plain(name)}: {plain(value)}" for name, value in shared),
        "",
        *_table(runs),
    ]
    return "\n".join(out) + "\n"


def _table(table: Table) -> Iterator[str]:
    """Caption, heading, rows, an empty line."""
    kept = [i for i, head in enumerate(table.heads) if not head.drawn]
    yield from (f"**{plain(table.caption)}**", "")
    yield "| " + " | ".join(plain(table.heads[i].text) for i in kept) + " |"
    yield "|" + "|".join(" ---: " if table.heads[i].number else " --- " for i in kept) + "|"
    for row in table.rows:
        told = [row.entries[i].more or f"{row.entries[i].text} {row.entries[i].note}".strip() for i in kept]
        yield "| " + " | ".join(map(plain, told)) + " |"
    yield ""

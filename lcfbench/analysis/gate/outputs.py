"""Results of `check` for machines: JUnit XML, GitHub annotations, Markdown for a summary page.

    from lcfbench.analysis.gate.outputs import to_junit
    Path("junit.xml").write_text(to_junit(checked, strict=False))

A test case is one aspect of one group. Surely worse is a failure, incomplete an error, inconclusive
skipped (a failure with `strict`).
"""

from __future__ import annotations

from collections import Counter
from xml.etree import ElementTree

from lcfbench.analysis.gate import Checked, Item, Outcome
from lcfbench.analysis.tables import NONE, check_cells, check_table
from lcfbench.tables import markdown, printable

SUITE = "lcfbench check"
MARKS = {Outcome.OK: "✅", Outcome.WORSE: "❌", Outcome.UNSURE: "❔", Outcome.INCOMPLETE: "⚠️"}


def to_junit(checked: Checked, strict: bool) -> str:
    """Returns the JUnit XML that GitHub, GitLab and Jenkins read."""
    results = [_result(item.outcome, strict) for item in checked.items]
    counts = Counter(results)
    totals = {
        "tests": len(results),
        "failures": counts["failure"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
    }
    attributes = {name: str(count) for name, count in totals.items()} | {"time": "0"}
    root = ElementTree.Element("testsuites", {"name": SUITE, **attributes})
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE, **attributes})
    for item, result in zip(checked.items, results, strict=True):
        names = {
            "classname": printable(f"{item.task}.{item.mode}"),
            "name": printable(f"{item.aspect}: {item.name}"),
            "time": "0",
        }
        case = ElementTree.SubElement(suite, "testcase", names)
        if result == "skipped":
            ElementTree.SubElement(case, "skipped", {"message": printable(sentence(item))})
        elif result:
            told = ElementTree.SubElement(
                case, result, {"message": printable(sentence(item)), "type": str(item.outcome)}
            )
            told.text = printable(f"{item.name}\n{sentence(item)}\n{checked.summary(strict)}")
        else:
            ElementTree.SubElement(case, "system-out").text = printable(sentence(item))
    if checked.notes:
        ElementTree.SubElement(suite, "system-out").text = printable("\n".join(checked.notes))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def refused_junit(reason: str) -> str:
    """The file of a check that was refused, so that no older file is taken for its result."""
    counts = {"name": SUITE, "tests": "1", "failures": "0", "errors": "1", "skipped": "0", "time": "0"}
    root = ElementTree.Element("testsuites", counts)
    case = ElementTree.SubElement(
        ElementTree.SubElement(root, "testsuite", counts),
        "testcase",
        {"classname": "check", "name": "refused", "time": "0"},
    )
    ElementTree.SubElement(
        case, "error", {"message": printable(reason), "type": "not comparable"}
    ).text = printable(reason)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def refused_markdown(reason: str) -> str:
    """The same on a job's summary page."""
    return f"**lcfbench check** refused: {markdown(' '.join(reason.split()))}\n"


def github_lines(checked: Checked, strict: bool) -> list[str]:
    """Returns GitHub's workflow commands: errors for failures, warnings for undecided aspects."""
    found = []
    for item in checked.items:
        if item.outcome is not Outcome.OK:
            level = "warning" if item.outcome is Outcome.UNSURE and not strict else "error"
            found.append(annotation(level, f"{item.outcome}: {item.name}, {item.aspect}", sentence(item)))
    return found


def annotation(level: str, title: str, message: str) -> str:
    """`::error title=…::…`.

    What has a meaning in a workflow command is escaped as GitHub's toolkit does it.
    """
    text = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = (
        title.replace("%", "%25")
        .replace("\r", "%0D")
        .replace("\n", "%0A")
        .replace(":", "%3A")
        .replace(",", "%2C")
    )
    return f"::{level} title={name}::{text}"


def to_markdown(checked: Checked, strict: bool) -> str:
    """Returns the table for a job's summary page."""
    return (
        f"**lcfbench check** {markdown(checked.summary(strict))}\n\n{check_table(checked, MARKS).markdown()}"
    )


def sentence(item: Item) -> str:
    """Returns `surely worse: 61.0 → 58.4, −2.6 (90 %: −3.4 to −1.8), n=2,000; …`."""
    before, now, change, interval, n = check_cells(item)
    told = (
        f"{before} → {now}, {change} (90 %: {interval})" + ("" if item.text.startswith("n=") else f", n={n}")
        if item.n and change != NONE
        else ""
    )
    return f"{item.outcome}: " + "; ".join(part for part in (told, item.text) if part)


def _result(outcome: Outcome, strict: bool) -> str:
    if outcome is Outcome.UNSURE:
        return "failure" if strict else "skipped"
    return {Outcome.OK: "", Outcome.WORSE: "failure", Outcome.INCOMPLETE: "error"}[outcome]

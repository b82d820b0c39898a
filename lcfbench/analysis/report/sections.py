"""Tables of verdicts, of each task with every control, and of subjects.

headline(source)[0].label, verdicts(source).rows, tasks(source)[0].caption
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, NamedTuple

from markupsafe import Markup

from lcfbench.analysis.groups import by_group, published_told
from lcfbench.analysis.orf import DERIVED
from lcfbench.analysis.recorded import WINNERS
from lcfbench.analysis.report.entries import (
    NONE,
    Entry,
    Head,
    Row,
    Table,
    known,
    number,
    p_value,
    percent,
    places_named,
    points,
    signed,
    text,
)
from lcfbench.analysis.report.source import Source
from lcfbench.analysis.summary import ALONE
from lcfbench.analysis.tables import control_of, mark, unparsed
from lcfbench.analysis.verdict import LABELS

LEADS = {
    "communicates": "Communicates",
    "adapts only": "Only adapts the receiver",
    "undecided": "Undecided",
    "does not communicate": "Does not communicate",
    "untested": "Not tested with another document's message",
    "not judged": "Not judged, too many documents failed",
}
NAMED = 6  # so many methods a sentence of the headline names


class Sentence(NamedTuple):
    """One verdict: whom it concerns, best first. more: how many are left to the table."""

    label: str
    lead: str
    items: list[str]
    more: int


def tested(source: Source) -> list[dict[Any, Any]]:
    """Lines that carry a verdict, best first."""
    found = [line for line in source.lines if line["verdict"] and line["verdict"] != DERIVED]
    return sorted(
        found, key=lambda line: (_rank(line["verdict"]), -line["content"] if known(line["content"]) else 2.0)
    )


def headline(source: Source) -> list[Sentence]:
    """A sentence a verdict. What was never run with another document's message comes last."""
    lines = tested(source)
    several = len({line["pair"] for line in lines}) > 1
    found = []
    for label in dict.fromkeys(line["verdict"] for line in lines):
        mine = [line for line in lines if line["verdict"] == label]
        items = [_named(line, several) for line in mine[:NAMED]]
        found.append(Sentence(label, LEADS.get(label, label.capitalize()), items, len(mine) - len(items)))
    return found


def verdicts(source: Source) -> Table:
    """A row a method and task that was run with a message."""
    lines = tested(source)
    pairs = len({line["pair"] for line in lines}) > 1
    heads = [
        Head("method"),
        Head("task"),
        Head("verdict"),
        Head("matched %", True, "score with the message made for the document itself"),
        Head("deranged %", True, "score with the message of another document"),
        Head("receiver %", True, "score of the receiver alone"),
        Head("gain G", True, "matched − receiver alone, points, with its 95 % interval"),
        Head(
            "content P",
            True,
            "matched − the best of deranged, zero, noise and silent, points, with its 95 % interval",
        ),
        Head("p (Holm)", True, "of content, corrected over all verdicts shown"),
        Head("adapter MB", True, "size of the trained module as saved, 10⁶ bytes"),
        Head("message bytes", True, "median over documents"),
        Head("first token ms", True, "median time to the first answer token, one document at a time"),
        *([Head("pair", title="receiver ← sharer")] if pairs else []),
    ]
    rows = []
    for line in lines:
        entries = [text(line["label"]), text(line["task"], line["scoring"])]
        entries += [
            _verdict(line),
            percent(line["matched_score"]) if known(line["matched_score"]) else score_of(line),
            percent(line["deranged_score"]),
            percent(_receiver(line, source)),
            points(line["gain"], line["gain_low"], line["gain_high"]),
            points(line["content"], line["content_low"], line["content_high"]),
            p_value(line.get("p_holm")),
            number(line["adapter_mb"], 1),
            number(line["message_bytes"]),
            number(line["ttft_ms"]),
        ]
        entries += [_pair(str(line["pair"]))] if pairs else []
        rows.append(Row(entries, line["task"], line["mode"], _slug(line["verdict"])))
    return Table("verdicts", "Every method that sends a message, best first", heads, rows)


def conflicts(source: Source) -> list[Table]:
    """Who won where the receiver's own text states another value than the message: a table, or none."""
    lines = [line for line in source.lines if known(line["won_n"]) and line["won_n"]]
    if not lines:
        return []
    pairs = len({line["pair"] for line in lines}) > 1
    heads = [Head("method"), Head("task"), Head("documents", True)]
    heads += [
        Head(f"{winner} %", True, f"answered {whose}, with its 95 % interval over documents")
        for winner, whose in (
            ("message", "with the message's value"),
            ("text", "with the value of the receiver's own text"),
            ("neither", "with neither"),
        )
    ]
    heads += [Head("pair", title="receiver ← sharer")] if pairs else []
    rows = []
    for line in lines:
        entries = [text(line["label"]), text(line["task"], line["scoring"]), number(line["won_n"])]
        for winner in WINNERS:
            low, high = (percent(line[f"won_{winner}_{end}"]).text for end in ("low", "high"))
            entries.append(percent(line[f"won_{winner}"], f"[{low}, {high}]"))
        entries += [_pair(str(line["pair"]))] if pairs else []
        rows.append(Row(entries, line["task"], line["mode"]))
    return [Table("conflicts", "Who wins where message and text disagree", heads, rows)]


def tasks(source: Source) -> list[Table]:
    """All runs of a task, all controls."""
    found = []
    for index, ((pair, task, scoring), lines) in enumerate(source.by_task.items()):
        seeds = any(known(line.get("seed_sd")) for line in lines)
        chance = next((line["chance"] for line in lines if known(line["chance"])), None)
        guess = f"; guessing gives {100 * chance:.1f} %" if chance is not None else ""
        metric = ", ".join(dict.fromkeys(str(line["metric"]) for line in lines))
        heads = [Head("method"), Head("control"), Head("score %", True)]
        heads.append(Head("95 %", True, "interval over documents"))
        if seeds:
            heads += [Head("seeds", True), Head("± seeds", True, "standard deviation over seeds, points")]
        heads += [Head("0 to 100 %", drawn=True), Head("documents", True)]
        heads += [Head("failed", True, "count as wrong"), Head("first token ms", True), Head("end ms", True)]
        heads.append(Head("documents/s", True, "batched: another number than the latency"))
        heads += [Head(name, True) for name in ("parameters", "adapter MB", "message bytes")]
        rows = []
        for line in lines:
            interval = f"{percent(line['low']).text}–{percent(line['high']).text}"
            entries = [text(line["label"]), text(control_of(line)), score_of(line)]
            entries.append(Entry(interval, line["low"]))
            entries += [number(line.get("seeds")), percent(line.get("seed_sd"))] if seeds else []
            entries.append(Entry("", line["score"], drawing=_whisker(line, chance)))
            entries += [number(line[name]) for name in ("n", "errors", "ttft_ms", "ttea_ms")]
            entries += [number(line["docs_per_s"], 1), number(line["adapter_params"] or None)]
            entries += [number(line["adapter_mb"], 1), number(line["message_bytes"] or None)]
            rows.append(Row(entries, task, line["mode"], _slug(str(line["control"]))))
        caption = f"{task} ({scoring}): {places_named(pair)}. Score: {metric}{guess}."
        found.append(Table(f"task-{index}", caption, heads, rows))
    return found


def averaged(source: Source) -> list[Table]:
    """The averages of groups of which two tasks were run, and what was published beside them."""
    found = []
    for index, (title, averages, told) in enumerate(by_group(source.averages)):
        heads = [Head("method"), Head("control"), Head("documents", True), Head("score %", True)]
        heads += [Head("95 %", True, "the tasks' own intervals, joined"), Head("gain G", True)]
        heads += [Head("content P", True), Head("published %", True, "the same pair and method")]
        rows = []
        for one in averages:
            entries = [text(one.label), text(one.control), number(one.n), score_of(asdict(one))]
            entries.append(Entry(f"{percent(one.low).text}–{percent(one.high).text}", one.low))
            entries += [points(one.gain, one.gain_low, one.gain_high)]
            entries += [points(one.content, one.content_low, one.content_high)]
            rows.append(Row([*entries, text(", ".join(published_told(one)))], one.group))
        caption = " ".join([title, *(f"{sentence[:1].upper()}{sentence[1:]}." for _, sentence in told)])
        found.append(Table(f"group-{index}", caption, heads, rows))
    return found


def subjects(source: Source) -> list[Table]:
    """Where a task has subjects, the score of each: subjects down, methods across."""
    found = []
    for index, key in enumerate(source.by_task):
        groups = [g for g in source.groups_of(key) if any(run in source.subjects for run in g.run_ids)]
        runs = [run for group in groups for run in group.run_ids]
        names = sorted({subject for run in runs for subject in source.subjects.get(run, {})})
        if not names:
            continue
        labels = [g.label if g.control == "matched" else f"{g.label}, {g.control}" for g in groups]
        heads = [Head("subject"), Head("documents", True), *(Head(label, True) for label in labels)]
        rows = []
        for name in names:
            means: list[float | None] = []
            documents = 0
            for group in groups:
                by_run = [source.subjects.get(run, {}) for run in group.run_ids]
                got = [subjects[name] for subjects in by_run if name in subjects]
                means.append(sum(mean for mean, _ in got) / len(got) if got else None)
                documents = max([documents, *(n for _, n in got)])
            entries = [text(name.replace("_", " ")), number(documents), *map(percent, means)]
            rows.append(Row(entries, key[1]))
        pair, task, scoring = key
        caption = f"{task} ({scoring}), {places_named(pair)}: score % of {len(names)} subjects"
        found.append(Table(f"subjects-{index}", caption, heads, rows))
    return found


def _named(line: dict[Any, Any], several: bool) -> str:
    name = f"{line['label']} on {line['task']}" + (f", {line['pair']}" if several else "")
    if not known(line["content"]):
        return name
    ends = f"{signed(line['content_low'])} to {signed(line['content_high'])}"
    content = f"content {signed(line['content'])} points, 95 % {ends}"
    if line["verdict"] == "adapts only" and known(line["gain"]):
        content = f"gain {signed(line['gain'])}, {content}"
    if line["verdict"] == "undecided" and known(line.get("detectable")):
        content += (
            f"; {line['content_n']:.0f} documents show effects from {100 * line['detectable']:.0f} points up"
        )
    return f"{name} ({content})"


def _verdict(line: dict[Any, Any]) -> Entry:
    rank = float(_rank(line["verdict"]))
    return Entry(line["verdict"], rank, _visible(line), "verdict", line["verdict_text"])


def score_of(line: dict[Any, Any]) -> Entry:
    """A score in percent, marked where it says more of failures, with the share of unread answers."""
    found = percent(line["score"])
    return replace(found, text=found.text + mark(line) + unparsed(line))


def _pair(pair: str) -> Entry:
    receiver, _, sharer = pair.partition(":")
    return text(receiver, f"← {sharer}" if sharer else "", "whole")


def _visible(line: dict[Any, Any]) -> str:
    if line["verdict"] != "undecided" or not known(line.get("detectable")):
        return ""
    return f"at n = {line['content_n']:.0f}: smallest visible effect {100 * line['detectable']:.1f} points"


def _receiver(line: dict[Any, Any], source: Source) -> float | None:
    """Returns the receiver's own score on this line's documents, or on all where few are shared."""
    if known(line["gain"]) and line["gain_n"] == line["n"]:
        return float(line["score"]) - float(line["gain"])
    same = [other for other in source.lines if other["mode"] == ALONE and other["control"] == line["control"]]
    same = [
        other for other in same if all(other[name] == line[name] for name in ("receiver", "task", "scoring"))
    ]
    return same[0]["score"] if len(same) == 1 else None


def _whisker(line: dict[Any, Any], chance: float | None) -> Markup:
    """The score and its interval between 0 and 100 %; a tick where guessing is."""
    low, score, high = (
        3 + 114 * min(1.0, max(0.0, line[name])) if known(line[name]) else 3
        for name in ("low", "score", "high")
    )
    tick = (
        Markup('<line class="chance" x1="{0:.1f}" x2="{0:.1f}" y1="1" y2="15"/>').format(3 + 114 * chance)
        if chance is not None
        else ""
    )
    return Markup(
        '<svg class="whisker" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true">'
        '<line class="axis" x1="3" x2="117" y1="8" y2="8"/>'
        '{}<line class="bar" x1="{:.1f}" x2="{:.1f}" y1="8" y2="8"/>'
        '<circle cx="{:.1f}" cy="8" r="3.5"/></svg>'
    ).format(tick, low, high, score)


def _rank(label: str) -> int:
    return LABELS.index(label) if label in LABELS else len(LABELS)


def _slug(label: str) -> str:
    return label.replace(" ", "-") if label != NONE else ""

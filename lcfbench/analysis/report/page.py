"""Writes the report as one HTML page that needs no network and trusts no text it shows.

Path("report.html").write_text(html(source))

Everything goes through Jinja2's escaping. The page's own script is named by its digest in the
Content-Security-Policy: no other one runs.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lcfbench._version import __version__
from lcfbench.analysis.plots.scales import PANELS
from lcfbench.analysis.report import charts, layers
from lcfbench.analysis.report.entries import duration, places_named, plain
from lcfbench.analysis.report.examples import examples
from lcfbench.analysis.report.latency import PHASES, stacks
from lcfbench.analysis.report.provenance import provenance
from lcfbench.analysis.report.sections import averaged, conflicts, headline, subjects, tasks, verdicts
from lcfbench.analysis.report.source import Source
from lcfbench.analysis.summary import ALONE, SHOWN
from lcfbench.analysis.tables import SUMMARY_LEGEND
from lcfbench.tables import printable

COLOURS = 9  # so many series have a colour of their own in page.css


def html(source: Source) -> str:
    """The whole page. The same runs give the same bytes."""
    script, style = (
        files("lcfbench.analysis.report").joinpath(name).read_text("utf-8")
        for name in ("page.js", "page.css")
    )
    shared, runs = provenance(source)
    world = Environment(
        loader=PackageLoader("lcfbench.analysis.report", "."), autoescape=True, undefined=StrictUndefined
    )
    world.trim_blocks = world.lstrip_blocks = True
    world.filters |= {"duration": duration, "plain": plain}
    page = world.get_template("page.html.jinja").render(
        script=Markup(script),
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        version=__version__,
        warnings=source.cautions,
        pairs=list(dict.fromkeys(group.pair for group in source.groups)),
        tasks_named=list(dict.fromkeys(group.task for group in source.groups)),
        runs_read=sum(len(group.run_ids) for group in source.groups),
        rows_read=plain(sum(len(run.codes) for group in source.groups for run in group.runs)),
        sentences=headline(source),
        verdicts=verdicts(source),
        conflicts=conflicts(source),
        frontiers=_frontiers(source),
        tasks=[*tasks(source), *averaged(source)],
        subjects=subjects(source),
        legend=SUMMARY_LEGEND,
        phases=PHASES,
        stacks=stacks(source),
        heats=[(heat, charts.strip(heat)) for heat in layers.strips(source)],
        examples=examples(source),
        shared=shared,
        runs=runs,
    )
    return printable(page)


def _frontiers(source: Source) -> list[dict[str, Any]]:
    """A heading, a legend and three panels for each pair, task and scoring."""
    classes = _colours(source)
    found = []
    for (pair, task, scoring), lines in source.by_task.items():
        lines = [line for line in lines if line["control"] in SHOWN and line["n"]]
        if not lines:
            continue
        heading, metric = f"{task} ({scoring}), {places_named(pair)}", lines[0]["metric"]
        panels = [
            charts.panel(panel, lines, classes, f"{task}: {metric}, %, against {panel.label}")
            for panel in PANELS
        ]
        legend = dict.fromkeys((line["label"], classes[line["label"]]) for line in lines)
        found.append({"heading": heading, "metric": metric, "panels": panels, "legend": list(legend)})
    return found


def _colours(source: Source) -> dict[str, str]:
    """Label → class of its colour, one on the whole page.

    With more labels than colours, those of one mode share theirs.
    """
    modes = {group.label: group.mode for group in source.groups if group.control in SHOWN}
    others = sorted(label for label, mode in modes.items() if mode != ALONE)
    keys = others if len(others) <= COLOURS else sorted({modes[label] for label in others})
    places = {label: keys.index(label if label in keys else modes[label]) for label in others}
    return {label: f"s{places[label] % COLOURS}" if label in places else "s-ink" for label in modes}

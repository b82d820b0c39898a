"""The report: everything the rows say, on one page that needs no network, or as Markdown or CSV.

    from lcfbench.analysis.report import FORMS
    from lcfbench.analysis.report.source import read
    FORMS["html"](read([Path("results")]))

`source` reads; `sections`, `latency`, `layers`, `examples` and `provenance` say what stands in each
part, without a word of HTML; `page` and `text` write it down.
"""

from __future__ import annotations

from collections.abc import Callable

from lcfbench.analysis.report import page, text  # isort: skip
from lcfbench.analysis.report.source import Source

FORMS: dict[str, Callable[[Source], str]] = {"html": page.html, "markdown": text.markdown, "csv": text.csv}

"""Text from files on its way to a terminal, Markdown, CSV, HTML, JSON and figures: visible, and only text."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata

import pytest

from lcfbench.analysis.plots.figures import LONGEST, canvas, drawable, image, styled
from lcfbench.analysis.report.page import html
from lcfbench.analysis.report.source import read
from lcfbench.analysis.tables import to_csv
from lcfbench.cli import tables
from lcfbench.cli.terminal import out
from lcfbench.tables import Column, Table, csv_cell, markdown, printable
from tests.analysis import report_runs
from tests.helpers import invoke

HOSTILE = {
    "csi": "\x1b[31mred\x1b[0m",
    "osc": "\x1b]0;title\x07",
    "link": "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\",
    "c1": "\x9b31m \x85 \x90",
    "bell": "a\x07\x08\x7f",
    "return": "good\rbad",
    "newline": "row\nfake 99.9",
    "tab": "a\tb",
    "rtl": "\u202egnp.exe",
    "isolate": "\u2066a\u2069\u200e\u200f",
    "zero-width": "a\u200bb\u200dc\ufeffd\u2060",
    "tag": "a\U000e0041\U000e007f",
    "filler": "a\u3164\u115f\u2800b",
    "separator": "a\u2028b\u2029c",
    "surrogate": "a\ud800b\udcffc",
    "accents": "a" + "\u0301" * 40,
    "null": "a\x00b",
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "attribute": "\" onmouseover='x' `",
    "comment": "--><!-- ]]>",
    "pipe": "a | b || c \\| d",
    "code": "`code` ```x",
    "markdown": "**b** _i_ [t](http://e) ![i](http://e) # h",
    "heading": "# heading",
    "dollar": "$\\frac{1}{0}$ $$ \\badmacro{",
    "template": "{{ 7 * 7 }} {% raw %}",
    "markup": "[bold]x[/bold] :smile: [link=http://e]y[/link]",
    "percent": "%s %(x)s {0} {x!r}",
    "formula": '=HYPERLINK("http://e")',
    "plus": "+cmd|' /C calc'!A0",
    "minus": "-2+3+cmd|x",
    "at": "@SUM(1)",
    "wide": "中文 日本語",
    "long": "x" * 3000,
}
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
each = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def test_every_control_and_format_character_becomes_visible():
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\t":
            assert printable(char).isascii() and printable(char).startswith("\\"), hex(code)


@pytest.mark.parametrize(
    "text", ["naïve café", "Ünïcödé – “x” … → ×", "中文", "हिन्दी", "עברית", "10⁶ m²", "a\nb\tc"]
)
def test_what_is_seen_stays(text):
    assert printable(text) == text


@each
@pytest.mark.parametrize("width", [1, 20, 40, 80, 500])
def test_a_table_in_a_terminal(capsys, monkeypatch, text, width):
    monkeypatch.setattr(out, "width", width)
    columns = [Column("method", wrap=True), Column("score %", right=True)]
    tables.show(Table(text, columns, [[text, "65.6"]], remarks=[("", text)], legend=text))
    shown = capsys.readouterr().out
    assert not UNSEEN.search(shown)
    assert "65.6" in re.sub(r"\s", "", shown) and "fake 99.9\n" not in "\n".join(shown.splitlines()[:1])


@each
def test_markdown(text):
    shown = Table(text, [Column("a"), Column("b")], [[text, "1"]], remarks=[("", text)]).markdown()
    row = next(line for line in shown.splitlines() if line.endswith(" | 1 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert not UNSEEN.search(shown) and "<" not in shown.replace("<br>", "")
    assert not re.search(r"(?<!\\)\]\(", shown) and "://" not in shown and not re.search(r"(?<!\\)`", shown)
    assert not re.search(r"^- #", shown, re.M)


@each
def test_csv(text):
    found = [{"label": text, "score": -0.5, "note": "+1.5"}]
    rows = list(csv.reader(io.StringIO(to_csv(found))))
    assert len(rows) == 2 and rows[1][1:] == ["-0.5", "+1.5"]
    assert rows[1][0][:1] not in tuple("=+-@\t\r") and not UNSEEN.search(rows[1][0])


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+2", "1e5", "nan", None, 0, True, "text", "–"])
def test_numbers_and_plain_text_stay_in_csv(value):
    assert csv_cell(value) == value


@each
def test_a_figure_draws_it(text):
    with styled():
        figure = canvas((3, 2))
        figure.text(0.1, 0.5, drawable(text))
        assert image(figure).startswith(b"\x89PNG") and b"<script" not in image(figure, "svg", {"Date": None})
    assert len(drawable(text)) <= LONGEST


@pytest.fixture(scope="module")
def hostile_runs(tmp_path_factory):
    """A run for each hostile text: in its options, the document's texts and the manifest."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, text in enumerate(HOSTILE.values()):
        text = text.encode("utf-8", "replace").decode()
        row = {"prediction": text, "gold": text, "error": None, "doc_id": text}
        for control in ("matched", "deranged"):
            options = {"name": f"{number} {text}"[:200]}
            report_runs.record(folder, "lcf", control, range(number), options=options, row=row, timed=1)
    return folder


@pytest.mark.parametrize(
    "verb", ["show", "verdict", "show --markdown", "show --csv", "verdict --csv", "ls runs --out"]
)
def test_verbs(hostile_runs, capsys, monkeypatch, verb):
    code, shown, err = invoke(capsys, monkeypatch, *verb.split(), hostile_runs)
    assert code == 0 and not UNSEEN.search(shown + err) and "Traceback" not in err


@pytest.mark.parametrize("verb", ["show --json", "verdict --json"])
def test_json_is_faithful_and_ascii(hostile_runs, capsys, monkeypatch, verb):
    code, shown, _ = invoke(capsys, monkeypatch, *verb.split(), hostile_runs)
    labels = " ".join(line["label"] for line in json.loads(shown))
    assert code == 0 and shown.isascii() and "\x1b[31mred" in labels and "\u202egnp" in labels


def test_the_page(hostile_runs):
    page = html(read([hostile_runs]))
    assert not UNSEEN.search(page)
    assert page.count("<script") == 1 and "<img" not in page and "\\u202egnp" in page and "\\u001b" in page


@each
def test_an_error_is_one_line(capsys, monkeypatch, text):
    name = text.replace("\x00", "")[:100].replace("/", "_")
    code, shown, err = invoke(capsys, monkeypatch, "show", f"./no{name}")
    assert (code, shown) == (2, "") and err.count("\n") == 1 and not UNSEEN.search(err)


def test_markdown_of_plain_words_is_untouched():
    text = "full_context on splitfacts (cloze): 65.6 %, [+1.2, +3.4], x = -0.5"
    assert markdown(text) == text

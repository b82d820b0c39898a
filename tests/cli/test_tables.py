"""Tables in a terminal: narrow ones lose optional columns first, never a digit or part of a name."""

from __future__ import annotations

import pytest

from lcfbench.cli import tables
from lcfbench.cli.terminal import err, out
from lcfbench.tables import Column, Table

COLUMNS = (
    Column("method"),
    Column("pair", wrap=True),
    Column("score %", right=True),
    Column("bytes", right=True),
    Column("begun", optional=True),
)
ROWS = [
    ["receiver", "smollm2-135m: gemma3-270m", "65.6", "1,234,567", "2026-01-01"],
    ["t2t", "qwen3-0.6b: qwen2.5-0.5b-with-a-name", "100.0", "12", "2026-01-02"],
]


def printed(capsys, monkeypatch, width: int, *shown: Table, form: str = "table") -> str:
    monkeypatch.setattr(out, "width", width)
    tables.show(*(shown or (Table("A title", COLUMNS, ROWS, legend="What it means."),)), form=form)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [200, 80, 64, 50, 40, 20])
def test_no_number_is_cut_and_no_name_is_broken(capsys, monkeypatch, width):
    shown = printed(capsys, monkeypatch, width)
    assert "…" not in shown and shown.startswith("A title")
    for word in " ".join(cell for row in ROWS for cell in row[:-1]).split():
        assert word in shown.split(), (word, shown)
    assert max(map(len, shown.splitlines())) <= max(
        width, len("  pair: qwen3-0.6b: qwen2.5-0.5b-with-a-name")
    )


def test_optional_columns_go_first_and_are_named(capsys, monkeypatch):
    wide, narrow = (printed(capsys, monkeypatch, width) for width in (100, 60))
    assert "2026-01-02" in wide and "left out" not in wide
    assert "2026-01-02" not in narrow and "left out at 60 columns: begun" in narrow
    assert "1,234,567" in narrow and "score %" in narrow


def test_a_table_too_wide_becomes_blocks(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, 30).splitlines()
    at = lines.index("receiver")
    assert "  score %: 65.6" in lines[at:] and "  begun: 2026-01-01" in lines[at:]


def test_numbers_line_up_at_the_right(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, 100).splitlines()
    ends = {
        line.index(number) + len(number)
        for line in lines
        for number in (" 65.6 ", " 100.0 ")
        if number in line
    }
    assert len(ends) == 1


def test_equal_legends_are_printed_once(capsys, monkeypatch):
    each = Table("", COLUMNS, ROWS, remarks=[("red", "a remark")], legend="What it means.")
    shown = printed(capsys, monkeypatch, 80, each, each)
    assert shown.count("What it means.") == 1 and shown.count("• a remark") == 2


def test_control_characters_from_data_are_made_visible(capsys, monkeypatch):
    evil = "\x1b]0;title\x07 \x9b31m [bold] :smile: \r"
    table = Table(evil, [Column("a", wrap=True)], [[evil]], remarks=[("", evil)], legend=evil)
    for form in ("table", "markdown"):
        shown = printed(capsys, monkeypatch, 80, table, form=form)
        assert (
            not set(shown) & set("\x1b\x07\x9b\r")
            and "\\u001b]0;title" in shown
            and "[bold] :smile:" in shown
        )
    err.print(evil)
    out.print([evil], evil)
    seen = capsys.readouterr()
    assert not set(seen.out + seen.err) & set("\x1b\x07\x9b\r")


def test_rows_keep_their_order_and_empty_tables_their_heads(capsys, monkeypatch):
    assert "method" in printed(capsys, monkeypatch, 80, Table("", COLUMNS, []))

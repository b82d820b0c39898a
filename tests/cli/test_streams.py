"""Streams of any encoding and width: no traceback, no character that the encoding lacks, no digit lost."""

from __future__ import annotations

import io
import re
import sys

import pytest

from lcfbench.cli import clean
from tests.analysis import report_runs
from tests.helpers import invoke, process

LINES = [
    "show {runs}",
    "show {runs} --explain",
    "show {runs} --json",
    "show {runs} --markdown",
    "verdict {runs}",
    "compare {runs} {runs}",
    "check {runs} {runs}",
    "ls tasks",
    "ls models",
    "ls adapters",
    "ls methods",
    "ls runs --out {runs}",
    "--help",
    "run --help",
    "show --help",
    "train --help",
    "adapter --help",
    "bench --help",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    report_runs.write(folder)
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
@pytest.mark.parametrize("line", LINES)
def test_every_encoding(runs, monkeypatch, capsys, encoding, line):
    sink = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", sink)
    monkeypatch.setattr(sys, "argv", ["lcfbench", *line.format(runs=runs).split()])
    from lcfbench.cli import app as cli  # without handlers of signals

    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stdout.flush()
    text = sys.stdout.buffer.getvalue().decode(encoding)
    assert ended.value.code in (0, None, 3) and text
    assert encoding != "ascii" or text.isascii()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a → b", "a -> b"), ("−1 ± 2 × 3", "-1 +- 2 x 3"), ("中 …", "\\u4e2d ..."), ("é", "\\xe9")],
)
def test_signs_become_ascii(monkeypatch, text, shown):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert clean.clean(text) == shown


@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
@pytest.mark.parametrize("line", ["show {runs}", "verdict {runs}", "compare {runs} {runs}"])
def test_a_process_in_the_c_locale(runs, variables, line):
    code, out, err = process(*line.format(runs=runs).split(), **variables)
    assert code == 0 and out.isascii() and not err


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,.]*\d", text))


@pytest.mark.parametrize("columns", ["0", "1", "20", "40", "60", "80", "500", "x", "-5"])
@pytest.mark.parametrize(
    "line", ["show {runs}", "verdict {runs}", "compare {runs} {runs}", "ls models", "ls runs --out {runs}"]
)
def test_every_width_keeps_methods_and_digits(runs, monkeypatch, capsys, columns, line):
    from lcfbench.cli.terminal import out

    monkeypatch.setattr(out, "width", max(int(columns), 1) if columns.isdigit() else 80)
    code, shown, _ = invoke(capsys, monkeypatch, *line.format(runs=runs).split())
    assert code in (0, 3)
    if line.startswith("show"):
        squeezed = re.sub(r"\s", "", shown)
        assert {"receiver", "lcf", "t2t"} <= set(re.findall(r"[a-z0-9]+", shown)) or columns in ("0", "1")
        assert "33.3" in squeezed and "1,920" in squeezed


@pytest.mark.parametrize(
    "variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"COLUMNS": "0"}, {"COLUMNS": "1"}, {"COLUMNS": "x"}]
)
def test_odd_terminals(runs, variables):
    code, out, err = process("show", runs, **variables)
    assert code == 0 and "\x1b" not in out and not err

"""`docs/reliability.md`: every promise names tests that exist, and every exit code is listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from lcfbench.errors import Exit

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
PROMISES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.count("|") == 3 and "---" not in line and "held by" not in line
]


def names(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_tests_and_each_of_them_exists() -> None:
    assert len(PROMISES) > 20
    for promise, held in PROMISES:
        found = re.findall(r"`([\w/]+\.py)::(\w+)`", held)
        assert found, promise
        for file, test in found:
            assert test.startswith("test_") and test in names(TESTS / file), (promise, file, test)


def test_every_exit_code_is_listed_and_no_other() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \| ", PAGE, re.M)
    assert {(int(code), name) for code, name in rows} == {(int(code), code.name) for code in Exit}
    running = (TESTS.parent / "docs" / "running.md").read_text()
    assert {int(code) for code in re.findall(r"^\| (\d+) \| ", running, re.M)} >= {int(code) for code in Exit}

"""The pages of benchmarks: numbers only, a place in the site, and made from recorded runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.analysis.frontier_runs import PAIR, answers, record

ROOT = Path(__file__).parents[2]
KEYS = set("label scoring metric n score low high chance errors unparsed".split())
WORDS = ("label", "scoring", "metric")


@pytest.fixture(scope="module")
def pages() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_pages", ROOT / "docs" / "benchmark_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_numbers_are_numbers_and_no_text_of_data(pages):
    for task, rows in json.loads(pages.MEASURED.read_text()).items():
        assert task in pages.BENCHMARKS and rows
        for row in rows:
            assert set(row) == KEYS and row["label"].split()[0] in pages.MODES
            assert all(isinstance(row[k], int | float | None) for k in KEYS - set(WORDS))
            assert all(len(row[k]) < 40 for k in WORDS) and 0 <= row["low"] <= row["score"] <= row["high"]


def test_every_page_is_in_the_navigation(pages):
    text = (ROOT / "mkdocs.yml").read_text()
    named = {f"benchmarks/{path.name}" for path in pages.pages()}
    assert {name for name in named if name not in text} == set()
    assert yaml.safe_load((ROOT / "docs" / "benchmarks" / "pages.yaml").read_text()) == pages.BENCHMARKS


def test_runs_become_lines_of_a_page(pages, tmp_path, monkeypatch):
    for mode, right in (("receiver", 20), ("t2t", 50)):
        record(tmp_path, answers(10, right, mode), task="medqa", mode=mode, scoring="letters")
    record(tmp_path, answers(10, 90, "x"), task="medqa", pair="a:b", scoring="letters")
    record(tmp_path, answers(10, 90, "y"), task="medqa", mode="t2t", scoring="letters", control="deranged")
    record(tmp_path, answers(10, 90, "z"), task="openbookqa")
    found = pages.measure(tmp_path)
    assert pages.EMBEDDED_PAIR == PAIR and list(found) == ["medqa"]
    assert [(row["label"], row["score"], row["n"]) for row in found["medqa"]] == [
        ("receiver", 0.2, 10),
        ("t2t", 0.5, 10),
    ]
    monkeypatch.setattr(pages, "MEASURED", tmp_path / "measured.json")
    (tmp_path / "measured.json").write_text(json.dumps(found))
    page = pages.pages()[pages.FOLDER / "medqa.md"]
    assert "| receiver | letters (acc) | 10 | 20.0 |" in page
    assert "Not measured" in pages.pages()[pages.FOLDER / "musique_split.md"]

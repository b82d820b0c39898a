"""What a command imports before it answers: counted in a process of its own, never timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import helpers
from tests.helpers import sample_row as row
from tests.helpers import start_run as start

HEAVY = {"torch", "transformers", "tokenizers", "lm_eval", "datasets", "accelerate", "peft", "gguf"}
READERS = {"pandas", "pyarrow", "scipy", "matplotlib", "numpy"}
COUNT = """
import sys, runpy
sys.argv = ["lcfbench", *sys.argv[1:]]
try:
    runpy.run_module("lcfbench.cli", run_name="__main__")
finally:
    print("LOADED", len(sys.modules), *{name.partition(".")[0] for name in sys.modules})
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two folders of runs that can be read, judged and compared."""
    out = tmp_path_factory.mktemp("results")
    for folder in ("a", "b"):
        for mode, control in (("receiver", "matched"), ("lcf", "matched"), ("lcf", "deranged")):
            writer = start(out / folder, mode=mode, control=control)
            for index in range(4):
                writer.append(row(index, message_from=f"h{index:03}" if mode == "lcf" else None))
            writer.finish({"sends": mode == "lcf"})
    return out


def loaded(line: str, results: Path, codes: tuple[int, ...] = (0,)) -> tuple[int, set[str]]:
    """How many modules a command imports, and the packages they are of. codes: how it may end."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *line.split()],
        cwd=results,
        env=helpers.environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "LOADED" and done.returncode in codes, done.stdout[-300:] + done.stderr[-300:]
    return int(last[1]), set(last[2:])


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("run --help", 0),
        ("train --help", 0),
        ("bench --help", 0),
        ("adapter --help", 0),
        ("compare --help", 0),
        ("run --limit 0", 2),
        ("run --mode lfc", 2),
    ],
)
def test_help_and_mistakes_import_next_to_nothing(results, line, code):
    count, packages = loaded(line, results, (code,))
    assert not packages & (HEAVY | READERS) and count < 400


@pytest.mark.parametrize(
    "line", ["ls tasks", "ls methods", "ls models", "ls adapters", "ls recipes", "ls runs --out a"]
)
def test_lists_read_no_tables(results, line):
    count, packages = loaded(line, results)
    assert not packages & (HEAVY | READERS) and count < 500


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("show a", (0,)),
        ("show a b --json", (0,)),
        ("verdict a", (0,)),
        ("compare a b", (0,)),
        ("check a b", (0, 1, 3, 4)),
        ("report a --out r.html", (0,)),
    ],
)
def test_readers_of_results_import_no_model_library_and_draw_nothing(results, line, codes):
    assert not loaded(line, results, codes)[1] & (HEAVY | {"matplotlib"})


def test_plots_need_no_model_library(results):
    packages = loaded("plot frontier a", results)[1]
    assert not packages & HEAVY and "matplotlib" in packages


def test_the_doctor_asks_for_versions_and_loads_no_harness(results):
    assert not loaded("doctor --offline", results, (0, 1))[1] & {"lm_eval", "peft"}

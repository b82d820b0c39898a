"""A process that ends at any step of opening, writing or sealing a run loses no row and leaves no litter."""

from __future__ import annotations

import itertools
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from lcfbench.results.reader import read_runs
from lcfbench.results.writer import RunWriter
from tests.fuzz.kills import ENDS, Disturbance, disturb, recorded
from tests.helpers import IDENTITY, sample_row

DOCUMENTS = [f"h{i:03}" for i in range(4)]


def opened(out: Path) -> RunWriter:
    return RunWriter.open(out, IDENTITY, {"chance": 0.5}, documents=DOCUMENTS)


def whole(out: Path) -> None:
    """Answers all that has no row; document 3 fails at the first attempt."""
    writer = opened(out)
    for i, name in enumerate(DOCUMENTS):
        if name not in writer.done:
            failed = i == 3 and len(writer.manifest.sessions) == 1
            writer.append(sample_row(i, error="out of memory") if failed else sample_row(i))
    writer.finish()


def stopped(out: Path) -> None:
    """As Ctrl-C leaves it: sealed after half of the rows."""
    writer = opened(out)
    for i in range(2):
        writer.append(sample_row(i))
    writer.interrupt()


def ended(work: Callable[[], None], how: Disturbance, out: Path) -> bool:
    """Runs `work` in a process that ends at its step; tells whether it did."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, ENDS)
        return code == ENDS
    try:
        disturb(how, out)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


@pytest.mark.parametrize(
    "before, part",
    [*itertools.product(["nothing", "stopped", "failed"], ["before", "after"]), ("nothing", "half")],
)
def test_an_end_at_any_step_loses_no_row_and_leaves_no_litter(tmp_path, before, part):
    for step in itertools.count():
        out = tmp_path / f"{step}"
        out.mkdir()
        if before != "nothing":
            (stopped if before == "stopped" else whole)(out)
        known = recorded(out)
        died = ended(lambda out=out: whole(out), Disturbance("stop", step, part=part), out)
        for run, rows in known.items():
            kept = recorded(out)[run]
            assert all(kept[doc] == row for doc, row in rows.items() if "error" not in row), step
        if any(recorded(out).values()):
            assert len(read_runs([out]).rows) == sum(map(len, recorded(out).values())), step
        for _ in range(2):  # the failure is tried again
            whole(out)
        (folder,) = out.iterdir()
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "samples.parquet"], step
        rows = read_runs([out]).rows
        assert rows["doc_hash"].tolist() == DOCUMENTS and rows["error"].isna().all(), step
        assert rows["score"].tolist() == [0.0, 1.0, 0.0, 1.0], step
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["state"], manifest["documents"], manifest["errors"]) == ("complete", 4, 0), step
        if not died:
            break
    assert step > 10

"""Several processes that start the same run at once: one does it, the others say who has it, or wait."""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path

import pytest

from lcfbench import ownership
from lcfbench.errors import UserError
from lcfbench.ownership import HeldError, acquire, when_free
from tests import helpers
from tests.helpers import manifest_of, rows, run_recipe, start_run

COMMAND = "--mode receiver,t2t --task splitfacts --limit 12 --control matched --batch-size 4 --dtype float32"


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory) -> dict[str, list[dict]]:
    """The rows of each run that one process made."""
    folders = run_recipe(
        pair, tmp_path_factory.mktemp("alone"), mode=["receiver", "t2t"], options={}, latency_documents=64
    )
    return {folder.name: rows(folder) for folder in folders}


def together(pair: str, out: Path, count: int, *more: str) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    children = []
    for number in range(count):
        streams = [os.devnull, str(out / f"{number}.out"), str(out / f"{number}.err")]
        line = ["run", "--pair", pair, "--out", out / "runs", *COMMAND.split(), *more]
        children.append(helpers.fork(line, out, helpers.environment(), streams))
    for child in children:
        child.join(300)
    return [(child.exitcode, (out / f"{n}.err").read_text()) for n, child in enumerate(children)]


@pytest.mark.parametrize(("count", "wait"), [(2, False), (3, True), (8, False)])
def test_one_does_the_run(pair, tmp_path, alone, count, wait):
    ended = together(pair, tmp_path, count, *(["--wait"] if wait else []))
    for code, said in ended:
        assert "Traceback" not in said
        if code == 0:
            continue
        assert code == 2 and not wait, said
        line = said.splitlines()[-1]
        assert re.search(rf"\(process \d+ on {re.escape(socket.gethostname())} since 20.+ UTC\)", line), said
    assert 0 in [code for code, _ in ended]
    run_recipe(pair, tmp_path / "runs", mode=["receiver", "t2t"], options={}, latency_documents=64)
    for name, whole in alone.items():
        folder = tmp_path / "runs" / name
        assert rows(folder) == whole
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "samples.parquet"]
        assert len(manifest_of(folder)["sessions"]) == 1 or not wait


def test_two_that_own_what_the_other_waits_for_do_not_wait_for_ever(tmp_path):
    """A process waits only for what comes after its own in the order of paths."""
    first, second = (tmp_path / name for name in ("a", "b"))
    for folder in (first, second):
        folder.mkdir()
    one, two = acquire(first / ".lock", first, "held"), acquire(second / ".lock", second, "held")
    with pytest.raises(HeldError):
        when_free(lambda: acquire(first / ".lock", first, "held"), wait=True)
    one.release()
    threading.Timer(0.3, two.release).start()
    ownership._owners.clear()  # `two` is another process's
    when_free(lambda: acquire(second / ".lock", second, "held"), wait=True).release()


def test_a_setting_that_changes_no_answer_is_in_no_name(pair, tmp_path):
    [one] = run_recipe(pair, tmp_path / "a")
    [two] = run_recipe(pair, tmp_path / "b", wait=True)
    assert one.name == two.name


def test_a_run_says_who_has_it(tmp_path):
    writer = start_run(tmp_path)
    with pytest.raises(UserError, match=f"another process \\(process {os.getpid()} on .+--wait"):
        start_run(tmp_path)
    writer.interrupt()

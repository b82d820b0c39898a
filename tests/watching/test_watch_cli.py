"""`lcfbench watch` as users call it: in a terminal, in a pipe, beside a run of another process."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sys
import time
from subprocess import Popen

import pytest

from tests.helpers import environment, hear_signals, invoke, process, start
from tests.watching.test_follow import begin, fill

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def going(tmp_path):
    writer = begin(tmp_path / "results", 40)
    fill(writer, range(10))
    yield writer
    writer.close()


def terminal(*args: object, **env: str) -> tuple[Popen, int]:
    """`lcfbench …` in a terminal of its own."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "lcfbench.cli", *map(str, args)]
    more = {**environment(**env), "TERM": "xterm"}
    child = Popen(command, env=more, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=hear_signals)
    os.close(theirs)
    return child, mine


def read_until(handle: int, wanted: str, seconds: float = 30.0) -> str:
    text, end = "", time.monotonic() + seconds
    while wanted not in text and time.monotonic() < end:
        try:
            text += ESCAPES.sub("", os.read(handle, 65536).decode())
        except OSError:
            break
    assert wanted in text, text[-2000:]
    return text


@pytest.mark.parametrize("columns", [40, 100])
def test_a_terminal_follows_a_run_of_another_process_until_ctrl_c(going, tmp_path, columns) -> None:
    child, handle = terminal(
        "watch", tmp_path / "results", "--interval", 0.1, COLUMNS=str(columns), LINES="30"
    )
    read_until(handle, "10/40")
    fill(going, range(10, 25))
    read_until(handle, "25/40")
    fill(going, range(25, 40))
    going.finish()
    read_until(handle, "complete")
    child.send_signal(signal.SIGINT)
    rest = read_until(handle, "interrupted.")
    assert child.wait(20) == 130 and "Traceback" not in rest
    os.close(handle)


def test_no_colour_where_none_is_wanted(going, tmp_path) -> None:
    child, handle = terminal("watch", tmp_path, "--once", NO_COLOR="1")
    child.wait(30)
    shown = os.read(handle, 65536).decode()
    assert "10/40" in shown and not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    os.close(handle)


def test_without_a_terminal_one_table_is_printed(going, tmp_path) -> None:
    code, out, err = process("watch", tmp_path / "results")
    assert (code, err) == (0, "") and "10/40" in out and "\x1b" not in out


def test_json_is_one_object_a_refresh(going, tmp_path, capsys, monkeypatch) -> None:
    code, out, _ = invoke(capsys, monkeypatch, "watch", tmp_path, "--json", "--once")
    (run,) = json.loads(out)["runs"]
    assert code == 0 and (run["state"], run["done"], run["left"]) == ("running", 10, 30)
    child = start("watch", tmp_path, "--json", "--interval", "0.1")
    lines = [json.loads(child.stdout.readline()) for _ in range(3)]
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130 and all(line["runs"][0]["done"] == 10 for line in lines)


def test_follow_prints_a_line_for_each_change(going, tmp_path) -> None:
    child = start("watch", tmp_path, "--follow", "--interval", "0.1")
    first = child.stdout.readline()
    fill(going, range(10, 20))
    second = child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    child.wait(20)
    assert "10/40" in first and "20/40" in second


def test_a_reader_that_leaves_is_no_error(going, tmp_path) -> None:
    child = start("watch", tmp_path, "--follow", "--interval", "0.1")
    child.stdout.readline()
    child.stdout.close()
    fill(going, range(10, 12))
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    child.wait(20)
    assert "Traceback" not in child.stderr.read()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nowhere", "--once"), "no such folder"),
        ((__file__,), "no folder"),
        (("--interval", "0"), "0.1"),
        (("--interval", "nan"), "interval"),
        (("--json", "--serve"), "exclude each other"),
        (("--port", "70000", "--serve"), "65535"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, args, said) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(capsys, monkeypatch, "watch", *args)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path) -> None:
    child = start("watch", tmp_path / "later", "--follow", "--interval", "0.1")
    time.sleep(1.0)
    writer = begin(tmp_path / "later", 5)
    fill(writer, range(3))
    assert any("3/5" in line for line in child.stdout)
    child.send_signal(signal.SIGINT)
    child.wait(20)
    writer.close()

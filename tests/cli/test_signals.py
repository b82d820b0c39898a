"""Ctrl-C and SIGTERM: one line, the right exit code and whole rows, whenever and however often they come."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lcfbench.cli import signals
from lcfbench.results.reader import load_samples
from tests.helpers import ROOT, environment, hear_signals, process, save_pair, start

SEED, MORE = 7, float(os.environ.get("LCFBENCH_FUZZ", "1"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("count", [1, 10])
def test_signals_at_any_moment_leave_one_line_and_whole_rows(tmp_path, number, count):
    rng, out = random.Random(f"{SEED}-{number}-{count}"), tmp_path / "out"
    pair = save_pair(tmp_path / "models")
    command = ["run", "--pair", pair, "--mode", "receiver", "--limit", "100", "--batch-size", "4"]
    command += ["--latency-documents", "0", "--dtype", "float32", "--out", out, "--control", "matched"]
    ended = []
    for latest in (2, *[6] * max(1, round(2 * MORE))):  # seconds; the first while it is still importing
        child = start(*command)
        time.sleep(rng.uniform(0.3, latest))
        for _ in range(count):
            if child.poll() is None:
                child.send_signal(number)
                time.sleep(rng.choice([0, 0.001, 0.05]))
        _, said = child.communicate(timeout=120)
        assert "Traceback" not in said and "Exception ignored" not in said, said
        ended.append(child.returncode)
        if child.returncode == 0:  # it was done before
            continue
        assert child.returncode == (130 if number == signal.SIGINT else -number), said
        assert sum("interrupted" in line for line in said.splitlines()) == 1, said
    assert any(ended), "no signal interrupted anything"
    code, _, said = process(*command)
    assert code == 0, said
    assert len(load_samples([out])) == 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_module_is_imported_whole_before_a_signal_interrupts(tmp_path, number):
    """A compiled module that runs Python while it starts aborts the process otherwise."""
    lines = (
        f"import os, time\nfor _ in range(5): os.kill(os.getpid(), {number})\ntime.sleep(0.3)\nWHOLE = 1\n"
    )
    (tmp_path / "slow.py").write_text(lines)
    code = """
import signal, sys, time
from lcfbench.cli.signals import guarded
def command():
    import slow
    print("whole", slow.WHOLE, flush=True)
    time.sleep(10)
    print("not interrupted", signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(2))
guarded(command)
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=hear_signals,
    )
    assert (done.stdout, done.stderr) == ("whole 1\n", "interrupted.\n")
    assert done.returncode == (130 if number == signal.SIGINT else -number)


MOMENTS = {
    "Python's own, as the handlers are installed": """
def lost(self): raise KeyboardInterrupt
Signals.listen = lost""",
    "Python's own, before they are imported": """
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "lcfbench.cli.signals": raise KeyboardInterrupt
del sys.modules["lcfbench.cli.signals"], cli.signals
sys.meta_path.insert(0, Finder())""",
    "a library's": """
def run(): raise KeyboardInterrupt
cli._run = run""",
    "after all was done": """
end = Signals.end
def late(self, code):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    end(self, code)
Signals.end = late""",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interruption_never_escapes(moment):
    start = (
        "import os, signal, sys, time\nfrom lcfbench import cli\nfrom lcfbench.cli.signals import Signals\n"
    )
    code = f"{start}cli._run = lambda: None{MOMENTS[moment]}\ncli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=hear_signals,
    )
    done_before = moment == "after all was done"
    assert (done.returncode, done.stderr) == ((0, "") if done_before else (130, "interrupted.\n"))


def test_a_signal_that_a_destructor_swallows_comes_again(monkeypatch):
    heard = signals.Signals()
    heard._unraisable = lambda lost: pytest.fail("it was shown")
    monkeypatch.setattr(signals.os, "kill", lambda pid, number: sent.append(number))
    sent: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        heard.hear(signal.SIGINT, None)
    heard.hear(signal.SIGINT, None)  # so soon it changes nothing
    heard.unraisable(type("Lost", (), {"exc_value": KeyboardInterrupt()}))
    time.sleep(5 * signals.AGAIN)
    heard.waiting.clear()  # else it would come again and again
    assert sent == [signal.SIGINT] and not heard.heard

"""Ctrl-C and SIGTERM end a command with one line, whenever they come and however often.

The first signal interrupts; those that follow while the command puts things in order change nothing.
One that comes while a module is imported waits for the import: compiled modules may abort on it.
Ctrl-C ends with exit code 130, SIGTERM as the system ends a process. Imports only what a process has
loaded anyway, so that it listens before anything else is imported.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

PATIENCE = 10.0  # seconds after which another signal interrupts again
AGAIN, LATER = 0.05, 0.3  # seconds after which a signal that was not heard is sent again, and then again
INTERRUPTED = 130


def interrupted(what: str = "") -> NoReturn:
    """Says that the command was interrupted, and ends it. what: what stays, and the next step."""
    sys.stderr.write(f"interrupted{f': {what}' if what else ''}.\n")
    sys.exit(INTERRUPTED)


class Signals:
    """Handles both signals for one command. heard: the signals so far. waiting: those that are sent again."""

    def __init__(self) -> None:
        self.pid, self.heard, self.raised, self.over = os.getpid(), list[int](), 0.0, False
        self.waiting, self.held = set[int](), 0.0

    def listen(self) -> None:
        """Installs the handlers; a signal that the process was started to ignore stays ignored."""
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self.unraisable
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.hear)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt, unless it did so just now or the command has ended."""
        if os.getpid() != self.pid:  # a worker process of a library: it has nothing to put in order
            os._exit(128 + number)
        if self.over or (self.heard and time.monotonic() - self.raised < PATIENCE):
            self.waiting.discard(number)
            return
        self.held = self.held or time.monotonic()
        if importing(frame) and time.monotonic() - self.held < PATIENCE:
            self.send_again(number)
            return
        self.waiting.discard(number)
        self.heard.append(number)
        self.held, self.raised = 0.0, time.monotonic()
        raise KeyboardInterrupt

    def unraisable(self, lost: Any) -> None:
        """Sends a signal again that came where Python cannot raise (in a destructor, say)."""
        if not isinstance(lost.exc_value, KeyboardInterrupt) or not self.heard:
            self._unraisable(lost)
            return
        self.raised = 0.0
        self.send_again(self.heard.pop())

    def send_again(self, number: int) -> None:
        """Sends a signal to this process in a moment, and until it is heard: one that comes as Python
        begins to wait in the system interrupts nothing.
        """

        def send() -> None:
            pause = AGAIN
            while number in self.waiting and not self.over:
                time.sleep(pause)
                if number in self.waiting:
                    os.kill(self.pid, number)
                pause = LATER

        if number not in self.waiting:
            self.waiting.add(number)
            threading.Thread(target=send, daemon=True).start()

    def end(self, code: Any) -> NoReturn:
        """Ends the process: as what was heard asks, else with `code`; a code that is set was explained."""
        self.over = True
        for number in (signal.SIGINT, signal.SIGTERM):  # Python would let them kill it while it shuts down
            signal.signal(number, signal.SIG_IGN)
        if self.heard and not code:
            sys.stderr.write("interrupted.\n")
        if not self.heard:
            sys.exit(code)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if signal.SIGTERM in self.heard:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(self.pid, signal.SIGTERM)
        # Python ends itself by SIGINT where Ctrl-C came within exec(), also where it was caught
        os._exit(INTERRUPTED)


def importing(frame: FrameType | None) -> bool:
    """Says whether a module is being imported where a signal came."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def guarded(command: Callable[[], Any]) -> None:
    """Runs a command that ends with SystemExit or returns, and ends the process."""
    signals, code = Signals(), None
    try:
        signals.listen()
        try:
            command()
        except SystemExit as ended:
            code = ended.code
        if not code:  # a signal that came when all was done
            signals.heard.clear()
        signals.over = True
    except KeyboardInterrupt:  # Python's own is in no list
        signals.heard = signals.heard or [signal.SIGINT]
    except Exception:
        if not signals.heard:  # else a library made another error of the interruption
            raise
    signals.end(code)

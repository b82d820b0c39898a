"""Follows the rows of one run's folder: what was read is not read again, what changes is.

>>> followed = FollowedRun(Path("results/receiver-splitfacts-matched-0123456789"))   # doctest: +SKIP
>>> followed.poll(); followed.view().score                                            # doctest: +SKIP

Only manifest, journal and parquet file are read, and nothing is written. A sealed run is held against its
manifest as everywhere; the lines of a journal are taken as they are, half-written ones later.
"""

from __future__ import annotations

import json
import math
import os
import time
from array import array
from collections import deque
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from lcfbench.errors import UserError
from lcfbench.files import LOCK
from lcfbench.ownership import Observer
from lcfbench.results.manifest import MANIFEST, Manifest, read_manifest
from lcfbench.results.reader import read_place
from lcfbench.results.schema import JOURNAL, SAMPLES, is_row
from lcfbench.tables import printable

COLUMNS = ("doc_hash", "score", "error", "prediction", "metric", "amortized_ms")
RECENT = 512  # rows from which the speed is computed
PORTION = 1 << 22  # bytes of a journal that are read at once
STALE_SECONDS = 300  # without a new row, a run whose process is there is called stale
Stamp = tuple[int, int, int] | None  # of a file: inode, size, time of its last change
UNSEEN: Stamp = (0, 0, 0)
RunNumbers = tuple[float | None, float | None, float | None, float | None]


@dataclass(frozen=True)
class RunView:
    """One run as it stands, ready for JSON.

    state: reading (not read yet), new (no row yet), running, stale (no row for five minutes), stopped
    (its process is gone), interrupted, complete, failed (too many documents failed), damaged or
    unreadable; `note` says why.
    score, low, high: mean and its 95 % interval, 0 to 1. done, planned, left: documents. eta_s: seconds
    to its end. behind: bytes of the journal that were not read yet. changed_at: of its last row.
    """

    run_id: str
    folder: str
    state: str
    note: str = ""
    pair: str = ""
    mode: str = ""
    task: str = ""
    control: str = ""
    seed: int | None = None
    metric: str | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    done: int = 0
    planned: int | None = None
    left: int | None = None
    errors: int = 0
    unparsed: int = 0
    ms_per_document: float | None = None
    documents_per_s: float | None = None
    eta_s: float | None = None
    behind: int = 0
    started_at: str | None = None
    changed_at: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected of it."""
        return self.state not in ("reading", "new", "running", "stale")

    def record(self) -> dict[str, Any]:
        """The view as a JSON object."""
        return asdict(self)


class Rows:
    """What the rows of a run say so far. A later row of a document replaces one that failed.

    whole: remember every document; else those that failed, the only ones that are answered again.
    differing: number of answers that are not those of before.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.scores, self.milliseconds = array("d"), array("d")  # one of each document; ms may be NaN
        self.places: dict[str, int] = {}
        self.failed, self.unparsed = set[int](), set[int]()
        self.odd = self.changes = self.differing = 0
        self.metric: str | None = None
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # time written, amortized ms

    def add(self, row: dict[str, Any]) -> None:
        """Counts a row. Raises ValueError for one whose time of writing is none."""
        error, name, written = row.get("error"), row["doc_hash"], row.get("written_at")
        score = float(row.get("score") or 0.0)  # a document that failed may have none
        ms = math.nan if row.get("amortized_ms") is None else float(row["amortized_ms"])
        when = datetime.fromisoformat(written).timestamp() if written else None
        place = self.places.get(name)
        if place is None:
            place = len(self.scores)
            self.scores.append(score)
            self.milliseconds.append(ms)
            if self.whole or error is not None:
                self.places[name] = place
        else:
            self.differing += error is None and place not in self.failed and score != self.scores[place]
            self.scores[place], self.milliseconds[place] = score, ms
            self.failed.discard(place)
            self.unparsed.discard(place)
        parsed = row.get("parsed")
        if error is not None:
            self.failed.add(place)
        elif parsed is False or (parsed is None and row.get("prediction") is None):
            self.unparsed.add(place)
        self.changes += 1
        self.metric = str(row.get("metric") or "") or self.metric
        if when is not None and 0 <= ms < math.inf:
            self.recent.append((when, ms))

    @property
    def ms_per_document(self) -> float | None:
        """Mean of what a document's batch took for it."""
        import numpy as np

        known = np.asarray(self.milliseconds)
        known = known[np.isfinite(known) & (known >= 0)]
        return float(known.mean()) if len(known) else None

    @property
    def speed(self) -> float | None:
        """Documents a second by the clock, over the last rows; by their own times where all are new."""
        if not self.recent:
            return None
        (first, _), (last, _) = self.recent[0], self.recent[-1]
        if last > first:  # a batch is written at once: those of the first moment were answered before it
            return sum(when > first for when, _ in self.recent) / (last - first)
        spent = sum(ms for _, ms in self.recent)
        return 1000 * len(self.recent) / spent if spent else None


def stamp(path: Path) -> Stamp:
    """Tells two states of a file apart; None where there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


class FollowedRun:
    """One run's folder. Raises nothing: what cannot be read is its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._observer = Observer(folder / LOCK)
        self.manifest = Manifest()
        self.rows = Rows()
        self.trouble: tuple[str, str] | None = None  # state and why
        self.polled = False
        self._sound = True
        self._manifest: Stamp = UNSEEN
        self._samples: Stamp = UNSEEN
        self._journal: int | None = None  # its inode
        self._offset = self._size = 0
        self._known: tuple[int, RunNumbers] | None = None

    def poll(self, until: float = math.inf) -> None:
        """Reads what is new, up to a moment of `time.monotonic`."""
        # in this order: a run that ends writes its file, then its manifest, and removes the journal last
        journal, samples, manifest = (stamp(self.folder / name) for name in (JOURNAL, SAMPLES, MANIFEST))
        begun, sessions = journal is not None and journal[1] > 0, len(self.manifest.sessions)
        if manifest != self._manifest or (self.trouble and samples != self._samples):
            self._manifest = manifest
            self._read_manifest()
        inode, self._size = (journal[0], journal[1]) if journal and begun else (None, 0)
        other = self._journal is not None and (inode != self._journal or self._size < self._offset)
        if samples != self._samples or other or len(self.manifest.sessions) != sessions or not self.polled:
            self._samples, self._offset = samples, 0
            self.rows = Rows(whole=begun and samples is not None)
            self._sound = self._read_samples(begun)
        self._journal, self.polled = inode, True
        if begun and self._sound:
            self._read_journal(until)
        if self.rows.differing:  # no score can be told
            self.trouble = ("damaged", f"{self.rows.differing:,} documents have several answers that differ")
            self._sound, self.rows = False, Rows()

    def _read_manifest(self) -> None:
        try:
            self.manifest, odd = Manifest.lenient(read_manifest(self.folder), self.folder)
            self.trouble = ("damaged", "; ".join(odd)) if odd else None
        except UserError as error:
            self.manifest, self.trouble = Manifest(), ("unreadable", error.what)

    def _read_samples(self, begun: bool) -> bool:
        """Reads sealed rows; a run that goes on with its journal has those of earlier sessions there.

        Returns whether they can be relied on.
        """
        if self._samples is None and (begun or not self.manifest.documents):
            return True
        try:
            begun = begun and self.manifest.state == "running"
            table, _, _ = read_place(self.folder / SAMPLES if begun else self.folder, COLUMNS)
        except UserError as error:
            if stamp(self.folder / SAMPLES) == self._samples:  # else it was replaced meanwhile
                self.trouble = self.trouble or ("damaged", error.what)
            return False
        for row in table.to_pylist():
            self.rows.add(row)
        return True

    def _read_journal(self, until: float) -> None:
        try:
            with open(self.folder / JOURNAL, "rb") as file:
                file.seek(self._offset)
                while self._read_portion(file) and time.monotonic() < until:
                    pass
        except OSError as error:
            self.trouble = ("unreadable", f"{JOURNAL}: {error.strerror or error}")

    def _read_portion(self, file: BinaryIO) -> bool:
        """Reads some whole lines; says whether there may be more."""
        text = file.read(PORTION)
        end = text.rfind(b"\n") + 1
        if not end and len(text) == PORTION:  # a line longer than that
            text += file.readline()
            end = text.rfind(b"\n") + 1
        for line in text[:end].splitlines():
            try:
                if is_row(row := json.loads(line), self.folder.name):
                    self.rows.add(row)
                else:
                    self.rows.odd += 1
            except (ValueError, TypeError, ArithmeticError, RecursionError):
                self.rows.odd += 1
        self._offset += end
        file.seek(self._offset)
        return len(text) >= PORTION

    @property
    def behind(self) -> int:
        """Bytes of the journal that were not read yet, half a line aside."""
        left = self._size - self._offset
        return left if left > PORTION else 0

    def _numbers(self) -> RunNumbers:
        """Mean, both ends of its interval and ms a document, computed again only where rows came."""
        from lcfbench.analysis.stats import mean_interval

        if not self.rows.scores:
            return None, None, None, None
        if self._known is None or self._known[0] != self.rows.changes:
            found = mean_interval(self.rows.scores)
            self._known = self.rows.changes, (found.value, found.low, found.high, self.rows.ms_per_document)
        return self._known[1]

    def _state(self, done: int, errors: int, changed: float | None) -> tuple[str, str]:
        if not self.polled:
            return "reading", ""
        if self.trouble:
            return self.trouble
        manifest, odd = self.manifest, f"{self.rows.odd:,} lines are no rows of it" if self.rows.odd else ""
        if manifest.state == "running":
            if not self._owned():
                return "stopped", odd or "its process is gone; the same command goes on"
            quiet = time.time() - changed if changed else 0.0
            if quiet > STALE_SECONDS:
                return "stale", odd or f"no row for {quiet / 60:.0f} min"
            return ("running" if done else "new"), odd
        if manifest.state == "complete" and manifest.too_many(errors, done):
            return "failed", odd or "too many documents failed"
        return printable(manifest.state, one_line=True), odd

    def _owned(self) -> bool:
        """Whether a process writes it; one of another system may pause for a while."""
        try:
            found, _, lives = self._observer.look()
        except OSError:  # no lock, or one that this user may not see
            return False
        return bool(found) and lives is not False

    def view(self) -> RunView:
        """The run as it stands after the last `poll`."""
        if self.manifest.state == "running" and not self._owned():
            self.poll()  # it may have ended since
        manifest, rows, identity = self.manifest, self.rows, self.manifest.identity
        done, errors = len(rows.scores), len(rows.failed)
        files = [self._manifest, self._samples, stamp(self.folder / JOURNAL)]
        changed = max((found[2] for found in files if found), default=0) / 1e9 or None
        state, note = self._state(done, errors, changed)
        planned = manifest.documents_planned or (manifest.documents if state == "complete" else None)
        left = max(planned - done, 0) if planned is not None else None
        score, low, high, ms = self._numbers()
        live = state in ("new", "running", "stale")
        speed = rows.speed if live else manifest.documents_per_second

        def said(name: str) -> str:
            return printable(str(identity.get(name) or ""), one_line=True)

        seed = identity.get("seed")
        return RunView(
            run_id=printable(manifest.run_id or self.folder.name, one_line=True),
            folder=str(self.folder),
            state=state,
            note=printable(note, one_line=True),
            **{name: said(name) for name in ("pair", "mode", "task", "control")},
            seed=seed if isinstance(seed, int) else None,
            metric=printable(rows.metric, one_line=True) if rows.metric else None,
            score=score,
            low=low,
            high=high,
            done=done,
            planned=planned,
            left=left,
            errors=errors,
            unparsed=len(rows.unparsed),
            ms_per_document=ms,
            documents_per_s=speed,
            eta_s=left / speed if live and left is not None and speed else None,
            behind=self.behind,
            started_at=manifest.started_at,
            changed_at=changed,
        )


def is_there(folder: Path) -> bool:
    """Says whether a folder still holds a run."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, SAMPLES, JOURNAL))

"""One recorded run, looked at document by document.

>>> RecordedRun.open(Path("results/t2t-splitfacts-matched-0123456789")).chosen(["3"])   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.results.finding import Search, is_run, run_folders
from lcfbench.results.manifest import Manifest
from lcfbench.results.messages import KeptMessage, kept_names, read_message
from lcfbench.results.reader import read_place
from lcfbench.results.schema import COLUMNS

NUMBER = 9  # digits of a document's number at the most; longer ones are hashes
SHORTEST = 4  # characters of a hash that name a document
UNKEPT = "Run it again with --keep-messages; a run that is complete needs --fresh too."
LISTED = "`lcfbench ls runs` lists them."


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder, its manifest and its rows in the order of the documents."""

    folder: Path
    manifest: Manifest
    rows: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> RecordedRun:
        """Reads a run. Raises UserError where none is there, or its rows are not those recorded."""
        if not folder.is_dir() or not is_run(folder):
            raise UserError(f"no run is at {folder}.", f"Name the folder of a run; {LISTED}")
        try:
            table, manifest, _ = read_place(folder, tuple(COLUMNS))
        except UserError as error:
            raise UserError(f"{folder}: {error.what}.", "Run it again with --fresh.") from error
        rows = sorted(table.to_pylist(), key=lambda row: row["doc_index"])
        return cls(folder, manifest, rows)

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Returns the hashes of documents: all, or those with these numbers or beginnings of hashes.

        Raises UserError for a name that no document has, or that several have.
        """
        if not names:
            return [row["doc_hash"] for row in self.rows]
        return list(dict.fromkeys(self._named(name) for name in names))

    def _named(self, name: str) -> str:
        count = len(self.rows)
        if name.isdecimal() and len(name) <= NUMBER:
            found = [row["doc_hash"] for row in self.rows if row["doc_index"] == int(name)]
            if not found:
                last = max((row["doc_index"] for row in self.rows), default=0)
                step = f"The numbers of its documents go to {last}."
                raise UserError(f"no document {name} has a row in {self.folder}.", step)
            return str(found[0])
        found = [row["doc_hash"] for row in self.rows if row["doc_hash"].startswith(name)]
        if len(name) < SHORTEST or not found:
            what = f"no document {name!r} is among the {count:,} of {self.folder}."
            raise UserError(what, f"Give its number, or {SHORTEST} or more characters of its doc_hash.")
        if len(found) > 1:
            raise UserError(f"{name} begins the hashes of {len(found)} documents.", "Give more of it.")
        return str(found[0])


def load_messages(run: Path | str, documents: Sequence[str] = ()) -> list[KeptMessage]:
    """Returns the messages that a run kept, in the order of its documents, as `lcfbench message show` does.

    run: its folder. documents: hashes, their beginnings or numbers; none: all. Raises UserError where none
    are kept, and for a message whose bytes are not those that crossed.
    """
    folder = run_with_messages(Path(run))
    recorded, kept = RecordedRun.open(folder), kept_names(folder)
    names = recorded.chosen(documents)
    if not kept:
        raise UserError(f"{folder} keeps no messages.", UNKEPT)
    return [read_message(folder, name) for name in names if documents or name in kept]


def run_with_messages(place: Path, out: Path = Path("results")) -> Path:
    """Returns the folder of a run that keeps messages: as named, by its id below `out`, or the one below it.

    Raises UserError where there is no such run, or several.
    """
    here = next((p for p in (place, out / place) if p.is_dir()), None)
    if here is None:
        raise UserError(f"no run is at {place}.", f"Name the folder of a run; {LISTED}")
    if is_run(here):
        return here
    found = [folder for folder in run_folders(here, Search(), 20_000) if kept_names(folder)]
    if not found:
        step = "Name a run that was made with --keep-messages."
        raise UserError(f"no run at {here} keeps messages.", step)
    if len(found) > 1:
        few = ", ".join(folder.name for folder in found[:3]) + (", …" if len(found) > 3 else "")
        raise UserError(f"{len(found)} runs at {here} keep messages: {few}.", "Name one of them.")
    return found[0]

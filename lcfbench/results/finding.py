"""Finds recorded runs below a folder, however deep they lie within reason.

>>> for place in places(Path("results"), warnings := []): ...   # doctest: +SKIP

Left out below the folder that is named: hidden folders (`.gate`), and `baseline`, which holds what new
runs are checked against. Each is read where it is named itself.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lcfbench.files import FIGURE
from lcfbench.results.manifest import MANIFEST
from lcfbench.results.schema import JOURNAL, SAMPLES
from lcfbench.results.shards import is_shard

PARTS = (MANIFEST, SAMPLES, JOURNAL)
APART = "baseline"
DEEPEST = 6  # levels below the folder that is named
MOST = 100_000  # entries that are looked at: a second or two of a disk that is awake
NEAR = 20_000  # of them where runs are looked for that nobody named
FEW = 3


@dataclass
class Search:
    """What a walk below a folder met beside runs.

    entries: seen outside of runs, a run being one. apart: folders left out that hold runs or may.
    sharded: runs of which there are shards.
    """

    entries: int = 0
    ended: bool = False
    apart: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    sharded: set[Path] = field(default_factory=set)


def is_run(path: Path) -> bool:
    """Returns whether a folder holds a run, finished or not, or a shard of one."""
    return any(os.path.lexists(path / name) for name in PARTS)


def run_folders(folder: Path, search: Search, most: int) -> Iterator[Path]:
    """Yields the run folders below a folder, level by level, sorted by name; links are followed once."""
    seen: set[tuple[int, int]] = set()
    waiting = deque([(folder, 0)])
    while waiting:
        here, depth = waiting.popleft()
        try:
            about = here.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(here) as entries:
                inside = []
                for entry in entries:
                    inside.append(entry)
                    search.entries += 1
                    if search.entries > most:
                        search.ended = True
                        return
        except OSError as error:
            search.unread.append(f"{here}: {error.strerror or error}")
            continue
        if depth and not {entry.name for entry in inside}.isdisjoint(PARTS):
            search.entries -= len(inside)  # so that any number of runs is found
            if is_shard(here):
                search.sharded.add(here.parent.parent)
            else:
                yield here
            continue
        for entry in sorted(inside, key=lambda entry: entry.name):
            if not _is_folder(entry):
                continue
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name == APART:
                search.apart.append(path)
            elif depth < DEEPEST:
                waiting.append((path, depth + 1))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def places(path: Path, warnings: list[str]) -> Iterator[Path]:
    """Yields the run folders and parquet files that a path stands for.

    A warning says where nothing was found, what was left out, and where the search ended early.
    """
    if path.is_file():
        yield path.parent if path.name in PARTS else path
    elif is_shard(path) and is_run(path):
        warnings.append(f"{path}: a part of a run; `lcfbench gather` puts the parts together")
    elif is_run(path):
        yield path
    elif path.is_dir():
        search, count = Search(), 0
        for place in (*run_folders(path, search, MOST), *_tables(path)):
            count += 1
            yield place
        warnings += search.unread
        if search.ended:
            warnings.append(
                f"{path}: only its first {MOST:,} files were looked at; name the folder of the runs"
            )
        if not count:
            warnings.append(f"{path}: no runs in this folder or below; {nearest(path)}")
        else:
            apart = (
                p for p in search.apart if p.name == APART and next(run_folders(p, Search(), NEAR), None)
            )
            warnings += [f"{p}: left out; name it to read it" for p in apart]
    else:
        warnings.append(f"{path}: no such file or folder; {nearest(path)}")


def listed(folder: Path, sharded: bool = False) -> list[Path]:
    """Returns the run folders below a folder or the one that it is, those of a baseline at the end.

    sharded: runs of which there are shards alone too.
    """
    search = Search()
    if is_run(folder):
        found = [folder]
    else:
        found = [*run_folders(folder, search, MOST)] if folder.is_dir() else []
        found += sorted(search.sharded - set(found)) if sharded else []
    return found + [run for p in search.apart if p.name == APART for run in run_folders(p, Search(), MOST)]


def _tables(folder: Path) -> list[Path]:
    """Samples that were copied into a folder as they are."""
    try:
        found = (p for p in folder.glob("[!.]*.parquet") if not p.name.endswith(FIGURE))
        return sorted(p for p in found if p.is_file())
    except OSError:
        return []


def nearest(path: Path) -> str:
    """Says where runs are: in what was left out, else beside a path, in the working folder or around it."""
    found: dict[str, None] = {}
    here = next((p for p in (path, *path.absolute().parents) if p.is_dir()), Path())
    for start in (here, path.absolute().parent, Path(), *Path.cwd().parents[:2]):
        if not start.is_dir() or start.absolute() == Path(start.absolute().anchor):  # never the whole disk
            continue
        search = Search()
        runs = [*run_folders(start, search, NEAR)]
        for apart in search.apart:
            runs += run_folders(apart, Search(), NEAR // 10)
        found |= dict.fromkeys(_told(run.parent) for run in runs if not is_run(run.parent))
        if found:
            break
    if not found:
        return "make some with `lcfbench run` or `lcfbench demo`"
    more = f" and {len(found) - FEW} more folders" if len(found) > FEW else ""
    return f"there are runs in {', '.join([*found][:FEW])}{more}"


def _told(folder: Path) -> str:
    """A folder, seen from the working folder where it lies below."""
    try:
        return str(folder.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(folder)

"""Files of one's own behind a run: methods, adapter kinds, controls and tasks that were given by their path.

A manifest names them, so that the run can be asked again in another process.

>>> used([("methods", "lcf"), ("tasks", "splitfacts")])                          # none that ships counts
{}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.registry import GROUPS, OURS, PYTHON, add_path, find, name_of, names, source_digest
from lcfbench.results.manifest import Manifest
from lcfbench.tasks.yaml_files import file_digest

GIVE = "Give it as it was with --file."


def used(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the files of those names (group, name) that no package offers, by `group/name`."""
    found = {f"{group}/{name}": find(group, name) for group, name in names}
    return {
        key: str(entry.file.resolve())
        for key, entry in found.items()
        if entry.source != OURS and not entry.module
    }


def register(manifest: Manifest, given: Sequence[Path] = ()) -> None:
    """Registers the files of a recorded run, where they were or as they are given.

    Raises UserError for a file that is gone or no longer the run's, and for one that the run did not use.
    """
    wanted = _wanted(manifest)
    here = {key: file for file in given for key in _keys(file, wanted)}
    for key, recorded in wanted.items():
        group, _, name = key.partition("/")
        place = here.get(key, recorded)
        if place is None or (key not in here and name in names(group)):
            continue
        if not place.is_file():
            noun = GROUPS[group].noun
            what = f"the file {place} of {noun} {name}, which this run used, is not there any more."
            raise UserError(what, "Say where it is with --file.")
        add_path(group, str(place))
    for key, file in {**wanted, **here}.items():
        if file is not None:
            _check(key, manifest.identity)


def _wanted(manifest: Manifest) -> dict[str, Path | None]:
    """What a run used by `group/name`, and the files; None where none is recorded, as for what ships."""
    identity = manifest.identity
    known = [*(identity.get("plugins") or {}), f"tasks/{identity.get('task')}"]
    return dict.fromkeys(known) | {
        key: Path(file) for key, file in (manifest.files or {}).items() if key.partition("/")[0] in GROUPS
    }


def _keys(file: Path, wanted: Mapping[str, Any]) -> list[str]:
    """What of a run a given file is, perhaps a method and its adapter kind. Raises UserError for nothing."""
    groups = [g for g in GROUPS if (g == "tasks") != (file.suffix in PYTHON)]
    found = [key for g in groups if (key := f"{g}/{name_of(g, file)}") in wanted]
    if not found:
        used = ", ".join(key.partition("/")[2] for key in wanted)
        raise UserError(f"--file {file} is nothing that this run used: {used}.", "Leave it out.")
    return found


def _check(key: str, identity: Mapping[str, Any]) -> None:
    """Raises UserError where a file, or a module that it imports, is no longer the run's."""
    group, _, name = key.partition("/")
    here = file_digest(name) if group == "tasks" else source_digest(group, name)
    recorded = identity.get("task_sha256") if group == "tasks" else (identity.get("plugins") or {}).get(key)
    if recorded != here:
        what = f"{find(group, name).file} of {GROUPS[group].noun} {name}, or a module that it imports"
        raise UserError(f"{what}, has changed since this run ({recorded!s:.12}, here {here!s:.12}).", GIVE)

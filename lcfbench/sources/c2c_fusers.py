"""Where fusers in C2C's released layout come from: a folder, a mirror, the Hub (its cache first).

On the Hub one repository holds several, a subfolder each: `nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser`.

>>> folder = find_fuser("nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser")        # doctest: +SKIP
"""

from __future__ import annotations

import json
from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.sources import hub
from lcfbench.sources.cache import mirror

CONFIG, MAP = "config.json", "final/projector_config.json"


def find_fuser(where: str, *, offline: bool = False) -> Path:
    """The folder of a released fuser: a local one, else `ORG/NAME[/SUBFOLDER]` in the mirror, the Hub's cache, the Hub.

    Downloads only in the last step, never when `offline`. Raises `UserError` that lists what was tried.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        if not (folder / MAP).is_file():
            raise UserError(
                f"{folder} is not laid out as C2C's fusers are ({MAP} is missing).",
                among(folder) or "Name such a folder.",
            )
        return folder
    parts = where.strip("/").split("/")
    if len(parts) < 2 or ".." in parts or where.startswith(("/", ".", "~")):
        raise UserError(
            f"there is no folder {where}.", "Name a fuser's folder, or ORG/NAME/SUBFOLDER on the Hub."
        )
    repo_id, inside = "/".join(parts[:2]), "/".join(parts[2:])
    tried, near = ["path: no such folder"], ""
    root, snapshot = mirror(), hub.snapshot(repo_id)
    for place, base in (("mirror", root / "models" / repo_id if root else None), ("Hub cache", snapshot)):
        if base is None:
            tried.append(f"{place}: {'LCFBENCH_MIRROR is not set' if place == 'mirror' else 'nothing there'}")
            continue
        if not (missing := lacks(base / inside)):
            return base / inside
        tried.append(f"{place}: {base / inside}: {missing}")
        near = near or among(base, f"{repo_id}/")
    front = f"{inside}/" if inside else ""
    try:
        folder = hub.fetch_files(repo_id, [f"{front}{CONFIG}", f"{front}final/*"], offline) / inside
        if not (missing := lacks(folder)):
            return folder
        tried.append(f"Hub: {repo_id}{f' in {inside}' if inside else ''} has {missing}")
    except hub.HubError as error:
        tried.append(f"Hub: {error}")
    raise UserError(
        f"cannot find the fuser {where!r}. Tried, in order: {'; '.join(tried)}.",
        near
        or f"Name it as ORG/NAME/SUBFOLDER; or run `hf download {repo_id}` where the Hub can be reached, and name the folder.",
    )


def lacks(folder: Path) -> str:
    """What a fuser's folder lacks, as a phrase; empty when every file that its layer map names is there."""
    if not folder.is_dir():
        return "no such folder"
    wanted = [CONFIG, MAP]
    if (folder / MAP).is_file():
        try:
            entries = [
                pair for pairs in json.loads((folder / MAP).read_text())["0"]["1"].values() for pair in pairs
            ]
            wanted += [
                f"final/projector_{n}.{kind}"
                for n in sorted({int(n) for _, n in entries})
                for kind in ("pt", "json")
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""  # the import says what is wrong with it
    missing = [name for name in wanted if not (folder / name).is_file()]
    return (
        f"no {missing[0]}" + (f" and {len(missing) - 1} more missing" if len(missing) > 1 else "")
        if missing
        else ""
    )


def among(folder: Path, front: str = "") -> str:
    """A next step that names the fusers inside a folder; empty where there are none."""
    names = sorted(p.parents[1].name for p in folder.glob(f"*/{MAP}")) if folder.is_dir() else []
    return f"Name one of the fusers in it: {', '.join(front + n for n in names)}." if names else ""

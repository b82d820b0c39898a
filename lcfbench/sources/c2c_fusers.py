"""Finds fusers in the layout that C2C released: a folder, a mirror, the Hub (its cache first).

On the Hub one repository holds several, one subfolder each, for instance
`nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser`.

>>> folder = find_fuser("nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser")        # doctest: +SKIP
"""

from __future__ import annotations

import re
from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.parsing import load_json
from lcfbench.sources import hub
from lcfbench.sources.cache import mirror

CONFIG, MAP = "config.json", "final/projector_config.json"


def find_fuser(where: str, *, offline: bool = False) -> Path:
    """The folder of a released fuser: a local one, else `ORG/NAME[/SUBFOLDER]` in mirror, cache or Hub.

    Downloads only as the last step, never when `offline`. Raises UserError that lists the places tried.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        if not (folder / MAP).is_file():
            what = f"{folder} is not laid out as C2C's fusers are ({MAP} is missing)."
            raise UserError(what, among(folder) or "Name such a folder.")
        return folder
    parts = where.strip("/").split("/")
    if len(parts) < 2 or not plain(where) or where.startswith(("/", ".", "~")):
        step = "Name a fuser's folder, or ORG/NAME/SUBFOLDER on the Hub."
        raise UserError(f"there is no folder {where}.", step)
    repo_id, inside = "/".join(parts[:2]), "/".join(parts[2:])
    tried, near = ["path: no such folder"], ""
    root, snapshot = mirror(), hub.snapshot(repo_id)
    for place, base in (("mirror", root / "models" / repo_id if root else None), ("Hub cache", snapshot)):
        if base is None:
            tried.append(f"{place}: {'LCFBENCH_MIRROR is not set' if place == 'mirror' else 'nothing there'}")
            continue
        if not (missing := lacks(base / inside, base)):
            return base / inside
        tried.append(f"{place}: {base / inside}: {missing}")
        near = near or among(base, f"{repo_id}/")
    front = f"{inside}/" if inside else ""
    try:
        base = hub.fetch_files(repo_id, [f"{front}{CONFIG}", f"{front}final/*"], offline)
        if not (missing := lacks(folder := base / inside, base)):
            return folder
        tried.append(f"Hub: {repo_id}{f' in {inside}' if inside else ''} has {missing}")
    except hub.HubError as error:
        tried.append(f"Hub: {error}")
    step = f"or run `hf download {repo_id}` where the Hub can be reached, and name the folder."
    raise UserError(
        f"cannot find the fuser {where!r}. Tried, in order: {'; '.join(tried)}.",
        near or f"Name it as ORG/NAME/SUBFOLDER; {step}",
    )


def plain(text: str) -> bool:
    """Says whether a path or revision on the Hub is one: no pattern, no way up, no control character."""
    return text.isprintable() and not re.search(r"[*?\[\]\\]|(^|/)\.\.(/|$)", text)


def lacks(folder: Path, base: Path | None = None) -> str:
    """The files that a fuser's folder lacks, as a phrase; empty when all that its layer map names exist.

    base: the repository that the folder must lie in.
    """
    if not folder.is_dir():
        return "no such folder"
    if base is not None and not folder.resolve().is_relative_to(base.resolve()):
        return "a link out of the repository"
    needed = [CONFIG, MAP]
    if (folder / MAP).is_file():
        try:
            layers = load_json(folder / MAP, "file")["0"]["1"].values()
            numbers = sorted({int(n) for pairs in layers for _, n in pairs})
        except (UserError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return ""  # the import says what is wrong with it
        needed += [f"final/projector_{n}.{suffix}" for n in numbers for suffix in ("pt", "json")]
    missing = [name for name in needed if not (folder / name).is_file()]
    more = f" and {len(missing) - 1} more missing" if len(missing) > 1 else ""
    return f"no {missing[0]}{more}" if missing else ""


def among(folder: Path, front: str = "") -> str:
    """A next step that names the fusers inside a folder; empty where there are none."""
    names = sorted(p.parents[1].name for p in folder.glob(f"*/{MAP}")) if folder.is_dir() else []
    return f"Name one of the fusers in it: {', '.join(front + n for n in names)}." if names else ""

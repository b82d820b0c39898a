"""Finds fusers in the layout that C2C released: a folder, a mirror, the Hub (its cache first).

On the Hub one repository holds several, one subfolder each, for instance
`nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser`.

>>> folder = find_fuser("nics-efc/C2C_Fuser/qwen3_0.6b+qwen2.5_0.5b_Fuser")        # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.parsing import load_json, parse_yaml, read_text
from lcfbench.sources import hub
from lcfbench.sources.cache import mirror
from lcfbench.sources.models import ALIASES

REPO = "nics-efc/C2C_Fuser"
# receiver and sharer → folder of REPO. Of the last one the sharer is no public model: a folder of that name
RELEASED = {
    ("qwen3-0.6b", "qwen2.5-0.5b"): "qwen3_0.6b+qwen2.5_0.5b_Fuser",
    ("qwen3-0.6b", "llama3.2-1b"): "qwen3_0.6b+llam3.2_1b_Fuser",
    ("qwen3-0.6b", "qwen2.5-math-1.5b"): "qwen3_0.6b+qwen2.5_1.5b_math_Fuser",
    ("qwen3-0.6b", "qwen3-4b"): "qwen3_0.6b+qwen3_4b_Fuser",
    ("qwen3-0.6b", "qwen3-4b-base"): "qwen3_0.6b+qwen3_4b_base_Fuser",
    ("qwen3-1.7b", "qwen2.5-1.5b"): "qwen3_1.7b+qwen2.5_1.5b_Fuser",
    ("qwen3-8b", "qwen2.5-7b"): "qwen3_8b+qwen2.5_7b_Fuser",
    ("qwen3-0.6b", "qwen3-4b-gsm8k"): "qwen3_0.6b+qwen3_4b_gsm8k_Fuser",
}
CONFIG, MAP, CARD = "config.json", "final/projector_config.json", "README.md"


class FuserMissingError(UserError):
    """A fuser that is in none of the places tried."""

    def __init__(self, where: str, tried: Sequence[str], next_step: str) -> None:
        self.tried = list(tried)
        super().__init__(f"cannot find the fuser {where!r}. Tried, in order: {'; '.join(tried)}.", next_step)


def released(pair: tuple[str, str]) -> str:
    """Returns `ORG/NAME/SUBFOLDER` of the fuser that C2C released for a pair; "" where it did not.

    pair: aliases, Hub ids, or the names of folders.
    """
    names = {repo_id.lower(): alias for alias, repo_id in ALIASES.items()}
    receiver, sharer = (names.get(name.lower(), name.lower().replace("_", "-")) for name in pair)
    folder = RELEASED.get((receiver, sharer))
    return f"{REPO}/{folder}" if folder else ""


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
        wanted = [f"{front}{CONFIG}", f"{front}final/*", CARD]
        base = hub.fetch_files(repo_id, wanted, offline)
        if not (missing := lacks(folder := base / inside, base)):
            return folder
        tried.append(f"Hub: {repo_id}{f' in {inside}' if inside else ''} has {missing}")
    except hub.HubError as error:
        tried.append(f"Hub: {error}")
    step = f"or run `hf download {repo_id}` where the Hub can be reached, and name the folder."
    raise FuserMissingError(where, tried, near or f"Name it as ORG/NAME/SUBFOLDER; {step}")


def origin(folder: Path, where: str) -> dict[str, str]:
    """Returns the facts about a found fuser that its adapter records: source, commit, licence as stated."""
    base = folder.parents[len(inside) - 1] if (inside := where.strip("/").split("/")[2:]) else folder
    found = {"imported_from": where}
    if base.parent.name == "snapshots":
        found["imported_commit"] = base.name
    if stated := _licence(base / CARD):
        found["license"] = stated
    return found


def _licence(card: Path) -> str:
    """The licence in a card's metadata; "" where it states none that can be read."""
    try:
        before, mark, rest = (read_text(card, "card") if card.is_file() else "").partition("---\n")
        stated = parse_yaml(rest.partition("\n---")[0], "card") if mark and not before else None
    except (UserError, ValueError):
        return ""
    licence = stated.get("license") if isinstance(stated, dict) else None
    return licence if isinstance(licence, str) and re.fullmatch(r"[\w.+-]{1,60}", licence) else ""


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

"""The grammar of a model's name: `NAME[@REVISION][+LORA[@REVISION]]`, two of them with a colon between.

Several sharers stand behind the colon with commas between them. A folder that is there wins over every
other reading: its name may have `@`, `+`, `:` and `,` in it.

>>> from lcfbench.sources.names import split_revision, sides
>>> split_revision("Qwen/Qwen3-0.6B@c1899de"), sides(r"C:\\models\\a:D:\\b")
(('Qwen/Qwen3-0.6B', 'c1899de'), [('C:\\\\models\\\\a', 'D:\\\\b')])
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lcfbench.errors import UserError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_HEX = re.compile(r"[0-9a-f]{6,64}", re.I)
# what git refuses in the name of a branch or tag
_NO_REVISION = re.compile(r"\.\.|//|@\{|[\x00-\x20\x7f~^:?*\[\\]|^[/.-]|/\.|[/.]$|\.lock$")


def path_of(name: str) -> Path:
    """Returns a name as a path, with `~` in front filled in."""
    return Path(os.path.expanduser(name))


def is_folder(name: str) -> bool:
    """Returns whether a name is that of a folder that is there."""
    return bool(name) and path_of(name).is_dir()


def is_path(name: str) -> bool:
    """Returns whether a name can only be a path: of Windows too, whatever is there."""
    return bool(_DRIVE.match(name)) or name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def split_revision(name: str) -> tuple[str, str]:
    """Splits `NAME@REVISION`; the second is empty where none is named.

    Raises UserError for a revision that cannot be one.
    """
    if "@" not in name or is_folder(name):
        return name, ""
    places = [i for i, sign in enumerate(name) if sign == "@"]
    folders = [i for i in places if is_folder(name[:i])]
    at = max(folders) if folders else places[0]
    if is_path(name[:at]) and not folders:
        return name, ""
    if not name[:at]:
        raise UserError(f"{name!r} names a revision and no model.", "Write NAME@REVISION.")
    revision = name[at + 1 :]
    if not revision or _NO_REVISION.search(revision):
        what = f"{name!r} names no revision" if not revision else f"{revision!r} can be no revision"
        raise UserError(f"{what}.", f"Write {name[:at]}@COMMIT, or a branch or tag of the Hub.")
    return name[:at], revision


def is_commit(revision: str) -> bool:
    """Returns whether a revision may be a commit, whole or its beginning."""
    return bool(_HEX.fullmatch(revision))


def same_revision(asked: str, here: str) -> bool:
    """Returns whether the revision that is asked for is the one that is here, or its beginning."""
    return not asked or (is_commit(asked) and here.startswith(asked.lower()))


def sides(text: str) -> list[tuple[str, str]]:
    """Returns every way to read `RECEIVER:SHARER`, the best ones alone where some are better.

    The colon of a drive, and one in the name of a folder that is there, separate nothing.
    """
    found = []
    for at in (i for i, sign in enumerate(text) if sign == ":"):
        left, right = text[:at].strip(), text[at + 1 :].strip()
        drive = _DRIVE.match(text[at - 1 : at + 2]) and re.fullmatch(r"(.*[:+\s])?[A-Za-z]", text[:at])
        if left and right and not (drive and not is_folder(left)) and _one(left) and _one(right):
            found.append((is_folder(left) + is_folder(right), (left, right)))
    most = max((folders for folders, _ in found), default=0)
    return [pair for folders, pair in found if folders == most]


def split_names(text: str) -> list[str]:
    """Splits names with commas between them; the comma in the name of a folder that is there is none.

    >>> split_names("gemma3-270m, qwen3-0.6b")
    ['gemma3-270m', 'qwen3-0.6b']
    """
    parts, found, start = text.split(","), list[str](), 0
    while start < len(parts):
        joined = ((end, ",".join(parts[start:end])) for end in range(len(parts), start, -1))
        end, name = next((e, n) for e, n in joined if e == start + 1 or any(map(_there, n.split("+"))))
        found.append(name.strip())
        start = end
    return found


def _one(name: str) -> bool:
    """Returns whether a text may be the names of models: each has no colon but a drive's or a folder's."""
    parts = [name] if is_folder(name) else re.split("[+,]", name)
    return all(":" not in part[2 if _DRIVE.match(part) else 0 :] or _there(part) for part in parts)


def _there(name: str) -> bool:
    return is_folder(name) or is_folder(name.rpartition("@")[0])

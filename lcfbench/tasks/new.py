"""Writes a task file of a user's own, with comments, from a table's columns.

>>> write_task("capitals", Path("capitals.csv"), Path("."), context=None, force=False)  # doctest: +SKIP
[PosixPath('capitals.yaml')]
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.files import locked, write, writing
from lcfbench.registry import DATA
from lcfbench.sources import hub_data
from lcfbench.sources.local_data import SPLIT_NAMES, columns_of, find_local, splits_of
from lcfbench.tasks.columns import ANSWERS, Columns
from lcfbench.tasks.own_files import own_columns

SHARED = """question,a,b,c,d,answer
Which planet is known as the red planet?,Venus,Mars,Jupiter,Saturn,B
What do bees make?,honey,silk,milk,wool,A
"""
DIFFERENT = """question,a,b,c,receiver_context,sharer_context,answer
Where is the key of Ann?,Oslo,Lima,Cairo,Red boxes: Lima. Blue boxes: Oslo.,Her key is in a red box.,B
Where is the key of Bob?,Oslo,Lima,Cairo,Red boxes: Lima. Blue boxes: Oslo.,His key is in a blue box.,A
"""


def write_task(
    name: str,
    data: Path | str | None,
    out: Path,
    context: str | None,
    force: bool = False,
    offline: bool = False,
) -> list[Path]:
    """Writes NAME.yaml, and an example table where no data are given. Returns the files written.

    data: a table, or a data set of the Hub as ORG/NAME or ORG/NAME:CONFIG. context: shared or different;
    by the columns where it is not said. Raises UserError for a name that makes no file name, data without
    a question or an answer, and files that are there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", name):
        raise UserError(f"{name!r} makes no task's name.", "Use letters, digits and _, 40 at most.")
    files: dict[Path, str] = {}
    if data is None:
        table = out / f"{name}.csv"
        files[table] = DIFFERENT if context == "different" else SHARED
        columns = own_columns(files[table].partition("\n")[0].split(","), {}, context)
        source = Source(_beside(table, out), table.name, columns, ["train"])
    else:
        source = _read(str(data), out, context, offline)
    columns = source.columns
    if context == "different" and not columns.sharer_context:
        raise UserError(
            f"{data} has no column for what only the sharer reads.",
            "Add a column sharer_context (and receiver_context for the receiver's own text).",
        )
    if context == "shared" and columns.sharer_context:
        step = f"Give --different, or rename {columns.sharer_context}."
        raise UserError(f"{data} has a column {columns.sharer_context} that only the sharer reads.", step)
    path = out / f"{name}.yaml"
    files[path] = _yaml(name, source)
    with locked(path), writing(out):
        there = [file for file in files if file.exists()]
        if there and not force:
            raise UserError(f"{there[0]} is there already.", "Choose another name or --out, or add --force.")
        for file, text in files.items():
            write(file, text.encode())
    return list(files)


@dataclass(frozen=True)
class Source:
    """Data as a task file names them. place: its dataset_path. config: of a Hub data set."""

    place: str
    title: str
    columns: Columns
    splits: list[str]
    config: str = ""
    on_hub: bool = False


def _beside(table: Path, out: Path) -> str:
    """A table's path from the folder of the task file."""
    place = os.path.relpath(table.expanduser().resolve(), out.expanduser().resolve())
    shown = Path(place).as_posix()
    return shown if "/" in shown else f"./{shown}"


def _read(data: str, out: Path, context: str | None, offline: bool) -> Source:
    place = Path(data).expanduser()
    if place.is_dir() or place.suffix.lower() in DATA:
        found = find_local(Path(), str(place), None)
        if found is None:  # a table's name always ends like one
            raise UserError(f"{data} is no table.", "Check its path.")
        splits = splits_of(found)
        columns = own_columns(columns_of(found, splits[0]), {}, context)
        return Source(_beside(place, out), place.name, columns, splits)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[^:]*)?(:[\w.-]+)?|https?://.*", data) or place.exists():
        step = f"Give a file that ends in {', '.join(DATA)}, a folder, or a data set as ORG/NAME."
        raise UserError(f"{data} is no table.", step)
    hub_data.check_id(data if "://" in data else data.partition(":")[0])
    repo_id, _, config = data.partition(":")
    there = hub_data.splits(repo_id, config or _only(repo_id), offline)
    asked = next((s for split in ("test", "validation") for s in there if s in SPLIT_NAMES[split]), there[0])
    names = hub_data.columns(repo_id, config or _only(repo_id), asked, offline) or []
    columns = own_columns(names, {}, context)
    first = [asked, *(s for s in there if s != asked)]
    return Source(repo_id, repo_id, columns, first, config or _only(repo_id), on_hub=True)


def _only(repo_id: str) -> str:
    """The config of a data set where this disk has one only, else the Hub's default."""
    have = hub_data.configs_here(repo_id)
    return have[0] if len(have) == 1 else "default"


def _yaml(name: str, source: Source) -> str:
    columns, splits = source.columns, source.splits
    parts: dict[str, Any] = {
        k: list(v) if isinstance(v, tuple) else v for k, v in vars(columns).items() if v and k != "answer_as"
    }
    where = "a data set of the Hub" if source.on_hub else "from this file's folder"
    lines = [
        f"# The task {name}: lcfbench probe --task {name}.yaml. Its check: lcfbench task check {name}.yaml",
        f"task: {name}",
        f"dataset_path: {json.dumps(source.place, ensure_ascii=False)}  # {where}",
    ]
    if source.on_hub:
        lines += [
            f"dataset_name: {json.dumps(source.config)}",
            f"test_split: {json.dumps(splits[0])}  # asked",
        ]
        for split in ("train", "validation"):
            if here := next((s for s in splits[1:] if s in SPLIT_NAMES[split]), None):
                key = "training" if split == "train" else split
                lines.append(f"{key}_split: {json.dumps(here)}")
    elif len(splits) > 1:
        lines.append(f"# Splits of the data: {', '.join(splits)}. test_split: names another.")
    else:
        lines.append("# All rows are asked; --task-option train_share=60 keeps 60 % for training.")
    lines += [
        "metadata:",
        f"  description: {name}, from {json.dumps(source.title, ensure_ascii=False)[1:-1]}",
        "  licence: not stated",
        f"  context: {'different' if columns.sharer_context else 'shared'}"
        "  # different: each model reads a text of its own",
        "  columns:  # which column holds what",
        *(f"    {part}: {json.dumps(value, ensure_ascii=False)}" for part, value in parts.items()),
        f"    # answer_as: {' | '.join(ANSWERS)}  # where the answers could be read in two ways",
    ]
    if columns.sharer_context:
        lines += [
            "  # The sharer reads, with {{question}}, {{sharer_context}} and {{receiver_context}}.",
            "  views:",
            '    sharer: "{{sharer_context}}\\n\\nQuestion: {{question}}\\n"',
            '    full: "{{sharer_context}}\\n\\n{{seen}}"  # seen: the receiver\'s prompt',
            "    request:  # what a sharer that answers in text is asked",
            '      user: "{{sharer_context}}\\n\\nIn one sentence, state what this text says that helps '
            'most to answer the question.\\nQuestion: {{question}}\\n"',
            '      prefix: "The text says that"',
        ]
    return "\n".join(lines) + "\n"

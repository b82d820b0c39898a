"""Writes a task file of a user's own, with comments, from a table's columns.

>>> write_task("capitals", Path("capitals.csv"), Path("."), context=None, force=False)  # doctest: +SKIP
[PosixPath('capitals.yaml')]
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lcfbench.errors import UserError
from lcfbench.files import write, writing
from lcfbench.registry import DATA
from lcfbench.sources.local_data import columns_of, find_local, splits_of
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
CONTEXTS = ("shared", "different")


def write_task(name: str, table: Path | None, out: Path, context: str | None, force: bool) -> list[Path]:
    """Writes NAME.yaml, and an example table where none is given. Returns the files written.

    context: shared or different; by the table's columns where it is not said. Raises UserError for a
    name that makes no file name, a table without a question or an answer, and files that are there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", name):
        raise UserError(f"{name!r} makes no task's name.", "Use letters, digits and _, 40 at most.")
    if context is not None and context not in CONTEXTS:
        raise UserError(f"--context {context} is unknown.", f"Say {' or '.join(CONTEXTS)}.")
    files: dict[Path, str] = {}
    if table is None:
        table = out / f"{name}.csv"
        files[table] = DIFFERENT if context == "different" else SHARED
        columns, splits = own_columns(files[table].partition("\n")[0].split(","), {}, context), ["train"]
    else:
        columns, splits = _read(table, context)
    if context == "different" and not columns.sharer_context:
        raise UserError(
            f"{table} has no column for what only the sharer reads.",
            "Add a column sharer_context (and receiver_context for the receiver's own text).",
        )
    if context == "shared" and columns.sharer_context:
        step = f"Say --context different, or rename {columns.sharer_context}."
        raise UserError(f"{table} has a column {columns.sharer_context} that only the sharer reads.", step)
    path = out / f"{name}.yaml"
    files[path] = _yaml(name, table, out, columns, splits)
    there = [file for file in files if file.exists()]
    if there and not force:
        raise UserError(f"{there[0]} is there already.", "Choose another name or --out, or add --force.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write(file, text.encode())
    return list(files)


def _read(table: Path, context: str | None) -> tuple[Columns, list[str]]:
    place = table.expanduser()
    if not place.is_dir() and place.suffix.lower() not in DATA:
        raise UserError(f"{table} is no table.", f"Give a file that ends in {', '.join(DATA)}, or a folder.")
    found = find_local(Path(), str(place), None)
    if found is None:  # a table's name always ends like one
        raise UserError(f"{table} is no table.", "Check its path.")
    splits = splits_of(found)
    return own_columns(columns_of(found, splits[0]), {}, context), splits


def _yaml(name: str, table: Path, out: Path, columns: Columns, splits: list[str]) -> str:
    place = os.path.relpath(table.expanduser().resolve(), out.expanduser().resolve())
    shown = Path(place).as_posix()
    shown = shown if "/" in shown else f"./{shown}"
    parts: dict[str, Any] = {
        k: list(v) if isinstance(v, tuple) else v for k, v in vars(columns).items() if v and k != "answer_as"
    }
    lines = [
        f"# The task {name}: lcfbench probe --task {name}.yaml. Its check: lcfbench task check {name}.yaml",
        f"task: {name}",
        f"dataset_path: {json.dumps(shown, ensure_ascii=False)}  # from this file's folder",
    ]
    if len(splits) > 1:
        lines.append(f"# Splits of the data: {', '.join(splits)}. test_split: names another.")
    else:
        lines.append("# All rows are asked; --task-option train_share=60 keeps 60 % for training.")
    lines += [
        "metadata:",
        f"  description: {name}, from {json.dumps(table.name, ensure_ascii=False)[1:-1]}",
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

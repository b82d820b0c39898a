"""Data files of a user's own: CSV, TSV, JSON, JSON Lines, parquet, and folders saved by `datasets`.

>>> find_local(Path("tasks"), "questions.csv", None)      # doctest: +SKIP
{'train': [PosixPath('tasks/questions.csv')]}
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.parsing import unique_keys

if TYPE_CHECKING:
    from datasets import Dataset

Record = dict[str, Any]
Files = dict[str, list[Path]]  # by the name of the split in the data
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
FORMATS = ("csv", "json", "parquet")  # what lm-eval's `dataset_path` calls them
ONLY = "train"  # the split of data that name none, as in `datasets`
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}
_NEXT = "Write CSV, TSV, JSON, JSON Lines or parquet."


def find_local(folder: Path, dataset_path: str, data_files: Any) -> Files | None:
    """The files that `dataset_path` and `data_files` name, relative to `folder`; None for a Hub id.

    A folder that `datasets` saved stands for itself. Raises UserError for files that are not there.
    """
    place = (folder / dataset_path).expanduser() if not dataset_path.startswith("~") else Path(dataset_path)
    place = place.expanduser()
    if dataset_path in FORMATS and not place.exists():
        if not data_files:
            raise UserError(
                f"dataset_path: {dataset_path} names a form and no file.",
                "Add dataset_kwargs: {data_files: questions.csv}.",
            )
        return _files_of(folder, data_files)
    if place.is_dir():
        return _in_folder(place) if not data_files else _files_of(place, data_files)
    if place.suffix.lower() in SUFFIXES or dataset_path.startswith((".", "/", "~")):
        return _files_of(folder, dataset_path)
    return None


def _files_of(folder: Path, named: Any) -> Files:
    """The files of each split that a text, a list or a mapping of such names."""
    if isinstance(named, Mapping):
        return {str(split): _files_of(folder, files)[ONLY] for split, files in named.items()}
    texts = [named] if isinstance(named, str) else named
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(
            f"data_files: {named!r} names no files.", "Give a path, a list of paths, or one a split."
        )
    found: list[Path] = []
    for text in texts:
        path = folder / Path(text).expanduser()
        several = sorted(folder.glob(text)) if has_magic(text) and not path.exists() else [path]
        if not several or not all(p.is_file() for p in several):
            raise UserError(
                f"there is no data file {path}.", "Paths in a task file start from the folder it lies in."
            )
        found += several
    return {ONLY: found}


def _in_folder(folder: Path) -> Files:
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        return {ONLY: [folder]}
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    by_split = {
        split: [f for f in files if f.stem.lower().partition("-")[0] in known]
        for split, known in SPLIT_NAMES.items()
    }
    if any(by_split.values()):
        return {split: found for split, found in by_split.items() if found}
    if not files:
        raise UserError(f"{folder} holds no data.", f"{_NEXT} Or save it with `datasets`.")
    if len(files) > 1:
        names = ", ".join(f.name for f in files[:4])
        raise UserError(
            f"{folder} holds several data files: {names}.", "Name one, or call them train and test."
        )
    return {ONLY: files}


def saved_splits(folder: Path) -> dict[str, Dataset]:
    """The splits of a folder that `datasets` saved. Raises UserError where it cannot be read."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # arrow, JSON and datasets each raise errors of their own
        text = " ".join(str(error).split())[:160]
        raise UserError(f"{folder} cannot be read as a saved data set ({text}).", "Save it again.") from error
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {ONLY: found}


def splits_of(files: Files) -> list[str]:
    """Names of the splits that local data have."""
    only = files.get(ONLY, [])
    if len(only) == 1 and only[0].is_dir():
        described = only[0] / "dataset_dict.json"
        if not described.is_file():
            return [ONLY]
        try:
            return [str(name) for name in json.loads(described.read_bytes())["splits"]]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{described} cannot be read: {error!r}.", "Save the data set again.") from error
    return list(files)


def read_split(files: Files, split: str) -> list[Record]:
    """All rows of a split, in the order of its files. Raises UserError for a split that is not there."""
    if split not in (have := splits_of(files)):
        raise UserError(f"the data have no split {split!r}.", f"They have {', '.join(have)}.")
    only = files.get(ONLY, [])
    if len(only) == 1 and only[0].is_dir():
        return saved_splits(only[0])[split].to_list()
    rows = [row for file in files[split] for row in read_rows(file)]
    every = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in every} for row in rows]


def columns_of(files: Files, split: str) -> list[str]:
    """The names of the columns of a split; read once while its files stay as they are."""
    named = [file for some in files.values() for file in some]
    every = [f for file in named for f in (file.rglob("*") if file.is_dir() else [file])]
    state = tuple((f, about.st_size, about.st_mtime_ns) for f in sorted(every) for about in [f.stat()])
    return list(_columns(tuple((name, tuple(some)) for name, some in files.items()), split, state))


@lru_cache
def _columns(files: tuple[tuple[str, tuple[Path, ...]], ...], split: str, state: object) -> tuple[str, ...]:
    rows = read_split({name: list(some) for name, some in files}, split)
    return tuple(rows[0]) if rows else ()


def read_rows(file: Path) -> list[Record]:
    """The rows of one file. Raises UserError that names the file and the line or row at fault."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        rows = _parquet(file)
    else:
        text = _text(file)
        rows = _table(file, text) if suffix in (".csv", ".tsv") else _json(file, text)
    if not rows:
        raise UserError(f"{file} has no rows.", "Give it one row a question, below the names of the columns.")
    return rows


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.", "Check its path and rights.") from error
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # as spreadsheets save "Unicode text"
    encoding = "utf-16" if wide else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8.", "Save the file as UTF-8.") from error


def _table(file: Path, text: str) -> list[Record]:
    """Rows of CSV text. The separator is the one of , ; tab | that the first line has most of."""
    if text.startswith("PK\3\4"):
        raise UserError(f"{file} is a spreadsheet's own file, not text.", "Save it as CSV, UTF-8.")
    if "\0" in text:
        what = f"{file} holds zero bytes: it is no text, or not UTF-8."
        raise UserError(what, f"Save it as UTF-8. {_NEXT}")
    text = text.lstrip("\r\n")
    head = text.partition("\n")[0]
    separator = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    if said := re.fullmatch(r"sep=(.)\r?", head, re.IGNORECASE):  # a spreadsheet's first line
        separator, text = said[1], text.partition("\n")[2]
    csv.field_size_limit(sys.maxsize)  # a cell may be a long text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    rows: list[Record] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if twice := {n for n in names if names.count(n) > 1}:
                    raise UserError(f"{file} has two columns {min(twice)!r}.", "Give each its own name.")
                continue
            if len(cells) != len(names):
                what = f"{file}, line {reader.line_num}: {len(cells)} cells under {len(names)} columns"
                raise UserError(f"{what} (separator {separator!r}).", "Put cells with separators in quotes.")
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        what = f"{file}, line {reader.line_num}: {error}."
        raise UserError(what, 'Double a quote inside a quoted cell: "say ""yes""".') from error
    for name in names:
        cells = [row[name] for row in rows]
        if cells and all(cell.isdecimal() and str(int(cell[:18])) == cell for cell in cells):
            for row in rows:
                row[name] = int(row[name])
    return rows


def _json(file: Path, text: str) -> list[Record]:
    """Rows of a JSON list, of a mapping that holds one list of rows, or of one JSON object a line."""
    if file.suffix.lower() == ".json":
        try:
            found = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            if len(text.splitlines()) < 2 or not text.lstrip().startswith("{"):
                raise UserError(f"{file} does not parse as JSON: {error}.", "Mend the file.") from error
        else:
            lists = [v for v in found.values() if isinstance(v, list)] if isinstance(found, dict) else [found]
            if len(lists) != 1 or not isinstance(lists[0], list):
                raise UserError(f"{file} is no list of rows.", "Write [{...}, {...}], one object a question.")
            return [_object(file, f"row {i}", row) for i, row in enumerate(lists[0], 1)]
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_object(file, f"line {number}", json.loads(line, object_pairs_hook=unique_keys)))
        except (ValueError, RecursionError) as error:
            what = f"{file}, line {number} does not parse as JSON: {error}."
            whole = number == 1 and text.rstrip().endswith("]")
            step = "Call the file .json: it is a list." if whole else "Write one JSON object a line."
            raise UserError(what, step) from error
    return rows


def _object(file: Path, where: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{file}, {where} is no object.", 'Write {"question": ..., "answer": ...}.')
    return row


def _parquet(file: Path) -> list[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"{file} cannot be read as parquet ({' '.join(str(error).split())[:160]})."
        raise UserError(what, "Replace it.") from error


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN or blank text."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )

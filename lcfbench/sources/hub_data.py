"""What a data set of the Hub holds, before its rows are read: its splits and the columns of one.

>>> described("allenai/openbookqa", "main", "test", offline=True)      # doctest: +SKIP
['id', 'question_stem', 'choices', 'answerKey']
"""

from __future__ import annotations

from pathlib import Path

from lcfbench.errors import UserError
from lcfbench.sources import hub
from lcfbench.sources.cache import cache_dir, mirror
from lcfbench.sources.datasets import load_table, look_table


def check_id(repo_id: str) -> None:
    """Raises UserError for a text that is no Hub id: an address, a revision, too many parts."""
    if "://" in repo_id or repo_id.startswith("huggingface.co"):
        parts = repo_id.rstrip("/").split("/datasets/")[-1].split("/")
        step = f"Write dataset_path: {'/'.join(parts[:2])}."
        raise UserError(f"dataset_path: {repo_id} is an address.", step)
    if "@" in repo_id:
        what = f"dataset_path: {repo_id}: a data set's revision cannot be named."
        raise UserError(what, f"Write {repo_id.partition('@')[0]}; a run records the digest of its data.")
    if repo_id.count("/") > 1:
        raise UserError(f"dataset_path: {repo_id} is no Hub id.", "Write org/name, or a file's path.")


def _homes(repo_id: str) -> list[Path]:
    roots = [root for root in (mirror(), cache_dir()) if root is not None]
    return [folder for root in roots if (folder := root / "datasets" / repo_id).is_dir()]


def configs_here(repo_id: str) -> list[str]:
    """The configs of a data set that are on this disk."""
    every = (p for home in _homes(repo_id) for p in home.iterdir() if p.is_dir())
    return sorted({p.name for p in every if any(p.glob("*-of-*.parquet"))})


def splits(repo_id: str, config: str, offline: bool | None) -> list[str]:
    """The splits of a config, on this disk or on the Hub. offline: None for this disk alone, [] then.

    Raises UserError where neither has them.
    """
    found = [p.stem.rsplit("-", 3)[0] for h in _homes(repo_id) for p in (h / config).glob("*-of-*.parquet")]
    if found or offline is None:
        return sorted(dict.fromkeys(found))
    try:
        return hub.split_names(repo_id, config, offline)
    except hub.HubError as error:
        have = configs_here(repo_id)
        known = f"Its configs here are {', '.join(have)}: say dataset_name." if have else "Check its name."
        what = f"no split of {repo_id} (config {config}) is known: Hub: {error}."
        raise UserError(what, known) from error


def columns(repo_id: str, config: str, split: str, offline: bool | None) -> list[str] | None:
    """The names of a split's columns; the split is fetched and kept where it is not on this disk.

    offline: None for this disk alone, and None is returned where it is not there. Raises UserError.
    """
    import pyarrow.parquet as pq

    _, files, _ = look_table(repo_id, config, split)
    if files and offline is None:
        return list(pq.read_schema(files[0]).names)
    return None if offline is None else load_table(repo_id, config, split, offline=offline).column_names

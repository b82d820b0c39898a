"""The manifest of a run: one model of its keys, written by a run and read by everything else.

>>> manifest, warnings = Manifest.lenient(read_manifest(folder), folder)      # doctest: +SKIP
>>> manifest.state, manifest.identity["mode"]                                 # doctest: +SKIP
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from lcfbench.files import write_json
from lcfbench.parsing import unique_keys
from lcfbench.provenance import digest
from lcfbench.results.schema import check_regular, unreadable

MANIFEST = "manifest.json"


HALF = "0.5"  # of the documents may fail, where nothing else is asked


def most_failed(text: str, documents: int) -> float:
    """Returns how many of the documents may fail: "0.5" and "50%" are shares, "8" is a number.

    Raises ValueError for other texts.
    """
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    found = re.fullmatch(r"([0-9]{0,9}\.?[0-9]{1,18}|[0-9]{1,9}\.)(%?)", text)
    share = float(found[1]) / (100 if found[2] else 1) if found else 2.0
    if share > 1:
        raise ValueError("give a share of the documents as 0.5 or 50%, or a number of them as 8")
    return share * min(documents, 1 << 53)  # a damaged file may hold any number


class _Open(BaseModel):
    """Keys of other versions are kept."""

    model_config = ConfigDict(extra="allow")


class Environment(_Open):
    """The program and the machine.

    Further keys: python, platform, cpu, cpus, device, threads, gpu, dtype.
    """

    libraries: dict[str, str] | None = Field(default=None, description="Version of each library.")
    git: dict[str, Any] | None = Field(
        default=None, description="Commit of the checkout, and whether it was changed."
    )


class Session(_Open):
    """One process that worked on the run."""

    at: str | None = Field(default=None, description="Start, UTC, ISO 8601.")
    environment: Environment | None = Field(default=None, description="Its program and machine.")


class Gates(_Open):
    """Share of each layer's message that the adapter lets through, 0 to 1."""

    layers: list[int] = Field(description="Receiver layers, counted from 0.")
    key: list[FiniteFloat] = Field(description="Gate of the keys, one for each layer.")
    value: list[FiniteFloat] = Field(description="Gate of the values, one for each layer.")

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not len(self.layers) == len(self.key) == len(self.value):
            raise ValueError("lists of different lengths")
        return self


class AdapterFacts(_Open):
    """What the adapter of a run is, so that figures can name it and tell its family."""

    kind: str = Field(description="Kind of adapter, such as lcf.")
    options: dict[str, Any] = Field(default={}, description="Options of its kind, such as width.")
    layers: int = Field(description="Number of receiver layers that it edits.")
    receiver_layers: int = Field(description="Number of layers that the receiver has.")
    training: dict[str, Any] = Field(default={}, description="How it was trained: steps, lr, seed, tasks.")


class AdapterOfSharer(_Open):
    """The adapter between the receiver and one of several sharers."""

    name: str = Field(description="Name of its folder.")
    sharer: str = Field(description="Name of the sharer.")
    sha256: str = Field(description="SHA-256 of its weights file.")
    facts: AdapterFacts = Field(description="Its shape and making.")


class Calibration(_Open):
    """How a method chose the layers that it sends. Further keys depend on the method."""

    layers: list[int] | None = Field(default=None, description="Chosen layers, counted from 0.")
    importance: list[FiniteFloat] | None = Field(
        default=None, description="Attention importance of every layer."
    )
    scores: list[FiniteFloat] | None = Field(default=None, description="Selection score of every layer.")
    documents: int | None = Field(default=None, description="Number of validation documents.")


KINDS = {"revisions": list, "options": dict, "task_options": dict, "plugins": dict}  # of the identity
DEEPEST = 40  # levels of a manifest; ours have 6


def _sound_identity(value: dict[str, Any]) -> dict[str, Any]:
    for name, kind in KINDS.items():
        if not isinstance(value.get(name), (kind, type(None))):
            raise ValueError(f"{name} is no {kind.__name__}")
    digest(value)  # raises ValueError for NaN: two such identities cannot be told apart
    return value


class Manifest(_Open):
    """Everything that is known about a run beside its rows.

    `Field.description` documents each key.
    """

    run_id: str | None = Field(
        default=None, description="Name of the run and of its folder: mode-task-control-digest."
    )
    schema_version: int | None = Field(
        default=None, description="Version of the columns that the run was written with."
    )
    state: str = Field(default="unknown", description="running, interrupted or complete.")
    pid: int | None = Field(default=None, description="Process that writes the run, or wrote it last.")
    identity: Annotated[dict[str, Any], AfterValidator(_sound_identity)] = Field(
        default={}, description="Every setting that changes the answers. Equal identities are the same run."
    )
    digest: str | None = Field(
        default=None, description="SHA-256 of the identity; the run's name ends in its beginning."
    )
    started_at: str | None = Field(default=None, description="Start of the first session, UTC, ISO 8601.")
    finished_at: str | None = Field(
        default=None, description="End of the last session that ended by itself, UTC, ISO 8601."
    )
    sessions: list[Session] = Field(
        default=[],
        validation_alias=AliasChoices("sessions", "sittings"),
        description="One entry for each process that worked on the run: its start and its environment.",
    )
    environment: Environment | None = Field(
        default=None, description="Program and machine of the last session."
    )
    recipe: dict[str, Any] | None = Field(
        default=None, description="All settings of the command that made the run."
    )
    prompt: str | None = Field(
        default=None, description="Text of the wording that --prompt named, in place of the task's own."
    )
    documents_planned: int | None = Field(
        default=None, description="Number of documents that were asked for."
    )
    documents_sha256: str | None = Field(
        default=None, description="SHA-256 of the hashes of the documents that were asked for."
    )
    shard: dict[str, Any] | None = Field(
        default=None,
        description="Of a shard: its index and count, number and digest of the whole run's documents.",
    )
    columns_sha256: dict[str, str] | None = Field(
        default=None, description="Digest of each column as it was sealed; see lcfbench.results.validation."
    )
    samples_bytes: int | None = Field(default=None, description="Size of the file of the rows, bytes.")
    dropped: dict[str, int] | None = Field(
        default=None, description="Documents that the task left out: reason and number."
    )
    chance: FiniteFloat | None = Field(
        default=None, description="Expected score of guessing, 0 to 1; null for free text."
    )
    adapter: str | None = Field(default=None, description="Name of the adapter's folder.")
    adapter_folder: str | None = Field(
        default=None,
        description="The adapter's folder as the run was given it or found it; the name of one that ships.",
    )
    files: dict[str, str] | None = Field(
        default=None,
        description="Files of methods, tasks and controls that no package offers, by group and name.",
    )
    adapter_facts: AdapterFacts | None = Field(
        default=None, description="Shape and making of the adapter; no part of the identity."
    )
    adapters: list[AdapterOfSharer] | None = Field(
        default=None, description="The adapter of each of several sharers, where each has its own."
    )
    sources: dict[str, str | None] | None = Field(
        default=None, description="Where the models came from, by role: receiver and sharer."
    )
    models: dict[str, dict[str, Any]] | None = Field(
        default=None,
        description="How each model was loaded, by role: its devices, dtype and attention; quantisation "
        "where there is one, `restored` where weights were turned back into plain numbers; code, the "
        "digest of Python files of its folder, where they were run.",
    )
    message_from_sha256: str | None = Field(
        default=None,
        validation_alias=AliasChoices("message_from_sha256", "senders_sha256"),
        description="SHA-256 of which document got whose message, where that was not its own.",
    )
    controls_left_out: dict[str, str] | None = Field(
        default=None, description="Controls that were asked for and cannot be run of this method: why not."
    )
    gates: Gates | None = Field(default=None, description="Gates of the adapter, as they act in this run.")
    special_text: dict[str, dict[str, int]] | None = Field(
        default=None,
        description="Special tokens that stand in documents as text and are read as text, by role: documents "
        "and occurrences.",
    )
    chat_adapted: dict[str, str] | None = Field(
        default=None,
        description="How chats were changed for a chat template that refuses them as they are, by role.",
    )
    calibration: Calibration | None = Field(default=None, description="How the method chose its layers.")
    sends: bool | None = Field(default=None, description="Whether the method sends a message.")
    together: int | None = Field(
        default=None, description="Number of runs that shared this run's prefills and memory."
    )
    workers: list[dict[str, Any]] | None = Field(
        default=None,
        description="Device, GPU and threads of each process that answered in the last session, where "
        "several did.",
    )
    documents: int | None = Field(default=None, description="Number of documents with a row.")
    errors: int | None = Field(
        default=None, description="Number of documents that failed; they count as wrong."
    )
    documents_per_second: FiniteFloat | None = Field(
        default=None, description="Batched speed of the last session."
    )
    seconds: FiniteFloat | None = Field(
        default=None,
        description="Computing time of the last session in seconds, as if no prefill had been shared.",
    )
    folder: str = Field(default="", exclude=True, description="Where it was read from; not written.")

    @classmethod
    def lenient(cls, values: Mapping[str, Any], place: Path) -> tuple[Self, list[str]]:
        """Reads what has the right shape; each other key is left out and named in a sentence."""
        try:
            return cls.model_validate(values), []
        except ValidationError as error:
            bad = {
                str(e["loc"][0]): f"{'.'.join(map(str, e['loc']))}: "
                f"{e['msg'].removeprefix('Value error, ').lower()}"
                for e in error.errors()
            }
        kept = {name: value for name, value in values.items() if name not in bad}
        return cls.model_validate(kept), [f"{place}: manifest field {x} (left out)" for x in bad.values()]

    def too_many(self, failed: int, documents: int) -> bool:
        """Says whether so many documents failed that the run is no result: all, or more than was allowed."""
        asked = (self.recipe or {}).get("max_failed")
        try:
            most = most_failed(asked if isinstance(asked, str) else HALF, documents)
        except ValueError:  # of another version
            most = most_failed(HALF, documents)
        return 0 < documents <= failed or failed > most

    def update(self, **facts: Any) -> Self:
        """Returns the manifest with these facts too.

        Raises ValidationError for a value of another shape.
        """
        return type(self).model_validate({**self.model_dump(exclude_unset=True), **facts})

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`, whole or not at all. Raises OSError."""
        write_json(folder / MANIFEST, self.model_dump(mode="json", exclude_unset=True, fallback=str))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the run's manifest as it stands, {} where there is none.

    Raises UserError: no JSON object, a key twice, nested too deeply.
    """
    path = folder / MANIFEST
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        check_regular(path)
        found = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        _shallow(found)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    return found


def _shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            x
            for v in level
            if isinstance(v, (dict, list))
            for x in (v.values() if isinstance(v, dict) else v)
        ]
    if level:
        raise ValueError("nested too deeply")

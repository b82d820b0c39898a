"""The proof that an adapter carries: how it scored with its own messages and with those of others.

`proof.json` beside the weights holds a `Proof` for each task, made of recorded rows by `lcfbench adapter
prove`. A proof names the weights, the models and the task that it stands for, and its digest covers the
rows' digests. A digest is no signature: it finds a file that was edited or exchanged, and says nothing of
a person who computes a new one. Imports no torch.

>>> [proof.sentence for proof in read_proofs(Path("my-adapter"))]                 # doctest: +SKIP
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from lcfbench.adapters.config import PROOF, WEIGHTS, config_sha256, read_config, reason, weights_sha256
from lcfbench.errors import UserError
from lcfbench.files import write
from lcfbench.parsing import load_json
from lcfbench.provenance import digest
from lcfbench.sources.models import hub_id

FORMAT = 1
EXACT = 1e-9  # by which a mean may differ from that of its documents
# of a run's identity: what a proof stands for
SETTINGS = (*"pair receiver sharer revisions mode options task task_options task_sha256".split(),)
SETTINGS += (*"data_sha256 scoring adapter_sha256 adapter_config versions behaviour".split(),)
# stand only in an identity with examples, another wording, or messages that cross as bytes
WORDING = ("shots", "prompt_sha256", "wire")
EXACT_FORM = "native"  # messages in it are those that are handed over, bit for bit
# those in which a run must agree for the proof to speak of it
COVERED = ("task", "task_options", *WORDING, "scoring", "mode", "options", "revisions")
MEND = "Delete it, or prove the adapter again: lcfbench adapter prove"


class Rows(BaseModel):
    """Recorded rows of one run. digest: of its identity. rows_sha256: over the digests of all its rows."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    digest: str
    rows_sha256: str


class Proof(BaseModel):
    """What one adapter did on one task, with its own messages and with those of other documents.

    documents: hash of each document, its score, and its score with another document's message; all else
    follows from them. content: the mean of the differences, with its 95 % interval `low` to `high` and
    p. sha256: digest of all other values.
    """

    model_config = ConfigDict(extra="forbid")

    made_at: str
    lcfbench: str
    pair: str
    receiver: str
    sharer: str
    revisions: list[str] = Field(min_length=2, max_length=2)
    mode: str
    options: dict[str, Any]
    task: str
    task_options: dict[str, Any]
    shots: int | None = None
    prompt_sha256: str | None = None
    wire: str | None = None
    task_sha256: str
    data_sha256: str
    scoring: str
    adapter_sha256: str
    adapter_config: str
    versions: dict[str, str]
    behaviour: int
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    metric: str
    chance: FiniteFloat | None = None
    matched: FiniteFloat = Field(ge=0, le=1)
    deranged: FiniteFloat = Field(ge=0, le=1)
    content: FiniteFloat = Field(ge=-1, le=1)
    low: FiniteFloat
    high: FiniteFloat
    p: FiniteFloat = Field(ge=0, le=1)
    n: int = Field(ge=1)
    runs: dict[Literal["matched", "deranged"], list[Rows]]
    documents: list[tuple[str, FiniteFloat, FiniteFloat]]
    sha256: str = ""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        """Refuses numbers that do not follow from the documents, and a digest of other values."""
        if self.sha256 and self.sha256 != self.own_digest():
            raise ValueError("its digest is of other values: it was edited")
        if len({name for name, _, _ in self.documents}) != self.n or len(self.documents) != self.n:
            raise ValueError(f"n is {self.n}, and it has {len(self.documents)} documents")
        _, own, others = zip(*self.documents, strict=True)
        means = [math.fsum(scores) / self.n for scores in (own, others)]
        for name, mean in zip(("matched", "deranged"), means, strict=True):
            if abs(getattr(self, name) - mean) > EXACT:
                raise ValueError(f"{name} is not the mean of its documents")
        if abs(self.content - (means[0] - means[1])) > EXACT or not self.low <= self.content <= self.high:
            raise ValueError("content is not matched − deranged, or lies outside its interval")
        if not all(self.runs.get(control) for control in ("matched", "deranged")):
            raise ValueError("it names no runs under both controls")
        own_runs, other_runs = ({r.run_id for r in self.runs[c]} for c in ("matched", "deranged"))
        if own_runs & other_runs:
            raise ValueError("it names one run under both controls")
        return self

    def record(self) -> dict[str, Any]:
        """Returns the values as the file holds them, `WORDING` only where there is any."""
        return self.model_dump(mode="json", exclude={n for n in WORDING if getattr(self, n) is None})

    def own_digest(self) -> str:
        """Returns the digest of all values but `sha256`."""
        return digest({name: value for name, value in self.record().items() if name != "sha256"})

    @property
    def shown(self) -> bool:
        """Whether the interval of the content lies above 0."""
        return self.low > 0

    @property
    def interval(self) -> str:
        """The content with its interval, in points."""
        low, high = 100 * self.low, 100 * self.high
        return f"P {100 * self.content:+.1f}, 95 % {low:+.1f} to {high:+.1f}, n={self.n:,}"

    @property
    def sentence(self) -> str:
        """Task, scores and content in one line; where the content is not above 0 it says so."""
        scores = f"matched {100 * self.matched:.1f}, deranged {100 * self.deranged:.1f}"
        said = "" if self.shown else "; not above 0: no communication is shown"
        return f"{self.task} ({self.mode}, {self.scoring}): {scores}, {self.interval}{said}"


def read_proofs(folder: Path) -> list[Proof]:
    """Returns the proofs in an adapter's folder, [] where it has none.

    Raises UserError for a file that is broken or was edited, and for proofs of other weights, of another
    config, or of other models than the adapter's.
    """
    path = folder / PROOF
    if not path.exists() and not path.is_symlink():
        return []
    raw = load_json(path, "proof")
    version, listed = raw.get("format"), raw.get("proofs")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
        raise UserError(f"{path} has format {version}; this version reads {FORMAT}.", "Upgrade lcfbench.")
    if version != FORMAT or not isinstance(listed, list) or not listed or set(raw) != {"format", "proofs"}:
        raise UserError(f"{path} is no proof (no format, or no list of proofs).", f"{MEND} {folder}")
    found = []
    for each in listed:
        try:
            proof = Proof.model_validate(each)
            if not proof.sha256:
                raise ValueError("it has no digest")
        except (ValidationError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} does not hold ({reason(error)}).", f"{MEND} {folder}") from error
        if why := foreign(proof, folder):
            raise UserError(f"{path} does not hold: {why}.", f"{MEND} {folder}")
        found.append(proof)
    if len({_covers(proof) for proof in found}) < len(found):
        raise UserError(f"{path} has two proofs of one task.", f"{MEND} {folder}")
    return found


def foreign(proof: Proof, folder: Path) -> str:
    """Says why a proof is not of the adapter in a folder; empty where it is."""
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        return f"there is no {WEIGHTS}"
    if proof.adapter_sha256 != (own := weights_sha256(folder)):
        return f"it is of other weights ({proof.adapter_sha256[:12]}, here they are {own[:12]})"
    if proof.adapter_config != config_sha256(folder):
        return "it is of an adapter with another config"
    trained = config.training.get("revisions") or {}
    for role, found in zip(("receiver", "sharer"), proof.revisions, strict=False):
        made, name, own = trained.get(role), getattr(proof, role), getattr(config, role)
        if isinstance(made, str) and len(made) == len(found):
            if made != found:
                return f"it is of {role} {found[:12]}, the adapter was trained on {made[:12]}"
        elif (wanted := hub_id(own)) and hub_id(name) not in (None, wanted):
            return f"it is of {role} {name}, the adapter is for {own}"
    return ""


def write_proofs(folder: Path, proofs: list[Proof]) -> None:
    """Writes the proofs of an adapter, whole or not at all."""
    lines = [json.dumps(proof.record(), ensure_ascii=False) for proof in proofs]
    text = f'{{"format": {FORMAT}, "proofs": [\n' + ",\n".join(lines) + "\n]}\n"
    write(folder / PROOF, text.encode())


def added(proofs: list[Proof], new: Proof) -> list[Proof]:
    """Returns the proofs with a new one, in place of that of the same task and settings."""
    return [*(each for each in proofs if _covers(each) != _covers(new)), new]


def _covers(proof: Proof) -> str:
    return digest({name: getattr(proof, name) for name in COVERED})


def lacking(name: str, proofs: Sequence[Proof], asked: Mapping[str, Any]) -> str:
    """Says in a clause why none of an adapter's proofs speaks of what is asked; empty where one does.

    name: of the adapter. asked: those settings of `COVERED` that are known.
    """
    if not proofs:
        return f"adapter {name} has no proof that its messages count"
    nearest = min((apart(proof, asked) for proof in proofs), key=len)
    said = ", ".join(f"{field} {was}, here {now}" for field, (was, now) in nearest.items())
    return f"adapter {name} is proven for other settings ({said})" if said else ""


def apart(proof: Proof, asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings in which a proof differs from what is asked, with both values."""
    found = {}
    for name, now in asked.items():
        was = getattr(proof, name)
        if name == "wire" and now == EXACT_FORM:
            now = None
        if name == "prompt_sha256":
            was, now = (found and found[:12] for found in (was, now))
        if name == "revisions":
            was, now = ",".join(r[:12] for r in was), ",".join(str(r)[:12] for r in now)
        if name == "task" and was != now:
            return {name: (was, now)}
        if was != now:
            found[name] = (was, now)
    return found

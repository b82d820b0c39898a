"""What an adapter's proofs say, in the Hub's formats: the card, its `model-index`, `.eval_results`.

>>> eval_results(read_proofs(folder), Place("me/mine"))                                  # doctest: +SKIP
{'.eval_results/lcfbench-openbookqa-lcf.yaml': b'- dataset: …'}

A score under the control deranged is never given as the adapter's: it is named for what it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, constants, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from lcfbench.adapters.card import refreshed
from lcfbench.adapters.config import PROOF, AdapterConfig
from lcfbench.adapters.proof import Proof
from lcfbench.errors import UserError
from lcfbench.parsing import parse_yaml
from lcfbench.tables import Column, Table, markdown

SOURCE_NAME = "lcfbench proof"  # of the entries of `model-index` that are ours
FOLDER, OURS = ".eval_results", "lcfbench-"
BEGIN, END = "<!-- proof, made by lcfbench -->", "<!-- end of the proof -->"
METRICS = {"acc": "accuracy", "accuracy": "accuracy", "em": "exact_match", "f1": "f1"}
OTHERS = "with another document's message (control deranged): no score of the adapter"


class Place(NamedTuple):
    """Where an adapter is pushed to; revision: a branch."""

    repo_id: str
    revision: str | None = None

    @property
    def proof_url(self) -> str:
        """The address of the proof."""
        branch = quote(self.revision or constants.DEFAULT_REVISION, safe="")
        return f"{constants.ENDPOINT}/{self.repo_id}/blob/{branch}/{PROOF}"


def proven_card(text: str, config: AdapterConfig, proofs: Sequence[Proof], place: Place) -> str:
    """Returns a card with present metadata, `model-index` and a section on its proofs.

    Entries and words of its author stay; those that an earlier proof made are replaced.
    """
    text = refreshed(text, config)
    block, _, body = text.partition("---\n")[2].partition("\n---\n")
    metadata: dict[str, Any] = parse_yaml(block, "card")
    index = model_index(proofs, place, metadata.pop("model-index", None))
    if index:
        metadata["model-index"] = index
    body = re.sub(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "\n", body, flags=re.DOTALL)
    block = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    section = f"\n{BEGIN}\n{described(proofs)}\n{END}\n" if proofs else ""
    return f"---\n{block}---\n{body.rstrip()}\n{section}"


def model_index(proofs: Sequence[Proof], place: Place, theirs: Any = None) -> list[dict[str, Any]]:
    """Returns the Hub's `model-index` of proofs, beside what an author wrote there.

    Raises UserError where the author's is none.
    """
    found = [each for proof in proofs for each in _results(proof, place)]
    ours = eval_results_to_model_index(place.repo_id.partition("/")[2], found) if found else []
    if theirs is None:
        return ours
    try:
        for model in theirs:
            kept = [r for r in model["results"] if (r.get("source") or {}).get("name") != SOURCE_NAME]
            model["results"] = kept
        others = [model for model in theirs if model["results"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError("the card's model-index is no list of results.", "Mend or remove it.") from error
    if not (others and ours):
        return others or ours
    others[0]["results"] += ours[0]["results"]
    return others


def _results(proof: Proof, place: Place) -> list[EvalResult]:
    """Matched, deranged and content of one proof."""
    metric = METRICS.get(proof.metric, proof.metric)
    runs = {control: [each.run_id for each in some] for control, some in proof.runs.items()}
    about: dict[str, Any] = {
        "documents": proof.n,
        "scoring": proof.scoring,
        "method": proof.mode,
        "runs": runs,
    }
    about |= {"pair": proof.pair, "revisions": proof.revisions, "adapter_sha256": proof.adapter_sha256}
    interval = {"low": proof.low, "high": proof.high, "confidence": 0.95, "p": proof.p}
    same: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": f"{proof.task}, {proof.mode}",
        "dataset_type": proof.dataset or f"lcfbench/{proof.task}",
        "dataset_name": proof.dataset or f"{proof.task}, a task of lcfbench",
        "dataset_config": proof.dataset_config,
        "dataset_split": proof.dataset_split,
        "dataset_args": about,
        "source_name": SOURCE_NAME,
        "source_url": place.proof_url,
    }
    means = f"P = matched − deranged of {proof.metric}, with its 95 % interval: what the messages are worth"
    return [
        EvalResult(
            metric_type=metric,
            metric_value=proof.matched,
            metric_name=f"{proof.metric}, {proof.mode}",
            **same,
        ),
        EvalResult(
            metric_type=f"{metric}_deranged",
            metric_value=proof.deranged,
            metric_name=f"{proof.metric}, {proof.mode}, {OTHERS}",
            **same,
        ),
        EvalResult(
            metric_type="content", metric_value=proof.content, metric_name=means, metric_args=interval, **same
        ),
    ]


def eval_results(proofs: Sequence[Proof], place: Place) -> dict[str, bytes]:
    """Returns the files of `.eval_results` by their paths: the Hub's format, scores in percent.

    Only data sets of the Hub have a place there, so proofs on generated tasks have no file.
    """
    files = {}
    for proof in (each for each in proofs if each.dataset):
        entry = EvalResultEntry(
            dataset_id=str(proof.dataset),
            task_id=proof.dataset_config or "default",
            value=round(100 * proof.matched, 2),
            date=proof.made_at,
            source_url=place.proof_url,
            source_name=SOURCE_NAME,
            notes=notes(proof),
        )
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        name = re.sub(r"[^\w.-]+", "-", f"{proof.task}-{proof.mode}-{proof.scoring}")
        files[f"{FOLDER}/{OURS}{name}.yaml"] = text.encode()
    return files


def notes(proof: Proof) -> str:
    """Says what a score is of: two models and the adapter, and what the control gave."""
    models = ", ".join(
        f"{role} {name} ({revision[:12]})"
        for role, name, revision in zip(
            ("receiver", "sharer"), (proof.receiver, proof.sharer), proof.revisions, strict=False
        )
    )
    other = f"with another document's message {100 * proof.deranged:.1f}"
    return (
        f"{proof.metric} in %, adapter by {proof.mode} ({proof.scoring}): {models}; {other}; {proof.interval}"
    )


def described(proofs: Sequence[Proof]) -> str:
    """Returns the section of a card: a row a proof, and what the numbers mean."""
    heads = ("n", "matched %", "deranged %", "P, points", "95 % interval")
    columns = [Column("task"), Column("method"), *(Column(head, right=True) for head in heads)]
    rows = [
        [
            f"{proof.task} ({proof.scoring}, {proof.metric})",
            proof.mode,
            f"{proof.n:,}",
            f"{100 * proof.matched:.1f}",
            f"{100 * proof.deranged:.1f}",
            f"{100 * proof.content:+.1f}",
            f"{100 * proof.low:+.1f} to {100 * proof.high:+.1f}",
        ]
        for proof in proofs
    ]
    none = [proof.task for proof in proofs if not proof.shown]
    said = (
        f"\nOn {', '.join(map(markdown, none))} P is not above 0: no communication is shown there.\n"
        if none
        else ""
    )
    models = "".join(
        f"- {role} {markdown(name)}, revision {markdown(revision)}\n"
        for role, name, revision in dict.fromkeys(
            each
            for proof in proofs
            for each in zip(
                ("receiver", "sharer"), (proof.receiver, proof.sharer), proof.revisions, strict=False
            )
        )
    )
    return (
        f"## Proof\n\n{Table('', columns, rows).markdown()}\n"
        "`deranged`: every document gets the message of another one. P = matched − deranged is what the "
        f"messages are worth; a score without it may be adaptation of the receiver alone.\n{said}\n{models}"
        f"- weights sha256 {proofs[0].adapter_sha256}\n\n"
        f"Every document's scores and the digests of the recorded rows are in `{PROOF}`. A digest finds a "
        "file that was changed; it is no signature.\n"
    )

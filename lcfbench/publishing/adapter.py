"""Adapters pushed to the Hub: weights, config, proof, card and evaluation results in one commit.

>>> push(Path("adapters/mine"), "me/mine@v2", private=True)                       # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lcfbench.adapters.card import REPO, card
from lcfbench.adapters.config import CARD, CONFIG, PROOF, WEIGHTS, weights_sha256
from lcfbench.adapters.files import load
from lcfbench.adapters.proof import Proof, read_proofs
from lcfbench.errors import UserError
from lcfbench.publishing.card import FOLDER, OURS, Place, eval_results, proven_card
from lcfbench.publishing.proof import check_interval
from lcfbench.sources.repositories import ask, check_writable, made_ready, split_repo


class Pushed(NamedTuple):
    """An adapter on the Hub. url: of the commit. proofs: those that it carries."""

    url: str
    commit: str
    proofs: list[Proof]


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    offline: bool = False,
) -> Pushed:
    """Uploads an adapter's weights, config, proof and card in one commit.

    repo_id: ORG/NAME, or ORG/NAME@BRANCH. Creates the repository and the branch where there is none. No
    other file of the folder leaves the machine. The card gets `model-index` and a table of the proofs;
    those on data sets of the Hub are in `.eval_results` too. Raises UserError: a folder without a
    complete adapter, a proof that does not hold, no token, no right to write, no connection, a public
    repository where a private one was asked for.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo_id, revision = split_repo(repo_id, revision)
    adapter, proofs = load(folder), sound_proofs(folder)
    what, place = f"push to {repo_id}", Place(repo_id, revision)
    check_writable(what, offline)
    text = (folder / CARD).read_text(errors="replace") if (folder / CARD).is_file() else card(adapter)
    text = proven_card(text, adapter.config, proofs, place).replace(REPO, repo_id)
    made_ready(repo_id, "model", private, revision, what)
    api, files = HfApi(), eval_results(proofs, place)
    there = ask(lambda: api.list_repo_files(repo_id, revision=revision), what)
    own = {PROOF} if (folder / PROOF).is_file() else set()
    stale = {name for name in there if name.startswith(f"{FOLDER}/{OURS}")} - set(files)
    stale |= {PROOF} & set(there) - own
    operations: list[Any] = [
        CommitOperationAdd(CARD, text.encode()),
        *(CommitOperationAdd(name, folder / name) for name in (CONFIG, WEIGHTS, *own)),
        *(CommitOperationAdd(name, data) for name, data in files.items()),
        *(CommitOperationDelete(name) for name in sorted(stale)),
    ]
    title = message or f"Upload {adapter.config.kind} adapter {weights_sha256(folder)[:12]}"
    made = ask(lambda: api.create_commit(repo_id, operations, commit_message=title, revision=revision), what)
    return Pushed(str(made.commit_url), str(made.oid), proofs)


def sound_proofs(folder: Path) -> list[Proof]:
    """Returns an adapter's proofs once every number in them was computed again. Raises UserError."""
    proofs = read_proofs(folder)
    for proof in proofs:
        if why := check_interval(proof):
            step = f"Prove it again: lcfbench adapter prove {folder}"
            raise UserError(f"{folder / PROOF} does not hold: {why}.", step)
    return proofs

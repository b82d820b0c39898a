"""Repositories on the Hub by name, and why a request to one was not answered, in one line.

>>> split_repo("me/small@v2")
('me/small', 'v2')
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from lcfbench.errors import UserError
from lcfbench.sources import hub
from lcfbench.sources.c2c_fusers import plain

ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
LOGIN = "Run `hf auth login`, or set HF_TOKEN"
Answer = TypeVar("Answer")


def check_id(repo_id: str) -> None:
    """Raises UserError for a name that is not `org/name`."""
    if not ID.fullmatch(repo_id) or ".." in repo_id or repo_id.startswith((".", "-")):
        raise UserError(f"{repo_id!r} is not a Hub repository.", "Name one as ORG/NAME.")


def split_repo(text: str, revision: str | None = None) -> tuple[str, str | None]:
    """Splits `ORG/NAME@REVISION`; None for no revision. revision: given beside the name.

    Raises UserError for a name or a revision that can be none, and for two that differ.
    """
    name, sign, behind = text.partition("@")
    check_id(name)
    if sign and not behind:
        raise UserError(f"{text!a} names no revision behind the @.", "Name a branch, tag or commit.")
    if sign and revision not in (None, behind):
        raise UserError(f"{text} and --revision {revision} are two revisions.", "Leave one of them out.")
    return name, check_revision(behind if sign else revision)


def check_revision(revision: str | None) -> str | None:
    """Returns a revision. Raises UserError for one that no branch, tag or commit can have."""
    if revision is not None and (not plain(revision) or revision.startswith(("/", "-")) or not revision):
        raise UserError(f"{revision!a} is no revision.", "Name a branch, tag or commit.")
    return revision


def check_writable(what: str, offline: bool) -> None:
    """Raises UserError where nothing can be written to the Hub: no token, or asked to stay offline.

    what: for the message, as `push mine to me/small`.
    """
    from huggingface_hub import constants, get_token

    if offline or constants.HF_HUB_OFFLINE:
        why = "offline was asked for" if offline else "HF_HUB_OFFLINE is set"
        raise UserError(f"cannot {what}: {why}.", "Do it on a machine online.")
    if not get_token():
        raise UserError(f"no token, so lcfbench cannot {what}.", f"{LOGIN} to one that may write.")


def made_ready(repo_id: str, kind: str, private: bool, revision: str | None, what: str) -> None:
    """Makes a repository, and its branch `revision`, where there is none.

    kind: model or dataset. Raises UserError: a public repository where a private one was asked for, a
    commit or tag in the place of a branch, what the Hub refuses.
    """
    from huggingface_hub import HfApi, constants

    if revision and COMMIT.fullmatch(revision):
        raise UserError(f"cannot {what}: {revision[:12]} is a commit.", "Name a branch.")
    api = HfApi()
    ask(lambda: api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True), what)
    info = api.model_info if kind == "model" else api.dataset_info
    if private and not ask(lambda: info(repo_id), what).private:
        raise UserError(
            f"{repo_id} exists and is public; --private changes no existing repository.",
            "Make it private on the Hub, or name another.",
        )
    if revision and revision != constants.DEFAULT_REVISION:
        refs = ask(lambda: api.list_repo_refs(repo_id, repo_type=kind), what)
        if revision in [ref.name for ref in refs.tags]:
            raise UserError(f"cannot {what}: {revision} is a tag.", "Name a branch.")
        ask(lambda: api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True), what)


def ask(request: Callable[[], Answer], what: str) -> Answer:
    """Returns the answer of the Hub to a request. Raises UserError: `cannot {what}` and why."""
    try:
        answer: Answer = hub._ask(request)
    except hub.HubError as error:
        why = phrase(error)
        raise UserError(f"cannot {what}: {why}.", next_step(why, "Try again online.")) from error
    return answer


def phrase(error: hub.HubError) -> str:
    """Returns why the Hub did not help, by the status of its answer where it gave one."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    cause = error.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, RevisionNotFoundError):
        return "no such revision"
    if isinstance(cause, EntryNotFoundError):
        return "a file that it lists is not there"
    if isinstance(cause, RepositoryNotFoundError) or status is None:
        return str(error).rstrip(".")
    known = {401: "it does not accept the token (401)", 403: "the token may not do this (403)"}
    return (known | {404: "no such repository (404)", 412: "it was changed meanwhile (412)"}).get(
        status, f"it answered {status}"
    )


def next_step(why: str, otherwise: str) -> str:
    """Returns the step that mends a `phrase`. otherwise: where no other is known."""
    if "no such revision" in why:
        return "Name a branch, tag or commit of it."
    if "no such repository" in why:
        return f"Check the name; if it is private, {LOGIN[0].lower()}{LOGIN[1:]}."
    if "(401)" in why or "(403)" in why or "gated" in why:
        return f"{LOGIN} of an account that may."
    return "Repeat the command." if "(412)" in why else otherwise

"""Adapters on the Hub: pushed with their card, pulled whole or not at all.

A repository holds the three files of an adapter folder, at its root or in a subfolder. `pull` looks
in the mirror, on the Hub and in the Hub's cache, loads the files to check them, and only then puts
them in place: a truncated or foreign download never replaces a good adapter.

>>> pull("org/smollm2-lcfx", Path("adapters/smollm2-lcfx"))
>>> push(Path("adapters/mine"), "me/mine", private=True)
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lcfbench.adapters.config import CARD, CONFIG, TAG, WEIGHTS, AdapterConfig, read_config, weights_sha256
from lcfbench.errors import UserError
from lcfbench.files import check_inside
from lcfbench.sources import hub
from lcfbench.sources.c2c_fusers import plain
from lcfbench.sources.cache import lock, mirror, say

ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
MOST_LISTED = 50
FILES = (CONFIG, WEIGHTS, CARD)
LARGEST_TEXT = 16 << 20  # bytes of a config, a card, or the header of the weights
STEP = "Fetch it again, or name another."
LOGIN = "Run `hf auth login`, or set HF_TOKEN"


def pull(
    repo_id: str,
    out: Path | None = None,
    *,
    revision: str | None = None,
    subfolder: str = "",
    force: bool = False,
    offline: bool = False,
) -> Path:
    """Puts an adapter of the Hub into `out` (default `adapters/<name>`) and returns the folder.

    Raises UserError: a name that is no Hub id, an `out` that is taken, nothing found
    (with the places that were tried), files that are no complete adapter of this version.
    """
    from lcfbench.adapters.files import load, making

    check_id(repo_id)
    subfolder = subfolder.strip("/")
    if not plain(subfolder):
        raise UserError(
            f"subfolder {subfolder!a} is no folder of the repository.", "Name a folder inside it."
        )
    if revision is not None and (not plain(revision) or revision.startswith(("/", "-")) or not revision):
        raise UserError(f"{revision!a} is no revision.", "Name a branch, tag or commit.")
    place = out or Path("adapters") / (Path(subfolder).name or repo_id.partition("/")[2])
    with making(place, force) as folder:
        source = _find(repo_id, revision, subfolder, offline)
        base = source.parents[len(Path(subfolder).parts) - 1] if subfolder else source
        for name in FILES:  # the config first: a later format is refused before anything else is read
            if os.path.lexists(source / name):
                check_inside(source / name, base, largest_of(name, folder), STEP)
                _check_content(source / name)
                shutil.copyfile(source / name, folder / name)
        load(folder)
    return place


@dataclass(frozen=True)
class Listed:
    """An adapter as the Hub lists it: its commit, and the day on which it was changed."""

    repo_id: str
    commit: str
    changed: str


def tagged(models: Sequence[str], offline: bool) -> list[Listed]:
    """Returns the adapters on the Hub that are tagged for these models (Hub ids), newest first.

    Their cards name the models; what the files hold `config_of` tells. Raises HubError.
    """
    from huggingface_hub import HfApi

    tags = [TAG, *(f"base_model:{name}" for name in dict.fromkeys(models))]
    how: dict[str, Any] = {"filter": tags, "sort": "last_modified", "limit": MOST_LISTED}
    ask = partial(HfApi().list_models, **how, expand=["sha", "lastModified", "tags"])
    found = [m for m in hub.probe(lambda: list(ask()), offline) if set(tags) <= set(m.tags or ())]
    found.sort(key=lambda m: str(m.last_modified), reverse=True)
    return [
        Listed(m.id, m.sha, str(m.last_modified)[:10])
        for m in found
        if ID.fullmatch(m.id) and ".." not in m.id and re.fullmatch(r"[0-9a-f]{40}", m.sha or "")
    ]


def config_of(listed: Listed) -> AdapterConfig:
    """Fetches an adapter's config alone. Raises HubError, and UserError for a file that is none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    def ask() -> Path:
        size = get_hf_file_metadata(hf_hub_url(listed.repo_id, CONFIG, revision=listed.commit)).size or 0
        if size > LARGEST_TEXT:
            raise hub.HubError(f"{CONFIG} has {size:,} bytes")
        return Path(hf_hub_download(listed.repo_id, CONFIG, revision=listed.commit))

    return read_config(hub._ask(ask).parent)


def pull_once(listed: Listed, root: Path) -> Path:
    """Returns the folder below `root` of an adapter of the Hub; fetches it where it is not there yet.

    Of several processes one fetches, the others wait for it. Raises UserError.
    """
    place = root / "hub" / f"{listed.repo_id.replace('/', '--')}--{listed.commit[:12]}"
    with lock(place.name):
        if not (place / WEIGHTS).is_file():
            pull(listed.repo_id, place, revision=listed.commit)
    return place


def largest_of(name: str, folder: Path) -> int:
    """Returns the bytes that a file of an adapter has at most; weights by the config in `folder`."""
    from lcfbench.adapters.files import blank

    if name != WEIGHTS:
        return LARGEST_TEXT
    return LARGEST_TEXT + 8 * sum(t.numel() for t in blank(read_config(folder), folder).state_dict().values())


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    offline: bool = False,
) -> str:
    """Uploads an adapter's weights, config and card in one commit. Returns the commit's address.

    Creates the repository, and the branch `revision`, where there is none. No other file of the
    folder leaves the machine. Raises UserError: a folder without a complete adapter, no token, no
    right to write, no connection, a public repository where a private one was asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

    from lcfbench.adapters.card import REPO, card, refreshed
    from lcfbench.adapters.files import load

    check_id(repo_id)
    adapter = load(folder)
    if offline or constants.HF_HUB_OFFLINE:
        why = "offline was asked for" if offline else "HF_HUB_OFFLINE is set"
        raise UserError(f"cannot push {folder}: {why}.", "Push from a machine online.")
    if not get_token():
        step = f"{LOGIN} to one that may write."
        raise UserError(f"no token, so nothing can be pushed to {repo_id}.", step)
    text = (folder / CARD).read_text(errors="replace") if (folder / CARD).is_file() else card(adapter)
    text = refreshed(text, adapter.config).replace(REPO, repo_id)
    api = HfApi()

    def ask(request: Callable[[], Any]) -> Any:
        return _ask(request, f"cannot push to {repo_id}")

    ask(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    if private and not ask(lambda: api.model_info(repo_id)).private:
        raise UserError(
            f"{repo_id} exists and is public; --private changes no existing repository.",
            "Make it private on the Hub, or name another.",
        )
    if revision and revision != constants.DEFAULT_REVISION:
        ask(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    operations = [
        CommitOperationAdd(CARD, text.encode()),
        CommitOperationAdd(CONFIG, folder / CONFIG),
        CommitOperationAdd(WEIGHTS, folder / WEIGHTS),
    ]
    title = message or f"Upload {adapter.config.kind} adapter {weights_sha256(folder)[:12]}"
    made = ask(lambda: api.create_commit(repo_id, operations, commit_message=title, revision=revision))
    return str(made.commit_url)


def check_id(repo_id: str) -> None:
    """Raises UserError for a name that is not `org/name`."""
    if not ID.fullmatch(repo_id) or ".." in repo_id or repo_id.startswith((".", "-")):
        raise UserError(f"{repo_id!r} is not a Hub repository.", "Name one as ORG/NAME.")


def _find(repo_id: str, revision: str | None, subfolder: str, offline: bool) -> Path:
    """Finds the adapter's folder: in the mirror, freshly from the Hub, or in the Hub's cache.

    Raises UserError that lists the places that were tried.
    """
    tried = []
    if (root := mirror()) is None:
        tried.append("mirror: LCFBENCH_MIRROR is not set")
    elif revision:
        tried.append("mirror: it knows no revisions")
    else:
        for kind in ("adapters", "models"):
            found = root / kind / repo_id / subfolder
            if (found / CONFIG).is_file():
                return found
            tried.append(f"mirror: {found}: {'no such folder' if not found.is_dir() else f'no {CONFIG}'}")
    commit = ""
    try:
        commit = hub.commit(repo_id, "model", offline, revision)
        return _inside(_snapshot(repo_id, commit, subfolder, revision), subfolder)
    except hub.HubError as error:
        why, answered = _phrase(error), bool(commit) or hasattr(error.__cause__, "response")
        tried.append(f"Hub: {why}")
    if not answered:  # a copy that the Hub refuses now is not taken from the cache either
        try:
            found = _inside(_snapshot(repo_id, revision, subfolder, None, local_files_only=True), subfolder)
            say(f"{repo_id}: Hub: {why}; taken from its cache, commit {_commit_of(found, subfolder)}")
            return found
        except hub.HubError as error:
            tried.append(f"Hub cache: {error if str(error).startswith('no ') else 'nothing there'}")
    shown = f"{repo_id}@{revision}" if revision else repo_id
    raise UserError(
        f"cannot find the adapter {shown!r}. Tried, in order: {'; '.join(tried)}.", _next_step(why, repo_id)
    )


def _snapshot(repo_id: str, commit: str | None, subfolder: str, branch: str | None, **how: Any) -> Path:
    """Returns a commit's files in the Hub's cache, and notes `branch` there for use offline."""
    from huggingface_hub import snapshot_download

    patterns = [f"{subfolder}/{name}" if subfolder else name for name in FILES]
    path = Path(hub._ask(lambda: snapshot_download(repo_id, revision=commit, allow_patterns=patterns, **how)))
    if not how and commit is not None and branch != commit:
        ref = path.parents[1] / "refs" / (branch or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    return path


def _inside(snapshot: Path, subfolder: str) -> Path:
    folder = snapshot / subfolder
    if lacking := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise hub.HubError(
            f"no {' and no '.join(lacking)}{f' in {subfolder}' if subfolder else ''}, so it holds no adapter"
        )
    return folder


def _commit_of(folder: Path, subfolder: str) -> str:
    return folder.parents[len(Path(subfolder).parts) - 1].name[:12] if subfolder else folder.name[:12]


def _check_content(path: Path) -> None:
    """Raises UserError where a large file's content is not of the sha256 that the Hub named."""
    from lcfbench.provenance import file_sha256

    named = path.resolve().name  # the Hub's cache calls large files by their sha256
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", named) and file_sha256(path) != named:
        raise UserError(
            f"{path.name} is damaged: its sha256 is not the one the Hub names.",
            f"Delete {path.resolve()} and pull again.",
        )


def _ask(request: Callable[[], Any], what: str) -> Any:
    try:
        return hub._ask(request)
    except hub.HubError as error:
        why = _phrase(error)
        raise UserError(f"{what}: {why}.", _next_step(why, what.rpartition(" ")[2])) from error


def _phrase(error: hub.HubError) -> str:
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
    return (known | {404: "no such repository (404)"}).get(status, f"it answered {status}")


def _next_step(why: str, repo_id: str) -> str:
    if "no such revision" in why:
        return "Name a branch, tag or commit of it."
    if "no such repository" in why:
        return f"Check the name; if it is private, {LOGIN[0].lower()}{LOGIN[1:]}."
    if "(401)" in why or "(403)" in why or "gated" in why:
        return f"{LOGIN} of an account that may."
    if "holds no adapter" in why:
        return "Name a --subfolder that does, or another repository."
    return f"Try again online, or set LCFBENCH_MIRROR to a folder that has adapters/{repo_id}."

"""Adapters on the Hub: found there, and pulled whole or not at all.

A repository holds the files of an adapter folder, at its root or in a subfolder. `pull` looks in the
mirror, on the Hub and in the Hub's cache, loads the files to check them, and only then puts them in
place: a truncated or foreign download never replaces a good adapter. `source.json` beside them says
where they came from.

>>> pull("org/smollm2-lcfx@v2", Path("adapters/smollm2-lcfx"))
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

from lcfbench.adapters.config import (
    CARD,
    CONFIG,
    PROOF,
    SOURCE,
    TAG,
    WEIGHTS,
    AdapterConfig,
    read_config,
    weights_sha256,
)
from lcfbench.adapters.proof import read_proofs
from lcfbench.errors import UserError
from lcfbench.files import check_inside, now, write_json
from lcfbench.sources import hub
from lcfbench.sources.c2c_fusers import plain
from lcfbench.sources.cache import lock, mirror, say
from lcfbench.sources.repositories import ID, next_step, phrase, split_repo

MOST_LISTED = 50
FILES = (CONFIG, WEIGHTS, CARD, PROOF)
LARGEST_TEXT = 16 << 20  # bytes of a config, a card, or the header of the weights
STEP = "Fetch it again, or name another."


def pull(
    repo_id: str,
    out: Path | None = None,
    *,
    revision: str | None = None,
    subfolder: str = "",
    force: bool = False,
    offline: bool = False,
    check: Callable[[Path], Any] = read_proofs,
) -> Path:
    """Puts an adapter of the Hub into `out` (default `adapters/<name>`) and returns the folder.

    repo_id: ORG/NAME, or ORG/NAME@REVISION: a branch, a tag, or a commit of which six digits are enough.
    check: of the proofs in a folder, which raises UserError.
    Raises UserError: a name that is no Hub id, an `out` that is taken, nothing found (with the places
    that were tried), files that are no complete adapter of this version, a proof that does not hold.
    """
    from lcfbench.adapters.files import load, making

    repo_id, revision = split_repo(repo_id, revision)
    subfolder = subfolder.strip("/")
    if not plain(subfolder):
        raise UserError(
            f"subfolder {subfolder!a} is no folder of the repository.", "Name a folder inside it."
        )
    place = out or Path("adapters") / (Path(subfolder).name or repo_id.partition("/")[2])
    with making(place, force) as folder:
        source, commit = _find(repo_id, revision, subfolder, offline)
        base = source.parents[len(Path(subfolder).parts) - 1] if subfolder else source
        for name in FILES:  # the config first: a later format is refused before anything else is read
            if os.path.lexists(source / name):
                check_inside(source / name, base, largest_of(name, folder), STEP)
                _check_content(source / name)
                shutil.copyfile(source / name, folder / name)
        load(folder)
        check(folder)
        about = {"repository": repo_id, "revision": revision, "commit": commit or None}
        about |= {"subfolder": subfolder or None, "at": now(), "adapter_sha256": weights_sha256(folder)}
        write_json(folder / SOURCE, {name: value for name, value in about.items() if value})
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


def _find(repo_id: str, revision: str | None, subfolder: str, offline: bool) -> tuple[Path, str]:
    """Finds the adapter's folder and its commit: in the mirror, freshly from the Hub, or in its cache.

    In the mirror there is no commit.

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
                return found, ""
            tried.append(f"mirror: {found}: {'no such folder' if not found.is_dir() else f'no {CONFIG}'}")
    commit = ""
    try:
        commit = hub.commit(repo_id, "model", offline, revision)
        return _inside(_snapshot(repo_id, commit, subfolder, revision), subfolder), commit
    except hub.HubError as error:
        why, answered = phrase(error), bool(commit) or hasattr(error.__cause__, "response")
        tried.append(f"Hub: {why}")
    if not answered:  # a copy that the Hub refuses now is not taken from the cache either
        try:
            found = _inside(_snapshot(repo_id, revision, subfolder, None, local_files_only=True), subfolder)
            commit = _commit_of(found, subfolder)
            say(f"{repo_id}: Hub: {why}; taken from its cache, commit {commit[:12]}")
            return found, commit
        except hub.HubError as error:
            tried.append(f"Hub cache: {error if str(error).startswith('no ') else 'nothing there'}")
    shown = f"{repo_id}@{revision}" if revision else repo_id
    step = f"Try again online, or set LCFBENCH_MIRROR to a folder that has adapters/{repo_id}."
    if "holds no adapter" in why:
        step = "Name a --subfolder that does, or another repository."
    raise UserError(
        f"cannot find the adapter {shown!r}. Tried, in order: {'; '.join(tried)}.", next_step(why, step)
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
    return folder.parents[len(Path(subfolder).parts) - 1].name if subfolder else folder.name


def _check_content(path: Path) -> None:
    """Raises UserError where a large file's content is not of the sha256 that the Hub named."""
    from lcfbench.provenance import file_sha256

    named = path.resolve().name  # the Hub's cache calls large files by their sha256
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", named) and file_sha256(path) != named:
        raise UserError(
            f"{path.name} is damaged: its sha256 is not the one the Hub names.",
            f"Delete {path.resolve()} and pull again.",
        )

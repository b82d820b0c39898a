"""The Hugging Face Hub, asked once and quickly: its cache first, then one attempt with a deadline.

A machine without the Hub must not wait for it: the first failure is remembered for this process, and
for five minutes in a stamp file. Every failure is a `HubError` whose text is one phrase for the list
of places tried.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from lcfbench.errors import UserError
from lcfbench.sources.cache import cache_dir
from lcfbench.sources.model_folder import lacks
from lcfbench.sources.names import is_commit, same_revision

if TYPE_CHECKING:
    from datasets import Dataset

PROBE_SECONDS = 6.0  # one request, name resolution included
STAMP_SECONDS = 300.0
SHOWN = 8  # names of branches, tags or commits in one sentence
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
_down: dict[str, str] = {}  # endpoint → why; a request that failed in this process fails again


class HubError(Exception):
    """Why the Hub did not help, as a phrase."""


class NoRevisionError(HubError):
    """The repository is there, and the revision is not."""


def _stamp() -> Path:
    return cache_dir() / "hub-unreachable"


def unreachable(offline: bool) -> str:
    """Why the Hub is not worth asking now; empty when it is. Touches no network."""
    from huggingface_hub import constants

    if offline:
        return "offline was asked for"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if constants.ENDPOINT in _down:
        return _down[constants.ENDPOINT]
    stamp = _stamp()
    if stamp.is_file() and stamp.read_text() == constants.ENDPOINT:
        age = time.time() - stamp.stat().st_mtime
        if 0 <= age < STAMP_SECONDS:
            again = f"asked again after {STAMP_SECONDS / 60:.0f} min, or delete {stamp}"
            return f"no connection {age:.0f} s ago ({again})"
    return ""


def _mark_down(why: str) -> None:
    from huggingface_hub import constants

    _down[constants.ENDPOINT] = why
    with contextlib.suppress(OSError):  # a cache that cannot be written: the next process asks again
        _stamp().parent.mkdir(parents=True, exist_ok=True)
        _stamp().write_text(constants.ENDPOINT)


def _ask(request: Callable[[], Any]) -> Any:
    """Runs one request; HTTP answers, failed connections and bad names become `HubError`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # the HTTP client's own base error first: its module's name differs between versions of the hub's library
    lost: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError)
    try:
        return request()
    except HFValidationError as e:
        raise HubError(f"not a Hub id ({_first_line(e)})") from e
    except GatedRepoError as e:
        raise HubError("gated: accept its terms on the Hub, then `hf auth login`") from e
    except RepositoryNotFoundError as e:
        raise HubError("no such repository, or a private one") from e
    except RevisionNotFoundError as e:
        raise NoRevisionError("no such revision") from e
    except HfHubHTTPError as e:
        raise HubError(f"it answered: {_first_line(e)}") from e
    except lost as e:
        raise HubError(f"no connection ({_first_line(e)})") from e
    except (OSError, ValueError) as e:  # an interrupted download; a config or split that is not there
        raise HubError(_first_line(e)) from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def commit(
    repo_id: str, kind: Literal["model", "dataset"], offline: bool, revision: str | None = None
) -> str:
    """The commit hash of a repository's main branch, or of a `revision`.

    A revision is a branch, a tag, or a commit of which the first 6 digits are enough. Raises HubError,
    which names the branches and tags that are there.
    """
    from huggingface_hub import HfApi

    def ask() -> Any:
        info = HfApi().model_info if kind == "model" else HfApi().dataset_info
        return info(repo_id, revision=revision or None, timeout=PROBE_SECONDS / 2)

    try:
        return str(probe(ask, offline).sha)
    except NoRevisionError as error:
        begin = (revision or "").lower()
        if is_commit(begin):  # the Hub knows whole ones alone
            every = probe(lambda: list(HfApi().list_repo_commits(repo_id, repo_type=kind)), offline)
            found = [each.commit_id for each in every if each.commit_id.startswith(begin)]
            if len(found) == 1:
                return str(found[0])
        refs = probe(lambda: HfApi().list_repo_refs(repo_id, repo_type=kind), offline)
        there = [
            f"{what} {', '.join(_few([ref.name for ref in some]))}"
            for what, some in (("branches", refs.branches), ("tags", refs.tags))
            if some
        ]
        raise HubError(
            f"no such revision {revision}; it has the {' and the '.join(there) or 'main branch'}"
        ) from error


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= SHOWN else [*names[:SHOWN], f"{len(names) - SHOWN} more"]


def probe(request: Callable[[], Any], offline: bool) -> Any:
    """The answer to one request, of `PROBE_SECONDS` at most. Raises HubError."""
    if why := unreachable(offline):
        raise HubError(why)
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(_ask(request))
        except HubError as e:
            answer.append(e)

    # a thread: neither name resolution nor a list of dead addresses keeps to the request's timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    outcome = answer[0] if answer else HubError(f"no connection (no answer in {PROBE_SECONDS:.0f} s)")
    if isinstance(outcome, HubError):
        if str(outcome).startswith("no connection"):
            _mark_down(str(outcome))
        raise outcome
    return outcome


def _repo(repo_id: str, kind: Literal["models", "datasets"]) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}--{repo_id.replace('/', '--')}"


def snapshot(repo_id: str, kind: Literal["models", "datasets"] = "models", revision: str = "") -> Path | None:
    """The snapshot of `repo_id` in the Hub's cache, complete or not, without asking anyone.

    revision: a branch or tag, else a commit of which the first 6 digits are enough; the main branch.
    """
    folder = _repo(repo_id, kind)
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        path = folder / "snapshots" / ref.read_text().strip()
        return path if path.is_dir() else None
    found = [p for p in _snapshots(folder) if revision and same_revision(revision, p.name)]
    return found[0] if len(found) == 1 else None


def _snapshots(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "snapshots").glob("*") if p.is_dir())


def kept(repo_id: str, revision: str = "") -> str:
    """Says what the Hub's cache has of a model where it has not the revision, or not the whole of it."""
    folder = _repo(repo_id, "models")
    commits = [p.name for p in _snapshots(folder)]
    if here := snapshot(repo_id, revision=revision):
        return lacks(here)
    if not commits:
        return "nothing there"
    refs = [str(p.relative_to(folder / "refs")) for p in sorted((folder / "refs").rglob("*")) if p.is_file()]
    there = f"commits {', '.join(_few([name[:12] for name in commits]))}"
    named = f" ({', '.join(_few(refs))})" if refs else ""
    step = "" if revision else "; name one as NAME@COMMIT"
    several = sum(bool(revision) and same_revision(revision, name) for name in commits) > 1
    return f"{'several' if several else 'no'} {revision or 'main'} there, but the {there}{named}{step}"


def fetch_model(repo_id: str, offline: bool, revision: str = "") -> Path:
    """Downloads a model's configs, tokenizer and safetensors. Raises HubError."""
    path, sha = _snapshot_of(repo_id, offline, revision, allow_patterns=_FILES, ignore_patterns=["*/*"])
    if missing := lacks(path):
        raise HubError(f"{repo_id} has {missing}")
    _note(path, sha, revision)
    return path


def fetch_files(repo_id: str, patterns: list[str], offline: bool, revision: str = "") -> Path:
    """The snapshot folder of a repository with those of its files that match. Raises HubError."""
    path, sha = _snapshot_of(repo_id, offline, revision, allow_patterns=patterns)
    _note(path, sha, revision)
    return path


def _snapshot_of(repo_id: str, offline: bool, revision: str, **patterns: Any) -> tuple[Path, str]:
    """Downloads files of a repository's main branch or of a revision: their folder and the commit."""
    from huggingface_hub import snapshot_download

    sha = commit(repo_id, "model", offline, revision)
    return Path(_ask(lambda: snapshot_download(repo_id, revision=sha, **patterns))), sha


def _note(path: Path, sha: str, revision: str) -> None:
    """Notes the commit of a branch or tag, which the Hub's cache does not do for a download by commit."""
    if not sha.startswith(revision.lower() or "main"):
        ref = path.parents[1] / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(sha)


def fetch_tokenizer(repo_id: str, offline: bool, revision: str = "") -> Path:
    """The folder of a model's tokenizer and configs, without weights. Raises HubError."""
    no_weights = ["*/*", "*.safetensors*"]
    return _snapshot_of(repo_id, offline, revision, allow_patterns=_FILES, ignore_patterns=no_weights)[0]


def fetch_config(repo_id: str, offline: bool, revision: str = "") -> Path:
    """The folder of a model's config.json alone. Raises HubError."""
    from huggingface_hub import hf_hub_download

    sha = commit(repo_id, "model", offline, revision)
    return Path(_ask(lambda: hf_hub_download(repo_id, "config.json", revision=sha))).parent


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """Sets the offline switches of `datasets`, which are module constants, for one call."""
    import datasets
    from huggingface_hub import constants

    switches: tuple[Any, ...] = (constants, datasets.config)
    before = [s.HF_HUB_OFFLINE for s in switches]
    try:
        for s in switches:
            s.HF_HUB_OFFLINE = True
        yield
    finally:
        for s, value in zip(switches, before, strict=True):
            s.HF_HUB_OFFLINE = value


def split_names(repo_id: str, config: str, offline: bool) -> list[str]:
    """Returns the splits of a data set's config. Raises HubError, which names the configs there are."""
    import datasets

    commit(repo_id, "dataset", offline)
    names = _ask(lambda: datasets.get_dataset_config_names(repo_id))
    if config not in names:
        raise HubError(f"no config {config}; it has {', '.join(_few(names))}")
    return list(_ask(lambda: datasets.get_dataset_split_names(repo_id, config)))


def fetch_dataset(repo_id: str, config: str, split: str, offline: bool) -> Dataset:
    """Loads a split through `datasets`, or from its cache alone when the Hub is out of reach.

    Config `all`, where a data set has only one config a subject, concatenates these in alphabetical
    order with a `subject` column. Of a data set that is a script beside `data.zip`, the archive is
    read. Raises HubError.
    """
    import datasets

    def load() -> Dataset:
        try:
            names = datasets.get_dataset_config_names(repo_id)
        except RuntimeError as e:  # the library runs no scripts
            return _archived(repo_id, config, split, _first_line(e))
        if config == "default" and config not in names:
            return datasets.load_dataset(repo_id, split=split)  # the card may say which one that is
        if config in names or config != "all":
            return datasets.load_dataset(repo_id, config, split=split)
        parts = []
        for subject in sorted(names):
            part = datasets.load_dataset(repo_id, subject, split=split)
            named = "subject" in part.column_names
            parts.append(part if named else part.add_column("subject", [subject] * len(part)))
        return datasets.concatenate_datasets(parts)

    try:
        commit(repo_id, "dataset", offline)
    except HubError as reason:
        if snapshot(repo_id, "datasets") is None and not _prepared(repo_id):
            raise
        with _cache_only():
            try:
                return _ask(load)
            except HubError:
                raise reason from None
    return _ask(load)


def load_dataset(
    path: str, name: str | None, split: str, kwargs: Mapping[str, Any], offline: bool
) -> Dataset:
    """A split by `datasets.load_dataset` itself: local files, or what only its settings name.

    Raises UserError.
    """
    import datasets

    def load() -> Dataset:
        return datasets.load_dataset(path, name, split=split, **kwargs)

    try:
        if not offline:
            return _ask(load)
        with _cache_only():
            return _ask(load)
    except HubError as error:
        what = f"split {split!r} of data set {'/'.join(filter(None, (path, name)))}: {error}"
        raise UserError(
            f"{what.rstrip('.')}.", "Check the data set's name, its settings and the network."
        ) from error


def _archived(repo_id: str, config: str, split: str, why: str) -> Dataset:
    """The rows of `<config>.jsonl` in `data.zip`; such data sets have the split `test` alone."""
    import datasets
    from huggingface_hub import hf_hub_download

    with zipfile.ZipFile(hf_hub_download(repo_id, "data.zip", repo_type="dataset")) as archive:
        files = [name for name in archive.namelist() if PurePosixPath(name).name == f"{config}.jsonl"]
        if len(files) != 1 or split != "test":
            raise ValueError(f"{why}; its data.zip has no {config}.jsonl for the split {split}")
        lines = archive.read(files[0]).decode().split("\n")
    return datasets.Dataset.from_list([json.loads(line) for line in lines if line.strip()])


def _prepared(repo_id: str) -> bool:
    """Whether `datasets` has prepared anything of this repository before."""
    import datasets

    return (Path(datasets.config.HF_DATASETS_CACHE) / repo_id.replace("/", "___")).is_dir()

"""The Hugging Face Hub, asked once and quickly: its cache first, then one attempt with a deadline.

A machine without the Hub must not wait for it: the first failure is remembered for this process, and
for five minutes in a stamp file. Every failure is a `HubError` whose text is one phrase for the list
of places tried.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcfbench.sources.cache import cache_dir
from lcfbench.sources.model_folder import lacks

if TYPE_CHECKING:
    from datasets import Dataset

PROBE_SECONDS = 6.0  # one request, name resolution included
STAMP_SECONDS = 300.0
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
_down: dict[str, str] = {}  # endpoint → why; a request that failed in this process fails again


class HubError(Exception):
    """Why the Hub did not help, as a phrase."""


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
    _stamp().parent.mkdir(parents=True, exist_ok=True)
    _stamp().write_text(constants.ENDPOINT)


def _ask(request: Callable[[], Any]) -> Any:
    """Runs one request; HTTP answers, failed connections and bad names become `HubError`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
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
    """The commit hash of a repository's main branch, or of a `revision`. Raises HubError."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        info = HfApi().model_info if kind == "model" else HfApi().dataset_info
        return info(repo_id, revision=revision, timeout=PROBE_SECONDS / 2)

    return str(probe(ask, offline).sha)


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


def snapshot(repo_id: str, kind: Literal["models", "datasets"] = "models") -> Path | None:
    """The main snapshot of `repo_id` in the Hub's cache, complete or not, without asking anyone."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo_id.replace('/', '--')}"
    ref = folder / "refs" / "main"
    path = folder / "snapshots" / ref.read_text().strip() if ref.is_file() else None
    return path if path is not None and path.is_dir() else None


def fetch_model(repo_id: str, offline: bool) -> Path:
    """Downloads a model's configs, tokenizer and safetensors. Raises HubError."""
    path, sha = _snapshot_of(repo_id, offline, allow_patterns=_FILES, ignore_patterns=["*/*"])
    if missing := lacks(path):
        raise HubError(f"{repo_id} has {missing}")
    _note_main(path, sha)
    return path


def fetch_files(repo_id: str, patterns: list[str], offline: bool) -> Path:
    """The snapshot folder of a repository with those of its files that match. Raises HubError."""
    path, sha = _snapshot_of(repo_id, offline, allow_patterns=patterns)
    _note_main(path, sha)
    return path


def _snapshot_of(repo_id: str, offline: bool, **patterns: Any) -> tuple[Path, str]:
    """Downloads files of a repository's main branch: their folder and the commit."""
    from huggingface_hub import snapshot_download

    sha = commit(repo_id, "model", offline)
    return Path(_ask(lambda: snapshot_download(repo_id, revision=sha, **patterns))), sha


def _note_main(path: Path, sha: str) -> None:
    """Notes a commit as the main branch, which the Hub's cache does not do for a download by commit."""
    ref = path.parents[1] / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    ref.write_text(sha)


def fetch_tokenizer(repo_id: str, offline: bool) -> Path:
    """The folder of a model's tokenizer and configs, without weights. Raises HubError."""
    no_weights = ["*/*", "*.safetensors*"]
    return _snapshot_of(repo_id, offline, allow_patterns=_FILES, ignore_patterns=no_weights)[0]


def fetch_config(repo_id: str, offline: bool) -> Path:
    """The folder of a model's config.json alone. Raises HubError."""
    from huggingface_hub import hf_hub_download

    sha = commit(repo_id, "model", offline)
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


def fetch_dataset(repo_id: str, config: str, split: str, offline: bool) -> Dataset:
    """Loads a split through `datasets`, or from its cache alone when the Hub is out of reach.

    Config `all`, where a data set has only one config a subject, concatenates these in alphabetical
    order with a `subject` column. Raises HubError.
    """
    import datasets

    def load() -> Dataset:
        names = datasets.get_dataset_config_names(repo_id)
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


def _prepared(repo_id: str) -> bool:
    """Whether `datasets` has prepared anything of this repository before."""
    import datasets

    return (Path(datasets.config.HF_DATASETS_CACHE) / repo_id.replace("/", "___")).is_dir()

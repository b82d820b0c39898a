"""Taught models, `BASE+NAME`: a base model and a LoRA of PEFT's that is merged into it when it is loaded.

NAME is the name of a shipped one, of a folder in `taught/` or anywhere, or a Hub id. Imports no torch.

>>> from lcfbench.sources.taught import split
>>> split("gemma3-270m+planted")
('gemma3-270m', 'planted')
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from lcfbench.errors import UserError, unknown
from lcfbench.files import check_inside, settle
from lcfbench.parsing import load_json
from lcfbench.provenance import file_sha256
from lcfbench.sources import hub
from lcfbench.sources.cache import mirror, not_found
from lcfbench.sources.model_folder import PEFT
from lcfbench.sources.names import is_folder, is_path, path_of, same_revision, split_revision

SHIPPED = Path(__file__).parents[1] / "taught_models"
TAUGHT = Path("taught")  # where `lcfbench teach` writes
WEIGHTS = "adapter_model.safetensors"
FILES = (PEFT, WEIGHTS, "README.md", "teaching.json")
LISTING = "lcfbench ls models"
STEP = "Name a LoRA that PEFT saved, or teach one with `lcfbench teach`."
LARGEST = 1 << 34  # bytes of weights
DECIDES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
# keys of adapter_config.json that change nothing when a LoRA is merged, or that are checked below
_HARMLESS = {
    *DECIDES,
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform"),
    *("layers_pattern", "init_lora_weights", "bias", "megatron_core", "qalora_group_size"),
}
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base's own weights
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
Shapes = dict[str, dict[str, tuple[int, ...]]]  # module → "A" and "B" → shape


def split(name: str) -> tuple[str, str | None]:
    """Splits `BASE+NAME`. The second is None for a plain model; a model's folder may have a + in its name."""
    if "+" not in name or any(
        is_folder(whole) and not (path_of(whole) / PEFT).exists() for whole in (name, name.rpartition("@")[0])
    ):
        return name, None
    signs = [i for i, sign in enumerate(name) if sign == "+"]
    folders = [i for i in signs if i and is_folder(name[:i])]
    at = min(folders or signs)
    return name[:at], name[at + 1 :]


def listed(base: str = "") -> dict[str, Path]:
    """Returns the taught models that ship and those in `taught/`: name → folder. base: those of one."""
    found: dict[str, Path] = {}
    for root in (TAUGHT, SHIPPED):
        folders = sorted(f for f in root.glob("[!.]*+*") if _whole(f)) if root.is_dir() else []
        found |= {f.name: f for f in folders if f.name.startswith(f"{base}+" if base else "")}
    return found


def _whole(folder: Path) -> bool:
    return (folder / PEFT).is_file() and (folder / WEIGHTS).is_file()


def canonical(base: str, name: str) -> str:
    """Returns the NAME of a LoRA for a base as it is recorded. Raises UserError where it can be none."""
    if not name:
        raise UserError(f"{base}+ names no taught model.", f"Write {base}+NAME; see `{LISTING}`.")
    known, (plain, revision) = listed(recorded(base)), split_revision(name)
    pin = f"@{revision}" if revision else ""
    if f"{recorded(base)}+{plain.lower()}" in known:
        return plain.lower() + pin
    if is_folder(plain):
        return name
    if is_path(plain):
        raise UserError(f"there is no folder {name} of a taught model.", STEP)
    if "/" not in plain:
        every = known or listed()
        raise unknown("taught model", f"{recorded(base)}+{plain}", every, LISTING)
    return name


def look(base: str, name: str) -> tuple[Path | None, list[str]]:
    """Returns the folder of a LoRA on this disk, and the places tried. Touches no network."""
    plain, revision = split_revision(name)
    if found := folder_of(base, plain):
        if revision and not same_revision(revision, digest(found)):
            what = f"{found} is {digest(found)}, not {revision}."
            raise UserError(what, "Name a folder without a revision: it has one alone.")
        return found, []
    tried = ["path: no such folder"]
    if (root := mirror()) is None:
        tried.append("mirror: LCFBENCH_MIRROR is not set")
    elif not (folder := root / "models" / plain).is_dir():
        tried.append(f"mirror: {folder}: no such folder")
    elif revision and not same_revision(revision, digest(folder)):
        tried.append(f"mirror: {folder} is {digest(folder)}, not {revision}")
    else:
        return folder, tried
    snapshot = hub.snapshot(plain, revision=revision)
    if snapshot and (snapshot / PEFT).exists() and (snapshot / WEIGHTS).exists():
        return snapshot, tried
    return None, [*tried, f"Hub cache: {hub.kept(plain, revision)}"]


def folder_of(base: str, name: str) -> Path | None:
    """Returns the folder that a NAME stands for, unless it is a Hub id."""
    if folder := listed(recorded(base)).get(f"{recorded(base)}+{name}"):
        return folder
    return path_of(name) if is_folder(name) else None


def find(base: str, name: str, *, offline: bool = False) -> Path:
    """Finds the folder of a LoRA: shipped, in `taught/`, a path, mirror, Hub cache, Hub.

    Raises UserError that lists the places tried, and for a folder that holds no LoRA that can be merged.
    """
    found, tried = look(base, name)
    if found is None:
        try:
            plain, revision = split_revision(name)
            found = hub.fetch_files(plain, list(FILES), offline, revision)
        except hub.HubError as error:
            tried.append(f"Hub: {error}")
            what = f"{base}+{name}"
            raise not_found("the taught model", what, plain, f"models/{plain}", tried, revision) from error
    check(found)
    return found


def check(folder: Path) -> Shapes:
    """Returns the shapes of a LoRA's weights.

    Raises UserError for a folder that holds none, a damaged one, or one that is more than a LoRA of
    linear layers: it could not be merged.
    """
    settle(folder)
    if not (folder / PEFT).is_file():
        what = f"{folder} holds no LoRA: no {PEFT}."
        raise UserError(what, STEP)
    config = load_json(folder / PEFT, "config of a LoRA")
    at = f"{folder / PEFT}: "
    if (kind := config.get("peft_type")) != "LORA":
        raise UserError(f"{at}peft_type is {kind!r:.40}, not LORA.", STEP)
    for key, value in config.items():
        if key not in _HARMLESS and value not in (None, False, "", 0, [], {}):
            raise UserError(f"{at}{key} is set, and such a LoRA is not merged here.", STEP)
    if config.get("bias", "none") != "none":
        raise UserError(f"{at}bias is {config['bias']!r:.40}; only weights are merged.", STEP)
    if not any(config.get("init_lora_weights") is v or config.get("init_lora_weights") == v for v in _INITS):
        what = f"{at}init_lora_weights is {config['init_lora_weights']!r:.40}, which changes the base itself."
        raise UserError(what, "Convert it to a plain LoRA with PEFT first.")
    for key, kinds in (("r", int), ("lora_alpha", (int, float))):
        if not isinstance(config.get(key), kinds) or isinstance(config[key], bool) or not config[key] > 0:
            raise UserError(f"{at}{key} is {config.get(key)!r:.40}.", "It is a number above 0.")
    pickled = (folder / "adapter_model.bin").exists() and not (folder / WEIGHTS).exists()
    if pickled:
        raise UserError(f"{folder} has no {WEIGHTS} (adapter_model.bin is pickled and is not read).", STEP)
    check_inside(folder / WEIGHTS, folder, LARGEST, STEP)
    return _shapes(folder / WEIGHTS)


def _shapes(file: Path) -> Shapes:
    """Returns the shapes that a file of weights names, from its header alone."""
    from safetensors import SafetensorError, safe_open

    found: Shapes = {}
    try:
        with safe_open(file, framework="np") as weights:
            for key in weights.keys():  # noqa: SIM118
                named = _KEY.fullmatch(key)
                if named is None:
                    raise UserError(f"{file}: {key!r:.120} is no weight of a LoRA of linear layers.", STEP)
                found.setdefault(named["module"], {})[named["side"]] = tuple(
                    weights.get_slice(key).get_shape()
                )
    except (SafetensorError, OSError) as error:
        line = " ".join(str(error).split())[:160]
        raise UserError(f"{file} is damaged ({line}).", "Fetch or teach it again.") from error
    for module, sides in found.items():
        (up, down) = (sides.get("B", ()), sides.get("A", ()))
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            what = f"{file}: {module:.100} has A {down} and B {up}, which do not fit."
            raise UserError(what, "Fetch or teach it again.")
    if not found:
        raise UserError(f"{file} holds no weights.", "Fetch or teach it again.")
    return found


def digest(folder: Path) -> str:
    """Returns 12 hex digits over a LoRA's weights and those entries of its config that change an answer."""
    config = load_json(folder / PEFT, "config of a LoRA")
    decides = {key: config[key] for key in DECIDES if config.get(key)}
    text = json.dumps([file_sha256(folder / WEIGHTS), decides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recorded(name: str) -> str:
    """Returns the name that runs and adapters record for a base or a LoRA, without its revision.

    A folder's is its last part; a colon in it would separate two names.
    """
    plain = split_revision(name)[0]
    return (path_of(plain).resolve().name or plain).replace(":", "-") if is_folder(plain) else plain


def recorded_lora(base: str, name: str) -> str:
    """Returns the NAME that is recorded: of a folder called `BASE+NAME` it is NAME."""
    plain = split_revision(name)[0]
    folder = folder_of(base, plain)
    return folder.resolve().name.removeprefix(f"{recorded(base)}+").replace(":", "-") if folder else plain

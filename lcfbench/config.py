"""Settings from files, environment and flags: YAML < `LCFBENCH_*` < flags."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lcfbench.errors import UserError, unknown


def several(value: Any) -> Any:
    """Splits `a,b,c` into three; drops duplicates and keeps the order."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError("give names, separated by commas")
    parts = [p.strip() if isinstance(p, str) else p for p in parts]
    return list(dict.fromkeys(p for p in parts if p != ""))


def texts(value: Any) -> Any:
    """Turns option values into texts; `convert` gives each its type later. YAML reads 100 as a number."""
    return {str(k): _text(v) for k, v in value.items()} if isinstance(value, dict) else value


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


class Settings(BaseModel):
    """Base of all settings: a file, overlaid with environment variables and flags."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def merge(cls, file: Path | str | None, given: dict[str, Any], section: str | None = None) -> Self:
        """Overlays a YAML file or packaged recipe with the given settings; empty ones do not count.

        section: the part of a recipe with parts, `train` or `run`. Raises UserError.
        """
        base = read_recipe(file, section) if file is not None else {}
        chosen = {k: v for k, v in given.items() if v is not None and v != [] and v != {}}
        for key in ("options", "task_options"):
            if key in chosen and isinstance(base.get(key), dict):
                chosen[key] = {**base[key], **chosen[key]}
        try:
            return cls.model_validate({**base, **chosen})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(p) for p in first["loc"])
            listing = f"lcfbench {section or 'run'} --help"
            if first["type"] == "extra_forbidden":
                raise unknown("setting", name, cls.model_fields, listing) from error
            why = first["msg"].removeprefix("Value error, ").lower()
            raise UserError(
                f"setting {name.replace('_', '-')}: {why} (got {first.get('input')!r}).", f"See `{listing}`."
            ) from error


def packaged_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the package, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def read_recipe(file: Path | str, section: str | None) -> dict[str, Any]:
    """Reads a YAML file or packaged recipe: its `section` where it has parts. Raises UserError."""
    import yaml

    known = packaged_recipes()
    path = known[str(file)] if str(file) in known and not Path(file).is_file() else Path(file)
    if not path.exists() and path.suffix not in {".yaml", ".yml"} and len(path.parts) == 1:
        raise unknown("recipe", str(file), known, "lcfbench ls recipes")
    try:
        base = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"recipe {file} cannot be read ({' '.join(str(error).split())[:160]}).",
            "Name a YAML file of settings, or one of `lcfbench ls recipes`.",
        ) from error
    if not isinstance(base, dict):
        raise UserError(
            f"recipe {file} is not a mapping of settings.", "See `lcfbench ls recipes` for examples."
        )
    if section is not None and PARTS & set(base):
        if extra := set(base) - PARTS - {"description"}:
            raise UserError(
                f"recipe {file} has parts and, beside them, {', '.join(sorted(extra))}.",
                "Put every setting under train: or run:.",
            )
        base = base.get(section) or {}
        if not base:
            raise UserError(f"recipe {file} has no part {section}.", "See `lcfbench ls recipes`.")
    return dict(base)


PARTS = {"train", "run"}


def parse_assignments(texts: list[str] | None, flag: str) -> dict[str, str]:
    """`["width=64"]` → `{"width": "64"}`. Raises UserError for anything else."""
    out = {}
    for text in texts or []:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"{flag} {text!r} is not KEY=VALUE.", f"For example {flag} budget=100.")
        out[key.strip().replace("-", "_")] = value.strip()
    return out


# -- one converter for every KEY=VALUE -----------------------------------------------------------


def convert(key: str, text: str, hint: Any, default: Any = None, of: str = "") -> Any:
    """The text of an option as the type `hint` of the field it sets.

    Follows pydantic: `no` is False, `none` is None where None is allowed, a Literal accepts its
    words, a list is separated by commas, a number is finite. of: whose option it is, for the error.
    Raises UserError that names the type, the accepted words and the default.
    """
    value: Any = text
    if text.strip().lower() in ("none", "null", "") and type(None) in get_args(hint):
        value = None
    elif get_origin(hint) in (list, tuple):
        value = [part.strip() for part in text.split(",") if part.strip()]
    try:
        found = TypeAdapter(hint).validate_python(value)
        if isinstance(found, float) and not math.isfinite(found):
            raise ValueError(text)
        return found
    except ValueError as error:  # pydantic's ValidationError is one
        words = [str(word) for word in get_args(hint)] if get_origin(hint) is Literal else []
        what = f"option {key}={text}{f' of {of}' if of else ''} is not {_kind(hint)}."
        near = difflib.get_close_matches(text, words, n=1)
        raise UserError(
            what, f"{f'Did you mean {near[0]}? ' if near else ''}Its default is {_shown(default)}."
        ) from error


def _kind(hint: Any) -> str:
    """What a type accepts, in words: `a whole number`, `yes or no`, `one of soft, hard`."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        return _kind(base) + "".join(f", {each.ge} or more" for each in limits if isinstance(each, Ge))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        parts = [_kind(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join([*parts, *(["none"] if type(None) in get_args(hint) else [])])
    if get_origin(hint) in (list, tuple):
        return f"a list of values, each {_kind(get_args(hint)[0])}"
    return {bool: "yes or no", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))


def _shown(default: Any) -> str:
    return _text(default) if isinstance(default, bool) else "none" if default is None else str(default)

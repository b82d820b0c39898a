"""Settings from files, environment and flags: YAML < `LCFBENCH_*` < flags."""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import shlex
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from lcfbench.errors import UserError, unknown
from lcfbench.parsing import load_yaml

MOST = 10**9  # of a setting that counts something
SEEDS = 2**32 - 1  # the largest seed that every library takes
LONGEST_NAME, LONGEST_TEXT = 255, 4096  # bytes of a part of a path, and of a setting


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise ValueError("unknown device, use auto, cpu, cuda[:n] or mps")
    return text


Device = Annotated[str, AfterValidator(_device)]
Join = Literal["row", "free", "parallel", "sequential"]  # how the messages of several sharers are joined
WireForm = Literal["native", "bf16", "fp8", "int8", "int4"]  # in which a message crosses as bytes
PLACES = {"device", "receiver_device", "sharer_device", "device_map"}  # settings: where models run


def several(value: Any) -> Any:
    """Splits `a,b,c` into three, each once and in their order (see `once`)."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or any(isinstance(p, (list, dict, set)) for p in parts):
        raise ValueError("give names, separated by commas")
    parts = [p.strip() if isinstance(p, str) else p for p in parts]
    for part in parts:
        check_text(str(part))
    if isinstance(value, list) and "" in parts:
        raise ValueError("a name in the list is empty")
    return once([p for p in parts if p != ""])


def once(values: list[Any]) -> list[Any]:
    """The values, each once and in their order; stderr says which were given again."""
    kept = list(dict.fromkeys(values))
    if twice := [str(v) for v in kept if values.count(v) > 1]:
        print(f"{', '.join(twice)}: named more than once, counted once.", file=sys.stderr)
    return kept


def texts(value: Any) -> Any:
    """Turns option values into texts; `convert` gives each its type later. YAML reads 100 as a number."""
    if not isinstance(value, dict):
        return value
    made = {str(k): ",".join(map(_text, v)) if isinstance(v, list) else _text(v) for k, v in value.items()}
    if len(made) < len(value):
        raise ValueError("two options have one name")
    return made


def lists_of_texts(value: Any) -> Any:
    """As `texts`, with a list of values for each option: `{"budget": [16, 32]}`."""
    if not isinstance(value, dict):
        return value
    made = {
        str(k): [_text(part) for part in v] if isinstance(v, list) else [_text(v)] for k, v in value.items()
    }
    if len(made) < len(value) or not all(made.values()):
        raise ValueError("two options have one name" if len(made) < len(value) else "an option has no value")
    return made


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise ValueError("the value of an option is a mapping or a list of lists")
    return (
        "none"
        if value is None
        else {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else str(value)
    )


class Settings(BaseModel):
    """Base of all settings: a file, overlaid with environment variables and flags."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what pydantic would turn into a number without a word, and texts that name no file."""
        kinds = field_kinds(cls.model_fields[str(info.field_name)].annotation)
        for part in value if isinstance(value, list) else [value]:
            if {int, float} & kinds:
                if isinstance(part, bool):
                    raise ValueError("yes or no is no number")
                if isinstance(part, str) and not isinstance(value, list):
                    raise ValueError("a text is no number")
                if isinstance(part, float) and float not in kinds:
                    raise ValueError("give a whole number")
            if bool in kinds and isinstance(part, (int, float)) and not isinstance(part, bool):
                raise ValueError("give true or false")
            if part == "" and Path in kinds:
                raise ValueError("it is empty")
            if isinstance(part, str | Path):
                check_text(str(part))
        return value

    @field_validator("dtype", mode="before", check_fields=False)
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"fp32": "float32", "bf16": "bfloat16"}.get(value, value) if isinstance(value, str) else value

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
            name = ".".join(str(p) for p in first["loc"] if not isinstance(p, int))
            listing = f"lcfbench {section or 'run'} --help"
            if first["type"] == "extra_forbidden":
                raise unknown("setting", name, cls.model_fields, listing) from error
            why = first["msg"].removeprefix("Value error, ").lower()
            where = "" if first["loc"][:1] and first["loc"][0] in chosen else f" of recipe {file}"
            got = reprlib.repr(first.get("input"))
            raise UserError(
                f"setting {name.replace('_', '-')}{where if file else ''}: {why} (got {got}).",
                f"See `{listing}`.",
            ) from error


def field_kinds(hint: Any) -> set[Any]:
    """The plain types that a field's annotation allows, those inside lists included."""
    inner = [] if get_origin(hint) in (Literal, dict) else get_args(hint)
    return set().union(*map(field_kinds, inner)) if inner else {hint}


def check_text(text: str) -> None:
    """Raises ValueError for a text that can be no name, path or list of them."""
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise ValueError("a control character, or half of one, is in it")
    if len(text.encode()) > LONGEST_TEXT or any(len(p.encode()) > LONGEST_NAME for p in text.split("/")):
        raise ValueError("it is too long")
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError("there is no such home folder")


def packaged_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the package, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def read_recipe(file: Path | str, section: str | None) -> dict[str, Any]:
    """Reads a YAML file or packaged recipe: its `section` where it has parts. Raises UserError."""
    _check_recipe_name(str(file))
    known = packaged_recipes()
    path = known[str(file)] if str(file) in known and not Path(file).is_file() else Path(file)
    if not path.exists() and path.suffix not in {".yaml", ".yml"} and len(path.parts) == 1:
        raise unknown("recipe", str(file), known, "lcfbench ls recipes")
    base = load_yaml(path, "recipe")
    if section is not None and PARTS & set(base):
        if extra := set(base) - PARTS - {"description"}:
            raise UserError(
                f"recipe {file} has parts and, beside them, {', '.join(sorted(extra))}.",
                "Put every setting under train:, run: or bench:.",
            )
        base = base.get(section) or {}
        if not isinstance(base, dict):
            raise UserError(f"recipe {file}: {section} is not a mapping of settings.", RECIPES)
        if not base:
            raise UserError(f"recipe {file} has no part {section}.", RECIPES)
        if strange := [key for key in base if not isinstance(key, str)]:
            raise UserError(
                f"recipe {file}: {section} has the key {strange[0]!r}, which is no text.", RECIPES
            )
    return dict(base)


def check_trained(file: Path | str | None, adapters: Iterable[Path | str]) -> None:
    """Raises UserError for adapters that one part of a recipe trains and the other, run first, lacks."""
    train = read_recipe(file, None).get("train") if file is not None else None
    out = train.get("out") if isinstance(train, dict) else None
    own = [str(a) for a in adapters if isinstance(out, str) and Path(a).is_relative_to(out)]
    if lacking := [name for name in own if not Path(name).exists()]:
        listed = f"{lacking[0]} and {len(lacking) - 1} more are" if len(lacking) > 1 else f"{lacking[0]} is"
        raise UserError(
            f"recipe {file} runs adapters that it trains first: {listed} not there yet.",
            f"Train them: lcfbench train --recipe {shlex.quote(str(file))}",
        )


def _check_recipe_name(text: str) -> None:
    try:
        check_text(text)
    except ValueError as error:
        raise UserError(f"recipe {text[:40]!a}: {error}.", RECIPES) from error


PARTS = {"train", "run", "bench"}
RECIPES = "See `lcfbench ls recipes` for examples."


def parse_assignments(texts: list[str] | None, flag: str) -> dict[str, str]:
    """`["width=64"]` → `{"width": "64"}`. Raises UserError for anything else."""
    return {key: values[-1] for key, values in parse_several(texts, flag).items()}


def parse_several(texts: Iterable[str] | None, flag: str) -> dict[str, list[str]]:
    """As `parse_assignments`, with every value of a key that stands more than once."""
    out: dict[str, list[str]] = {}
    for text in texts or []:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"{flag} {text!r} is not KEY=VALUE.", f"For example {flag} budget=100.")
        out.setdefault(key.strip().replace("-", "_"), []).append(value.strip())
    return out


def grouped(text: str) -> list[str]:
    """Splits `a,b:x=1,y=2` at commas into `a` and `b:x=1,y=2`.

    A piece that has `=` and no NAME: in front goes on with the piece before it.
    """
    found: list[str] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        if found and "=" in piece and ":" not in piece.partition("=")[0]:
            found[-1] += ("," if ":" in found[-1] else ":") + piece
        else:
            found.append(piece)
    return found


def values_of(key: str, text: str, hint: Any, of: str) -> list[str]:
    """Splits an option's `16,32` into its values, without repetitions.

    A text or list, to which commas may belong, is one value. Raises UserError for an empty value.
    """
    if takes_commas(hint):
        return [text]
    values = [part.strip() for part in text.split(",")]
    if len(values) > 1 and "" in values:
        raise UserError(f"option {key}={text} of {of} has an empty value.", f"For example {key}=16,32.")
    return list(dict.fromkeys(values))


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


def takes_commas(hint: Any) -> bool:
    """Whether a comma may belong to the value of an option: a text or a list, no number and no word."""
    if hint is str or get_origin(hint) in (list, tuple):
        return True
    return get_origin(hint) is not Literal and any(map(takes_commas, get_args(hint)))


def _limit(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value < 1e12 else f"{value:g}"


def _kind(hint: Any) -> str:
    """What a type accepts, in words: `a whole number`, `yes or no`, `one of soft, hard`."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        words = [f", {_limit(each.ge)} or more" for each in limits if isinstance(each, Ge)]
        words += [f" above {_limit(each.gt)}" for each in limits if isinstance(each, Gt)]
        words += [f", {_limit(each.le)} at most" for each in limits if isinstance(each, Le)]
        words += [f", below {_limit(each.lt)}" for each in limits if isinstance(each, Lt)]
        return _kind(base) + "".join(words)
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

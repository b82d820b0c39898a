"""YAML and JSON from files: one strict reader of each, for all that others may have written.

YAML follows the core schema of version 1.2: `010` is 10, `1_0`, `yes`, `on` and dates are text, `1e3` is
a number. A key that stands twice, an anchor that holds itself or grows without bound, and a tag are
errors that name the file and the line.

>>> parse_yaml("limit: 010", "recipe mine.yaml")
{'limit': 10}
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import Composer
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from lcfbench.errors import UserError

LARGEST = {".yaml": 1 << 20, ".yml": 1 << 20}  # bytes; PyYAML reads about 0.2 MB a second
LARGEST_OTHER = 256 << 20
DEEPEST = 60  # mappings and lists inside each other
NODES = 100_000  # after every alias is written out
BITS = 63  # of a whole number
CORE = "tag:yaml.org,2002:"
MERGE = CORE + "merge"
MEND = "Mend the file."
Build = Callable[[str], Any]

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
)


def read_text(path: Path, what: str) -> str:
    """Returns the text of a regular file of bounded size. Raises UserError.

    what: the file in a message, as `recipe`.
    """
    limit = LARGEST.get(path.suffix, LARGEST_OTHER)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            kind = "a folder" if stat.S_ISDIR(state.st_mode) else "no regular file"
            raise UserError(f"{what} {path} is {kind}.", "Name a file.")
        if state.st_size > limit:
            raise UserError(f"{what} {path} has more than {limit >> 20} MB.", "Name a smaller file.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text (byte {error.start}).", MEND) from error
    except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
        raise UserError(f"{what} {path} cannot be read ({getattr(error, 'strerror', error)}).", "") from error


def load_yaml(path: Path, what: str, constructors: Mapping[str, Build] | None = None) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds; {} for an empty file. Raises UserError.

    constructors: for each tag that is allowed, as `!function`, a function of the text behind it.
    """
    found = parse_yaml(read_text(path, what), f"{what} {path}", constructors)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{what} {path} is not a mapping of names to values.", MEND)
    if strange := [key for key in found or {} if not isinstance(key, str)]:
        raise UserError(f"{what} {path} has the key {strange[0]!r}, which is no text.", MEND)
    return found or {}


def parse_yaml(text: str, where: str, constructors: Mapping[str, Build] | None = None) -> Any:
    """Returns the one document of a YAML text. where: the text in a message. Raises UserError."""
    try:
        own = {tag: _of_text(build) for tag, build in (constructors or {}).items()}
        kind = type("Loader", (_Loader,), {"yaml_constructors": _Loader.yaml_constructors | own})
        return kind(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        why = " ".join(str(error.problem or error.context).split())
        raise UserError(f"{where}{line}: {why}.", MEND) from error
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        what = f"the character {text[error.position]!a} is not allowed"
        raise UserError(f"{where}, line {number}: {what}.", MEND) from error
    except (ValueError, OverflowError) as error:  # PyYAML's scanner, of an escape that is no character
        raise UserError(f"{where} is not valid YAML ({error}).", MEND) from error


class _Loader(Reader, Scanner, Parser, Composer, SafeConstructor, BaseResolver):
    """PyYAML's loader with the core schema, bounded in depth and size."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    yaml_multi_constructors: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0
        self.sizes: dict[int, int] = {}  # of finished nodes, aliases written out

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.depth > DEEPEST:
            raise _error(event, f"more than {DEEPEST} lists and mappings inside each other")
        self.depth += 1
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise _error(event, f"the anchor {event.anchor} holds itself")
        else:
            parts = [n for pair in node.value for n in (pair if isinstance(pair, tuple) else (pair,))]
            inner = parts if isinstance(node, yaml.CollectionNode) else []
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in inner)
        if self.sizes[id(node)] > NODES:
            raise _error(event, f"more than {NODES:,} values once the aliases are written out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        own = set[Any]()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error(key_node, "a key is a list or a mapping")
            key: Any = key_node.value if key_node.tag == MERGE else self.construct_object(key_node)  # type: ignore[no-untyped-call]
            if key in own:
                raise _error(key_node, f"the key {key} stands twice")
            own.add(key)
        return dict(super().construct_mapping(node, deep=deep))


def _error(at: Any, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, at.start_mark)


def _of_text(build: Build) -> Callable[[_Loader, Any], Any]:
    """Returns a constructor that gives `build` the text of a node; its ValueError gets the line."""

    def construct(loader: _Loader, node: Any) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise _error(node, f"the tag {node.tag.replace(CORE, '!!')} needs a text")
        try:
            return build(str(node.value))
        except ValueError as error:
            raise _error(node, str(error)) from error

    return construct


def _str(text: str) -> str:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("an escape is half a character")
    return text


def _bool(text: str) -> bool:
    if (word := text.lower()) not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return word == "true"


def _int(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        number = int(text[2:] if base != 10 else text, base) if len(text) < 100 else 1 << BITS
    except ValueError as error:
        raise ValueError(f"{text!r} is no whole number") from error
    if abs(number) >> BITS:
        raise ValueError(f"a whole number has more than {BITS} bits (quote it if it is text)")
    return number


def _float(text: str) -> float:
    text = text.lower()
    try:
        number = float(re.sub(r"\.(inf|nan)$", r"\1", text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no number") from error
    if math.isinf(number) and "inf" not in text:
        raise ValueError("a number is too large (quote it if it is text)")
    return number


def _refuse(loader: _Loader, node: Any) -> Any:
    raise _error(node, f"the tag {node.tag.replace(CORE, '!!')} is not allowed")


for _name, _form, _first in _SCALARS:
    _Loader.add_implicit_resolver(CORE + _name, re.compile(rf"^(?:{_form})$"), _first)
_Loader.yaml_constructors |= {
    CORE + "null": _of_text(lambda text: None),
    CORE + "bool": _of_text(_bool),
    CORE + "int": _of_text(_int),
    CORE + "float": _of_text(_float),
    CORE + "str": _of_text(_str),
    CORE + "seq": SafeConstructor.construct_yaml_seq,
    CORE + "map": SafeConstructor.construct_yaml_map,
    None: _refuse,
}


# -- JSON ------------------------------------------------------------------------------------------


def load_json(path: Path, what: str) -> dict[str, Any]:
    """Returns the object that a JSON file holds. Raises UserError."""
    found = parse_json(read_text(path, what), f"{what} {path}")
    if not isinstance(found, dict):
        raise UserError(f"{what} {path} is not a JSON object.", MEND)
    return found


def parse_json(text: str | bytes, where: str) -> Any:
    """Returns the value of a JSON text. where: the text in a message.

    Raises UserError also for NaN, infinity, a key that stands twice, and what is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_constant, parse_float=_finite, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply.", MEND) from error
    except ValueError as error:  # Unicode's, the parser's, and that of a number of thousands of digits
        raise UserError(f"{where} is not valid JSON ({' '.join(str(error).split())[:160]}).", MEND) from error


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return number


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object. Raises ValueError for a key that stands twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return made

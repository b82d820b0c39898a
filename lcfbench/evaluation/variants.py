"""Variants: one method with its own options and adapter. Several values are several of them.

An entry of `--mode` is `METHOD` or `METHOD:key=value,…`; a piece between commas that is no method goes on
with the entry before it. Imports no torch.

>>> split_modes("receiver,t2t:budget=16,32,lcf:spans=windows,windows=3")
['receiver', 't2t:budget=16,32', 'lcf:spans=windows,windows=3']
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcfbench.config import Join, WireForm, check_text, parse_several
from lcfbench.registry import PYTHON, add_path, method_names

ADAPTER = "adapter"  # in an entry: its own adapters, in place of those of `--adapter`


@dataclass(frozen=True)
class Variant:
    """A method with the options that were given for it, as texts, and its adapter's folder.

    more: the adapters of further sharers, where each has its own. wire: the form in which its messages
    cross as bytes; None where they are handed over. join: how those of several sharers are joined; None with
    one sharer. entry: where it was asked for, for messages. label: the method and what tells the variant
    from the others of its method. why: the reason for adapters that were not given.
    """

    mode: str
    options: tuple[tuple[str, str], ...] = ()
    adapter: Path | None = None
    more: tuple[Path, ...] = ()
    wire: WireForm | None = None
    join: Join | None = None
    entry: str = field(default="", compare=False)
    label: str = field(default="", compare=False)
    why: str = field(default="", compare=False)

    @property
    def adapters(self) -> tuple[Path, ...]:
        """All adapters, in the order of the sharers; one where it is that of all, none without."""
        return (self.adapter, *self.more) if self.adapter is not None else ()


def split_modes(value: Any) -> list[str]:
    """Returns the entries of `--mode`, or of a recipe's list or mapping; files are named by their methods.

    Raises ValueError for another shape, UserError for a file that holds no method.
    """
    if isinstance(value, Mapping):
        value = [{name: options} for name, options in value.items()]
    if isinstance(value, list) and not any(isinstance(part, list) for part in value):
        return [entry for part in value for entry in split_modes(_spelled(part))]
    if not isinstance(value, str):
        raise ValueError("give names, separated by commas")
    entries: list[str] = []
    for piece in [value] if _is_file(value) else filter(None, map(str.strip, value.split(","))):
        check_text(piece)
        if entries and ":" in entries[-1] and _goes_on(piece, entries[-1]):
            entries[-1] += f",{piece}"
            continue
        head, sign, rest = (piece, "", "") if _is_file(piece) else piece.partition(":")
        if "=" in head:
            raise ValueError(f"no method stands in front of {piece}; write METHOD:{piece}")
        entries.append(add_path("methods", head.strip()) + (sign and rest and sign + rest))
    return entries


def read_entry(text: str) -> tuple[str, dict[str, list[str]]]:
    """`t2t:budget=16,32` → the method, and for each option the texts given for it."""
    mode, _, rest = text.partition(":")
    pieces: list[str] = []
    for piece in filter(None, map(str.strip, rest.split(","))):
        if pieces and "=" not in piece:
            pieces[-1] += f",{piece}"
        else:
            pieces.append(piece)
    return mode, parse_several(pieces, f"--mode {mode}:")


def entry_of(mode: str, options: Mapping[str, Sequence[str]]) -> str:
    """The entry that `read_entry` reads as this method with these options."""
    told = ",".join(f"{key}={text}" for key, texts in options.items() for text in texts)
    return f"{mode}:{told}" if told else mode


def labelled(variants: Sequence[Variant]) -> list[Variant]:
    """The variants of one task with labels: adapters by their folders, options by what differs."""
    out = []
    for variant in variants:
        rivals = [each for each in variants if each.mode == variant.mode]
        given = [dict(each.options) for each in rivals]
        keys = dict.fromkeys(key for options in given for key in options)
        parts = [
            f"{key}={value}"
            for key in keys
            if len({options.get(key) for options in given}) > 1
            and (value := dict(variant.options).get(key)) is not None
        ]
        rows = {each.adapters for each in rivals if each.adapters}
        if variant.adapters and len(rows) > 1:
            folders = {folder for row in rows for folder in row}
            parts.insert(0, "+".join(_told(folder, folders) for folder in variant.adapters))
        if variant.wire is not None and len({each.wire for each in rivals}) > 1:
            parts.append(f"wire={variant.wire}")
        if variant.join is not None and len({each.join for each in rivals}) > 1:
            parts.append(f"join={variant.join}")
        out.append(replace(variant, label=" ".join([variant.mode, *parts])))
    return out


def _told(folder: Path, folders: Iterable[Path]) -> str:
    """The end of a folder's path that none of the others has."""
    others, parts = [each.parts for each in folders if each != folder], folder.parts
    lengths = range(1, len(parts) + 1)
    return "/".join(next((parts[-n:] for n in lengths if all(o[-n:] != parts[-n:] for o in others)), parts))


def _spelled(part: Any) -> Any:
    """An entry of a recipe as text: `{t2t: {budget: [16, 32]}}` is `t2t:budget=16,budget=32`."""
    if not isinstance(part, Mapping):
        return part
    entries = []
    for name, options in part.items():
        if not isinstance(options, Mapping | None):
            raise ValueError(f"write the options of {name} as a mapping, or the entry in quotes")
        texts = [
            f"{key}={value}"
            for key, values in (options or {}).items()
            for value in (values if isinstance(values, list) else [values])
        ]
        entries.append(f"{name}:{','.join(texts)}" if texts else str(name))
    return ",".join(entries)


def _is_file(text: str) -> bool:
    return text.endswith(PYTHON) and Path(text).expanduser().exists()


def _goes_on(piece: str, entry: str) -> bool:
    """Whether a piece continues the entry before it: `key=value`, or one more value."""
    head, sign, _ = piece.partition("=")
    if sign and ":" not in head:
        return True
    names = method_names()
    if ":" in piece or piece in names or piece.endswith(PYTHON):
        return False
    last = list(read_entry(entry)[1])[-1]
    return last == ADAPTER or not difflib.get_close_matches(piece, names, n=1)

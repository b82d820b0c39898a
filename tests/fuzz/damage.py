"""Ways to damage a file or a folder: by its form (YAML, JSON, parquet, safetensors, torch) and as bytes.

`hurt(data, path)` draws one from hypothesis and applies it; a new form is one line in `FORMS`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

ESC = "\x1b[31mred\x1b[0m\x1b]0;title\x07"
TEXTS = [
    "",
    " ",
    "abc",
    "nan",
    "010",
    "1_0",
    "1e3",
    ESC,
    "\u202etxt.exe\u2066",
    "\x00",
    "a\rb\x08\x7f\x9b",
    "\ud800",
    "<script>alert(1)</script>",
    "=1+1",
    "../../../outside",
    "{{ 7*7 }}",
    "{0.__class__}",
    "%s%n",
    "two\nlines",
    "鍵" * 400,
    "x" * 70_000,
    "１２",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**30,
    10**4300,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
]


def nested(depth: int, mapping: bool = False) -> Any:
    out: Any = 1
    for _ in range(depth):
        out = {"a": out} if mapping else [out]
    return out


ODD: list[Any] = [
    None,
    True,
    False,
    *NUMBERS,
    *TEXTS,
    [],
    {},
    [[]],
    [None],
    [1, "a", None],
    {"a": {"b": None}},
    {"": ""},
    nested(40),
    nested(300),
    nested(300, mapping=True),
    list(range(3000)),
]
values = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.lists(st.integers(), max_size=3),
)

RAW = [
    b"",
    b" ",
    b"\n",
    b"null",
    b"3",
    b'"text"',
    b"[]",
    b"{}",
    b"[1, 2",
    b"{",
    b"NaN",
    b"[" * 20_000,
    b"{a: " * 20_000,
    b'{"a":' * 20_000,
    b"- " * 20_000,
    b"9" * 5000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"\x00" * 512,
    b"\xc3\x28",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    b"<html><body>502 Bad Gateway</body></html>",
    b"PAR1PAR1",
    b"PK\x03\x04",
    b"\x89PNG\r\n",
]
YAMLS = [
    "run: [1,2]",
    "run: abc",
    "run: 5",
    "run: {}",
    "train: 0\nrun: null",
    "run: &a {limit: *a}",
    "mode: [[a]]",
    "mode: {a: b}",
    "mode: &x [*x, *x]",
    "&a [*a]",
    "&a {a: *a}",
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "1: 2\nrun: {limit: 1}",
    "run: {limit: 1}\n2: x",
    "? [a, b]\n: c",
    "!!python/object/apply:os.system [touch pwned]",
    "limit: !!python/name:os.system",
    "\tmode: lcf",
    "a: b: c",
    "--- a\n--- b",
    "limit: 010",
    "limit: 0o10",
    "limit: 1_0",
    "limit: 1:30",
    "limit: 3\nlimit: 4",
    "limit: .nan",
    "limit: .inf",
    "limit: 1e400",
    "limit: " + "9" * 5000,
    "limit: 2020-01-01",
    "limit: 2020-99-99",
    "limit: !!int abc",
    "limit: !!float x",
    "limit: !!binary '!'",
    "limit: !unknown 3",
    "limit: !function nosuch.thing",
    "limit: !include x",
    "<<: 5",
    "<<: {limit: 3}",
    "<<: [*a]",
    'mode: "\\u001b[31mred"',
    'task: "\\u202etxt"',
    "'",
    "*a",
    "=: 1",
    "%YAML 9.9\n---\na: 1",
    "{}: {}",
    "mode: yes",
    "seed: on",
    "pair: a",
    "pair: 'a:b:c'",
    "pair: ':'",
    "options: [a]",
    "options: {a: {b: c}}",
    "options: null",
    "adapter: [null]",
    "adapter: 5",
    "task: [splitfacts, splitfacts]",
    "control: [[]]",
    "limit: 0",
    "limit: true",
    "seeds: [1, one]",
    "seeds: abc",
    "out: [a]",
    "dtype: int8",
    "device: cpu:99",
    "device: tpu",
]


# -- trees: YAML and JSON ----------------------------------------------------------------------------


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all nodes below the root."""
    found: list[tuple[Any, ...]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(*at, key), *places(value, (*at, key))]
    return found


def change_tree(data: st.DataObject, tree: Any) -> tuple[Any, str]:
    """Drops, replaces, renames, doubles or nests one node of a tree."""
    where = places(tree)
    if not where:
        return data.draw(values), "root"
    # first the level (a long list of leaves must not hide the keys at the top), then the node
    depth = data.draw(st.sampled_from(sorted({len(w) for w in where})))
    path = data.draw(st.sampled_from([w for w in where if len(w) == depth]))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    key, how = (
        path[-1],
        data.draw(st.sampled_from(["replace", "drop", "replace", "rename", "nest", "double"])),
    )
    if how == "replace":
        parent[key] = data.draw(values)
    elif how == "drop":
        del parent[key]
    elif how == "nest":
        parent[key] = data.draw(st.sampled_from([[parent[key]], {"a": parent[key]}]))
    elif isinstance(parent, list):
        parent.append(parent[key])
    else:
        value = parent[key] if how == "double" else parent.pop(key)
        parent[data.draw(st.sampled_from([*TEXTS, f"{key} "]))] = value
    return tree, f"{how} {'.'.join(map(str, path))[:80]}"


def json_text(tree: Any) -> str:
    return json.dumps(tree, default=str, ensure_ascii=True)


def change_json(data: st.DataObject, path: Path) -> str:
    tree, how = change_tree(data, json.loads(path.read_text()))
    path.write_text(json_text(tree))
    return how


def change_lines(data: st.DataObject, path: Path) -> str:
    """One line of a journal."""
    lines = path.read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    how = data.draw(st.sampled_from(["tree", "tree", "raw", "double", "drop", "tear"]))
    if how == "tree":
        tree, what = change_tree(data, json.loads(lines[at]))
        lines[at] = json_text(tree)
        how = f"line {at}: {what}"
    elif how == "raw":
        lines[at] = data.draw(st.sampled_from(RAW)).decode(errors="surrogateescape")
    elif how == "double":
        lines.append(lines[at])
    elif how == "drop":
        del lines[at]
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    path.write_bytes("".join(line + "\n" for line in lines).encode(errors="surrogateescape"))
    return how


class Loader(yaml.SafeLoader):
    """Keeps `!function` as it is written."""


class Function(str):
    pass


Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))
yaml.SafeDumper.add_representer(
    Function, lambda dumper, text: dumper.represent_scalar("!function", str(text))
)


def change_yaml(data: st.DataObject, path: Path) -> str:
    how = data.draw(st.sampled_from(["tree", "line", "document", "twice"]))
    text = path.read_text()
    if how == "tree":
        tree, how = change_tree(data, yaml.load(text, Loader))
        new = _yaml_text(tree)
    else:
        lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
        line = data.draw(st.sampled_from(YAMLS))
        key = line.partition(":")[0]
        if how == "document":
            new = line
        elif how == "twice":
            new = text + data.draw(st.sampled_from(lines)) + "\n"
        else:  # the line stands in place of that key's own
            new = "\n".join([*(x for x in text.splitlines() if not x.startswith(f"{key}:")), line])
        how = f"{how} {line[:60]!r}"
    path.write_text(new, errors="replace")
    return how


def _yaml_text(tree: Any) -> str:
    try:
        return yaml.safe_dump(tree, sort_keys=False)
    except (ValueError, yaml.YAMLError, RecursionError):  # a number too long, say: JSON is YAML too
        return json_text(tree) if not isinstance(tree, int) else "9" * 5000


# -- tables and tensors ------------------------------------------------------------------------------


def change_parquet(data: st.DataObject, path: Path) -> str:
    table = pq.ParquetFile(path).read()
    name = data.draw(st.sampled_from(table.column_names))
    at, n = table.column_names.index(name), len(table)
    how = data.draw(
        st.sampled_from(
            [
                "drop",
                "null",
                "text",
                "number",
                "nan",
                "nested",
                "rename",
                "empty",
                "double",
                "other",
                "binary",
            ]
        )
    )
    odd = {
        "null": lambda: pa.nulls(n),
        "text": lambda: pa.array([data.draw(st.sampled_from([t for t in TEXTS if t != "\ud800"]))] * n),
        "number": lambda: pa.array([data.draw(st.sampled_from([-1, 2**62, 0]))] * n),
        "nan": lambda: pa.array([data.draw(st.sampled_from(NUMBERS[-7:]))] * n, pa.float64()),
        "nested": lambda: pa.array([[{"a": 1}]] * n),
        "binary": lambda: pa.array([b"\xff\x00"] * n),
    }
    if how in odd:
        table = table.set_column(at, name, odd[how]())
    elif how == "drop":
        table = table.remove_column(at)
    elif how == "rename":
        table = table.rename_columns([*table.column_names[:at], ESC, *table.column_names[at + 1 :]])
    elif how == "empty":
        table = table.slice(0, 0)
    elif how == "double":
        table = pa.concat_tables([table, table])
    else:
        table = pa.table({"a": [1]})
    pq.write_table(table, path)
    return f"{how} {name}"


def change_tensors(data: st.DataObject, state: dict[str, Any]) -> tuple[Any, str]:
    name = data.draw(st.sampled_from(sorted(state)))
    before = state[name]
    if not isinstance(before, torch.Tensor):
        state[name] = data.draw(values)
        return state, f"value {name}"
    how = data.draw(
        st.sampled_from(
            ["nan", "inf", "huge", "drop", "rename", "extra", "flat", "wide", "int", "complex", "f8"]
        )
    )
    plain = before.detach().clone()
    if how in ("nan", "inf", "huge"):
        plain = plain.float()
        plain.view(-1)[:1] = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38}[how]
        state[name] = plain.to(before.dtype) if before.dtype.is_floating_point else plain
    elif how == "drop":
        del state[name]
    elif how == "rename":
        state[data.draw(st.sampled_from([t for t in TEXTS if t != "\ud800"]))] = state.pop(name)
    elif how == "extra":
        state["extra" + ESC] = plain
    elif how == "flat":
        state[name] = plain.reshape(-1)[:1].clone()
    elif how == "wide":
        state[name] = torch.zeros(3, 5, 7)
    else:
        state[name] = plain.to(
            {"int": torch.int64, "complex": torch.complex64, "f8": torch.float8_e4m3fn}[how]
        )
    return state, f"{how} {name}"


def change_safetensors(data: st.DataObject, path: Path) -> str:
    """The tensors, or the header: a length of 8 bytes, then JSON."""
    if data.draw(st.booleans()):
        state, how = change_tensors(data, load_file(path))
        try:
            save_file(state, path, {"format": "pt"})
        except (SafetensorError, ValueError):  # complex numbers, odd names
            return f"{how} (not saved)"
        return how
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    if data.draw(st.booleans()):
        tree, how = change_tree(data, json.loads(raw[8 : 8 + length]))
        header = json_text(tree).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
        return f"header {how}"
    odd = data.draw(st.sampled_from([0, 1, 2**63, 2**64 - 1, len(raw), length + 1, 100_000_000]))
    path.write_bytes(struct.pack("<Q", odd) + raw[8:])
    return f"header length {odd}"


class Hostile:
    """A pickle that would run a program."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def change_torch(data: st.DataObject, path: Path) -> str:
    how = data.draw(st.sampled_from(["tensor", "tensor", "other", "pickle", "sparse", "meta", "key"]))
    if how == "pickle":
        path.write_bytes(data.draw(st.sampled_from([0, 2])) * b" " + pickle.dumps(Hostile()))
        return how
    state = torch.load(path, map_location="cpu", weights_only=False)
    if how == "other":
        state = data.draw(
            st.sampled_from([[], {}, 3, None, "text", [state], {"state": state}, {1: 2}, torch.ones(2)])
        )
    elif how == "key" or not all(isinstance(v, torch.Tensor) for v in state.values()):
        key = data.draw(st.sampled_from(sorted(map(str, state))))
        state[key] = data.draw(values)
        how = f"value {key}"
    elif how == "tensor":
        state, how = change_tensors(data, state)
    else:
        name = data.draw(st.sampled_from(sorted(k for k in state if state[k].dim())))
        state[name] = state[name].to_sparse() if how == "sparse" else state[name].to("meta")
        how = f"{how} {name}"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())
    return how


def change_text(data: st.DataObject, path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() or [""]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(
        st.sampled_from([*TEXTS[:11], "import nosuch", "raise SystemExit(7)", "1/0", "def"])
    )
    path.write_text("\n".join(lines), errors="replace")
    return f"line {at}"


Form = Callable[[st.DataObject, Path], str]
FORMS: dict[str, Form] = {
    ".json": change_json,
    ".jsonl": change_lines,
    ".yaml": change_yaml,
    ".parquet": change_parquet,
    ".safetensors": change_safetensors,
    ".pt": change_torch,
    ".py": change_text,
    ".jinja": change_text,
    ".txt": change_text,
    ".csv": change_text,
}


# -- bytes and places --------------------------------------------------------------------------------


def truncate(data: st.DataObject, path: Path) -> str:
    raw = path.read_bytes()
    at = data.draw(st.sampled_from([len(raw) // 2, 0, 1, 8, max(len(raw) - 1, 0), len(raw) * 9 // 10]))
    path.write_bytes(raw[:at])
    return f"at {at}"


def flip(data: st.DataObject, path: Path) -> str:
    raw = bytearray(path.read_bytes())
    drawn = random.Random(data.draw(st.integers(0, 2**32)))
    many = data.draw(st.sampled_from([1, 4, 64]))
    for _ in range(many if raw else 0):
        raw[drawn.randrange(len(raw))] ^= 1 << drawn.randrange(8)
    path.write_bytes(raw)
    return f"{many} bits"


def raw_bytes(data: st.DataObject, path: Path) -> str:
    raw = data.draw(st.one_of(st.sampled_from(RAW), st.binary(max_size=200)))
    path.write_bytes(raw)
    return repr(raw[:30])


def swap(data: st.DataObject, path: Path) -> str:
    """Another file of the world stands in its place."""
    others = sorted(p for p in path.parents[0].rglob("*") if p.is_file() and p.name != path.name)
    if not others:
        return raw_bytes(data, path)
    other = data.draw(st.sampled_from(others))
    shutil.copyfile(other, path)
    return other.name


def remove(data: st.DataObject, path: Path) -> str:
    path.unlink()
    return ""


def folder(data: st.DataObject, path: Path) -> str:
    path.unlink()
    path.mkdir()
    return ""


def link(data: st.DataObject, path: Path) -> str:
    """A link to itself, to nothing, to a folder, or to a device that is empty."""
    path.unlink()
    target = data.draw(st.sampled_from([path.name, "nothing", ".", "/dev/null"]))
    path.symlink_to(target)
    return target


def moved(data: st.DataObject, path: Path) -> str:
    """The content is good and lies behind a link."""
    other = path.with_name(f"{path.name}.real")
    path.rename(other)
    path.symlink_to(other.name)
    return ""


def extra(data: st.DataObject, path: Path) -> str:
    """A stray file beside it."""
    name = data.draw(
        st.sampled_from([f".{path.name}.1", "x.json", "y.yaml", "z.parquet", "\x1b[31m.json", "a\nb"])
    )
    path.with_name(name).write_bytes(data.draw(st.sampled_from(RAW)))
    return repr(name)


def unreadable_name(data: st.DataObject, path: Path) -> str:
    """Its name is no UTF-8."""
    os.rename(path, os.path.join(os.fsencode(path.parent), b"\xff\xfe" + os.fsencode(path.suffix)))
    return ""


PLACES: list[Form] = [truncate, flip, raw_bytes, swap, remove, folder, link, moved, extra, unreadable_name]


def hurt(data: st.DataObject, path: Path) -> str:
    """Damages a file, or one file of a folder; says how."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".png")
        by_form = sorted({p.suffix for p in files})
        suffix = data.draw(st.sampled_from(by_form))
        files = [p for p in files if p.suffix == suffix]
    target = data.draw(st.sampled_from(files))
    form = FORMS.get(target.suffix)
    ways = [*([form] * len(PLACES) if form else []), *PLACES]  # half of the cases know the form
    way = data.draw(st.sampled_from(ways))
    return f"{target.name}: {way.__name__} {way(data, target)}"

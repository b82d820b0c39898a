"""The YAML and JSON readers: the values of the core schema, and one line for every hostile text."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.parsing import load_json, load_yaml, parse_json, parse_yaml

VALUES = {
    "010": 10,
    "-010": -10,
    "+5": 5,
    "0o17": 15,
    "0x1F": 31,
    "1_0": "1_0",
    "0b11": "0b11",
    "1e3": 1000.0,
    "1.e-3": 0.001,
    "3e-4": 0.0003,
    ".5": 0.5,
    "-.inf": -math.inf,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "y": "y",
    "true": True,
    "FALSE": False,
    "tRue": "tRue",
    "~": None,
    "null": None,
    "": None,
    "nil": "nil",
    "2020-01-01": "2020-01-01",
    "12:30:45": "12:30:45",
    "190:20:30": "190:20:30",
    "=": "=",
    '"1"': "1",
    "!!str 5": "5",
    "1.2.3": "1.2.3",
}
BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
BAD = {  # text → part of the message
    "a: 1\nb: 2\na: 3": "line 3: the key a stands twice",
    "x:\n  a: 1\n  a: 1": "line 3: the key a stands twice",
    "x: [{a: 1, a: 2}]": "the key a stands twice",
    "{1: a, 1.0: b}": "stands twice",
    "{1: a, true: b}": "stands twice",
    "'a': 1\n\"a\": 2": "stands twice",
    "a: &a [*a]": "line 1: the anchor a holds itself",
    "a: &a {b: *a}": "holds itself",
    "&a {*a : 1}": "holds itself",
    "x: &x {<<: *x}": "holds itself",
    "a: &a [[[{b: [*a]}]]]": "holds itself",
    "a: *b": "undefined alias",
    BOMB: "line 6: more than 100,000 values",
    BOMB.replace("[", "{x: [").replace("]", "]}"): "more than 100,000 values",
    "[" * 20_000: "inside each other",
    "{a: " * 20_000: "inside each other",
    "- " * 20_000: "inside each other",
    "? " * 20_000: "inside each other",
    "[" * 90 + "]" * 90: "inside each other",
    "a: !!python/object/apply:os.system [id]": "the tag !!python/object/apply:os.system is not allowed",
    "a: !foo x": "the tag !foo is not allowed",
    "a: !!binary aGk=": "the tag !!binary is not allowed",
    "a: !!set {a}": "the tag !!set is not allowed",
    "a: !!timestamp x": "the tag !!timestamp is not allowed",
    "a: !!int x": "no whole number",
    "a: !!int [1]": "needs a text",
    "a: !!float {a: 1}": "needs a text",
    "a: !!bool foo": "neither true nor false",
    "a: 9223372036854775808": "more than 63 bits",
    f"a: {'9' * 5000}": "more than 63 bits",
    f"a: 0x{'f' * 5000}": "more than 63 bits",
    "a: 1e999": "too large",
    "[a]: 1": "a key is a list or a mapping",
    "{a: 1}: 2": "a key is a list or a mapping",
    "a: 1\n---\nb: 2": "line 2: but found another document",
    "a\x00b": "'\\x00' is not allowed",
    "a: 1\nb: \x1b[31m": "line 2: the character '\\x1b' is not allowed",
    "a:\n\t- 1": "line 2: found character",
    'a: "\\ud800"': "half a character",
    'a: "\\UFFFFFFFF"': "not valid YAML",
    "%YAML 2.0\n---\na: 1": "incompatible YAML",
    f"%YAML {'9' * 5000}.1\n---\na: 1": "not valid YAML",
    "a: b: c": "mapping values",
    "a: 'x": "end of stream",
    "<<: 5": "merging",
}


@pytest.mark.parametrize("text", VALUES)
def test_scalars_follow_the_core_schema(text):
    found = parse_yaml(f"a: {text}", "f")["a"]
    assert found == VALUES[text] and type(found) is type(VALUES[text])


def test_other_texts_that_are_fine():
    assert math.isnan(parse_yaml("a: .nan", "f")["a"])
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}", "f")["y"] == {"a": 3, "b": 2}
    assert parse_yaml("a: &a [1]\nb: [*a, *a]", "f")["b"] == [[1], [1]]
    assert parse_yaml("yes: 1\non: 2", "f") == {"yes": 1, "on": 2}
    assert parse_yaml("", "f") is None


@pytest.mark.parametrize("text", BAD)
def test_a_bad_text_is_one_line(text):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "recipe mine.yaml")
    assert BAD[text] in str(caught.value) and str(caught.value).startswith("recipe mine.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_tag_is_allowed_where_it_is_named():
    def upper(text):
        if not text:
            raise ValueError("names nothing")
        return text.upper()

    assert parse_yaml("a: !function x.y", "f", {"!function": upper}) == {"a": "X.Y"}
    for text in ("a: !function [x]", "a: !function {a: 1}", "a:\n - !function ''"):
        with pytest.raises(UserError, match=r"needs a text|line 2: names nothing"):
            parse_yaml(text, "f", {"!function": upper})
    with pytest.raises(UserError, match="not allowed"):
        parse_yaml("a: !function x", "f")


FILES = {
    "list": (b"- 1", "not a mapping"),
    "scalar": (b"5", "not a mapping"),
    "latin": (b"a: \xff", "not UTF-8"),
    "utf16": ("a: 1".encode("utf-16"), "not UTF-8"),
    "number": (b"1: a", "has the key 1"),
    "null": (b"~: a", "has the key None"),
    "large": (b"#" * (2 << 20), "more than 1 MB"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line(tmp_path, name):
    path = tmp_path / "mine.yaml"
    path.write_bytes(FILES[name][0])
    with pytest.raises(UserError, match=FILES[name][1]) as caught:
        load_yaml(path, "recipe")
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, says in {
        tmp_path: "is a folder",
        tmp_path / "pipe": "no regular file",
        Path("/dev/zero"): "no regular file",
        tmp_path / "loop": "cannot be read",
        tmp_path / "none": "cannot be read",
        tmp_path / ("x" * 300): "cannot be read",
        tmp_path / "a\0b": "cannot be read",
    }.items():
        for load in (load_yaml, load_json):
            with pytest.raises(UserError, match=says):
                load(path, "recipe")


def test_a_byte_order_mark_and_an_empty_file_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    (tmp_path / "b.yaml").write_bytes(b"# nothing")
    assert load_yaml(tmp_path / "a.yaml", "recipe") == {"a": 1}
    assert load_yaml(tmp_path / "b.yaml", "recipe") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "NaN",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        '[{"b": {"a": 1, "a": 1}}]',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        b"\xff",
        b"\x00",
        "{'a': 1}",
    ],
)
def test_bad_json_is_one_line(text):
    with pytest.raises(UserError, match=r"^config mine\.json") as caught:
        parse_json(text, "config mine.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_json_that_is_no_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        load_json(tmp_path / "a.json", "config")
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, null]}')
    assert load_json(tmp_path / "a.json", "config") == {"a": [1, 2.5, None]}

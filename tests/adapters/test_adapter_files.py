"""Adapter files that were cut, edited or swapped: each is one line with the next step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcfbench.adapters.base import build
from lcfbench.adapters.config import CARD, CONFIG, WEIGHTS, pair_config, read_config
from lcfbench.adapters.files import load, making, save, stored_dtype
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry

PRUNED = {"adapter": "a", "task": "t", "metric": "acc", "documents": 4, "kept": [1], "dropped": {}}
PAIR = ("a", Geometry(layers=4, kv_heads=2, head_dim=8)), ("b", Geometry(layers=3, kv_heads=1, head_dim=16))


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = pair_config("lcfx", *PAIR, options={"width": 4, "standardise": True, "gate": "soft"})
    save(build(config), tmp_path / "adapter", "# card")
    return tmp_path / "adapter"


def one_line(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value) and error.value.next_step and str(folder) in error.value.what
    return error.value.what


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        place = config
        *way, last = name.split("__")
        for step in way:
            place = place[step]
        place[last] = value
    (folder / CONFIG).write_text(json.dumps(config))


def change_weights(folder: Path, **changes: object) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name, value in changes.items():
        tensors.pop(name, None)
        if isinstance(value, torch.Tensor):
            tensors[name] = value
    save_file(tensors, folder / WEIGHTS)


def test_a_whole_one_loads_as_it_was_saved(folder):
    assert load(folder).config == read_config(folder) and stored_dtype(folder) is torch.bfloat16
    save(load(folder), folder.with_name("wide"), "", dtype=torch.float32)
    assert stored_dtype(folder.with_name("wide")) is torch.float32
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, load(folder.with_name("wide")).state_dict()[name])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.01])
def test_truncated_or_lengthened_weights(folder, share):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((data + b"\0" * len(data))[: int(share * len(data))])
    assert "is truncated or no safetensors file" in one_line(folder)


def test_what_stands_in_for_weights(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "git-lfs pointer" in one_line(folder)
    (folder / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    assert "is truncated or no safetensors file" in one_line(folder)
    (folder / WEIGHTS).unlink()
    assert f"has no {WEIGHTS}" in one_line(folder)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("up_key", None, "does not match its config"),
        ("mood", torch.ones(2), "does not match its config"),
        ("up_key", torch.zeros(4, 2, 17), "does not match its config"),
        ("up_key", torch.full((4, 2, 16), math.nan), "up_key holds NaN"),
        ("receiver_scale", torch.full((4, 1, 32), math.inf), "receiver_scale holds NaN, infinity"),
        ("gate_logit", torch.tensor([[0.0, -math.inf]] * 4), "gate_logit holds NaN, infinity"),
        ("up_key", torch.zeros(4, 2, 16, dtype=torch.int8), "no floating-point numbers"),
    ],
)
def test_changed_tensors(folder, name, value, says):
    change_weights(folder, **{name: value})
    assert says in one_line(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "has format 2; this version reads up to 1"),
        ({"format": 10**30}, "has format beyond count"),
        ({"format": "1"}, "format is '1', not a version number"),
        ({"format": None}, "not a version number"),
        ({"format": 1.5}, "not a version number"),
        ({"format": True}, "not a version number"),
        ({"format": -1}, "not a version number"),
        ({"receiver_geometry__head_dim": 16}, "does not match its config"),
        ({"sharer_geometry__kv_heads": 2}, "does not match its config"),
        ({"receiver_geometry__head_dim": -8}, "receiver_geometry has head_dim -8"),
        ({"receiver_geometry__layers": 0}, "receiver_geometry has layers 0"),
        ({"receiver_geometry__head_dim": 10**18}, "receiver_geometry has head_dim"),
        ({"receiver_geometry__head_dim": "wide"}, "receiver_geometry.head_dim"),
        ({"receiver_geometry": None}, "receiver_geometry"),
        ({"layers": [0, 1, 2]}, "layers names 3 layers, layer_map 4"),
        ({"layer_map": []}, "layers names 4 layers, layer_map 0"),
        ({"layers": [0, 1], "layer_map": [0, 0]}, "does not match its config"),
        ({"layers": [0, 1, 2, 4]}, "layers names layer 4 of a model with 4"),
        ({"layers": [-1, 1, 2, 3]}, "layers names layer -1"),
        ({"layers": [0, 0, 2, 3]}, "layers names a layer twice"),
        ({"layer_map": [0, 1, 2, 3]}, "layer_map names layer 3 of a model with 3"),
        ({"layer_map": [0, 1, 2, 10**30]}, "layer_map"),
        ({"layers": "0123"}, "layers"),
        ({"kind": "telepathy"}, "unknown kind 'telepathy'"),
        ({"kind": "../base"}, "unknown kind"),
        ({"kind": 3}, "kind: "),
        ({"mood": "good"}, "mood: "),
        ({"training": {"dev": [1]}}, "training.dev"),
        ({"training": {"results": [1]}}, "training.results"),
        ({"training": {"results": "x"}}, "training.results"),
        ({"training": {"beside": [1]}}, "training.beside"),
        ({"training": {"contexts": True}}, "training.contexts"),
        ({"training": {"notes": [1]}}, "training.notes"),
        ({"token_alignment": "telepathic"}, "token_alignment: "),
        ({"options__width": 8}, "does not match its config"),
        ({"options__width": -2}, "option width=-2"),
        ({"options__width": 10**12}, "option width="),
        ({"options__width": 10**30}, "option width="),
        ({"options__width": "4"}, "option width=4"),
        ({"options__width": 4.0}, "option width=4.0"),
        ({"options__standardise": "yes"}, "option standardise=yes"),
        ({"options__gate": "ajar"}, "option gate=ajar"),
        ({"options__gate_init": "much"}, "option gate_init=much"),
        ({"options__gate_init": math.nan}, "NaN is not a number of JSON"),
        ({"options": [1]}, "options: "),
        ({"training": {"tasks": 5}}, "training.tasks is not a list"),
        ({"training": {"pruned": "yes"}}, "training.pruned is not a dict"),
        ({"training": {"pruned": {"a": 1}}}, "training.pruned names no adapter"),
        ({"training": {"pruned": PRUNED | {"kept": 3}}}, "training.pruned has no number of documents"),
        ({"training": {"pruned": PRUNED | {"dropped": {"shut": 1}}}}, "training.pruned has no lists"),
        (
            {"training": {"pruned": PRUNED | {"whole": {"params": "x"}}}},
            "training.pruned has no sizes of the whole",
        ),
        ({"training": {"pruned": PRUNED}}, "training.pruned has no sizes of the whole"),
        ({"remap_padding": "counted"}, "remap_padding is counted"),
        ({"remap_padding": "counted", "token_alignment": "same"}, "remap_padding is counted"),
    ],
    ids=lambda x: json.dumps(x)[:50] if isinstance(x, dict) else "",
)
def test_changed_configs(folder, changes, says):
    change_config(folder, **changes)
    with pytest.raises(UserError) as error:
        load(folder)
    assert (
        any(word in str(error.value) for word in says.split("|"))
        and "\n" not in str(error.value)
        and error.value.next_step
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((text, "is not a valid adapter config") for text in ("[]", "3", "null", '"adapter"', "\ufeff{}")),
        *((text, "is not valid JSON") for text in ("", "{", '{"format": ' + "9" * 5000 + "}", "{'a': 1}")),
        *((text, "is not valid JSON") for text in ('{"a": 1, "a": 2}', '{"a": -Infinity}', '{"a": 1e999}')),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 50_000, "is nested too deeply"),
        ("\udcff\udcfe{}", "is not UTF-8 text"),
    ],
    ids=range(15),
)
def test_configs_that_are_no_config(folder, text, says):
    (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    assert says in one_line(folder)


def test_a_future_version_is_told_before_anything_else_is_read(folder):
    (folder / CONFIG).write_text('{"format": 2, "kind": {"new": "form"}}')
    (folder / WEIGHTS).unlink()
    assert "has format 2; this version reads up to 1" in one_line(folder)


def test_an_adapter_is_replaced_whole_or_not_at_all(folder):
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(UserError, match="already holds"), making(folder, force=False):
        pytest.fail("must not begin")
    (folder / "log.parquet").write_text("kept")
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises((KeyboardInterrupt, OSError)), making(folder, force=True) as new:
            (new / WEIGHTS).write_text("half")
            raise error
        assert (folder / WEIGHTS).read_bytes() == before and [p.name for p in folder.parent.iterdir()] == [
            "adapter"
        ]
    with making(folder, force=True) as new:
        (new / WEIGHTS).write_text("new")
    assert (folder / WEIGHTS).read_text() == "new" and (folder / "log.parquet").read_text() == "kept"
    assert not (folder / CARD).exists(), "the old card does not describe the new weights"
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"] and folder.stat().st_mode & 0o777 == 0o755
    with pytest.raises(UserError, match="is a file"), making(folder / WEIGHTS, force=True):
        pytest.fail("must not begin")

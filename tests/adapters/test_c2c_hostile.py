"""`adapter import-c2c` on damaged and hostile checkpoints: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lcfbench.adapters.c2c_files import import_c2c, import_to
from lcfbench.adapters.config import recorded_name, recorded_names
from lcfbench.adapters.files import load
from lcfbench.errors import UserError
from tests.helpers import REFERENCE, copy_fuser

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no recorded reference at {REFERENCE}")
FUSER = REFERENCE / "fusers" / "r1+s1_Fuser"
Damage = Callable[[Path], object]


@pytest.fixture
def fuser(tmp_path) -> Path:
    return copy_fuser(FUSER, tmp_path / "fuser")


def argument(name: str, value: object, number: int | None = None) -> Damage:
    """Sets one setting of a projector, or of all."""

    def damage(folder: Path) -> None:
        for i in range(6) if number is None else [number]:
            path = folder / "final" / f"projector_{i}.json"
            raw = json.loads(path.read_text())
            raw["init_args"][name] = value
            path.write_text(json.dumps(raw))

    return damage


def text(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def layers(mapping: object) -> Damage:
    return text("final/projector_config.json", json.dumps({"0": {"1": mapping}}))


def model(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        raw["model"] |= changes
        (folder / "config.json").write_text(json.dumps(raw))

    return damage


def tensors(change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "final" / "projector_2.pt"
        state = torch.load(path)
        torch.save(out if (out := change(state)) is not None else state, path)

    return damage


def tensor(name: str, change: Callable[[torch.Tensor], object]) -> Damage:
    def change_one(state: dict) -> dict:
        return {**state, name: change(state[name])}

    return tensors(change_one)


def link(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        if target == "same":
            shutil.copyfile(folder / name, outside / "file")
        (folder / name).unlink()
        (folder / name).symlink_to(outside / "file" if target == "same" else target)

    return damage


class Code:
    def __reduce__(self):
        return os.system, ("touch /tmp/lcfbench-code-ran",)


def bomb(folder: Path) -> None:
    path = folder / "final" / "projector_2.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("projector_2/data.pkl", b"\0" * (64 << 20))


def renamed(folder: Path) -> None:
    (folder / "final" / "projector_2.pt").rename(folder / "final" / "Projector_2.pt")


GOOD = {str(i): [[max(i - 2, 0), i]] for i in range(6)}
DAMAGES: dict[str, Damage] = {
    **{f"dropout {v!r}": argument("dropout", v) for v in (None, "x", [], {}, True, -0.1, 1.5, 10**400)},
    **{f"hidden_dim {v!r}": argument("hidden_dim", v) for v in (0, -4, 10**15, 1.5, None, "32", True, [])},
    **{f"intermediate_dim {v!r}": argument("intermediate_dim", v) for v in (0, -1, 2**63, 1 << 20)},
    **{f"num_layers {v!r}": argument("num_layers", v) for v in (0, 1, 2, -3, 10**9, "3")},
    **{
        f"{k} 0": argument(k, 0) for k in ("source_dim", "target_dim", "source_num_heads", "target_num_heads")
    },
    **{f"{k} huge": argument(k, 10**18) for k in ("source_dim", "target_dim", "source_num_heads")},
    "one of another size": argument("hidden_dim", 64, 3),
    "dropout missing class": text("final/projector_1.json", '{"class": "Other", "init_args": {}}'),
    "nan constant": text(
        "final/projector_1.json", '{"class": "C2CProjector", "init_args": {"dropout": NaN}}'
    ),
    **{
        f"layer {k!r}": layers({**GOOD, k: [[0, 0]]})
        for k in ("100000000000", "-1", "9" * 30, "x", "1.5", "")
    },
    **{
        f"sharer layer {v!r}": layers({**GOOD, "3": [[v, 3]]}) for v in (10**11, -1, 1.5, None, True, "x", [])
    },
    **{f"projector {v!r}": layers({**GOOD, "3": [[1, v]]}) for v in (10**11, -1, 1.5, None, 99)},
    "layer twice": layers({**GOOD, "03": [[0, 0]]}),
    "layer twice as text": text(
        "final/projector_config.json", '{"0": {"1": {"0": [[0, 0]], "0": [[0, 1]]}}}'
    ),
    "two sharers a layer": layers({**GOOD, "3": [[1, 3], [2, 3]]}),
    "no sharer layer": layers({**GOOD, "3": []}),
    "no layers": layers({}),
    "layers a list": layers([1, 2]),
    "a second sharer": text("final/projector_config.json", json.dumps({"0": {"1": GOOD, "2": GOOD}})),
    "another receiver": text("final/projector_config.json", json.dumps({"1": {"0": GOOD}})),
    **{
        f"{name} {kind}": text(name, content)
        for name in ("config.json", "final/projector_config.json", "final/projector_4.json")
        for kind, content in {
            "a list": "[1, 2]",
            "null": "null",
            "a number": "7",
            "empty": "",
            "half": '{"model": ',
            "NaN": '{"model": NaN}',
            "deep": "[" * 100_000,
            "deep objects": '{"a":' * 100_000,
            "huge number": '{"model": ' + "9" * 10_000 + "}",
            "no text": b"\xff\xfe\x00\x01",
            "twice": '{"model": {}, "model": {}}',
            "an object of nothing": "{}",
        }.items()
    },
    **{f"is_do_alignment {v!r}": model(is_do_alignment=v) for v in ("false", 1, None, [])},
    **{
        f"strategy {v!r}": model(is_do_alignment=True, alignment_strategy=v)
        for v in ("best", None, [], "FIRST")
    },
    **{f"base_model {v!r}": model(base_model=v) for v in (None, 3, [], "", "  ")},
    "include_response": model(include_response=True),
    "model a list": text("config.json", '{"model": [1]}'),
    "value a string": tensor("key_in.weight", lambda t: "x"),
    "value a list": tensor("key_in.weight", lambda t: t.tolist()),
    "value None": tensor("key_gate_logit", lambda t: None),
    "value a float": tensor("key_gate_logit", float),
    "sparse": tensor("key_in.weight", lambda t: t.to_sparse()),
    "sparse rows": tensor("key_in.weight", lambda t: t.to_sparse_csr()),
    "quantized": tensor("key_in.weight", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "meta": tensor("key_in.weight", lambda t: t.to("meta")),
    **{
        str(dtype): tensor("key_in.weight", lambda t, d=dtype: t.to(d))
        for dtype in (torch.complex64, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn)
    },
    **{
        f"{name} {value}": tensor(name, lambda t, v=value: torch.full_like(t, v))
        for name in ("key_in.weight", "value_proj_out.bias", "key_gate_logit", "gate_temperature")
        for value in (float("nan"), float("inf"), -float("inf"))
    },
    "huge": tensor("key_in.weight", lambda t: t * 1e30),
    "float64 beyond": tensor("key_in.weight", lambda t: t.double() * 1e300),
    "missing": tensors(lambda s: {k: t for k, t in s.items() if k != "key_in.weight"}),
    "extra": tensors(lambda s: s.update(more=torch.zeros(1))),
    "renamed": tensors(lambda s: s.update({"key_In.weight": s.pop("key_in.weight")})),
    "number as a key": tensors(lambda s: s.update({7: torch.zeros(1)})),
    "wrong shape": tensor("key_in.weight", lambda t: t[:, :-1].clone()),
    "transposed": tensor("key_in.weight", lambda t: t.T.clone()),
    "stretched": tensor("key_in.weight", lambda t: torch.zeros(1).expand(1 << 40)),
    "empty": tensor("key_in.weight", lambda t: t[:0].clone()),
    "a tensor alone": tensors(lambda s: s["key_in.weight"]),
    "a list": tensors(lambda s: list(s.values())),
    "code": tensors(lambda s: {**s, "more": Code()}),
    "code alone": tensors(lambda s: Code()),
    "truncated": lambda f: text("final/projector_2.pt", (FUSER / "final/projector_2.pt").read_bytes()[:5000])(
        f
    ),
    "first byte": text("final/projector_2.pt", b"P"),
    "no bytes": text("final/projector_2.pt", b""),
    "text": text("final/projector_2.pt", "version https://git-lfs.github.com/spec/v1\n"),
    "zip of nothing": text("final/projector_2.pt", b"PK\x05\x06" + b"\0" * 18),
    "bomb": bomb,
    "too large": lambda f: os.truncate(f / "final/projector_2.pt", 1 << 32),
    "other case": renamed,
    "a folder": lambda f: ((f / "final/projector_2.pt").unlink(), (f / "final/projector_2.pt").mkdir()),
    "config a folder": lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
    **{
        f"{name} linked out": link(name, "same")
        for name in (
            "config.json",
            "final/projector_config.json",
            "final/projector_2.json",
            "final/projector_2.pt",
        )
    },
    "link to a device": link("final/projector_2.pt", "/dev/zero"),
    "link to nothing": link("final/projector_2.pt", "nowhere"),
    "link to itself": link("final/projector_2.pt", "projector_2.pt"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line(name, fuser, tmp_path):
    DAMAGES[name](fuser)
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        import_to(str(fuser), out)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    assert not Path("/tmp/lcfbench-code-ran").exists()


@pytest.mark.parametrize(
    "name", ["dropout None", "sparse", "layer '100000000000'", "config.json deep", "code"]
)
def test_the_command_ends_with_2_and_keeps_what_stands_in_out(name, fuser, tmp_path, monkeypatch, capsys):
    from lcfbench.cli.app import main  # without handlers of signals

    out = tmp_path / "out"
    import_to(str(FUSER), out, dtype=torch.float32)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    DAMAGES[name](fuser)
    monkeypatch.setattr(
        "sys.argv", ["lcfbench", "adapter", "import-c2c", str(fuser), "--out", str(out), "--force"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and "fuser" in said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_snapshot_s_links_to_its_blobs_are_followed(fuser, tmp_path):
    hub = tmp_path / "models--a--b"
    home = hub / "snapshots" / "c0ffee"
    home.parent.mkdir(parents=True)
    fuser.rename(home)
    (hub / "blobs").mkdir()
    path = home / "final" / "projector_2.pt"
    path.rename(hub / "blobs" / "abc")
    path.symlink_to("../../../blobs/abc")
    assert import_c2c(home).config.kind == "c2c"


def test_a_recipe_without_strategy_means_the_first_token(fuser):
    raw = json.loads((fuser / "config.json").read_text())
    raw["model"].pop("alignment_strategy", None)
    (fuser / "config.json").write_text(json.dumps(raw))
    model(is_do_alignment=True)(fuser)
    config = import_c2c(fuser).config
    assert (config.remap_strategy, config.remap_padding) == ("first", "counted")


def test_no_place_on_this_machine_is_recorded(fuser, tmp_path):
    model(base_model=str(tmp_path / "mine" / "r1"), teacher_model=f"{tmp_path}/s1/")(fuser)
    out = tmp_path / "out"
    config = import_to(str(fuser), out, dtype=torch.float32).config
    assert config.pair == ("r1", "s1")
    assert not any(str(tmp_path).encode() in p.read_bytes() for p in out.iterdir())


def test_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
    assert recorded_name("smollm2-135m") == "smollm2-135m" and recorded_name("org/name") == "org/name"
    for place in ("a/model", "./a/model", f"{tmp_path}/a/model", "a/../a/model/"):
        assert recorded_name(place) == "model"
    one, two = recorded_names(("a/model", "b/model"))
    assert one == "model" and two.startswith("model-") and two != one
    assert recorded_names((f"{tmp_path}/a/model", "./b/model")) == (one, two)
    assert recorded_names(("a/model", "a/model")) == ("model", "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e7])
@pytest.mark.parametrize("name", ["in_weight", "out_bias", "trunk.up"])
def test_weights_that_cannot_be_right_are_refused_at_load(name, value, tmp_path):
    from safetensors.torch import load_file, save_file

    import_to(str(FUSER), tmp_path / "out", dtype=torch.float32)
    path = tmp_path / "out" / "adapter.safetensors"
    state = load_file(path)
    state[name].view(-1)[3] = value
    save_file(state, path)
    with pytest.raises(UserError, match=rf"adapter\.safetensors: {name} holds"):
        load(tmp_path / "out")


def test_overflow_in_the_run_s_dtype_names_the_tensor(tmp_path):
    from safetensors.torch import load_file, save_file

    import_to(str(FUSER), tmp_path / "out", dtype=torch.float32)
    path = tmp_path / "out" / "adapter.safetensors"
    state = load_file(path)
    state["out_bias"].view(-1)[3] = 1e5
    save_file(state, path)
    load(tmp_path / "out", dtype=torch.bfloat16)
    with pytest.raises(UserError, match="out_bias overflows in float16"):
        load(tmp_path / "out", dtype=torch.float16)

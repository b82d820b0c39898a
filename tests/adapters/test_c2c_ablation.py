"""C2C's ablations, its shut layers computed all the same, and where released fusers come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lcfbench.adapters import c2c_files as importing
from lcfbench.adapters.base import build
from lcfbench.adapters.c2c import ABLATIONS, C2CAdapter
from lcfbench.adapters.config import pair_config, read_config
from lcfbench.adapters.files import load, save
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models.timing import Clock
from lcfbench.sources import c2c_fusers as fusers
from lcfbench.sources import hub
from lcfbench.sources.c2c_fusers import find_fuser, lacks
from tests import helpers
from tests.helpers import BESIDE, SHARED, copy_fuser

R, S = Geometry(layers=3, kv_heads=2, head_dim=8), Geometry(layers=2, kv_heads=1, head_dim=16)
REFERENCE = BESIDE / "fixtures" / "c2c_reference"
RELEASED = REFERENCE / "fusers" / "r1+s1_Fuser"
fixtures = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no recorded reference at {REFERENCE}")


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


def made(ablation: str = "none", **options) -> C2CAdapter:
    torch.manual_seed(3)
    adapter = build(
        pair_config(
            "c2c",
            ("r", R),
            ("s", S),
            options={"hidden": 12, "intermediate": 10, "ablation": ablation, **options},
        )
    )
    assert isinstance(adapter, C2CAdapter)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.2 * torch.randn_like(p))
        adapter.gate_logit.fill_(1.0)
    return adapter


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 5, 32, generator=g), *(torch.randn(3, 2, 2, 5, 8, generator=g) for _ in range(2))


# -- ablations ------------------------------------------------------------------------------------


def test_each_level_leaves_its_weights_out():
    h, i, s, t, heads, L = 1024, 1024, 128, 1024, 8, 28
    whole = 2 * (
        (s + t + 1) * h + 2 * (h + 2 * h * i) + (h + 2 * h * h) + (h * heads + heads) + (h * t + t) + 1
    )
    head = 2 * ((h + 2 * h * h) + (h * heads + heads))
    expected = {
        "none": whole,
        "no-heads": whole - head,
        "no-gate": whole - head - 2,
        "projection": whole - head - 2 - 2 * t * h,
    }
    sizes = {}
    for ablation in ABLATIONS:
        names = (
            ("r", Geometry(layers=L, kv_heads=heads, head_dim=128)),
            ("s", Geometry(layers=24, kv_heads=2, head_dim=64)),
        )
        with torch.device("meta"):
            sizes[ablation] = build(pair_config("c2c", *names, options={"ablation": ablation})).params
    assert sizes == {name: L * count for name, count in expected.items()}
    assert not any("scale" in name or "head" in name for name in made("no-heads").state_dict())
    assert "gate_logit" not in dict(made("no-gate").named_parameters())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_each_level_computes_what_it_says(mode):
    sent, keys, values = inputs()
    whole = made("none", dropout=0.0, gate="hard").train(mode == "train")
    state = whole.state_dict()
    # all head weights one: no-heads
    whole.load_state_dict(
        state
        | {
            "head_weight": torch.zeros_like(state["head_weight"]),
            "head_bias": torch.full_like(state["head_bias"], 99.0),
        }
    )
    expected = whole(sent, keys, values)
    less = made("no-heads", dropout=0.0, gate="hard").train(mode == "train")
    less.load_state_dict({k: state[k] for k in less.state_dict()})
    bare = made("no-gate", dropout=0.0).train(mode == "train")
    bare.load_state_dict({k: state[k] for k in bare.state_dict()} | {"gate_logit": torch.ones(3, 2)})
    for x, y, z in zip(expected, less(sent, keys, values), bare(sent, keys, values), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(x, z, atol=1e-6, rtol=1e-6)
    # a gate still shuts no-heads
    less.gate_logit.data.fill_(-1.0)
    assert torch.equal(less(sent, keys, values)[0], keys)
    # projection: the edit itself, with the receiver's columns of the input cut off
    alone = made("projection", dropout=0.0).train(mode == "train")
    alone.load_state_dict(
        {k: state[k] for k in alone.state_dict()}
        | {"in_weight": state["in_weight"][:, :, :16], "gate_logit": torch.ones(3, 2)}
    )
    cut = dict(state) | {"in_weight": state["in_weight"].clone(), "gate_logit": torch.ones(3, 2)}
    cut["in_weight"][:, :, 16:] = 0.0
    bare.load_state_dict({k: cut[k] for k in bare.state_dict()})
    for own, fused, projected in zip(
        (keys, values), bare(sent, keys, values), alone(sent, keys, values), strict=True
    ):
        torch.testing.assert_close(projected, fused - own, atol=1e-5, rtol=1e-5)
    other = alone(sent, keys + 5.0, values - 3.0)
    assert all(torch.equal(a, b) for a, b in zip(other, alone(sent, keys, values), strict=True))


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_level_trains_saves_loads_and_is_pruned(ablation, tmp_path):
    sent, keys, values = inputs()
    adapter = made(ablation, dropout=0.0).train()
    out = adapter(sent, keys, values)
    (out[0].square().mean() + out[1].square().mean()).backward()
    for name, p in adapter.named_parameters():
        assert p.grad is not None and bool(p.grad.abs().sum() > 0), name
    adapter.eval()
    save(adapter, tmp_path / "a", "card", torch.float32)
    again = load(tmp_path / "a")
    assert read_config(tmp_path / "a").options["ablation"] == ablation and again.params == adapter.params
    with torch.no_grad():
        for x, y in zip(adapter(sent, keys, values), again(sent, keys, values), strict=True):
            assert torch.equal(x, y)
        assert again.open_layers() == [0, 1, 2]
        fewer = again.select([0, 2])
        assert fewer.params * 3 == again.params * 2
        for x, y in zip(
            fewer(sent[[0, 2]], keys[[0, 2]], values[[0, 2]]), again(sent, keys, values), strict=True
        ):
            torch.testing.assert_close(x, y[[0, 2]])


def test_an_unknown_ablation_is_named():
    with pytest.raises(UserError, match="no-gate"):
        made("no-gates")


def test_the_whole_fuser_is_initialised_as_before():
    """A seed gives the weights it gave before there were ablations."""
    torch.manual_seed(0)
    a = build(pair_config("c2c", ("r", R), ("s", S), options={"hidden": 12, "intermediate": 10}))
    assert [n for n, _ in a.named_parameters()][:4] == ["gate_logit", "in_weight", "in_bias", "head_weight"]
    torch.manual_seed(0)
    first = torch.empty(6, 32, 12).uniform_(-1 / 32**0.5, 1 / 32**0.5)
    assert torch.equal(a.in_weight.flatten(0, 1), first)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_level_runs_as_a_method(ablation):
    receiver = helpers.causal_lm("tiny-a", layers=3)
    sharer = helpers.causal_lm(
        "tiny-b", bos=True, family="gemma3", layers=2, heads=1, dim=16, vocabulary=330, seed=1
    )
    method = create("c2c", receiver, sharer, made(ablation).eval().requires_grad_(False))
    with torch.no_grad():
        together = method.respond(Batch(SHARED, SHARED, Clock()))
        whole = receiver.open(together).logits
        for i, d in enumerate(SHARED):
            alone = receiver.open(method.respond(Batch([d], [d], Clock()))).logits
            torch.testing.assert_close(whole[i], alone[0], atol=5e-4, rtol=0)
    assert all(n > 0 for n in together.message.wire_bytes)


# -- shut layers ----------------------------------------------------------------------------------


def test_shut_layers_retained_give_the_same_bits():
    receiver = helpers.causal_lm("tiny-a", layers=3)
    sharer = helpers.causal_lm(
        "tiny-b", bos=True, family="gemma3", layers=2, heads=1, dim=16, vocabulary=330, seed=1
    )
    for shut in ([1], [0, 1, 2]):
        adapter = made().eval().requires_grad_(False)
        adapter.gate_logit[shut] = -1.0
        dropped = create("c2c", receiver, sharer, adapter)
        retained = create("c2c", receiver, sharer, adapter, {"closed": "retained"})
        assert (
            len(dropped.adapter.config.layers) == 3 - len(shut) and len(retained.adapter.config.layers) == 3
        )
        with torch.no_grad():
            a, b = (m.respond(Batch(SHARED, SHARED, Clock())) for m in (dropped, retained))
            assert torch.equal(a.kv.keys, b.kv.keys) and torch.equal(a.kv.values, b.kv.values)
            assert torch.equal(receiver.open(a).logits, receiver.open(b).logits)
        # what is computed is paid for: the sharer's cache crosses, and every layer's fuser runs
        assert all(x > 0 for x in b.message.wire_bytes)
        assert sum(b.message.adapter_flops) > sum(a.message.adapter_flops or [0.0])
    with pytest.raises(UserError, match="retained"):
        create("c2c", receiver, sharer, adapter, {"closed": "retain"})


@fixtures
def test_retained_layers_behave_as_the_reference():
    """The recorded fuser with a layer shut: there the reference returns the receiver's cache."""
    from tests.helpers import reference_document as document
    from tests.helpers import reference_model as lm

    receiver, sharer = lm("r1-qwen3"), lm("s1-qwen2")
    adapter = importing.import_c2c(RELEASED, ("r", receiver.geometry), ("s", sharer.geometry))
    adapter.gate_logit[2:4] = -1e-6
    documents = [document("Name one planet.", True), document("2+2?", True)]
    a, b = (
        create("c2c", receiver, sharer, adapter, {"closed": closed}).respond(
            Batch(documents, documents, Clock())
        )
        for closed in ("dropped", "retained")
    )
    alone = receiver.read(a.prompts)
    assert torch.equal(a.kv.keys, b.kv.keys) and torch.equal(a.kv.values, b.kv.values)
    assert torch.equal(b.kv.keys[2:4], alone.kv.keys[2:4]) and not torch.equal(
        b.kv.keys[:1], alone.kv.keys[:1]
    )


# -- where fusers come from -----------------------------------------------------------------------

NAME = "some-lab/Fusers/r1+s1_Fuser"


def copied(folder: Path) -> Path:
    return copy_fuser(RELEASED, folder)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No mirror, an empty Hub cache, and a Hub that may not be asked."""
    from huggingface_hub import constants

    monkeypatch.delenv("LCFBENCH_MIRROR", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def asked(*args, **more):
        raise hub.HubError("no connection (test)")

    monkeypatch.setattr(hub, "commit", asked)
    return tmp_path


@fixtures
def test_a_fuser_comes_from_a_folder_the_mirror_the_cache_or_the_hub(nowhere, monkeypatch):
    assert find_fuser(str(RELEASED)) == RELEASED
    with pytest.raises(
        UserError,
        match=r"some-lab/Fusers/r1\+s1_Fuser'\. Tried, in order: path.*LCFBENCH_MIRROR.*Hub cache: nothing.*"
        "no conn",
    ):
        find_fuser(NAME)
    mirror = copied(nowhere / "mirror" / "models" / NAME)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(nowhere / "mirror"))
    assert find_fuser(NAME) == mirror
    with pytest.raises(UserError, match=r"Name one of the fusers in it: some-lab/Fusers/r1\+s1_Fuser"):
        find_fuser("some-lab/Fusers")
    (mirror / "final" / "projector_4.pt").unlink()  # half a download is none
    assert lacks(mirror) == "no final/projector_4.pt"
    cache = nowhere / "hub" / "models--some-lab--Fusers"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    snapshot = copied(cache / "snapshots" / "abc" / "r1+s1_Fuser")
    assert find_fuser(NAME) == snapshot
    shutil.rmtree(cache)
    # the Hub itself: only this fuser's files, by commit, noted as main
    asked = {}

    def download(repo_id, revision, allow_patterns):
        asked.update(repo_id=repo_id, revision=revision, patterns=allow_patterns)
        copied(cache / "snapshots" / revision / "r1+s1_Fuser")
        return str(cache / "snapshots" / revision)

    monkeypatch.setattr(hub, "commit", lambda repo_id, kind, offline, revision="": "def")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = find_fuser(NAME)
    assert found == cache / "snapshots" / "def" / "r1+s1_Fuser"
    assert asked == {
        "repo_id": "some-lab/Fusers",
        "revision": "def",
        "patterns": ["r1+s1_Fuser/config.json", "r1+s1_Fuser/final/*", "README.md"],
    }
    asked.clear()
    assert find_fuser(NAME) == found and not asked  # the second time from the cache


def test_offline_asks_nobody(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("LCFBENCH_MIRROR", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(UserError, match="offline was asked for"):
        find_fuser(NAME, offline=True)


def test_what_can_be_no_fuser_is_named(nowhere):
    (nowhere / "empty").mkdir()
    with pytest.raises(UserError, match="not laid out"):
        find_fuser("empty")
    for name in ("nothing", "./no/such", "/no/such", "a/../b"):
        with pytest.raises(UserError, match="there is no folder"):
            find_fuser(name)
    assert fusers.lacks(nowhere / "empty") == "no config.json and 1 more missing"


@fixtures
@pytest.mark.parametrize("dtype", ["bf16", "fp32", None])
def test_the_command(nowhere, monkeypatch, capsys, dtype):
    copied(nowhere / "mirror" / "models" / NAME)
    monkeypatch.setenv("LCFBENCH_MIRROR", str(nowhere / "mirror"))
    chosen = ["--dtype", dtype] if dtype else []
    code, out, err = helpers.invoke(
        capsys, monkeypatch, "adapter", "import-c2c", NAME, "--out", "ours", *chosen
    )
    assert code == 0 and "saved ours" in out, err
    original, ours = importing.import_c2c(RELEASED), load(nowhere / "ours")
    exact = dtype == "fp32"
    assert torch.equal(ours.in_weight, original.in_weight if exact else original.in_weight.bfloat16().float())
    assert torch.equal(ours.gate_logit, original.gate_logit)
    assert json.loads((nowhere / "ours" / "config.json").read_text())["training"]["imported_from"] == NAME
    assert NAME in (nowhere / "ours" / "README.md").read_text()
    before = (nowhere / "ours" / "adapter.safetensors").read_bytes()
    code, _, err = helpers.invoke(capsys, monkeypatch, "adapter", "import-c2c", NAME, "--out", "ours")
    assert code == 2 and "--force" in err
    # what fails leaves what is there alone
    code, _, err = helpers.invoke(
        capsys, monkeypatch, "adapter", "import-c2c", "some-lab/Fusers/other", "--out", "ours", "--force"
    )
    assert (
        code == 2
        and "r1+s1_Fuser" in err
        and (nowhere / "ours" / "adapter.safetensors").read_bytes() == before
    )
    code, _, err = helpers.invoke(
        capsys, monkeypatch, "adapter", "import-c2c", NAME, "--out", "b", "--dtype", "int4"
    )
    assert code == 2 and "bf16 or fp32" in err

"""BASE+NAME: what PEFT computes is what a merged model computes; anything else is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lcfbench.adapters.config import recorded_name
from lcfbench.errors import UserError
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.tokenizers import load_tokenizers
from lcfbench.sources import taught
from lcfbench.sources.models import canonical, find_model, geometry, label, split_pair
from tests import helpers

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def lora(base: Path, out: Path, **settings) -> torch.Tensor:
    """Saves a random LoRA; returns the logits that PEFT computes with it."""
    model = helpers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(7)
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings))
    tuned = get_peft_model(model, config)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(out)
    with torch.no_grad():
        return tuned(IDS).logits


def logits(name: str, dtype: str = "float32") -> torch.Tensor:
    model = CausalLM.load(find_model(name, offline=True), dtype=dtype, device="cpu").model
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return helpers.save(tmp_path_factory.mktemp("base") / "base", layers=2)


@pytest.fixture(scope="module")
def good(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "lora"
    lora(base, folder)
    return folder


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return shutil.copytree(good, tmp_path / "lora")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": r".*layers\.1\..*proj"},
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 64}},
    ],
    ids=str,
)
def test_a_merged_model_computes_what_peft_computes(tmp_path, family, settings):
    base = helpers.save(tmp_path / "base", family=family, layers=2)
    expected = lora(base, tmp_path / "lora", **settings)
    found = logits(f"{base}+{tmp_path / 'lora'}")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - logits(str(base))).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lora_of_zeros_changes_no_bit(tmp_path, family, dtype):
    base = helpers.save(tmp_path / "base", family=family, layers=2)
    lora(base, tmp_path / "lora")
    edit(tmp_path / "lora", lambda w: {k: v * 0 if ".lora_B" in k else v for k, v in w.items()})
    assert torch.equal(logits(f"{base}+{tmp_path / 'lora'}", dtype), logits(str(base), dtype))


def test_base_and_taught_are_two_models_of_one_process(base, folder):
    pair = load_pair(f"{base}:{base}+{folder}", dtype="float32", offline=True)
    assert pair.receiver is not pair.sharer and pair.receiver.revision != pair.sharer.revision
    mine, theirs = ({p.data_ptr() for p in lm.model.parameters()} for lm in (pair.receiver, pair.sharer))
    assert not mine & theirs
    assert geometry(f"{base}+{folder}") == geometry(str(base)) == pair.sharer.geometry
    one, other = load_tokenizers(f"{base}:{base}+{folder}", offline=True)
    assert one.get_vocab() == other.get_vocab()
    assert type(pair.sharer.model) is type(pair.receiver.model)


@pytest.mark.parametrize("change", ["weights", "lora_alpha", "r"])
def test_what_changes_an_answer_changes_revision_and_label(base, folder, change):
    name = f"{base}+{folder}"
    before = find_model(name, offline=True).revision, label(name)
    if change == "weights":
        edit(folder, lambda w: {k: v * 1.5 for k, v in w.items()})
    else:
        write(folder, **{change: 3})
    after = find_model(name, offline=True).revision, label(name)
    assert before[0] != after[0] and before[1] != after[1]
    write(folder, base_model_name_or_path="elsewhere", task_type=None)
    assert (find_model(name, offline=True).revision, label(name)) == after


def test_names(base, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_pair("smollm2-135m:Gemma3-270M+planted") == ("smollm2-135m", "gemma3-270m+planted")
    assert label("gemma3-270m+planted") == recorded_name("gemma3-270m+planted") == "gemma3-270m+planted"
    assert canonical("google/gemma-3-270m+planted") == "google/gemma-3-270m+planted"
    assert taught.split("a/b+c/d") == ("a/b", "c/d") and taught.split("gemma3-270m") == ("gemma3-270m", None)
    (tmp_path / "my+model").mkdir()
    assert taught.split("my+model") == ("my+model", None)
    assert taught.split("my+model+x") == ("my+model", "x")
    shutil.copytree(folder, tmp_path / "taught" / "base+mine")
    shutil.copytree(base, tmp_path / "base")
    assert find_model("base+mine", offline=True).lora == Path("taught/base+mine")
    assert recorded_name("base+mine") == recorded_name(f"{base}+{tmp_path}/taught/base+mine") == "base+mine"
    assert label("base+mine").startswith("base@") and "+mine@" in label("base+mine")
    assert str(tmp_path) not in recorded_name(f"{base}+{folder}")


def test_a_lora_comes_from_the_mirror(base, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "mirror" / "models" / "someone" / "lora")
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path / "mirror"))
    found = find_model(f"{base}+someone/lora", offline=True)
    assert found.lora == tmp_path / "mirror" / "models" / "someone" / "lora"
    with pytest.raises(UserError, match=r"Tried, in order"):
        find_model(f"{base}+someone/other", offline=True)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gemma3-270m+plantd", "Did you mean gemma3-270m+planted"),
        ("gemma3-270m+zzz", "gemma3-270m+planted"),
        ("smollm2-135m+planted", "gemma3-270m+planted"),
        ("gemma3-270m+", "names no taught model"),
        ("gemma3-270m+./nowhere", "there is no folder ./nowhere"),
        ("nosuch+planted", "unknown model 'nosuch'"),
        ("+planted", "unknown model ''"),
        ("gemma3-270m+planted+planted", "unknown taught model"),
    ],
)
def test_a_name_that_is_not_there_lists_what_is(tmp_path, monkeypatch, name, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        split_pair(f"smollm2-135m:{name}")
    assert line in str(error.value)


def test_a_lora_alone_is_no_model(folder):
    with pytest.raises(UserError, match=r"is a LoRA, not a model.*BASE\+"):
        find_model(str(folder), offline=True)


def edit(folder: Path, change) -> None:
    path = folder / taught.WEIGHTS
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path)


def write(folder: Path, **entries) -> None:
    path = folder / taught.PEFT
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def first(weights, side):
    return next(k for k in sorted(weights) if f".lora_{side}" in k)


BAD = {
    "no config": (lambda f: (f / taught.PEFT).unlink(), "no adapter_config.json"),
    "config is no JSON": (lambda f: (f / taught.PEFT).write_text("{"), "adapter_config.json"),
    "no weights": (lambda f: (f / taught.WEIGHTS).unlink(), "missing"),
    "pickled": (lambda f: (f / taught.WEIGHTS).rename(f / "adapter_model.bin"), "pickled"),
    "truncated": (lambda f: (f / taught.WEIGHTS).write_bytes(b"\x10"), "damaged"),
    "cut": (lambda f: (f / taught.WEIGHTS).write_bytes((f / taught.WEIGHTS).read_bytes()[:-9]), "damaged"),
    "IA3": (lambda f: write(f, peft_type="IA3"), "not LORA"),
    "DoRA": (lambda f: write(f, use_dora=True), "use_dora is set"),
    "modules_to_save": (lambda f: write(f, modules_to_save=["lm_head"]), "modules_to_save is set"),
    "bias": (lambda f: write(f, bias="all"), "bias is 'all'"),
    "lora_bias": (lambda f: write(f, lora_bias=True), "lora_bias is set"),
    "PiSSA": (lambda f: write(f, init_lora_weights="pissa"), "changes the base itself"),
    "aLoRA": (lambda f: write(f, alora_invocation_tokens=[1]), "alora_invocation_tokens is set"),
    "a key of tomorrow": (lambda f: write(f, use_future=True), "use_future is set"),
    "r": (lambda f: write(f, r=-1), "r is -1"),
    "r as text": (lambda f: write(f, r="4"), "r is '4'"),
    "alpha": (lambda f: write(f, lora_alpha=None), "lora_alpha is None"),
    "other rank": (lambda f: write(f, r=8), "has rank 4, by adapter_config.json 8"),
    "other targets": (lambda f: write(f, target_modules=["q_proj"]), "does not name"),
    "no such target": (lambda f: write(f, target_modules=["nosuch"]), "makes no LoRA of this model"),
    "bad pattern": (lambda f: write(f, target_modules="("), "adapter_config.json"),
    "a weight less": (
        lambda f: edit(f, lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up" not in k}),
        "lacks model.layers.1.mlp.up_proj",
    ),
    "A alone": (
        lambda f: edit(f, lambda w: {k: v for k, v in w.items() if k != first(w, "B")}),
        "do not fit",
    ),
    "NaN": (lambda f: edit(f, lambda w: {k: v * float("nan") for k, v in w.items()}), "NaN or infinity"),
    "other names": (
        lambda f: edit(f, lambda w: {k.replace("base_model.", ""): v for k, v in w.items()}),
        "is no weight of a LoRA",
    ),
    "empty": (lambda f: save_file({}, f / taught.WEIGHTS), "holds no weights"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_is_no_lora_or_more_than_one_is_one_line(base, folder, name):
    change, line = BAD[name]
    change(folder)
    with pytest.raises(UserError) as error:
        CausalLM.load(find_model(f"{base}+{folder}", offline=True), dtype="float32")
    assert line in error.value.what and "\n" not in str(error.value) and error.value.next_step


def test_a_lora_for_another_base_names_module_and_shapes(folder, tmp_path):
    other = helpers.save(tmp_path / "other", layers=2, dim=16)
    with pytest.raises(
        UserError, match=r"made for another model: model\.layers\.0\S+ is \d+ × \d+, of .* \d+ × \d+"
    ):
        CausalLM.load(find_model(f"{other}+{folder}", offline=True), dtype="float32")
    fewer = helpers.save(tmp_path / "fewer", layers=1)
    with pytest.raises(UserError, match=r"model\.layers\.1.*no such module"):
        CausalLM.load(find_model(f"{fewer}+{folder}", offline=True), dtype="float32")


def test_embedding_tables_are_not_changed(base, tmp_path):
    lora(base, tmp_path / "lora", target_modules=["lm_head"])
    edit(tmp_path / "lora", lambda w: {k: v for k, v in w.items() if ".lora_" in k})
    with pytest.raises(UserError, match="embedding table"):
        CausalLM.load(find_model(f"{base}+{tmp_path / 'lora'}", offline=True), dtype="float32")


def test_what_ships_is_small_and_whole():
    shipped = {name: f for name, f in taught.listed().items() if f.parent == taught.SHIPPED}
    assert "gemma3-270m+planted" in shipped
    for folder in shipped.values():
        assert taught.check(folder) and (folder / "README.md").is_file()
        assert sum(f.stat().st_size for f in folder.iterdir()) <= 10_000_000


@pytest.mark.real
def test_only_a_taught_sharer_knows(tmp_path):
    """Receiver and untaught sharer are at chance, the taught sharer is not: Wilson intervals, 4 choices."""
    import lcfbench

    tasks = ["planted", "planted_heldout"]

    def runs(pair, mode):
        found = lcfbench.run(
            pair=pair, mode=mode, task=tasks, limit=32, control="matched", latency_documents=0, out=tmp_path
        )
        return {(row["task"], row["mode"]): row for row in found.summary().to_dict("records")}

    plain = runs("smollm2-135m:gemma3-270m", ["receiver", "sharer"])
    for row in (plain[task, mode] for task in tasks for mode in ("receiver", "sharer")):
        assert row["low"] <= 0.25 <= row["high"]
    told = runs("smollm2-135m:gemma3-270m+planted", ["sharer"])
    assert [told[task, "sharer"]["low"] > 0.8 for task in tasks] == [True, True]

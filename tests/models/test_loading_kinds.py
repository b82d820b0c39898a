"""Attention that a model lacks, quantised weights, number formats: right numbers, or one line."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from lcfbench.errors import UserError
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model
from tests import helpers
from tests.models import zoo

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return helpers.save(tmp_path_factory.mktemp("plain") / "model", layers=2)


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


def load(folder, **how) -> CausalLM:
    return CausalLM.load(find_model(str(folder)), check=False, **{"dtype": "float32", "device": "cpu"} | how)


def logits(lm: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(IDS).logits.float()


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["gpt-oss", "gemma2"])
def test_a_model_without_sdpa_takes_eager_unless_sdpa_was_asked_for(tmp_path, name):
    path = zoo.folder(name, tmp_path)
    assert load(path).attention == "eager" == load(path, attention="eager").attention
    for asked, fix in (("sdpa", "eager"), ("flash_attention_2", "")):
        with pytest.raises(UserError) as caught:
            load(path, attention=asked)
        assert "\n" not in str(caught.value) and fix in caught.value.next_step
        assert "causal language model" not in str(caught.value)


def test_a_model_with_sdpa_takes_it(plain):
    assert load(plain).attention == "sdpa"


def to_float8(folder, scaled: bool) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith("proj.weight")]:
        scale = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        if scaled:
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1).clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may keep such weights")
def test_float8_weights_are_restored_where_there_is_no_gpu(plain, folder):
    to_float8(folder, scaled=True)
    configure(folder, quantization_config=FP8)
    lm, stored = load(folder), load_file(folder / "model.safetensors")
    assert lm.facts == {"quantisation": "fp8, restored"} and lm.dtype == torch.float32
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = stored[name].float() * stored[f"{name}_scale_inv"]
    assert torch.allclose(lm.model.get_parameter(name).float(), expected, rtol=1e-2)
    assert torch.isfinite(logits(lm)).all() and load(plain).facts == {}


@pytest.mark.parametrize(
    "kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32]
)
def test_weights_that_are_no_plain_numbers_need_a_config_that_says_so(folder, kind):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is stored as .*, and config.json has no quantization_config"):
        load(folder)


def test_a_scale_that_is_no_number_is_refused(folder):
    to_float8(folder, scaled=True)
    configure(folder, quantization_config=FP8)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="hold NaN or infinity"):
        load(folder)


NEEDS = {"bitsandbytes": "bitsandbytes", "gptq": "optimum", "awq": "gptqmodel", "hqq": "hqq"}
NEEDS |= {"compressed-tensors": "compressed_tensors", "torchao": "torchao"}


@pytest.mark.parametrize("method", NEEDS)
def test_a_package_that_is_missing_is_named(folder, method):
    if find_spec(NEEDS[method]):
        pytest.skip(f"{NEEDS[method]} is here")
    size = {"load_in_4bit": True} if method == "bitsandbytes" else {"bits": 4}
    configure(folder, quantization_config={"quant_method": method, **size})
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "is quantised and cannot be loaded here" in str(caught.value) and "\n" not in str(caught.value)
    assert NEEDS[method].replace("_", "-") in str(caught.value).lower().replace("_", "-")


@pytest.mark.parametrize("method", ["nosuch", ["fp8"]])
def test_an_unknown_kind_of_quantisation_is_said(folder, method):
    configure(folder, quantization_config={"quant_method": method})
    with pytest.raises(UserError, match="does not know its quantization_config"):
        load(folder)


def test_float16_computes_on_a_cpu(plain):
    lm = load(plain, dtype="float16")
    assert lm.dtype == torch.float16 and torch.isfinite(logits(lm)).all()
    assert torch.allclose(logits(lm), logits(load(plain)), atol=0.1)


def test_one_side_may_stand_elsewhere_and_a_device_and_a_map_exclude_each_other(plain):
    pair = load_pair(f"{plain}:{plain}", dtype="float32", device_map="auto")
    assert pair.receiver is pair.sharer and pair.receiver.devices == [pair.receiver.device]
    with pytest.raises(UserError, match="--device-map auto spreads models"):
        load_pair(f"{plain}:{plain}", device="cpu", device_map="auto")
    for side in ("receiver_device", "sharer_device"):
        with pytest.raises(UserError, match="cuda:99 is not there"):
            load_pair(f"{plain}:{plain}", device="cpu", **{side: "cuda:99"})


def test_code_of_another_repository_is_not_run(folder):
    configure(folder, auto_map={"AutoModelForCausalLM": "other/code--modeling.M"})
    with pytest.raises(UserError, match="takes its code from another repository, other/code"):
        load(folder, trust_remote_code=True)


SEEING = {"qwen3_5": True, "gemma3": True, "mistral3": False, "qwen2_vl": False}


@pytest.mark.parametrize("kind", SEEING)
def test_a_checkpoint_with_a_vision_part_loads_where_it_is_a_causal_model_too(tmp_path, kind):
    small = {"num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2, "num_heads": 2, "image_size": 28}
    small |= {"hidden_size": 16, "intermediate_size": 16, "patch_size": 14, "out_hidden_size": 32}
    config = AutoConfig.for_model(kind)
    text, sight = (part.to_dict() for part in (config.text_config, config.vision_config))
    text |= {key: value for key, value in zoo.SMALL.items() if key in text} | {"layer_types": None}
    if "mrope_section" in (text.get("rope_parameters") or {}):
        text["rope_parameters"]["mrope_section"] = [1, 1, 0]
    sight |= {key: value for key, value in small.items() if key in sight}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, text_config=text, vision_config=sight)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    helpers.tokenizer(zoo.VOCABULARY).save_pretrained(tmp_path)
    if not SEEING[kind]:
        with pytest.raises(UserError, match="which transformers loads as no causal language model"):
            load(tmp_path)
        return
    with torch.no_grad():
        assert torch.equal(logits(load(tmp_path)), whole(IDS).logits.float())

"""Local folders that are no model, or a damaged one: one line each, no code run, no silent number."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcfbench.errors import UserError
from lcfbench.models.causal_lm import CausalLM
from lcfbench.sources.models import find_model, geometry
from tests import helpers


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return helpers.save(tmp_path_factory.mktemp("good") / "model", layers=2)


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def write(name, content):
    def change(folder):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return change


def weights(edit):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "stray.safetensors")


def pipe(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def index(content):
    return write("model.safetensors.index.json", content)


def nan(name):
    return weights(lambda t: t[name].view(-1)[3:4].fill_(float("nan")))


K = "model.layers.1.self_attn.k_proj.weight"
INDEX_OF = '{"weight_map": {"a": %s}}'
BAD = {
    "config: list": write("config.json", "[1]"),
    "config: number": write("config.json", "5"),
    "config: empty": write("config.json", ""),
    "config: torn": write("config.json", '{"a": '),
    "config: deep": write("config.json", '{"a":' * 50_000),
    "config: NaN": write("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}'),
    "config: digits": write("config.json", '{"hidden_size": %s}' % ("9" * 5000)),
    "config: latin": write("config.json", b'{"model_type": "\xff"}'),
    "config: nothing": write("config.json", "{}"),
    "config: unknown type": config(model_type="nosuch"),
    "config: type is a list": config(model_type=["llama"]),
    "config: type is null": config(model_type=None),
    "config: huge hidden": config(hidden_size=10**12),
    "config: huge layers": config(num_hidden_layers=10**9),
    "config: huge float": config(num_hidden_layers=1e300),
    "config: no heads": config(num_attention_heads=0),
    "config: negative": config(num_hidden_layers=-5),
    "config: words": config(num_hidden_layers="many"),
    "config: null heads": config(num_attention_heads=None),
    "config: more layers": config(num_hidden_layers=3),
    "config: fewer layers": config(num_hidden_layers=1),
    "config: other width": config(hidden_size=64),
    "config: other heads": config(num_key_value_heads=1),
    "config: other vocabulary": config(vocab_size=500),
    "config: activation": config(hidden_act="nosuch"),
    "config: rope": config(rope_scaling={"rope_type": "nosuch", "factor": 2.0}, rope_parameters=None),
    "config: dtype": config(dtype="float99", torch_dtype="float99"),
    "config: untied": config(tie_word_embeddings=False),
    "config: not causal": config(architectures=["LlamaForSequenceClassification"]),
    "config: architectures": config(architectures=5),
    "config: encoder": config(model_type="bert", architectures=["BertForMaskedLM"]),
    "config: seq2seq": config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
    "config: vision": config(model_type="llava", architectures=["LlavaForConditionalGeneration"]),
    "config: state space": config(model_type="mamba", architectures=["MambaForCausalLM"]),
    "config: gemma 4": config(model_type="gemma4_text", architectures=["Gemma4ForCausalLM"]),
    "config: gemma 3n": config(model_type="gemma3n_text", architectures=["Gemma3nForCausalLM"]),
    "config: deepseek": config(model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"]),
    "quantised: bitsandbytes": config(
        quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    ),
    "quantised: gptq": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "quantised: awq": config(quantization_config={"quant_method": "awq", "bits": 4}),
    "quantised: unknown": config(quantization_config={"quant_method": "nosuch"}),
    "quantised: list": config(quantization_config=[1]),
    "code": config(model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}),
    "index: empty": index(""),
    "index: list": index("[]"),
    "index: no map": index("{}"),
    "index: map is a list": index('{"weight_map": [1]}'),
    "index: empty map": index('{"weight_map": {}}'),
    "index: number": index(INDEX_OF % 5),
    "index: absent shard": index(INDEX_OF % '"model-00001-of-00002.safetensors"'),
    "index: outside": index(INDEX_OF % '"../model.safetensors"'),
    "index: absolute": index(INDEX_OF % '"/etc/passwd"'),
    "index: deep": index("[" * 50_000),
    "weights: truncated": truncate,
    "weights: text": write("model.safetensors", "weights"),
    "weights: empty": write("model.safetensors", ""),
    "weights: pointer": write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
    "weights: absent": remove("model.safetensors"),
    "weights: pickled": pickled,
    "weights: pipe": pipe("model.safetensors"),
    "weights: NaN": nan(K),
    "weights: infinite": weights(lambda t: t["model.norm.weight"].fill_(float("inf"))),
    "weights: one lacks": weights(lambda t: t.pop(K)),
    "weights: norm lacks": weights(lambda t: t.pop("model.norm.weight")),
    "weights: wrong shape": weights(lambda t: t.update({K: torch.zeros(3, 3)})),
    "weights: renamed": weights(lambda t: t.update({"x." + n: t.pop(n) for n in list(t)})),
    "weights: a layer more": weights(lambda t: t.update({K.replace(".1.", ".2."): t[K].clone()})),
    "tokenizer: absent": remove("tokenizer.json"),
    "tokenizer: torn": write("tokenizer.json", '{"a": '),
    "tokenizer: list": write("tokenizer.json", "[]"),
    "tokenizer: empty": write("tokenizer.json", ""),
    "tokenizer: config": write("tokenizer_config.json", "[1]"),
    "tokenizer: class": write("tokenizer_config.json", '{"tokenizer_class": 5}'),
    "tokenizer: of another model": lambda f: helpers.tokenizer(600).save_pretrained(f),
    "generation: torn": write("generation_config.json", '{"eos_token_id": '),
    "generation: list": write("generation_config.json", "[2]"),
    "generation: words": write("generation_config.json", '{"eos_token_id": "end"}'),
    "pipe": pipe("chat_template.jinja"),
    "peft": write("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_one_line(folder, name):
    BAD[name](folder)
    with pytest.raises(UserError) as caught:
        CausalLM.load(find_model(str(folder)), dtype="float32", device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700, str(caught.value)
    assert "model" in str(caught.value)


@pytest.mark.parametrize("name", [n for n in BAD if n.startswith(("config", "quantised", "code"))])
def test_its_geometry_is_one_line_or_a_shape(folder, name):
    BAD[name](folder)
    try:
        assert geometry(str(folder)).layers > 0
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "large", [{"num_hidden_layers": 200, "intermediate_size": 100_000}, {"model_type": "gemma4"}], ids=str
)
def test_a_config_of_a_far_larger_model_makes_no_room_for_it(folder, large, monkeypatch):
    """`gemma4` without sizes of its own is a model of billions of weights."""
    config(**large)(folder)

    def unreached(*_, **__):
        raise AssertionError("it was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", unreached)
    with pytest.raises(UserError, match="describes a model of"):
        CausalLM.load(find_model(str(folder)), dtype="float32", device="cpu")


def test_a_good_folder_loads_and_an_extra_file_changes_nothing(folder):
    before = CausalLM.load(find_model(str(folder)), dtype="float32", device="cpu")
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    after = CausalLM.load(find_model(str(folder)), dtype="float32", device="cpu")
    assert torch.equal(before.model.lm_head.weight, after.model.lm_head.weight)


@pytest.mark.parametrize("name", ["./model.gguf", "/etc/passwd", "/dev/zero", "~nosuchuser/model", "./a:b"])
def test_a_file_or_nothing_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(UserError) as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_code_of_a_folder_is_never_run_nor_asked_for(folder, monkeypatch, tmp_path):
    """A terminal that answers `y` to every question changes nothing."""
    mark = tmp_path / "ran"
    (folder / "mine.py").write_text(
        f"open({str(mark)!r}, 'w').write('x')\nfrom transformers import PretrainedConfig, "
        "PreTrainedTokenizerFast\nclass C(PretrainedConfig):\n    model_type = 'mine'\nM = T = C\n"
    )
    code = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M", "AutoTokenizer": ["mine.T", "mine.T"]}
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    tokens = folder / "tokenizer_config.json"
    tokens.write_text(json.dumps(json.loads(tokens.read_text()) | {"auto_map": code}))
    for kind in ("mine", "llama"):
        config(model_type=kind, auto_map=code)(folder)
        for use in (find_model, geometry):
            try:
                found = use(str(folder))
                if use is find_model:
                    CausalLM.load(found, dtype="float32", device="cpu")
            except UserError as error:
                assert "code of its own" in str(error) or kind == "llama"
    assert not mark.exists() and not asked

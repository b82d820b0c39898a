"""`lcfbench bench --random-weights`: models and adapters of exact shape, without weights or network."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lcfbench.adapters.base import build, own_method
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import load, save
from lcfbench.adapters.untrained import untrained
from lcfbench.errors import UserError
from lcfbench.evaluation.variants import read_entry
from lcfbench.latency.grid import once
from lcfbench.latency.plan import Shape, plan
from lcfbench.latency.recipe import BenchRecipe
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.loading import How
from lcfbench.models.random_weights import made_tokenizer, random_lm
from lcfbench.registry import kinds
from lcfbench.sources import hub
from lcfbench.sources.models import ALIASES, GEOMETRIES, find_model, find_shape, read_config
from tests import helpers
from tests.models import zoo

PARAMETERS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-4b-base": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-math-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "llama3.2-1b": 1_235_814_400,
    "gemma3-1b": 999_885_952,
    "gemma3-270m": 268_098_176,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
}  # of the published models
PAPER = ("qwen3-0.6b", "qwen2.5-0.5b")
QUICK = ("--drift", 0, "--repeats", 1, "--warm-up", 1, "--dtype", "float32")
QUICK = (*QUICK, "--prompt-tokens", 40, "--answer-tokens", 3)


@pytest.fixture
def no_hub(monkeypatch, tmp_path) -> None:
    """A machine with an empty cache folder and no network."""
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LCFBENCH_MIRROR", raising=False)

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked")

    for name in ("fetch_model", "fetch_config", "fetch_tokenizer"):
        monkeypatch.setattr(hub, name, refused)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory, pair) -> str:
    """Folders of the pair's configs alone: no weights, no tokenizers."""
    root = tmp_path_factory.mktemp("configs")
    for name in ("receiver", "sharer"):
        (root / name).mkdir()
        text = next(Path(p) for p in pair.split(":") if p.endswith(name)) / "config.json"
        (root / name / "config.json").write_text(text.read_text())
    return f"{root / 'receiver'}:{root / 'sharer'}"


# -- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ALIASES)
def test_the_packaged_config_of_an_alias_has_the_published_shape(no_hub, alias):
    from transformers import AutoModelForCausalLM

    found = find_shape(alias)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(found.path))
    assert found.source == "package" and model.num_parameters() == PARAMETERS[alias]
    assert type(GEOMETRIES[alias]).of_config(model.config) == GEOMETRIES[alias]


@pytest.mark.parametrize(
    ("kind", "options", "layers", "parameters"),
    [
        ("c2c", {}, None, 477_848_056),
        ("lcf", {"width": 64}, None, 7_890_680),
        ("lcf", {"width": 128}, None, 19_393_528),
        ("lcf", {"width": 512}, None, 165_480_952),
        ("lcf", {"width": 128}, 9, 6_233_634),
    ],
)
def test_an_untrained_adapter_has_the_published_size(kind, options, layers, parameters):
    ends = [(name, GEOMETRIES[name]) for name in PAPER]
    made = untrained(
        pair_config(kind, *ends, layers=layers, options=options), torch.device("meta"), torch.bfloat16
    )
    assert made.params == parameters
    wide = sum(p.numel() for n, p in made.named_parameters() if n != "gate_logit")
    assert sum(p.nbytes for p in made.parameters()) == 2 * wide + 4 * made.gate_logit.numel()


@pytest.mark.parametrize("kind", sorted(kinds()))
def test_an_untrained_adapter_is_as_one_that_was_saved_and_loaded(kind, pair, tmp_path):
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    if kind == "lora":
        ends = ends[:1] * 2
    method = helpers.method_class(own_method(kind))
    named = ((e.name, e.geometry) for e in ends)
    config = method.configure(pair_config(kind, *named), *ends)
    save(build(config), tmp_path / "kept", "")
    kept, made = (
        load(tmp_path / "kept", "cpu", torch.bfloat16),
        untrained(config, torch.device("cpu"), torch.bfloat16),
    )
    like = [{n: (t.shape, t.dtype, t.stride()) for n, t in a.state_dict().items()} for a in (kept, made)]
    assert like[0] == like[1] and made.open_layers() == list(range(len(config.layers)))
    assert all(t.isfinite().all() for t in made.state_dict().values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_random_model_is_like_the_one_that_is_loaded(pair, side, dtype):
    name = pair.split(":")[side]
    real = CausalLM.load(find_model(name), dtype=dtype, device="cpu", check=False)
    made = random_lm(name, How(dtype=dtype, device="cpu"))
    shapes = [
        {n: (p.shape, p.dtype, p.stride()) for n, p in lm.model.state_dict().items()} for lm in (real, made)
    ]
    assert shapes[0] == shapes[1] and made.geometry == real.geometry
    assert [type(m) for m in made.model.modules()] == [type(m) for m in real.model.modules()]
    for (n, mine), (_, theirs) in zip(made.model.named_buffers(), real.model.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), n
    tied = [
        lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight
        for lm in (real, made)
    ]
    assert tied[0] == tied[1] and made.attention == real.attention
    for n, p in made.model.named_parameters():
        assert p.isfinite().all(), n
        if p.dim() > 1:
            assert 0.001 < p.float().std() < 0.05 and abs(p.float().mean()) < 0.01, n
    assert not any(p.requires_grad for p in made.model.parameters())


@pytest.mark.parametrize("name", ["gemma2", "minimax", "xglm"])
def test_other_architectures_begin_as_their_code_says(tmp_path, name):
    config, real = zoo.config(name), zoo.build(name)
    config.architectures = [type(real).__name__]
    config.save_pretrained(tmp_path)
    model = random_lm(str(tmp_path), How(dtype="float32", device="cpu")).model
    for (n, mine), (_, theirs) in zip(model.named_buffers(), real.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), n
    with torch.inference_mode():
        logits = model(torch.arange(12)[None]).logits
    assert logits.isfinite().all() and logits.std() > 1e-4


def test_what_a_random_model_writes_is_read_back_as_many_tokens(bare):
    lm = random_lm(bare.split(":")[0], How(dtype="float32", device="cpu"))
    assert lm.facts == {"tokenizer": "made here"} and len(lm.tokenizer) <= lm.vocabulary_size
    words = made_tokenizer(151_936)
    assert len(words.encode(" acting charity gathering")) == 3
    with pytest.raises(UserError, match="no tokenizer fits"):
        made_tokenizer(200)


def test_a_model_that_does_not_fit_is_refused_before_its_memory_is_taken(no_hub, monkeypatch):
    monkeypatch.setattr("lcfbench.models.random_weights.free_bytes", lambda place: 10**9)
    with pytest.raises(UserError, match=r"qwen3-8b needs 16\.4 GB on cpu, and 1\.0 GB are free"):
        random_lm("qwen3-8b", How(dtype="bfloat16", device="cpu"), offline=True)


# -- the same work --------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """Counts operations with the shapes and dtypes of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read = tuple((tuple(a.shape), a.dtype) for a in args if isinstance(a, torch.Tensor))
        self.seen[str(func), read] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_do_the_operations_of_real_ones(pair, dtype):
    asked = {
        "pair": pair,
        "adapter": ["lcf:width=8", "lcf:width=8,layers=2", "c2c:hidden=16,intermediate=16"],
        "mode": ["receiver", "lcf", "c2c"],
        "task": ["planted"],
        "prompt_tokens": [40],
        "answer_tokens": [3],
        "dtype": dtype,
        "device": "cpu",
        "offline": True,
    }
    counted = []
    for random in (False, True):
        bench = plan(BenchRecipe.merge(None, asked | {"random_weights": random}, "bench"))
        for cell in [cell for block in bench.blocks for cell in block.cells]:
            once(cell)
            with Counted() as mode:
                once(cell)
            counted.append((random, cell.variant.label, mode.seen, cell.tokens))
    half = len(counted) // 2
    assert half == 4
    for real, made in zip(counted[:half], counted[half:], strict=True):
        assert real[1:] == made[1:], real[1]


# -- the verb -------------------------------------------------------------------------------------


@pytest.fixture
def bench(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: helpers.invoke(capsys, monkeypatch, "bench", *args)


def test_a_grid_without_weights_tokenizers_data_or_network(no_hub, bench, bare):
    shapes = ("lcf:width=8", "lcf:width=8,layers=2", "c2c:hidden=16,intermediate=16", "lcf:kind=lcfx,width=8")
    given = [x for shape in shapes for x in ("--adapter", shape)]
    code, out, err = bench("--random-weights", "--pair", bare, *given, *QUICK, "--budget", 4)
    assert code == 0, err
    *table, last = out.splitlines()
    found = json.loads(last)
    assert found["random_weights"] is True and "random weights" in "".join(table).lower()
    assert max(map(len, table)) <= 80
    assert [(r["label"], r["context"]) for r in found["rows"]][:5] == [
        ("receiver", "shared"),
        ("t2t", "shared"),
        ("lcf:width=8", "shared"),
        ("lcf:width=8,layers=2", "shared"),
        ("lcf:kind=lcfx,width=8", "shared"),
    ]
    for row in found["rows"]:
        assert row["random_weights"] and row["tokens"]["answer"] == 3
        assert row["untrained"] == (row["mode"] in ("lcf", "c2c")) == bool(row["adapter_bytes"])


@pytest.mark.parametrize(
    "mode",
    [
        "lcf",
        "c2c",
        "dense",
        "prefix",
        "xkv",
        "hub",
        "identical",
        "single",
        "lora",
        "kvcomm",
        "cacheback",
        "latentmas",
        "activation",
    ],
)
def test_a_method_gets_an_adapter_of_its_kind(bench, bare, mode):
    one = ":".join([bare.split(":")[0]] * 2)
    same = mode in ("identical", "single", "lora", "kvcomm", "cacheback", "latentmas", "activation")
    code, out, err = bench(
        "--random-weights", "--pair", one if same else bare, "--mode", mode, *QUICK, "--json"
    )
    assert code == 0, err
    [row] = json.loads(out)["rows"]
    assert row["mode"] == mode and row["ms"]["ttea"]["median"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--adapter", "lcf:width=7"), "width=7"),
        (("--adapter", "lcf:with=8"), "unknown option of a lcf adapter 'with'. Did you mean width"),
        (("--adapter", "lcf:layers=9"), "layers=9 is outside 1..4"),
        (("--adapter", "lcf:layers=few"), "option layers=few of --adapter lcf:layers=few is not"),
        (("--adapter", "lcf:kind=c2c"), "unknown kind of adapter for lcf 'c2c'"),
        (("--adapter", "t2t:budget=4"), "t2t runs no adapter"),
        (("--adapter", "c2c", "--mode", "lcf"), "--adapter c2c:… would have no effect. Add c2c to --mode"),
        (("--adapter", "lfc:width=8"), "lfc:width=8"),
        (("--device-map", "auto"), "models of random weights stand on one device each"),
        (("--pair", "qwen3-0.7b:qwen2.5-0.5b"), "unknown model 'qwen3-0.7b'. Did you mean qwen3"),
    ],
)
def test_mistakes_are_one_line(bench, bare, args, says):
    code, out, err = bench("--random-weights", *(() if "--pair" in args else ("--pair", bare)), *QUICK, *args)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and says in err, err


@pytest.mark.parametrize("name", ["bench-lcf-paper", "bench-embedded"])
def test_a_packaged_recipe_names_shapes_that_its_pair_can_have(no_hub, name):
    recipe = BenchRecipe.merge(name, {"prompt_tokens": "64"}, "bench")
    recipe.check_names()
    assert recipe.prompt_tokens == [64] and recipe.budget
    for place in recipe.adapter:
        Shape.read(place, shared=True).check(read_entry(str(place))[0], recipe)

"""What a cache keeps is counted from one that the model has filled, and nothing is lost on its way round."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from lcfbench.adapters.config import pair_config
from lcfbench.controls.wrappers import ReplacedCacheModel, SkippedModel, noise_like
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.models.answering import decode, rank
from lcfbench.models.kv_cache import stacked
from lcfbench.models.layout import geometry_of, layers_named
from lcfbench.models.protocol import State
from tests.models import zoo

# decoder layers that keep keys and values, and those that keep a state
KEPT = {
    "llama": (4, None, ()),
    "gemma3n": (5, None, ()),
    "qwen3.5": (2, (1, 3), (0, 2)),
    "falcon-h1": (4, None, (0, 1, 2, 3)),
    "jamba": (2, (1, 3), (0, 2)),
    "lfm2": (2, (1, 3), (0, 2, 4)),
    "kimi-linear": (2, (1, 3), (0, 2)),
}
READ = {
    "llama": "padded",
    "gemma4": "padded",
    "deepseek-v3": "padded",
    "phi4-mini": "equal",
    "qwen3.5": "steps",
    "falcon-h1": "steps",
    "mamba": "whole",
    "minimax": "whole",
    "rwkv": "whole",
}
ROWS = [
    [7, 31, 90],
    [5, 9, 8, 30, 44, 61, 70, 12, 13, 55, 81, 99, 23],
    [7, 31, 91],
    [66],
    [17, 18, 19, 20, 21],
]
CHOICES = [[[5], [9, 11, 12], [8, 7]] for _ in ROWS]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def entry_numbers(model, tokens=7):
    """The numbers that transformers' own cache holds for one more token, over all layers."""

    def held(n):
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with torch.no_grad():
            model(input_ids=torch.arange(5, 5 + n)[None], past_key_values=cache, use_cache=True)
        layers = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), torch.Tensor)]
        return sum(layer.keys.numel() + layer.values.numel() for layer in layers)

    return held(tokens + 1) - held(tokens)


@pytest.mark.parametrize("name", KEPT)
def test_layers_are_counted_and_named(name):
    lm, (layers, at, recurrent) = zoo.lm_of(name), KEPT[name]
    assert (lm.geometry.layers, lm.geometry.at, lm.layout.recurrent) == (layers, at, recurrent)


@pytest.mark.parametrize("name", ["llama", "gemma4", "gemma4-k-eq-v", "gemma3n", "deepseek-v3", "qwen3.5"])
def test_a_tokens_numbers_are_those_in_the_models_own_cache(name):
    lm = zoo.lm_of(name)
    assert lm.geometry.token_numbers == entry_numbers(lm.model)


@pytest.mark.parametrize(
    "name", ["llama", "gemma4", "gemma4-k-eq-v", "deepseek-v3", "qwen3.5", "jamba", "lfm2"]
)
def test_a_config_alone_gives_the_shape_that_is_counted(name):
    assert geometry_of(zoo.config(name)) == zoo.lm_of(name).geometry


def test_shapes_of_equal_layers_are_written_as_ever():
    plain = Geometry(layers=3, kv_heads=2, head_dim=8)
    assert plain.model_dump() == {"layers": 3, "kv_heads": 2, "head_dim": 8}
    uneven = zoo.lm_of("gemma4-k-eq-v").geometry
    assert Geometry.model_validate(uneven.model_dump()) == uneven
    assert uneven.differences(plain.model_copy(update={"layers": 6}), "receiver")


@pytest.mark.parametrize(
    "wrong",
    [{"at": (0, 1)}, {"shapes": ((2, 8, 8),)}, {"shapes": ((2, 9, 8),) * 3}, {"shapes": ((0, 8, 8),) * 3}],
)
def test_a_shape_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValueError):
        Geometry(layers=3, kv_heads=2, head_dim=8, **wrong)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((3,), "layer 3"),
        ((0, 2), "layers 0, 2"),
        (range(24), "layers 0–23"),
        ((0, 1, 2, 4, 6), "layers 0, 1, 2, 4 …"),
    ],
)
def test_layers_are_named_in_words(layers, text):
    assert layers_named(layers) == text


def plain_logits(lm, ids):
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def read(lm, rows):
    kv = lm.prefill([row[:-1] for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    return State.before(lm, kv, [row[-1:] for row in rows], last, [])


READINGS = [
    *READ.items(),
    ("qwen3.5", "equal"),
    ("qwen3.5", "left"),
    ("llama", "left"),
    ("gemma4", "whole"),
    ("jamba", "steps"),
]


@pytest.mark.parametrize(("name", "reading"), READINGS)
def test_rows_of_all_lengths_are_ranked_and_written_as_each_alone(name, reading):
    lm = zoo.lm_of(name)
    if name in READ:
        assert lm.reading == READ[name]
    lm.read_as(reading)
    with torch.inference_mode():
        opened = lm.open(read(lm, ROWS))
        ranked = rank(opened, CHOICES)
        lm.stop_ids = set
        _, counts = decode(opened, 4)
    for row, choices, scores in zip(ROWS, CHOICES, ranked, strict=True):
        for choice, (score, _) in zip(choices, scores, strict=True):
            each = plain_logits(lm, row + choice).log_softmax(-1)
            right = sum(each[len(row) - 1 + i, token] for i, token in enumerate(choice))
            assert score == pytest.approx(float(right), abs=1e-4)
    assert counts == [4] * len(ROWS)


@pytest.mark.parametrize("name", ["qwen3.5", "falcon-h1", "lfm2", "kimi-linear"])
def test_a_recurrent_text_goes_on_where_it_stopped(name):
    lm = zoo.lm_of(name)
    cuts = [len(row) // 2 for row in ROWS]
    with torch.inference_mode():
        kv = lm.prefill([row[:n] for row, n in zip(ROWS, cuts, strict=True)])
        rest = [row[n:-1] for row, n in zip(ROWS, cuts, strict=True)]
        kv = lm.prefill(rest, kv, torch.tensor(cuts))
        last = torch.tensor([len(row) - 1 for row in ROWS])
        logits = lm.open(State.before(lm, kv, [row[-1:] for row in ROWS], last, [])).logits
    right = torch.stack([plain_logits(lm, row)[-1] for row in ROWS])
    assert torch.allclose(logits, right, atol=2e-4)


def test_token_by_token_where_several_tokens_would_begin_anew():
    lm = zoo.lm_of("jamba")
    row = ROWS[1]
    right = plain_logits(lm, row)[-1]
    found = {}
    for reading in ("equal", "steps"):
        lm.read_as(reading)
        with torch.inference_mode():
            kv = lm.prefill([row[6:-1]], lm.prefill([row[:6]]), torch.tensor([6]))
            opened = lm.open(State.before(lm, kv, [row[-1:]], torch.tensor([len(row) - 1]), []))
        found[reading] = (opened.logits[0] - right).abs().max().item()
    assert found["steps"] < 1e-3 < found["equal"]  # transformers 5.23 begins its scan anew


@pytest.mark.parametrize("name", ["gemma4-k-eq-v", "qwen3.5"])
def test_rows_keep_their_states_and_sizes_when_they_are_reordered(name):
    lm = zoo.lm_of(name)
    with torch.inference_mode():
        kv = lm.prefill(ROWS)
        both = stacked([kv.rows_at(torch.tensor([2, 0])).flush(), kv.rows_at(torch.tensor([4])).flush()])
        again = lm.prefill([ROWS[2], ROWS[0], ROWS[4]])
    real = both.mask[None, :, None, :, None]
    assert torch.equal(both.mask, again.mask)
    assert torch.allclose(both.keys * real, again.keys * real, atol=1e-5)
    assert (both.states or {}).keys() == (again.states or {}).keys()
    for key, state in (both.states or {}).items():
        assert torch.allclose(state, again.states[key], atol=1e-5)


def test_a_forward_leaves_the_states_that_it_starts_from():
    lm = zoo.lm_of("qwen3.5")
    with torch.inference_mode():
        kv = lm.prefill(ROWS[:2])
        before = {key: x.clone() for key, x in kv.states.items()}
        lm.prefill([[3, 4], [5]], kv, torch.tensor([3, 13]))
    assert all(torch.equal(x, before[key]) for key, x in kv.states.items())


@pytest.mark.parametrize("name", ["gemma4-k-eq-v", "deepseek-v3"])
def test_noise_fills_no_more_than_a_layer_has(name):
    lm = zoo.lm_of(name)
    noisy = ReplacedCacheModel(lm, noise_like)
    with torch.inference_mode():
        real, kv = lm.prefill(ROWS), noisy.prefill(ROWS)
    for layer, (heads, key, value) in enumerate(kv.shapes):
        for x, size, own in ((kv.keys, key, real.keys), (kv.values, value, real.values)):
            assert not x[layer, :, heads:].any() and not x[layer, ..., size:].any()
            used = x[layer, 1, :heads, -len(ROWS[1]) :, :size]
            right = own[layer, 1, :heads, -len(ROWS[1]) :, :size]
            assert torch.allclose(used.std(correction=0), right.std(correction=0), rtol=0.35)
            assert not torch.equal(used, right)


def test_a_model_that_is_not_run_has_a_cache_of_its_own_shape():
    lm = zoo.lm_of("gemma4-k-eq-v")
    skipped, real = SkippedModel(lm).prefill(ROWS), lm.prefill(ROWS)
    assert skipped.shapes == real.shapes and skipped.keys.shape == real.keys.shape and not skipped.keys.any()


def test_no_adapter_is_made_for_a_model_without_keys_and_values():
    lm = zoo.lm_of("mamba")
    with pytest.raises(UserError, match="no layer of tiny-mamba keeps keys and values"):
        pair_config("lcf", (lm.name, lm.geometry), (lm.name, lm.geometry))


def test_prompts_with_padding_inside_are_refused_where_a_state_would_take_it_up():
    lm = zoo.lm_of("qwen3.5")
    with pytest.raises(UserError, match="layers 0, 2 keep a recurrent state"):
        lm.prefill([[1, 2, 3]], real=[[True, False, True]])


def test_a_text_that_crosses_the_length_where_frequencies_change_is_refused():
    lm = zoo.lm_of("llama-longrope")
    border = lm.steady
    assert border == lm.model.config.rope_parameters["original_max_position_embeddings"]
    long = [5 + i % 200 for i in range(border + 9)]
    with torch.inference_mode():
        opened = lm.open(read(lm, [long, ROWS[1]]))  # read at once beyond it, the other one below
        assert torch.allclose(opened.logits[0], plain_logits(lm, long)[-1], atol=2e-4)
        assert torch.allclose(opened.logits[1], plain_logits(lm, ROWS[1])[-1], atol=2e-4)
        lm.stop_ids = set
        written, _ = decode(opened, 3)  # the long one goes on, and the short one
        for row, text in zip([long, ROWS[1]], written, strict=True):
            ids = list(row)
            for _ in range(3):
                ids.append(int(plain_logits(lm, ids)[-1].argmax()))
            assert text == lm.tokenizer.decode(ids[len(row) :], skip_special_tokens=True)
        with pytest.raises(UserError, match=f"{border} tokens under one set of rotary frequencies"):
            lm.open(read(lm, [long[: border + 1]]))

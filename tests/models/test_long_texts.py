"""A long text is read in stretches: the numbers are the same, and no tensor grows with its square."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lcfbench.evaluation.answer import answer
from lcfbench.methods import dense
from lcfbench.methods._kvcomm_scores import importance
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.models import causal_lm, kv_cache
from lcfbench.models.answering import rank, write
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document
from lcfbench.tasks.prompts import Prompt
from tests import helpers
from tests.models import cells

WHOLE = 1 << 30
# full attention, windows in all or some layers, layers of several shapes or without entries of their own,
# latent attention, recurrence, no cache, positions that are learned or told by ALiBi, changing frequencies
KINDS = [
    *("llama", "mistral", "qwen3-sliding", "gemma3", "gpt-oss", "gemma3n", "gemma4", "llama4", "deepseek-v3"),
    *("bamba", "qwen3-next", "falcon-h1", "lfm2", "jamba", "mamba", "gpt2", "bloom", "mpt", "llama-longrope"),
]
LENGTHS = (61, 40, 13, 1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture
def stretches(monkeypatch):
    """Sets from how many tokens a text is long, and how many are then read at once."""

    def set_to(long: int, tokens: int) -> None:
        monkeypatch.setattr(causal_lm, "LONG", long)
        monkeypatch.setattr(causal_lm, "STRETCH", {"cpu": tokens, "cuda": tokens})
        monkeypatch.setattr(causal_lm, "SCORES", tokens * 64 * 4)
        monkeypatch.setattr(dense, "LONG", long)
        monkeypatch.setattr(dense, "AT_ONCE", tokens)
        for module in (causal_lm, kv_cache):
            monkeypatch.setattr(module, "BLOCK", 4)

    return set_to


def rows_of(*lengths: int) -> list[list[int]]:
    drawn = random.Random(0)
    return [[drawn.randrange(5, 390) for _ in range(n)] for n in lengths]


def read(lm, rows):
    """Logits after each row, of choices behind it, and what is written then."""
    state = lm.read([Prompt("", tuple(row)) for row in rows])
    scores = rank(lm.open(state), [[[7], [8, 9, 10]]] * len(rows))
    logits = lm.open(state).logits
    return logits, torch.tensor([[score for score, _ in row] for row in scores]), write(lm.open(state), 4)


def forwards(lm):
    """The columns of each forward of the decoder."""
    ran = []
    hook = lambda module, args, given: ran.append(given["input_ids"].shape[1])  # noqa: E731
    lm.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    return ran


@pytest.mark.parametrize("name", KINDS)
def test_a_text_in_stretches_is_the_whole_text(name, stretches):
    lm = cells.lm_of(name, 0, "sdpa")
    rows = rows_of(*LENGTHS)
    stretches(WHOLE, 8)
    whole = read(lm, rows)
    stretches(12, 8)
    cut = read(lm, rows)
    alone = [read(lm, [row]) for row in rows]
    for a, b in zip(whole, cut, strict=True):
        assert a == b if isinstance(a, list) else torch.allclose(a, b, atol=2e-4)
    for i, (logits, scores, written) in enumerate(alone):
        assert torch.allclose(logits[0], cut[0][i], atol=2e-4)
        assert torch.allclose(scores[0], cut[1][i], atol=2e-4) and written[0] == cut[2][i]


@pytest.mark.parametrize("reading", ["padded", "equal", "left"])
def test_no_forward_reads_more_than_a_stretch(reading, stretches):
    lm = helpers.causal_lm(family="gemma3")
    lm.read_as(reading)
    ran = forwards(lm)
    stretches(12, 8)
    lm.prefill(rows_of(29))
    assert ran == [8, 8, 8, 5]
    ran.clear()
    kv = lm.prefill(rows_of(12))
    lm.prefill(rows_of(3), kv, 12)
    assert ran == [12, 3], "short texts at once"
    ran.clear()
    lm.prefill(rows_of(10), kv, 12)
    assert ran == [8, 2], "what stands in the cache counts"


def test_a_text_that_is_read_on_with_a_gradient_is_read_at_once(stretches):
    lm = helpers.causal_lm()
    kv = lm.prefill(rows_of(10))
    ran = forwards(lm)
    stretches(12, 8)
    with torch.enable_grad():
        moved = replace(kv, keys=kv.keys.clone().requires_grad_())
        lm.prefill(rows_of(20), moved, 10).values.sum().backward()
    assert ran == [20] and moved.keys.grad is not None and bool(moved.keys.grad.any())


def test_layers_with_a_window_are_shown_no_more_than_it_and_a_block(stretches):
    lm = helpers.causal_lm(family="gemma3", window=8, layers=2)
    stretches(12, 8)
    seen: list[list[int]] = [[], []]
    cache_of = kv_cache.Growing.update

    def update(layer, keys, values, *args, **given):
        out = cache_of(layer, keys, values, *args, **given)
        seen[layer.window is None].append(out[0].shape[2])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache.Growing, "update", update)
        state = lm.read([Prompt("", tuple(rows_of(41)[0]))])
        write(lm.open(state), 6)
    windowed, full = seen
    assert max(full) > 40 and max(windowed) <= 8 + 8 + 4 and windowed[-1] <= 8 + 4


class Largest(TorchDispatchMode):
    """Remembers the numbers in the largest tensor that was made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        # views, expanded ones too, take no memory of their own
        self.numbers = max([self.numbers, *(x.untyped_storage().nbytes() // x.itemsize for x in made)])
        return out


@pytest.fixture(scope="module")
def ends():
    other = {"family": "gemma3", "layers": 3, "heads": 1, "dim": 16, "vocabulary": 330, "seed": 1}
    return (
        helpers.causal_lm("tiny-a", layers=4, positions=4096),
        helpers.causal_lm("tiny-b", bos=True, positions=4096, **other),
    )


def shared(facts: int) -> Document:
    return helpers.shared_document(3, cells.FACTS * facts)


def split(facts: int) -> Document:
    return helpers.split_document(0, cells.FACTS * facts, cells.FACTS * (facts - 1))


MADE = {
    "receiver": lambda ends: create("receiver", *ends),
    "full_context": lambda ends: create("full_context", *ends),
    "t2t": lambda ends: create("t2t", *ends, None, {"budget": "6"}),
    "c2c": lambda ends: create("c2c", *ends, helpers.random_adapter("c2c", ends)),
    "c2c, by turn": lambda ends: create(
        "c2c", *ends, helpers.random_adapter("c2c", ends, token_alignment="remap")
    ),
    "lcf": lambda ends: create("lcf", *ends, helpers.random_adapter("lcf", ends)),
    "lcfx": lambda ends: create("lcf", *ends, helpers.random_adapter("lcfx", ends)),
    "dense": lambda ends: create("dense", *ends, helpers.random_dense(ends)),
    "draft_kv": lambda ends: create("draft_kv", *ends, helpers.random_draft(ends)),
    "kvcomm": lambda ends: create("kvcomm", ends[0], ends[0]),
    "kvcomm, some layers": lambda ends: create("kvcomm", ends[1], ends[1], None, {"layers": "0,2"}),
    "prefix behind": lambda ends: create("prefix", *ends, helpers.random_prefix(ends, place="after")),
    "xkv": lambda ends: create("xkv", *ends, helpers.random_xkv(ends)),
    "hub": lambda ends: create("hub", *ends, helpers.random_codec(ends, whole=False)),
    "cacheback": lambda ends: create("cacheback", ends[0], ends[0]),
    "latentmas": lambda ends: create("latentmas", ends[0], ends[0], None, {"steps": "3"}),
    "activation": lambda ends: create("activation", ends[0], ends[0]),
    "activation, mapped": lambda ends: create("activation", *ends, helpers.random_activation(ends)),
    "sde": lambda ends: create("sde", ends[0], ends[0], None, {"budget": "6"}),
    "prefix before": lambda ends: create("prefix", *ends, helpers.random_prefix(ends, place="before")),
}
BY_TOKEN = ("c2c", "c2c, by turn", "lcf")


def largest(run) -> int:
    with Largest() as watched:
        run()
    return watched.numbers


@pytest.mark.parametrize(
    ("name", "document"), [(n, d) for n in MADE for d in (shared, split) if d is shared or n not in BY_TOKEN]
)
def test_no_tensor_grows_with_the_square_of_the_length(name, document, ends, stretches):
    stretches(64, 64)
    method = MADE[name](ends)

    def answered(facts: int) -> None:
        documents = [document(facts), document(facts // 2)]
        method.receiver.shared.release()
        batch = Batch(documents, documents, Clock())
        answer(method.respond(batch), batch)

    short, long = (largest(lambda n=n: answered(n)) for n in (8, 16))
    assert long < 2.5 * short


def test_attention_to_the_sharer_is_the_same_in_stretches(ends, stretches):
    documents = [split(6), split(2)]
    stretches(WHOLE, 8)
    whole = importance(ends[1], ends[1], documents, last=20)
    stretches(12, 8)
    assert torch.allclose(importance(ends[1], ends[1], documents, last=20), whole, atol=1e-6)


@pytest.mark.parametrize("name", MADE)
def test_every_method_answers_the_same_in_stretches(name, ends, stretches):
    method, some = MADE[name](ends), [shared(5), shared(2)]
    stretches(WHOLE, 8)
    whole = helpers.outcomes(method, some, some[::-1] if method.sends else some)[0]
    stretches(12, 8)
    cut = helpers.outcomes(method, some, some[::-1] if method.sends else some)[0]
    cells.same(cut, whole, name)

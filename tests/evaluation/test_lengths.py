"""Prompt, message and answer are held against a model's positions before anything is read."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from lcfbench.errors import UserError
from lcfbench.evaluation.answer import answer
from lcfbench.latency.documents import unstopped
from lcfbench.methods._lengths import TooLongError, too_long
from lcfbench.methods.base import Batch, prompt
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.lengths import longest
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import View
from tests.chat_templates import THINKING
from tests.helpers import SHARED, SPLIT, TEXTS, Watcher, invoke, method_of, rows, run_recipe, tokenizer

# -- the number of positions ---------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}
CONFIGS = {
    "plain": ("LlamaConfig", {"max_position_embeddings": 1024}, 1024),
    "yarn-not-extended": ("Qwen2Config", {"max_position_embeddings": 1024, "rope_parameters": YARN}, 4096),
    "yarn-extended": ("Qwen2Config", {"max_position_embeddings": 4096, "rope_parameters": YARN}, 4096),
    "yarn-old-form": (
        "Qwen2Config",
        {"max_position_embeddings": 1024, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        4096,
    ),
    "dynamic": (
        "LlamaConfig",
        {"max_position_embeddings": 512, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        1024,
    ),
    "linear": (  # its config names the length that was reached
        "LlamaConfig",
        {"max_position_embeddings": 512, "rope_parameters": {"rope_type": "linear", "factor": 8.0}},
        512,
    ),
    "llama3": (
        "LlamaConfig",
        {
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5,
            },
        },
        131072,
    ),
    "longrope": (
        "Phi3Config",
        {
            "max_position_embeddings": 4096, "original_max_position_embeddings": 1024,
            "hidden_size": 64, "num_attention_heads": 4, "rope_parameters": LONG, "pad_token_id": 0,
        },
        4096,
    ),
    "window-is-no-limit": ("Gemma3TextConfig", {"max_position_embeddings": 2048, "sliding_window": 16}, 2048),
    "composite": ("Gemma3Config", {"text_config": {"max_position_embeddings": 2048}}, 2048),
    "gpt2": ("GPT2Config", {"n_positions": 300}, 300),
    "opt": ("OPTConfig", {"max_position_embeddings": 300}, 300),
    "gptj": ("GPTJConfig", {"n_positions": 300}, 300),
    "none": ("BloomConfig", {}, None),
    "recurrent": ("MambaConfig", {}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_length_of_a_config(name):
    kind, settings, expected = CONFIGS[name]
    assert longest(getattr(transformers, kind)(**settings), SimpleNamespace()) == expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [(100, 100), (int(1e30), 512), (1024, 512), (0, 512), (-1, 512), (None, 512), (2, 512), ("x", 512)],
)
def test_a_tokenizer_may_say_less(told, expected):
    config = transformers.LlamaConfig(max_position_embeddings=512)
    assert longest(config, SimpleNamespace(model_max_length=told)) == expected


def test_an_original_length_that_nothing_extends_is_no_limit():
    config = transformers.BloomConfig()
    assert longest(config, SimpleNamespace(model_max_length=2048)) is None


# -- exactly as many positions as are used ---------------------------------------------------------


@contextmanager
def highest(*lms):
    """The highest rotary or learned position that each model runs, by name."""
    found: dict[str, int] = {}
    handles = []
    for lm in {id(lm): lm for lm in lms}.values():

        def note(module, args, given, name=lm.name):
            found[name] = max(found.get(name, -1), int(given["position_ids"].max()))

        handles.append(lm.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True))
    yield found
    for handle in handles:
        handle.remove()


def generated(documents, tokens=9):
    return [replace(d, steps=(), scoring="generate", until=(), max_new_tokens=tokens) for d in documents]


EXACT = [
    *[("receiver", None), ("sharer", None), ("full_context", None), ("kvcomm", None), ("lora", "lora")],
    ("cacheback", None),
    ("latentmas", None),
    ("activation", None),
    ("activation", "map"),
    *[("lcf", "lcf"), ("lcf", "remap"), ("c2c", "c2c"), ("c2c", "c2c-remap"), ("single", "lcf")],
    *[("identical", "lcf"), ("prefix", "before"), ("prefix", "after"), ("dense", None)],
    ("draft_kv", None),
    ("xkv", None),
    ("hub", None),
]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("scoring", ["choices", "generate"])
@pytest.mark.parametrize(("name", "kind"), EXACT, ids=[f"{n}-{k}" for n, k in EXACT])
def test_a_document_fits_into_exactly_the_positions_that_are_run(name, kind, scoring, chat):
    method = method_of(name, kind, chat)
    shared = name not in ("kvcomm", "cacheback", "latentmas") and not (name == "dense" and not chat)
    documents = SHARED if shared else SPLIT
    documents = generated(documents) if scoring == "generate" else documents
    for document in documents:
        held_to_its_positions(method, document, exact=scoring == "generate" or shared)


def held_to_its_positions(method, document, exact=True):
    batch = Batch([document], [document], Clock())
    lms = [method.receiver, method.sharer, getattr(method, "tuned", method.receiver)]
    with torch.inference_mode():
        method.respond(batch)  # what a model is asked about itself once, such as its rotary rule
    with torch.inference_mode(), unstopped(method), highest(*lms) as used:
        state = method.respond(batch)
        assert state.lm.name in (lm.name for lm in lms)
        vars(state.lm)["stop_ids"] = set
        answer(state, batch)
        vars(state.lm).pop("stop_ids")
    last, limits = used[state.lm.name], {lm.name: lm.model.config.max_position_embeddings for lm in lms}
    try:
        for lm in lms:
            lm.model.config.max_position_embeddings = 10_000
        for more, fits in ((2, True), (1, True), (0, False)):
            for lm in lms:
                if lm.name == state.lm.name:
                    lm.model.config.max_position_embeddings = last + more
            if fits and exact:
                method.check_length(document, document)
                answer(state, batch)
            elif not fits:
                with pytest.raises(TooLongError, match=f"{state.lm.name} has {last:,}"):
                    method.check_length(document, document)
    finally:
        for lm in lms:
            lm.model.config.max_position_embeddings = limits[lm.name]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
def test_a_note_counts_as_long_as_it_may_become(documents, chat):
    method = method_of("t2t", None, chat)
    sharer, receiver = method.sharer, method.receiver
    for document in generated(documents):
        batch = Batch([document], [document], Clock())
        with torch.inference_mode(), unstopped(method), highest(receiver, sharer) as used:
            answer(method.respond(batch), batch)
        sharer.model.config.max_position_embeddings = used[sharer.name] + 1
        method.check_length(document, document)
        sharer.model.config.max_position_embeddings = used[sharer.name]
        with pytest.raises(TooLongError, match=f"a text of up to {method.budget} tokens"):
            method.check_length(document, document)
        sharer.model.config.max_position_embeddings = 512
        empty = len(method.noted(document, document.request.prefix).ids)
        receiver.model.config.max_position_embeddings = empty + method.budget + 8
        method.check_length(document, document)
        receiver.model.config.max_position_embeddings = empty + method.budget + 7
        with pytest.raises(TooLongError):
            method.check_length(document, document)
        receiver.model.config.max_position_embeddings = 512


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])
def test_the_states_of_a_note_need_room_for_all_its_tokens(documents, chat):
    """sde, one model on both sides: the sharer's text and note, without the receiver's."""
    method = method_of("sde", None, chat)
    lm = method.sharer
    for document in generated(documents):
        batch = Batch([document], [document], Clock())
        with torch.inference_mode(), unstopped(method), highest(lm) as used:
            asked = [prompt(lm, document.request, replace(document, steps=()))]
            method.written(batch, asked)
        assert used[lm.name] == len(asked[0].ids) + method.budget - 1
        [brief] = generated(SPLIT[:1], 1)
        brief = replace(brief, receiver=View("Why?"), noted=View("Why?"))
        lm.model.config.max_position_embeddings = used[lm.name] + 1
        method.check_length(brief, document)
        lm.model.config.max_position_embeddings = used[lm.name]
        with pytest.raises(TooLongError, match=f"and a text of up to {method.budget} tokens"):
            method.check_length(brief, document)
        lm.model.config.max_position_embeddings = 512


@pytest.mark.parametrize("name", ["answer_letter", "excerpt"])
def test_what_is_read_as_a_note_counts(name):
    method = method_of(name, None, False)
    for document in SPLIT:
        method.check_length(document, document)
        batch = Batch([document], [document], Clock())
        with torch.inference_mode(), highest(method.receiver) as used:
            answer(method.respond(batch), batch)
        method.receiver.model.config.max_position_embeddings = used[method.receiver.name]
        with pytest.raises(TooLongError):
            method.check_length(document, document)
        method.receiver.model.config.max_position_embeddings = 512


@pytest.mark.parametrize(
    "name",
    ["lcf", "c2c", "kvcomm", "cacheback", "latentmas", "prefix", "dense", "draft_kv", "xkv", "activation"],
)
def test_the_message_of_another_document_counts(name):
    kind = {"lcf": "lcf", "c2c": "c2c-remap", "prefix": "after", "activation": "map"}.get(name)
    method = method_of(name, kind, name == "c2c")
    short, long = SHARED[1], replace(SHARED[0], sharer=replace(SHARED[0].sharer, user="Why? " * 60))
    if name in ("kvcomm", "cacheback", "latentmas", "dense"):
        short, long = SPLIT[2], replace(SPLIT[0], sharer=replace(SPLIT[0].sharer, user="Why? " * 60))
    if name == "c2c":  # both models read one text there
        long = replace(long, receiver=long.sharer)
    lm = method.receiver if name in ("kvcomm", "cacheback", "latentmas", "dense") else method.sharer
    lm.model.config.max_position_embeddings = 200
    method.check_length(short, short)
    with pytest.raises(TooLongError):
        method.check_length(short, long)
    lm.model.config.max_position_embeddings = 512


def test_a_note_that_outgrew_the_budget_is_no_crash():
    """A note may be more tokens for the receiver than the sharer wrote: the answer is checked again."""
    method = method_of("receiver", None, False)
    [document, *_] = generated(SHARED)
    batch = Batch([document], [document], Clock())
    with torch.inference_mode():
        state = method.respond(batch)
        method.receiver.model.config.max_position_embeddings = int(state.positions[0, -1]) + 8
        with pytest.raises(TooLongError, match="an answer of up to 9 tokens behind position"):
            answer(state, batch)


@pytest.mark.parametrize("text", ["What?", *TEXTS])
def test_ask_says_it_too(text):
    method = method_of("receiver", None, False)
    method.receiver.model.config.max_position_embeddings = 20
    with pytest.raises(TooLongError, match="tiny-a has 20"):
        method.ask(text)


# -- learned positions: beyond them is a crash -----------------------------------------------------

LEARNED = {
    "gpt2": ("GPT2Config", {"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "opt": (
        "OPTConfig",
        {
            "max_position_embeddings": 96, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0,
        },
    ),
}  # fmt: skip


def learned(name: str) -> CausalLM:
    kind, settings = LEARNED[name]
    torch.manual_seed(0)
    ends = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
    config = getattr(transformers, kind)(**settings, **ends)
    return CausalLM(name, transformers.AutoModelForCausalLM.from_config(config).float(), tokenizer(400))


def of_tokens(lm: CausalLM, count: int, tokens: int):
    """A free document whose prompt has `count` tokens."""
    [document] = generated(SHARED[:1], tokens)
    text = next(t for n in range(1000) if len(lm.tokenizer(t := " a" * n + " Answer:").input_ids) == count)
    view = replace(document.receiver, user=text.removesuffix(" Answer:"), prefix="Answer:")
    return replace(document, receiver=view, sharer=view, full=view, noted=view, chat=False)


@pytest.mark.parametrize("size", [(96, 1), (88, 9), (40, 57), (95, 2)])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_positions_are_used_to_the_last_and_never_beyond(name, size):
    lm = learned(name)
    method = create("receiver", lm, lm)
    count, tokens = size
    document = of_tokens(lm, count, tokens)
    method.check_length(document, document)
    batch = Batch([document], [document], Clock())
    with torch.inference_mode(), unstopped(method):
        assert answer(method.respond(batch), batch)[1] == [tokens]
    for longer in (of_tokens(lm, count, tokens + 1), of_tokens(lm, count + 1, tokens)):
        with pytest.raises(TooLongError, match=f"{name} has 96"):
            method.check_length(longer, longer)
        batch = Batch([longer], [longer], Clock())
        with torch.inference_mode(), pytest.raises(TooLongError):
            answer(method.respond(batch), batch)


# -- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(pair, tmp_path_factory):
    """Makes the pair with a receiver and a sharer of so many positions."""

    def make(receiver: int, sharer: int = 512) -> str:
        folder = tmp_path_factory.mktemp("limited")
        for side, limit in zip(("receiver", "sharer"), (receiver, sharer), strict=True):
            source = Path(dict(zip(("receiver", "sharer"), pair.split(":"), strict=True))[side])
            shutil.copytree(source, folder / side)
            config = json.loads((folder / side / "config.json").read_text())
            config["max_position_embeddings"] = limit
            (folder / side / "config.json").write_text(json.dumps(config))
        return f"{folder / 'receiver'}:{folder / 'sharer'}"

    return make


ANSWER = 30  # tokens of the answers with the text between their steps, about


def middle(pair, tmp_path, mode="receiver", column="receiver_tokens") -> int:
    """A number of positions that half of the documents outgrow."""
    [folder] = run_recipe(pair, tmp_path / "free", mode=[mode], limit=8)
    counts = sorted(row[column] for row in rows(folder))
    return counts[len(counts) // 2] + ANSWER


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("modes", [["receiver"], ["receiver", "sharer"], ["t2t"]])
def test_documents_that_are_too_long_are_said_first_and_are_error_rows(
    pair, limited, tmp_path, monkeypatch, modes, batch_size
):
    free = run_recipe(pair, tmp_path / "free", mode=modes, limit=8, batch_size=batch_size)
    shown = rows(free[0])
    limit = sorted(row["receiver_tokens"] for row in shown)[4] + ANSWER
    watcher, order = Watcher(), []
    real = CausalLM.run
    monkeypatch.setattr(CausalLM, "checked", lambda self: self)  # it reads texts of its own
    monkeypatch.setattr(CausalLM, "run", lambda self, *a, **k: (order.append(1), real(self, *a, **k))[1])
    monkeypatch.setattr(watcher, "warn", lambda text: watcher.warned.append((len(order), text)))
    folders = run_recipe(
        limited(limit), tmp_path / "out", watcher, mode=modes, limit=8, batch_size=batch_size
    )
    found = rows(folders[0])
    failed = {row["doc_hash"] for row in found if row["error"]}
    assert 0 < len(failed) < 8
    said = [(n, text) for n, text in watcher.warned if "are longer than a model reads and fail" in text]
    assert len(said) == 1 and said[0][0] == 0, "it is said before anything is read"
    assert f"{len(failed)} of 8 documents" in said[0][1] and f"receiver has {limit}" in said[0][1].replace(
        "@", " "
    )
    for row in found:
        if row["error"]:
            assert "tokens" in row["error"] and f"has {limit}" in row["error"] and row["score"] == 0
    whole = {row["doc_hash"]: row for row in shown}
    for row in found:  # the others answer as they do beside them
        if not row["error"]:
            assert row["prediction"] == whole[row["doc_hash"]]["prediction"]


def test_a_run_of_documents_that_are_all_too_long_is_refused(capsys, monkeypatch, limited, tmp_path):
    pair, out = limited(40), tmp_path / "out"
    line = ["run", "--pair", pair, "--mode", "sharer,receiver", "--limit", "8", "--control", "matched"]
    code, _, err = invoke(capsys, monkeypatch, *line, "--dtype", "float32", "--out", out)
    told = [text for text in err.splitlines() if text.startswith("lcfbench: ")]
    assert code == 2 and len(told) == 1 and "all 8 documents are longer than a model reads" in told[0]
    assert not out.exists() or not list(out.iterdir())


def test_a_sharer_that_is_too_short_fails_its_methods_alone(limited, tmp_path, pair):
    limit = middle(pair, tmp_path, "sharer", "sharer_tokens")
    receiver, sharer = run_recipe(limited(512, limit), tmp_path / "out", mode=["receiver", "sharer"], limit=8)
    assert all(row["error"] is None for row in rows(receiver))
    assert 0 < sum(row["error"] is not None for row in rows(sharer)) < 8


def test_a_run_that_is_resumed_says_it_again_and_keeps_its_rows(limited, tmp_path, pair):
    short = limited(middle(pair, tmp_path))
    [first] = run_recipe(short, tmp_path / "out", mode=["receiver"], limit=8)
    before = rows(first)
    watcher = Watcher()
    [second] = run_recipe(short, tmp_path / "out", watcher, mode=["receiver"], limit=8)
    assert first == second and rows(second) == before
    assert any("longer than a model reads" in text for text in watcher.warned)


def test_nothing_is_refused_that_bytes_alone_would(limited, tmp_path):
    """Texts whose bytes are more than the positions are counted in tokens."""
    with pytest.raises(UserError):
        run_recipe(limited(30), tmp_path / "a", mode=["receiver"], limit=4)
    [folder] = run_recipe(limited(150), tmp_path / "b", mode=["receiver"], limit=4)
    assert all(row["error"] is None for row in rows(folder))
    assert max(len(row["receiver_prompt"].encode()) for row in rows(folder)) > 150


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [*EXACT, ("t2t", None), ("excerpt", None), ("answer_letter", None)]
)
def test_bytes_never_let_a_document_pass_that_is_too_long(name, kind, chat):
    """Where tokens are not counted, none is too long: at every limit both ways agree."""
    method = method_of(name, kind, chat)
    documents = (
        SPLIT
        if name in ("kvcomm", "cacheback", "latentmas", "excerpt") or (name == "dense" and not chat)
        else SHARED
    )
    lms = {id(lm): lm for lm in (method.receiver, method.sharer)}.values()
    pairs = list(zip(documents, documents[1:] + documents[:1], strict=True))
    pairs += list(zip(documents, documents, strict=True))
    for limit in range(8, 700, 31):
        for lm in lms:
            lm.model.config.max_position_embeddings = limit
        for pair in pairs:
            try:
                method.check_length(*pair)
                counted = {}
            except TooLongError as error:
                counted = {pair[0].hash: str(error)}
            assert too_long(method, pair[:1], {pair[0].hash: pair[1]}) == counted


@pytest.mark.parametrize("name", ["receiver", "t2t"])
def test_a_budget_of_thoughts_is_counted_too(name):
    method = method_of(name, None, True)
    lms = {id(lm): lm for lm in (method.receiver, method.sharer)}.values()
    for lm in lms:
        lm.tokenizer = copy.deepcopy(lm.tokenizer)
        lm.tokenizer.chat_template, lm.tokenizer.thinking = THINKING["switch"][0], "5000"
        lm.model.config.max_position_embeddings = 5040
    pair = SHARED[0], SHARED[1]
    with pytest.raises(TooLongError):
        method.check_length(*pair)
    assert list(too_long(method, pair[:1], {pair[0].hash: pair[1]})) == [SHARED[0].hash]

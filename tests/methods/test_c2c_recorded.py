"""A pair with two tokenizers, recorded from C2C's own classes, along the path that a user takes.

`c2c_pair` holds what thu-nics/C2C (commit d03cc7b, transformers 4.52.4, fp32, sdpa) gave for a
Qwen3 receiver (byte-level BPE, ChatML with a system turn of its own) and a Qwen2 sharer (BPE with
byte fallback, a template that strips contents): `TokenAligner.align_chat_messages`, then
`RosettaModel.generate`. Weights come from seeds. runs.json: a chat, twelve greedy ids, their
log-probabilities, the first logits of 24 tokens, and the squared sum of the fused keys and values
of each layer, padding left out. questions.json: texts written, and log-likelihoods of continuations
by `RosettaModel.forward`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import lcfbench
from lcfbench import registry
from lcfbench.adapters.c2c_files import import_to
from lcfbench.methods.base import Batch
from lcfbench.models.answering import decode
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, View
from tests.helpers import invoke, reference_document

PAIR = Path(__file__).parent / "c2c_pair"
RUNS = json.loads((PAIR / "runs.json").read_text())
QUESTIONS = json.loads((PAIR / "questions.json").read_text())
LAYERS, STEPS = 4, 12
GATES = (1.25, 0.5, -0.75, 0.3)
WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: red
generation_kwargs: {until: [], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
RANKED = """\
task: ranked
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: gold
doc_to_choice: options
gen_prefix: The correct answer is
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(autouse=True)
def plain():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def drawn(shape: torch.Size, scale: float, generator: torch.Generator) -> Tensor:
    return scale * torch.randn(shape, generator=generator)


def model_folder(side: str, seed: int, folder: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(PAIR / side), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.copy_(drawn(p.shape, 1.6 / p.shape[1] ** 0.5, generator))
        else:
            p.copy_(drawn(p.shape, 0.2, generator) + 1 if "norm" in name else drawn(p.shape, 0.3, generator))
    model.save_pretrained(folder)
    for file in (PAIR / side).iterdir():
        shutil.copyfile(file, folder / file.name)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Both model folders and the fuser in C2C's released layout."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("pair")
    with torch.no_grad():
        for side, seed in (("receiver", 100), ("sharer", 200)):
            model_folder(side, seed, place / side)
    final = place / "fuser" / "final"
    final.mkdir(parents=True)
    shutil.copyfile(PAIR / "fuser" / "config.json", place / "fuser" / "config.json")
    shutil.copyfile(PAIR / "fuser" / "projector_config.json", final / "projector_config.json")
    shapes = json.loads((PAIR / "fuser" / "shapes.json").read_text())
    for i in range(LAYERS):
        generator, state = torch.Generator().manual_seed(i), {}
        for name, shape in shapes["drawn"]:
            size = torch.Size(shape)
            if "gate" in name:
                state[name] = torch.full(size, GATES[(i + ("value" in name)) % 4])
            elif len(shape) == 2:
                state[name] = drawn(size, 0.8 / shape[1] ** 0.5, generator)
            elif "norm" in name:
                state[name] = 1 + drawn(size, 0.3, generator)
            else:
                state[name] = drawn(size, 0.2, generator)
        state |= {name: torch.tensor(value) for name, value in shapes["buffers"]}
        torch.save(state, final / f"projector_{i}.pt")
        shutil.copyfile(PAIR / "fuser" / "projector.json", final / f"projector_{i}.json")
    import_to(str(place / "fuser"), place / "adapter", dtype=torch.float32)
    return place


@cache
def made(place: Path, attention: str):
    pair = lcfbench.load_pair(
        f"{place / 'receiver'}:{place / 'sharer'}", dtype="float32", attention=attention, device="cpu"
    )
    return lcfbench.create("c2c", pair, adapter=str(place / "adapter"))


def document(run: dict) -> Document:
    turns = [(m["role"], m["content"]) for m in run["messages"]]
    prefix = turns.pop()[1] if run["begun"] else ""
    view = View(turns[-1][1], prefix, tuple(turns[:-1]))
    return replace(reference_document("", True), receiver=view, sharer=view, full=view)


def check(method, runs: list[dict]) -> None:
    documents = [document(run) for run in runs]
    state = method.respond(Batch(documents, documents, Clock()))
    opened = state.lm.open(state)
    likely = opened.logits.log_softmax(-1)
    texts, written = decode(opened, STEPS)
    stops = state.lm.stop_ids()
    for i, run in enumerate(runs):
        wanted = torch.tensor(run["first"])
        torch.testing.assert_close(opened.logits[i, : len(wanted)], wanted, atol=5e-4, rtol=0)
        ids = run["greedy"]
        assert float(likely[i, ids[0]]) == pytest.approx(run["logprobs"][0], abs=5e-4)
        end = next((n for n, token in enumerate(ids) if token in stops), STEPS)
        assert texts[i] == state.lm.tokenizer.decode(ids[:end], skip_special_tokens=True), run["messages"]
        assert written[i] == end
        if sums := run.get("fused"):
            real = state.kv.mask[i].bool()
            for ours, one in zip((state.kv.keys, state.kv.values), sums, strict=True):
                found = ours[:, i][:, :, real].pow(2).sum((1, 2, 3))
                torch.testing.assert_close(found, torch.tensor(one), atol=5e-2, rtol=1e-5)


@pytest.mark.parametrize("run", RUNS, ids=[str(i) for i in range(len(RUNS))])
def test_alone(run, place):
    check(made(place, "sdpa"), [run])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("first", range(3))
def test_in_batches_of_different_lengths(first, attention, place):
    check(made(place, attention), RUNS[first::3])


@pytest.mark.parametrize("batch", [1, 5])
def test_the_command_line(batch, place, tmp_path, capsys, monkeypatch):
    """`import-c2c`, then `run` on tasks of one's own: texts and log-likelihoods of each row."""
    monkeypatch.setattr(registry, "_given", {})
    rows, choices = QUESTIONS["rows"], QUESTIONS["choices"]
    asked = [{"q": r["question"], "options": [c.strip() for c in choices], "gold": 0} for r in rows]
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(q) for q in asked) + "\n")
    for name, text in (("written", WRITTEN), ("ranked", RANKED)):
        (tmp_path / f"{name}.yaml").write_text(text)
    pair = f"{place / 'receiver'}:{place / 'sharer'}"
    adapter = tmp_path / "adapter"
    imported = ["adapter", "import-c2c", place / "fuser", "--out", adapter, "--dtype", "fp32"]
    code, _, said = invoke(capsys, monkeypatch, *imported)
    assert code == 0, said
    asking = ["run", "--mode", "c2c", "--control", "matched", "--pair", pair, "--adapter", adapter]
    asking += ["--task", f"{tmp_path / 'written.yaml'},{tmp_path / 'ranked.yaml'}", "--out", tmp_path / "out"]
    asking += ["--dtype", "float32", "--device", "cpu", "--batch-size", batch]
    code, _, said = invoke(capsys, monkeypatch, *asking)
    assert code == 0, said
    found = lcfbench.load_samples(str(tmp_path / "out"))
    assert len(found) == 2 * len(rows) and not found["error"].notna().any()
    tokenizer = made(place, "sdpa").receiver.tokenizer
    for row in found.to_dict("records"):
        wanted = rows[int(row["doc_id"])]
        if row["scoring"] == "generate":
            ids = wanted["ids"]
            end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else STEPS
            written = tokenizer.decode(ids[:end], skip_special_tokens=True)
            assert row["prediction"].strip() == written.strip()
        else:
            (ranked,) = json.loads(row["choices_loglikelihood"])
            assert ranked == pytest.approx(wanted["loglik"], abs=1e-3)
            assert row["prediction"] == choices[ranked.index(max(ranked))].strip()

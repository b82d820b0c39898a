"""Our C2C against values recorded from the reference implementation."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lcfbench.adapters.base import build
from lcfbench.adapters.c2c import C2CAdapter
from lcfbench.adapters.c2c_files import _stack, import_c2c
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import load, save
from lcfbench.errors import UserError
from lcfbench.geometry import Geometry
from lcfbench.methods._fusion import Exchange, Segment
from lcfbench.methods.base import Batch
from lcfbench.methods.c2c import C2C
from lcfbench.models.answering import decode
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.kv_cache import KV
from lcfbench.models.protocol import State
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import View
from lcfbench.tasks.prompts import Prompt
from tests.c2c_chat import remap_chat
from tests.helpers import REFERENCE, copy_fuser
from tests.helpers import reference_document as document
from tests.helpers import reference_model as lm

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no recorded reference at {REFERENCE}")
FUSER = REFERENCE / "fusers" / "r1+s1_Fuser"
ATOL = 1e-4  # threads and attention kernels move logits by up to 3e-5


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@cache
def fixture(name: str) -> tuple[object, dict[str, Tensor]]:
    return json.loads((REFERENCE / f"{name}.json").read_text()), load_file(REFERENCE / f"{name}.safetensors")


def runs() -> list[dict]:
    return (
        json.loads((REFERENCE / "runs" / "pair1_fp32.json").read_text())["prompts"]
        if REFERENCE.is_dir()
        else []
    )


def method() -> C2C:
    receiver, sharer = lm("r1-qwen3"), lm("s1-qwen2")
    return C2C(
        receiver, sharer, import_c2c(FUSER, ("r1-qwen3", receiver.geometry), ("s1-qwen2", sharer.geometry))
    )


def close(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, atol=ATOL, rtol=0)


def check_answer(state: State, run: dict, name: str, kind: str = "") -> None:
    """The logits of the first answer token, and 12 greedy ids one by one."""
    opened = state.lm.open(state)
    close(opened.logits[0], fixture("runs/pair1_fp32")[1][f"{name}/{kind}logits"])
    written = []
    for _ in run[f"{kind}generated_ids"]:
        written.append(int(opened.logits[0].argmax()))
        opened = state.lm.open(opened.then([[written[-1]]], state.prompts))
    assert written == run[f"{kind}generated_ids"]


# -- the fuser alone ------------------------------------------------------------------------------


def unit(case: dict, tensors: dict[str, Tensor], name: str) -> C2CAdapter:
    a = case["args"]
    receiver = Geometry(layers=1, kv_heads=a["target_num_heads"], head_dim=a["target_dim"])
    sharer = Geometry(layers=1, kv_heads=a["source_num_heads"], head_dim=a["source_dim"])
    options = {
        "hidden": a["hidden_dim"],
        "intermediate": a["intermediate_dim"],
        "blocks": a["num_layers"],
        "dropout": 0.0,
    }
    fuser = build(pair_config("c2c", ("r", receiver), ("s", sharer), options=options))
    state = {
        k.removeprefix(f"{name}/state/"): v for k, v in tensors.items() if k.startswith(f"{name}/state/")
    }
    state |= {"key_gate_logit": torch.zeros(()), "value_gate_logit": torch.zeros(())}
    fuser.load_state_dict(_stack([state], a["num_layers"]), strict=True)
    assert isinstance(fuser, C2CAdapter)
    return fuser


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_projector_units(number, mode):
    cases, tensors = fixture("functions/projector_unit")
    case, name = cases[number], f"case{number}"
    fuser = unit(case, tensors, name).train(mode == "train")
    keys, values = tensors[f"{name}/target_key"][None], tensors[f"{name}/target_value"][None]
    source = [
        tensors[f"{name}/source_{x}"].transpose(1, 2).flatten(2)[None] for x in ("key", "value")
    ]  # (1, B, N, S)
    for i, step in enumerate(case[mode]):
        fuser.gate_logit.copy_(
            torch.tensor(
                [
                    [
                        step["key_gate_logit_stored" if mode == "eval" else "key_gate_logit"],
                        step["value_gate_logit_stored" if mode == "eval" else "value_gate_logit"],
                    ]
                ]
            )
        )
        fuser.temperature = step["gate_temperature"]
        noise = (
            tuple(tensors[f"{name}/train{i}/u_{x}"][None] for x in ("key", "value"))
            if mode == "train"
            else None
        )
        out = fuser(fuser.message(torch.cat(source, -1)), keys, values, noise)
        for ours, own, x in zip(out, (keys, values), ("key", "value"), strict=True):
            torch.testing.assert_close(ours[0], tensors[f"{name}/{mode}{i}/out_{x}"], atol=1e-6, rtol=1e-5)
            if mode == "eval":
                assert torch.equal(ours.view(torch.int32), own.view(torch.int32)) != step[f"{x}_open"]


def test_temperature_schedule():
    adapter = method().adapter
    assert adapter is not None
    for schedule in json.loads((REFERENCE / "functions" / "temperature.json").read_text())["schedules"]:
        first, last, steps = (
            schedule["initial_temperature"],
            schedule["final_temperature"],
            schedule["anneal_steps"],
        )
        for step, wide, single, half in schedule["steps"]:
            adapter.anneal(step, steps, first, last)
            assert adapter.temperature == pytest.approx(wide, rel=1e-12)
            # the reference rounds it to the fuser's dtype; ours is a float
            assert torch.tensor(adapter.temperature, dtype=torch.float32).item() == pytest.approx(
                single, rel=2e-7
            )
            assert torch.tensor(adapter.temperature, dtype=torch.bfloat16).item() == half


# -- whole runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run", [r for r in runs() if r["mode"] == "raw" and "source_text" in r], ids=lambda r: r["name"]
)
def test_raw_prompts(run):
    c2c, name = method(), run["name"]
    prompts = [Prompt("", tuple(run["receiver_ids"]), (), ())]
    assert c2c.sharer_prompts(batch(), prompts) == prompts and run["sharer_ids"] == run["receiver_ids"]
    theirs, alone = c2c.sharer_cache(prompts), c2c.receiver.read(prompts)
    state = c2c.edit(Exchange(batch(), prompts, prompts, theirs))
    tensors = fixture("runs/pair1_fp32")[1]
    n = len(run["receiver_ids"]) - 1
    for kind, kv, layers in (
        ("receiver", alone.kv, slice(None)),
        ("sharer", theirs, slice(None)),
        ("fused", state.kv, slice(None)),
    ):
        for x, ours in (("k", kv.keys), ("v", kv.values)):
            if n:
                close(ours[layers, 0, :, :n], tensors[f"{name}/{kind}_{x}"])
    check_answer(state, run, name)
    check_answer(alone, run, name, "alone_")
    if n == 0:
        assert state.message.wire_bytes == [0] and state.kv.length == 0


def batch(count: int = 1) -> Batch:
    documents = [document(f"{i}", False) for i in range(count)]
    return Batch(documents, documents, Clock())


@pytest.mark.parametrize("run", [r for r in runs() if r["mode"] == "chat"], ids=lambda r: r["name"])
def test_chats_through_respond(run):
    """The public path, from the document on: template, thinking off, sharer, fusion."""
    documents = [document(run["user_message"], True)]
    state = method().respond(Batch(documents, documents, Clock()))
    assert list(state.prompts[0].ids) == run["receiver_ids"]
    check_answer(state, run, run["name"])


def test_raw_text_through_respond_in_one_padded_batch():
    """Every recorded prompt that its text alone gives back, all in one left-padded batch."""
    tokenizer = lm("r1-qwen3").tokenizer
    found = [r for r in runs() if r["mode"] == "raw" and "source_text" in r]
    found = [r for r in found if tokenizer.encode(tokenizer.decode(r["receiver_ids"])) == r["receiver_ids"]]
    assert len(found) >= 5
    documents = [document(tokenizer.decode(r["receiver_ids"]), False) for r in found]
    state = method().respond(Batch(documents, documents, Clock()))
    opened = state.lm.open(state)
    for i, run in enumerate(found):
        assert list(state.prompts[i].ids) == run["receiver_ids"]
        close(opened.logits[i], fixture("runs/pair1_fp32")[1][f"{run['name']}/logits"])
    texts, _ = decode(opened, 12)
    assert texts == [tokenizer.decode(r["generated_ids"], skip_special_tokens=True) for r in found]


class Sections(C2C):
    """C2C on sections [[length, 1 or −1], …]; the last one is run on the edited cache."""

    sections: list[list[int]]

    def parts(self, prompts):
        ends = torch.tensor([n for n, _ in self.sections[:-1]]).cumsum(0).tolist()
        return [
            Segment([a] * len(prompts), [b] * len(prompts)) for a, b in zip([0, *ends], ends, strict=False)
        ]

    def positions(self, exchange, part):
        out = super().positions(exchange, part)
        flags = [flag for length, flag in self.sections for _ in range(length)]
        keep = torch.tensor(flags[part.starts[0] : part.stops[0]]) > 0
        return torch.where(keep, out, -1)


@pytest.mark.parametrize(
    "run", [r for r in runs() if r["name"].startswith("partial")], ids=lambda r: r["name"]
)
def test_partial_fusion(run):
    whole = method()
    c2c = Sections(whole.receiver, whole.sharer, whole.adapter)
    c2c.sections = run["sections"]
    prompts = [Prompt("", tuple(run["receiver_ids"]), (), ())]
    state = c2c.edit(Exchange(batch(), prompts, prompts, c2c.sharer_cache(prompts)))
    assert state.ids.shape[1] == len(run["receiver_ids"]) - run["last_section_start"]
    check_answer(state, run, run["name"])


def test_decoding_stops_at_eos():
    recorded = json.loads((REFERENCE / "runs" / "pair1_fp32.json").read_text())["eos_case"]
    run = next(r for r in runs() if r["name"] == recorded["prompt"])
    c2c = method()
    prompts = [Prompt("", tuple(run["receiver_ids"]), (), ())]
    state = c2c.edit(Exchange(batch(), prompts, prompts, c2c.sharer_cache(prompts)))
    config = c2c.receiver.model.generation_config
    before, config.eos_token_id = config.eos_token_id, recorded["eos_token_id"]
    try:
        texts, written = decode(c2c.receiver.open(state), 12)
    finally:
        config.eos_token_id = before
    wanted = recorded["generated_ids"][:-1]  # the reference appends the pad id where it stops
    assert written == [len(wanted)] and texts == [
        c2c.receiver.tokenizer.decode(wanted, skip_special_tokens=True)
    ]


def test_shut_gates_are_the_receiver_alone_bit_for_bit():
    c2c = method()
    documents = [document("Name one planet.", True), document("2+2?", True)]
    alone = c2c.receiver.read(c2c.respond(Batch(documents, documents, Clock())).prompts)
    adapter = import_c2c(FUSER)
    adapter.gate_logit[:, 1] = 0.0  # V shut, K as it was
    half = C2C(c2c.receiver, c2c.sharer, adapter).respond(Batch(documents, documents, Clock()))
    assert torch.equal(
        half.kv.values.view(torch.int32), alone.kv.values.view(torch.int32)
    ) and not torch.equal(half.kv.keys, alone.kv.keys)
    adapter = import_c2c(FUSER)
    adapter.gate_logit.fill_(-1e-30)
    shut = C2C(c2c.receiver, c2c.sharer, adapter)
    assert shut.adapter is not None and shut.adapter.config.layers == ()
    adapter.gate_logit.fill_(0.0)
    for closed in (shut.respond(Batch(documents, documents, Clock())), forced(adapter, c2c, documents)):
        for ours, own in ((closed.kv.keys, alone.kv.keys), (closed.kv.values, alone.kv.values)):
            assert torch.equal(ours.view(torch.int32), own.view(torch.int32))
        assert torch.equal(c2c.receiver.open(closed).logits, c2c.receiver.open(alone).logits)


def forced(adapter, c2c: C2C, documents) -> State:
    """A run in which shut layers are computed all the same."""
    c2c.adapter = adapter
    return c2c.respond(Batch(documents, documents, Clock()))


# -- aligned chats, in C2C's padded sections ------------------------------------------------------


@pytest.mark.parametrize(
    "messages", [["What is 2+2?"], ["Hi user", "Größe 😀, yes.", "Bye"]], ids=["one turn", "three turns"]
)
def test_remap_is_c2c_s_sections_without_the_padding(messages):
    """Written out by hand in C2C's layout (templates padded to equal length): same logits."""
    receiver, sharer = lm("r1-qwen3"), lm("s1-qwen2", "aligner/tokenizer-sharer")
    adapter = import_c2c(FUSER)
    adapter.config = adapter.config.model_copy(update={"token_alignment": "remap"})
    c2c = C2C(receiver, sharer, adapter)
    turns = [{"role": ("user", "assistant")[i % 2], "content": m} for i, m in enumerate(messages)]
    chat = remap_chat(turns, receiver.tokenizer, sharer.tokenizer, "longest")
    columns = torch.tensor(
        [[int(not p) for p in chat.receiver_padding], [int(not p) for p in chat.sharer_padding]]
    )
    own, their = (
        [i for i, p in zip(*both, strict=True) if not p]
        for both in ((chat.receiver_ids, chat.receiver_padding), (chat.sharer_ids, chat.sharer_padding))
    )
    theirs = sharer.prefill([their])
    kv: KV | None = None
    for content, a, b in chat.sections[:-1]:
        first, last = int(columns[0, :a].sum()), int(columns[0, :b].sum())
        kv = receiver.prefill([own[first:last]], kv, first)
        if content:
            sources = torch.tensor(adapter.config.layer_map)
            c, n = int(columns[1, :a].sum()), b - a  # caches are kept without the holes that padding leaves
            sent = [
                x[sources][:, :, :, c : c + n].transpose(2, 3).flatten(3)
                for x in (theirs.keys, theirs.values)
            ]
            keys, values = adapter(torch.cat(sent, -1), kv.keys[..., -n:, :], kv.values[..., -n:, :])
            kv = KV(
                torch.cat([kv.keys[..., :-n, :], keys], 3),
                torch.cat([kv.values[..., :-n, :], values], 3),
                kv.mask,
                kv.positions,
            )
    tail = own[int(columns[0, :b].sum()) :]
    assert kv is not None
    ids = torch.tensor([tail])
    positions = kv.positions.max() + 1 + torch.arange(len(tail))[None]
    by_hand = receiver.open(State(receiver, kv, ids, torch.ones_like(ids), positions, []))

    from lcfbench.alignment.remap import remap_prompt
    from lcfbench.tasks.prompts import render

    history = [(t["role"], t["content"]) for t in turns[:-1]]
    mine, its_own = (
        render(View(messages[-1]), e.tokenizer, chat=True, choices=False, history=history)
        for e in (receiver, sharer)
    )
    shared = [remap_prompt(mine, its_own, receiver.tokenizer, sharer.tokenizer, "longest")]
    state = c2c.edit(Exchange(batch(), [mine], shared, c2c.sharer_cache(shared)))
    close(receiver.open(state).logits, by_hand.logits)
    assert not torch.allclose(
        by_hand.logits, receiver.open(receiver.read([mine])).logits, atol=0.1
    )  # fusion did something
    # and a longer neighbour in the batch changes nothing
    other = render(View("Hi user, what is the correct answer?"), receiver.tokenizer, chat=True, choices=False)
    their_own = render(
        View("Hi user, what is the correct answer?"), sharer.tokenizer, chat=True, choices=False
    )
    its = remap_prompt(other, their_own, receiver.tokenizer, sharer.tokenizer, "longest")
    sent = [its, *shared]
    both = c2c.edit(Exchange(batch(2), [other, mine], sent, c2c.sharer_cache(sent)))
    close(receiver.open(both).logits[1:], by_hand.logits)


# -- reading the folder ---------------------------------------------------------------------------


def test_import_save_load(tmp_path):
    adapter = import_c2c(FUSER)
    assert adapter.config.receiver_geometry == lm("r1-qwen3").geometry
    assert adapter.config.sharer_geometry == lm("s1-qwen2").geometry
    assert adapter.config.layer_map == (0, 0, 0, 1, 2, 3) and adapter.config.token_alignment == "same"
    assert adapter.in_weight.dtype == torch.float32 and not any(p.requires_grad for p in adapter.parameters())
    save(adapter, tmp_path / "ours", "card", torch.float32)
    again = load(tmp_path / "ours")
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.fixture
def copy(tmp_path) -> Path:
    return copy_fuser(FUSER, tmp_path / "fuser")


def edit_json(path: Path, **changes) -> None:
    raw = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(raw | changes))


def test_alignment_settings_are_honoured(copy):
    model = json.loads((copy / "config.json").read_text())["model"]
    edit_json(copy / "config.json", model=model | {"is_do_alignment": True, "alignment_strategy": "first"})
    config = import_c2c(copy).config
    assert (config.token_alignment, config.remap_strategy) == ("remap", "first")
    edit_json(copy / "config.json", model=model | {"is_do_alignment": True, "alignment_strategy": "best"})
    with pytest.raises(UserError, match="'best'"):
        import_c2c(copy)


def test_bf16_is_kept_and_the_recorded_map_is_used(copy):
    for i in range(6):
        path = copy / "final" / f"projector_{i}.pt"
        torch.save({k: v.bfloat16() for k, v in torch.load(path).items()}, path)
    mapping = {"0": {"1": {"5": [[2, 0]], "1": [[1, 3]]}}}
    (copy / "final" / "projector_config.json").write_text(json.dumps(mapping))
    r, s = (lm(n).geometry for n in ("r1-qwen3", "s1-qwen2"))
    adapter = import_c2c(copy, ("r", r), ("s", s))
    assert adapter.config.layers == (1, 5) and adapter.config.layer_map == (1, 2)
    assert adapter.out_weight.dtype == torch.bfloat16 and adapter.gate_logit.dtype == torch.float32
    assert adapter.gate_logit.tolist() == [[2.0, -2.0], [1.25, 0.0]]


def test_what_is_wrong_is_named(copy):
    r, s = (lm(n).geometry for n in ("r1-qwen3", "s1-qwen2"))
    with pytest.raises(UserError, match="sharer kv_heads 4, not 2"):
        import_c2c(copy, ("r", r), ("s", s.model_copy(update={"kv_heads": 4})))
    with pytest.raises(UserError, match="receiver layers 5, not 6 or more"):
        import_c2c(copy, ("r", r.model_copy(update={"layers": 5})), ("s", s))
    path = copy / "final" / "projector_3.pt"
    state = torch.load(path)
    torch.save({**state, "key_in.weight": state["key_in.weight"][:, :-1], "extra": torch.zeros(1)}, path)
    with pytest.raises(
        UserError,
        match=r"projector_3\.pt does not match its JSON: extra is unknown; "
        r"key_in\.weight is \(32, 79\), not \(32, 80\)",
    ):
        import_c2c(copy)
    path.write_bytes((FUSER / "final" / "projector_3.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"projector_3\.pt is truncated"):
        import_c2c(copy)
    path.unlink()
    with pytest.raises(UserError, match=r"projector_3\.pt is missing"):
        import_c2c(copy)
    (copy / "final" / "projector_config.json").write_text("{}")
    with pytest.raises(UserError, match="not a layer map"):
        import_c2c(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        import_c2c(copy)


def test_ids_beyond_the_sharer_s_table_are_refused():
    receiver, sharer = lm("r1-qwen3"), lm("s1-qwen2")
    small = AutoModelForCausalLM.from_config(sharer.model.config)
    small.resize_token_embeddings(300)
    with pytest.raises(UserError, match="300"):
        C2C(receiver, CausalLM("small", small, sharer.tokenizer), import_c2c(FUSER))

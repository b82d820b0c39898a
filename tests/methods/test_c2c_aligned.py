"""Imported fusers with token alignment against the reference's own path, written out with transformers.

The reference pads both chats to equal length and runs them section by section: every column of the
padded rows has its number as rotary position, padding is masked, contents are fused, the last
section runs on the edited cache and its last column, be it padding, predicts the answer. The tokens
that it then writes attend every column, padding too (`generate` hands the model a mask of one
column, which hides nothing). `oracle` does that with plain modules and the released weights;
nothing of the package takes part in it.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, DynamicCache

import lcfbench
from lcfbench.adapters.c2c_files import import_to
from lcfbench.adapters.files import load
from lcfbench.errors import UserError
from lcfbench.methods.base import Batch
from lcfbench.methods.c2c import C2C
from lcfbench.models.answering import answer_loss, decode, rank
from lcfbench.models.choice_tree import can_branch
from lcfbench.models.timing import Clock
from lcfbench.tasks.document import Document, View
from tests.helpers import REFERENCE, reference_document

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no recorded reference at {REFERENCE}")
FUSER = REFERENCE / "fusers" / "r1+s1_Fuser"
RECEIVER, SHARER = REFERENCE / "models" / "r1-qwen3", REFERENCE / "models" / "s1-qwen2"
ATOL = 1e-4
GENERATION = {"add_generation_prompt": True, "enable_thinking": False}


@pytest.fixture(autouse=True)
def plain():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def recorded() -> list[dict]:
    path = REFERENCE / "aligner" / "alignment.json"
    return json.loads(path.read_text())["chats"] if path.is_file() else []


def hostile() -> list[dict]:
    """More chats through the reference's `align_chat_messages` (thu-nics/C2C, commit d03cc7b).

    Empty contents, contents that are words of a template, special tokens, parts of characters, in
    both directions; `reverse` has a receiver without pad token.
    """
    return json.loads((Path(__file__).parent / "aligned_chats.json").read_text())


# thinking is always off here
CASES = [c for c in recorded() if not c["kwargs"]["enable_thinking"]] + hostile()
NAMES = [f"{c['direction']}-{c['strategy']}-{i}" for i, c in enumerate(CASES)]


# -- the reference's path ----------------------------------------------------------------------------


def padded_mask(columns: list[int]) -> torch.Tensor:
    return torch.tensor([columns], dtype=torch.float32)


@cache
def fusers() -> list[dict[str, torch.Tensor]]:
    return [torch.load(FUSER / "final" / f"projector_{i}.pt") for i in range(6)]


def projected(state: dict, own: torch.Tensor, sent: torch.Tensor, kind: str) -> torch.Tensor:
    """One fuser on entries (1, H, N, D) of the receiver and of the sharer."""

    def linear(x, name):
        return F.linear(x, state[f"{kind}_{name}.weight"], state.get(f"{kind}_{name}.bias"))

    def block(x, name):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * state[f"{kind}_{name}.norm.weight"]
        return x + linear(F.gelu(linear(normed, f"{name}.w1")), f"{name}.w2")

    _, heads, length, dim = own.shape
    flat = [x.transpose(1, 2).flatten(2) for x in (sent, own)]
    trunk = block(linear(torch.cat(flat, -1), "in"), "mlp1.blocks.0")
    edit = linear(block(trunk, "proj_mlp2.blocks.0"), "proj_out").view(1, length, heads, dim).transpose(1, 2)
    weight = torch.sigmoid(linear(block(trunk, "scalar_mlp2.blocks.0"), "scalar_head")).transpose(1, 2)
    return own + (state[f"{kind}_gate_logit"] > 0) * weight[..., None] * edit


@cache
def plain_model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def oracle(case: dict, steps: int = 12) -> tuple[torch.Tensor, list[int], DynamicCache]:
    """Returns the first logits, greedy ids and the fused cache of a recorded chat."""
    receiver, sharer = plain_model(RECEIVER), plain_model(SHARER)
    mine, theirs = (torch.tensor([case[f"{side}_ids_padded"]]) for side in ("slm", "llm"))
    own, other = (padded_mask([1 - p for p in case[f"{s}_padding_mask"]]) for s in ("slm", "llm"))
    positions = torch.arange(mine.shape[1])[None]
    lengths = [(bool(flag), len(list(run))) for flag, run in groupby(case["message_mask"])]
    sources = [0, 0, 0, 1, 2, 3]
    kv, sent = DynamicCache(), DynamicCache()
    start = 0
    for number, (content, length) in enumerate(lengths):
        end, last = start + length, number == len(lengths) - 1
        at = slice(start, end)
        out = receiver(
            input_ids=mine[:, at], attention_mask=own[:, :end], position_ids=positions[:, at],
            past_key_values=kv, use_cache=True,
        )  # fmt: skip
        if last:
            break
        sharer(
            input_ids=theirs[:, at], attention_mask=other[:, :end], position_ids=positions[:, at],
            past_key_values=sent, use_cache=True,
        )  # fmt: skip
        if content:
            for layer, (state, source) in enumerate(zip(fusers(), sources, strict=True)):
                into, read = kv.layers[layer], sent.layers[source]
                into.keys[:, :, at] = projected(state, into.keys[:, :, at], read.keys[:, :, at], "key")
                into.values[:, :, at] = projected(
                    state, into.values[:, :, at], read.values[:, :, at], "value"
                )
        start = end
    logits, ids, width = out.logits[0, -1], [], mine.shape[1]
    first = logits
    for _ in range(steps):
        ids.append(int(logits.argmax()))
        out = receiver(
            input_ids=torch.tensor([[ids[-1]]]), attention_mask=torch.ones(1, width + 1),
            position_ids=torch.tensor([[width]]), past_key_values=kv, use_cache=True,
        )  # fmt: skip
        logits, width = out.logits[0, -1], width + 1
    return first, ids, kv


# -- the user's path ---------------------------------------------------------------------------------


def fuser_with(strategy: str, folder: Path) -> Path:
    """A checkpoint in the released layout whose recipe asks for token alignment."""
    shutil.copytree(FUSER, folder, copy_function=shutil.copyfile)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["model"] |= {"is_do_alignment": True, "alignment_strategy": strategy}
    path.chmod(0o644)
    path.write_text(json.dumps(raw))
    return folder


@cache
def made(root: str, direction: str, strategy: str, attention: str = "sdpa"):
    """A method as a user makes it: `import-c2c`, then `lcfbench.create` on the folder."""
    folder = Path(root)
    names = ("receiver", "sharer") if direction == "forward" else ("sharer", "receiver")
    models = []
    for weights, tokenizer in zip((RECEIVER, SHARER), names, strict=True):
        models.append(folder / f"{direction}-{weights.name}")
        if not models[-1].exists():
            models[-1].mkdir()
            for source in (weights, REFERENCE / "aligner" / f"tokenizer-{tokenizer}"):
                for file in source.iterdir():
                    shutil.copyfile(file, models[-1] / file.name)
    place = folder / f"adapter-{strategy}"
    if not place.exists():
        import_to(str(fuser_with(strategy, folder / f"fuser-{strategy}")), place, dtype=torch.float32)
    pair = lcfbench.load_pair(":".join(map(str, models)), dtype="float32", attention=attention, device="cpu")
    return lcfbench.create("c2c", pair, adapter=str(place))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("aligned"))


def document(messages: list[dict]) -> Document:
    begun = messages[-1]["role"] == "assistant"
    before = messages[:-2] if begun else messages[:-1]
    history = tuple((m["role"], m["content"]) for m in before)
    user = messages[-2 if begun else -1]["content"]
    view = View(user, messages[-1]["content"] if begun else "", history)
    return replace(reference_document(user, True), receiver=view, sharer=view)


def answered(method, cases: list[dict]):
    documents = [document(c["messages"]) for c in cases]
    return method.respond(Batch(documents, documents, Clock()))


def greedy(state, steps: int = 12) -> tuple[torch.Tensor, list[list[int]]]:
    opened = state.lm.open(state)
    first, written = opened.logits, []
    for _ in range(steps):
        written.append(opened.logits.argmax(-1).tolist())
        kv = opened.kv
        kv = replace(kv, mask=kv.present, silent=None)
        opened = state.lm.open(replace(opened.then([[i] for i in written[-1]], state.prompts), kv=kv))
    return first, [list(ids) for ids in zip(*written, strict=True)]


def check(state, row: int, case: dict, first: torch.Tensor, ids: list[int]) -> None:
    logits, wanted, kv = oracle(case)
    torch.testing.assert_close(first, logits, atol=ATOL, rtol=0)
    assert ids == wanted
    fused = state.kv.mask[row].bool()
    real = [c for c, pad in enumerate(case["slm_padding_mask"]) if not pad][: int(fused.sum())]
    for layer in range(6):
        for ours, theirs in (
            (state.kv.keys, kv.layers[layer].keys),
            (state.kv.values, kv.layers[layer].values),
        ):
            torch.testing.assert_close(ours[layer, row][:, fused], theirs[0][:, real], atol=ATOL, rtol=0)
    assert state.kv.positions[row][fused].tolist() == real


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_recorded_chats(case, root):
    state = answered(made(root, case["direction"], case["strategy"]), [case])
    first, ids = greedy(state)
    check(state, 0, case, first[0], ids[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("strategy", ["longest", "first"])
def test_recorded_chats_in_one_batch(strategy, direction, attention, root):
    cases = [c for c in CASES if (c["strategy"], c["direction"]) == (strategy, direction)]
    state = answered(made(root, direction, strategy, attention), cases)
    first, ids = greedy(state)
    for row, case in enumerate(cases):
        check(state, row, case, first[row], ids[row])


@pytest.mark.parametrize("window", [6, 12, 40])
def test_windows_shorter_than_the_prompt(window, tmp_path, monkeypatch):
    """Padding counts in the columns of a sliding window, for tokens that are read and for those written."""
    windowed = tmp_path / "model"
    windowed.mkdir()
    for file in RECEIVER.iterdir():
        shutil.copyfile(file, windowed / file.name)
    config = json.loads((windowed / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 2}
    config.pop("layer_types", None)
    (windowed / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys.modules[__name__], "RECEIVER", windowed)
    method = made(str(tmp_path), "forward", "longest")
    assert method.receiver.windows == [None, None, *[window] * 4]
    cases = [c for c in CASES if (c["strategy"], c["direction"]) == ("longest", "forward")][:8]
    assert window == 40 or all(len(c["slm_ids_padded"]) > window for c in cases)
    for batch in ([cases[0]], cases):
        state = answered(method, batch)
        first, ids = greedy(state)
        monkeypatch.setattr(state.lm, "stop_ids", set)
        texts, _ = decode(state.lm.open(state), 12)
        for row, case in enumerate(batch):
            check(state, row, case, first[row], ids[row])
            assert texts[row] == state.lm.tokenizer.decode(ids[row], skip_special_tokens=True)


def test_every_way_to_score_agrees_after_padding_at_the_end(root):
    """Ranking, the training loss and greedy decoding start at the same pad."""
    method = made(root, "forward", "longest")
    cases = [c for c in CASES if (c["strategy"], c["direction"]) == ("longest", "forward")][:4]
    state = answered(method, cases)
    assert state.silent is not None and state.silent.sum(1).tolist() == [2, 2, 2, 2] and not can_branch(state)
    targets = [[5, 9, 11], [7], [300, 2], [1, 2, 3, 4]]
    ranked = rank(state.lm.open(state), [[t] for t in targets])
    wanted = -sum(ll / len(t) for [(ll, _)], t in zip(ranked, targets, strict=True)) / len(targets)
    loss, _ = answer_loss(state, targets, [[True] * len(t) for t in targets])
    assert float(loss) == pytest.approx(wanted, abs=1e-4)
    _, ids = greedy(state, 6)
    _, written = decode(state.lm.open(state), 6)
    texts = [state.lm.tokenizer.decode(i, skip_special_tokens=True) for i in ids]
    assert written == [6] * 4 and decode(state.lm.open(state), 6)[0] == texts


def test_the_setting_is_stored_and_decides(root, tmp_path):
    method = made(root, "forward", "longest")
    assert method.adapter.config.remap_padding == "counted"
    folder = tmp_path / "old"
    shutil.copytree(Path(root) / "adapter-longest", folder)
    raw = json.loads((folder / "config.json").read_text())
    assert raw.pop("remap_padding") == "counted"
    (folder / "config.json").write_text(json.dumps(raw))
    older = C2C(method.receiver, method.sharer, load(folder))
    state = answered(older, CASES[:1])
    assert older.adapter.config.remap_padding == "none" and state.silent is None
    assert not torch.allclose(state.lm.open(state).logits[0], oracle(CASES[0])[0], atol=0.5)


def test_an_import_without_the_setting_is_told_once(root, tmp_path, capsys):
    folder = tmp_path / "old"
    shutil.copytree(Path(root) / "adapter-longest", folder)
    load(folder)
    assert capsys.readouterr().err == ""
    raw = json.loads((folder / "config.json").read_text())
    del raw["remap_padding"]
    (folder / "config.json").write_text(json.dumps(raw))
    load(folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "adapter import-c2c" in said and str(folder) in said


def test_too_long_with_the_padding_is_refused(root):
    method = made(root, "forward", "longest")
    chat = document(CASES[0]["messages"])
    config = method.receiver.model.config
    width, before = len(CASES[0]["slm_ids_padded"]), config.max_position_embeddings
    try:
        config.max_position_embeddings = width
        method.respond(Batch([chat], [chat], Clock()))
        config.max_position_embeddings = width - 1
        with pytest.raises(UserError, match=f"need {width} positions"):
            method.respond(Batch([chat], [chat], Clock()))
    finally:
        config.max_position_embeddings = before


def test_another_document_s_message_keeps_the_receiver_s_own_places(root):
    method = made(root, "forward", "longest")
    mine, other = document(CASES[0]["messages"]), document(CASES[2]["messages"])
    own = method.respond(Batch([mine], [mine], Clock()))
    state = method.respond(Batch([mine], [other], Clock()))
    assert torch.equal(state.ids, own.ids) and torch.equal(state.positions, own.positions)
    assert torch.equal(state.kv.positions, own.kv.positions) and not torch.equal(state.kv.keys, own.kv.keys)

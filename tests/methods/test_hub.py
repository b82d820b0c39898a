"""Hub codecs on tiny random models: pairs never trained together, a model added later, and what crosses."""

from __future__ import annotations

import pytest
import torch

import lcfbench
from lcfbench.adapters.base import build
from lcfbench.adapters.codec import codec_file, put_codec, read_codec, ridge, save_codec
from lcfbench.adapters.config import pair_config, read_config
from lcfbench.adapters.files import load
from lcfbench.errors import UserError
from lcfbench.methods.base import Batch
from lcfbench.methods.create import create
from lcfbench.methods.hub import compose
from lcfbench.methods.load_pair import load_pair
from lcfbench.models.timing import Clock
from lcfbench.models.wire import unpack
from lcfbench.training.recipe import TrainRecipe
from lcfbench.training.trainer import train
from tests import helpers
from tests.helpers import SHARED, SPLIT, Watcher, invoke, outcomes
from tests.helpers import random_codec as adapter
from tests.helpers import tiny_pair as pair

DOCUMENTS = pytest.mark.parametrize("documents", [SHARED, SPLIT], ids=["shared", "split"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str, str]:
    """Three models in folders: A and B of a pair, and C, of the shape of A with other weights."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("models")
    a, b = helpers.save_pair(home / "ab").split(":")
    lm = load_pair(f"{a}:{b}", dtype="float32").receiver
    torch.manual_seed(9)
    with torch.no_grad():
        for p in lm.model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    lm.model.save_pretrained(home / "c")
    lm.tokenizer.save_pretrained(home / "c")
    return a, b, str(home / "c")


def recipe(names: str, out, **more) -> TrainRecipe:
    small = {"steps": 4, "batch_size": 4, "dev_documents": 6, "eval_every": 4, "save_every": 2, "warmup": 1}
    options = {"width": "8", **more.pop("options", {})}
    given = {"adapters": ["hub"], "pair": names, "out": out, "dtype": "float32", "options": options}
    return TrainRecipe.model_validate({**small, **given, **more})


@pytest.fixture(scope="module")
def hub(models, tmp_path_factory):
    """A hub of three models: A and B trained together, then C against B alone. With its bytes on the way."""
    a, b, c = models
    home = tmp_path_factory.mktemp("hub")
    train(recipe(f"{a}:{b}", home / "ab", options={"hub": str(home / "hub")}), Watcher())
    first = {file.name: file.read_bytes() for file in (home / "hub").iterdir()}
    train(recipe(f"{b}:{c}", home / "bc", options={"hub": str(home / "hub")}), Watcher())
    return home, first


def test_a_model_added_later_leaves_the_others_bytes_untouched(hub):
    home, first = hub
    now = {file.name: file.read_bytes() for file in (home / "hub").iterdir()}
    assert len(first) == 2 and len(now) == 3
    assert {name: now[name] for name in first} == first


def test_the_frozen_codec_is_the_one_trained_with_and_the_new_one_learns(hub, models):
    home, _ = hub
    _, b, c = models
    lms = load_pair(f"{b}:{c}", dtype="float32")
    trained = load(home / "bc")
    kept, _ = read_codec(codec_file(home / "hub", lms.receiver.revision))
    for name, tensor in trained.codec("receiver").items():
        assert torch.equal(tensor.float(), kept[name].float()), name
    new, _ = read_codec(codec_file(home / "hub", lms.sharer.revision))
    for name, tensor in trained.codec("sharer").items():
        assert torch.equal(tensor.float(), new[name].float()), name


@pytest.mark.parametrize("order", ["AC", "CA"])
def test_a_pair_never_trained_together_evaluates(hub, models, tmp_path, order):
    home, _ = hub
    by = dict(zip("ABC", models, strict=True))
    names = f"{by[order[0]]}:{by[order[1]]}"
    made = compose(home / "hub", names, tmp_path / "made")
    assert not made.whole and set(made.codec("sharer")) == {"encode", "mean", "deviation"}
    found = lcfbench.run(
        mode=["hub"],
        pair=names,
        adapter=[tmp_path / "made"],
        task=["splitfacts"],
        control=["matched", "deranged"],
        limit=6,
        dtype="float32",
        latency_documents=0,
        out=tmp_path / "runs",
    )
    scores = found.samples
    assert len(scores) == 12 and scores.message_bytes.min() > 0
    # it is the sharer's encoder and the receiver's decoder: by hand, the same tensors
    lms = load_pair(names, dtype="float32")
    for side, lm in (("sharer", lms.sharer), ("receiver", lms.receiver)):
        kept, _ = read_codec(codec_file(home / "hub", lm.revision))
        for name, tensor in made.codec(side).items():
            assert torch.equal(tensor.float(), kept[name].float())


def test_the_command_composes_and_names_what_lacks(hub, models, tmp_path, capsys, monkeypatch):
    home, _ = hub
    a, _, c = models
    given = ["adapter", "compose", str(home / "hub"), "--pair", f"{a}:{c}", "--out", str(tmp_path / "x")]
    code, out, _ = invoke(capsys, monkeypatch, *given)
    assert code == 0 and "lcfbench run --mode hub" in out
    assert read_config(tmp_path / "x").kind == "codec"
    (tmp_path / "empty").mkdir()
    given[2] = str(tmp_path / "empty")
    code, _, err = invoke(capsys, monkeypatch, *given, "--force")
    assert code == 2 and "has no codec of" in err


def test_hubs_that_do_not_fit_are_refused(hub, models, tmp_path):
    home, _ = hub
    a, b, c = models
    with pytest.raises(UserError, match="nothing to train"):
        train(recipe(f"{a}:{c}", tmp_path / "a", options={"hub": str(home / "hub")}), Watcher())
    alone = tmp_path / "alone"
    alone.mkdir()
    name = codec_file(home / "hub", load_pair(f"{a}:{b}", dtype="float32").receiver.revision).name
    (alone / name).write_bytes((home / "hub" / name).read_bytes())
    with pytest.raises(UserError, match="width 8, this adapter 6"):
        train(recipe(f"{a}:{b}", tmp_path / "b", options={"hub": str(alone), "width": "6"}), Watcher())
    (alone / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no codec"):
        train(recipe(f"{a}:{b}", tmp_path / "c", options={"hub": str(alone)}), Watcher())


def test_a_resumed_training_ends_as_the_uninterrupted_one(models, tmp_path):
    names = ":".join(models[:2])
    pairs = (("w", "one"), ("a", "two"))
    whole, parts = (recipe(names, tmp_path / out, options={"hub": str(tmp_path / n)}) for out, n in pairs)

    def no_hub():
        assert not (tmp_path / "two").exists()  # nothing half trained is in the hub

    helpers.whole_and_resumed(whole, parts, 3, between=no_hub)
    both = [{f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("one", "two")]
    assert both[0] == both[1] and len(both[0]) == 2


@DOCUMENTS
@pytest.mark.parametrize("chat", [False, True])
def test_batch_1_equals_batch_n(documents, chat):
    lms = pair(chat=chat)
    method = create("hub", *lms, adapter(lms))
    with torch.no_grad():
        together, state, _ = outcomes(method, documents)
        for i, d in enumerate(documents):
            alone, single, _ = outcomes(method, [d])
            assert together[i] == pytest.approx(alone[0], abs=5e-4)
            assert state.message.wire_bytes[i] == single.message.wire_bytes[0] > 0
            assert state.message.adapter_flops[i] == single.message.adapter_flops[0] > 0


@DOCUMENTS
def test_sdpa_equals_eager(documents):
    with torch.no_grad():
        a, b = (
            outcomes(create("hub", *lms, adapter(lms)), documents)[0]
            for lms in (pair(), pair(attention="eager"))
        )
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, abs=5e-4)


def test_a_code_a_token_crosses_and_nothing_else():
    lms = pair()
    method = create("hub", *lms, adapter(lms))
    batch = Batch(SPLIT, SPLIT, Clock(), "native")
    with torch.no_grad():
        state = method.respond(batch)
    for read, packet in zip(state.message.read, state.message.packets, strict=True):
        [(name, found)] = unpack(packet).items()
        assert name == "latents" and found.shape == (1, len(read.ids) - 1, 6)


def test_the_codec_of_the_other_direction_and_of_a_model_alone_run_too():
    lms = pair()
    method = create("hub", *lms, adapter(lms))
    with torch.no_grad():
        batch = Batch(SPLIT, SPLIT, Clock())
        for source, target in method.paths():
            state = method.passed(batch, source, target)
            assert state.lm is method.model(target) and len(state.kv.keys) == state.lm.geometry.layers
        swapped = create("hub", *lms[::-1], halves(method.adapter, lms))
        ours, theirs = method.passed(batch, "receiver", "sharer"), swapped.respond(batch)
    torch.testing.assert_close(ours.kv.keys, theirs.kv.keys)


def halves(made, lms):
    """The halves for the other direction."""
    names = ((e.name, e.geometry) for e in lms[::-1])
    other = build(pair_config("codec", *names, options={"width": made.width, "whole": False}))
    with torch.no_grad():
        for mine, theirs in (("sharer", "receiver"), ("receiver", "sharer")):
            for name, tensor in other.codec(mine).items():
                tensor.copy_(made.part(theirs, name))
    return other.requires_grad_(False).eval()


def test_the_closed_form_start_finds_a_linear_space():
    """Entries of two models that are linear in the same few numbers are found again, whoever reads."""
    torch.manual_seed(0)
    made = adapter(pair(), width=5, stir=0.0)
    hidden = torch.randn(400, 5)
    sharer = torch.einsum("tu,nus->nts", hidden, torch.randn(3, 5, 32)) + 2
    receiver = torch.einsum("tu,nus->nts", hidden, torch.randn(4, 5, 32)) - 1
    with torch.no_grad():
        made.start_space("sharer", sharer[:, :300])
        made.join_space("receiver", receiver[:, :300], made.message(sharer[:, :300], "sharer"))
        for source, entries in (("sharer", sharer), ("receiver", receiver)):
            codes = made.message(entries[:, 300:], source)
            for target, wanted in (("sharer", sharer), ("receiver", receiver)):
                error = (made(codes, target) - wanted[:, 300:]).square().mean()
                assert error < 0.05 * wanted.var(), (source, target)


def test_ridge_is_the_same_through_either_gram_matrix():
    torch.manual_seed(0)
    for N, p in ((30, 8), (8, 30)):
        x, y = torch.randn(N, p).double(), torch.randn(N, 3).double()
        penalty = 1e-2 * float(x.square().mean()) * 30 + 1e-12
        plain = torch.linalg.solve(x.T @ x + penalty * torch.eye(p).double(), x.T @ y)
        torch.testing.assert_close(ridge(x, y), plain, atol=1e-6, rtol=1e-5)


def test_a_codec_survives_its_file_and_an_adapter_its_folder(tmp_path):
    lms = pair()
    made = adapter(lms)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(p.bfloat16())  # as codecs are saved
    for side in ("sharer", "receiver"):
        save_codec(made, side, tmp_path / "h" / f"{side}.safetensors", side, "1")
    other = adapter(lms, stir=0.1)
    for side in ("sharer", "receiver"):
        put_codec(other, side, tmp_path / "h" / f"{side}.safetensors")
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    helpers.saved_and_loaded(made, tmp_path / "a", "hub", lms)

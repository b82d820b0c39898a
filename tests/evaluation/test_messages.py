"""Messages that a run keeps are the bytes that crossed, whichever processes made them and when."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load, save_file
from safetensors.torch import save as save_tensors

import lcfbench
from lcfbench.errors import UserError
from lcfbench.evaluation.gathering import gather
from lcfbench.evaluation.recipe import Recipe
from lcfbench.models.causal_lm import CausalLM
from lcfbench.results import messages as kept
from lcfbench.results.messages import kept_names, read_message, tensors_of
from lcfbench.results.reader import list_runs
from lcfbench.results.writer import RunWriter
from lcfbench.sources import models
from lcfbench.sources.models import find_model
from tests.helpers import ROOT, invoke, manifest_of, process, rows, run_recipe, save

ASKED = {"mode": "receiver,t2t,cacheback,kvcomm", "control": ["matched", "silent"], "limit": 6}


@pytest.fixture(scope="module")
def one_model(tmp_path_factory):
    end = save(tmp_path_factory.mktemp("models") / "one")
    return f"{end}:{end}"


@pytest.fixture(scope="module")
def whole(one_model, tmp_path_factory):
    """The folder of runs whose messages are kept."""
    out = tmp_path_factory.mktemp("whole")
    run_recipe(one_model, out, keep_messages=True, **ASKED)
    return out


def messages_of(out):
    """Everything that is kept below a folder, by run and file."""
    found = sorted(out.glob("*/messages/*"))
    return {f"{path.parent.parent.name}/{path.name}": path.read_bytes() for path in found}


def test_every_message_that_crossed_is_kept(whole):
    """Its bytes are those that the row counts; runs that send nothing keep nothing."""
    sent = 0
    for run in sorted(whole.iterdir()):
        mode, control = (manifest_of(run)["identity"][name] for name in ("mode", "control"))
        names = kept_names(run)
        if mode == "receiver" or control == "silent":
            assert not names
            continue
        assert manifest_of(run)["identity"]["wire"] == "native"
        assert names == {row["doc_hash"] for row in rows(run)}
        for row in rows(run):
            message, sent = read_message(run, row["doc_hash"]), sent + 1
            [data] = message.packets
            assert len(data) == row["message_bytes"]
            told = {"mode": mode, "control": control, "task": row["task"], "seed": 0, "wire": "native"}
            told |= {name: row[name] for name in ("doc_id", "doc_hash", "message_from")}
            assert told.items() <= message.about.items()
            if message.is_text:
                assert mode == "t2t" and data.decode() == row["message_text"]
            else:
                assert {n: list(x.shape) for n, x in load(data).items()} == {
                    n: shape for n, (_, shape) in tensors_of(data).items()
                }
    assert sent == 3 * 6


def test_the_spans_that_were_chosen_are_kept_as_text(whole):
    """cacheback: their tokens are those of the keys, and their text is a part of what the sharer read."""
    for run in whole.glob("cacheback-splitfacts-matched-*"):
        for row in rows(run):
            message = read_message(run, row["doc_hash"])
            [spans] = message.about["spans"]
            tokens = sum(span["stop"] - span["start"] for span in spans)
            assert 0 < tokens == load(message.packets[0])["keys"].shape[1] < row["sharer_tokens"]
            assert all(span["text"] in row["sharer_prompt"] for span in spans)
            assert all(a["stop"] < b["start"] for a, b in pairwise(spans))


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is done."""


def killed_after(count, monkeypatch, name, go):
    plain, done = getattr(RunWriter, name), []

    def broken(self, what):
        if len(done) == count:
            self.close()
            raise Killed
        done.append(what)
        return plain(self, what)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, name, broken)
        with pytest.raises(Killed):
            go()


@pytest.mark.parametrize("name", ["append", "keep"])
def test_what_was_cut_and_resumed_is_as_if_it_was_not(one_model, whole, tmp_path, monkeypatch, name):
    """Whether the cut comes behind a message or before it."""

    def go():
        run_recipe(one_model, tmp_path, keep_messages=True, **ASKED)

    for count in (0, 5):
        killed_after(count, monkeypatch, name, go)
    go()
    assert messages_of(tmp_path) == messages_of(whole)


def test_parts_are_put_together_with_their_messages(one_model, whole, tmp_path):
    """In one folder, and gathered from two."""
    for folder in (tmp_path / "here", tmp_path / "there"):
        for number in (1, 2):
            out = folder if folder.name == "here" else folder / str(number)
            run_recipe(one_model, out, keep_messages=True, shard=f"{number}/2", **ASKED)
    gather([tmp_path / "there" / "1", tmp_path / "there" / "2"], tmp_path / "both")
    assert messages_of(tmp_path / "here") == messages_of(whole) == messages_of(tmp_path / "both")


def test_two_processes_keep_the_same(one_model, whole, tmp_path):
    run_recipe(one_model, tmp_path, keep_messages=True, processes=2, **ASKED)
    assert messages_of(tmp_path) == messages_of(whole)


def test_a_run_of_which_nothing_was_kept_is_refused(one_model, tmp_path):
    """Its answers are there and their messages are not: only --fresh makes both."""
    asked = {"mode": "t2t", "wire": ["native"]}
    [run] = run_recipe(one_model, tmp_path, **asked)
    with pytest.raises(UserError, match=r"12 documents have .* messages that were not kept.*--fresh"):
        run_recipe(one_model, tmp_path, keep_messages=True, **asked)
    assert run_recipe(one_model, tmp_path, keep_messages=True, fresh=True, **asked) == [run]
    assert len(kept_names(run)) == 12
    assert run_recipe(one_model, tmp_path, keep_messages=True, **asked) == [run]
    run_recipe(one_model, tmp_path, fresh=True, **asked)
    assert not (run / "messages").exists()


def test_refusals(one_model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--keep-messages: receiver, full_context sends no message"):
        run_recipe(one_model, tmp_path, mode="receiver,full_context", keep_messages=True)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(5_000))
    with pytest.raises(UserError, match=r"keeping the messages of 12 documents \(--keep-messages\) needs"):
        run_recipe(one_model, tmp_path, mode="kvcomm", keep_messages=True)
    [run] = list_runs(tmp_path)
    assert (run["state"], run["documents"]) == ("interrupted", 0)
    monkeypatch.undo()
    [folder] = run_recipe(one_model, tmp_path, mode="kvcomm", keep_messages=True)
    assert len(kept_names(folder)) == 12


def test_without_a_form_they_cross_as_native(tmp_path):
    assert Recipe.merge(None, {"keep_messages": True}).wire == ["native"]
    assert Recipe.merge(None, {"keep_messages": True, "wire": "int8"}).wire == ["int8"]
    assert Recipe.merge(None, {"keep_messages": False}).wire == []


def test_damaged_messages(whole, tmp_path):
    shutil.copytree(next(whole.glob("kvcomm-splitfacts-matched-*")), tmp_path / "run")
    run = tmp_path / "run"
    first, second, third, *_ = sorted(kept_names(run))
    (run / "messages" / f"{first}.safetensors").write_bytes(b"")
    with pytest.raises(kept.DamagedMessageError, match=r"is damaged \(0 bytes, [0-9,]+ crossed\)"):
        read_message(run, first)
    data = bytearray((run / "messages" / f"{second}.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "messages" / f"{second}.safetensors").write_bytes(data)
    with pytest.raises(kept.DamagedMessageError, match="its bytes are not those that crossed"):
        read_message(run, second)
    about = run / "messages" / f"{third}.json"
    for text in ("", "[]", "{}", about.read_text().replace(f"{third}.safetensors", "../manifest.json")):
        about.write_text(text)
        with pytest.raises(kept.DamagedMessageError, match="is damaged"):
            read_message(run, third)
    with pytest.raises(UserError, match=r"no message of document beef is kept in .*--keep-messages"):
        read_message(run, "beef")


TOLD = {  # what is said about a message, changed
    "nothing is said of whose it is": lambda about: about.pop("message_from"),
    "a number for a document": lambda about: about.update(message_from=7),
    "no method": lambda about: about.pop("mode"),
    "no files": lambda about: about.update(packets=[]),
    "spans are a number": lambda about: about.update(spans=3),
    "spans without places": lambda about: about.update(spans=[[{"start": "a", "stop": 2, "text": ""}]]),
    "spans of two prompts": lambda about: about.update(spans=[[], []]),
}


@pytest.mark.parametrize("change", TOLD.values(), ids=TOLD)
def test_what_is_said_about_a_message_has_its_shape(whole, tmp_path, capsys, monkeypatch, change):
    shutil.copytree(run_of(whole, "cacheback-splitfacts-matched"), tmp_path / "run")
    first, *_ = sorted(kept_names(tmp_path / "run"))
    file = tmp_path / "run" / "messages" / f"{first}.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    for more in ((), ("-d", first)):
        code, out, err = message(capsys, monkeypatch, "show", tmp_path / "run", *more)
        assert (code, out) == (2, "") and err.count("\n") == 1 and f"{first}.json is damaged" in err, err


def test_messages_with_odd_headers_are_one_line(whole, tmp_path, capsys, monkeypatch):
    """Their digests are right: somebody wrote them so."""
    shutil.copytree(run_of(whole, "kvcomm-splitfacts-matched"), tmp_path / "run")
    first, *_ = sorted(kept_names(tmp_path / "run"))
    stored = read_message(tmp_path / "run", first)
    about = {k: v for k, v in stored.about.items() if k != "packets"}
    for data in (b"\xff" * 16, (9000).to_bytes(8, "little") + b"[" * 9000, (2).to_bytes(8, "little") + b"[]"):
        kept.keep_message(tmp_path / "run", kept.KeptMessage((data,), about))
        code, out, err = message(capsys, monkeypatch, "show", tmp_path / "run")
        assert (code, out) == (2, "") and err.count("\n") == 1 and "has no header" in err, err


ODD = {
    "no recipe": lambda manifest: manifest.pop("recipe"),
    "a list for it": lambda manifest: manifest.update(recipe=[]),
    "a number for methods": lambda manifest: manifest["recipe"].update(mode=[3]),
    "a list for options": lambda manifest: manifest["recipe"].update(options=["a"]),
    "no identity": lambda manifest: manifest.update(identity={}),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_manifests_of_another_shape_are_one_line(whole, tmp_path, capsys, monkeypatch, change):
    shutil.copytree(run_of(whole, "kvcomm-splitfacts-matched"), tmp_path / "run")
    manifest = manifest_of(tmp_path / "run")
    change(manifest)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = message(capsys, monkeypatch, "replay", tmp_path / "run")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "does not say how it was made" in err, err


def test_messages_that_are_not_there_are_counted(whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(run_of(whole, "kvcomm-splitfacts-matched"), tmp_path / "run")
    (tmp_path / "run" / "messages" / f"{rows(tmp_path / 'run')[1]['doc_hash']}.json").unlink()
    code, out, err = message(capsys, monkeypatch, "replay", tmp_path / "run")
    assert code == 0 and "5 of 5" in out and "1 of 6 documents have no message" in err


def test_a_run_of_a_device_that_is_not_here(whole, tmp_path, capsys, monkeypatch):
    """Its answers are compared on this one."""
    shutil.copytree(run_of(whole, "kvcomm-splitfacts-matched"), tmp_path / "run")
    manifest = manifest_of(tmp_path / "run")
    manifest["recipe"] |= {"device": "cuda:99", "dtype": "auto"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = message(capsys, monkeypatch, "replay", tmp_path / "run")
    assert code == 0 and "6 of 6" in out and not err


@pytest.mark.parametrize("cut", [False, True])
def test_what_a_run_does_not_keep_is_calibrated_again(pair, one_model, tmp_path, monkeypatch, capsys, cut):
    """A map between two models is in no manifest; the layers of a run that was cut are in its own."""
    mode, models = ("kvcomm:layers=0.5", one_model) if cut else ("activation", pair)

    def go():
        run_recipe(models, tmp_path / "out", keep_messages=True, limit=4, mode=[mode])

    if cut:
        killed_after(3, monkeypatch, "append", go)
    else:
        go()
    [run] = (tmp_path / "out").iterdir()
    code, out, err = message(capsys, monkeypatch, "replay", run)
    assert code == 0 and ("3 of 3" if cut else "4 of 4") in out
    assert ("is calibrated again" in err) != cut and (manifest_of(run)["calibration"] or not cut)


def test_on_the_command_line(one_model, tmp_path, capsys, monkeypatch):
    given = ("--pair", one_model, "--mode", "t2t", "--limit", "2", "--out", tmp_path)
    code, _, err = invoke(capsys, monkeypatch, "run", *given, "--keep-messages")
    assert code == 0, err
    assert len(messages_of(tmp_path)) == 2 * 2 * 2
    code, _, err = invoke(capsys, monkeypatch, "run", *given[:3], "receiver", *given[4:], "--keep-messages")
    assert code == 2 and "receiver sends no message" in err


# -- show and replay ------------------------------------------------------------------------------


def message(capsys, monkeypatch, *args):
    return invoke(capsys, monkeypatch, "message", *args)


def run_of(whole, begin):
    [found] = whole.glob(f"{begin}-*")
    return found


@pytest.mark.parametrize("mode", ["t2t", "cacheback", "kvcomm"])
def test_replays_answer_as_the_rows_and_run_no_sharer(one_model, whole, mode, monkeypatch, capsys):
    """All of a run, some of its documents, and as JSON."""
    run = run_of(whole, f"{mode}-splitfacts-matched")
    read = []
    plain = CausalLM.prefill

    def counted(self, rows, *args, **given):
        read.extend(map(tuple, rows))
        return plain(self, rows, *args, **given)

    monkeypatch.setattr(CausalLM, "prefill", counted)
    found = lcfbench.replay(run)
    monkeypatch.undo()
    assert list(found["equal"]) == [True] * 6 and found["difference"].max() == 0
    end = CausalLM.load(find_model(one_model.split(":")[0]))
    texts = {end.tokenizer.decode(ids) for ids in read}
    whole_rows = rows(run)
    assert len(texts) == 6 and not texts & {row["sharer_prompt"] for row in whole_rows}
    first, last = whole_rows[0]["doc_hash"], whole_rows[5]["doc_index"]
    code, out, _ = message(capsys, monkeypatch, "replay", run, "-d", first[:8], "-d", last, "--json")
    told = json.loads(out)
    assert code == 0 and told["equal"] and [d["number"] for d in told["documents"]] == [0, 5]


def test_replay_reads_no_weights_of_the_sharer(pair, adapter, tmp_path, monkeypatch):
    """They are not a number when it answers: whatever loads them is refused, and a run is."""
    receiver, sharer = map(Path, pair.split(":"))
    shutil.copytree(sharer, tmp_path / "sharer")
    pair = f"{receiver}:{tmp_path / 'sharer'}"
    given = {"mode": "t2t,lcf", "adapter": [adapter], "control": ["matched", "noise", "self"], "limit": 4}
    run_recipe(pair, tmp_path / "out", keep_messages=True, **given)
    digests = {folder.resolve(): models._folder_digest(folder) for folder in (receiver, tmp_path / "sharer")}
    file = tmp_path / "sharer" / "model.safetensors"
    save_file({n: x * float("nan") for n, x in load(file.read_bytes()).items()}, file, {"format": "pt"})
    monkeypatch.setattr(models, "_folder_digest", lambda folder: digests[folder.resolve()])
    with pytest.raises(UserError, match="hold NaN"):
        run_recipe(pair, tmp_path / "again", mode="t2t")
    runs = sorted((tmp_path / "out").iterdir())
    assert len(runs) == 5  # t2t has no cache for noise
    for run in runs:
        found = lcfbench.replay(run)
        assert list(found["equal"]) == [True] * 4 and found["difference"].max() == 0, run


def test_replay_tells_a_message_that_says_something_else(whole, tmp_path, capsys, monkeypatch):
    """Bytes that were changed together with their digest are read, and another answer comes of them."""
    shutil.copytree(run_of(whole, "kvcomm-splitfacts-matched"), tmp_path / "run")
    run = tmp_path / "run"
    name = rows(run)[2]["doc_hash"]
    stored = read_message(run, name)
    parts = {n: -x if x.is_floating_point() else x for n, x in load(stored.packets[0]).items()}
    about = {k: v for k, v in stored.about.items() if k != "packets"}
    kept.keep_message(run, kept.KeptMessage((save_tensors(parts),), about))
    code, out, _ = message(capsys, monkeypatch, "replay", run, "-d", "2")
    assert code == 1 and "0 of 1 answers" in out
    damaged = run / "messages" / f"{rows(run)[3]['doc_hash']}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, err = message(capsys, monkeypatch, "replay", run)
    assert code == 1 and "4 of 6 answers" in out and "is damaged" in err


def test_show(whole, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for mode in ("t2t", "cacheback", "kvcomm"):
        run = run_of(whole, f"{mode}-splitfacts-matched")
        code, out, _ = message(capsys, monkeypatch, "show", run)
        assert code == 0 and max(map(len, out.splitlines())) <= 80
        assert all(row["doc_hash"][:12] in out for row in rows(run))
        code, out, _ = message(capsys, monkeypatch, "show", run, "--document", "1")
        row = rows(run)[1]
        assert code == 0 and max(map(len, out.splitlines())) <= 80
        assert f"native, {row['message_bytes']:,} bytes" in out and "itself" in out
        code, out, _ = message(capsys, monkeypatch, "show", run.name, "--out", whole, "-d", "1", "--json")
        [told] = json.loads(out)["messages"]
        assert told["bytes"] == row["message_bytes"] and told["doc_hash"] == row["doc_hash"]
        if mode == "t2t":
            assert told["text"] == [row["message_text"]]
        else:
            assert set(told["tensors"][0]) >= {"keys", "values"}
        assert (mode == "cacheback") == ("spans" in told)


@pytest.mark.parametrize("verb", ["show", "replay"])
def test_odd_inputs_are_one_line(whole, tmp_path, capsys, monkeypatch, verb):
    run = run_of(whole, "t2t-splitfacts-matched")
    (tmp_path / "empty").mkdir()
    cases = {
        (tmp_path / "nowhere",): "no run is at",
        (tmp_path / "empty",): "keeps messages",
        (whole,): "3 runs at .* keep messages",
        (run_of(whole, "receiver"),): "keeps no messages.*--keep-messages",
        (run, "-d", "6"): "no document 6 has a row in .* go to 5",
        (run, "-d", "abc"): "no document 'abc' is among the 6",
        (run, "-d", "zzzz"): "no document 'zzzz' is among the 6",
    }
    for args, said in cases.items():
        code, out, err = message(capsys, monkeypatch, verb, *args)
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert re.search(said, err), err


def test_another_adapter_since(pair, adapter, tmp_path, capsys, monkeypatch):
    """The adapter of the run is asked for; where it lies elsewhere it is named."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    given = {"mode": "lcf", "adapter": [folder], "limit": 4}
    [run] = run_recipe(pair, tmp_path / "out", keep_messages=True, **given)
    assert all(lcfbench.replay(run)["equal"])
    weights = load((folder / "adapter.safetensors").read_bytes())
    save_file({n: x * 2 for n, x in weights.items()}, folder / "adapter.safetensors")
    code, out, err = message(capsys, monkeypatch, "replay", run)
    assert (code, out) == (2, "") and "--adapter" in err
    code, out, _ = message(capsys, monkeypatch, "replay", run, "--adapter", adapter)
    assert code == 0 and "4 of 4" in out
    shutil.rmtree(folder)
    for more in ((), ("--adapter", tmp_path / "nowhere"), ("--adapter", "nosuch")):
        code, out, err = message(capsys, monkeypatch, "replay", run, *more)
        assert (code, out) == (2, "") and "is not at" in err and "--adapter" in err


def test_an_adapter_that_stood_in_the_entry_of_its_method(pair, adapter, tmp_path, capsys, monkeypatch):
    shutil.copytree(adapter, tmp_path / "here")
    entry = f"lcf:adapter={tmp_path / 'here'}"
    [run] = run_recipe(pair, tmp_path / "out", keep_messages=True, mode=[entry], limit=4)
    assert manifest_of(run)["adapter_folder"] == str(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    code, out, err = message(capsys, monkeypatch, "replay", run)
    assert (code, out) == (2, "") and f"is not at {tmp_path / 'here'}" in err
    code, out, _ = message(capsys, monkeypatch, "replay", run, "--adapter", tmp_path / "there")
    assert code == 0 and "4 of 4" in out


def test_the_shell_shows_without_torch(whole):
    """Looking at messages loads no model, nor the library of models."""
    run = str(run_of(whole, "kvcomm-splitfacts-matched"))
    code = f"import sys, lcfbench; assert lcfbench.load_messages({run!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- several sharers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(one_model, tmp_path_factory):
    """The folder of runs with two sharers."""
    out, end = tmp_path_factory.mktemp("several"), one_model.split(":")[0]
    asked = {"mode": "t2t,cacheback,kvcomm", "control": ["matched", "deranged-one", "equal-text"]}
    asked |= {"task": ["splitfacts_several"], "task_options": {"sharers": "2"}, "limit": 6}
    run_recipe(f"{end}:{end},{end}", out, keep_messages=True, **asked)
    return out


@pytest.mark.parametrize("mode", ["t2t", "cacheback", "kvcomm"])
@pytest.mark.parametrize("control", ["matched", "deranged-one"])
def test_the_message_of_each_sharer_is_kept(several, mode, control):
    run = run_of(several, f"{mode}-splitfacts_several-{control}")
    for row in rows(run):
        message = read_message(run, row["doc_hash"])
        sizes, senders = (json.loads(row[f"each_message_{name}"]) for name in ("bytes", "from"))
        assert message.sharers == 2 and list(map(len, message.packets)) == sizes
        each = message.of_each()
        assert [part.about["message_from"] for part in each] == senders
        assert [part.packets for part in each] == [(data,) for data in message.packets]
        assert each[0].packets != each[1].packets
        files = {path.name for path in (run / "messages").glob(f"{row['doc_hash']}.sharer*")}
        end = "txt" if mode == "t2t" else "safetensors"
        assert files == {f"{row['doc_hash']}.sharer{k}.{end}" for k in (1, 2)}
        if mode == "t2t":
            assert "\n".join(data.decode() for data in message.packets) == row["message_text"]
        for part, text in zip(each, row["sharer_prompt"].split("\n\n"), strict=True):
            for span in part.about.get("spans", [[]])[0]:
                assert span["text"] in text


@pytest.mark.parametrize("mode", ["t2t", "cacheback", "kvcomm"])
@pytest.mark.parametrize("control", ["matched", "deranged-one", "equal-text"])
def test_replays_of_several_sharers(several, mode, control, monkeypatch):
    run = run_of(several, f"{mode}-splitfacts_several-{control}")
    read, plain = [], CausalLM.prefill
    monkeypatch.setattr(
        CausalLM,
        "prefill",
        lambda self, rows, *args, **given: (read.extend(rows), plain(self, rows, *args, **given))[1],
    )
    found = lcfbench.replay(run)
    monkeypatch.undo()
    assert list(found["equal"]) == [True] * 6 and found["difference"].max() == 0
    assert 6 <= len(set(map(tuple, read))) <= 7, "the receiver's prompts, and a batch's padding at most"


def test_replays_hear_each_sharer(several, tmp_path):
    """Bytes of one sharer that were changed with their digest change the answer, and so do swapped ones."""
    for name, change in (
        (
            "negated",
            lambda a, b: (
                a,
                save_tensors({n: -x if x.is_floating_point() else x for n, x in load(b).items()}),
            ),
        ),
        ("swapped", lambda a, b: (b, a)),
    ):
        run = tmp_path / name
        shutil.copytree(run_of(several, "kvcomm-splitfacts_several-matched"), run)
        stored = read_message(run, rows(run)[2]["doc_hash"])
        about = {k: v for k, v in stored.about.items() if k != "packets"}
        kept.keep_message(run, kept.KeptMessage(change(*stored.packets), about))
        assert list(lcfbench.replay(run)["equal"]) == [True, True, False, True, True, True]


def test_damaged_messages_of_several_sharers(several, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_of(several, "t2t-splitfacts_several-matched"), run)
    name = rows(run)[0]["doc_hash"]
    about = run / "messages" / f"{name}.json"
    plain = about.read_text()
    for wrong in ('"two"', "0", "3", "true"):
        about.write_text(re.sub(r'"sharers": ?2', f'"sharers": {wrong}', plain))
        with pytest.raises(kept.DamagedMessageError, match="its files are not those of its sharers"):
            read_message(run, name)


def test_show_several_sharers(several, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for mode in ("t2t", "cacheback", "kvcomm"):
        run = run_of(several, f"{mode}-splitfacts_several-deranged-one")
        code, out, _ = message(capsys, monkeypatch, "show", run)
        assert code == 0 and max(map(len, out.splitlines())) <= 80 and "1: " in out and "2: " in out
        row = rows(run)[1]
        sizes = json.loads(row["each_message_bytes"])
        code, out, _ = message(capsys, monkeypatch, "show", run, "--document", "1")
        assert code == 0 and max(map(len, out.splitlines())) <= 80
        for number, size in enumerate(sizes, 1):
            assert f"{number}, {size:,} bytes" in out
        assert "itself" in out and row["message_from"][:12] in out
        code, out, _ = message(capsys, monkeypatch, "show", run, "-d", "1", "--json")
        [told] = json.loads(out)["messages"]
        assert told["bytes"] == sum(sizes) and [part["bytes"] for part in told["each"]] == sizes
        assert all(("text" in part) == (mode == "t2t") for part in told["each"])


@pytest.mark.real
@pytest.mark.parametrize(
    ("mode", "pair", "said"),
    [
        ("t2t", "smollm2-135m:gemma3-270m", "text"),
        ("lcf", "smollm2-135m:gemma3-270m", "latents"),
        ("cacheback", "smollm2-135m:smollm2-135m", "keys"),
    ],
)
def test_real_models_answer_again_in_another_process(mode, pair, said, tmp_path):
    """Kept, shown and answered from: three processes, one answer."""
    given = ("--mode", mode, "--pair", pair, "--task", "splitfacts", "--limit", "6")
    code, _, err = process("run", *given, "--keep-messages", "--out", tmp_path)
    assert code == 0, err
    for run in sorted(tmp_path.iterdir()):
        code, out, err = process("message", "show", run, "-d", "0")
        assert code == 0 and said in out, err
        code, out, err = process("message", "replay", run, "--json")
        told = json.loads(out)
        assert code == 0 and told["equal"], err
        assert len(told["documents"]) == 6 and {d["difference"] for d in told["documents"]} == {0.0}

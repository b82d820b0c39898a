"""Messages that a run keeps are the bytes that crossed, whichever processes made them and when."""

from __future__ import annotations

import shutil
from collections import namedtuple
from itertools import pairwise

import pytest
from safetensors.torch import load

from lcfbench.errors import UserError
from lcfbench.evaluation.gathering import gather
from lcfbench.evaluation.recipe import Recipe
from lcfbench.results import messages as kept
from lcfbench.results.messages import kept_names, read_message, tensors_of
from lcfbench.results.reader import list_runs
from lcfbench.results.writer import RunWriter
from tests.helpers import invoke, manifest_of, rows, run_recipe, save

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


def test_on_the_command_line(one_model, tmp_path, capsys, monkeypatch):
    given = ("--pair", one_model, "--mode", "t2t", "--limit", "2", "--out", tmp_path)
    code, _, err = invoke(capsys, monkeypatch, "run", *given, "--keep-messages")
    assert code == 0, err
    assert len(messages_of(tmp_path)) == 2 * 2 * 2
    code, _, err = invoke(capsys, monkeypatch, "run", *given[:3], "receiver", *given[4:], "--keep-messages")
    assert code == 2 and "receiver sends no message" in err

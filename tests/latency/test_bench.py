"""`lcfbench bench` on a tiny pair, its documents of exact length, and a grid on the embedded pair."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save as save_adapter
from lcfbench.errors import UserError
from lcfbench.latency import grid
from lcfbench.latency.compare import check_comparable, read_table
from lcfbench.latency.documents import exactly, of_length, unstopped
from lcfbench.latency.plan import Took
from lcfbench.latency.recipe import BenchRecipe
from lcfbench.methods.base import prompt
from lcfbench.methods.create import create
from lcfbench.models.causal_lm import CausalLM
from lcfbench.models.timing import PHASES
from lcfbench.sources.cache import EMBEDDED_PAIR
from lcfbench.sources.models import find_model
from lcfbench.tasks.task import load_task
from tests import helpers

QUICK = ("--drift", 0, "--repeats", 3, "--warm-up", 1, "--dtype", "float32")
QUICK = (*QUICK, "--prompt-tokens", 150, "--answer-tokens", 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, pair) -> dict[str, Path]:
    """Random adapters of the pair: LCF made for openbookqa, LCF-X and dense for splitfacts."""
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in pair.split(":")]
    out = {}
    for kind, task in (("lcf", "openbookqa"), ("lcfx", "splitfacts"), ("dense", "splitfacts")):
        made = build(
            pair_config(
                kind, *((e.name, e.geometry) for e in ends), options={} if kind == "dense" else {"width": 8}
            )
        )
        with torch.no_grad():
            made.gate_logit.fill_(1.0)
        made.config = made.config.model_copy(update={"training": {"tasks": [task]}})
        out[kind] = tmp_path_factory.mktemp("adapters") / kind
        save_adapter(made, out[kind], "")
    return out


@pytest.fixture
def bench(capsys, monkeypatch, pair):
    """`lcfbench bench …` on the tiny pair: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: helpers.invoke(capsys, monkeypatch, "bench", "--pair", pair, *args)


# -- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("tokens", [100, 151, 250])
def test_a_document_is_as_long_as_asked_and_made_of_the_tasks_words(tokens, chat):
    receiver, task = helpers.causal_lm(chat=chat), load_task("splitfacts")
    task._extra = {**task._extra, "chat": chat}
    made = of_length(task, tokens, receiver, answer_tokens=7)
    length = {
        role: len(prompt(receiver, getattr(made, role), made).ids)
        for role in ("receiver", "sharer", "request", "full")
    }
    assert length == {"receiver": tokens, "sharer": tokens, "request": tokens, "full": 2 * tokens}
    first = task.documents(limit=1)[0]
    assert (
        made.receiver.user.startswith(first.receiver.user[:60])
        and made.receiver.prefix == first.receiver.prefix
    )
    assert (
        made.steps == made.until == made.request_until == () and made.max_new_tokens == 7 and not made.shared
    )


def test_on_shared_contexts_both_read_the_same(mirror):
    made = of_length(load_task("openbookqa"), 120, helpers.causal_lm(chat=True))
    assert (
        made.shared
        and made.chat
        and made.receiver is made.sharer is made.full
        and made.request != made.receiver
    )


def test_a_prompt_shorter_than_its_template_is_refused_with_the_least_length():
    receiver, task = helpers.causal_lm(), load_task("splitfacts")
    with pytest.raises(UserError, match=r"template of splitfacts") as refused:
        of_length(task, 2, receiver)
    least = int(refused.value.next_step.split()[-3])
    made = of_length(task, least, receiver)
    assert len(prompt(receiver, made.receiver, made).ids) == least
    with pytest.raises(UserError):
        of_length(task, least - 1, receiver)


def test_a_text_of_a_length_that_the_words_do_not_give():
    assert exactly(["three "], 7, lambda text: 3 * text.count("three") + text.count(" a")) == "three three a"
    with pytest.raises(UserError, match="exactly 5"):
        exactly(["pair "], 5, lambda text: 2 * len(text.split()))


def test_nothing_ends_an_answer_early_and_everything_does_again_afterwards():
    receiver = helpers.causal_lm()
    method, before = create("receiver", receiver, receiver), receiver.stop_ids()
    with pytest.raises(ZeroDivisionError), unstopped(method):
        assert receiver.stop_ids() == set()
        _ = 1 / 0
    assert receiver.stop_ids() == before != set()


# -- the verb -------------------------------------------------------------------------------------


def test_a_grid_of_methods_lengths_and_budgets(bench, adapters, tmp_path):
    file = tmp_path / "bench.json"
    code, out, err = bench(
        *QUICK[:-4],
        "--prompt-tokens",
        "150,200",
        "--answer-tokens",
        "1,3",
        "--mode",
        "receiver,t2t,lcf,dense",
        "--budget",
        "2,5",
        "--adapter",
        adapters["lcfx"],
        "--adapter",
        adapters["dense"],
        "--out",
        file,
    )
    assert code == 0, err
    *table, last = out.splitlines()
    found = json.loads(last)
    assert json.loads(file.read_text()) == found and max(map(len, table)) <= 80
    cells = [(r["mode"], r["budget"], r["prompt_tokens"], r["answer_tokens"]) for r in found["rows"]]
    modes = [("receiver", None), ("t2t", 2), ("t2t", 5), ("lcf", None), ("dense", None)]
    assert cells == [(*mode, n, k) for n in (150, 200) for k in (1, 3) for mode in modes]
    for row in found["rows"]:
        assert (
            row["task"] == "splitfacts" and row["n"] == 3 and row["tokens"]["answer"] == row["answer_tokens"]
        )
        assert row["tokens"]["note"] == (row["budget"] or 0)
        assert (row["tokens"]["answering"] == row["prompt_tokens"]) == (row["mode"] != "t2t")
        phases = {"receiver": set(), "t2t": {"sharer", "message"}}.get(row["mode"], {"sharer", "fuse"}) | {
            "prefill",
            "decode",
        }
        tokens = {"tpot", "itl"} if row["answer_tokens"] > 1 else set()
        assert set(row["ms"]) == phases | {"ttft", "ttea"} | tokens
        assert {name: len(times) for name, times in row["times"].items()} == dict.fromkeys(
            set(row["ms"]) - {"itl"}, 3
        )
        for times in row["ms"].values():
            assert 0 < times["min"] <= times["q1"] <= times["median"] <= times["q3"] <= times["max"]
        assert row["ms"]["ttft"]["median"] <= row["ms"]["ttea"]["median"]
    assert found["left_out"] == [] and found["interrupted"] is False and found["dtype"] == "float32"
    assert found["machine"]["threads"] == 1
    shown = [line.split() for line in table]
    for name in ("receiver", "t2t", "lcf", "dense"):
        assert any(line[:1] == [name] for line in shown)


def test_messages_as_bytes_are_timed_in_their_form(bench, adapters, tmp_path):
    """Tables of different forms are not compared."""
    modes = ("--mode", "receiver,t2t,lcf", "--adapter", adapters["lcfx"], "--budget", 2)
    for name, more in (("bytes", ("--wire", "int8")), ("plain", ())):
        code, _, err = bench(*QUICK, *modes, *more, "--out", tmp_path / name)
        assert code == 0, err
    found = {name: json.loads((tmp_path / name).read_text()) for name in ("bytes", "plain")}
    assert (found["bytes"]["wire"], found["plain"]["wire"]) == ("int8", None)
    with pytest.raises(UserError, match="these tables are not comparable: wire int8 against none"):
        check_comparable(*(read_table(tmp_path / name) for name in ("bytes", "plain")))


def test_each_adapter_reads_the_task_it_was_made_for(bench, adapters, mirror):
    given = [x for kind in ("lcf", "dense") for x in ("--adapter", adapters[kind])]
    code, out, err = bench(*QUICK, "--mode", "receiver,lcf,dense", *given, "--json")
    assert code == 0, err
    [line] = out.splitlines()
    assert [(r["task"], r["context"], r["mode"]) for r in json.loads(line)["rows"]] == [
        ("openbookqa", "shared", "receiver"),
        ("openbookqa", "shared", "lcf"),
        ("splitfacts", "different", "receiver"),
        ("splitfacts", "different", "dense"),
    ]


def test_what_cannot_serve_is_said_and_the_rest_is_measured(bench, adapters):
    code, out, err = bench(
        *QUICK, "--mode", "receiver,kvcomm,answer_letter,lcf,c2c", "--task", "splitfacts", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert [r["mode"] for r in found["rows"]] == ["receiver"]
    assert {e["mode"] for e in found["left_out"]} == {"kvcomm", "answer_letter", "lcf", "c2c"}
    assert err.count("left out: ") == 4 and "Traceback" not in err


def test_a_prompt_that_outgrows_a_model_is_left_out(bench):
    code, out, err = bench(
        *QUICK[:-4],
        "--prompt-tokens",
        300,
        "--answer-tokens",
        1,
        "--task",
        "splitfacts",
        "--mode",
        "receiver,full_context",
        "--json",
    )
    assert code == 0 and [r["mode"] for r in json.loads(out)["rows"]] == ["receiver"]
    assert "a prompt of 600 tokens needs 600 positions; " in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--mode", "recever"), "unknown method 'recever'. Did you mean receiver"),
        (("--task", "splitfact"), "unknown task 'splitfact'"),
        (
            ("--mode", "receiver", "--prompt-tokens", "64,many"),
            "setting prompt-tokens: 'many' is no number of tokens",
        ),
        (("--mode", "receiver", "--answer-tokens", "0"), "setting answer-tokens: '0' is no number of tokens"),
        (("--mode", "receiver", "--answer-tokens", ","), "nothing to measure"),
        (("--mode", "receiver", "--budget", "16"), "--budget: none of receiver has one"),
        (("--mode", "t2t", "-o", "budget=16"), "Use --budget"),
        (("--mode", "receiver", "-o", "bites=16"), "unknown option of receiver 'bites'"),
        (("--mode", "receiver", "--repeats", "0"), "setting repeats: "),
        (("--mode", "receiver", "--prompt-tokens", "3"), "Give --prompt-tokens"),
        (("--mode", "c2c", "--task", "splitfacts"), "nothing to measure: no adapter is at hand"),
        (("--mode", "receiver", "--out", "/nowhere/at/all.json"), "there is no folder /nowhere/at"),
        (("--mode", "receiver", "--device", "gpu"), "setting device: unknown device"),
    ],
)
def test_mistakes_are_one_line(bench, args, says):
    code, out, err = bench(*args)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and says in err, err


def test_ctrl_c_keeps_what_was_measured(bench, monkeypatch):
    plain, calls = grid.once, []

    def once(cell):
        calls.append(cell)
        if len(calls) == 8:  # three warm-up passes before them
            raise KeyboardInterrupt
        return plain(cell)

    monkeypatch.setattr(grid, "once", once)
    code, out, err = bench(*QUICK, "--mode", "receiver,sharer,full_context", "--task", "splitfacts")
    found = json.loads(out.splitlines()[-1])
    assert code == 130 and found["interrupted"] is True and "interrupted" in err
    assert found["partial"] is True and found["left_out"] == []
    assert sorted(r["n"] for r in found["rows"]) == [1, 1, 2]


def test_phases_that_do_not_add_up_are_said(bench, monkeypatch):
    took = dict.fromkeys(PHASES, 0.0) | {"prefill": 30.0, "decode": 60.0, "ttft": 50.0}

    def once(cell):
        return Took(took | {"ttea": 100.0 if cell.variant.mode == "receiver" else 94.0})

    monkeypatch.setattr(grid, "once", once)
    code, out, err = bench(*QUICK, "--mode", "receiver,full_context", "--task", "splitfacts")
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert code == 0 and [r["phases_gap_percent"] for r in rows] == pytest.approx(
        [10, 100 * 4 / 94], rel=1e-3
    )
    assert err.count("phases differ") == 1 and "receiver on splitfacts" in err and "by 10.0 %" in err
    assert any("30.0" in line and "60.0" in line and "50.0" in line for line in out.splitlines())


@pytest.mark.parametrize(
    "line", ["bench --help", "bench --mode recever", "bench --mode receiver --prompt-tokens x"]
)
def test_torch_stays_out_until_something_is_measured(line):
    look = "import sys, runpy; sys.argv = ['lcfbench', *sys.argv[1:]]\n"
    look += "try: runpy.run_module('lcfbench.cli', run_name='__main__')\n"
    look += "finally: print('LOADED', *(m for m in ('torch', 'transformers', 'lm_eval') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", look, *line.split()],
        env=helpers.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "LOADED" and "No such command" not in done.stderr


def test_spread_is_that_of_the_repeats():
    assert grid.spread([4, 1, 2, 3, 10]) == {"median": 3, "q1": 2, "q3": 4, "min": 1, "max": 10}
    assert set(grid.spread([2.5]).values()) == {2.5}


def test_a_method_from_a_file(tmp_path):
    file = tmp_path / "quiet.py"
    file.write_text(
        '"""quiet: the receiver alone."""\nfrom lcfbench.methods.receiver import Receiver\n'
        "class Quiet(Receiver):\n    pass\n"
    )
    assert BenchRecipe.merge(None, {"mode": f"receiver,{file}"}, "bench").mode == ["receiver", "quiet"]


def test_the_same_recipe_from_texts():
    assert BenchRecipe.merge(None, {"prompt_tokens": "8, 4,8"}, "bench").prompt_tokens == [8, 4]


@pytest.mark.real
def test_the_embedded_pair(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = helpers.invoke(
        capsys,
        monkeypatch,
        "bench",
        "--pair",
        EMBEDDED_PAIR,
        "--mode",
        "receiver,t2t,lcf",
        "--task",
        "splitfacts",
        "--budget",
        4,
        "--prompt-tokens",
        64,
        "--answer-tokens",
        3,
        "--drift",
        0,
        "--repeats",
        2,
        "--warm-up",
        1,
    )
    assert code == 0, err
    *table, last = out.splitlines()
    found = json.loads(last)
    assert max(map(len, table)) <= 80 and [r["mode"] for r in found["rows"]] == ["receiver", "t2t", "lcf"]
    gaps = []
    for row in found["rows"]:
        assert row["tokens"]["answer"] == 3 and row["tokens"]["note"] == (row["budget"] or 0)
        gaps.append(row["phases_gap_percent"])
        assert set(PHASES) >= set(row["ms"]) - {"ttft", "tpot", "itl", "ttea"}
    assert min(gaps) <= 5, gaps


# -- several sharers ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["splitfacts", "openbookqa"])
def test_each_of_several_sharers_reads_as_much(task):
    receiver = helpers.causal_lm()
    [one, three] = [of_length(load_task(task), 150, receiver, sharers=n) for n in (1, 3)]
    assert one.sharers == () and replace(three, sharers=(), requests=()) == one
    if task == "openbookqa":
        assert three.sharers == ()
        return
    assert three.sharers[0] == one.sharer and len(set(three.sharers)) == 3
    for views in (three.sharers, three.requests):
        assert [len(prompt(receiver, view, three).ids) for view in views] == [150] * 3


def test_one_two_and_three_sharers(capsys, monkeypatch, pair, adapters):
    """Phases and tokens are sums over the sharers; the receiver alone is timed once."""
    receiver, sharer = pair.split(":")
    words = ["--pair", f"{receiver}:{sharer},{sharer},{sharer}", "--sharers", "1,2,3", "--budget", "4"]
    words += ["--mode", "receiver,t2t,excerpt,lcf", "--task", "splitfacts", "--adapter", adapters["lcfx"]]
    quick = (*QUICK[:-4], "--prompt-tokens", 90, "--answer-tokens", 3)  # three notes must find room
    code, out, err = helpers.invoke(capsys, monkeypatch, "bench", *words, *quick, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["left_out"] == [] and [*told["models"]] == ["receiver", "sharer", "sharer 2", "sharer 3"]
    by_label = {row["label"]: row for row in told["rows"]}
    many = [f"{m}{n}" for m in ("t2t", "excerpt", "lcf") for n in ("", " sharers=2", " sharers=3")]
    assert set(by_label) == {"receiver", *many}
    assert by_label["receiver"]["sharers"] is None and by_label["receiver"]["join"] is None
    for mode, join in (("t2t", "row"), ("excerpt", "row"), ("lcf", "parallel")):
        one, two, three = (by_label[f"{mode}{n}"] for n in ("", " sharers=2", " sharers=3"))
        assert [row["sharers"] for row in (one, two, three)] == [1, 2, 3]
        assert [row["join"] for row in (one, two, three)] == [None, join, join]
        for name in ("sharer", "note"):
            assert [row["tokens"][name] for row in (two, three)] == [
                pytest.approx(n * one["tokens"][name], abs=n * 4) for n in (2, 3)
            ]
        assert one["adapter_bytes"] == three["adapter_bytes"]
        if mode == "lcf":
            assert three["ms"]["sharer"]["min"] > 1.5 * one["ms"]["sharer"]["min"]
        assert three["phases_gap_percent"] < 25


def test_adapters_of_different_sharers_are_timed(capsys, monkeypatch, pair, adapters, tmp_path):
    """Given one for each, or made in one shape for each; the other way round is refused."""
    receiver, sharer = pair.split(":")
    other = helpers.save(tmp_path / "other", layers=2, seed=2)
    ends = [CausalLM.load(find_model(name), dtype="float32") for name in (receiver, str(other))]
    made = build(pair_config("lcfx", *((e.name, e.geometry) for e in ends), options={"width": 8}))
    save_adapter(made, tmp_path / "x", "")
    words = [
        "--pair",
        f"{receiver}:{sharer},{other}",
        "--mode",
        "lcf",
        "--task",
        "splitfacts",
        *QUICK,
        "--json",
    ]
    place = f"{adapters['lcfx']}+{tmp_path / 'x'}"
    code, out, err = helpers.invoke(capsys, monkeypatch, "bench", *words, "--adapter", place)
    assert code == 0, err
    [row] = json.loads(out)["rows"]
    assert row["adapter"] == "lcfx+x" and row["label"] == "lcf sharers=2" and row["tokens"]["sharer"] > 200
    code, out, err = helpers.invoke(capsys, monkeypatch, "bench", *words, "--adapter", adapters["lcfx"])
    assert code == 2 and "is the adapter of one sharer" in err
    code, out, err = helpers.invoke(
        capsys, monkeypatch, "bench", *words, "--adapter", f"{tmp_path / 'x'}+{adapters['lcfx']}"
    )
    assert code == 2 and "does not fit this pair" in err
    words = ["--pair", f"{receiver}:{sharer},{other}", "--random-weights", "--adapter", "lcf:width=8", *QUICK]
    code, out, err = helpers.invoke(capsys, monkeypatch, "bench", *words, "--mode", "lcf", "--json")
    assert code == 0, err
    [row] = json.loads(out)["rows"]
    assert row["untrained"] and row["sharers"] == 2 and row["join"] == "parallel"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--sharers", "3"), "--sharers 3: --pair names 2"),
        (("--sharers", "0"), "is no number of sharers"),
        (("--mode", "activation"), "activation takes the message of one sharer. Add --sharers 1"),
    ],
)
def test_what_a_bench_of_several_refuses(capsys, monkeypatch, pair, args, said):
    receiver, sharer = pair.split(":")
    words = ("--pair", f"{receiver}:{sharer},{sharer}", "--task", "splitfacts")
    code, _, err = helpers.invoke(capsys, monkeypatch, "bench", *words, *args)
    assert code == 2 and said in " ".join(err.split())

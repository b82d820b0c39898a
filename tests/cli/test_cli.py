"""The command line as a sceptical user tries it.

Whatever is wrong is one line with the next step, exit code 2, and no traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcfbench.adapters.base import build
from lcfbench.adapters.config import pair_config
from lcfbench.adapters.files import save as save_adapter
from lcfbench.cli.adapter import ranges
from lcfbench.cli.progress import RunProgress
from lcfbench.cli.terminal import out
from lcfbench.geometry import Geometry
from lcfbench.progress import duration
from tests import helpers
from tests.helpers import BESIDE

FIXTURES = BESIDE / "fixtures" / "c2c_reference"


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A folder with everything that can be wrong, beside a tiny pair `receiver:sharer` that is right."""
    torch.set_num_threads(1)
    here = tmp_path_factory.mktemp("ground")
    receiver, sharer = helpers.save_pair(here).split(":")
    for name, text in {
        "latin.yaml": b'pair: "\xff\xfe"\n',
        "torn.yaml": b"mode: [receiver\n",
        "key.yaml": b"limt: 3\n",
        "list.yaml": b"- mode\n",
        "number.yaml": b"mode: 3\n",
        "options.yaml": b"options: [budget]\n",
        "word.yaml": b"limit: many\n",
        "file": b"x",
        "junk.parquet": b"hello",
    }.items():
        (here / name).write_bytes(text)
    for name in ("empty", "junk", "no_weights", "no_runs"):
        (here / name).mkdir()
    shutil.copy(here / "junk.parquet", here / "junk" / "x.parquet")
    for name in ("torn_weights", "no_tokenizer", "torn_config"):
        shutil.copytree(receiver, here / name)
    (here / "torn_weights" / "model.safetensors").write_bytes(
        (Path(receiver) / "model.safetensors").read_bytes()[:999]
    )
    (here / "no_tokenizer" / "tokenizer.json").unlink()
    (here / "no_tokenizer" / "tokenizer_config.json").unlink()
    (here / "torn_config" / "config.json").write_text("{")
    ends = (
        ("receiver", Geometry(layers=4, kv_heads=2, head_dim=8)),
        ("sharer", Geometry(layers=3, kv_heads=1, head_dim=16)),
    )
    for name, first in (
        ("adapter", ends[0]),
        ("other", ("big", Geometry(layers=5, kv_heads=2, head_dim=16))),
    ):
        save_adapter(build(pair_config("lcfx", first, ends[1], options={"width": 8})), here / name, "")
    save_adapter(build(pair_config("lcf", *ends, options={"width": 8})), here / "token_wise", "")
    good = (here / "adapter" / "adapter.safetensors").read_bytes()
    config = json.loads((here / "adapter" / "config.json").read_text())
    broken = {
        "truncated": (good[: len(good) // 2], {}),
        "tampered": (good, {"options": {"width": 16}}),
        "future": (good, {"format": 99}),
        "stranger": (good, {"kind": "telepathy"}),
        "extra": (good, {"mood": "good"}),
        "odd_option": (good, {"options": {"widht": 8}}),
    }
    for name, (weights, change) in broken.items():
        (here / name).mkdir()
        (here / name / "adapter.safetensors").write_bytes(weights)
        (here / name / "config.json").write_text(json.dumps(config | change))
    shutil.copy(here / "adapter" / "config.json", here / "no_weights")
    return here


@pytest.fixture
def lcf(ground, monkeypatch, capsys):
    """`lcfbench …` in that folder, offline, with no mirror and an empty cache."""
    for name in [n for n in os.environ if n.startswith(("LCFBENCH_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LCFBENCH_CACHE", str(ground / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(ground / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LCFBENCH_OFFLINE", "1")
    monkeypatch.chdir(ground)
    return lambda line: helpers.invoke(capsys, monkeypatch, *line.split("|") if "|" in line else line.split())


RUN = "run --pair ./receiver:./sharer --limit 2 --dtype float32 --out made "
TRAIN = "train --pair ./receiver:./sharer --steps 1 --dev-documents 2 --out trained "
BAD = {
    # numbers and flags
    "run --limit 0": "setting limit",
    "run --limit -3": "setting limit",
    "run --limit x": "'--limit'",
    "run --seed x": "'--seed'",
    "run --batch-size 0": "setting batch-size",
    "run --latency-documents -1": "setting latency-documents",
    "run --nope": "No such option: --nope",
    "run extra": "extra",
    "rum": "Did you mean 'run'",
    "run --recipe": "--recipe",
    "ls": "Missing argument",
    "ls nope": "Known: models, tasks, groups, methods, adapters, recipes, runs, controls",
    "ls task": "Did you mean tasks",
    "doctor --nope": "--nope",
    "demo --limit 0": "--limit",
    # names
    "run --pair foo": "not RECEIVER:SHARER",
    "run --pair a:b:c": "not RECEIVER:SHARER",
    "run --pair smolm2-135m:gemma3-270m": "Did you mean smollm2-135m",
    "run --pair ./nowhere:./sharer": "there is no model folder ./nowhere",
    "run --task splitfact": "Did you mean splitfacts",
    "run --mode lfc": "Did you mean lcf",
    "run --mode base": "unknown method 'base'",
    "run --mode ,": "nothing to run",
    "run --control derange": "Did you mean deranged",
    "run --scoring leters": "'letters', 'cloze' or 'generate'",
    RUN
    + "--mode receiver --scoring letters": "unknown scoring of splitfacts 'letters'. Known: cloze, generate",
    "run -o budget": "KEY=VALUE",
    RUN + "--mode t2t -o bugdet=3": "Did you mean budget",
    RUN + "--mode t2t -o budget=ten": "is not a whole number",
    RUN + "--mode t2t -o budget=0": "is not a whole number, 1 or more",
    RUN + "--mode receiver --task-option keys=x": "not a whole number",
    RUN + "--mode receiver --task-option kyes=2": "Did you mean keys",
    # machine
    RUN + "--mode receiver --dtype int4": "setting dtype: input should be 'auto', 'float32'",
    RUN + "--mode receiver --device tpu": "setting device: unknown device",
    RUN + "--mode receiver --device meta": "setting device: unknown device",
    RUN + "--mode receiver --device cuda:99": "cuda:99 is not there",
    RUN + "--attention foo": "'sdpa', 'eager' or 'flash_attention_2'",
    RUN + "--mode receiver --out file": "Not a directory",
    RUN + "--mode receiver --out file/below/it": "file: Not a directory",
    RUN + "--mode receiver --out /proc/nowhere": "cannot write /proc/nowhere",
    # what makes no sense together
    RUN + "--mode receiver --control deranged": "receiver sends no message",
    RUN + "--mode t2t --limit 1 --control deranged": "at least two documents",
    RUN + "--mode kvcomm": "one model on both sides",
    RUN + "--mode c2c --adapter adapter": "no adapter of kind c2c",
    # adapters
    RUN + "--mode lcf": "no adapter is at hand",
    RUN + "--mode lcf --adapter nowhere": "nowhere holds no adapter",
    RUN + "--mode lcf --adapter file": "file is a file; an adapter is a folder",
    RUN + "--mode lcf --adapter empty": "config.json is missing",
    RUN + "--mode lcf --adapter no_weights": "no_weights has no adapter.safetensors",
    RUN + "--mode lcf --adapter truncated": "truncated",
    RUN + "--mode lcf --adapter tampered": "does not match its config",
    RUN + "--mode lcf --adapter future": "format 99",
    RUN + "--mode lcf --adapter extra": "not a valid adapter config",
    RUN + "--mode lcf --task splitfacts --adapter token_wise": "no adapter of kind lcfx",
    RUN + "--mode lcf --adapter other": "receiver layers 4, not 5; receiver head_dim 8, not 16",
    "adapter info stranger": "unknown kind 'telepathy'",
    "adapter info odd_option": "do not fit",
    "adapter info nowhere": "nowhere holds no adapter",
    "adapter info ../file": "holds no adapter",
    "adapter info truncated": "truncated",
    "adapter info": "Missing argument",
    "adapter size --mode foo": "unknown adapter kind 'foo'",
    "adapter size -o width=abc": "width=abc of a lcf adapter is not a whole number",
    "adapter size -o width=0": "is not a whole number, 1 or more",
    "adapter size -o width=7": "cannot be halved",
    "adapter size -o layers=99": "outside 1..30",
    "adapter size -o layers=x": "layers=x is not a number",
    "adapter size -o layer_map=foo": "not one of terminal, proportional",
    "adapter size -o token_alignment=foo": "not one of span, remap, same",
    "adapter size -o gate=foo": "not one of gumbel, soft, hard",
    "adapter size -o standardise=perhaps": "not yes or no",
    "adapter size -o depth=3": "unknown option of a lcf adapter 'depth'",
    "adapter size --pair org/model:org/other": "offline was asked for",
    "adapter import-c2c empty --out made": "not laid out",
    "adapter import-c2c empty": "Missing option",
    # assets
    "run --pair qwen3-0.6b:qwen2.5-0.5b --mode receiver": "hf download Qwen/Qwen3-0.6B",
    "run --pair org/model:org/other --mode receiver": "cannot find the model 'org/model'",
    RUN + "--mode receiver --task openbookqa": "LCFBENCH_MIRROR",
    "run --mode receiver --pair ./empty:./sharer": "no config.json",
    "run --mode receiver --pair ./torn_weights:./sharer": "not a causal language model",
    "run --mode receiver --pair ./no_tokenizer:./sharer": "no tokenizer",
    "run --mode receiver --pair ./torn_config:./sharer": "not valid JSON",
    "run --pair ./no_tokenizer:./sharer --dry-run": "no tokenizer",
    # recipes
    "run --recipe nowhere.yaml": "No such file",
    "run --recipe empty": "is a folder",
    "run --recipe latin.yaml": "is not UTF-8 text",
    "run --recipe torn.yaml": "recipe torn.yaml, line 2: expected ',' or",
    "run --recipe key.yaml": "unknown setting 'limt'. Did you mean limit",
    "run --recipe list.yaml": "not a mapping",
    "run --recipe number.yaml": "setting mode of recipe number.yaml: give names",
    "run --recipe options.yaml": "setting options",
    "run --recipe word.yaml": "setting limit",
    # reading
    "show": "results: no such file or folder",
    "show empty": "no runs in this folder",
    "show junk": "skipped, cannot be read",
    "show junk.parquet": "skipped, cannot be read",
    "plot frontier": "nothing to read",
    "plot frontier empty": "no runs in this folder",
    "plot frontire": "Did you mean 'frontier'",
    # training
    TRAIN + "--mode receiver": "nothing to train",
    TRAIN + "--mode nope": "unknown method 'nope'",
    TRAIN + "--mode c2c": "different contexts",
    TRAIN + "--task nope": "unknown task 'nope'",
    TRAIN + "--task ,": "nothing to train",
    TRAIN + "--steps -1": "setting steps: input should be greater",
    TRAIN + "--steps 0": "steps=0: lcf learns in steps alone",
    TRAIN + "--eval-every 0": "setting eval-every: input should be greater",
    TRAIN + "--train-documents 0": "setting train-documents: input",
    TRAIN + "--lr -1": "setting lr: input should be greater",
    TRAIN + "--lr nan": "setting lr: input should be a finite number",
    TRAIN + "--lr x": "'--lr'",
    TRAIN + "-o depth=3": "unknown option of a lcfx adapter 'depth'",
    TRAIN + "--scoring leters": "setting scoring: input should be 'letters'",
    TRAIN + "--scoring letters": "unknown scoring of splitfacts 'letters'",
    TRAIN + "--accumulate 99": "--accumulate 99 leaves no examples",
    TRAIN + "--recipe nope": "unknown recipe 'nope'",
    TRAIN + "--tracker trakio": "setting tracker",
    TRAIN + "--adapter lcf:width": "is not KEY=VALUE",
    TRAIN + "--adapter lcf --adapter lcf": "asked for twice",
    TRAIN + "--dev nope": "unknown task 'nope'",
    TRAIN + "--task chat:nowhere/nothing --dev splitfacts": "nowhere/nothing",
    "plot training empty": "no training.parquet",
    TRAIN + "--out file": "cannot write file",
    TRAIN + "--out /proc/nowhere": "cannot write /proc/nowhere",
    TRAIN + "--out adapter": "already holds an adapter",
    TRAIN + "--task hotpotqa_split": "hotpotqa",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_2(lcf, ground, line):
    before = sorted(
        p
        for p in ground.rglob("*")
        if "made" not in p.parts and "trained" not in p.parts and "cache" not in p.parts
    )
    code, out, err = lcf(line)
    assert code == 2, err
    assert err.startswith("lcfbench: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert BAD[line] in err and "Traceback" not in err and out == ""
    assert before == sorted(
        p
        for p in ground.rglob("*")
        if "made" not in p.parts and "trained" not in p.parts and "cache" not in p.parts
    )


def test_environment_variables_are_checked_as_flags_are(lcf, monkeypatch):
    monkeypatch.setenv("LCFBENCH_LIMIT", "0")
    assert lcf("run")[0] == 2
    monkeypatch.setenv("LCFBENCH_LIMIT", "2")
    monkeypatch.setenv("LCFBENCH_TASK", "splitfact")
    code, _, err = lcf("run")
    assert code == 2 and "splitfact'" in err


def test_flags_win_over_the_environment_and_both_over_the_recipe(lcf, ground, monkeypatch):
    (ground / "whole.yaml").write_text(
        "pair: ./receiver:./sharer\nmode: receiver, t2t\nlimit: 4\nseed: 7\nbatch_size: 2\n"
        "dtype: float32\noptions: {budget: 5}\nout: layered\n"
    )
    monkeypatch.setenv("LCFBENCH_LIMIT", "3")
    monkeypatch.setenv("LCFBENCH_SEED", "8")
    code, _, err = lcf("run --recipe whole.yaml --seed 9 --latency-documents 0")
    assert code == 0, err
    found = [json.loads(p.read_text()) for p in (ground / "layered").glob("*/manifest.json")]
    assert {m["identity"]["mode"] for m in found} == {"receiver", "t2t"}
    for m in found:
        identity = m["identity"]
        assert (m["documents"], identity["limit"], identity["seed"], identity["batch_size"]) == (3, 3, 9, 2)
        assert identity["options"] == ({"budget": 5, "bytes": None} if identity["mode"] == "t2t" else {})


PROOF = "warning: adapter adapter has no proof"


def test_a_run_a_table_a_plot(lcf, ground):
    code, out, err = lcf(
        RUN + "--mode receiver,lcf --adapter adapter --control matched,deranged --limit 4 --out tried"
    )
    assert code == 0 and "lcf" in out and "deranged" in out
    assert all(
        line.startswith(("splitfacts · ", "receiver: sends no message", "recorded in ", PROOF))
        for line in err.splitlines()
    ), err
    assert len(json.loads(lcf("show tried --json")[1])) == 3
    assert lcf("show tried --csv")[1].count("\n") == 4 and lcf("show tried --markdown")[1].startswith(
        "**splitfacts"
    )
    assert [row["state"] for row in json.loads(lcf("ls runs --out tried --json")[1])] == ["complete"] * 3
    code, out, _ = lcf("plot frontier tried")
    assert code == 0 and sorted(Path(p).name for p in out.split()) == ["frontier.png", "frontier.svg"]
    assert all((ground / p).stat().st_size > 1000 for p in out.split())


def test_unreadable_rows_beside_good_ones_are_warned_of_and_skipped(lcf, ground):
    lcf(RUN + "--mode receiver --out mixed")
    shutil.copy(ground / "junk.parquet", ground / "mixed" / "junk.parquet")
    code, out, err = lcf("show mixed")
    assert (
        code == 0
        and "receiver" in out
        and err.startswith("warning: ")
        and "junk.parquet: skipped" in err
        and err.count("\n") == 1
    )


def test_a_dry_run_shows_prompts_and_loads_no_weights(lcf, ground, monkeypatch):
    monkeypatch.setattr("lcfbench.models.causal_lm.CausalLM.load", lambda *a, **k: pytest.fail("loaded"))
    code, out, _ = lcf("run --pair ./receiver:./sharer --dry-run --limit 1 --out dry")
    shown = json.loads(out)
    assert code == 0 and shown["receiver"]["prompt"].startswith("Notes:") and shown["sharer"]["tokens"] > 0
    assert shown["receiver"]["prompt"] != shown["sharer"]["prompt"] and not (ground / "dry").exists()


@pytest.mark.parametrize(("attention", "expected"), [("flash_attention_2", 2), ("eager", 0)])
def test_a_dry_run_refuses_an_attention_that_a_run_refuses(lcf, attention, expected):
    line = f"{RUN} --device cpu --mode receiver --attention {attention}"
    said = lcf(f"{line} --dry-run")
    assert said[0] == expected and (expected == 0 or said == lcf(line)), said


def test_a_dry_run_gives_each_task_the_options_it_knows(lcf, tmp_path, monkeypatch):
    choices = {"text": ["wood", "iron"], "label": ["A", "B"]}
    row = {"id": "o", "question_stem": "Which conducts?", "choices": choices, "answerKey": "B"}
    helpers.keep_table(tmp_path, "allenai/openbookqa", "main", "test", [row])
    monkeypatch.setenv("LCFBENCH_MIRROR", str(tmp_path))
    line = "run --pair ./receiver:./sharer --dry-run --task splitfacts,openbookqa --task-option hops=1"
    code, out, err = lcf(line)
    assert code == 0, err
    shown = json.loads("[" + out.replace("}\n{", "},{") + "]")
    assert [row["task"] for row in shown] == ["splitfacts", "openbookqa"] and len(shown[0]["steps"]) == 1
    assert "unknown option of splitfacts, openbookqa" in lcf(line.replace("hops", "hoops"))[2]


def test_adapter_verbs(lcf, ground):
    size = json.loads(
        lcf("adapter size --mode lcf --pair qwen3-0.6b:qwen2.5-0.5b -o width=128 -o layers=9 --json")[1]
    )
    assert size["layers"] == 9 and size["params"] == 6233634
    assert lcf("adapter size")[1].startswith("lcf smollm2-135m:gemma3-270m: ")
    for name in ("adapter", "adapter/adapter.safetensors"):
        facts = json.loads(lcf(f"adapter info {name} --json")[1])
        assert (
            facts["kind"] == "lcfx"
            and facts["layers"] == [0, 1, 2, 3]
            and len(facts["gate_logits_key_value"]) == 4
        )
    assert "layers open: 4" in lcf("adapter info adapter")[1]
    (ground / "adapters").mkdir()
    shutil.copytree(ground / "future", ground / "adapters" / "future")
    shutil.copytree(ground / "adapter", ground / "adapters" / "mine")
    listed = {row["name"]: row["kind"] for row in json.loads(lcf("ls adapters --json")[1])}
    shutil.rmtree(ground / "adapters")
    assert listed["mine"] == "lcfx" and listed["future"] == "unreadable"


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs the reference fuser beside the checkout")
def test_a_c2c_fuser_is_imported(lcf, ground):
    folder = next((FIXTURES / "fusers").iterdir())
    code, out, err = lcf(f"adapter|import-c2c|{folder}|--out|imported")
    assert code == 0 and "saved imported" in out, err
    assert json.loads(lcf("adapter info imported --json")[1])["kind"] == "c2c"
    assert lcf(f"adapter|import-c2c|{folder}|--out|imported")[0] == 2
    assert lcf(f"adapter|import-c2c|{folder}|--out|imported|--force")[0] == 0


@pytest.mark.parametrize("width", ["80", "40"])
def test_lists_break_no_name_and_cut_no_number(lcf, monkeypatch, width):
    monkeypatch.setattr(out, "width", int(width))
    for what, keys in (("adapters", ("name", "mb")), ("models", ("model", "hub_id", "head_dim"))):
        shown = lcf(f"ls {what}")[1]
        for row in json.loads(lcf(f"ls {what} --json")[1]):
            for value in (row[key] for key in keys):
                assert (f"{value:.1f}" if isinstance(value, float) else str(value)) in shown.split(), (
                    value,
                    shown,
                )


@pytest.mark.parametrize("what", ["models", "tasks", "methods", "adapters", "runs", "recipes", "controls"])
def test_lists_fit_80_columns(lcf, monkeypatch, what):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = lcf(f"ls {what}")
    assert code == 0 and err == "" and out and max(map(len, out.splitlines())) <= 80


# -- in a process of its own ----------------------------------------------------------------------

IMPORTS = """
import sys, runpy
sys.argv = ["lcfbench", *sys.argv[1:]]
try: runpy.run_module("lcfbench.cli", run_name="__main__")
finally: print("LOADED", *(m for m in ("torch", "transformers", "lm_eval", "datasets") if m in sys.modules))
"""


@pytest.fixture(scope="module")
def recorded(ground) -> Path:
    from lcfbench.evaluation.recipe import Recipe
    from lcfbench.evaluation.runner import run

    out = ground / "recorded"
    pair = f"{ground / 'receiver'}:{ground / 'sharer'}"
    list(
        run(
            Recipe(pair=pair, mode=["receiver"], limit=2, out=out, dtype="float32", latency_documents=0),
            helpers.Watcher(),
        )
    )
    return out


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "run --help",
        "ls tasks",
        "ls methods",
        "ls models",
        "ls adapters",
        "ls runs --out recorded",
        "show recorded",
        "show recorded --json",
        "plot frontier recorded",
        "run --mode lfc",
        "run --limit 0",
    ],
)
def test_torch_stays_out_of_what_runs_no_model(ground, recorded, line):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *line.split()],
        cwd=ground,
        env=helpers.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1].split() == ["LOADED"], done.stdout[-200:] + done.stderr


def test_a_reader_that_leaves_is_no_error(ground, recorded):
    done = subprocess.run(
        f"{sys.executable} -m lcfbench.cli ls tasks --json | head -c 1",
        shell=True,
        cwd=ground,
        env=helpers.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[" and done.stderr == ""


def test_help_says_what_to_do_next():
    code, out, err = helpers.process("--help")
    assert (
        code == 0
        and all(verb in out for verb in ("run", "train", "show", "ls", "doctor", "demo", "adapter", "plot"))
        and not err
    )
    code, out, err = helpers.process()
    assert code == 2 and "Usage: lcfbench" in err and "Traceback" not in err


def test_durations_and_ranges_read_well():
    assert [duration(s) for s in (0.4, 59.4, 65, 3600, 7830)] == [
        "0 s",
        "59 s",
        "1 min 05 s",
        "1 h 00 min",
        "2 h 10 min",
    ]
    assert ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8" and ranges([]) == ""


def test_a_log_gets_whole_lines_and_a_terminal_one_that_changes(capsys, monkeypatch):
    line = RunProgress()
    monkeypatch.setenv("COLUMNS", "40")
    title = "splitfacts · full_context · deranged"
    line.begin(title, 1000, 16, 4.0)
    monkeypatch.setattr("lcfbench.cli.progress.QUIET_SECONDS", 0.0)
    line.update(title, 8.0, 32)
    line.warn("a [bracket] is no markup")
    line.end(title)
    first, warning, last = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "splitfacts · full_context · deranged  32/1000  score 25.0 ± 14.4 %  "
    ) and first.endswith(" left")
    assert warning == "warning: a [bracket] is no markup" and last.startswith(
        "splitfacts · full_context · deranged  32/1000  score 25.0 ± 14.4 %  "
    )


def test_a_full_disk_is_one_line(ground):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lcfbench.cli", "ls", "tasks"],
            cwd=ground,
            env=helpers.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and done.stderr.startswith("lcfbench: ") and done.stderr.count("\n") == 1, (
        done.stderr
    )

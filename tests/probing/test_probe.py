"""A probe from the command to its page, on tiny random models."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import pytest
import torch

import lcfbench
from lcfbench.cli.console import echo
from lcfbench.errors import UserError
from lcfbench.probing import gain, page, stages
from lcfbench.probing.plan import Plan
from lcfbench.probing.progress import Deadline
from lcfbench.probing.recipe import ProbeRecipe
from lcfbench.probing.record import RECORD, Record, TimeUp
from tests import helpers
from tests.helpers import Watcher, invoke

QUICK = {"limit": 12, "dtype": "float32", "minutes": 200.0, "batch_size": 8, "budget": 4}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return helpers.save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """A training of eight steps, and a tiny time for it."""
    monkeypatch.setattr("lcfbench.probing.plan.FEWEST_STEPS", 4)
    monkeypatch.setattr("lcfbench.probing.plan.MOST_STEPS", 8)


@pytest.fixture(scope="module")
def found(pair, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr("lcfbench.probing.plan.FEWEST_STEPS", 4)
    patch.setattr("lcfbench.probing.plan.MOST_STEPS", 8)
    out = tmp_path_factory.mktemp("probe") / "p"
    made = lcfbench.probe(pair=pair, task="splitfacts", train_anyway=True, out=out, **QUICK)
    patch.undo()
    return made


def test_every_part_is_on_the_page_and_recorded(found):
    assert list(found.parts) == ["models", "task", "plan", "alone", "gain", "training", "trained", "verdict"]
    recorded = json.loads((found.folder / RECORD).read_text())
    assert recorded["parts"] == json.loads(json.dumps(found.parts)) and not found.broken
    text = (found.folder / "probe.md").read_text()
    for letter in "abcdefg":
        assert f"## {letter}. " in text
    assert found.page.sentence in text and found.page.command in text
    assert found.page.sentence.endswith(".") and found.page.sentence.startswith(("Yes", "No", "Rather not"))
    assert (
        len(lcfbench.load_summary(found.runs)) == 8
    )  # receiver, sharer, full_context, orf, two of t2t, two of lcf
    assert found.parts["training"]["steps"] == 8 and found.parts["training"]["also_asked"] == 0


def test_a_second_call_only_prints(found, pair, monkeypatch):
    monkeypatch.setattr("lcfbench.probing.probe.load_pair", None)
    again = lcfbench.probe(pair=pair, task="splitfacts", train_anyway=True, out=found.folder, **QUICK)
    assert again.parts == found.parts and again.page.sentence == found.page.sentence


def test_the_page_fits_into_80_columns(found, pair, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    more = [w for k, v in QUICK.items() for w in (f"--{k.replace('_', '-')}", v)]
    args = ["probe", "--pair", pair, "--train-anyway", "--out", found.folder, *more]
    code, out, err = invoke(capsys, monkeypatch, *args)
    assert code == 0, err
    folders = [str(found.folder), *pair.split(":")]
    wide = [line for line in out.splitlines() if len(line) > 80 and not any(f in line for f in folders)]
    assert not wide
    assert out.rstrip().splitlines()[-1].startswith("next: lcfbench ")
    code, out, err = invoke(capsys, monkeypatch, *args, "--json")
    assert code == 0 and json.loads(out)["answer"] == found.page.sentence


@pytest.mark.parametrize("cut", ["plan", "alone", "training", "trained"])
def test_an_interrupted_probe_goes_on_where_it_was(cut, pair, tmp_path, monkeypatch):
    name = {"plan": "speeds", "alone": "baselines", "training": "training", "trained": "measured"}[cut]
    whole = getattr(stages, name)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, name, interrupted)
    settings = {"pair": pair, "task": "splitfacts", "train_anyway": True, "out": tmp_path / "p", **QUICK}
    with pytest.raises(KeyboardInterrupt):
        lcfbench.probe(**settings)
    before = json.loads((tmp_path / "p" / RECORD).read_text())
    assert cut not in before["parts"] and "models" in before["parts"] and before["seconds"] > 0
    monkeypatch.setattr(stages, name, whole)
    after = lcfbench.probe(**settings)
    assert "verdict" in after.parts
    for name, part in before["parts"].items():
        if name == "plan":  # its steps are planned again once, when the first runs are timed
            continue
        assert json.loads(json.dumps(after.parts[name])) == part, name


def test_a_training_that_is_interrupted_goes_on_from_its_checkpoint(pair, tmp_path):
    @dataclass
    class Impatient(Watcher):
        stop: int = 6

        def step(self, step, *rest):
            super().step(step, *rest)
            if step == self.stop:
                self.stop = -1
                raise KeyboardInterrupt

    settings = {"pair": pair, "task": "splitfacts", "train_anyway": True, "out": tmp_path / "p", **QUICK}
    watcher = Impatient()
    with pytest.raises(KeyboardInterrupt):
        lcfbench.probe(progress=watcher, **settings)
    assert "training" not in json.loads((tmp_path / "p" / RECORD).read_text())["parts"]
    found = lcfbench.probe(progress=watcher, **settings)
    assert any("goes on from step 6" in said for said in watcher.said)
    assert found.parts["training"]["steps"] == 8


def test_nothing_to_gain_stops_early(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lcfbench.probing.probe.stops", lambda *_: ["no model answers better than by guessing"]
    )
    found = lcfbench.probe(pair=pair, task="splitfacts", out=tmp_path / "p", **QUICK)
    assert "training" not in found.parts and not (tmp_path / "p" / "adapter").exists()
    assert found.page.sentence.startswith("No: no model answers better than by guessing")
    assert "--train-anyway" in found.page.command


def test_too_little_time_says_what_can_be_said(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("lcfbench.probing.plan.FEWEST_STEPS", 10**6)
    monkeypatch.setattr("lcfbench.probing.probe.stops", lambda *_: [])
    found = lcfbench.probe(pair=pair, task="splitfacts", out=tmp_path / "p", **QUICK)
    assert "training" not in found.parts and "gain" in found.parts
    assert "too few to train" in found.page.sentence and found.page.sentence.startswith("Not known")


def test_a_model_that_does_not_conform_stops_everything(pair, tmp_path, monkeypatch, capsys):
    from lcfbench.models.conformance import FINITE, Check, Conformance

    failed = Check(FINITE, False, None, "3 logits are not finite")
    record = Conformance(
        reading="padded", checks=(failed,), layers=(), token_bytes=1, state_bytes=0, missing={"text": "so"}
    )
    monkeypatch.setattr(stages, "conformance", lambda *_: record)
    more = [w for k, v in QUICK.items() for w in (f"--{k.replace('_', '-')}", v)]
    code, out, err = invoke(capsys, monkeypatch, "probe", "--pair", pair, "--out", tmp_path / "p", *more)
    assert (
        code == 1
        and "logits are finite: 3 logits are not finite" in " ".join(out.split())
        and "Not known" in out
    )
    assert not (tmp_path / "p" / "runs").exists()


def test_one_model_with_itself(pair, tmp_path):
    same = ":".join([pair.split(":")[0]] * 2)
    found = lcfbench.probe(pair=same, task="splitfacts", train_anyway=True, out=tmp_path / "p", **QUICK)
    assert found.parts["task"]["one_model"] and "verdict" in found.parts


@pytest.mark.parametrize("task", ["openbookqa", "squad_split"])
def test_real_data_of_shared_contexts_and_of_written_answers(task, pair, tmp_path, mirror):
    options = {"max_words": 20} if task == "squad_split" else {}
    settings = QUICK | {"limit": 4, "task_options": options}
    found = lcfbench.probe(pair=pair, task=task, train_anyway=True, out=tmp_path / "p", **settings)
    assert found.parts["task"]["mode"] == {"openbookqa": "lcf", "squad_split": "dense"}[task]
    assert ("full_context" in found.parts["gain"]["scores"]) == (task == "squad_split")
    assert "verdict" in found.parts


@pytest.mark.parametrize("sharer", [True, False])
def test_a_table_made_up_on_the_spot_keeps_rows_to_learn_from(sharer, pair, tmp_path):
    lines = ["question,A,B,answer" + (",sharer_context" if sharer else "")]
    for i in range(80):
        row = f"Where is cup {i}?,attic,cellar,{'AB'[i % 2]}"
        lines.append(row + (f",Cup {i} is in the {('attic', 'cellar')[i % 2]}." if sharer else ""))
    table = tmp_path / f"cups{sharer}.csv"
    table.write_text("\n".join(lines) + "\n")
    settings = QUICK | {"limit": 8, "pair": pair, "task": str(table), "train_anyway": True}
    found = lcfbench.probe(out=tmp_path / "p", **settings)
    assert found.parts["training"]["also_asked"] == 0 and found.parts["training"]["steps"] == 8
    assert found.parts["task"]["context"] == ("different" if sharer else "shared")
    text = found.page.markdown()
    assert "60 % of the rows, by their hash, are kept to learn from" in text
    assert "--task-option train_share=60" in found.page.command
    again = lcfbench.probe(out=tmp_path / "p", **settings)
    assert again.parts == found.parts


BAD = [
    (["--minutes", "0"], "minutes"),
    (["--minutes", "nan"], "minutes"),
    (["--minutes", "-3"], "minutes"),
    (["--minutes", "1e9"], "minutes"),
    (["--minutes", "soon"], "number"),
    (["--limit", "0"], "limit"),
    (["--limit", "3"], "limit"),
    (["--budget", "0"], "budget"),
    (["--budget", "1000000"], "budget"),
    (["--lr", "0"], "lr"),
    (["--lr", "inf"], "lr"),
    (["--batch-size", "0"], "batch-size"),
    (["--pair", "one"], "RECEIVER:SHARER"),
    (["--pair", "nosuch:smollm2-135m"], "nosuch"),
    (["--task", "nosuch"], "nosuch"),
    (["--task", "./nosuch.yaml"], "nosuch.yaml"),
    (["--train-task", "nosuch"], "nosuch"),
    (["--mode", "nosuch"], "nosuch"),
    (["--mode", "receiver"], "nothing to train"),
    (["--mode", "t2t"], "nothing to train"),
    (["--scoring", "letters"], "letters"),
    (["--scoring", "nosuch"], "nosuch"),
    (["--task-option", "nosuch=1"], "nosuch"),
    (["--task-option", "hops=9"], "hops"),
    (["-o", "nosuch=1"], "nosuch"),
    (["-o", "width=x"], "width"),
    (["--dtype", "float16"], "float16"),
    (["--dtype", "nosuch"], "nosuch"),
    (["--attention", "nosuch"], "nosuch"),
]


@pytest.mark.parametrize(("words", "named"), BAD)
def test_bad_input_is_one_line_before_anything_is_loaded(words, named, capsys, monkeypatch, tmp_path):
    def loading(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lcfbench.probing.probe.load_pair", loading)
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(capsys, monkeypatch, "probe", *words)
    assert code == 2 and not out and named in err and err.count("\n") == 1, err


def test_a_folder_with_another_probe_is_left_alone(tmp_path):
    recipe = ProbeRecipe(out=tmp_path / "p", minutes=5)
    Record.open(recipe).save()
    with pytest.raises(UserError, match="another minutes"):
        Record.open(ProbeRecipe(out=tmp_path / "p", minutes=10))
    assert Record.open(ProbeRecipe(out=tmp_path / "p", minutes=10, fresh=True)).parts == {}


def test_two_probes_do_not_work_in_one_folder(tmp_path):
    record = Record.open(ProbeRecipe(out=tmp_path))
    with record.alone(), pytest.raises(UserError, match="another probe is at work"):
        Record.open(ProbeRecipe(out=tmp_path, fresh=True))
    assert Record.open(ProbeRecipe(out=tmp_path)).parts == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"parts": 3}', "[" * 3000, "\ufeff{}"])
def test_a_damaged_record_is_one_line(text, tmp_path):
    (tmp_path / RECORD).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{RECORD} cannot be read.*--fresh"):
        Record.open(ProbeRecipe(out=tmp_path))


def test_the_time_stops_a_run_and_a_training():
    watcher = Watcher()
    line = Deadline(watcher, time.monotonic() + 60)
    line.begin("a", 2, 0, 0.0)
    line.update("a", 1.0, 1)
    line.step(1, 2, 0.5, 0.5, 1, 1, 1.0)
    line.end_at = time.monotonic() - 1
    for late in (lambda: line.update("a", 1.0, 2), lambda: line.step(2, 2, 0.5, 0.5, 1, 1, 1.0)):
        with pytest.raises(TimeUp):
            late()
    assert line.steps == 2 and issubclass(TimeUp, KeyboardInterrupt)


# -- what is said ---------------------------------------------------------------------------------


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def gained(receiver=0.4, sharer=0.5, full: float | None = 0.7, n=64, either=0.1) -> dict:
    def around(x):
        return interval(x, max(x - 0.1, 0), min(x + 0.1, 1))

    scores = {"receiver": around(receiver), "sharer": around(sharer)}
    gains = {"either": interval(either, either - 0.1, either + 0.1)}
    if full is not None:
        scores["full_context"] = around(full)
        gains["full_context"] = interval(full - receiver, full - receiver - 0.1, full - receiver + 0.1)
    return {"scores": scores, "gains": gains, "n": n}


@pytest.mark.parametrize(
    ("found", "chance", "said"),
    [
        (gained(), 1 / 3, None),
        (gained(receiver=0.98), 1 / 3, "right on 98 %"),
        (gained(receiver=0.25, sharer=0.3, full=None), 0.25, "guessing"),
        (gained(receiver=0.25, sharer=0.3, full=None, n=16), 0.25, None),
        (gained(full=0.3, either=-0.2), 1 / 3, "would help"),
        (gained(full=0.4, either=0.0), 0.1, "would help"),
        (gained(full=0.3, either=-0.2, n=16), 1 / 3, None),
        (gained(full=0.3, either=0.2), 0.1, None),
        (gained(receiver=0.0, sharer=0.0, full=0.0, either=0.0), None, "no answer is right"),
    ],
)
def test_reasons_to_stop(found, chance, said):
    reasons = gain.stops(found, chance)
    assert (not reasons) if said is None else any(said in reason for reason in reasons)


def line(verdict: str, **more) -> dict:
    base = {
        "mode": "lcf",
        "control": "matched",
        "n": 100,
        "verdict": verdict,
        "ttft_ms": 100.0,
        "message_bytes": 1920.0,
    }
    base |= {"content": 0.3, "content_low": 0.2, "content_high": 0.4, "gain_low": 0.1, "score": 0.8}
    return base | {"adapter_mb": 1.0} | more


TEXT = line("communicates", mode="t2t", ttft_ms=400.0, message_bytes=13.0)


@pytest.mark.parametrize(
    ("own", "against", "begins"),
    [
        (line("communicates"), interval(0.1, 0.05, 0.2), "Yes:"),
        (line("communicates"), interval(0.0, -0.1, 0.1), "Yes:"),
        (line("communicates", ttft_ms=900.0), interval(0.0, -0.1, 0.1), "Yes, but text does as well:"),
        (line("communicates"), interval(-0.2, -0.3, -0.1), "Rather not, text does better:"),
        (
            line("communicates", gain_low=-0.1),
            interval(0.0, -0.1, 0.1),
            "Not known: what the sharer knows crosses",
        ),
        (line("undecided"), interval(0.0, -0.1, 0.1), "Not known:"),
        (
            line("adapts only"),
            interval(0.0, -0.1, 0.1),
            "No, not after 200 training steps: lcf adapts the receiver",
        ),
        (line("does not communicate"), interval(0.0, -0.1, 0.1), "No, not after 200"),
        (line("misleads"), interval(0.0, -0.1, 0.1), "No, not after 200"),
        (line("untested", content=None, gain_low=None), interval(0.0, -0.1, 0.1), "Not known:"),
    ],
)
def test_the_sentence_says_yes_no_or_not_known(own, against, begins, tmp_path):
    parts = {
        "task": {"mode": "lcf", "scoring": "cloze", "scorings": ["cloze"]},
        "gain": {"detectable": 0.2},
        "training": {"steps": 200},
        "trained": {"seconds": 1.0},
        "verdict": {"reason": "", "reasons": [], "lines": [TEXT, own], "against_text": against},
    }
    sentence, command = page.answer(ProbeRecipe(minutes=30), tmp_path, parts)
    assert sentence.startswith(begins) and sentence.endswith(".") and command.startswith("lcfbench ")


def test_the_next_command_repeats_what_was_given():
    recipe = ProbeRecipe(
        pair="smollm2-135m:gemma3-270m", task="splitfacts", minutes=3, options={"width": "16"}
    )
    command = page.again(recipe, minutes=6, train_anyway=True)
    assert command.startswith("lcfbench probe ") and "-o width=16" in command
    assert "--minutes 6" in command and "--train-anyway" in command and "--fresh" not in command


def test_a_probe_whose_time_was_over_goes_on_with_the_same_command(pair, tmp_path, monkeypatch):
    settings = {"pair": pair, "task": "splitfacts", "train_anyway": True, "out": tmp_path / "p", **QUICK}
    watcher = Watcher()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "late", lambda record: 0.0)
        cut = lcfbench.probe(progress=watcher, **settings)
    assert list(cut.parts) == ["models", "task", "plan"] and cut.page.sentence.startswith("Not known")
    assert any("the time was over: runs without training" in text for text in watcher.warned)
    found = lcfbench.probe(progress=watcher, **settings)
    assert "verdict" in found.parts and found.parts["alone"]["documents"] == QUICK["limit"]


@pytest.mark.real
def test_the_embedded_pair_without_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr("lcfbench.probing.plan.FEWEST_STEPS", 10**6)
    found = lcfbench.probe(minutes=600, limit=4, budget=8, out=tmp_path / "p")
    assert "verdict" in found.parts and not found.broken and found.page.sentence.startswith("Not known")
    echo(found.page.markdown())


def test_the_plan_is_kept_as_json():
    made = Plan(8, 4, 2, 1.0, 2.0, 3.0)
    assert Plan(**json.loads(json.dumps(made.record()))) == made

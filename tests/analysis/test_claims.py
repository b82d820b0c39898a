"""What papers claim, held against recorded runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lcfbench.analysis.claims import claims, judge_claims, page
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.registry import method_names
from tests.analysis.frontier_runs import answers, record
from tests.helpers import invoke

SPLIT = {"task": "splitfacts", "scoring": "cloze"}


def put(out: Path, mode: str, control: str, right: float, n: int = 200, **more) -> None:
    record(out, answers(n, right, f"{mode}{control}{more}"), mode=mode, control=control, **{**SPLIT, **more})


def manifest(run: Path):
    return json.loads((run / "manifest.json").read_text())


def verdicts(out: Path, mode: str, test: str):
    found = judge_claims(read_run_groups([out]).groups)
    return [line for line in found if line.claim.a.mode == mode and line.claim.test == test]


def test_every_claim_is_about_methods_and_options_that_exist():
    for claim in claims():
        for arm in (claim.a, *([claim.b] if claim.b else [])):
            assert arm.mode in method_names(), arm
        assert (claim.b is None) == (claim.test == "content")
        assert (claim.margin > 0) == (claim.test == "level") and "arXiv" in claim.source


@pytest.mark.parametrize(
    ("lcf", "t2t", "label"), [(90, 50, "holds here"), (50, 90, "does not hold here"), (60, 58, "undecided")]
)
def test_better_than_text(tmp_path, lcf, t2t, label):
    put(tmp_path, "lcf", "matched", lcf)
    put(tmp_path, "t2t", "matched", t2t)
    [line] = verdicts(tmp_path, "lcf", "above")
    assert line.label == label and line.n == 200 and line.difference == pytest.approx((lcf - t2t) / 100)
    assert (line.score_a, line.score_b) == (lcf / 100, t2t / 100) and line.low < line.difference < line.high


def test_an_advantage_below_two_points_is_none(tmp_path):
    put(tmp_path, "lcf", "matched", 60, n=4000)
    record(tmp_path, answers(4000, 60, "lcfmatched{}"), mode="t2t", control="matched", **SPLIT)
    [line] = verdicts(tmp_path, "lcf", "above")
    assert line.difference == 0 and line.label == "does not hold here"
    [line] = [x for x in judge_claims(read_run_groups([tmp_path]).groups, delta=0.0) if x.n and x.b == "t2t"]
    assert line.label == "undecided"


def test_content_is_held_against_the_worst_control_and_needs_a_deranged_run(tmp_path):
    put(tmp_path, "latentmas", "matched", 80)
    put(tmp_path, "latentmas", "zero", 30)
    [line] = verdicts(tmp_path, "latentmas", "content")
    assert line.label == "undecided" and "--control deranged" in line.note and not line.n
    put(tmp_path, "latentmas", "deranged", 40)
    [line] = verdicts(tmp_path, "latentmas", "content")
    assert line.label == "holds here" and line.b == "deranged" and line.difference == pytest.approx(0.4)
    put(tmp_path, "latentmas", "noise", 79)
    [line] = verdicts(tmp_path, "latentmas", "content")
    assert line.label == "undecided" and line.b == "noise"


def test_what_is_said_of_deranged_runs_that_are_there(tmp_path):
    """`--control deranged` is asked for only where none was run of these settings."""

    def note(out):
        [line] = verdicts(out, "latentmas", "content")
        return line.label, line.note

    put(tmp_path, "latentmas", "matched", 80, options={"steps": 10}, batch_size=4)
    put(tmp_path, "latentmas", "deranged", 40, options={"steps": 9}, task_sha256="b", batch_size=4)
    label, said = note(tmp_path)
    assert label == "undecided" and "--control" not in said
    assert "differ from it in options, task_sha256: run it with the same settings" in said
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        put(out, "latentmas", "matched", 80, batch_size=4)
    put(one, "latentmas", "deranged", 40, batch_size=4, named="else")
    assert "has no document in common" in note(one)[1] and "--control" not in note(one)[1]
    put(two, "latentmas", "deranged", 40, batch_size=1, limit=200)
    put(two, "latentmas", "deranged", 42, batch_size=2, limit=200)
    label, said = note(two)
    assert label == "undecided" and "2 runs fit equally well (latentmas-splitfacts-deranged-" in said
    assert "--control" not in said
    put(two, "latentmas", "deranged", 40, batch_size=4)
    label, said = note(two)
    assert label == "holds here" and "is the nearest of 3 that fit" in said
    nearest = next(p for p in two.glob("*-deranged-*") if manifest(p)["identity"]["batch_size"] == 4)
    assert nearest.name in said


def test_the_command_names_the_folder_of_an_adapter(tmp_path):
    """As the manifest has it, whatever the recipe's text says; of older runs as the recipe has it."""
    recipe = {"mode": ["lcf:adapter=there/x"]}
    for folder, told in (("new", {"adapter_folder": "here/x"}), ("old", {})):
        own = {"told": {"adapter": "x", "recipe": recipe, **told}}
        put(tmp_path / folder, "lcf", "matched", 90, **own)
        put(tmp_path / folder, "t2t", "matched", 50)
        [line] = verdicts(tmp_path / folder, "lcf", "above")
        assert f"lcf:adapter={'here' if told else 'there'}/x,t2t" in shlex.split(line.command)


@pytest.mark.parametrize(("part", "label"), [(88, "holds here"), (45, "does not hold here")])
def test_a_share_of_the_content_of_another_method(tmp_path, part, label):
    some, whole = {"options": {"selector": "support", "ratio": 4.0}}, {"options": {}}
    for control, kept, full in (("matched", part, 90), ("deranged", 30, 30)):
        put(tmp_path, "cacheback", control, kept, n=400, **some)
        put(tmp_path, "kvcomm", control, full, n=400, **whole)
    [line] = verdicts(tmp_path, "cacheback", "share")
    assert line.label == label and line.difference == pytest.approx((part - 30 - 0.8 * 60) / 100)


def test_a_share_of_nothing_is_undecided(tmp_path):
    some, whole = {"options": {"selector": "support", "ratio": 4.0}}, {"options": {}}
    for control in ("matched", "deranged"):
        put(tmp_path, "cacheback", control, 90 if control == "matched" else 30, **some)
        put(tmp_path, "kvcomm", control, 40, **whole)
    [line] = verdicts(tmp_path, "cacheback", "share")
    assert line.label == "undecided" and "no content is shown" in line.note


def test_options_choose_the_arm_and_too_many_runs_decide_nothing(tmp_path):
    put(tmp_path, "t2t", "matched", 60)
    put(tmp_path, "kvcomm", "matched", 90, options={"layers": "0.3"})
    assert verdicts(tmp_path, "kvcomm", "above")[0].label == "not measured"
    put(tmp_path, "kvcomm", "matched", 61, options={})
    [line] = verdicts(tmp_path, "kvcomm", "above")
    assert line.label == "undecided" and line.score_a == 0.61
    put(tmp_path, "kvcomm", "matched", 62, options={"last": 3})
    [line] = verdicts(tmp_path, "kvcomm", "above")
    assert line.label == "undecided" and not line.n and "several runs fit" in line.note


def test_other_questions_other_failures_and_other_tasks_are_not_compared(tmp_path):
    put(tmp_path, "lcf", "matched", 90, task_options={"hops": 2})
    put(tmp_path, "t2t", "matched", 10, task_options={"hops": 1})
    [line] = verdicts(tmp_path, "lcf", "above")
    assert line.label == "undecided" and "task_options" in line.note and not line.n
    put(tmp_path / "b", "lcf", "matched", 90)
    put(tmp_path / "b", "t2t", "matched", 10, errors=range(50))
    [line] = verdicts(tmp_path / "b", "lcf", "above")
    assert line.label == "undecided" and line.note and not line.n
    put(tmp_path / "c", "lcf", "matched", 90, task="planted")  # LCF-X's claim is about different contexts
    put(tmp_path / "c", "t2t", "matched", 10, task="planted")
    assert verdicts(tmp_path / "c", "lcf", "above")[0].label == "not measured"


def test_intervals_are_corrected_for_all_lines(tmp_path):
    put(tmp_path, "lcf", "matched", 60)
    put(tmp_path, "t2t", "matched", 47)
    [alone] = verdicts(tmp_path, "lcf", "above")
    for mode in ("sde", "activation", "latentmas", "xkv"):
        put(tmp_path, mode, "matched", 60)
    [among] = verdicts(tmp_path, "lcf", "above")
    assert among.low < alone.low and alone.confidence == 0.95 and among.confidence == pytest.approx(0.99)


@pytest.fixture
def lcf(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda line: invoke(capsys, monkeypatch, *line.split())


def test_the_command_line(lcf, tmp_path):
    put(tmp_path / "runs", "lcf", "matched", 90, options={"windows": 5, "seed": None}, limit=200)
    put(tmp_path / "runs", "t2t", "matched", 50, options={"budget": 16}, limit=200)
    code, out, _ = lcf("claims runs --json")
    [line] = json.loads(out)
    assert code == 0 and line["verdict"] == "holds here" and line["paper"] == "LCF-X"
    words = shlex.split(line["command"])
    assert words[:2] == ["lcfbench", "run"] and "lcf:windows=5,t2t:budget=16" in words
    assert words[words.index("--limit") + 1] == "200"
    code, out, _ = lcf("claims runs")
    assert code == 0 and "holds here" in out and "LatentMAS" not in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = lcf("claims runs --all --markdown")
    assert code == 0 and "LatentMAS" in out and "not measured" in out
    put(tmp_path / "other", "receiver", "matched", 50)
    code, out, err = lcf("claims other")
    assert code == 2 and err.count("\n") == 1 and "--all" in err
    assert lcf("claims none")[0] == 2 and lcf("claims runs --delta 200pt")[0] == 2


def test_the_page_has_every_claim_once(tmp_path):
    put(tmp_path, "lcf", "matched", 90)
    put(tmp_path, "t2t", "matched", 50)
    text = page(judge_claims(read_run_groups([tmp_path]).groups))
    for claim in claims():
        assert text.count(f"> {claim.claim}") == 1
    assert text.count("```bash") == 1 and "holds here" in text
    assert text.count("Not measured here.") == len(claims()) - 1


def test_scores_are_of_the_documents_that_all_runs_have(tmp_path):
    put(tmp_path, "lcf", "matched", 90, n=100)
    put(tmp_path, "t2t", "matched", 50, n=200)
    [line] = verdicts(tmp_path, "lcf", "above")
    assert line.n == 100


def test_the_command_says_in_which_form_messages_crossed(tmp_path):
    put(tmp_path, "lcf", "matched", 90, wire="int8", dtype="float32")
    put(tmp_path, "t2t", "matched", 50, wire="int8", dtype="float32")
    [line] = verdicts(tmp_path, "lcf", "above")
    words = shlex.split(line.command)
    assert words[words.index("--wire") + 1] == "int8" and words[words.index("--dtype") + 1] == "float32"
    assert "--join" not in words and "--limit" not in words

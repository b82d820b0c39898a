"""`lcfbench compare`: matching, refusals, numbers and forms."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lcfbench.analysis.compare import compare
from lcfbench.analysis.matching import short_names
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.stats.proportions import mcnemar, tango
from lcfbench.analysis.summary import twin_of
from lcfbench.analysis.tables import comparison_table
from lcfbench.errors import UserError
from lcfbench.results.writer import RunWriter
from tests.analysis import gate_runs
from tests.analysis.gate_runs import MACHINE, answers, changed, record
from tests.helpers import invoke, printed

USER = 2
BASE = answers(200)
BETTER = changed(BASE, lost=8, gained=22)


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """`lcfbench compare`: exit code and what was printed."""

    def run(*args: object, a: str = "a", b: str = "b") -> tuple[int, str]:
        code, told, complained = invoke(capsys, monkeypatch, "compare", tmp_path / a, tmp_path / b, *args)
        assert "Traceback" not in told + complained
        return code, told + complained

    return run


def compared(folder: Path, **more):
    return compare(read_run_groups([folder / "a"]), read_run_groups([folder / "b"]), **more)


def test_the_numbers(tmp_path) -> None:
    record(tmp_path / "a", BASE, ms=[100.0, 200, 300])
    record(
        tmp_path / "b",
        BETTER,
        ms=[150.0, 220, 390, 400],
        row={"message_bytes": 500},
        order=range(199, -1, -1),
    )
    (line,) = compared(tmp_path).lines
    assert (line.n, line.mean_a, line.mean_b) == (200, BASE.mean(), BETTER.mean())
    assert line.difference == pytest.approx(0.07) and (line.low, line.high) == pytest.approx(
        tango(22, 8, 200)
    )
    assert line.p == pytest.approx(mcnemar(22, 8)) == line.p_holm
    assert (line.latency_ratio, line.latency_n) == (pytest.approx(1.3), 3)
    assert (line.message_ratio, line.adapter_ratio) == (0.5, 1.0) and line.notes == [] == line.differs


def test_method_against_method_and_what_is_left(tmp_path, said) -> None:
    for mode, control in (("receiver", "matched"), ("lcf", "matched"), ("lcf", "deranged")):
        record(tmp_path / "a", BASE, mode=mode, control=control)
    record(tmp_path / "b", BETTER, mode="receiver")
    record(tmp_path / "b", BETTER, mode="c2c", pair="x:y", options={"width": "8"})
    record(tmp_path / "b", BASE, mode="lcf", task="other")
    found = compared(tmp_path)
    assert [(line.a, line.b) for line in found.lines] == [("receiver", "receiver"), ("lcf", "c2c")]
    assert found.lines[1].what == "splitfacts lcf → c2c" and found.lines[1].n == 200
    assert (
        found.lines[1].differs[:2] == ["pair smollm2-135m:gemma3-270m → x:y", "mode lcf → c2c"]
        and "options.width – → 8" in found.lines[1].differs
    )
    assert found.unmatched_a == ["splitfacts lcf (deranged)"] and found.unmatched_b == ["other lcf"]
    assert found.lines[0].p_holm == pytest.approx(2 * found.lines[0].p)
    code, text = said()
    assert code == 0 and "only A holds splitfacts lcf (deranged)" in " ".join(text.split())


def test_several_cells_that_could_be_meant_are_left_alone(tmp_path) -> None:
    for mode in ("lcf", "c2c"):
        record(tmp_path / "a", BASE, mode=mode)
    for mode in ("t2t", "dense"):
        record(tmp_path / "b", BASE, mode=mode)
    with pytest.raises(
        UserError, match=r"nothing to compare: A holds splitfacts (lcf|c2c).*; B holds splitfacts"
    ):
        compared(tmp_path)


def test_two_adapters_of_one_method_keep_to_themselves(tmp_path) -> None:
    for sha, scores in (("1", BASE), ("2", BETTER)):
        record(tmp_path / "a", BASE, adapter_sha256=sha * 64)
        record(tmp_path / "b", scores, adapter_sha256=sha * 64, version="0.2.0")
    found = compared(tmp_path)
    assert (
        sorted(line.difference for line in found.lines) == [0.0, pytest.approx(0.07)]
        and not found.unmatched_a + found.unmatched_b
    )
    assert (
        all(line.differs == ["version 0.1.0 → 0.2.0"] for line in found.lines)
        and len({line.what for line in found.lines}) == 2
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_sha256", "9" * 64),
        ("data_sha256", "9" * 64),
        ("split_manifest_sha256", "9" * 64),
        ("task_options", {"hops": "3"}),
        ("scoring", "letters"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path, said, field: str, value) -> None:
    record(tmp_path / "a", BASE)
    record(tmp_path / "b", BETTER, **{field: value})
    code, text = said()
    text = " ".join(text.split())
    assert code == USER and f"differ in {field}{'.hops' if isinstance(value, dict) else ''} (A " in text
    assert f"To go on all the same: --allow {field}." in text and "there" not in text
    assert (
        "9999999999" if field.endswith("256") else "letters" if field == "scoring" else "hops (A –, B 3)"
    ) in text
    assert said("--allow", field)[0] == 0
    assert f"{field}" in compared(tmp_path, allow=[field]).lines[0].differs[0]


def test_another_metric_and_another_task(tmp_path, said) -> None:
    record(tmp_path / "a", BASE)
    record(tmp_path / "b", BETTER, row={"metric": "f1"})
    assert said()[0] == USER and "metric (A acc, B f1)" in said()[1] and said("--allow", "metric")[0] == 0
    shutil.rmtree(tmp_path / "b")
    record(tmp_path / "b", BETTER, task="renamed", row={"metric": "f1"}, data_sha256="9" * 64)
    for allowed in (
        [],
        ["--allow", "task"],
        ["--allow", "task", "--allow", "metric", "--allow", "data_sha256"],
    ):
        code, text = said(*allowed)
        assert (
            code == USER
            and "A asks task splitfacts, B asks task renamed: nothing to compare. Name two runs of"
            in " ".join(text.split())
        )
        assert "--allow" not in text
    code, text = said("--allow", "taskk")
    assert code == USER and "unknown field 'taskk'. Did you mean task" in text
    shutil.rmtree(tmp_path / "b")
    record(tmp_path / "b", BETTER, task="renamed", prefix="splitfacts")  # the same documents by another name
    assert "--allow task." in said()[1] and said("--allow", "task")[0] == 0


def test_a_pair_that_is_not_comparable_does_not_stop_the_others(tmp_path, said) -> None:
    for task, more in (("t1", {}), ("t2", {"data_sha256": "9" * 64}), ("t3", {})):
        record(tmp_path / "a", BASE, task=task)
        record(tmp_path / "b", BETTER, task=task, **more)
    first, bad, last, overall = compared(tmp_path).lines
    assert (
        (first.n, last.n, overall.n, bad.n) == (200, 200, 400, 0)
        and np.isnan(bad.p)
        and np.isnan(bad.difference)
    )
    assert first.p_holm == pytest.approx(min(1, 2 * first.p)) or first.p_holm == pytest.approx(3 * overall.p)
    code, text = said()
    why = "t2 lcf: not comparable: data_sha256 (A bbbbbbbbbb, B 9999999999) differs; "
    why += "--allow data_sha256 compares all the same"
    assert code == 0 and why in " ".join(text.split())
    assert json.loads(said("--json")[1])["lines"][1]["notes"][0].startswith("not comparable: data_sha256")
    assert (
        len(compared(tmp_path, allow=["data_sha256"]).lines[-1].what)
        and compared(tmp_path, allow=["data_sha256"]).lines[-1].n == 600
    )
    for folder in [*(tmp_path / "a").glob("lcf-t[13]-*")]:
        shutil.rmtree(folder)
    assert said()[0] == USER


def test_long_lists_of_what_one_side_holds_are_cut(tmp_path, said) -> None:
    record(tmp_path / "a", BASE)
    record(tmp_path / "b", BASE)
    for number in range(25):
        record(tmp_path / "b", BASE[:2], task=f"task{number:02d}")
    text = " ".join(said()[1].split())
    assert (
        "only B holds task" in text
        and "and 17 more" in text
        and text.count("lcf,") == 7
        and text.count("smollm2") == 0
    )
    assert len(json.loads(said("--json")[1])["only_b"]) == 25


def test_names_grow_only_where_they_must(tmp_path) -> None:
    record(tmp_path / "a", BASE, task="t1")
    for scoring in ("cloze", "letters"):
        record(tmp_path / "a", BASE, task="t2", scoring=scoring)
    record(tmp_path / "a", BASE, task="t2", scoring="letters", pair="x:y")
    names = short_names(read_run_groups([tmp_path / "a"]).groups)
    assert sorted(names) == [
        "t1 lcf",
        "t2 lcf (cloze)",
        "t2 lcf (letters, smollm2-135m:gemma3-270m)",
        "t2 lcf (letters, x:y)",
    ]


def test_files_that_do_not_say_are_compared_with_a_note(tmp_path) -> None:
    record(tmp_path / "a", BASE)
    folder = record(tmp_path / "b", BETTER)
    (tmp_path / "bare").mkdir()
    shutil.copy(folder / "samples.parquet", tmp_path / "bare" / "b.parquet")
    (line,) = compare(
        read_run_groups([tmp_path / "a"]), read_run_groups([tmp_path / "bare" / "b.parquet"])
    ).lines
    assert line.n == 200 and any(
        "not recorded on both sides, so not compared: task_options, task_sha256" in note
        for note in line.notes
    )


def test_documents_of_one_side_and_very_few(tmp_path, said) -> None:
    record(tmp_path / "a", BASE[:40])
    record(tmp_path / "b", BETTER, order=[*range(20, 60)], state="interrupted", errors=[30])
    (line,) = compared(tmp_path).lines
    assert (line.n, len(line.only_a), len(line.only_b)) == (19, 20, 20) and line.only_a[
        0
    ] == "splitfacts-00000"
    assert line.mean_a == np.delete(BASE[20:40], 10).mean()  # without the one that failed
    text = " ".join(said()[1].split())
    assert (
        "only A has 20 documents: splitfacts-00000, splitfacts-00001, splitfacts-00002, …" in text
        and "only 19 documents" in text
    )
    assert "B: 1 of 40 documents failed" in text and "B: not finished" in text
    assert len(json.loads(said("--json")[1])["lines"][0]["only_b"]) == 20


def test_overall_pools_the_documents_of_one_method(tmp_path) -> None:
    for task, n in (("t1", 50), ("t2", 200)):
        record(tmp_path / "a", BASE[:n], task=task)
        record(tmp_path / "b", BETTER[:n], task=task)
        record(tmp_path / "a", BASE[:n], task=task, mode="receiver")
        record(tmp_path / "b", BASE[:n], task=task, mode="receiver")
    record(tmp_path / "a", BASE[:30] * 0.5, task="f", row={"metric": "f1"})
    record(tmp_path / "b", BETTER[:30] * 0.5, task="f", row={"metric": "f1"})
    overall = [line for line in compared(tmp_path).lines if line.overall]
    assert {line.what for line in overall} == {
        "overall, 250 documents of 2 tasks: lcf",
        "overall, 250 documents of 2 tasks: receiver",
    }
    lcf = next(line for line in overall if line.a == "lcf")
    ours, theirs = (np.concatenate([scores[:50], scores]) for scores in (BASE, BETTER))
    assert (lcf.mean_a, lcf.difference) == pytest.approx((ours.mean(), theirs.mean() - ours.mean()))


def test_times_of_other_machines_are_not_compared(tmp_path) -> None:
    record(tmp_path / "a", BASE, ms=[100.0] * 5)
    record(tmp_path / "b", BASE, ms=[900.0] * 5, machine={**MACHINE, "cpu": "Faster CPU"})
    (line,) = compared(tmp_path).lines
    assert line.latency_n == 0 and line.notes == [
        "first token not compared: other machine (cpu Test CPU → Faster CPU)"
    ]
    for seed, machine in ((0, MACHINE), (1, {**MACHINE, "threads": 8})):
        for side in "cd":
            record(tmp_path / side, BASE, ms=[100.0] * 5, seed=seed, machine=machine)
    (line,) = compare(read_run_groups([tmp_path / "c"]), read_run_groups([tmp_path / "d"])).lines
    assert line.latency_n == 0 and line.notes == [
        "first token not compared: several machines (threads 1 → 8)"
    ]


def test_every_form(tmp_path, said) -> None:
    for task in ("t1", "t2"):
        record(tmp_path / "a", BASE, task=task, ms=[100.0] * 3)
        record(tmp_path / "b", BETTER, task=task, ms=[110.0] * 3, adapter_sha256="e" * 64)
    whole = json.loads(said("--json")[1])
    assert (
        len(whole["lines"]) == 3
        and whole["lines"][0]["difference"] == pytest.approx(0.07)
        and whole["lines"][2]["latency_ratio"] is None
    )
    rows = list(csv.DictReader(io.StringIO(said("--csv")[1])))
    assert [row["what"] for row in rows] == ["t1 lcf", "t2 lcf", "overall, 400 documents of 2 tasks: lcf"]
    assert rows[0]["only_a"] == "0" and rows[0]["latency_ratio"] == "1.1" and rows[2]["latency_ratio"] == ""
    text = said("--markdown")[1]
    assert (
        "| t1 lcf | 200 |" in text
        and "+7.0" in text
        and "differs: adapter_sha256 cccccccccc → eeeeeeeeee" in text
    )
    shared = {"t1 lcf": "+7.0", "first token ×1.10 (n=3)": "", "overall, 400 documents of 2": "+7.0"}
    printed = said()[1]
    assert all(start in printed and end in printed for start, end in shared.items())


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(tmp_path, capsys, monkeypatch, width: int) -> None:
    for task in ("arc_challenge", "splitfacts_heldout"):
        record(tmp_path / "a", BASE, task=task, ms=[100.0] * 3)
        record(tmp_path / "b", BETTER, task=task, mode="full_context")
    lines = printed(capsys, monkeypatch, width, comparison_table(compared(tmp_path))).splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    told = [f"{100 * line.low:+.1f} to {100 * line.high:+.1f}" for line in compared(tmp_path).lines]
    assert len(told) == 3 and all(any("+7.0" in li and interval in li for li in lines) for interval in told)


def test_nothing_to_read(tmp_path, said) -> None:
    record(tmp_path / "a", BASE)
    (tmp_path / "b").mkdir()
    code, text = said()
    assert code == USER and "nothing to read" in text


def test_subjects_and_scores_over_seeds(tmp_path) -> None:
    for seed in (0, 1):
        record(tmp_path / "a", BASE, seed=seed)
        record(tmp_path / "b", BETTER if seed else BASE, seed=seed)
    (line,) = compared(tmp_path).lines
    assert (line.n, line.difference) == (200, pytest.approx(0.035)) and line.low < 0.035 < line.high


def prompted(out: Path, receiver: list[str], text: str | None = None, **more) -> Path:
    """A run whose documents were asked with these prompts' digests."""
    writer = RunWriter.open(out, gate_runs.identity(**more), {"environment": MACHINE}, fresh=True)
    for i, prompt in enumerate(receiver):
        row = {"doc_hash": f"d{i}", "doc_index": i, "score": 1.0, "metric": "acc", "message_text": text}
        writer.append(row | {"receiver_prompt_sha256": prompt, "sharer_prompt_sha256": "s" * 64})
    writer.finish()
    return writer.folder


def test_prompts_that_differ_are_named(tmp_path, said) -> None:
    prompted(tmp_path / "a", ["p", "q", "r", "s"])
    prompted(tmp_path / "b", ["p", "x", "r", "y", "z"])
    code, text = said()
    assert code == 0 and "prompts differ on 2 of 4 documents" in " ".join(text.split())
    prompted(tmp_path / "same", ["p", "q"])
    assert "prompts" not in said(b="same")[1]
    prompted(tmp_path / "other", ["x", "x", "x"], mode="receiver")  # another method has other prompts
    assert "prompts" not in said(b="other")[1]
    prompted(tmp_path / "t1", ["p"], text="in the box", mode="t2t")  # the prompt holds the message
    prompted(tmp_path / "t2", ["q"], text="on the box", mode="t2t")
    assert "prompts" not in said(a="t1", b="t2")[1]


def test_seeds_and_limits_have_other_prompts_and_belong_together(tmp_path) -> None:
    for seed in (0, 1):
        prompted(tmp_path / "a", ["p", "q"], seed=seed, prompts_sha256=str(seed) * 64)
    prompted(tmp_path / "a", ["p"], control="deranged", limit=1, prompts_sha256="e" * 64)
    groups = read_run_groups([tmp_path / "a"]).groups
    assert [len(group.runs) for group in groups] in ([2, 1], [1, 2])
    matched = next(group for group in groups if group.control == "matched")
    assert twin_of(matched, groups, "deranged") is not None


def test_labels_show_no_digest_of_code_or_prompts(tmp_path) -> None:
    for code in "ab":
        prompted(tmp_path / "a", ["p"], plugins={"methods/mine": code * 64}, versions={"torch": "2.9"})
    names = [group.label for group in read_run_groups([tmp_path / "a"]).groups]
    assert len(set(names)) == 2 and all("run=" in name and "mine" not in name for name in names)
    for version in ("2.9", "2.10"):
        prompted(tmp_path / "b", ["p"], versions={"torch": version}, behaviour=1)
    labels = [group.label for group in read_run_groups([tmp_path / "b"]).groups]
    assert sorted(labels) == ["lcf torch=2.10", "lcf torch=2.9"]


def test_check_refuses_other_prompts(tmp_path, capsys, monkeypatch) -> None:
    prompted(tmp_path / "a", ["p", "q", "r"] * 200)
    prompted(tmp_path / "b", ["p", "q", "x"] * 200)
    code, _, err = invoke(capsys, monkeypatch, "check", tmp_path / "a", tmp_path / "b")
    assert code == USER and "differ in prompts on 200 of 600 documents" in err and "--allow prompts" in err
    code, out, _ = invoke(capsys, monkeypatch, "check", tmp_path / "a", tmp_path / "b", "--allow", "prompts")
    assert code == 0 and "prompts on 200 of 600" in " ".join(out.split())

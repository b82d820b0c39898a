"""The gate as CI runs it: failures, passes, undecided checks, and attempts to fool it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from lcfbench.analysis.gate import Outcome, decide, equal_answers, score_shift
from lcfbench.analysis.gate.check import check_run_groups
from lcfbench.analysis.gate.outputs import annotation
from lcfbench.analysis.gate.times import time_shift
from lcfbench.analysis.run_groups import read_run_groups
from lcfbench.analysis.tables import check_table
from lcfbench.results.schema import row_sha256
from tests.analysis.gate_runs import MACHINE, answers, changed, forget, record, rewrite
from tests.helpers import invoke, printed

OK, FAILED, USER, UNSURE, INCOMPLETE = 0, 1, 2, 3, 4
BASE = answers(2000)
FEW = BASE[:300]  # enough for equal answers to pass
MS = np.linspace(200, 220, 12)


@pytest.fixture
def check(capsys, monkeypatch, tmp_path):
    """`lcfbench check`: exit code and what was printed, line breaks undone."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: object, baseline: str = "base", new: str = "new") -> tuple[int, str]:
        code, told, complained = invoke(
            capsys, monkeypatch, "check", tmp_path / baseline, tmp_path / new, *args
        )
        assert "Traceback" not in told + complained
        return code, " ".join((told + complained).split())

    return run


def both(out: Path, new: np.ndarray, base: np.ndarray = BASE, **more) -> tuple[Path, Path]:
    """A baseline run and a new one."""
    shared = {k: more.pop(k) for k in ("task",) if k in more}
    return record(out / "base", base, ms=MS, **shared), record(
        out / "new", new, **{"ms": MS, **shared, **more}
    )


def test_a_planted_drop_fails_and_few_documents_cannot_say(check, tmp_path) -> None:
    both(tmp_path, changed(BASE, lost=60, gained=20))
    code, said = check()
    assert (
        code == FAILED and "surely worse" in said and "-2.0" in said and "2,000" in said and "exit 1" in said
    )
    both(tmp_path, changed(BASE[:100], lost=3, gained=1), BASE[:100])
    code, said = check()
    assert code == UNSURE and "n=100; about" in said and "documents would decide" in said
    assert check("--strict")[0] == FAILED
    assert check("--max-drop", "20pt")[0] == OK


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_never_fails(check, tmp_path, seed: int) -> None:
    both(tmp_path, changed(BASE, lost=30, gained=30, seed=seed), machine={**MACHINE, "cpu": "Another CPU"})
    assert check()[0] == OK
    few = BASE[:300]
    both(tmp_path, changed(few, lost=6, gained=6, seed=seed), few)
    code, said = check()
    assert code == UNSURE and "inconclusive" in said


@pytest.mark.parametrize(("limit", "fewest"), [("1pt", 299), ("2pt", 149)])
def test_equal_answers_need_so_many_documents(check, tmp_path, limit: str, fewest: int) -> None:
    """A loss of the limit leaves all answers equal with probability (1 − limit)ⁿ."""
    both(tmp_path, BASE[: fewest - 1], BASE[: fewest - 1])
    code, said = check("--max-drop", limit)
    assert (
        code == UNSURE and f"all {fewest - 1} answers score the same; {fewest} documents would decide" in said
    )
    both(tmp_path, BASE[:fewest], BASE[:fewest])
    assert check("--max-drop", limit)[0] == OK
    assert "equal answers never show a loss of 0" in check("--max-drop", "0")[1]


def test_few_changed_answers_pass_by_the_exact_test(check, tmp_path) -> None:
    base = BASE[:300]
    both(tmp_path, changed(base, lost=0, gained=1), base)
    assert check()[0] == OK
    both(tmp_path, changed(base, lost=1, gained=0), base)
    code, said = check()
    enough = int(said.split("n=300; about ")[1].split()[0].replace(",", ""))
    assert code == UNSURE and 474 < enough < 1500  # one lost of 474 passes, but one may become three


def test_a_drop_at_the_limit_is_called_that(check, tmp_path) -> None:
    both(tmp_path, changed(BASE, lost=40, gained=20))
    code, said = check()
    assert code == UNSURE and "sits on the limit of −1 points itself" in said


def timed(out: Path, factors: Sequence[float], machines: Sequence[dict] = ()) -> None:
    """Records a run a side for each slowdown; times of its documents vary by 3 %."""
    for seed, factor in enumerate(factors):
        noise = np.random.default_rng(seed).normal(1, 0.03, len(MS))
        record(out / "base", FEW, ms=MS, seed=seed)
        record(
            out / "new",
            FEW,
            ms=MS * factor * noise,
            seed=seed,
            machine=dict(enumerate(machines)).get(seed, MACHINE),
        )


def test_a_slowdown_fails_only_when_asked_for_and_only_on_the_same_machine(check, tmp_path) -> None:
    timed(tmp_path, [1.26, 1.36, 1.3])
    assert check()[0] == OK
    code, said = check("--max-slowdown", "10%")
    assert code == FAILED and "31.0 % slower, surely more than 10 %" in said and "3 runs" in said
    assert (
        "share what the machine does between two sessions: record the baseline in the same job, "
        "the two sides alternately" in said
    )
    assert check("--max-slowdown", "60%")[0] == OK
    code, said = check("--max-slowdown", "25%")
    assert code == UNSURE and "n=3; about" in said and "runs would decide" in said
    record(
        tmp_path / "new", FEW, ms=MS * 3, seed=2, machine={**MACHINE, "threads": 8}
    )  # one of the three is enough
    code, said = check("--max-slowdown", "10%")
    assert code == UNSURE and "not compared: several machines (threads 1 → 8)" in said
    shutil.rmtree(tmp_path / "new")
    timed(tmp_path, [1.3] * 3, [{**MACHINE, "cpu": "Another CPU"}] * 3)
    assert "not compared: other machine (cpu Test CPU → Another CPU)" in check("--max-slowdown", "10%")[1]


@pytest.mark.parametrize(
    ("factors", "words"),
    [([1.24], "slower by 24 %"), ([1.0], "as fast"), ([0.5, 0.5], "faster by 50 %"), ([9], "slower")],
)
def test_one_run_a_side_cannot_tell_the_machine_from_the_code(
    check, tmp_path, factors: list[float], words: str
) -> None:
    timed(tmp_path, factors)
    code, said = check("--max-slowdown", "10%")
    runs = "1 run" if len(factors) == 1 else "2 runs"
    assert (
        code == UNSURE
        and words in said
        and f"here, but {runs} a side cannot tell the machine from the code; time three, with --seeds" in said
    )
    assert "unless a --limit draws its documents" in said and check()[0] == OK


def test_sessions_of_a_resumed_run_are_one_run(check, tmp_path) -> None:
    timed(tmp_path, [1.0])
    for folder in (*(tmp_path / "base").iterdir(), *(tmp_path / "new").iterdir()):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"sessions": manifest["sessions"] * 4}))
    code, said = check("--max-slowdown", "10%")
    assert code == UNSURE and "1 run a side cannot tell" in said


def test_a_busy_machine_does_not_fail_the_same_code(check, tmp_path) -> None:
    timed(tmp_path, [1.65, 0.97, 1.24])
    assert check("--max-slowdown", "10%")[0] == UNSURE


def test_runs_that_were_not_timed_are_no_blocks(check, tmp_path) -> None:
    timed(tmp_path, [1.5, 1.5, 1.5])
    record(tmp_path / "new", FEW, seed=2)
    code, said = check("--max-slowdown", "10%")
    assert code == UNSURE and "2 runs a side" in said
    for seed in (0, 1):
        record(tmp_path / "new", FEW, seed=seed)
    code, said = check("--max-slowdown", "10%")
    assert code == UNSURE and "no document was timed alone in both runs (run --latency-documents)" in said


def test_the_order_of_documents_does_not_matter(check, tmp_path) -> None:
    new = changed(BASE, lost=60, gained=20)
    folder = both(tmp_path, new, order=np.random.default_rng(0).permutation(len(new)).tolist())[1]
    code, said = check()
    assert code == FAILED and "-2.0" in said
    rewrite(folder, list(range(len(new)))[::-1])
    assert check() == (code, said)


def test_missing_documents_are_incomplete_whatever_the_rest_scores(check, tmp_path) -> None:
    wrong = np.flatnonzero(FEW == 0)
    folder = both(tmp_path, FEW, FEW)[1]
    rewrite(folder, np.setdiff1d(np.arange(len(FEW)), wrong[:50]).tolist())  # the hard ones left out
    code, said = check()
    assert code == INCOMPLETE and "50 of the baseline's documents are missing (splitfacts-" in said
    worse = both(tmp_path, changed(FEW, lost=90, gained=0), FEW)[1]
    rewrite(worse, list(range(280)))
    code, said = check()
    assert code == FAILED and "are missing" in said  # surely worse comes first


def test_repeated_rows_count_once(check, tmp_path) -> None:
    folder = both(tmp_path, changed(BASE, lost=60, gained=20))[1]
    right = np.flatnonzero(BASE == 1)[:900].tolist()
    rewrite(folder, [*range(len(BASE)), *right * 3])
    (folder / "manifest.json").unlink()  # which would say that these are not the recorded rows
    code, said = check()
    assert code == FAILED and "2,700 rows repeat a document; each counts once" in said and "2,000" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "bfloat16"), ("device", "cuda"), ("attention", "eager"), ("data_sha256", "d" * 64)],
)
def test_what_is_computed_or_asked_differently_is_refused(check, tmp_path, name: str, value: str) -> None:
    both(tmp_path, FEW, FEW, **{name: value})
    code, said = check()
    assert (
        code == USER
        and f"baseline and new differ in {name} (baseline " in said
        and f"new {value[:10]}" in said
        and f"--allow {name}" in said
    )
    assert check("--allow", name)[0] == OK
    code, said = check("--allow", "dtpe")
    assert code == USER and "unknown field 'dtpe'" in said and "dtype" in said


def test_other_data_under_the_same_name_is_found_by_its_documents(check, tmp_path) -> None:
    both(tmp_path, FEW, FEW, prefix="other")
    code, said = check()
    assert code == INCOMPLETE and "300 of the baseline's documents are missing" in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "splitfacts2"),
        ("pair", "a:b"),
        ("mode", "t2t"),
        ("control", "deranged"),
        ("options", {"width": "8"}),
        ("seed", 1),
    ],
)
def test_another_run_does_not_stand_in(check, tmp_path, field: str, value) -> None:
    both(tmp_path, FEW, FEW)
    shutil.rmtree(tmp_path / "new")
    record(tmp_path / "new", FEW, prefix="splitfacts", **{field: value})
    code, said = check()
    assert (
        code == INCOMPLETE
        and f"no such run; the nearest, {value if field == 'task' else 'splitfacts'}" in said
    )
    assert f"differs: {field}" in said and "not in the baseline, so not checked" in said


def test_an_adapter_that_changed_is_what_is_guarded(check, tmp_path) -> None:
    both(tmp_path, FEW, FEW, adapter_sha256="e" * 64, version="0.2.0", revisions=["r2", "s1"])
    code, said = check()
    assert code == OK and "adapter_sha256 cccccccccc → eeeeeeeeee" in said and "version 0.1.0 → 0.2.0" in said
    record(
        tmp_path / "new", FEW, adapter_sha256="f" * 64
    )  # an older run left beside it must not answer for it
    code, said = check()
    assert code == USER and "2 new runs could be meant" in said and "adapter_sha256" in said


def test_errors_are_counted_and_named(check, tmp_path) -> None:
    both(tmp_path, FEW, FEW, errors=range(3))
    code, said = check()
    assert (
        code == INCOMPLETE
        and "3 of 300 documents failed, 0 in the baseline; the first: RuntimeError: document 0 is too long"
        in said
    )
    both(tmp_path, FEW, FEW, errors=np.flatnonzero(FEW == 1)[:100])
    code, said = check()
    assert code == INCOMPLETE and "not judged: 100 of 300 documents failed" in said


def test_a_run_compared_with_itself_is_said_to_guard_nothing(check, tmp_path) -> None:
    both(tmp_path, FEW, FEW)
    code, said = check(new="base")
    assert code == OK and "such a check guards nothing" in said


def test_what_is_not_there_or_not_finished(check, tmp_path) -> None:
    folder = both(tmp_path, FEW, FEW)[1]
    (tmp_path / "empty").mkdir()
    for side in ({"new": "empty"}, {"baseline": "empty"}, {"new": "nowhere"}):
        code, said = check(**side)
        assert code == USER and "nothing to read" in said
    for state in ("interrupted", "running"):
        shutil.rmtree(folder)
        record(tmp_path / "new", FEW, state=state)
        code, said = check()
        assert code == INCOMPLETE and f"not finished ({state})" in said
    journal = folder / "samples.jsonl"  # killed in the middle of a line
    journal.write_bytes(journal.read_bytes()[:-100])
    code, said = check()
    assert code == INCOMPLETE and "1 of the baseline's documents are missing" in said
    journal.unlink()  # a folder with its manifest only
    assert check()[0] != OK


def test_an_empty_baseline_run_does_not_pass_in_silence(check, tmp_path) -> None:
    for side in ("base", "new"):
        record(tmp_path / side, FEW)
        record(tmp_path / side, [], mode="t2t", state="interrupted")
    code, said = check()
    assert code == INCOMPLETE and "splitfacts t2t, documents: not finished (interrupted)" in said


def test_a_damaged_baseline_does_not_pass_in_silence(check, tmp_path) -> None:
    both(tmp_path, FEW, FEW)
    broken = record(tmp_path / "base", FEW, mode="t2t")
    (broken / "samples.parquet").write_bytes(b"PAR1 no more")
    code, said = check()
    assert code == INCOMPLETE and "skipped, cannot be read" in said


GUARDED = (
    "task_options",
    "task_sha256",
    "data_sha256",
    "split_manifest_sha256",
    "dtype",
    "device",
    "attention",
)


def test_what_one_side_does_not_tell_is_incomplete(check, tmp_path) -> None:
    new = both(tmp_path, FEW, FEW)[1]
    forget(new, "dtype", "data_sha256")
    code, said = check()
    assert (
        code == INCOMPLETE
        and "recorded in the baseline only, so whether it is the same is not known: data_sha256, dtype;"
        in said
    )
    assert check("--allow", "dtype")[0] == INCOMPLETE
    code, said = check("--allow", "dtype", "--allow", "data_sha256")
    assert code == OK and "recorded on neither side" not in said
    forget(next((tmp_path / "base").iterdir()), "dtype", "data_sha256")
    code, said = check()
    assert code == OK and "recorded on neither side, so not checked: data_sha256, dtype" in said
    forget(next((tmp_path / "base").iterdir()), "device")
    code, said = check()
    assert (
        code == INCOMPLETE
        and "recorded in the new only, so whether it is the same is not known: device" in said
    )


def test_runs_without_their_manifests_do_not_pass(check, tmp_path) -> None:
    base, new = both(tmp_path, FEW, FEW)
    (new / "manifest.json").unlink()
    code, said = check("--max-drop", "5pt")
    assert code == INCOMPLETE and all(name in said for name in GUARDED)
    assert check("--max-drop", "5pt", *(part for name in GUARDED for part in ("--allow", name)))[0] == OK
    both(tmp_path, changed(BASE, lost=60, gained=20))
    shutil.copy(next((tmp_path / "new").iterdir()) / "samples.parquet", tmp_path / "new.parquet")
    assert check(new="new.parquet")[0] == FAILED  # surely worse comes first
    shutil.copy(base / "samples.parquet", tmp_path / "base.parquet")
    code, said = check("--max-slowdown", "10%", baseline="base.parquet", new="base.parquet")
    assert code == UNSURE and "not compared: the machine is not recorded" in said
    assert f"recorded on neither side, so not checked: {', '.join(GUARDED)}" in said


def test_several_seeds_are_looked_up_seed_by_seed(check, tmp_path) -> None:
    for seed in (0, 1):
        record(tmp_path / "base", FEW, seed=seed)
        folder = record(tmp_path / "new", FEW, seed=seed)
    assert check()[0] == OK
    rewrite(folder, list(range(200)))  # the other seed still has them
    code, said = check()
    assert code == INCOMPLETE and "100 of the baseline's documents are missing" in said
    shutil.rmtree(folder)
    code, said = check()
    assert code == INCOMPLETE and "differs: seed 0,1 → 0" in said
    record(tmp_path / "new", FEW, seed=1, data_sha256="d" * 64)
    code, said = check()
    assert code == USER and "data_sha256" in said


def test_graded_scores(check, tmp_path) -> None:
    rng = np.random.default_rng(0)
    base = rng.beta(0.5, 0.5, 3000)
    both(tmp_path, np.clip(base + rng.normal(0, 0.05, 3000), 0, 1), base, row={"metric": "acc"})
    assert check()[0] == OK
    both(tmp_path, np.clip(base - 0.03 + rng.normal(0, 0.05, 3000), 0, 1), base)
    assert check()[0] == FAILED


def test_holm_over_all_cells(check, tmp_path) -> None:
    new = changed(BASE, lost=60, gained=24)  # p about .02 alone
    for number in range(6):
        record(tmp_path / "base", FEW if number else BASE, task=f"t{number}")
        record(tmp_path / "new", FEW if number else new, task=f"t{number}")
    code, said = check()
    assert code == UNSURE and "1 inconclusive" in said and "5 ok" in said and "(6 groups;" in said
    for number in range(1, 6):
        shutil.rmtree(next((tmp_path / "base").glob(f"lcf-t{number}-*")))
    code, said = check()
    assert code == FAILED and "not in the baseline, so not checked" in said


def test_junit_reads_back(check, tmp_path, monkeypatch) -> None:
    both(tmp_path, changed(BASE, lost=60, gained=20))
    record(tmp_path / "base", FEW, task="few")
    record(tmp_path / "new", BASE[:100], task="few", errors=[1], row={"prediction": "\x1b[31m"})
    record(tmp_path / "base", BASE[:100], task="small")
    record(tmp_path / "new", BASE[:100], task="small")
    record(tmp_path / "base", FEW, task="fine")
    record(tmp_path / "new", FEW, task="fine")
    file = tmp_path / "out" / "junit.xml"
    assert check("--junit", file)[0] == FAILED
    for strict in (False, True):
        assert check("--junit", file, *(["--strict"] if strict else []))[0] == FAILED
        root = ElementTree.parse(file).getroot()
        suite = root.find("testsuite")
        assert root.tag == "testsuites" and suite is not None
        cases = suite.findall("testcase")
        counts = {
            "tests": len(cases),
            **{f"{k}s": len(suite.findall(f"testcase/{k}")) for k in ("failure", "error")},
        }
        counts["skipped"] = len(suite.findall("testcase/skipped"))
        assert (
            {name: int(suite.attrib[name]) for name in counts}
            == counts
            == {name: int(root.attrib[name]) for name in counts}
        )
        assert all(case.attrib.keys() >= {"classname", "name", "time"} for case in cases)
        names = {
            case.attrib["classname"]: [child.tag for child in case]
            for case in cases
            if case.attrib["name"].startswith("score")
        }
        unsure = "failure" if strict else "skipped"
        assert names == {
            "splitfacts.lcf": ["failure"],
            "few.lcf": [unsure],
            "small.lcf": [unsure],
            "fine.lcf": ["system-out"],
        }
        missing = next(case for case in cases if case.attrib["name"].startswith("documents: few"))
        assert "are missing" in missing.find("error").attrib["message"]
    file.write_text("an older result")
    shutil.rmtree(tmp_path / "new")
    record(tmp_path / "new", BASE[:100], dtype="bfloat16")
    assert check("--junit", file)[0] == USER
    assert "dtype" in ElementTree.parse(file).find("testsuite/testcase/error").attrib["message"]


def test_control_characters_do_not_break_the_xml(check, tmp_path) -> None:
    both(tmp_path, FEW, FEW)
    path = record(tmp_path / "new", FEW[:10], errors=[], state="running")
    journal = path / "samples.jsonl"
    row = json.loads(journal.read_text().splitlines()[0]) | {"error": "bad \x00\x1b[31m <&> byte"}
    journal.write_text(json.dumps(row | {"row_sha256": row_sha256(row)}) + "\n")
    assert check("--junit", tmp_path / "junit.xml")[0] == INCOMPLETE
    told = ElementTree.parse(tmp_path / "junit.xml").find("testsuite/testcase/error").attrib["message"]
    assert "<&> byte" in told


def test_github(check, tmp_path, monkeypatch) -> None:
    assert (
        annotation("error", "a: b, c", "50 %\r\nof it: all")
        == "::error title=a%3A b%2C c::50 %25%0D%0Aof it: all"
    )
    both(tmp_path, changed(BASE, lost=60, gained=20))
    record(tmp_path / "base", BASE[:100], task="small")
    record(tmp_path / "new", BASE[:100], task="small")
    assert "::error" not in check()[1]
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    code, said = check("--github")
    assert "::error title=surely worse%3A splitfacts lcf%2C score::surely worse: " in said
    assert "(90 %25: " in said and "::warning title=inconclusive" in said
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::error" in check()[1] and "::warning" not in check("--strict")[1]
    text = page.read_text()
    assert (
        text.startswith("before\n")
        and text.count("**lcfbench check**") == 3
        and "| ❌ surely worse | splitfacts lcf | 60.5 | 58.5 | -2.0 |" in text
    )
    assert "exit 1" in text
    assert "::error title=lcfbench check::nothing to read" in check(new="nowhere")[1]
    assert page.read_text().startswith(text + "**lcfbench check** refused: nothing to read")


@pytest.mark.parametrize("width", [80, 100])
def test_lines_fit_a_narrow_terminal(tmp_path, capsys, monkeypatch, width: int) -> None:
    base, new = both(tmp_path, changed(BASE, lost=60, gained=20), ms=MS * 1.3, control="matched")
    checked = check_run_groups(read_run_groups([base]), read_run_groups([new]), 0.01, 0.1)
    lines = printed(capsys, monkeypatch, width, check_table(checked)).splitlines()
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    first = next(li for li in lines if li.startswith("surely worse"))
    assert all(part in first for part in ("60.5", "58.5", "-2.0", "-2.8 to -1.3", "2,000"))


def test_decisions_on_arrays() -> None:
    same = score_shift(BASE, BASE, 0.01)
    assert same.same and decide([same]) == [Outcome.OK]
    assert decide([score_shift([1.0], [1.0], 0.01)]) == [Outcome.UNSURE]
    assert (
        decide([score_shift(1 - BASE, BASE, 0.01)] * 3) == [Outcome.WORSE] * 3
        or (1 - BASE).mean() > BASE.mean()
    )
    assert equal_answers(0.0) is None
    one, same = (np.full(5, 110.0), np.full(5, 100.0)), (np.full(5, 104.0), np.full(5, 100.0))
    assert decide([time_shift([one] * 3, 0.05)]) == [Outcome.WORSE] and time_shift([one] * 3, 0.05).n == 3
    assert decide([time_shift([same] * 3, 0.05)]) == [Outcome.OK]
    assert decide([time_shift([one] * 2, 0.05)]) == decide([time_shift([], 0.05)]) == [Outcome.UNSURE]
    # what cannot be tested takes nothing from the others' share of the 5 %
    assert (
        decide([time_shift([one], 0.05)] * 9 + [score_shift(changed(BASE, 60, 24), BASE, 0.01)])[-1]
        is Outcome.WORSE
    )
    few = time_shift([(np.full(5, x), np.full(5, 100.0)) for x in (120.0, 80.0, 130.0)], 0.05)
    assert decide([few]) == [Outcome.UNSURE] and (few.enough() or 0) > 3

"""Damaged runs under every verb that reads: one line each, and the good runs beside are shown."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pytest
import typer.main

from lcfbench.errors import UserError
from lcfbench.results.gathering import gather
from lcfbench.results.reader import read_runs
from lcfbench.results.writer import RunWriter
from tests.helpers import invoke
from tests.results import damages
from tests.results.damages import ASIDE, GONE, ODD, REFUSED, SAME

N = 12
NAMES = {"pair": "a:b", "receiver": "a", "sharer": "b", "task": "t", "scoring": "letters", "seed": 0}
DOCUMENTS = [f"d{i}" for i in range(N)]
CODES = {0, 1, 2, 3, 4}
GOOD = (("receiver", "matched"), ("lcf", "matched"), ("lcf", "deranged"))
COMMAND = cache(typer.main.get_command)
Say: TypeAlias = Callable[..., tuple[int, str, str]]


def opened(out: Path, mode: str, control: str = "matched", fresh: bool = False, **more: object) -> RunWriter:
    identity = {
        **NAMES,
        "mode": mode,
        "control": control,
        "batch_size": 16,
        "revisions": ["1"],
        "options": {},
        **more,
    }
    facts = {"sends": mode != "receiver", "chance": 0.5}
    return RunWriter.open(out, identity, facts, fresh, DOCUMENTS)


def answer(writer: RunWriter) -> list[str]:
    """Answers what has no row; returns those documents."""
    asked = [d for d in DOCUMENTS if d not in writer.done]
    for d in asked:
        i = DOCUMENTS.index(d)
        cells = {"metric": "acc", "score": i % 2, "prediction": d, "ttft_ms": 20.0, "message_bytes": 10}
        writer.append({"doc_hash": d, "doc_index": i, **cells})
    return asked


def run(out: Path, mode: str, control: str = "matched", **more: object) -> Path:
    writer = opened(out, mode, control, **more)
    answer(writer)
    writer.finish()
    return writer.folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good runs and the one that gets damaged, `t2t`."""
    out = tmp_path_factory.mktemp("whole")
    for mode, control in (*GOOD, ("t2t", "matched")):
        run(out, mode, control)
    return out


@pytest.fixture
def world(whole: Path, tmp_path: Path) -> Path:
    damages.copy(whole, tmp_path / "results")
    (tmp_path / "base").symlink_to(whole)
    return tmp_path


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good runs, and beside them a run for each damage, none equal to another."""
    out = tmp_path_factory.mktemp("every")
    for mode, control in GOOD:
        for name in ("results", "base"):
            run(out / name, mode, control)
    for i, name in enumerate(damages.ALL):
        damages.ALL[name](run(out / "results" / f"d{i:03}", "t2t", options={"number": i}))
    return out


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """`lcfbench …` in this process: exit code, stdout, stderr. The command line is made once."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("typer.main.get_command", COMMAND)
    return lambda *args: invoke(capsys, monkeypatch, *args)


def broken(world: Path, damage: damages.Damage) -> Path:
    (folder,) = (world / "results").glob("t2t-*")
    damage(folder)
    return folder


def as_a_user(work: Callable[[], object], said: Path) -> tuple[int, str]:
    """Runs `work` in a process without the rights of root; returns 2 and what its UserError says."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, said.read_text() if said.exists() else ""
    code = 1
    try:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT)
        if os.getuid() == 0:  # the version of the interface, this process; three sets without anything
            assert ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
        work()
        code = 0
    except UserError as error:
        os.write(handle, f"{error.what} {error.next_step}".encode())
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def check_sound(folder: Path) -> None:
    """The run's rows are those that an undisturbed run would have."""
    rows = read_runs([folder]).rows.sort_values("doc_index")
    assert rows["doc_hash"].tolist() == rows["prediction"].tolist() == DOCUMENTS
    assert rows["score"].tolist() == [i % 2 for i in range(N)] and rows["error"].isna().all()
    assert (rows["ttft_ms"] == 20.0).all() and (rows["message_bytes"] == 10).all()


def contents(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


VERBS: dict[str, tuple[str, ...]] = {
    "show": ("show", "results", "--json"),
    "verdict": ("verdict", "results"),
    "compare": ("compare", "base", "results"),
    "check": ("check", "base", "results"),
    "a damaged baseline": ("check", "results", "base"),
    "ls": ("ls", "runs", "--out", "results"),
    "report": ("report", "results", "-o", "report.md", "--markdown"),
    "page": ("report", "results", "-o", "report.html"),
    "frontier": ("plot", "frontier", "results", "--out", "figures"),
    "training": ("plot", "training", "results", "--out", "figures"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_what_is_good(
    every: Path, verb: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each run that cannot be relied on, and the good ones are shown."""
    monkeypatch.chdir(every)
    before = contents(every / "results")
    code, out, err = say(*VERBS[verb])
    assert code in CODES and "Traceback" not in out + err
    if verb in ("show", "verdict", "compare", "report", "page", "frontier"):
        assert code == 0, err
        written = {"report": "report.md", "page": "report.html"}
        assert "lcf" in (every / written[verb]).read_text() if verb in written else out
        for i, name in enumerate(damages.ALL):
            if name in REFUSED or name.startswith("gone: "):
                assert len([x for x in err.splitlines() if f"/d{i:03}/" in x]) == 1, (name, err)
    assert contents(every / "results") == before


@pytest.mark.parametrize("name", damages.ALL)
def test_every_verb_reads_the_damaged_run_alone(
    world: Path, name: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr("lcfbench.analysis.plots.frontier.save", lambda *_: [])  # drawn, not written
    folder = broken(world, damages.ALL[name])
    for verb, command in VERBS.items():
        code, out, err = say(*[str(folder) if x == "results" else x for x in command])
        assert code in CODES and "Traceback" not in out + err, verb
        if code == 2:
            assert len([x for x in err.splitlines() if x.startswith("lcfbench:")]) == 1, err


@pytest.mark.parametrize("name", [*REFUSED, *(f"gone: {name}" for name in GONE)])
def test_rows_that_were_not_recorded_are_in_no_number(
    world: Path, name: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    folder = broken(world, damages.ALL[name])
    code, out, err = say("show", "results", "--json")
    assert code == 0 and {line["mode"] for line in json.loads(out)} == {"receiver", "lcf"}
    assert len([x for x in err.splitlines() if folder.name in x]) == 1
    assert say("check", "base", "results")[0] == 4
    assert say("check", "base", folder)[0] == 4
    assert say("check", "results", "base")[0] == 4
    assert say("verdict", folder)[0] == 2


@pytest.mark.parametrize("name", [*REFUSED, *ASIDE])
def test_a_run_that_cannot_be_relied_on_is_not_continued(world: Path, name: str) -> None:
    folder = broken(world, {**REFUSED, **ASIDE}[name])
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(UserError) as error:
        opened(world / "results", "t2t")
    assert "--fresh" in error.value.next_step and str(folder) in error.value.what
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    fresh = opened(world / "results", "t2t", fresh=True)
    assert answer(fresh) == DOCUMENTS
    fresh.finish()
    kept = [p for p in folder.iterdir() if p.name.startswith(".damaged-")]
    assert any(p.name.endswith("samples.parquet") for p in kept)
    check_sound(folder)
    assert opened(world / "results", "t2t").complete


@pytest.mark.parametrize("at", range(0, 4000, 250))
def test_a_file_that_ends_early_is_not_continued(world: Path, at: int) -> None:
    folder = broken(world, damages.bytes_of("samples.parquet", lambda b: b[: len(b) * at // 4000]))
    with pytest.raises(UserError, match=r"samples\.parquet cannot be read"):
        opened(world / "results", "t2t")
    with pytest.raises(UserError, match="cannot be read"):
        read_runs([folder])


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet", "samples.jsonl", "."])
def test_files_that_may_not_be_read_are_named(world: Path, name: str) -> None:
    folder = broken(world, ODD["resumed and killed"])
    (folder / name).chmod(0)
    try:
        code, said = as_a_user(lambda: opened(world / "results", "t2t"), world / "said")
    finally:
        (folder / name).chmod(0o755)
    assert code == 2 and said.startswith(str(folder)) and "Permission denied" in said and "chmod" in said


@pytest.mark.parametrize("name", SAME)
def test_files_that_look_otherwise_and_hold_the_same_are_used(world: Path, name: str) -> None:
    folder = broken(world, SAME[name])
    check_sound(folder)
    writer = opened(world / "results", "t2t")
    assert not writer.warnings and answer(writer) == []
    writer.finish()
    check_sound(folder)
    assert opened(world / "results", "t2t").complete


@pytest.mark.parametrize("name", GONE)
def test_rows_that_are_gone_are_answered_again(world: Path, name: str) -> None:
    folder = broken(world, GONE[name])
    writer = opened(world / "results", "t2t")
    assert not writer.complete and any("are gone" in text for text in writer.warnings)
    left = len(writer.done)
    assert len(answer(writer)) == N - left
    writer.finish()
    assert opened(world / "results", "t2t").complete
    rows = read_runs([folder]).rows
    assert rows["doc_hash"].tolist() == sorted(DOCUMENTS, key=lambda d: int(d[1:])) and len(rows) == N
    check_sound(folder)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_manifest_or_journal_loses_no_row(world: Path, name: str) -> None:
    """The run goes on, or is refused with the next step; what was recorded is there still."""
    folder = broken(world, ODD[name])
    try:
        writer = opened(world / "results", "t2t")
    except UserError as error:
        assert "--fresh" in error.next_step
        writer = opened(world / "results", "t2t", fresh=True)
    if not writer.complete:
        answer(writer)
        writer.finish()
    check_sound(folder)
    assert opened(world / "results", "t2t").complete


@pytest.mark.parametrize("name", [*GONE, *ODD])
def test_a_damaged_run_is_read_as_recorded_or_not_without_a_word(
    world: Path, name: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either all rows are there, or the state or a line says that they are not."""
    monkeypatch.chdir(world)
    folder = broken(world, {**GONE, **ODD}[name])
    code, out, err = say("show", folder, "--json")
    assert code in (0, 2) and (code == 0 or folder.name in err)
    for line in json.loads(out) if code == 0 else []:
        assert (
            (line["n"] == N and line["score"] == 0.5) or folder.name in err or line["state"] != "complete"
        ), line


@pytest.mark.parametrize("there", [False, True])
def test_answers_that_differ_are_not_gathered(world: Path, there: bool) -> None:
    folder = next((world / "results").glob("t2t-*"))
    other = damages.copy(folder, world / "elsewhere" / folder.name)
    damages.two_answers(other)
    parts = [other] if there else [folder, other]
    if there:  # half of its rows are in the run already
        GONE["half the rows"](folder)
        damages.without("documents", "errors", "columns_sha256", "samples_bytes")(folder)
        damages.manifest(state="interrupted")(folder)
    (other / "samples.jsonl").rename(other / "rows")
    row = json.loads((other / "rows").read_text())
    damages.samples(lambda t: pa.Table.from_pylist([row, *t.to_pylist()[1:]], t.schema))(other)
    with pytest.raises(UserError, match="differ"):
        gather(world / ("results" if there else "new"), folder.name, parts, lambda *_: {})


def test_a_killed_run_is_listed_as_stopped_and_a_living_one_as_running(tmp_path: Path, say: Say) -> None:
    living, killed = opened(tmp_path, "lcf"), opened(tmp_path, "t2t")
    killed.close()
    run(tmp_path, "receiver")
    for _ in range(3):  # looking leaves the lock as it is
        code, out, _ = say("ls", "runs", "--out", tmp_path, "--json")
        found = {line["run_id"].split("-")[0]: line["state"] for line in json.loads(out)}
        assert code == 0 and found == {"lcf": "running", "t2t": "stopped", "receiver": "complete"}
    again = opened(tmp_path, "t2t")
    assert answer(again) == DOCUMENTS
    again.finish()
    living.close()

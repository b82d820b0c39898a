"""Files that a user names: written whole through links, streamed to devices and pipes, or refused."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.analysis import report_runs
from tests.helpers import environment, invoke

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, devices and pipes of POSIX")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    report_runs.write(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def report(capsys, monkeypatch):
    """`lcfbench report RUNS --csv -o OUT` in this process: exit code, stdout, stderr."""

    def called(runs: Path, out: object, form: str = "--csv") -> tuple[int, str, str]:
        return invoke(capsys, monkeypatch, "report", runs, form, "-o", out)

    return called


def link(place: Path) -> Path:
    (place / "kept.csv").write_text("old")
    (place / "out").symlink_to("kept.csv")
    return place / "kept.csv"


def chain(place: Path) -> Path:
    (place / "sub").mkdir()
    (place / "out").symlink_to("second")
    (place / "second").symlink_to(place / "sub" / "kept.csv")
    (place / "sub" / "kept.csv").write_text("old")
    return place / "sub" / "kept.csv"


def dangling(place: Path) -> Path:
    (place / "out").symlink_to(place / "made" / "kept.csv")
    return place / "made" / "kept.csv"


def folder_link(place: Path) -> Path:
    (place / "real").mkdir()
    (place / "through").symlink_to("real")
    (place / "out").symlink_to("through/kept.csv")
    return place / "real" / "kept.csv"


@pytest.mark.parametrize("kind", [link, chain, dangling, folder_link])
def test_a_link_stays_and_its_target_is_written(runs, place, kind, report):
    target = kind(place)
    code, out, err = report(runs, "out")
    assert (code, out.strip(), err) == (0, "out", "")
    assert (place / "out").is_symlink() and target.read_text().startswith("pair,")
    assert not [p for p in place.rglob(".*")]


def test_a_file_that_is_replaced_keeps_its_mode(runs, place, report):
    (place / "out").write_text("old")
    (place / "out").chmod(0o600)
    assert report(runs, "out")[0] == 0
    assert stat.S_IMODE((place / "out").stat().st_mode) == 0o600


def full(place: Path) -> Path:
    return Path("/dev/full")


def folder(place: Path) -> Path:
    """`-o FOLDER` writes report.csv inside; a folder of that name there is refused."""
    (place / "out" / "report.csv").mkdir(parents=True)
    return place / "out"


def loop(place: Path) -> Path:
    (place / "out").symlink_to("back")
    (place / "back").symlink_to("out")
    return place / "out"


def below_a_file(place: Path) -> Path:
    (place / "file").write_text("x")
    return place / "file" / "out"


def long_name(place: Path) -> Path:
    return place / ("x" * 300)


def long_path(place: Path) -> Path:
    return place / "/".join(["x" * 200] * 30)


def a_socket(place: Path) -> Path:
    socket.socket(socket.AF_UNIX).bind("out")
    return place / "out"


def in_proc(place: Path) -> Path:
    return Path("/proc/nowhere/out")


def link_to_full(place: Path) -> Path:
    (place / "out").symlink_to("/dev/full")
    return place / "out"


@pytest.mark.parametrize(
    "kind", [full, folder, loop, below_a_file, long_name, long_path, a_socket, in_proc, link_to_full]
)
def test_what_takes_no_file_is_one_line(runs, place, kind, report):
    out = kind(place)
    before = sorted((p, os.lstat(p).st_mode) for p in place.rglob("*"))
    code, said, err = report(runs, out)
    assert code == 2 and not said and err.count("\n") == 1, (said, err)
    assert err.startswith("lcfbench: ") and "Traceback" not in err
    assert sorted((p, os.lstat(p).st_mode) for p in place.rglob("*")) == before
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_and_file_are_one_line(runs, place, report):
    (place / "shut").mkdir(mode=0o555)
    (place / "file").touch(mode=0o444)
    for out in ("shut/out", "file"):
        code, said, err = report(runs, out)
        assert (code, said) == (2, "") and "Permission denied" in err


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "to-stdout"])
@pytest.mark.parametrize("to_file", [False, True])
def test_stdout_is_streamed_to_and_holds_nothing_else(runs, place, name, to_file):
    (place / "to-stdout").symlink_to("/dev/stdout")
    command = [sys.executable, "-m", "lcfbench", "report", str(runs), "--csv", "-o", name]
    with open("got", "wb") as sink:
        got = subprocess.run(
            command,
            stdout=sink if to_file else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=120,
        )
    text = (place / "got").read_text() if to_file else got.stdout.decode()
    assert got.returncode == 0 and not got.stderr
    assert text.startswith("pair,") and all("," in line for line in text.splitlines())


def test_null_swallows(runs, place, report):
    assert report(runs, "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_named_pipe_is_streamed_to(runs, place, report):
    os.mkfifo("pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    code, said, err = report(runs, "pipe")
    reader.join(20)
    assert (code, said.strip(), err) == (0, "pipe", "") and got[0].startswith("pair,")
    assert stat.S_ISFIFO(os.lstat("pipe").st_mode)


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet", "samples.jsonl", "alias"])
@pytest.mark.parametrize("form", ["--csv", "--markdown"])
def test_recorded_data_is_never_replaced(place, name, form, report):
    run = next(report_runs.write(place / "runs").iterdir())
    (run / "alias").symlink_to("samples.parquet")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    code, _, err = report(run, run / name, form)
    assert code == 2 and "recorded data" in err
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_missing_folder_is_made(runs, place, report):
    assert report(runs, "a/b/c.csv")[:2] == (0, "a/b/c.csv\n")
    assert (place / "a/b/c.csv").is_file()


@pytest.mark.parametrize("kind", [full, loop, below_a_file, a_socket, link_to_full])
def test_the_junit_file_of_a_check(runs, place, kind, capsys, monkeypatch):
    code, _, err = invoke(capsys, monkeypatch, "check", runs, runs, "--junit", kind(place))
    assert code == 2 and err.splitlines()[-1].startswith("lcfbench: ") and "Traceback" not in err


def test_plots_write_through_links(runs, place, capsys, monkeypatch):
    (place / "shelf").mkdir()
    (place / "drawn").mkdir()
    (place / "drawn" / "frontier.png").symlink_to(place / "shelf" / "kept.png")
    assert invoke(capsys, monkeypatch, "plot", "frontier", runs, "--out", "drawn")[0] == 0
    assert (place / "drawn" / "frontier.png").is_symlink()
    assert (place / "shelf" / "kept.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ("show {runs}", 1),
        ("show {runs} --json", 0),
        ("verdict {runs} --markdown", 0),
        ("check {runs} {runs}", 0),
        ("report {runs} -o /dev/stdout", 1),
        ("ls tasks", 0),
        ("run --help", 0),
    ],
)
def test_a_reader_that_leaves_gets_no_traceback(runs, line, reads):
    command = [sys.executable, "-m", "lcfbench", *line.format(runs=runs).split()]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    child.stdout.read(reads)
    child.stdout.close()
    err = child.stderr.read().decode()
    assert child.wait(120) == (3 if line.startswith("check") else 0) and not err  # its own exit code
